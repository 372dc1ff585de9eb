//! A network with one machine, driven frame by frame.

use crate::fake_host::{FakeHost, FakeSocket};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use sublet_net::config::{Config, V6Config, ROUTER_MAC};
use sublet_net::host::Ready;
use sublet_net::policy::{Policy, Rule, Target};
use sublet_net::stack::Stack;
use sublet_net::wire::ethernet::{self, Arp, Mac};
use sublet_net::wire::icmp::{self, Echo};
use sublet_net::wire::ip::{self, Path};
use sublet_net::wire::tcp::{self, Header};
use sublet_net::wire::{udp, vnet};

pub const SECOND: u64 = 1_000_000_000;
pub const MAC: Mac = Mac([0x52, 0x54, 0, 0, 0, 1]);

/// A segment as the machine sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub sequence: u32,
    pub acknowledgment: u32,
    pub flags: u8,
    pub window: u16,
    pub mss: Option<u16>,
    pub scale: Option<u8>,
    pub payload: Vec<u8>,
}

/// Any packet as the machine sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet {
    Tcp(Seen),
    Udp(SocketAddr, SocketAddr, Vec<u8>),
    /// Source, type, code, and the message from its ninth byte.
    Icmp(IpAddr, u8, u8, Vec<u8>),
    Arp(Arp),
    Other,
}

pub struct Network {
    pub stack: Stack<FakeHost>,
    pub now: u64,
    pub machine: IpAddr,
}

pub fn config() -> Config {
    let v6 = V6Config {
        prefix: "fd00::".parse().unwrap(),
        gateway: "fd00::2".parse().unwrap(),
        dns: "fd00::3".parse().unwrap(),
    };
    Config { v6: Some(v6), ..Config::default() }
}

pub fn deny_everything() -> Policy {
    let rule = Rule { allow: false, protocol: None, target: Target::Any, ports: None };
    Policy { rules: vec![rule], open_names: false }
}

impl Network {
    pub fn new(config: Config) -> Self {
        let stack = Stack::new(FakeHost::default(), config);
        let mut network = Self { stack, now: 0, machine: Ipv4Addr::new(10, 0, 2, 15).into() };
        network.say_hello();
        network
    }

    /// The machine asks for the router, as every machine does first.
    fn say_hello(&mut self) {
        let sender = (MAC, Ipv4Addr::new(10, 0, 2, 15));
        let target = (Mac([0; 6]), Ipv4Addr::new(10, 0, 2, 2));
        let answer = self.frame(Arp { request: true, sender, target }.frame());
        assert!(matches!(answer[..], [Packet::Arp(_)]));
    }

    /// Send a frame, and see what comes back.
    pub fn frame(&mut self, frame: Vec<u8>) -> Vec<Packet> {
        self.stack.input(self.now, &frame);
        self.collect()
    }

    pub fn collect(&mut self) -> Vec<Packet> {
        self.stack.settle();
        let mut seen = Vec::new();
        while let Some(frame) = self.stack.take() {
            seen.push(parse(&frame));
        }
        seen
    }

    pub fn path(&self, to: IpAddr) -> Path {
        Path { link: (MAC, ROUTER_MAC), source: self.machine, destination: to }
    }

    pub fn tcp(&mut self, to: SocketAddr, header: Header, payload: &[u8]) -> Vec<Packet> {
        let frame = header.frame(&self.path(to.ip()), payload, u16::MAX);
        self.frame(frame)
    }

    pub fn udp(&mut self, from: u16, to: SocketAddr, payload: &[u8]) -> Vec<Packet> {
        let frame = udp::frame(&self.path(to.ip()), (from, to.port()), payload).unwrap();
        self.frame(frame)
    }

    pub fn ping(&mut self, to: IpAddr, identifier: u16) -> Vec<Packet> {
        let message =
            icmp::echo_request_message(&Echo { identifier, sequence: 1, data: b"hello" }, to.is_ipv4());
        let rest = [message[4], message[5], message[6], message[7]];
        let frame = icmp::frame(&self.path(to), (message[0], 0), rest, b"hello", 64);
        self.frame(frame)
    }

    /// Let the clock go on.
    pub fn wait(&mut self, nanoseconds: u64) -> Vec<Packet> {
        self.now += nanoseconds;
        self.stack.expire(self.now);
        self.collect()
    }

    pub fn socket(&mut self, index: usize) -> &mut FakeSocket {
        &mut self.stack.context.host.sockets[index]
    }

    /// Tell the router that a socket is ready for everything.
    pub fn ready(&mut self, index: usize) -> Vec<Packet> {
        let last = self.socket(index).incoming.back();
        let ended = matches!(last, Some(Err(_))) || last == Some(&Ok(Vec::new()));
        let ready = Ready { readable: true, writable: true, error: false, ended };
        let token = self.socket(index).token.expect("the socket is watched");
        self.stack.ready(self.now, token, ready);
        self.collect()
    }

    pub fn drops(&self, name: &str) -> u64 {
        self.stack.context.drops().find(|(reason, _)| *reason == name).unwrap().1
    }
}

/// The only packet of a list, a TCP segment.
pub fn only_tcp(packets: Vec<Packet>) -> Seen {
    match &packets[..] {
        [Packet::Tcp(seen)] => seen.clone(),
        _ => panic!("one segment expected: {packets:?}"),
    }
}

fn parse(frame: &[u8]) -> Packet {
    let (offload, bytes) = vnet::parse(frame).unwrap();
    let ethernet = ethernet::parse(bytes).unwrap();
    assert_eq!(ethernet.source, ROUTER_MAC);
    let packet = match ethernet.kind {
        ethernet::ARP => return Packet::Arp(Arp::parse(ethernet.payload).unwrap()),
        ethernet::IPV4 => ip::parse_v4(ethernet.payload),
        _ => ip::parse_v6(ethernet.payload),
    }
    .unwrap();
    if packet.fragment.is_some() {
        return Packet::Other;
    }
    let verify = !offload.needs_checksum;
    match packet.protocol {
        ip::TCP => {
            let segment = tcp::parse(&packet, verify).unwrap();
            Packet::Tcp(Seen {
                from: SocketAddr::new(packet.source, segment.source),
                to: SocketAddr::new(packet.destination, segment.destination),
                sequence: segment.sequence,
                acknowledgment: segment.acknowledgment,
                flags: segment.flags,
                window: segment.window,
                mss: segment.mss,
                scale: segment.scale,
                payload: segment.payload.to_vec(),
            })
        }
        ip::UDP => {
            let datagram = udp::parse(&packet, verify).unwrap();
            let from = SocketAddr::new(packet.source, datagram.source);
            let to = SocketAddr::new(packet.destination, datagram.destination);
            Packet::Udp(from, to, datagram.payload.to_vec())
        }
        _ => {
            let message = icmp::parse(&packet, verify).unwrap();
            let rest = message.message[icmp::SIZE..].to_vec();
            Packet::Icmp(packet.source, message.kind, message.code, rest)
        }
    }
}

/// A connection that the machine has opened to a host that accepts.
pub struct Open {
    pub network: Network,
    pub remote: SocketAddr,
    pub socket: usize,
    /// Next number of the machine, and of the router.
    pub mine: u32,
    pub theirs: u32,
}

pub const PORT: u16 = 40_000;
const FIRST: u32 = 5000;

impl Open {
    pub fn new(network: Network) -> Self {
        Self::with_window(network, 65_535)
    }

    pub fn with_window(mut network: Network, window: u16) -> Self {
        let remote: SocketAddr = "192.0.2.1:80".parse().unwrap();
        let syn = Header {
            ports: (PORT, remote.port()),
            sequence: FIRST,
            flags: tcp::SYN,
            window,
            options: Some((1460, Some(7))),
            ..Header::default()
        };
        assert_eq!(network.tcp(remote, syn, &[]), []);
        let socket = network.stack.context.host.sockets.len() - 1;
        let answer = only_tcp(network.ready(socket));
        assert_eq!((answer.flags, answer.acknowledgment), (tcp::SYN | tcp::ACK, FIRST + 1));
        let theirs = answer.sequence + 1;
        let mut open = Self { network, remote, socket, mine: FIRST + 1, theirs };
        let header = Header { window, ..open.header(tcp::ACK) };
        assert_eq!(open.network.tcp(remote, header, &[]), []);
        open
    }

    pub fn header(&self, flags: u8) -> Header {
        Header {
            ports: (PORT, self.remote.port()),
            sequence: self.mine,
            acknowledgment: self.theirs,
            flags,
            window: 65_535,
            options: None,
        }
    }

    /// The machine sends data in order.
    pub fn say(&mut self, payload: &[u8]) -> Vec<Packet> {
        let header = self.header(tcp::ACK | tcp::PSH);
        self.mine = self.mine.wrapping_add(payload.len() as u32);
        self.network.tcp(self.remote, header, payload)
    }

    pub fn send(&mut self, header: Header, payload: &[u8]) -> Vec<Packet> {
        self.network.tcp(self.remote, header, payload)
    }

    /// The host receives data for the machine.
    pub fn hear(&mut self, data: &[u8]) -> Vec<Packet> {
        let socket = self.socket;
        self.network.socket(socket).incoming.push_back(Ok(data.to_vec()));
        self.network.ready(socket)
    }

    /// The machine acknowledges everything so far.
    pub fn acknowledge(&mut self, count: u32) -> Vec<Packet> {
        self.theirs = self.theirs.wrapping_add(count);
        let header = self.header(tcp::ACK);
        self.send(header, &[])
    }

    pub fn host(&mut self) -> &mut FakeSocket {
        let socket = self.socket;
        self.network.socket(socket)
    }

    pub fn connections(&self) -> usize {
        self.network.stack.tcp.iter().count()
    }
}

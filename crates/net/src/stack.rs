//! The router: takes the guest's frames, readiness of sockets and the time, and does the rest.

use crate::config::{Config, Forward, Transport, ROUTER_MAC};
use crate::context::{is_routable, Context};
use crate::dhcp4::{self, Dhcp4};
use crate::dhcp6;
use crate::dns::{self, Client, Dns};
use crate::host::{Host, Ready, Token};
use crate::neighbour::{self, Advertiser};
use crate::outbox::Frame;
use crate::slab::Id;
use crate::tcp::Tcp;
use crate::tftp::Tftp;
use crate::timers::Timer;
use crate::udp::Udp;
use crate::wire::ethernet::{self, Ethernet, Mac};
use crate::wire::fragment::Reassembly;
use crate::wire::ip::{self, Ip};
use crate::wire::{icmp, tcp, udp, vnet, Drop};
use std::io;
use std::net::{IpAddr, SocketAddr};

/// Connections taken from one forwarded port before others have their turn.
const ACCEPT_BURST: usize = 64;

struct Listener<S> {
    socket: S,
    forward: Forward,
}

/// One network with its router.
pub struct Stack<H: Host> {
    /// What all parts share.
    pub context: Context<H>,
    /// TCP connections.
    pub tcp: Tcp<H::Socket>,
    /// UDP and ping flows.
    pub udp: Udp<H::Socket>,
    /// Leases.
    pub dhcp4: Dhcp4,
    /// Queries under way.
    pub dns: Dns<H::Socket>,
    advertiser: Advertiser,
    tftp: Tftp,
    reassembly: Reassembly,
    listeners: Vec<Listener<H::Socket>>,
    /// Frames and bytes from the guest.
    pub received: (u64, u64),
}

impl<H: Host> Stack<H> {
    /// A network with nobody on it.
    pub fn new(host: H, config: Config) -> Self {
        Self {
            context: Context::new(host, config),
            tcp: Tcp::default(),
            udp: Udp::default(),
            dhcp4: Dhcp4::default(),
            dns: Dns::default(),
            advertiser: Advertiser::default(),
            tftp: Tftp::default(),
            reassembly: Reassembly::default(),
            listeners: Vec::new(),
            received: (0, 0),
        }
    }

    /// Open a port of the host that leads to a machine.
    ///
    /// # Errors
    /// The host's: the port is taken, or may not be.
    pub fn add_forward(&mut self, forward: Forward) -> io::Result<()> {
        match forward.transport {
            Transport::Tcp => {
                let socket = self.context.host.listen(forward.listen)?;
                let index = self.listeners.len() as u32;
                self.context.host.watch(&socket, Token::Forward(index))?;
                self.listeners.push(Listener { socket, forward });
                Ok(())
            }
            Transport::Udp => {
                let socket = self.context.host.open_udp(forward.listen)?;
                let guest = self.machine(&forward);
                self.udp.forward(&mut self.context, socket, guest)
            }
        }
    }

    /// The machine behind a forwarded port.
    fn machine(&self, forward: &Forward) -> SocketAddr {
        let address = forward.address.unwrap_or_else(|| {
            let lease = self.dhcp4.leases(self.context.now).map(|(_, lease)| lease.address).min();
            IpAddr::V4(lease.unwrap_or(self.context.config.first_lease))
        });
        SocketAddr::new(address, forward.port)
    }

    /// Take a frame of the guest. What is wrong with it is counted.
    pub fn input(&mut self, now: u64, frame: &[u8]) {
        self.context.now = now;
        self.received.0 += 1;
        self.received.1 += frame.len() as u64;
        if let Err(reason) = self.frame(frame) {
            self.context.count(reason);
        }
    }

    fn frame(&mut self, frame: &[u8]) -> Result<(), Drop> {
        let (offload, bytes) = vnet::parse(frame)?;
        let ethernet = ethernet::parse(bytes)?;
        if ethernet.destination != ROUTER_MAC && !ethernet.destination.is_group() {
            return Err(Drop::NotForUs);
        }
        let verify = !offload.needs_checksum;
        match ethernet.kind {
            ethernet::ARP => neighbour::arp(&mut self.context, ethernet.source, ethernet.payload),
            ethernet::IPV4 => self.packet(&ethernet, ip::parse_v4(ethernet.payload)?, verify),
            ethernet::IPV6 if self.context.config.v6.is_some() => {
                self.packet(&ethernet, ip::parse_v6(ethernet.payload)?, verify)
            }
            _ => Err(Drop::NotForUs),
        }
    }

    fn packet(&mut self, ethernet: &Ethernet<'_>, packet: Ip<'_>, verify: bool) -> Result<(), Drop> {
        self.check_source(ethernet.source, &packet)?;
        let Some(piece) = packet.fragment else {
            return self.whole_packet(ethernet.source, &packet, verify);
        };
        match self.reassembly.add(self.context.now, &packet, piece)? {
            None => Ok(()),
            Some(payload) => {
                // It came in pieces, and may leave so.
                let whole = Ip { payload: &payload, fragment: None, dont_fragment: false, ..packet };
                self.whole_packet(ethernet.source, &whole, true)
            }
        }
    }

    /// Only machines of the network speak here; those without an address yet only to get one.
    fn check_source(&mut self, mac: Mac, packet: &Ip<'_>) -> Result<(), Drop> {
        let source = packet.source;
        if source.is_unspecified() {
            return Ok(());
        }
        let config = &self.context.config;
        let own = match source {
            IpAddr::V4(v4) => config.contains(source) && v4 != config.broadcast(),
            IpAddr::V6(v6) => config.contains(source) || v6.is_unicast_link_local(),
        };
        if !own || config.is_router(source) {
            return Err(Drop::Spoofed);
        }
        self.context.learn_neighbour(source, mac);
        Ok(())
    }

    fn whole_packet(&mut self, mac: Mac, packet: &Ip<'_>, verify: bool) -> Result<(), Drop> {
        match packet.protocol {
            ip::UDP => self.datagram(mac, packet, &udp::parse(packet, verify)?),
            ip::ICMPV6 if packet.source.is_ipv6() => self.icmp(mac, packet, verify),
            _ if packet.source.is_unspecified() => Err(Drop::Spoofed),
            ip::TCP => {
                if !icmp::may_report(packet.source, packet.destination) {
                    return Err(Drop::NotForUs);
                }
                self.tcp.input(&mut self.context, packet, &tcp::parse(packet, verify)?)
            }
            ip::ICMP if packet.source.is_ipv4() => self.icmp(mac, packet, verify),
            _ => Err(Drop::NotForUs),
        }
    }

    fn datagram(&mut self, mac: Mac, packet: &Ip<'_>, datagram: &udp::Udp<'_>) -> Result<(), Drop> {
        let to = packet.destination;
        if to.is_ipv4() && datagram.destination == dhcp4::PORTS.0 && self.is_here(to) {
            return self.dhcp4.input(&mut self.context, mac, packet.source, datagram.payload);
        }
        if packet.source.is_unspecified() {
            return Err(Drop::Spoofed);
        }
        if to.is_ipv6() && datagram.destination == dhcp6::PORTS.0 && self.is_here(to) {
            return dhcp6::input(&mut self.context, packet.source, datagram.payload);
        }
        let guest = SocketAddr::new(packet.source, datagram.source);
        if self.context.config.is_gateway(to) && self.tftp.owns(guest, datagram.destination) {
            let server = SocketAddr::new(to, datagram.destination);
            let served = self.tftp.input(&mut self.context, guest, server, datagram.payload);
            if served != Err(Drop::NoFlow) {
                return served;
            }
        }
        if self.context.config.is_dns(to) && datagram.destination == dns::PORT {
            let ends = Client::Udp(guest, SocketAddr::new(to, datagram.destination));
            return self.dns.query(&mut self.context, &self.dhcp4, ends, datagram.payload);
        }
        if self.is_group(to) || !is_routable(to) && !self.context.config.is_gateway(to) && to.is_ipv6() {
            return Err(Drop::NotForUs);
        }
        self.udp.input(&mut self.context, packet, datagram)
    }

    /// Whether a DHCP server here is meant.
    fn is_here(&self, to: IpAddr) -> bool {
        self.context.config.is_gateway(to) || self.is_group(to)
    }

    fn is_group(&self, to: IpAddr) -> bool {
        to.is_multicast()
            || matches!(to, IpAddr::V4(v4) if v4.is_broadcast() || v4 == self.context.config.broadcast())
    }

    fn icmp(&mut self, mac: Mac, packet: &Ip<'_>, verify: bool) -> Result<(), Drop> {
        let message = icmp::parse(packet, verify)?;
        let v4 = packet.source.is_ipv4();
        if !v4 && self.advertiser.input(&mut self.context, mac, packet, &message)? {
            return Ok(());
        }
        let Some(echo) = message.echo_request(v4) else { return Err(Drop::NotForUs) };
        if packet.source.is_unspecified() || self.is_group(packet.destination) {
            return Err(Drop::NotForUs);
        }
        if !self.context.config.is_router(packet.destination) {
            return self.udp.ping(&mut self.context, packet, &echo);
        }
        if let Some(path) = self.context.path(packet.destination, packet.source) {
            self.context.outbox.push(icmp::echo_reply(&path, &echo));
        }
        Ok(())
    }

    /// A socket became ready.
    pub fn ready(&mut self, now: u64, token: Token, ready: Ready) {
        self.context.now = now;
        match token {
            Token::Tcp(id) => self.tcp.ready(&mut self.context, id, ready),
            Token::Udp(id) => self.udp.ready(&mut self.context, id),
            Token::Dns(id) => self.dns.ready(&mut self.context, id, ready),
            Token::Forward(index) => self.accept(index),
        }
    }

    /// Take connections to a forwarded port.
    fn accept(&mut self, index: u32) {
        for _ in 0..ACCEPT_BURST {
            let Some(listener) = self.listeners.get(index as usize) else { return };
            let forward = listener.forward;
            let Ok((socket, from)) = self.context.host.accept(&listener.socket) else { return };
            let guest = self.machine(&forward);
            let remote = self.name_for(guest, from);
            self.tcp.forward(&mut self.context, socket, guest, remote);
        }
        let listener = &self.listeners[index as usize];
        // More are waiting: be told again, after the others.
        let _ = self.context.host.watch(&listener.socket, Token::Forward(index));
    }

    /// What the guest sees of somebody who connects: his address, unless it is one that it could not answer
    /// or that is taken; then the gateway, with a free port.
    fn name_for(&mut self, guest: SocketAddr, from: SocketAddr) -> SocketAddr {
        let context = &mut self.context;
        let answerable = is_routable(from.ip())
            && from.is_ipv4() == guest.is_ipv4()
            && !context.config.contains(from.ip())
            && !context.host.is_local(from.ip());
        if answerable && !self.tcp.is_used(guest, from) {
            return from;
        }
        let gateway = context.config.gateway_like(guest.ip());
        let ports = (from.port()..=u16::MAX).chain(1024..from.port());
        let mut names = ports.map(|port| SocketAddr::new(gateway, port));
        names.find(|name| !self.tcp.is_used(guest, *name)).unwrap_or(from)
    }

    /// When [`Stack::expire`] has something to do; `None`: not before something else happens.
    pub fn next_deadline(&self) -> Option<u64> {
        self.context.timers.next()
    }

    /// Do what is due.
    pub fn expire(&mut self, now: u64) {
        self.context.now = now;
        while let Some((entry, timer)) = self.context.timers.pop(now) {
            match timer {
                Timer::Tcp(id) => self.tcp.timeout(&mut self.context, id, entry),
                Timer::Udp(id) => self.udp.timeout(&mut self.context, id, entry),
                Timer::Dns(id) => self.dns.timeout(&mut self.context, id, entry),
                Timer::Tftp => self.tftp.timeout(&mut self.context, entry),
                Timer::Advertise => self.advertiser.timeout(&mut self.context, entry),
            }
        }
    }

    /// Finish a round of events: answers of the resolver, acknowledgments, connections that waited for room.
    pub fn settle(&mut self) {
        while let Some(id) = self.context.outbox.next_waiting() {
            self.tcp.resume(&mut self.context, id);
        }
        loop {
            for id in std::mem::take(&mut self.tcp.local_ready) {
                self.serve_dns(id);
            }
            let answers = self.dns.take_answers();
            if answers.is_empty() {
                break;
            }
            for answer in answers {
                self.deliver(answer);
            }
        }
        self.tcp.flush(&mut self.context);
    }

    /// Read the queries that a connection to the resolver has.
    fn serve_dns(&mut self, id: Id) {
        while let Some(local) = self.tcp.local(id) {
            let Some(query) = dns::first_message(&local.from_guest).map(<[u8]>::to_vec) else {
                local.service_done |= local.guest_done && local.unanswered == 0;
                break;
            };
            local.from_guest.drain(..query.len() + 2);
            local.unanswered += 1;
            if self.dns.query(&mut self.context, &self.dhcp4, Client::Tcp(id), &query).is_err() {
                local_failed(&mut self.tcp, id);
            }
        }
        self.tcp.resume(&mut self.context, id);
        self.tcp.local_ready.retain(|other| *other != id);
    }

    fn deliver(&mut self, answer: dns::Answer) {
        match answer.client {
            Client::Udp(to, from) => {
                if let Some(frame) = dns::datagram(&self.context, from, to, &answer.message) {
                    self.context.outbox.push(frame);
                }
            }
            Client::Tcp(id) => {
                if let Some(local) = self.tcp.local(id) {
                    local.answer(&answer.message);
                    self.tcp.resume(&mut self.context, id);
                }
            }
        }
    }

    /// The oldest frame for the guest.
    pub fn take(&mut self) -> Option<Frame> {
        self.context.outbox.pop()
    }
}

fn local_failed<S>(tcp: &mut Tcp<S>, id: Id) {
    if let Some(local) = tcp.local(id) {
        local.unanswered -= 1;
        local.service_done = true;
    }
}

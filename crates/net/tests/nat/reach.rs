//! What a guest may not reach, and what it is told.

use crate::network::{config, deny_everything, only_tcp, Network, Packet, PORT};
use std::net::{IpAddr, SocketAddr};
use sublet_net::config::Config;
use sublet_net::wire::ip;
use sublet_net::wire::tcp::{Header, RST, SYN};
use sublet_net::wire::udp;

fn syn(port: u16) -> Header {
    Header { ports: (PORT, port), sequence: 7, flags: SYN, window: 1000, ..Header::default() }
}

fn connect(network: &mut Network, to: &str) -> Vec<Packet> {
    let to: SocketAddr = to.parse().unwrap();
    if to.is_ipv6() {
        network.machine = "fd00::15".parse::<IpAddr>().unwrap();
        let mac = crate::network::MAC;
        network.stack.context.learn_neighbour(network.machine, mac);
    }
    network.tcp(to, syn(to.port()), &[])
}

#[test]
fn the_host_is_not_reached_by_any_address() {
    let addresses = [
        "127.0.0.1:22",
        "127.1.2.3:22",
        "0.0.0.0:22",
        "0.1.2.3:22",
        "10.0.2.2:22",
        "169.254.169.254:80",
        "198.51.100.7:22",
        "[::1]:22",
        "[::ffff:127.0.0.1]:22",
        "[::ffff:198.51.100.7]:22",
        "[::127.0.0.1]:22",
        "[::ffff:10.0.2.2]:22",
        "[fd00::2]:22",
        "[2001:db8::7]:22",
    ];
    for address in addresses {
        let mut network = Network::new(config());
        network.stack.context.host.local =
            vec!["198.51.100.7".parse().unwrap(), "2001:db8::7".parse().unwrap()];
        let answer = only_tcp(connect(&mut network, address));
        assert_eq!(answer.flags & RST, RST, "{address}");
        assert!(network.stack.context.host.sockets.is_empty(), "{address}");
    }
}

#[test]
fn the_gateway_leads_to_the_host_where_the_user_says_so() {
    let mut network = Network::new(Config { host_access: true, ..config() });
    assert_eq!(connect(&mut network, "10.0.2.2:22"), []);
    assert_eq!(connect(&mut network, "[fd00::2]:22"), []);
    let kinds: Vec<_> = network.stack.context.host.sockets.iter().map(|socket| socket.kind).collect();
    let stream = |text: &str| crate::fake_host::Kind::Stream(text.parse().unwrap());
    assert_eq!(kinds, [stream("127.0.0.1:22"), stream("[::1]:22")]);
}

#[test]
fn even_then_loopback_addresses_do_not() {
    let mut network = Network::new(Config { host_access: true, ..config() });
    let answer = only_tcp(connect(&mut network, "127.0.0.1:22"));
    assert_eq!(answer.flags & RST, RST);
}

#[test]
fn a_denied_connection_is_reset_and_counted() {
    let mut network = Network::new(Config { policy: deny_everything(), ..config() });
    let answer = only_tcp(connect(&mut network, "192.0.2.1:80"));
    assert_eq!(answer.flags & RST, RST);
    assert_eq!((network.drops("denied"), network.stack.context.gate.denied), (1, 1));
    assert_eq!(network.stack.context.gate.take_denials()[0].target, "192.0.2.1");
}

#[test]
fn rfc1812_5_2_7_1_denied_datagrams_and_echoes_are_prohibited() {
    let mut network = Network::new(Config { policy: deny_everything(), ..config() });
    let to: SocketAddr = "192.0.2.1:53".parse().unwrap();
    for packets in [network.udp(4000, to, b"query"), network.ping(to.ip(), 1)] {
        assert!(matches!(packets[..], [Packet::Icmp(_, 3, 13, _)]), "{packets:?}");
    }
    assert!(network.stack.context.host.sockets.is_empty());
}

#[test]
fn fragments_are_judged_as_the_whole_packet() {
    let mut network = Network::new(Config { policy: deny_everything(), ..config() });
    let to: SocketAddr = "192.0.2.1:53".parse().unwrap();
    let path = network.path(to.ip());
    let frame = udp::frame(&path, (4000, 53), &[0; 3000]).unwrap();
    let pieces = sublet_net::wire::fragment::split(&path, frame, ip::UDP, 1500, 9);
    let answers: Vec<Packet> = pieces.into_iter().flat_map(|piece| network.frame(piece)).collect();
    assert!(matches!(answers[..], [Packet::Icmp(_, 3, 13, _)]), "{answers:?}");
}

#[test]
fn rfc2827_a_foreign_source_address_is_dropped() {
    let mut network = Network::new(config());
    network.machine = "192.0.2.77".parse().unwrap();
    assert_eq!(connect(&mut network, "192.0.2.1:80"), []);
    network.machine = "10.0.2.2".parse().unwrap();
    assert_eq!(connect(&mut network, "192.0.2.1:80"), []);
    assert_eq!(network.drops("spoofed"), 2);
}

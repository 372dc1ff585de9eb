//! Datagrams, echo, and what the network says about them.

use crate::fake_host::Kind;
use crate::network::{config, Network, Packet, SECOND};
use std::net::SocketAddr;
use sublet_net::config::{Forward, Transport};
use sublet_net::host::NetworkError;
use sublet_net::wire::icmp;

fn remote(last: u8) -> SocketAddr {
    SocketAddr::new([192, 0, 2, last].into(), 123)
}

#[test]
fn rfc4787_req_1_a_port_keeps_its_socket_for_every_peer() {
    let mut network = Network::new(config());
    network.udp(4000, remote(1), b"one");
    network.udp(4000, remote(2), b"two");
    network.udp(4001, remote(1), b"three");
    assert_eq!(network.stack.context.host.sockets.len(), 2);
    let sent = &network.socket(0).datagrams_out;
    assert_eq!(sent[..], [(remote(1), b"one".to_vec(), 63), (remote(2), b"two".to_vec(), 63)]);
}

#[test]
fn rfc4787_req_8_only_peers_that_were_spoken_to_may_answer() {
    let mut network = Network::new(config());
    network.udp(4000, remote(1), b"one");
    network.socket(0).datagrams_in.push_back((remote(2), b"stranger".to_vec()));
    network.socket(0).datagrams_in.push_back((remote(1), b"answer".to_vec()));
    let machine = SocketAddr::new(network.machine, 4000);
    assert_eq!(network.ready(0), [Packet::Udp(remote(1), machine, b"answer".to_vec())]);
}

#[test]
fn rfc4787_req_5_a_mapping_lives_five_minutes_past_its_last_use() {
    let mut network = Network::new(config());
    network.udp(4000, remote(1), b"one");
    network.wait(299 * SECOND);
    network.udp(4000, remote(1), b"two");
    network.wait(299 * SECOND);
    assert_eq!(network.stack.udp.iter().count(), 1);
    network.wait(2 * SECOND);
    assert_eq!(network.stack.udp.iter().count(), 0);
}

#[test]
fn rfc4787_req_14_a_long_answer_comes_in_fragments() {
    let mut network = Network::new(config());
    network.udp(4000, remote(1), b"one");
    network.socket(0).datagrams_in.push_back((remote(1), vec![1; 4000]));
    assert_eq!(network.ready(0), [Packet::Other, Packet::Other, Packet::Other]);
}

#[test]
fn rfc792_a_closed_port_is_reported_by_its_host() {
    let mut network = Network::new(config());
    network.udp(4000, remote(1), b"one");
    network.socket(0).errors.push_back(NetworkError {
        destination: remote(1),
        reporter: Some(remote(1).ip()),
        errno: libc::ECONNREFUSED,
        expired: false,
        mtu: 0,
        sequence: 0,
    });
    let packets = network.ready(0);
    let [Packet::Icmp(from, 3, 3, quote)] = &packets[..] else { panic!("{packets:?}") };
    assert_eq!((*from, &quote[20..24]), (remote(1).ip(), &[0x0F, 0xA0, 0, 123][..]));
}

#[test]
fn rfc1812_5_3_1_a_packet_at_its_last_hop_expires_here() {
    let mut network = Network::new(config());
    let message = icmp::frame(&network.path(remote(1).ip()), (8, 0), [0, 1, 0, 1], b"", 1);
    let packets = network.frame(message);
    assert!(matches!(packets[..], [Packet::Icmp(_, 11, 0, _)]), "{packets:?}");
}

#[test]
fn rfc1812_5_3_1_a_router_on_the_way_speaks_in_its_own_name() {
    let mut network = Network::new(config());
    network.udp(4000, remote(1), b"one");
    let router = "198.51.100.1".parse().unwrap();
    network.socket(0).errors.push_back(NetworkError {
        destination: remote(1),
        reporter: Some(router),
        errno: libc::EHOSTUNREACH,
        expired: true,
        mtu: 0,
        sequence: 0,
    });
    let packets = network.ready(0);
    assert!(matches!(&packets[..], [Packet::Icmp(from, 11, 0, _)] if *from == router), "{packets:?}");
}

#[test]
fn rfc5508_req_1_echo_goes_out_and_comes_back_with_the_guest_s_identifier() {
    let mut network = Network::new(config());
    assert_eq!(network.ping(remote(1).ip(), 7), []);
    assert_eq!(network.socket(0).kind, Kind::Ping);
    let reply = [0, 0, 0, 0, 0x99, 0x99, 0, 1, b'h'];
    let from = SocketAddr::new(remote(1).ip(), 0);
    network.socket(0).datagrams_in.push_back((from, reply.to_vec()));
    assert_eq!(network.ready(0), [Packet::Icmp(remote(1).ip(), 0, 0, b"h".to_vec())]);
}

#[test]
fn rfc1191_3_the_guest_is_told_what_fits_a_narrow_way() {
    let mut network = Network::new(config());
    network.udp(4000, remote(1), b"short");
    let socket = network.socket(0);
    assert!(socket.manner.whole, "the guest's packets may not be split");
    socket.longest = 1372;
    socket.errors.push_back(NetworkError {
        destination: SocketAddr::new(remote(1).ip(), 0),
        reporter: None,
        errno: libc::EMSGSIZE,
        expired: false,
        mtu: 1400,
        sequence: 0,
    });
    let packets = network.udp(4000, remote(1), &[0; 1400]);
    let [Packet::Icmp(_, 3, 4, rest)] = &packets[..] else { panic!("{packets:?}") };
    assert_eq!(rest[20..22], 4000u16.to_be_bytes(), "it quotes the datagram");
    assert_eq!(network.socket(0).datagrams_out.len(), 1);
}

#[test]
fn rfc792_an_error_quotes_the_echo_that_it_is_about() {
    let mut network = Network::new(config());
    network.ping(remote(1).ip(), 7);
    network.socket(0).errors.push_back(NetworkError {
        destination: SocketAddr::new(remote(1).ip(), 0),
        reporter: None,
        errno: libc::EHOSTUNREACH,
        expired: false,
        mtu: 0,
        sequence: 0x102,
    });
    let packets = network.ready(0);
    let [Packet::Icmp(_, 3, 1, quote)] = &packets[..] else { panic!("{packets:?}") };
    assert_eq!((quote[20], &quote[24..28]), (8, &[0, 7, 1, 2][..]));
}

#[test]
fn an_echo_that_the_host_does_not_allow_is_refused_at_once() {
    let mut network = Network::new(config());
    network.stack.context.host.no_ping = true;
    let packets = network.ping(remote(1).ip(), 7);
    assert!(matches!(packets[..], [Packet::Icmp(_, 3, 13, _)]), "{packets:?}");
}

#[test]
fn the_router_answers_echo_itself() {
    let mut network = Network::new(config());
    let gateway = "10.0.2.2".parse().unwrap();
    assert_eq!(network.ping(gateway, 7), [Packet::Icmp(gateway, 0, 0, b"hello".to_vec())]);
}

#[test]
fn a_forwarded_datagram_is_answered_through_the_same_port() {
    let mut network = Network::new(config());
    let listen = "127.0.0.1:5353".parse().unwrap();
    let forward = Forward { transport: Transport::Udp, listen, address: None, port: 53 };
    network.stack.add_forward(forward).unwrap();
    let asker: SocketAddr = "127.0.0.1:6000".parse().unwrap();
    network.socket(0).datagrams_in.push_back((asker, b"question".to_vec()));
    let packets = network.ready(0);
    let seen: SocketAddr = "10.0.2.2:6000".parse().unwrap();
    let machine = SocketAddr::new(network.machine, 53);
    assert_eq!(packets, [Packet::Udp(seen, machine, b"question".to_vec())]);
    assert_eq!(network.udp(53, seen, b"answer"), []);
    assert_eq!(network.socket(0).datagrams_out, [(asker, b"answer".to_vec(), 63)]);
}

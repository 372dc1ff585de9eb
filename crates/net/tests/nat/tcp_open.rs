//! How connections begin.

use crate::fake_host::Kind;
use crate::network::{config, only_tcp, Network, Open, Packet, PORT, SECOND};
use std::net::SocketAddr;
use sublet_net::config::{Config, Forward, Transport};
use sublet_net::wire::tcp::{Header, ACK, RST, SYN};

fn syn(sequence: u32) -> Header {
    Header { ports: (PORT, 80), sequence, flags: SYN, window: 1000, ..Header::default() }
}

fn remote() -> SocketAddr {
    "192.0.2.1:80".parse().unwrap()
}

#[test]
fn rfc9293_3_5_the_guest_hears_of_a_connection_once_the_host_has_it() {
    let open = Open::new(Network::new(config()));
    assert_eq!(open.network.stack.context.host.sockets[0].kind, Kind::Stream(remote()));
}

#[test]
fn rfc9293_3_10_7_2_a_refused_connection_is_reset_at_once() {
    let mut network = Network::new(config());
    network.tcp(remote(), syn(7), &[]);
    network.socket(0).connect_errno = libc::ECONNREFUSED;
    let answer = only_tcp(network.ready(0));
    assert_eq!((answer.flags, answer.acknowledgment), (RST | ACK, 8));
    assert_eq!(network.stack.tcp.iter().count(), 0);
}

#[test]
fn rfc5382_req_9_an_unreachable_host_is_told_by_icmp_with_the_syn_quoted() {
    let mut network = Network::new(config());
    network.tcp(remote(), syn(7), &[]);
    network.socket(0).connect_errno = libc::EHOSTUNREACH;
    let answer = network.ready(0);
    let [Packet::Icmp(_, 3, 1, quote)] = &answer[..] else { panic!("{answer:?}") };
    assert_eq!(quote[20..28], [0x9C, 0x40, 0, 80, 0, 0, 0, 7]);
}

#[test]
fn rfc9293_3_10_7_4_a_lost_syn_ack_is_sent_again_and_given_up_in_the_end() {
    let mut network = Network::new(config());
    network.tcp(remote(), syn(7), &[]);
    let first = only_tcp(network.ready(0));
    assert_eq!(only_tcp(network.wait(SECOND)), first);
    assert_eq!(only_tcp(network.tcp(remote(), syn(7), &[])), first);
    let mut resets = 0;
    for _ in 0..10 {
        let packets = network.wait(100 * SECOND);
        resets += packets.iter().filter(|p| matches!(p, Packet::Tcp(s) if s.flags & RST != 0)).count();
    }
    assert_eq!((resets, network.stack.tcp.iter().count()), (1, 0));
    assert!(network.socket(0).aborted);
}

#[test]
fn rfc9293_3_10_7_1_a_segment_of_no_connection_is_reset() {
    let mut network = Network::new(config());
    let header = Header { acknowledgment: 77, flags: ACK, ..syn(7) };
    let answer = only_tcp(network.tcp(remote(), header, b"x"));
    assert_eq!((answer.flags, answer.sequence), (RST, 77));
    assert_eq!(network.tcp(remote(), Header { flags: RST, ..syn(7) }, &[]), []);
}

#[test]
fn rfc7323_2_2_without_the_guest_s_scale_there_is_none() {
    let mut network = Network::new(config());
    let header = Header { options: Some((1400, None)), ..syn(7) };
    network.tcp(remote(), header, &[]);
    let answer = only_tcp(network.ready(0));
    assert_eq!((answer.mss, answer.scale), (Some(1460), None));
}

#[test]
fn rfc9293_3_7_1_the_mss_fits_the_mtu() {
    let mut network = Network::new(Config { mtu: 9000, ..config() });
    network.tcp(remote(), syn(7), &[]);
    assert_eq!(only_tcp(network.ready(0)).mss, Some(8960));
}

#[test]
fn a_forwarded_port_opens_a_connection_to_the_guest() {
    let mut network = Network::new(config());
    let listen = "127.0.0.1:8080".parse().unwrap();
    let forward = Forward { transport: Transport::Tcp, listen, address: None, port: 80 };
    network.stack.add_forward(forward).unwrap();
    network.socket(0).waiting.push_back("127.0.0.1:5555".parse().unwrap());
    let opening = only_tcp(network.ready(0));
    assert_eq!((opening.flags, opening.to), (SYN, "10.0.2.15:80".parse().unwrap()));
    assert_eq!(opening.from, "10.0.2.2:5555".parse().unwrap());
    let header = Header {
        ports: (80, 5555),
        sequence: 900,
        acknowledgment: opening.sequence + 1,
        flags: SYN | ACK,
        window: 1000,
        options: Some((1460, Some(2))),
    };
    let ack = only_tcp(network.tcp(opening.from, header, &[]));
    assert_eq!((ack.flags, ack.acknowledgment), (ACK, 901));
    network.socket(1).incoming.push_back(Ok(b"GET".to_vec()));
    assert_eq!(only_tcp(network.ready(1)).payload, b"GET");
}

#[test]
fn a_forwarded_port_that_the_guest_refuses_is_reset() {
    let mut network = Network::new(config());
    let listen = "127.0.0.1:8080".parse().unwrap();
    let forward = Forward { transport: Transport::Tcp, listen, address: None, port: 80 };
    network.stack.add_forward(forward).unwrap();
    network.socket(0).waiting.push_back("127.0.0.1:5555".parse().unwrap());
    let opening = only_tcp(network.ready(0));
    let header = Header {
        ports: (80, 5555),
        acknowledgment: opening.sequence + 1,
        flags: RST | ACK,
        ..Header::default()
    };
    assert_eq!(network.tcp(opening.from, header, &[]), []);
    assert!(network.socket(1).aborted);
}

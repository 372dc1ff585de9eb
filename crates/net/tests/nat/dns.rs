//! The resolver, and the policy by name.

use crate::network::{config, only_tcp, Network, Packet, PORT, SECOND};
use std::net::SocketAddr;
use sublet_net::config::Config;
use sublet_net::dns::message::{encode_name, TYPE_A};
use sublet_net::policy::{Policy, Rule, Target};
use sublet_net::wire::tcp::{Header, ACK, FIN, PSH, RST, SYN};

const DNS: &str = "10.0.2.3:53";

fn upstream(last: u8) -> SocketAddr {
    SocketAddr::new([203, 0, 113, last].into(), 53)
}

fn query(name: &str) -> Vec<u8> {
    let mut message = vec![0xAB, 0xCD, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    message.extend(encode_name(name));
    message.extend(TYPE_A.to_be_bytes());
    message.extend([0, 1]);
    message
}

fn answer(question: &[u8], address: [u8; 4]) -> Vec<u8> {
    let mut message = question.to_vec();
    message[2] |= 0x80;
    message[7] = 1;
    message.extend([0xC0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
    message.extend(address);
    message
}

fn network(policy: Policy) -> Network {
    Network::new(Config { resolvers: vec![upstream(1), upstream(2)], policy, ..config() })
}

fn code(packets: &[Packet]) -> u8 {
    match packets {
        [Packet::Udp(_, _, message)] => message[3] & 15,
        _ => panic!("{packets:?}"),
    }
}

#[test]
fn rfc5625_4_a_query_is_asked_and_its_answer_carries_the_guest_s_number() {
    let mut network = network(Policy::default());
    assert_eq!(network.udp(4000, DNS.parse().unwrap(), &query("a.test")), []);
    let (to, asked, _) = network.socket(0).datagrams_out[0].clone();
    assert_eq!(to, upstream(1));
    assert_ne!(asked[..2], [0xAB, 0xCD]);
    network.socket(0).datagrams_in.push_back((upstream(1), answer(&asked, [192, 0, 2, 9])));
    let packets = network.ready(0);
    let [Packet::Udp(from, _, message)] = &packets[..] else { panic!("{packets:?}") };
    assert_eq!((*from, message), (DNS.parse().unwrap(), &answer(&query("a.test"), [192, 0, 2, 9])));
}

#[test]
fn rfc5452_9_1_an_answer_must_match_number_question_and_server() {
    let mut network = network(Policy::default());
    network.udp(4000, DNS.parse().unwrap(), &query("a.test"));
    let asked = network.socket(0).datagrams_out[0].1.clone();
    let mut wrong_number = answer(&asked, [1; 4]);
    wrong_number[0] ^= 1;
    let mut other = query("b.test");
    other[..2].copy_from_slice(&asked[..2]);
    let inbox = &mut network.socket(0).datagrams_in;
    inbox.push_back((upstream(1), wrong_number));
    inbox.push_back((upstream(1), answer(&other, [1; 4])));
    inbox.push_back((upstream(9), answer(&asked, [1; 4])));
    assert_eq!(network.ready(0), []);
}

#[test]
fn a_silent_resolver_is_followed_by_the_next_and_then_by_a_failure() {
    let mut network = network(Policy::default());
    network.udp(4000, DNS.parse().unwrap(), &query("a.test"));
    assert_eq!(network.wait(3 * SECOND), []);
    assert_eq!(network.socket(1).datagrams_out[0].0, upstream(2));
    network.wait(3 * SECOND);
    network.wait(3 * SECOND);
    assert_eq!(code(&network.wait(3 * SECOND)), 2);
}

#[test]
fn without_a_resolver_the_guest_hears_at_once() {
    let mut network = Network::new(config());
    let packets = network.udp(4000, DNS.parse().unwrap(), &query("a.test"));
    assert_eq!(code(&packets), 2);
}

fn only(name: &str) -> Policy {
    let everything = Rule { allow: false, protocol: None, target: Target::Any, ports: None };
    let named = Rule { allow: true, target: Target::Name(name.into()), ports: Some(443..=443), ..everything };
    let everything = Rule { allow: false, protocol: None, target: Target::Any, ports: None };
    Policy { rules: vec![named, everything], open_names: false }
}

fn connect(network: &mut Network, to: &str) -> Vec<Packet> {
    let to: SocketAddr = to.parse().unwrap();
    let header = Header { ports: (PORT, to.port()), flags: SYN, window: 1000, ..Header::default() };
    network.tcp(to, header, &[])
}

#[test]
fn a_name_opens_the_addresses_that_it_resolved_to_and_no_others() {
    let mut network = network(only("a.test"));
    assert_eq!(only_tcp(connect(&mut network, "192.0.2.9:443")).flags & RST, RST);
    network.udp(4000, DNS.parse().unwrap(), &query("a.test"));
    let asked = network.socket(0).datagrams_out[0].1.clone();
    network.socket(0).datagrams_in.push_back((upstream(1), answer(&asked, [192, 0, 2, 9])));
    network.ready(0);
    assert_eq!(connect(&mut network, "192.0.2.9:443"), []);
    assert_eq!(only_tcp(connect(&mut network, "192.0.2.9:80")).flags & RST, RST);
    assert_eq!(only_tcp(connect(&mut network, "192.0.2.10:443")).flags & RST, RST);
    network.wait(91 * SECOND);
    let header = Header { ports: (PORT + 1, 443), flags: SYN, window: 1, ..Header::default() };
    let late = network.tcp("192.0.2.9:443".parse().unwrap(), header, &[]);
    assert_eq!(only_tcp(late).flags & RST, RST);
}

#[test]
fn other_names_and_other_resolvers_are_no_way_out() {
    let mut network = network(only("a.test"));
    assert_eq!(code(&network.udp(4000, DNS.parse().unwrap(), &query("data.b.test"))), 3);
    let packets = network.udp(4000, "192.0.2.53:53".parse().unwrap(), &query("a.test"));
    assert!(matches!(packets[..], [Packet::Icmp(_, 3, 13, _)]), "{packets:?}");
    assert!(network.stack.context.host.sockets.is_empty());
    assert_eq!(network.stack.context.gate.denied, 2);
}

#[test]
fn rfc7766_a_query_over_tcp_is_asked_over_tcp() {
    let mut network = network(Policy::default());
    let to: SocketAddr = DNS.parse().unwrap();
    let syn = Header { ports: (PORT, 53), sequence: 10, flags: SYN, window: 60_000, ..Header::default() };
    let opened = only_tcp(network.tcp(to, syn, &[]));
    let header = Header {
        ports: (PORT, 53),
        sequence: 11,
        acknowledgment: opened.sequence + 1,
        flags: ACK | PSH,
        window: 60_000,
        options: None,
    };
    let message = query("a.test");
    let framed = [&(message.len() as u16).to_be_bytes()[..], &message].concat();
    network.tcp(to, header, &framed[..5]);
    network.tcp(to, Header { sequence: 16, ..header }, &framed[5..]);
    network.ready(0);
    let asked = network.socket(0).sent[2..].to_vec();
    let reply = answer(&asked, [192, 0, 2, 9]);
    let framed_reply = [&(reply.len() as u16).to_be_bytes()[..], &reply].concat();
    network.socket(0).incoming.push_back(Ok(framed_reply));
    let segment = only_tcp(network.ready(0));
    assert_eq!(segment.payload[4..], answer(&message, [192, 0, 2, 9])[2..]);
    // The guest closes; the router has nothing more to say either.
    let mine = 11 + framed.len() as u32;
    let fin = Header {
        sequence: mine,
        acknowledgment: segment.sequence + segment.payload.len() as u32,
        flags: FIN | ACK,
        ..header
    };
    let closed = only_tcp(network.tcp(to, fin, &[]));
    assert_eq!((closed.flags & FIN, closed.acknowledgment), (FIN, mine + 1));
}

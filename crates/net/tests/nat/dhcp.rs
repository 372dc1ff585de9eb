//! Leases, and how machines learn of the network.

use crate::network::{config, Network, Packet, MAC, SECOND};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use sublet_net::config::{BootConfig, Config, Reservation, ROUTER_MAC};
use sublet_net::wire::ethernet::Mac;
use sublet_net::wire::ip::Path;
use sublet_net::wire::{icmp, udp};

const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const DECLINE: u8 = 4;
const ACK: u8 = 5;
const NAK: u8 = 6;

struct Answer {
    kind: u8,
    address: Ipv4Addr,
    options: Vec<(u8, Vec<u8>)>,
    to: SocketAddr,
}

impl Answer {
    fn option(&self, code: u8) -> Option<&[u8]> {
        self.options.iter().find(|(found, _)| *found == code).map(|(_, value)| &value[..])
    }
}

fn message(mac: Mac, options: &[(u8, &[u8])]) -> Vec<u8> {
    let mut body = vec![0; 236];
    body[..3].copy_from_slice(&[1, 1, 6]);
    body[4..8].copy_from_slice(b"xid!");
    body[28..34].copy_from_slice(&mac.0);
    body.extend([99, 130, 83, 99]);
    for (code, value) in options {
        body.extend([*code, value.len() as u8]);
        body.extend(*value);
    }
    body.push(255);
    body
}

fn exchange(network: &mut Network, mac: Mac, options: &[(u8, &[u8])]) -> Option<Answer> {
    let path = Path {
        link: (mac, Mac::BROADCAST),
        source: Ipv4Addr::UNSPECIFIED.into(),
        destination: Ipv4Addr::BROADCAST.into(),
    };
    let frame = udp::frame(&path, (68, 67), &message(mac, options)).unwrap();
    match &network.frame(frame)[..] {
        [] => None,
        [Packet::Udp(_, to, body)] => Some(read(*to, body)),
        other => panic!("{other:?}"),
    }
}

fn read(to: SocketAddr, body: &[u8]) -> Answer {
    assert_eq!(body[4..8], *b"xid!");
    let mut options = Vec::new();
    let mut rest = &body[240..];
    while rest[0] != 255 {
        let length = usize::from(rest[1]);
        options.push((rest[0], rest[2..2 + length].to_vec()));
        rest = &rest[2 + length..];
    }
    let address = Ipv4Addr::new(body[16], body[17], body[18], body[19]);
    Answer { kind: options[0].1[0], address, options, to }
}

fn bind(network: &mut Network, mac: Mac, name: &[u8]) -> Answer {
    let offer = exchange(network, mac, &[(53, &[DISCOVER])]).unwrap();
    assert_eq!(offer.kind, OFFER);
    let octets = offer.address.octets();
    let request: &[(u8, &[u8])] = &[(53, &[REQUEST]), (50, &octets), (54, &[10, 0, 2, 2]), (12, name)];
    exchange(network, mac, request).unwrap()
}

const OTHER: Mac = Mac([0x52, 0x54, 0, 0, 0, 2]);

#[test]
fn rfc2131_3_1_a_machine_gets_an_address_and_what_it_needs() {
    let mut network = Network::new(config());
    let ack = bind(&mut network, MAC, b"web");
    assert_eq!((ack.kind, ack.address), (ACK, Ipv4Addr::new(10, 0, 2, 15)));
    assert_eq!(ack.option(1), Some(&[255, 255, 255, 0][..]));
    assert_eq!((ack.option(3), ack.option(6)), (Some(&[10, 0, 2, 2][..]), Some(&[10, 0, 2, 3][..])));
    assert_eq!((ack.option(26), ack.option(51)), (Some(&[5, 220][..]), Some(&86_400u32.to_be_bytes()[..])));
    assert_eq!(ack.to, "10.0.2.15:68".parse().unwrap());
    assert_eq!(network.stack.dhcp4.find_name(0, "web"), Some(ack.address));
}

#[test]
fn rfc2131_2_2_each_machine_keeps_its_own_address() {
    let mut network = Network::new(config());
    bind(&mut network, MAC, b"a");
    assert_eq!(bind(&mut network, OTHER, b"a").address, Ipv4Addr::new(10, 0, 2, 16));
    network.wait(3600 * SECOND);
    assert_eq!(bind(&mut network, MAC, b"a").address, Ipv4Addr::new(10, 0, 2, 15));
    // The second machine of a name is not found by it.
    assert_eq!(network.stack.dhcp4.find_name(network.now, "a"), Some(Ipv4Addr::new(10, 0, 2, 15)));
}

#[test]
fn rfc2131_4_3_2_a_wrong_address_is_refused() {
    let mut network = Network::new(config());
    let request: &[(u8, &[u8])] = &[(53, &[REQUEST]), (50, &[192, 168, 0, 9])];
    let nak = exchange(&mut network, MAC, request).unwrap();
    assert_eq!((nak.kind, nak.to.ip()), (NAK, IpAddr::V4(Ipv4Addr::BROADCAST)));
}

#[test]
fn rfc2131_4_3_2_an_address_from_before_is_given_again() {
    let mut network = Network::new(config());
    let request: &[(u8, &[u8])] = &[(53, &[REQUEST]), (50, &[10, 0, 2, 40])];
    assert_eq!(exchange(&mut network, MAC, request).unwrap().kind, ACK);
    let other = exchange(&mut network, OTHER, request).unwrap();
    assert_eq!(other.kind, NAK);
}

#[test]
fn rfc2131_4_3_3_a_declined_address_is_left_alone() {
    let mut network = Network::new(config());
    bind(&mut network, MAC, b"");
    exchange(&mut network, MAC, &[(53, &[DECLINE]), (50, &[10, 0, 2, 15]), (54, &[10, 0, 2, 2])]);
    assert_eq!(bind(&mut network, MAC, b"").address, Ipv4Addr::new(10, 0, 2, 16));
}

#[test]
fn rfc2131_4_1_another_server_s_request_is_not_ours() {
    let mut network = Network::new(config());
    let request: &[(u8, &[u8])] = &[(53, &[REQUEST]), (50, &[10, 0, 2, 15]), (54, &[10, 0, 2, 99])];
    assert!(exchange(&mut network, MAC, request).is_none());
}

#[test]
fn reserved_addresses_are_for_their_machines() {
    let address = Ipv4Addr::new(10, 0, 2, 15);
    let reservations = vec![Reservation { mac: OTHER, address, name: "db".into() }];
    let mut network = Network::new(Config { reservations, ..config() });
    assert_eq!(bind(&mut network, MAC, b"").address, Ipv4Addr::new(10, 0, 2, 16));
    let ack = bind(&mut network, OTHER, b"other");
    assert_eq!((ack.address, ack.option(12)), (address, Some(&b"db"[..])));
}

#[test]
fn rfc2132_9_4_firmware_learns_where_to_boot_from() {
    let boot = Some(BootConfig { root: "/".into(), file: "pxelinux.0".into() });
    let mut network = Network::new(Config { boot, ..config() });
    let ack = bind(&mut network, MAC, b"");
    assert_eq!((ack.option(66), ack.option(67)), (Some(&b"10.0.2.2"[..]), Some(&b"pxelinux.0"[..])));
}

#[test]
fn the_pool_ends() {
    let mut network = Network::new(Config { prefix_length: 27, ..config() });
    for index in 0..16 {
        bind(&mut network, Mac([2, 0, 0, 0, 1, index]), b"");
    }
    assert!(exchange(&mut network, MAC, &[(53, &[DISCOVER])]).is_none());
    assert_eq!(network.drops("full"), 1);
}

#[test]
fn rfc4861_6_2_6_a_solicitation_is_answered_with_prefix_and_resolver() {
    let mut network = Network::new(config());
    let path = Path {
        link: (MAC, Mac([0x33, 0x33, 0, 0, 0, 2])),
        source: "fe80::9".parse().unwrap(),
        destination: "ff02::2".parse().unwrap(),
    };
    let packets = network.frame(icmp::frame(&path, (133, 0), [0; 4], &[], 255));
    let [Packet::Icmp(from, 134, 0, body)] = &packets[..] else { panic!("{packets:?}") };
    assert_eq!(*from, "fe80::1".parse::<IpAddr>().unwrap());
    let has = |needle: &[u8]| body.windows(needle.len()).any(|window| window == needle);
    let prefix: std::net::Ipv6Addr = "fd00::".parse().unwrap();
    let dns: std::net::Ipv6Addr = "fd00::3".parse().unwrap();
    assert!(has(&[3, 4, 64, 0xC0]) && has(&prefix.octets()) && has(&[25, 3]) && has(&dns.octets()));
    // Nobody wakes up for a network on which nobody asked; after that, once in 50 minutes.
    assert_eq!(network.wait(3000 * SECOND).len(), 1);
}

#[test]
fn rfc4861_7_1_1_a_solicitation_from_afar_is_dropped() {
    let mut network = Network::new(config());
    let path = Path {
        link: (MAC, ROUTER_MAC),
        source: "fe80::9".parse().unwrap(),
        destination: "ff02::2".parse().unwrap(),
    };
    assert_eq!(network.frame(icmp::frame(&path, (133, 0), [0; 4], &[], 64)), []);
}

#[test]
fn rfc4861_7_2_4_the_router_says_where_it_is() {
    let mut network = Network::new(config());
    let path = Path {
        link: (MAC, Mac([0x33, 0x33, 0xFF, 0, 0, 2])),
        source: "fe80::9".parse().unwrap(),
        destination: "ff02::1:ff00:2".parse().unwrap(),
    };
    let ask = |target: &str| {
        let target: std::net::Ipv6Addr = target.parse().unwrap();
        icmp::frame(&path, (135, 0), [0; 4], &target.octets(), 255)
    };
    let packets = network.frame(ask("fd00::2"));
    let [Packet::Icmp(_, 136, 0, body)] = &packets[..] else { panic!("{packets:?}") };
    assert_eq!(body[18..24], ROUTER_MAC.0);
    assert_eq!(network.frame(ask("fd00::99")), []);
}

//! Garbage from a machine: nothing panics, and tables stay within bounds.
//!
//! `SUBLET_FUZZ_SECONDS` makes it last longer (`make fuzz`).

use crate::network::{config, deny_everything, Network, Open, MAC};
use std::time::{Duration, Instant};
use sublet_net::config::{Config, ROUTER_MAC};
use sublet_net::host::Ready;
use sublet_net::wire::{ethernet, vnet};

/// xorshift64: the same every time for the same seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

/// Frames of every kind, as a machine would send them.
fn seeds() -> Vec<Vec<u8>> {
    let mut network = Network::new(config());
    let mut frames = Vec::new();
    for (kind, payload) in [
        (ethernet::IPV4, &[0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 2, 15, 10, 0, 2, 3][..]),
        (ethernet::IPV6, &[0x60, 0, 0, 0, 0, 8, 58, 255, 0xFE, 0x80][..]),
        (ethernet::ARP, &[0, 1, 8, 0, 6, 4, 0, 1][..]),
    ] {
        let mut frame = vec![0; vnet::SIZE + ethernet::SIZE];
        ethernet::write(&mut frame, ROUTER_MAC, MAC, kind);
        frame.extend(payload);
        frame.resize(120, 0);
        frames.push(frame);
    }
    let path = network.path("192.0.2.1".parse().unwrap());
    let header = sublet_net::wire::tcp::Header {
        ports: (40_000, 80),
        sequence: 5001,
        acknowledgment: 1001,
        flags: 0x18,
        window: 100,
        options: None,
    };
    frames.push(header.frame(&path, b"payload", 1460));
    frames.push(sublet_net::wire::udp::frame(&path, (1, 2), b"payload").unwrap());
    network.now = 1;
    frames
}

/// Change some bytes, and let the checksum be taken on trust, so that the change is looked at.
fn mutate(random: &mut Random, seed: &[u8]) -> Vec<u8> {
    let mut frame = seed.to_vec();
    for _ in 0..1 + random.below(6) {
        let at = random.below(frame.len());
        frame[at] = random.next() as u8;
    }
    frame.truncate(1 + random.below(frame.len() * 2).min(frame.len()));
    frame[0] |= vnet::F_NEEDS_CSUM;
    fix_ipv4_checksum(&mut frame);
    frame
}

fn fix_ipv4_checksum(frame: &mut [u8]) {
    let Some(header) = frame.get_mut(26..) else { return };
    let length = usize::from(header.first().copied().unwrap_or(0) & 15) * 4;
    if length < 20 || header.len() < length {
        return;
    }
    header[10..12].fill(0);
    let sum = sublet_net::wire::checksum::sum(&header[..length]);
    let value = sublet_net::wire::checksum::finish(sum);
    header[10..12].copy_from_slice(&value.to_be_bytes());
}

fn rounds() -> impl Iterator<Item = u64> {
    let seconds = std::env::var("SUBLET_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
    let end = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    (0..).take_while(move |round| match end {
        None => *round < 20_000,
        Some(end) => Instant::now() < end,
    })
}

#[test]
fn no_frame_of_a_machine_does_harm() {
    let mut open = Open::new(Network::new(config()));
    let seeds = seeds();
    for round in rounds() {
        let mut random = Random(round.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        let seed = &seeds[random.below(seeds.len())];
        let network = &mut open.network;
        network.now += random.next() % 10_000_000;
        let frame = mutate(&mut random, seed);
        network.stack.input(network.now, &frame);
        answer_from_the_host(network, &mut random);
        network.stack.expire(network.now);
        network.stack.settle();
        while network.stack.take().is_some() {}
        assert!(network.stack.udp.iter().count() <= 1024);
        assert!(network.stack.tcp.iter().count() <= 8192);
    }
}

/// Hostile peers: any socket may become ready, with anything in it.
fn answer_from_the_host(network: &mut Network, random: &mut Random) {
    let count = network.stack.context.host.sockets.len();
    let index = random.below(count);
    let Some(socket) = network.stack.context.host.sockets.get_mut(index) else { return };
    let noise: Vec<u8> = (0..random.below(300)).map(|_| random.next() as u8).collect();
    match random.below(4) {
        0 => socket.incoming.push_back(Ok(noise)),
        1 => socket.datagrams_in.push_back((([192, 0, 2, 1], 2).into(), noise)),
        2 => socket.room = random.below(1000),
        _ => {}
    }
    let Some(token) = socket.token else { return };
    let error = random.below(8) == 0;
    let ended = error || random.below(8) == 0;
    let ready = Ready { readable: true, writable: random.below(2) == 0, error, ended };
    network.stack.ready(network.now, token, ready);
}

#[test]
fn a_flood_of_ports_is_bounded_and_what_was_open_stays() {
    let mut network = Network::new(config());
    for port in 1..3000 {
        network.udp(port, "192.0.2.1:9".parse().unwrap(), b"x");
    }
    assert_eq!(network.stack.udp.iter().count(), 1024);
    assert_eq!(network.drops("full"), 2999 - 1024);
    assert_eq!(network.udp(1, "192.0.2.1:9".parse().unwrap(), b"x"), []);
}

#[test]
fn a_denied_flood_opens_nothing() {
    let mut network = Network::new(Config { policy: deny_everything(), ..config() });
    for port in 1..2000 {
        network.udp(port, "192.0.2.1:9".parse().unwrap(), b"x");
    }
    assert!(network.stack.context.host.sockets.is_empty());
    assert_eq!(network.stack.context.gate.denied, 1999);
}

//! How machines find the router on the link: ARP, neighbour discovery, router advertisements.
//!
//! Reference: RFC 826; RFC 4861 "Neighbor Discovery for IPv6"; RFC 8106 for the resolver's address.

use crate::config::{ROUTER_LINK_LOCAL, ROUTER_MAC};
use crate::context::Context;
use crate::host::Host;
use crate::timers::{Deadline, Timer};
use crate::wire::ethernet::{Arp, Mac};
use crate::wire::icmp::{self, Icmp};
use crate::wire::ip::{Ip, Path};
use crate::wire::Drop;
use std::net::{IpAddr, Ipv6Addr};

const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const OPTION_SOURCE_LINK: u8 = 1;
const OPTION_TARGET_LINK: u8 = 2;
const OPTION_PREFIX: u8 = 3;
const OPTION_MTU: u8 = 5;
const OPTION_RDNSS: u8 = 25;
/// Neighbour discovery is for the link alone: every message has come no hop (RFC 4861 §11.2).
const HOP_LIMIT: u8 = 255;
const ROUTER_LIFETIME_S: u16 = 9000;
/// A third of the lifetime, so that a lost advertisement does no harm.
const ADVERTISE_NS: u64 = 3000 * 1_000_000_000;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xFF02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: Mac = Mac([0x33, 0x33, 0, 0, 0, 1]);
const FLAG_OTHER_CONFIG: u8 = 0x40;

/// Answer an ARP question about one of the router's addresses, and learn who asks.
///
/// # Errors
/// Why it is not taken.
pub fn arp<H: Host>(context: &mut Context<H>, from: Mac, payload: &[u8]) -> Result<(), Drop> {
    let packet = Arp::parse(payload)?;
    let (mac, address) = packet.sender;
    let valid = mac == from && (address.is_unspecified() || context.config.contains(address.into()));
    if !valid || context.config.is_router(address.into()) {
        return Err(Drop::Spoofed);
    }
    if !address.is_unspecified() {
        context.learn_neighbour(address.into(), mac);
    }
    if packet.request && context.config.is_router(packet.target.1.into()) {
        let answer = Arp { request: false, sender: (ROUTER_MAC, packet.target.1), target: packet.sender };
        context.outbox.push(answer.frame());
    }
    Ok(())
}

/// Router advertisements, when asked for and every 50 minutes after that.
#[derive(Debug, Default)]
pub struct Advertiser {
    deadline: Deadline,
}

impl Advertiser {
    /// Take a neighbour discovery message; false when it is none.
    ///
    /// # Errors
    /// Why it is not taken.
    pub fn input<H: Host>(
        &mut self,
        context: &mut Context<H>,
        from: Mac,
        packet: &Ip<'_>,
        message: &Icmp<'_>,
    ) -> Result<bool, Drop> {
        let discovery = (ROUTER_SOLICITATION..=NEIGHBOUR_ADVERTISEMENT).contains(&message.kind);
        if !discovery || context.config.v6.is_none() {
            return Ok(false);
        }
        if packet.hop_limit != HOP_LIMIT || message.code != 0 {
            return Err(Drop::Spoofed);
        }
        match message.kind {
            ROUTER_SOLICITATION => self.advertise(context),
            NEIGHBOUR_SOLICITATION => answer(context, from, packet, message)?,
            _ => {}
        }
        Ok(true)
    }

    /// The next advertisement is due; `entry` is when it was entered for.
    pub fn timeout<H: Host>(&mut self, context: &mut Context<H>, entry: u64) {
        let now = context.now;
        if context.timers.is_due(&mut self.deadline, entry, now, Timer::Advertise) {
            self.advertise(context);
        }
    }

    fn advertise<H: Host>(&mut self, context: &mut Context<H>) {
        let Some(network) = context.config.v6 else { return };
        let mut data = vec![0; 8];
        data.extend([OPTION_SOURCE_LINK, 1]);
        data.extend(ROUTER_MAC.0);
        data.extend([OPTION_MTU, 1, 0, 0]);
        data.extend(u32::from(context.config.mtu).to_be_bytes());
        // On-link and for address configuration, for ever.
        data.extend([OPTION_PREFIX, 4, 64, 0xC0]);
        data.extend([0xFF; 8]);
        data.extend([0; 4]);
        data.extend(network.prefix.octets());
        data.extend([OPTION_RDNSS, 3, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF]);
        data.extend(network.dns.octets());
        let path = Path {
            link: (ROUTER_MAC, ALL_NODES_MAC),
            source: IpAddr::V6(ROUTER_LINK_LOCAL),
            destination: IpAddr::V6(ALL_NODES),
        };
        let [high, low] = ROUTER_LIFETIME_S.to_be_bytes();
        let rest = [64, FLAG_OTHER_CONFIG, high, low];
        context.outbox.push(icmp::frame(&path, (ROUTER_ADVERTISEMENT, 0), rest, &data, HOP_LIMIT));
        let next = context.now + ADVERTISE_NS;
        context.timers.set(&mut self.deadline, next, Timer::Advertise);
    }
}

/// Answer a question about one of the router's addresses (RFC 4861 §7.2.4).
fn answer<H: Host>(
    context: &mut Context<H>,
    from: Mac,
    packet: &Ip<'_>,
    message: &Icmp<'_>,
) -> Result<(), Drop> {
    let octets: [u8; 16] =
        message.message.get(8..24).and_then(|bytes| bytes.try_into().ok()).ok_or(Drop::Truncated)?;
    let target = Ipv6Addr::from(octets);
    if !context.config.is_router(target.into()) {
        return Ok(());
    }
    // An unspecified source checks whether the address is free: everybody is told that it is not.
    let probing = packet.source.is_unspecified();
    let (mac, to) = if probing { (ALL_NODES_MAC, ALL_NODES.into()) } else { (from, packet.source) };
    let path = Path { link: (ROUTER_MAC, mac), source: target.into(), destination: to };
    let router_and_override = 0xA0;
    let solicited = if probing { 0 } else { 0x40 };
    let mut data = octets.to_vec();
    data.extend([OPTION_TARGET_LINK, 1]);
    data.extend(ROUTER_MAC.0);
    let rest = [router_and_override | solicited, 0, 0, 0];
    context.outbox.push(icmp::frame(&path, (NEIGHBOUR_ADVERTISEMENT, 0), rest, &data, HOP_LIMIT));
    Ok(())
}

//! What all parts of the stack share: the host, the way to the guest, the policy, the time.

use crate::config::{Config, ROUTER_LINK_LOCAL, ROUTER_MAC};
use crate::host::Host;
use crate::outbox::Outbox;
use crate::policy::{Denial, Gate, Protocol};
use crate::timers::Timers;
use crate::wire::ethernet::{Arp, Mac};
use crate::wire::icmp::{self, Unreachable};
use crate::wire::ip::{Ip, Path};
use crate::wire::Drop;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const NEIGHBOURS_MAXIMUM: usize = 256;

/// Why a flow is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The policy, or an address that no guest may reach.
    Prohibited,
    /// An address of the router where nothing is offered.
    NoService,
}

/// Shared by all parts.
pub struct Context<H: Host> {
    /// Sockets.
    pub host: H,
    /// What the user decided.
    pub config: Config,
    /// Frames for the guest.
    pub outbox: Outbox,
    /// The policy.
    pub gate: Gate,
    /// Deadlines.
    pub timers: Timers,
    /// Nanoseconds of a monotonic clock.
    pub now: u64,
    /// Whether the guest takes TCP segments longer than the MTU, by version.
    pub segmentation: (bool, bool),
    /// Scratch space for what a socket gives.
    pub scratch: Vec<u8>,
    drops: [u64; Drop::ALL.len()],
    neighbours: HashMap<IpAddr, Mac>,
}

impl<H: Host> Context<H> {
    /// Nothing known yet.
    pub fn new(host: H, config: Config) -> Self {
        let gate = Gate::new(config.policy.clone());
        Self {
            host,
            config,
            outbox: Outbox::default(),
            gate,
            timers: Timers::default(),
            now: 0,
            segmentation: (false, false),
            scratch: Vec::new(),
            drops: [0; Drop::ALL.len()],
            neighbours: HashMap::new(),
        }
    }

    /// Count a frame that was not carried.
    pub fn count(&mut self, reason: Drop) {
        self.drops[reason as usize] += 1;
    }

    /// Frames not carried, by reason.
    pub fn drops(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Drop::ALL.iter().map(|reason| (reason.name(), self.drops[*reason as usize]))
    }

    /// Note a machine's hardware address. The table is bounded: a guest that invents addresses loses old ones.
    pub fn learn_neighbour(&mut self, address: IpAddr, mac: Mac) {
        if self.neighbours.get(&address) == Some(&mac) {
            return;
        }
        if self.neighbours.len() >= NEIGHBOURS_MAXIMUM && !self.neighbours.contains_key(&address) {
            if let Some(other) = self.neighbours.keys().next().copied() {
                self.neighbours.remove(&other);
            }
        }
        self.neighbours.insert(address, mac);
    }

    /// The way to a machine of the network for a packet from `source`; `None` until its address is known.
    pub fn path(&self, source: IpAddr, destination: IpAddr) -> Option<Path> {
        let mac = *self.neighbours.get(&destination)?;
        Some(Path { link: (ROUTER_MAC, mac), source, destination })
    }

    /// Ask who has an IPv4 address of the network.
    pub fn ask_for(&mut self, address: IpAddr) {
        if let IpAddr::V4(v4) = address {
            let sender = (ROUTER_MAC, self.config.gateway);
            let target = (Mac([0; 6]), v4);
            self.outbox.push(Arp { request: true, sender, target }.frame());
        }
    }

    /// Tell a guest why its packet goes nowhere, as if a router on the way had.
    pub fn report(&mut self, packet: &Ip<'_>, why: Unreachable) {
        if icmp::may_report(packet.source, packet.destination) {
            self.report_flow(packet.source, packet.packet, why);
        }
    }

    /// As [`Context::report`], with the packet's bytes.
    pub fn report_flow(&mut self, guest: IpAddr, packet: &[u8], why: Unreachable) {
        let from = self.config.gateway_like(guest);
        self.report_from(from, guest, packet, why);
    }

    /// As [`Context::report_flow`], in the name of the router `from`.
    pub fn report_from(&mut self, from: IpAddr, guest: IpAddr, packet: &[u8], why: Unreachable) {
        if let Some(path) = self.path(from, guest) {
            self.outbox.push(why.frame(&path, packet));
        }
    }

    /// Where a flow really goes: the destination itself, or the host where the user offers it.
    ///
    /// # Errors
    /// A [`Refusal`], already counted.
    pub fn reach(&mut self, protocol: Protocol, to: SocketAddr) -> Result<SocketAddr, Refusal> {
        let verdict = self.judge(protocol, to);
        if verdict == Err(Refusal::Prohibited) {
            self.count(Drop::Denied);
            let denial = Denial { protocol, target: to.ip().to_string(), port: to.port() };
            self.gate.deny(self.now, denial);
        }
        verdict
    }

    fn judge(&mut self, protocol: Protocol, to: SocketAddr) -> Result<SocketAddr, Refusal> {
        let to = SocketAddr::new(unmapped(to.ip()), to.port());
        if self.config.contains(to.ip()) || to.ip() == IpAddr::V6(ROUTER_LINK_LOCAL) {
            if !self.config.host_access || !self.config.is_gateway(to.ip()) {
                return Err(Refusal::NoService);
            }
            self.check_policy(protocol, to)?;
            return Ok(SocketAddr::new(loopback_like(to.ip()), to.port()));
        }
        self.check_policy(protocol, to)?;
        let own = !is_routable(to.ip()) || (!self.config.host_access && self.host.is_local(to.ip()));
        if own {
            return Err(Refusal::Prohibited);
        }
        Ok(to)
    }

    fn check_policy(&self, protocol: Protocol, to: SocketAddr) -> Result<(), Refusal> {
        if self.gate.allows(self.now, protocol, to.ip(), to.port()) {
            Ok(())
        } else {
            Err(Refusal::Prohibited)
        }
    }
}

/// The IPv4 address in an IPv6 address that only stands for one.
fn unmapped(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(address, IpAddr::V4),
        IpAddr::V4(_) => address,
    }
}

/// The host's own address of the same version.
pub fn loopback_like(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
    }
}

/// Whether a router may send a unicast packet on to an address at all.
///
/// Not to "this host" (0/8, ::/96), loopback, link-local or multicast addresses (RFC 1122 §3.2.1.3,
/// RFC 3927 §7, RFC 4291 §2.5). The metadata services of clouds are link-local, so a guest is kept from the
/// host's credentials too.
pub fn is_routable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let first = v4.octets()[0];
            first != 0 && first != 127 && first < 224 && !v4.is_link_local()
        }
        IpAddr::V6(v6) => {
            let compatible = v6.segments()[..6] == [0; 6];
            !compatible && !v6.is_multicast() && !v6.is_unicast_link_local()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc1122_3_2_1_3_addresses_that_are_never_sent_on() {
        let never = [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::127.0.0.1",
            "ff02::1",
            "fe80::1",
        ];
        for text in never {
            assert!(!is_routable(unmapped(text.parse().unwrap())), "{text}");
        }
        for text in ["192.0.2.1", "10.0.0.1", "2001:db8::1", "fd00::1"] {
            assert!(is_routable(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn a_mapped_address_is_the_one_inside() {
        let mapped: IpAddr = "::ffff:127.0.0.1".parse().unwrap();
        assert!(!is_routable(unmapped(mapped)));
    }
}

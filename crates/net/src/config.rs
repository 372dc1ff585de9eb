//! What the user decides about one network.

use crate::policy::Policy;
use crate::wire::ethernet::Mac;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

/// The router's hardware address: locally administered, unicast.
pub const ROUTER_MAC: Mac = Mac([0x52, 0x55, 0x0A, 0x00, 0x02, 0x02]);
/// The router's link-local address.
pub const ROUTER_LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xFE80, 0, 0, 0, 0, 0, 0, 1);

/// The IPv6 side of a network; its prefix is of 64 bits.
#[derive(Clone, Copy, Debug)]
pub struct V6Config {
    /// The first 64 bits of every address.
    pub prefix: Ipv6Addr,
    /// The router.
    pub gateway: Ipv6Addr,
    /// The resolver.
    pub dns: Ipv6Addr,
}

impl V6Config {
    /// Whether an address has the network's prefix.
    pub fn contains(&self, address: Ipv6Addr) -> bool {
        address.octets()[..8] == self.prefix.octets()[..8]
    }
}

/// A machine that always gets the same address.
#[derive(Clone, Debug)]
pub struct Reservation {
    /// Who.
    pub mac: Mac,
    /// Which address.
    pub address: Ipv4Addr,
    /// The name that others find it by, or empty.
    pub name: String,
}

/// What the TFTP server offers to firmware that boots from the network.
#[derive(Clone, Debug)]
pub struct BootConfig {
    /// Folder with the files.
    pub root: PathBuf,
    /// Name of the file that DHCP tells of, or empty.
    pub file: String,
}

/// Which protocol a port is forwarded for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Connections.
    Tcp,
    /// Datagrams.
    Udp,
}

/// A port of the host that leads into the network.
#[derive(Clone, Copy, Debug)]
pub struct Forward {
    /// For which protocol.
    pub transport: Transport,
    /// Where the host listens.
    pub listen: SocketAddr,
    /// Which machine; None: the one with the first lease.
    pub address: Option<IpAddr>,
    /// Which of its ports.
    pub port: u16,
}

/// One network.
#[derive(Clone, Debug)]
pub struct Config {
    /// The router.
    pub gateway: Ipv4Addr,
    /// Bits of the IPv4 prefix, 8 to 30.
    pub prefix_length: u8,
    /// The resolver.
    pub dns: Ipv4Addr,
    /// First address for leases; the others follow it to the end of the network.
    pub first_lease: Ipv4Addr,
    /// IPv6, or none.
    pub v6: Option<V6Config>,
    /// Bytes of an IP packet, 1280 to 65520.
    pub mtu: u16,
    /// Whether the gateway's address, and the host's own, lead to services of the host.
    pub host_access: bool,
    /// Resolvers to ask; empty: those of the host's resolv.conf.
    pub resolvers: Vec<SocketAddr>,
    /// Domain of the machines' names.
    pub domain: String,
    /// Fixed leases.
    pub reservations: Vec<Reservation>,
    /// What the guest may reach.
    pub policy: Policy,
    /// Network boot, or none.
    pub boot: Option<BootConfig>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            gateway: Ipv4Addr::new(10, 0, 2, 2),
            prefix_length: 24,
            dns: Ipv4Addr::new(10, 0, 2, 3),
            first_lease: Ipv4Addr::new(10, 0, 2, 15),
            v6: None,
            mtu: 1500,
            host_access: false,
            resolvers: Vec::new(),
            domain: "internal".into(),
            reservations: Vec::new(),
            policy: Policy::default(),
            boot: None,
        }
    }
}

impl Config {
    /// The mask of the IPv4 prefix.
    pub fn netmask(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::MAX << (32 - u32::from(self.prefix_length)))
    }

    /// Whether an address is of the network (its own and its broadcast address included).
    pub fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => (u32::from(v4) ^ u32::from(self.gateway)) & u32::from(self.netmask()) == 0,
            IpAddr::V6(v6) => self.v6.is_some_and(|network| network.contains(v6)),
        }
    }

    /// The last address: all machines of the network.
    pub fn broadcast(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.gateway) | !u32::from(self.netmask()))
    }

    /// Whether an address is the router's own, as gateway or resolver.
    pub fn is_router(&self, address: IpAddr) -> bool {
        self.is_gateway(address) || self.is_dns(address)
    }

    /// Whether an address is the gateway's.
    pub fn is_gateway(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => v4 == self.gateway,
            IpAddr::V6(v6) => v6 == ROUTER_LINK_LOCAL || self.v6.is_some_and(|n| n.gateway == v6),
        }
    }

    /// Whether an address is the resolver's.
    pub fn is_dns(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => v4 == self.dns,
            IpAddr::V6(v6) => self.v6.is_some_and(|n| n.dns == v6),
        }
    }

    /// The gateway's address of the same version as `like`.
    pub fn gateway_like(&self, like: IpAddr) -> IpAddr {
        match (like, self.v6) {
            (IpAddr::V6(v6), Some(network)) if !v6.is_unicast_link_local() => IpAddr::V6(network.gateway),
            (IpAddr::V6(_), _) => IpAddr::V6(ROUTER_LINK_LOCAL),
            (IpAddr::V4(_), _) => IpAddr::V4(self.gateway),
        }
    }
}

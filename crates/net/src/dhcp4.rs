//! The DHCP server: addresses by hardware address, and everything else that a machine needs.
//!
//! Reference: RFC 2131 "Dynamic Host Configuration Protocol"; RFC 2132 for options.

use crate::config::{Config, ROUTER_MAC};
use crate::context::Context;
use crate::host::Host;
use crate::wire::ethernet::Mac;
use crate::wire::ip::Path;
use crate::wire::{read_u32, udp, Drop};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};

/// Ports of server and client.
pub const PORTS: (u16, u16) = (67, 68);

const SECOND: u64 = 1_000_000_000;
const LEASE_S: u32 = 86_400;
const LEASES_MAXIMUM: usize = 1024;
/// An address that a machine found in use is left alone for so long.
const DECLINED_S: u64 = 600;
const FIXED_SIZE: usize = 236;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
const MINIMUM_SIZE: usize = 300;
const NAME_MAXIMUM: usize = 63;
const BROADCAST_FLAG: u8 = 0x80;

const OPTION_PAD: u8 = 0;
const OPTION_NETMASK: u8 = 1;
const OPTION_ROUTER: u8 = 3;
const OPTION_DNS: u8 = 6;
const OPTION_HOST_NAME: u8 = 12;
const OPTION_DOMAIN: u8 = 15;
const OPTION_MTU: u8 = 26;
const OPTION_BROADCAST: u8 = 28;
const OPTION_REQUESTED: u8 = 50;
const OPTION_LEASE: u8 = 51;
const OPTION_KIND: u8 = 53;
const OPTION_SERVER: u8 = 54;
const OPTION_MESSAGE: u8 = 56;
const OPTION_TFTP_SERVER: u8 = 66;
const OPTION_BOOT_FILE: u8 = 67;
const OPTION_END: u8 = 255;

const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const DECLINE: u8 = 4;
const ACK: u8 = 5;
const NAK: u8 = 6;
const RELEASE: u8 = 7;
const INFORM: u8 = 8;

/// An address that a machine has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The address.
    pub address: Ipv4Addr,
    /// What the machine calls itself, checked; or empty.
    pub name: String,
    /// When it ends, in nanoseconds of the stack's clock.
    pub expires: u64,
    /// Whether the machine took it, or was only offered it.
    pub bound: bool,
}

/// A client's message, as far as the server reads it.
#[derive(Debug)]
struct Message<'a> {
    kind: u8,
    transaction: [u8; 4],
    flags: [u8; 2],
    client: Ipv4Addr,
    relay: Ipv4Addr,
    mac: Mac,
    hardware: &'a [u8],
    requested: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
    name: String,
}

fn parse(bytes: &[u8]) -> Result<Message<'_>, Drop> {
    let options = bytes.get(FIXED_SIZE + 4..).ok_or(Drop::Truncated)?;
    let ethernet_request = bytes[..3] == [1, 1, 6];
    if !ethernet_request || bytes[FIXED_SIZE..FIXED_SIZE + 4] != COOKIE {
        return Err(Drop::Malformed);
    }
    let mut mac = [0; 6];
    mac.copy_from_slice(&bytes[28..34]);
    let mut message = Message {
        kind: 0,
        transaction: [bytes[4], bytes[5], bytes[6], bytes[7]],
        flags: [bytes[10], bytes[11]],
        client: Ipv4Addr::from(read_u32(bytes, 12)?),
        relay: Ipv4Addr::from(read_u32(bytes, 24)?),
        mac: Mac(mac),
        hardware: &bytes[28..44],
        requested: None,
        server: None,
        name: String::new(),
    };
    read_options(options, &mut message)?;
    Ok(message)
}

fn read_options(mut options: &[u8], message: &mut Message<'_>) -> Result<(), Drop> {
    while let Some((&code, rest)) = options.split_first() {
        match code {
            OPTION_END => break,
            OPTION_PAD => options = rest,
            _ => {
                let (&length, rest) = rest.split_first().ok_or(Drop::Truncated)?;
                let value = rest.get(..usize::from(length)).ok_or(Drop::Truncated)?;
                read_option(code, value, message);
                options = &rest[usize::from(length)..];
            }
        }
    }
    Ok(())
}

fn read_option(code: u8, value: &[u8], message: &mut Message<'_>) {
    let address = read_u32(value, 0).ok().map(Ipv4Addr::from);
    match code {
        OPTION_KIND => message.kind = value.first().copied().unwrap_or(0),
        OPTION_REQUESTED => message.requested = address,
        OPTION_SERVER => message.server = address,
        OPTION_HOST_NAME => message.name = checked_name(value),
        _ => {}
    }
}

/// A name that is one DNS label, in lower case; empty otherwise (RFC 1123 §2.1).
fn checked_name(value: &[u8]) -> String {
    let label = value.split(|byte| *byte == b'.').next().unwrap_or(&[]);
    let valid = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'-';
    let whole = !label.is_empty() && label.len() <= NAME_MAXIMUM && label.iter().all(valid);
    if whole && label[0] != b'-' {
        String::from_utf8_lossy(label).to_ascii_lowercase()
    } else {
        String::new()
    }
}

/// The server: all leases of one network.
#[derive(Debug, Default)]
pub struct Dhcp4 {
    leases: HashMap<Mac, Lease>,
    declined: HashMap<Ipv4Addr, u64>,
}

impl Dhcp4 {
    /// All leases that have not ended.
    pub fn leases(&self, now: u64) -> impl Iterator<Item = (Mac, &Lease)> {
        let live = move |entry: &(&Mac, &Lease)| entry.1.bound && entry.1.expires > now;
        self.leases.iter().filter(live).map(|(mac, lease)| (*mac, lease))
    }

    /// The address of a machine by name, and the name by address.
    pub fn find_name(&self, now: u64, name: &str) -> Option<Ipv4Addr> {
        self.leases(now).find(|(_, lease)| !name.is_empty() && lease.name == name).map(|(_, l)| l.address)
    }

    /// The name of the machine with an address.
    pub fn name_of(&self, now: u64, address: Ipv4Addr) -> Option<&str> {
        let lease = self.leases(now).find(|(_, lease)| lease.address == address)?.1;
        (!lease.name.is_empty()).then_some(lease.name.as_str())
    }

    /// Answer a client's message.
    ///
    /// # Errors
    /// Why it is not answered.
    pub fn input<H: Host>(
        &mut self,
        context: &mut Context<H>,
        from: Mac,
        source: IpAddr,
        bytes: &[u8],
    ) -> Result<(), Drop> {
        let message = parse(bytes)?;
        if message.mac != from || !message.relay.is_unspecified() {
            return Err(Drop::Spoofed);
        }
        let ours = message.server.is_none_or(|server| server == context.config.gateway);
        match message.kind {
            DISCOVER => {
                let address = self.offer(&context.config, context.now, &message).ok_or(Drop::Full)?;
                self.reply(context, &message, OFFER, Some(address));
            }
            REQUEST if ours => self.request(context, &message),
            DECLINE if ours => self.decline(context, &message),
            RELEASE if ours && source == IpAddr::V4(message.client) => self.release(&message),
            INFORM => self.reply(context, &message, ACK, None),
            _ => {}
        }
        Ok(())
    }

    /// Choose an address: the reserved one, the one it had, the one it asks for, or the first free one.
    fn offer(&mut self, config: &Config, now: u64, message: &Message<'_>) -> Option<Ipv4Addr> {
        self.leases.retain(|_, lease| lease.expires > now);
        self.declined.retain(|_, until| *until > now);
        let address = reserved(config, message.mac)
            .or_else(|| self.leases.get(&message.mac).map(|lease| lease.address))
            .or_else(|| message.requested.filter(|wanted| self.is_free(config, *wanted)))
            .or_else(|| pool(config).find(|address| self.is_free(config, *address)))?;
        if self.leases.len() >= LEASES_MAXIMUM && !self.leases.contains_key(&message.mac) {
            return None;
        }
        let bound = self.leases.get(&message.mac).is_some_and(|lease| lease.bound);
        let expires = now + 60 * SECOND;
        let fresh = Lease { address, name: String::new(), expires, bound: false };
        if !bound {
            self.leases.insert(message.mac, fresh);
        }
        Some(address)
    }

    fn is_free(&self, config: &Config, address: Ipv4Addr) -> bool {
        let taken = self.leases.values().any(|lease| lease.address == address)
            || config.reservations.iter().any(|reservation| reservation.address == address);
        pool(config).contains(&address) && !taken && !self.declined.contains_key(&address)
    }

    /// RFC 2131 §4.3.2 "DHCPREQUEST message".
    fn request<H: Host>(&mut self, context: &mut Context<H>, message: &Message<'_>) {
        let wanted = message.requested.unwrap_or(message.client);
        let now = context.now;
        let known = self.leases.get(&message.mac).map(|lease| lease.address);
        let granted = match reserved(&context.config, message.mac).or(known) {
            Some(address) => address == wanted,
            // A machine that remembers an address from before: it may have it if nobody else does.
            None => self.is_free(&context.config, wanted) && self.leases.len() < LEASES_MAXIMUM,
        };
        if !granted {
            self.reply(context, message, NAK, None);
            return;
        }
        let reservation = context.config.reservations.iter().find(|r| r.mac == message.mac);
        let fixed_name = reservation.map(|r| r.name.clone()).filter(|name| !name.is_empty());
        let name = fixed_name.unwrap_or_else(|| self.unique_name(message));
        let expires = now + u64::from(LEASE_S) * SECOND;
        self.leases.insert(message.mac, Lease { address: wanted, name, expires, bound: true });
        context.learn_neighbour(wanted.into(), message.mac);
        self.reply(context, message, ACK, Some(wanted));
    }

    /// The name that a machine gives itself, unless another has it already.
    fn unique_name(&self, message: &Message<'_>) -> String {
        let other = |entry: (&Mac, &Lease)| *entry.0 != message.mac && entry.1.name == message.name;
        if self.leases.iter().any(other) {
            return String::new();
        }
        message.name.clone()
    }

    fn decline<H: Host>(&mut self, context: &mut Context<H>, message: &Message<'_>) {
        let Some(lease) = self.leases.remove(&message.mac) else { return };
        if self.declined.len() < LEASES_MAXIMUM {
            self.declined.insert(lease.address, context.now + DECLINED_S * SECOND);
        }
    }

    fn release(&mut self, message: &Message<'_>) {
        if self.leases.get(&message.mac).is_some_and(|lease| lease.address == message.client) {
            self.leases.remove(&message.mac);
        }
    }

    /// RFC 2131 §4.1: an answer goes to the address that the client has, or to everybody.
    fn reply<H: Host>(
        &self,
        context: &mut Context<H>,
        message: &Message<'_>,
        kind: u8,
        address: Option<Ipv4Addr>,
    ) {
        let config = &context.config;
        let body = compose(config, message, kind, address);
        let unicast = kind != NAK && !message.client.is_unspecified();
        let everybody = kind == NAK || message.flags[0] & BROADCAST_FLAG != 0;
        let (mac, to) = match address {
            _ if unicast => (message.mac, message.client),
            Some(address) if !everybody => (message.mac, address),
            _ => (Mac::BROADCAST, Ipv4Addr::BROADCAST),
        };
        let path = Path { link: (ROUTER_MAC, mac), source: config.gateway.into(), destination: to.into() };
        if let Some(frame) = udp::frame(&path, PORTS, &body) {
            context.outbox.push(frame);
        }
    }
}

fn reserved(config: &Config, mac: Mac) -> Option<Ipv4Addr> {
    config.reservations.iter().find(|reservation| reservation.mac == mac).map(|r| r.address)
}

/// Addresses for leases: from the first to the last before the broadcast address, bounded.
fn pool(config: &Config) -> Pool {
    let last = u32::from(config.broadcast()).saturating_sub(1);
    let first = u32::from(config.first_lease);
    let last = last.min(first.saturating_add(LEASES_MAXIMUM as u32));
    Pool { next: first, last, router: (config.gateway, config.dns) }
}

struct Pool {
    next: u32,
    last: u32,
    router: (Ipv4Addr, Ipv4Addr),
}

impl Pool {
    fn contains(&self, address: &Ipv4Addr) -> bool {
        let inside = (self.next..=self.last).contains(&u32::from(*address));
        inside && *address != self.router.0 && *address != self.router.1
    }
}

impl Iterator for Pool {
    type Item = Ipv4Addr;

    fn next(&mut self) -> Option<Ipv4Addr> {
        let address = (self.next <= self.last).then_some(Ipv4Addr::from(self.next))?;
        self.next += 1;
        Some(address)
    }
}

/// The body of an answer.
fn compose(config: &Config, message: &Message<'_>, kind: u8, address: Option<Ipv4Addr>) -> Vec<u8> {
    let mut body = vec![0; FIXED_SIZE];
    body[..3].copy_from_slice(&[2, 1, 6]);
    body[4..8].copy_from_slice(&message.transaction);
    body[10..12].copy_from_slice(&message.flags);
    body[28..44].copy_from_slice(message.hardware);
    if kind != NAK {
        body[12..16].copy_from_slice(&message.client.octets());
        body[16..20].copy_from_slice(&address.unwrap_or(Ipv4Addr::UNSPECIFIED).octets());
    }
    body.extend(COOKIE);
    add_option(&mut body, OPTION_KIND, &[kind]);
    add_option(&mut body, OPTION_SERVER, &config.gateway.octets());
    if kind == NAK {
        add_option(&mut body, OPTION_MESSAGE, b"not your address");
    } else {
        add_configuration(&mut body, config);
        add_boot(&mut body, config);
        if let Some(address) = address {
            add_lease(&mut body, config, message.mac, address);
        }
    }
    body.push(OPTION_END);
    body.resize(body.len().max(MINIMUM_SIZE), OPTION_PAD);
    body
}

fn add_configuration(body: &mut Vec<u8>, config: &Config) {
    add_option(body, OPTION_NETMASK, &config.netmask().octets());
    add_option(body, OPTION_ROUTER, &config.gateway.octets());
    add_option(body, OPTION_DNS, &config.dns.octets());
    add_option(body, OPTION_DOMAIN, config.domain.as_bytes());
    add_option(body, OPTION_BROADCAST, &config.broadcast().octets());
    add_option(body, OPTION_MTU, &config.mtu.to_be_bytes());
}

fn add_lease(body: &mut Vec<u8>, config: &Config, mac: Mac, _address: Ipv4Addr) {
    add_option(body, OPTION_LEASE, &LEASE_S.to_be_bytes());
    let name = config.reservations.iter().find(|r| r.mac == mac).map_or("", |r| r.name.as_str());
    if !name.is_empty() {
        add_option(body, OPTION_HOST_NAME, name.as_bytes());
    }
}

/// Where firmware finds its boot file: in the old fields and as options (RFC 2132 §9.4 and §9.5).
fn add_boot(body: &mut Vec<u8>, config: &Config) {
    let Some(boot) = &config.boot else { return };
    body[20..24].copy_from_slice(&config.gateway.octets());
    add_option(body, OPTION_TFTP_SERVER, config.gateway.to_string().as_bytes());
    if !boot.file.is_empty() {
        let file = boot.file.as_bytes();
        let length = file.len().min(127);
        body[108..108 + length].copy_from_slice(&file[..length]);
        add_option(body, OPTION_BOOT_FILE, file);
    }
}

fn add_option(body: &mut Vec<u8>, code: u8, value: &[u8]) {
    let value = &value[..value.len().min(255)];
    body.extend([code, value.len() as u8]);
    body.extend(value);
}

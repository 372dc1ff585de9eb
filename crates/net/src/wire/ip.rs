//! IPv4 and IPv6 headers, read into one shape and written from one.
//!
//! Reference: RFC 791 "Internet Protocol"; RFC 8200 "Internet Protocol, Version 6".

use super::ethernet::{self, Mac};
use super::{checksum, read_u16, read_u32, vnet, write_u16, Drop};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Protocol numbers.
pub const ICMP: u8 = 1;
/// TCP.
pub const TCP: u8 = 6;
/// UDP.
pub const UDP: u8 = 17;
/// ICMP for IPv6.
pub const ICMPV6: u8 = 58;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;
const EXTENSIONS_MAXIMUM: usize = 8;
const V4_SIZE: usize = 20;
const V6_SIZE: usize = 40;
const MORE_FRAGMENTS: u16 = 0x2000;
const DONT_FRAGMENT: u16 = 0x4000;
const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
const OPTION_LSRR: u8 = 131;
const OPTION_SSRR: u8 = 137;
/// Hop limit of what this router sends itself.
pub const HOP_LIMIT: u8 = 64;

/// A piece of a larger packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Shared by the pieces of one packet.
    pub identification: u32,
    /// Bytes from the start of the whole payload; a multiple of 8.
    pub offset: usize,
    /// Whether others follow.
    pub more: bool,
}

/// A parsed packet of either version.
#[derive(Clone, Debug)]
pub struct Ip<'a> {
    /// Who sent it.
    pub source: IpAddr,
    /// To whom.
    pub destination: IpAddr,
    /// What the payload is, past all extension headers.
    pub protocol: u8,
    /// Hops it may still take.
    pub hop_limit: u8,
    /// Whether a router may not split it (always so for IPv6).
    pub dont_fragment: bool,
    /// Set when it is a piece.
    pub fragment: Option<Fragment>,
    /// What follows the headers.
    pub payload: &'a [u8],
    /// The packet from its first byte, for quoting in an error.
    pub packet: &'a [u8],
}

/// Parse the payload of a frame of type IPv4.
///
/// # Errors
/// `Truncated`, `Malformed`, `Checksum` or `SourceRoute`.
pub fn parse_v4(bytes: &[u8]) -> Result<Ip<'_>, Drop> {
    if bytes.len() < V4_SIZE {
        return Err(Drop::Truncated);
    }
    let header = usize::from(bytes[0] & 0xF) * 4;
    let total = usize::from(read_u16(bytes, 2)?);
    if bytes[0] >> 4 != 4 || header < V4_SIZE || total < header {
        return Err(Drop::Malformed);
    }
    let packet = bytes.get(..total).ok_or(Drop::Truncated)?;
    if checksum::finish(checksum::sum(&packet[..header])) != 0 {
        return Err(Drop::Checksum);
    }
    refuse_source_route(&packet[V4_SIZE..header])?;
    let flags = read_u16(packet, 6)?;
    Ok(Ip {
        source: IpAddr::V4(v4_at(packet, 12)),
        destination: IpAddr::V4(v4_at(packet, 16)),
        protocol: packet[9],
        hop_limit: packet[8],
        dont_fragment: flags & DONT_FRAGMENT != 0,
        fragment: v4_fragment(flags, u32::from(read_u16(packet, 4)?)),
        payload: &packet[header..],
        packet,
    })
}

fn v4_fragment(flags: u16, identification: u32) -> Option<Fragment> {
    let more = flags & MORE_FRAGMENTS != 0;
    let offset = usize::from(flags & 0x1FFF) * 8;
    (more || offset != 0).then_some(Fragment { identification, offset, more })
}

/// Options are for the router alone; none reaches the far end (RFC 7126 §4.3 and §4.4 for source routes).
fn refuse_source_route(mut options: &[u8]) -> Result<(), Drop> {
    while let Some(&kind) = options.first() {
        let length = match kind {
            OPTION_END => return Ok(()),
            OPTION_NOP => 1,
            OPTION_LSRR | OPTION_SSRR => return Err(Drop::SourceRoute),
            _ => usize::from(*options.get(1).ok_or(Drop::Malformed)?),
        };
        if length == 0 || length > options.len() || (length == 1 && kind != OPTION_NOP) {
            return Err(Drop::Malformed);
        }
        options = &options[length..];
    }
    Ok(())
}

/// Parse the payload of a frame of type IPv6, past its extension headers.
///
/// # Errors
/// `Truncated`, `Malformed` or `SourceRoute`.
pub fn parse_v6(bytes: &[u8]) -> Result<Ip<'_>, Drop> {
    if bytes.len() < V6_SIZE {
        return Err(Drop::Truncated);
    }
    if bytes[0] >> 4 != 6 {
        return Err(Drop::Malformed);
    }
    let length = usize::from(read_u16(bytes, 4)?);
    let packet = bytes.get(..V6_SIZE + length).ok_or(Drop::Truncated)?;
    let mut ip = Ip {
        source: IpAddr::V6(v6_at(packet, 8)),
        destination: IpAddr::V6(v6_at(packet, 24)),
        protocol: packet[6],
        hop_limit: packet[7],
        dont_fragment: true,
        fragment: None,
        payload: &packet[V6_SIZE..],
        packet,
    };
    skip_extensions(&mut ip)?;
    Ok(ip)
}

/// Reference: RFC 8200 §4 "IPv6 Extension Headers"; RFC 5095 for routing headers.
fn skip_extensions(ip: &mut Ip<'_>) -> Result<(), Drop> {
    for _ in 0..EXTENSIONS_MAXIMUM {
        let size = match ip.protocol {
            HOP_BY_HOP | DESTINATION_OPTIONS => extension_size(ip.payload)?,
            ROUTING if ip.payload.get(3) == Some(&0) => extension_size(ip.payload)?,
            ROUTING => return Err(Drop::SourceRoute),
            FRAGMENT => {
                ip.fragment = v6_fragment(ip.payload)?;
                8
            }
            _ => return Ok(()),
        };
        let rest = ip.payload.get(size..).ok_or(Drop::Truncated)?;
        ip.protocol = ip.payload[0];
        ip.payload = rest;
        if ip.fragment.is_some_and(|fragment| fragment.offset != 0) {
            return Ok(());
        }
    }
    Err(Drop::Malformed)
}

fn extension_size(bytes: &[u8]) -> Result<usize, Drop> {
    bytes.get(1).map(|&length| (usize::from(length) + 1) * 8).ok_or(Drop::Truncated)
}

fn v6_fragment(bytes: &[u8]) -> Result<Option<Fragment>, Drop> {
    let identification = read_u32(bytes, 4)?;
    let field = read_u16(bytes, 2)?;
    let (offset, more) = (usize::from(field & 0xFFF8), field & 1 != 0);
    // RFC 6946: an atomic fragment is a whole packet.
    Ok((more || offset != 0).then_some(Fragment { identification, offset, more }))
}

fn v4_at(bytes: &[u8], at: usize) -> Ipv4Addr {
    Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3])
}

fn v6_at(bytes: &[u8], at: usize) -> Ipv6Addr {
    let mut octets = [0; 16];
    octets.copy_from_slice(&bytes[at..at + 16]);
    Ipv6Addr::from(octets)
}

/// The way of a packet to the guest: its addresses on both layers, of one IP version.
#[derive(Clone, Copy, Debug)]
pub struct Path {
    /// The router's and the guest's hardware addresses.
    pub link: (Mac, Mac),
    /// Source of the packet.
    pub source: IpAddr,
    /// Destination of the packet.
    pub destination: IpAddr,
}

impl Path {
    /// Bytes of the IP header.
    pub fn ip_size(&self) -> usize {
        if self.source.is_ipv4() {
            V4_SIZE
        } else {
            V6_SIZE
        }
    }

    /// Offset of the transport header in the frame, offload header included.
    pub fn transport(&self) -> usize {
        vnet::SIZE + ethernet::SIZE + self.ip_size()
    }

    /// A frame of zeros with room for `header` bytes of transport header, and capacity for `payload` more.
    pub fn blank(&self, header: usize, payload: usize) -> Vec<u8> {
        let mut frame = Vec::with_capacity(self.transport() + header + payload);
        frame.resize(self.transport() + header, 0);
        frame
    }

    /// Write the Ethernet and IP headers of a frame that has its final length.
    pub fn write_headers(&self, frame: &mut [u8], protocol: u8, hop_limit: u8) {
        let length = frame.len() - vnet::SIZE - ethernet::SIZE;
        let kind = if self.source.is_ipv4() { ethernet::IPV4 } else { ethernet::IPV6 };
        ethernet::write(frame, self.link.1, self.link.0, kind);
        let header = &mut frame[vnet::SIZE + ethernet::SIZE..];
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                header[..V4_SIZE].fill(0);
                header[0] = 0x45;
                write_u16(header, 2, length as u16);
                write_u16(header, 6, DONT_FRAGMENT);
                header[8] = hop_limit;
                header[9] = protocol;
                header[12..16].copy_from_slice(&source.octets());
                header[16..20].copy_from_slice(&destination.octets());
                let sum = checksum::finish(checksum::sum(&header[..V4_SIZE]));
                write_u16(header, 10, sum);
            }
            (source, destination) => {
                header[..8].fill(0);
                header[0] = 0x60;
                write_u16(header, 4, (length - V6_SIZE) as u16);
                header[6] = protocol;
                header[7] = hop_limit;
                header[8..24].copy_from_slice(&v6_octets(source));
                header[24..40].copy_from_slice(&v6_octets(destination));
            }
        }
    }

    /// Write a transport checksum over everything from the transport header on.
    pub fn write_checksum(&self, frame: &mut [u8], protocol: u8, offset: usize) {
        let start = self.transport();
        write_u16(frame, start + offset, 0);
        let pseudo = if protocol == ICMP {
            0
        } else {
            checksum::pseudo_header(self.source, self.destination, protocol, frame.len() - start)
        };
        let value = checksum::finish(pseudo + checksum::sum(&frame[start..]));
        // RFC 768: zero means that there is none.
        let value = if value == 0 && protocol == UDP { 0xFFFF } else { value };
        write_u16(frame, start + offset, value);
    }
}

fn v6_octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V6(v6) => v6.octets(),
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(source: &str, destination: &str) -> Path {
        Path {
            link: (Mac([2; 6]), Mac([4; 6])),
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
        }
    }

    fn packet(path: &Path, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = path.blank(0, payload.len());
        frame.extend_from_slice(payload);
        path.write_headers(&mut frame, protocol, 7);
        frame.split_off(vnet::SIZE + ethernet::SIZE)
    }

    #[test]
    fn rfc791_what_is_written_is_read() {
        let bytes = packet(&path("10.0.2.2", "10.0.2.15"), UDP, b"payload");
        let ip = parse_v4(&bytes).unwrap();
        assert_eq!((ip.protocol, ip.hop_limit, ip.payload), (UDP, 7, &b"payload"[..]));
        assert_eq!((ip.source.to_string(), ip.fragment), ("10.0.2.2".into(), None));
    }

    #[test]
    fn rfc8200_what_is_written_is_read() {
        let bytes = packet(&path("fd00::2", "fd00::15"), TCP, b"payload");
        let ip = parse_v6(&bytes).unwrap();
        assert_eq!((ip.protocol, ip.hop_limit, ip.payload), (TCP, 7, &b"payload"[..]));
    }

    #[test]
    fn rfc791_header_checksum_is_checked() {
        let mut bytes = packet(&path("10.0.2.2", "10.0.2.15"), UDP, b"");
        bytes[8] ^= 1;
        assert_eq!(parse_v4(&bytes).unwrap_err(), Drop::Checksum);
    }

    #[test]
    fn rfc7126_source_routes_are_refused() {
        let mut bytes = packet(&path("10.0.2.15", "192.0.2.1"), UDP, &[OPTION_LSRR, 3, 4, 0]);
        bytes[0] = 0x46;
        write_u16(&mut bytes, 10, 0);
        let sum = checksum::finish(checksum::sum(&bytes[..24]));
        write_u16(&mut bytes, 10, sum);
        assert_eq!(parse_v4(&bytes).unwrap_err(), Drop::SourceRoute);
    }

    #[test]
    fn rfc5095_routing_headers_with_segments_left_are_refused() {
        let routing = [TCP, 0, 0, 1, 0, 0, 0, 0];
        let bytes = packet(&path("fd00::15", "2001:db8::1"), ROUTING, &routing);
        assert_eq!(parse_v6(&bytes).unwrap_err(), Drop::SourceRoute);
    }

    #[test]
    fn no_prefix_of_a_packet_panics() {
        let extensions = [FRAGMENT, 0, 0, 0, 0, 0, 0, 0, TCP, 0, 0, 1, 0, 0, 0, 9];
        for bytes in [
            packet(&path("10.0.2.2", "10.0.2.15"), UDP, b"payload"),
            packet(&path("fd00::15", "2001:db8::1"), HOP_BY_HOP, &extensions),
        ] {
            for length in 0..bytes.len() {
                assert!(parse_v4(&bytes[..length]).is_err() && parse_v6(&bytes[..length]).is_err());
            }
        }
    }
}

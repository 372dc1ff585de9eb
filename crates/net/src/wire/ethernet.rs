//! Ethernet headers and ARP.
//!
//! Reference: RFC 894; RFC 826 "An Ethernet Address Resolution Protocol".

use super::{read_u16, vnet, write_u16, Drop};
use std::fmt;
use std::net::Ipv4Addr;

/// Bytes of an Ethernet header.
pub const SIZE: usize = 14;
/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ARP: u16 = 0x0806;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86DD;

const ARP_SIZE: usize = 28;
const ARP_REQUEST: u16 = 1;
const ARP_REPLY: u16 = 2;

/// A hardware address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// All stations.
    pub const BROADCAST: Mac = Mac([0xFF; 6]);

    /// Whether the address names a group (the broadcast address too).
    pub fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A parsed frame.
#[derive(Debug)]
pub struct Ethernet<'a> {
    /// To whom.
    pub destination: Mac,
    /// From whom: a unicast address.
    pub source: Mac,
    /// What the payload is.
    pub kind: u16,
    /// What follows the header.
    pub payload: &'a [u8],
}

/// Parse an Ethernet frame.
///
/// # Errors
/// `Truncated`, or `Spoofed` for a group address as the source.
pub fn parse(frame: &[u8]) -> Result<Ethernet<'_>, Drop> {
    let kind = read_u16(frame, 12)?;
    let source = mac_at(frame, 6);
    if source.is_group() {
        return Err(Drop::Spoofed);
    }
    Ok(Ethernet { destination: mac_at(frame, 0), source, kind, payload: &frame[SIZE..] })
}

fn mac_at(bytes: &[u8], at: usize) -> Mac {
    let mut mac = [0; 6];
    mac.copy_from_slice(&bytes[at..at + 6]);
    Mac(mac)
}

/// Write the header behind the offload header of a frame.
pub fn write(frame: &mut [u8], destination: Mac, source: Mac, kind: u16) {
    let header = &mut frame[vnet::SIZE..vnet::SIZE + SIZE];
    header[..6].copy_from_slice(&destination.0);
    header[6..12].copy_from_slice(&source.0);
    write_u16(header, 12, kind);
}

/// An ARP packet for IPv4 over Ethernet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// A question, or the answer to one.
    pub request: bool,
    /// Who speaks.
    pub sender: (Mac, Ipv4Addr),
    /// Who is asked, or answered.
    pub target: (Mac, Ipv4Addr),
}

impl Arp {
    /// Parse the payload of a frame.
    ///
    /// # Errors
    /// `Truncated` or `Malformed`.
    pub fn parse(bytes: &[u8]) -> Result<Arp, Drop> {
        let bytes = bytes.get(..ARP_SIZE).ok_or(Drop::Truncated)?;
        let operation = read_u16(bytes, 6)?;
        let ethernet_ipv4 = bytes[..6] == [0, 1, 8, 0, 6, 4];
        if !ethernet_ipv4 || !matches!(operation, ARP_REQUEST | ARP_REPLY) {
            return Err(Drop::Malformed);
        }
        Ok(Arp {
            request: operation == ARP_REQUEST,
            sender: (mac_at(bytes, 8), ipv4_at(bytes, 14)),
            target: (mac_at(bytes, 18), ipv4_at(bytes, 24)),
        })
    }

    /// The frame that carries this packet; a request goes to everybody.
    pub fn frame(&self) -> Vec<u8> {
        let mut frame = vec![0; vnet::SIZE + SIZE + ARP_SIZE];
        let to = if self.request { Mac::BROADCAST } else { self.target.0 };
        write(&mut frame, to, self.sender.0, ARP);
        let body = &mut frame[vnet::SIZE + SIZE..];
        body[..6].copy_from_slice(&[0, 1, 8, 0, 6, 4]);
        write_u16(body, 6, if self.request { ARP_REQUEST } else { ARP_REPLY });
        write_station(&mut body[8..18], self.sender);
        write_station(&mut body[18..28], self.target);
        frame
    }
}

fn write_station(bytes: &mut [u8], station: (Mac, Ipv4Addr)) {
    bytes[..6].copy_from_slice(&station.0 .0);
    bytes[6..].copy_from_slice(&station.1.octets());
}

fn ipv4_at(bytes: &[u8], at: usize) -> Ipv4Addr {
    Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc826_a_packet_survives_the_wire() {
        let us = (Mac([2, 0, 0, 0, 0, 1]), Ipv4Addr::new(10, 0, 2, 2));
        let them = (Mac([2, 0, 0, 0, 0, 9]), Ipv4Addr::new(10, 0, 2, 15));
        let packet = Arp { request: false, sender: us, target: them };
        let frame = packet.frame();
        let parsed = parse(&frame[vnet::SIZE..]).unwrap();
        assert_eq!((parsed.destination, parsed.kind), (them.0, ARP));
        assert_eq!(Arp::parse(parsed.payload), Ok(packet));
    }

    #[test]
    fn a_group_address_is_no_source() {
        let mut frame = [0; 20];
        frame[6] = 1;
        assert_eq!(parse(&frame).unwrap_err(), Drop::Spoofed);
        assert_eq!(parse(&frame[..13]).unwrap_err(), Drop::Truncated);
    }
}

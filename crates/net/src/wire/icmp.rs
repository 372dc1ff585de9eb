//! ICMP for both versions: echo, and the errors that tell a guest at once what does not work.
//!
//! Reference: RFC 792 "Internet Control Message Protocol"; RFC 4443 "ICMPv6"; RFC 1812 §5.2.7.1.

use super::ip::{self, Ip, Path};
use super::udp::verify_checksum;
use super::{checksum, read_u16, write_u16, write_u32, Drop};
use std::net::IpAddr;

/// Bytes of every ICMP header.
pub const SIZE: usize = 8;
const CHECKSUM: usize = 2;
const V4_QUOTE_MAXIMUM: usize = 548;
const V6_QUOTE_MAXIMUM: usize = 1232;

/// Types of echo: request and reply, by version.
const V4_ECHO: (u8, u8) = (8, 0);
const V6_ECHO: (u8, u8) = (128, 129);

/// A parsed message, its checksum verified.
#[derive(Debug)]
pub struct Icmp<'a> {
    /// Type, of its version.
    pub kind: u8,
    /// Code of the type.
    pub code: u8,
    /// Everything from the type on.
    pub message: &'a [u8],
}

/// Parse the payload of a packet.
///
/// # Errors
/// `Truncated` or `Checksum`.
pub fn parse<'a>(packet: &Ip<'a>, verify: bool) -> Result<Icmp<'a>, Drop> {
    let message = packet.payload;
    if message.len() < SIZE {
        return Err(Drop::Truncated);
    }
    if packet.protocol == ip::ICMPV6 {
        if verify {
            verify_checksum(packet, message, ip::ICMPV6)?;
        }
    } else if verify && checksum::finish(checksum::sum(message)) != 0 {
        return Err(Drop::Checksum);
    }
    Ok(Icmp { kind: message[0], code: message[1], message })
}

/// An echo's number, sequence and data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Echo<'a> {
    /// Which process of the guest asks.
    pub identifier: u16,
    /// Which of its questions.
    pub sequence: u16,
    /// What is to be echoed.
    pub data: &'a [u8],
}

impl<'a> Icmp<'a> {
    /// The echo request that this is, if it is one.
    pub fn echo_request(&self, v4: bool) -> Option<Echo<'a>> {
        let (request, _) = if v4 { V4_ECHO } else { V6_ECHO };
        (self.kind == request && self.code == 0).then(|| echo_at(self.message)).flatten()
    }
}

fn echo_at(message: &[u8]) -> Option<Echo<'_>> {
    Some(Echo {
        identifier: read_u16(message, 4).ok()?,
        sequence: read_u16(message, 6).ok()?,
        data: message.get(SIZE..)?,
    })
}

/// The echo reply in a message as a ping socket gives it.
pub fn echo_reply_of(message: &[u8], v4: bool) -> Option<Echo<'_>> {
    let (_, reply) = if v4 { V4_ECHO } else { V6_ECHO };
    (message.first() == Some(&reply)).then(|| echo_at(message)).flatten()
}

/// An echo request as a ping socket takes it; the kernel fills in identifier and checksum.
pub fn echo_request_message(echo: &Echo<'_>, v4: bool) -> Vec<u8> {
    let (request, _) = if v4 { V4_ECHO } else { V6_ECHO };
    let mut message = vec![0; SIZE];
    message[0] = request;
    write_u16(&mut message, 4, echo.identifier);
    write_u16(&mut message, 6, echo.sequence);
    message.extend_from_slice(echo.data);
    message
}

/// A frame with an echo reply.
pub fn echo_reply(path: &Path, echo: &Echo<'_>) -> Vec<u8> {
    let (_, reply) = if path.source.is_ipv4() { V4_ECHO } else { V6_ECHO };
    let mut rest = [0; 4];
    write_u16(&mut rest, 0, echo.identifier);
    write_u16(&mut rest, 2, echo.sequence);
    frame(path, (reply, 0), rest, echo.data, ip::HOP_LIMIT)
}

/// A frame with any message: type and code, the header's second word, and what follows.
pub fn frame(path: &Path, kind: (u8, u8), rest: [u8; 4], data: &[u8], hop_limit: u8) -> Vec<u8> {
    let mut frame = path.blank(SIZE, data.len());
    let start = path.transport();
    frame[start] = kind.0;
    frame[start + 1] = kind.1;
    frame[start + 4..start + 8].copy_from_slice(&rest);
    frame.extend_from_slice(data);
    let protocol = if path.source.is_ipv4() { ip::ICMP } else { ip::ICMPV6 };
    path.write_headers(&mut frame, protocol, hop_limit);
    path.write_checksum(&mut frame, protocol, CHECKSUM);
    frame
}

/// Why a packet could not be delivered, whatever the version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreachable {
    /// There is no way to the network.
    Network,
    /// Nobody answers at the address.
    Host,
    /// Nobody listens on the port.
    Port,
    /// The policy forbids it.
    Prohibited,
    /// The packet is larger than the next link takes, which is so many bytes.
    TooBig(u32),
    /// It took too many hops.
    Expired,
}

impl Unreachable {
    fn v4(self) -> (u8, u8, u32) {
        match self {
            Unreachable::Network => (3, 0, 0),
            Unreachable::Host => (3, 1, 0),
            Unreachable::Port => (3, 3, 0),
            Unreachable::Prohibited => (3, 13, 0),
            Unreachable::TooBig(mtu) => (3, 4, mtu & 0xFFFF),
            Unreachable::Expired => (11, 0, 0),
        }
    }

    fn v6(self) -> (u8, u8, u32) {
        match self {
            Unreachable::Network => (1, 0, 0),
            Unreachable::Host => (1, 3, 0),
            Unreachable::Port => (1, 4, 0),
            Unreachable::Prohibited => (1, 1, 0),
            Unreachable::TooBig(mtu) => (2, 0, mtu),
            Unreachable::Expired => (3, 0, 0),
        }
    }

    /// A frame that tells the sender of `packet`, which it quotes as far as its version allows.
    pub fn frame(self, path: &Path, packet: &[u8]) -> Vec<u8> {
        let v4 = path.source.is_ipv4();
        let (kind, code, word) = if v4 { self.v4() } else { self.v6() };
        let limit = if v4 { V4_QUOTE_MAXIMUM } else { V6_QUOTE_MAXIMUM };
        let quote = &packet[..packet.len().min(limit)];
        let mut rest = [0; 4];
        write_u32(&mut rest, 0, word);
        frame(path, (kind, code), rest, quote, ip::HOP_LIMIT)
    }
}

/// Whether an error about a packet from `source` may be sent at all (RFC 1122 §3.2.2, RFC 4443 §2.4 (e)).
pub fn may_report(source: IpAddr, destination: IpAddr) -> bool {
    let broadcast = matches!(destination, IpAddr::V4(v4) if v4.is_broadcast());
    !source.is_unspecified() && !source.is_multicast() && !destination.is_multicast() && !broadcast
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ethernet::{self, Mac};
    use crate::wire::vnet;

    fn path(v4: bool) -> Path {
        let (source, destination) = if v4 { ("192.0.2.1", "10.0.2.15") } else { ("2001:db8::1", "fd00::15") };
        Path {
            link: (Mac([2; 6]), Mac([4; 6])),
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
        }
    }

    #[test]
    fn rfc792_and_rfc4443_an_echo_reply_is_read_back() {
        for v4 in [true, false] {
            let echo = Echo { identifier: 3, sequence: 4, data: b"ping" };
            let frame = echo_reply(&path(v4), &echo);
            let bytes = &frame[vnet::SIZE + ethernet::SIZE..];
            let ip = if v4 { ip::parse_v4(bytes) } else { ip::parse_v6(bytes) }.unwrap();
            let icmp = parse(&ip, true).unwrap();
            assert_eq!(echo_reply_of(icmp.message, v4), Some(echo));
        }
    }

    #[test]
    fn rfc1812_5_2_7_1_an_error_quotes_the_packet_within_the_minimum_mtu() {
        for v4 in [true, false] {
            let frame = Unreachable::Prohibited.frame(&path(v4), &[7; 4000]);
            let size = frame.len() - vnet::SIZE - ethernet::SIZE;
            assert_eq!(size, if v4 { 576 } else { 1280 });
        }
    }

    #[test]
    fn rfc1122_3_2_2_no_error_about_groups() {
        let any = |text: &str| text.parse().unwrap();
        assert!(may_report(any("10.0.2.15"), any("192.0.2.1")));
        assert!(!may_report(any("0.0.0.0"), any("192.0.2.1")));
        assert!(!may_report(any("10.0.2.15"), any("224.0.0.1")));
        assert!(!may_report(any("fe80::1"), any("ff02::1")));
    }
}

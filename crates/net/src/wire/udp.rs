//! UDP headers.
//!
//! Reference: RFC 768 "User Datagram Protocol"; RFC 8200 §8.1 for IPv6.

use super::ip::{self, Ip, Path};
use super::{checksum, read_u16, write_u16, Drop};

/// Bytes of a UDP header.
pub const SIZE: usize = 8;
const CHECKSUM: usize = 6;

/// A parsed datagram.
#[derive(Debug)]
pub struct Udp<'a> {
    /// Port of the sender.
    pub source: u16,
    /// Port of the receiver.
    pub destination: u16,
    /// The data.
    pub payload: &'a [u8],
}

/// Parse the payload of a packet; `verify` is false where the frame says that its checksum is still partial.
///
/// # Errors
/// `Truncated`, `Malformed` or `Checksum`.
pub fn parse<'a>(packet: &Ip<'a>, verify: bool) -> Result<Udp<'a>, Drop> {
    let bytes = packet.payload;
    let length = usize::from(read_u16(bytes, 4)?);
    let stated = read_u16(bytes, CHECKSUM)?;
    if length < SIZE {
        return Err(Drop::Malformed);
    }
    let bytes = bytes.get(..length).ok_or(Drop::Truncated)?;
    let absent = stated == 0 && packet.source.is_ipv4();
    if verify && !absent {
        verify_checksum(packet, bytes, ip::UDP)?;
    }
    Ok(Udp { source: read_u16(bytes, 0)?, destination: read_u16(bytes, 2)?, payload: &bytes[SIZE..] })
}

/// Whether a transport checksum over `bytes` is right.
///
/// # Errors
/// `Checksum`.
pub fn verify_checksum(packet: &Ip<'_>, bytes: &[u8], protocol: u8) -> Result<(), Drop> {
    let pseudo = checksum::pseudo_header(packet.source, packet.destination, protocol, bytes.len());
    match checksum::finish(pseudo + checksum::sum(bytes)) {
        0 => Ok(()),
        _ => Err(Drop::Checksum),
    }
}

/// A frame that carries `payload`, or nothing where it is longer than a packet can be.
pub fn frame(path: &Path, ports: (u16, u16), payload: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(SIZE + payload.len() + path.ip_size()).ok()? - path.ip_size() as u16;
    let mut frame = path.blank(SIZE, payload.len());
    let start = path.transport();
    write_u16(&mut frame, start, ports.0);
    write_u16(&mut frame, start + 2, ports.1);
    write_u16(&mut frame, start + 4, length);
    frame.extend_from_slice(payload);
    path.write_headers(&mut frame, ip::UDP, ip::HOP_LIMIT);
    path.write_checksum(&mut frame, ip::UDP, CHECKSUM);
    Some(frame)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ethernet::{self, Mac};
    use crate::wire::vnet;

    fn example() -> Vec<u8> {
        let path = Path {
            link: (Mac([2; 6]), Mac([4; 6])),
            source: "fd00::2".parse().unwrap(),
            destination: "fd00::15".parse().unwrap(),
        };
        frame(&path, (53, 4000), b"odd").unwrap().split_off(vnet::SIZE + ethernet::SIZE)
    }

    #[test]
    fn rfc768_what_is_written_is_read() {
        let bytes = example();
        let udp = parse(&ip::parse_v6(&bytes).unwrap(), true).unwrap();
        assert_eq!((udp.source, udp.destination, udp.payload), (53, 4000, &b"odd"[..]));
    }

    #[test]
    fn rfc768_a_wrong_checksum_is_refused_unless_it_is_partial() {
        let mut bytes = example();
        *bytes.last_mut().unwrap() ^= 1;
        let ip = ip::parse_v6(&bytes).unwrap();
        assert_eq!(parse(&ip, true).unwrap_err(), Drop::Checksum);
        assert!(parse(&ip, false).is_ok());
    }
}

//! Putting fragments together, within bounds, and splitting what is longer than the guest's MTU.
//!
//! Reference: RFC 791 §3.2 "Discussion"; RFC 8200 §4.5 "Fragment Header"; RFC 5722 for overlaps;
//! RFC 4787 §11 (REQ-14): fragments that come out of order are put together too.

use super::ip::{Fragment, Ip, Path};
use super::{checksum, ethernet, vnet, write_u16, write_u32, Drop};
use std::collections::HashMap;
use std::net::IpAddr;

const PACKETS_MAXIMUM: usize = 16;
const PAYLOAD_MAXIMUM: usize = 65535;
const TIMEOUT_NS: u64 = 30_000_000_000;
const V6_FRAGMENT_HEADER: u8 = 44;

/// Source, destination, protocol and identification: what the pieces of one packet share.
type Key = (IpAddr, IpAddr, u8, u32);

#[derive(Debug, Default)]
struct Partial {
    expires: u64,
    pieces: Vec<(usize, Vec<u8>)>,
    /// Length of the whole, once the last piece has come.
    total: Option<usize>,
}

/// Packets of which pieces are still missing: at most 16, each for 30 seconds.
#[derive(Debug, Default)]
pub struct Reassembly {
    partial: HashMap<Key, Partial>,
}

impl Reassembly {
    /// Take a piece; the whole payload once none is missing.
    ///
    /// # Errors
    /// `Fragments` for an overlap, a length past 64 KiB, or too many packets at once. The packet that it
    /// belongs to is given up, as RFC 5722 §4 asks.
    pub fn add(&mut self, now: u64, packet: &Ip<'_>, piece: Fragment) -> Result<Option<Vec<u8>>, Drop> {
        let key = (packet.source, packet.destination, packet.protocol, piece.identification);
        self.partial.retain(|_, partial| partial.expires > now);
        if self.partial.len() >= PACKETS_MAXIMUM && !self.partial.contains_key(&key) {
            return Err(Drop::Fragments);
        }
        let partial = self.partial.entry(key).or_default();
        if partial.expires == 0 {
            partial.expires = now + TIMEOUT_NS;
        }
        match partial.add(piece, packet.payload) {
            Ok(false) => Ok(None),
            Ok(true) => Ok(self.partial.remove(&key).map(Partial::join)),
            Err(reason) => {
                self.partial.remove(&key);
                Err(reason)
            }
        }
    }
}

impl Partial {
    /// Whether the packet is whole now.
    fn add(&mut self, piece: Fragment, payload: &[u8]) -> Result<bool, Drop> {
        let end = piece.offset + payload.len();
        let ragged = piece.more && (payload.is_empty() || payload.len() % 8 != 0);
        let past_end = self.total.is_some_and(|total| end > total || !piece.more);
        if ragged || past_end || end > PAYLOAD_MAXIMUM {
            return Err(Drop::Fragments);
        }
        let place = self.pieces.partition_point(|(offset, _)| *offset < piece.offset);
        let before = place.checked_sub(1).map_or(0, |index| end_of(&self.pieces[index]));
        let after = self.pieces.get(place).map_or(usize::MAX, |(offset, _)| *offset);
        if before > piece.offset || end > after || after == piece.offset {
            return Err(Drop::Fragments);
        }
        if !piece.more {
            if after != usize::MAX {
                return Err(Drop::Fragments);
            }
            self.total = Some(end);
        }
        self.pieces.insert(place, (piece.offset, payload.to_vec()));
        Ok(self.total == Some(self.pieces.iter().map(|(_, bytes)| bytes.len()).sum()))
    }

    fn join(self) -> Vec<u8> {
        self.pieces.into_iter().flat_map(|(_, bytes)| bytes).collect()
    }
}

fn end_of(piece: &(usize, Vec<u8>)) -> usize {
    piece.0 + piece.1.len()
}

/// Split a frame whose packet is longer than `mtu`; a shorter one comes back as it is.
pub fn split(path: &Path, frame: Vec<u8>, protocol: u8, mtu: usize, identification: u32) -> Vec<Vec<u8>> {
    if frame.len() - vnet::SIZE - ethernet::SIZE <= mtu {
        return vec![frame];
    }
    let v4 = path.source.is_ipv4();
    let room = (mtu - path.ip_size() - if v4 { 0 } else { 8 }) & !7;
    let payload = &frame[path.transport()..];
    let count = payload.len().div_ceil(room);
    let piece = |(index, bytes): (usize, &[u8])| {
        let offset = index * room;
        let more = index + 1 < count;
        if v4 {
            v4_piece(path, protocol, bytes, (offset, more), identification)
        } else {
            v6_piece(path, protocol, bytes, (offset, more), identification)
        }
    };
    payload.chunks(room).enumerate().map(piece).collect()
}

fn v4_piece(path: &Path, protocol: u8, bytes: &[u8], place: (usize, bool), identification: u32) -> Vec<u8> {
    let mut frame = path.blank(0, bytes.len());
    frame.extend_from_slice(bytes);
    path.write_headers(&mut frame, protocol, super::ip::HOP_LIMIT);
    let header = &mut frame[vnet::SIZE + ethernet::SIZE..path.transport()];
    write_u16(header, 4, identification as u16);
    write_u16(header, 6, (place.0 / 8) as u16 | if place.1 { 0x2000 } else { 0 });
    write_u16(header, 10, 0);
    let sum = checksum::finish(checksum::sum(header));
    write_u16(header, 10, sum);
    frame
}

fn v6_piece(path: &Path, protocol: u8, bytes: &[u8], place: (usize, bool), identification: u32) -> Vec<u8> {
    let mut frame = path.blank(8, bytes.len());
    let start = path.transport();
    frame[start] = protocol;
    write_u16(&mut frame, start + 2, place.0 as u16 | u16::from(place.1));
    write_u32(&mut frame, start + 4, identification);
    frame.extend_from_slice(bytes);
    path.write_headers(&mut frame, V6_FRAGMENT_HEADER, super::ip::HOP_LIMIT);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ethernet::Mac;
    use crate::wire::{ip, udp};

    fn path(v4: bool) -> Path {
        let (source, destination) = if v4 { ("192.0.2.1", "10.0.2.15") } else { ("2001:db8::1", "fd00::15") };
        Path {
            link: (Mac([2; 6]), Mac([4; 6])),
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
        }
    }

    fn parsed(frame: &[u8], v4: bool) -> Ip<'_> {
        let bytes = &frame[vnet::SIZE + ethernet::SIZE..];
        if v4 { ip::parse_v4(bytes) } else { ip::parse_v6(bytes) }.unwrap()
    }

    #[test]
    fn rfc4787_req14_pieces_in_any_order_make_the_packet() {
        for v4 in [true, false] {
            let frame = udp::frame(&path(v4), (1, 2), &[5; 4000]).unwrap();
            let whole = frame[path(v4).transport()..].to_vec();
            let pieces = split(&path(v4), frame, ip::UDP, 1500, 77);
            assert_eq!(pieces.len(), 3);
            let mut reassembly = Reassembly::default();
            let mut last = None;
            for piece in pieces.iter().rev() {
                let ip = parsed(piece, v4);
                last = reassembly.add(0, &ip, ip.fragment.unwrap()).unwrap();
            }
            assert_eq!(last, Some(whole));
        }
    }

    fn add(reassembly: &mut Reassembly, id: u32, offset: usize, more: bool) -> Result<Option<Vec<u8>>, Drop> {
        let frame = udp::frame(&path(true), (1, 2), &[0; 8]).unwrap();
        let ip = parsed(&frame, true);
        reassembly.add(0, &ip, Fragment { identification: id, offset, more })
    }

    #[test]
    fn rfc5722_section_4_overlaps_give_the_packet_up() {
        let mut reassembly = Reassembly::default();
        assert_eq!(add(&mut reassembly, 1, 0, true), Ok(None));
        assert_eq!(add(&mut reassembly, 1, 8, true), Err(Drop::Fragments));
        assert_eq!(add(&mut reassembly, 1, 16, false), Ok(None));
    }

    #[test]
    fn packets_at_once_are_bounded() {
        let mut reassembly = Reassembly::default();
        for id in 0..PACKETS_MAXIMUM as u32 {
            assert_eq!(add(&mut reassembly, id, 0, true), Ok(None));
        }
        assert_eq!(add(&mut reassembly, 99, 0, true), Err(Drop::Fragments));
        assert!(add(&mut reassembly, 3, 16, true).is_ok());
    }

    #[test]
    fn lengths_past_a_packet_are_refused() {
        let mut reassembly = Reassembly::default();
        assert_eq!(add(&mut reassembly, 1, 65528, true), Err(Drop::Fragments));
    }
}

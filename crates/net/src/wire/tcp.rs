//! TCP segments.
//!
//! Reference: RFC 9293 "Transmission Control Protocol"; RFC 7323 §2 "TCP Window Scale Option".

use super::ip::{self, Ip, Path};
use super::udp::verify_checksum;
use super::{checksum, ethernet, read_u16, read_u32, vnet, write_u16, write_u32, Drop};

/// Bytes of a header without options.
pub const SIZE: usize = 20;
const CHECKSUM: usize = 16;
const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
const OPTION_MSS: u8 = 2;
const OPTION_SCALE: u8 = 3;
const SCALE_MAXIMUM: u8 = 14;

/// FIN: the sender has no more data.
pub const FIN: u8 = 0x01;
/// SYN: sequence numbers start here.
pub const SYN: u8 = 0x02;
/// RST: the connection is no more.
pub const RST: u8 = 0x04;
/// PSH: deliver at once.
pub const PSH: u8 = 0x08;
/// ACK: the acknowledgment number counts.
pub const ACK: u8 = 0x10;

/// A parsed segment.
#[derive(Debug)]
pub struct Segment<'a> {
    /// Port of the sender.
    pub source: u16,
    /// Port of the receiver.
    pub destination: u16,
    /// Number of the first byte (or of SYN).
    pub sequence: u32,
    /// Next number expected, where ACK is set.
    pub acknowledgment: u32,
    /// `FIN` to `ACK`.
    pub flags: u8,
    /// Window, unscaled.
    pub window: u16,
    /// Largest segment that the sender takes.
    pub mss: Option<u16>,
    /// Scale of the sender's windows, at most 14.
    pub scale: Option<u8>,
    /// The data.
    pub payload: &'a [u8],
}

impl Segment<'_> {
    /// Whether a flag is set.
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Sequence numbers that the segment takes: its data, SYN and FIN.
    pub fn length(&self) -> u32 {
        self.payload.len() as u32 + u32::from(self.has(SYN)) + u32::from(self.has(FIN))
    }
}

/// Parse the payload of a packet; `verify` is false where the frame says that its checksum is still partial.
///
/// # Errors
/// `Truncated`, `Malformed` or `Checksum`.
pub fn parse<'a>(packet: &Ip<'a>, verify: bool) -> Result<Segment<'a>, Drop> {
    let bytes = packet.payload;
    if bytes.len() < SIZE {
        return Err(Drop::Truncated);
    }
    let header = usize::from(bytes[12] >> 4) * 4;
    if header < SIZE || header > bytes.len() {
        return Err(Drop::Malformed);
    }
    if verify {
        verify_checksum(packet, bytes, ip::TCP)?;
    }
    let mut segment = Segment {
        source: read_u16(bytes, 0)?,
        destination: read_u16(bytes, 2)?,
        sequence: read_u32(bytes, 4)?,
        acknowledgment: read_u32(bytes, 8)?,
        flags: bytes[13] & 0x3F,
        window: read_u16(bytes, 14)?,
        mss: None,
        scale: None,
        payload: &bytes[header..],
    };
    if segment.has(SYN) {
        read_options(&bytes[SIZE..header], &mut segment);
    }
    Ok(segment)
}

/// Options end where they stop making sense, as in most stacks.
fn read_options(mut options: &[u8], segment: &mut Segment<'_>) {
    while let Some(&kind) = options.first() {
        let length = match kind {
            OPTION_END => return,
            OPTION_NOP => 1,
            _ => usize::from(options.get(1).copied().unwrap_or(0)),
        };
        if length == 0 || length > options.len() || (length == 1 && kind != OPTION_NOP) {
            return;
        }
        match (kind, &options[..length]) {
            (OPTION_MSS, &[_, _, high, low]) => segment.mss = Some(u16::from_be_bytes([high, low])),
            (OPTION_SCALE, &[_, _, shift]) => segment.scale = Some(shift.min(SCALE_MAXIMUM)),
            _ => {}
        }
        options = &options[length..];
    }
}

/// What the header of a segment to the guest says.
#[derive(Clone, Copy, Debug, Default)]
pub struct Header {
    /// Ports, ours first.
    pub ports: (u16, u16),
    /// Number of the first byte.
    pub sequence: u32,
    /// Next number expected; 0 without ACK.
    pub acknowledgment: u32,
    /// `FIN` to `ACK`.
    pub flags: u8,
    /// Window as it goes on the wire.
    pub window: u16,
    /// Options of a SYN: the largest segment that we take, and our scale.
    pub options: Option<(u16, Option<u8>)>,
}

impl Header {
    /// Bytes on the wire.
    pub fn size(&self) -> usize {
        SIZE + match self.options {
            None => 0,
            Some((_, None)) => 4,
            Some((_, Some(_))) => 8,
        }
    }

    fn write(&self, bytes: &mut [u8]) {
        write_u16(bytes, 0, self.ports.0);
        write_u16(bytes, 2, self.ports.1);
        write_u32(bytes, 4, self.sequence);
        write_u32(bytes, 8, self.acknowledgment);
        bytes[12] = (self.size() as u8 / 4) << 4;
        bytes[13] = self.flags;
        write_u16(bytes, 14, self.window);
        if let Some((mss, scale)) = self.options {
            bytes[SIZE..SIZE + 2].copy_from_slice(&[OPTION_MSS, 4]);
            write_u16(bytes, SIZE + 2, mss);
            if let Some(shift) = scale {
                bytes[SIZE + 4..SIZE + 8].copy_from_slice(&[OPTION_NOP, OPTION_SCALE, 3, shift]);
            }
        }
    }

    /// Complete a frame whose payload starts `size()` bytes after `path.transport()`.
    ///
    /// A payload of more than `mss` bytes is left to the device to cut, with its checksums; a shorter one
    /// gets its checksum here.
    pub fn seal(&self, path: &Path, frame: &mut [u8], mss: u16) {
        let start = path.transport();
        self.write(&mut frame[start..]);
        path.write_headers(frame, ip::TCP, ip::HOP_LIMIT);
        let length = frame.len() - start;
        if length - self.size() <= usize::from(mss) {
            path.write_checksum(frame, ip::TCP, CHECKSUM);
            return;
        }
        let pseudo = checksum::pseudo_header(path.source, path.destination, ip::TCP, length);
        write_u16(frame, start + CHECKSUM, checksum::fold(pseudo));
        let how = vnet::Segmentation {
            kind: if path.source.is_ipv4() { vnet::GSO_TCPV4 } else { vnet::GSO_TCPV6 },
            header_length: (ethernet::SIZE + path.ip_size() + self.size()) as u16,
            segment_size: mss,
            transport: (ethernet::SIZE + path.ip_size()) as u16,
            checksum: CHECKSUM as u16,
        };
        vnet::write_segmentation(&mut frame[..vnet::SIZE], &how);
    }

    /// A whole frame with `payload`.
    pub fn frame(&self, path: &Path, payload: &[u8], mss: u16) -> Vec<u8> {
        let mut frame = path.blank(self.size(), payload.len());
        frame.extend_from_slice(payload);
        self.seal(path, &mut frame, mss);
        frame
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ethernet::Mac;

    fn path() -> Path {
        Path {
            link: (Mac([2; 6]), Mac([4; 6])),
            source: "192.0.2.1".parse().unwrap(),
            destination: "10.0.2.15".parse().unwrap(),
        }
    }

    #[test]
    fn rfc9293_what_is_written_is_read() {
        let header = Header {
            ports: (80, 4000),
            sequence: 7,
            acknowledgment: 9,
            flags: SYN | ACK,
            window: 500,
            options: Some((1460, Some(7))),
        };
        let frame = header.frame(&path(), b"data", 1460);
        let ip = ip::parse_v4(&frame[vnet::SIZE + ethernet::SIZE..]).unwrap();
        let segment = parse(&ip, true).unwrap();
        assert_eq!((segment.source, segment.destination), (80, 4000));
        assert_eq!((segment.sequence, segment.acknowledgment, segment.length()), (7, 9, 5));
        assert_eq!((segment.mss, segment.scale, segment.payload), (Some(1460), Some(7), &b"data"[..]));
    }

    #[test]
    fn a_long_segment_is_left_to_the_device() {
        let frame = Header { flags: ACK, ..Header::default() }.frame(&path(), &[0; 4000], 1460);
        assert_eq!(frame[..2], [vnet::F_NEEDS_CSUM, vnet::GSO_TCPV4]);
        assert_eq!(frame[2..10], [54, 0, 0xB4, 5, 34, 0, 16, 0]);
        let ip = ip::parse_v4(&frame[vnet::SIZE + ethernet::SIZE..]).unwrap();
        assert_eq!(parse(&ip, true).unwrap_err(), Drop::Checksum);
    }

    #[test]
    fn rfc9293_bad_options_are_ignored() {
        let mut segment = Segment {
            source: 0,
            destination: 0,
            sequence: 0,
            acknowledgment: 0,
            flags: SYN,
            window: 0,
            mss: None,
            scale: None,
            payload: &[],
        };
        read_options(&[OPTION_MSS, 0], &mut segment);
        read_options(&[OPTION_MSS, 40, 1, 1], &mut segment);
        read_options(&[9, 1, OPTION_MSS, 4, 1, 1], &mut segment);
        assert_eq!(segment.mss, None);
        read_options(&[OPTION_NOP, OPTION_SCALE, 3, 99], &mut segment);
        assert_eq!(segment.scale, Some(14));
    }
}

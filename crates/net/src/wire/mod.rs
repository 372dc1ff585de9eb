//! Frames as bytes: parsing what a hostile guest sends, and writing what it is sent.
//!
//! A frame here is what virtio calls a packet: a 12-byte offload header ([`vnet`]), an Ethernet header and
//! its payload, without checksum. Parsers take slices, check every length and never panic.

pub mod checksum;
pub mod ethernet;
pub mod fragment;
pub mod icmp;
pub mod ip;
pub mod tcp;
pub mod udp;
pub mod vnet;

/// Why a frame was not carried. One counter each (`stack::counters`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Drop {
    /// A header or a length that runs past the frame.
    Truncated,
    /// A field with a value that its specification forbids.
    Malformed,
    /// A checksum that does not match.
    Checksum,
    /// Not for this router, or of a protocol that it does not carry.
    NotForUs,
    /// A source address outside the network, or not a unicast address.
    Spoofed,
    /// Source routing, or another option that a router refuses (RFC 7126 §4.3, RFC 5095).
    SourceRoute,
    /// Fragments that overlap, are too many or never completed.
    Fragments,
    /// The policy says no.
    Denied,
    /// A table is full.
    Full,
    /// A port or flow that nobody has.
    NoFlow,
}

impl Drop {
    /// All reasons, in the order of their counters.
    pub const ALL: [Drop; 10] = [
        Drop::Truncated,
        Drop::Malformed,
        Drop::Checksum,
        Drop::NotForUs,
        Drop::Spoofed,
        Drop::SourceRoute,
        Drop::Fragments,
        Drop::Denied,
        Drop::Full,
        Drop::NoFlow,
    ];

    /// Name in statistics.
    pub fn name(self) -> &'static str {
        match self {
            Drop::Truncated => "truncated",
            Drop::Malformed => "malformed",
            Drop::Checksum => "checksum",
            Drop::NotForUs => "not_for_us",
            Drop::Spoofed => "spoofed",
            Drop::SourceRoute => "source_route",
            Drop::Fragments => "fragments",
            Drop::Denied => "denied",
            Drop::Full => "full",
            Drop::NoFlow => "no_flow",
        }
    }
}

/// Two bytes at `at`, big-endian; `Truncated` past the end.
///
/// # Errors
/// `Drop::Truncated`.
pub fn read_u16(bytes: &[u8], at: usize) -> Result<u16, Drop> {
    let pair = bytes.get(at..at + 2).ok_or(Drop::Truncated)?;
    Ok(u16::from_be_bytes([pair[0], pair[1]]))
}

/// Four bytes at `at`, big-endian; `Truncated` past the end.
///
/// # Errors
/// `Drop::Truncated`.
pub fn read_u32(bytes: &[u8], at: usize) -> Result<u32, Drop> {
    let quad = bytes.get(at..at + 4).ok_or(Drop::Truncated)?;
    Ok(u32::from_be_bytes([quad[0], quad[1], quad[2], quad[3]]))
}

/// Write two bytes, big-endian, at an offset that the caller has reserved.
pub fn write_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// Write four bytes, big-endian, at an offset that the caller has reserved.
pub fn write_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

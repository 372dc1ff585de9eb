//! The header in front of every frame: which checksum is left to compute, and how to segment.
//!
//! Reference: virtio 1.2 §5.1.6 "Device Operation", `struct virtio_net_hdr`.

use super::Drop;

/// Bytes of the header, with `num_buffers`.
pub const SIZE: usize = 12;
/// `csum_start` and `csum_offset` say where a checksum is to be completed.
pub const F_NEEDS_CSUM: u8 = 1;
/// TCP over IPv4.
pub const GSO_TCPV4: u8 = 1;
/// TCP over IPv6.
pub const GSO_TCPV6: u8 = 4;

/// What of the header matters to a router that ends every connection itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHeader {
    /// The transport checksum is only that of the pseudo-header: the frame never was on a wire.
    pub needs_checksum: bool,
}

/// Split a frame into its header and the Ethernet frame.
///
/// # Errors
/// `Truncated`.
pub fn parse(frame: &[u8]) -> Result<(VnetHeader, &[u8]), Drop> {
    if frame.len() < SIZE {
        return Err(Drop::Truncated);
    }
    let (header, ethernet) = frame.split_at(SIZE);
    Ok((VnetHeader { needs_checksum: header[0] & F_NEEDS_CSUM != 0 }, ethernet))
}

/// Where and how a device cuts a frame that is longer than the MTU.
#[derive(Clone, Copy, Debug)]
pub struct Segmentation {
    /// `GSO_TCPV4` or `GSO_TCPV6`.
    pub kind: u8,
    /// Bytes of all headers, Ethernet's included.
    pub header_length: u16,
    /// Bytes of payload a segment.
    pub segment_size: u16,
    /// Offset of the TCP header in the Ethernet frame.
    pub transport: u16,
    /// Offset of the checksum in the TCP header.
    pub checksum: u16,
}

/// Write the header of a frame that is to be segmented; its fields are little-endian.
pub fn write_segmentation(header: &mut [u8], how: &Segmentation) {
    header[0] = F_NEEDS_CSUM;
    header[1] = how.kind;
    header[2..4].copy_from_slice(&how.header_length.to_le_bytes());
    header[4..6].copy_from_slice(&how.segment_size.to_le_bytes());
    header[6..8].copy_from_slice(&how.transport.to_le_bytes());
    header[8..10].copy_from_slice(&how.checksum.to_le_bytes());
}

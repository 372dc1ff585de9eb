//! The Internet checksum.
//!
//! Reference: RFC 1071 "Computing the Internet Checksum"; RFC 8200 §8.1 "Upper-Layer Checksums".

use std::net::IpAddr;

/// Ones' complement sum of big-endian 16-bit words, not yet folded; an odd last byte is padded with zero.
///
/// Only the last of several summed slices may have an odd length.
pub fn sum(bytes: &[u8]) -> u64 {
    let mut total = 0u64;
    let mut words = bytes.chunks_exact(4);
    for word in &mut words {
        total += u64::from(u32::from_be_bytes([word[0], word[1], word[2], word[3]]));
    }
    let rest = words.remainder();
    let mut last = [0u8; 4];
    last[..rest.len()].copy_from_slice(rest);
    total + u64::from(u32::from_be_bytes(last))
}

/// Sum of the pseudo-header that TCP, UDP and ICMPv6 include.
pub fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> u64 {
    address_sum(source) + address_sum(destination) + u64::from(protocol) + length as u64
}

fn address_sum(address: IpAddr) -> u64 {
    match address {
        IpAddr::V4(v4) => sum(&v4.octets()),
        IpAddr::V6(v6) => sum(&v6.octets()),
    }
}

/// Fold to 16 bits without complementing: what a device that completes a checksum starts from.
pub fn fold(mut total: u64) -> u16 {
    while total > 0xFFFF {
        total = (total & 0xFFFF) + (total >> 16);
    }
    total as u16
}

/// The checksum of what was summed.
pub fn finish(total: u64) -> u16 {
    !fold(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc1071_section_3_example() {
        let words = [0x00, 0x01, 0xF2, 0x03, 0xF4, 0xF5, 0xF6, 0xF7];
        assert_eq!(fold(sum(&words)), 0xDDF2);
        assert_eq!(finish(sum(&words)), 0x220D);
    }

    #[test]
    fn an_odd_byte_counts_as_the_high_half() {
        assert_eq!(fold(sum(&[0x12])), 0x1200);
        assert_eq!(fold(sum(&[1, 2, 3, 4, 5])), 0x0102 + 0x0304 + 0x0500);
    }
}

//! Finding zeroes in data.

use std::ops::Range;

const STRIDE: usize = 128;

/// Whether all bytes are zero.
pub fn is_zero(data: &[u8]) -> bool {
    // Data that is not zero mostly shows it at once; the rest goes by in strides that become vectors.
    let chunks = data.chunks_exact(STRIDE);
    let rest = chunks.remainder();
    chunks.into_iter().all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
        && rest.iter().all(|&byte| byte == 0)
}

/// Ranges of the disk that are not zero, as whole blocks of `granularity` bytes, neighbours merged.
///
/// `data` is what the disk holds from `offset` on; its first and last block may be cut.
pub fn nonzero_runs(data: &[u8], offset: u64, granularity: u64) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    let (mut at, end) = (offset, offset + data.len() as u64);
    while at < end {
        let next = (at - at % granularity).saturating_add(granularity).min(end);
        if !is_zero(&data[(at - offset) as usize..(next - offset) as usize]) {
            match runs.last_mut() {
                Some(last) if last.end == at => last.end = next,
                _ => runs.push(at..next),
            }
        }
        at = next;
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_anywhere_is_seen() {
        for size in [1, 127, 128, 129, 4096] {
            let mut data = vec![0; size];
            assert!(is_zero(&data));
            for at in [0, size / 2, size - 1] {
                data[at] = 0x80;
                assert!(!is_zero(&data));
                data[at] = 0;
            }
        }
        assert!(is_zero(&[]));
    }

    #[test]
    fn runs_are_of_the_disks_blocks() {
        let mut data = vec![0; 3 * 4096];
        data[0] = 1;
        data[1024] = 1;
        data[3 * 4096 - 1] = 1;
        assert_eq!(nonzero_runs(&data, 512, 4096), [512..4096, 3 * 4096..3 * 4096 + 512]);
        assert_eq!(nonzero_runs(&data[..1], 512, 4096).first(), Some(&(512..513)));
        assert!(nonzero_runs(&data[2048..4096], 512, 512).is_empty());
    }
}

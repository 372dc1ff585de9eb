//! Which large pages something was cached of.

use super::walk::Walk;

/// Log2 of the size of the smallest pages.
const PAGE_BITS: u32 = 12;
/// Log2 of the sizes that large pages have.
const LARGE_PAGE_BITS: [u32; 3] = [21, 22, 30];
/// Words of a set of large pages.
const LARGE_WORDS: usize = 1024;

/// Hashes of large pages. An entry here stands for 4 KiB only, but INVLPG for any address in a
/// large page ends all that was cached of it (Intel SDM vol. 3A §4.10.4.1).
#[derive(Debug)]
pub(super) struct LargePages {
    words: Box<[u64; LARGE_WORDS]>,
    empty: bool,
}

impl Default for LargePages {
    fn default() -> Self {
        Self { words: Box::new([0; LARGE_WORDS]), empty: true }
    }
}

impl LargePages {
    fn place(la: u64, bits: u32) -> (usize, u64) {
        let key = (la >> bits) << 6 | u64::from(bits);
        let hash = key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48;
        ((hash / 64) as usize, 1 << (hash % 64))
    }

    /// Note the page of a walk, if it is large.
    pub(super) fn note(&mut self, la: u64, walk: &Walk) {
        let bits = u32::from(walk.page_bits);
        if bits > PAGE_BITS {
            let (word, bit) = Self::place(la, bits);
            self.words[word] |= bit;
            self.empty = false;
        }
    }

    /// Log2 of the size of the largest page around `la` that may have been noted.
    pub(super) fn find(&self, la: u64) -> Option<u32> {
        let noted = |bits: u32| {
            let (word, bit) = Self::place(la, bits);
            self.words[word] & bit != 0
        };
        LARGE_PAGE_BITS.into_iter().rev().find(|&bits| !self.empty && noted(bits))
    }

    pub(super) fn clear(&mut self) {
        if !self.empty {
            *self = Self::default();
        }
    }
}

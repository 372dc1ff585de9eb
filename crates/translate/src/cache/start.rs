//! What a block is found by.

use crate::mode::Mode;

/// [`Start::rip_page`] of code that may lie at any linear address.
pub const ANYWHERE: u64 = u64::MAX;

/// Where a block begins, and what its translation assumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Start {
    /// Guest-physical address of the first byte.
    pub gpa: u64,
    /// RIP of the first byte of its page, of a translation that holds for this one only; or [`ANYWHERE`].
    pub rip_page: u64,
    /// The state of the processor.
    pub mode: Mode,
}

impl Start {
    /// The start of a block at `gpa` that may lie at any linear address.
    pub fn anywhere(gpa: u64, mode: Mode) -> Self {
        Self { gpa, rip_page: ANYWHERE, mode }
    }

    /// RIP of the page's first byte, if the translation may build on it.
    pub fn placed(self) -> Option<u64> {
        (self.rip_page != ANYWHERE).then_some(self.rip_page)
    }

    /// Offset of the first byte in its page.
    pub fn page_offset(self) -> usize {
        (self.gpa & 0xfff) as usize
    }

    /// Whether a block there and this one lie in the same page at the same RIP, in so far as they depend on it.
    pub fn shares_page_with(self, other: Self) -> bool {
        self.gpa & !0xfff == other.gpa & !0xfff && self.rip_page == other.rip_page
    }
}

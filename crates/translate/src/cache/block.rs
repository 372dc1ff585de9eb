//! What is kept of each block and link: small, for there are hundreds of thousands.

use super::{Location, Start};
use crate::frontend::MAX_INSTRUCTION_BYTES;
use crate::mode::Mode;

/// A block's number; valid until the cache is cleared (see [`super::CodeCache::epoch`]).
pub type BlockId = u32;

/// No block, no link, no place.
pub(super) const NONE: u32 = u32::MAX;

/// A patchable direct branch from one block to another. Places are offsets in code memory.
#[derive(Debug, Clone, Copy)]
pub struct Link {
    /// The block that holds it.
    pub(super) from: BlockId,
    /// Where it goes now, or `NONE`.
    pub(super) to: BlockId,
    /// Of the 32-bit displacement.
    pub(super) patch: u32,
    /// Where the branch goes while unlinked.
    pub(super) unlinked: u32,
    /// Of the generation that the link is good for, for a link to another page; or `NONE`.
    pub(super) guard: u32,
    /// Another link that goes where this one goes, or `NONE`.
    pub(super) next_incoming: u32,
    /// RIP of the target less RIP of the page's start.
    pub delta: i64,
}

/// A translated run of guest instructions. Places are offsets in code memory.
#[derive(Debug)]
pub struct Block {
    /// Guest-physical address of the first byte.
    pub gpa: u64,
    /// Or `ANYWHERE`, see [`Start::rip_page`].
    pub(super) rip_page: u64,
    /// Or `NO_PAGE`, see [`Self::second_page`].
    pub(super) second_page: u64,
    /// What the translation assumes.
    pub mode: Mode,
    /// Of its code.
    pub(super) host_offset: u32,
    /// Bytes of it.
    pub(super) host_length: u32,
    /// Of the part that seldom runs.
    pub(super) cold_offset: u32,
    /// Number of the first of its locations; they end where the next block's begin.
    pub(super) first_location: u32,
    /// A link that leads here, or `NONE`.
    pub(super) first_incoming: u32,
    /// Guest bytes on the first page.
    pub guest_length: u16,
    /// Where direct links enter, from the block's start.
    pub(super) link_entry: u16,
    /// Still to be entered.
    pub alive: bool,
    /// How often a shared check failed for want of one page that holds its range.
    pub(super) blamed: u8,
}

const NO_PAGE: u64 = u64::MAX;

impl Block {
    /// A live block that nothing leads to, its places not known yet.
    pub(super) fn new(start: Start, second_page: Option<u64>) -> Self {
        let Start { gpa, rip_page, mode } = start;
        Self {
            gpa,
            rip_page,
            second_page: second_page.unwrap_or(NO_PAGE),
            mode,
            host_offset: 0,
            host_length: 0,
            cold_offset: 0,
            first_location: 0,
            first_incoming: NONE,
            guest_length: 0,
            link_entry: 0,
            alive: true,
            blamed: 0,
        }
    }

    /// What it is found by.
    pub fn start(&self) -> Start {
        Start { gpa: self.gpa, rip_page: self.rip_page, mode: self.mode }
    }

    /// Page-aligned guest-physical address of the second page, for an instruction that straddles two.
    pub fn second_page(&self) -> Option<u64> {
        (self.second_page != NO_PAGE).then_some(self.second_page)
    }

    /// The bytes of `page` that it was made of, as its first page and as its second; maybe more of the latter.
    pub(super) fn ranges_in(&self, page: u64) -> [(usize, usize); 2] {
        let from = (self.gpa & 0xfff) as usize;
        let first = (from, from + usize::from(self.guest_length));
        let is_first = self.gpa & !0xfff == page;
        let is_second = self.second_page() == Some(page);
        [if is_first { first } else { (0, 0) }, if is_second { (0, MAX_INSTRUCTION_BYTES) } else { (0, 0) }]
    }
}

/// A [`Location`] in 32 bits: the host's offset above that in the guest's page.
#[derive(Debug, Clone, Copy)]
pub(super) struct PackedLocation(u32);

const PAGE_OFFSET_BITS: u32 = 13;
/// Host code of a block, both parts, is shorter than this.
pub(super) const MAX_HOST_LENGTH: usize = 1 << (u32::BITS - PAGE_OFFSET_BITS);

impl PackedLocation {
    /// `location.host_offset` is below `MAX_HOST_LENGTH`, the other at most a page and an instruction.
    pub(super) fn new(location: Location) -> Self {
        Self(location.host_offset << PAGE_OFFSET_BITS | u32::from(location.page_offset))
    }

    pub(super) fn host_offset(self) -> u32 {
        self.0 >> PAGE_OFFSET_BITS
    }

    pub(super) fn page_offset(self) -> u16 {
        (self.0 & ((1 << PAGE_OFFSET_BITS) - 1)) as u16
    }
}

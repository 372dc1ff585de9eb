//! Address spaces: what is cached of the guest's mappings that are not global, and kept while another
//! address space is current.
//!
//! With CR4.PCIDE, a load of CR3 makes another process-context identifier (PCID) current, and what was cached
//! under the one before may be used again once that is current again, until software invalidates it (Intel SDM
//! vol. 3A §4.10.1 "Process-Context Identifiers", §4.10.4.1 "Operations that Invalidate TLBs and
//! Paging-Structure Caches"). Without, there is one address space, of PCID 0.

use super::filled::FilledEntry;
use super::large_pages::LargePages;
use crate::mode::Mode;
use crate::state::JumpEntry;

/// Address spaces that are kept beside the current one. Linux uses six PCIDs.
pub(super) const MAX_KEPT: usize = 7;
/// Data TLB entries, and entries of a jump cache, that are kept of one: bringing back more takes longer than
/// it saves.
pub(super) const MAX_ENTRIES: usize = 1024;
/// Entries of an instruction TLB.
pub(super) const CODE_ENTRIES: usize = 256;
/// Words of a set of code pages: 131072 hashes, so that a large program's thousands leave most of them clear.
pub(super) const CODE_PAGE_WORDS: usize = 2048;
/// The jump caches that hold code of programs.
pub(super) const USER_JUMPS: [usize; 2] = [0, 3];

/// Names the mappings of an address space for as long as what is cached of them holds.
///
/// It is another one after everything that is not global has been dropped, and the same again when the address
/// space becomes current again. No two are ever equal. Single pages may have been dropped under the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SpaceId(pub(super) u64);

/// Linear page (with the privilege in bit 0) and guest-physical page of recent code.
pub(super) type CodeTlb = [(u64, u64); CODE_ENTRIES];
/// Hashes of the pages that code was fetched from.
pub(super) type CodePages = [u64; CODE_PAGE_WORDS];

/// An entry that stands for nothing.
pub(super) const NO_CODE: (u64, u64) = (u64::MAX, 0);

/// One address space.
#[derive(Debug)]
pub(super) struct AddressSpace {
    pub pcid: u16,
    pub id: SpaceId,
    /// The number that links across pages of its programs' code carry; 0 if it has none yet.
    pub generation: u32,
    /// Of programs' code.
    pub code: Box<CodeTlb>,
    /// Of programs' code, since its jump-cache entries were dropped.
    pub code_pages: Box<CodePages>,
    /// Large pages that data TLB entries were filled from.
    pub large_data: LargePages,
    /// While another one is current: the entries of the data TLBs.
    pub entries: Vec<FilledEntry>,
    /// While another one is current: the entries of [`USER_JUMPS`].
    pub jumps: [Vec<(u16, JumpEntry)>; 2],
    /// The mode that entries of the first of them are of.
    pub jump_mode: Option<Mode>,
}

impl AddressSpace {
    pub(super) fn new(pcid: u16, id: SpaceId) -> Self {
        Self {
            pcid,
            id,
            generation: 0,
            code: Box::new([NO_CODE; CODE_ENTRIES]),
            code_pages: Box::new([0; CODE_PAGE_WORDS]),
            large_data: LargePages::default(),
            entries: Vec::new(),
            jumps: Default::default(),
            jump_mode: None,
        }
    }

    /// Nothing is known of its code any more.
    pub(super) fn forget_code(&mut self) {
        self.generation = 0;
        self.code.fill(NO_CODE);
        self.code_pages.fill(0);
        self.jumps.iter_mut().for_each(Vec::clear);
        self.jump_mode = None;
    }

    /// Nothing is known of it any more: from now on it is `id`.
    pub(super) fn forget(&mut self, id: SpaceId) {
        self.id = id;
        self.large_data.clear();
        self.entries.clear();
        self.forget_code();
    }

    /// Stores to a host page must be seen.
    pub(super) fn protect_host_page(&mut self, host_page: u64) {
        self.entries.retain(|entry| !(entry.writes() && entry.host_page() == host_page));
    }

    /// The same for all pages.
    pub(super) fn protect_all(&mut self) {
        self.entries.retain(|entry| !entry.writes());
    }
}

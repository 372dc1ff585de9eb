//! One memslot: where a piece of RAM shows, and what is known of its pages.

use crate::{MemoryError, RamBlock, PAGE_SIZE, SMM_SPACE};
use std::sync::atomic::AtomicU64;
use std::sync::Arc;

/// A slot to be; see [`crate::GuestMemory::change_memslots`].
#[derive(Debug, Clone)]
pub struct NewMemslot {
    /// Slot number; a slot that has it is replaced.
    pub slot: u32,
    /// First guest-physical address, page-aligned; may be one of [`SMM_SPACE`].
    pub gpa: u64,
    /// Bytes; a multiple of the page size, not 0.
    pub size: u64,
    /// What shows there,
    pub ram: Arc<RamBlock>,
    /// and from which byte on.
    pub ram_offset: u64,
    /// Guest stores leave as MMIO.
    pub readonly: bool,
    /// The dirty log is on.
    pub log_dirty: bool,
}

impl NewMemslot {
    /// Whether it can be beside `others`.
    pub(crate) fn check(&self, others: &[Arc<Memslot>]) -> Result<(), MemoryError> {
        let Self { slot, gpa, size, ram_offset, .. } = *self;
        let bad = |text: String| Err(MemoryError::BadSlot(text));
        if size == 0 || (gpa | size | ram_offset) % PAGE_SIZE != 0 {
            return bad(format!("memslot {slot}: address, size and offset must be multiples of 4096"));
        }
        if (gpa & !SMM_SPACE).checked_add(size).is_none_or(|end| end > SMM_SPACE) {
            return bad(format!("memslot {slot}: ends above 2^52"));
        }
        if ram_offset.checked_add(size).is_none_or(|end| end > self.ram.size()) {
            return bad(format!("memslot {slot}: lies outside its RAM block"));
        }
        match others.iter().find(|other| gpa < other.gpa + other.size && other.gpa < gpa + size) {
            Some(other) => bad(format!("memslot {slot}: overlaps memslot {}", other.slot)),
            None => Ok(()),
        }
    }

    pub(crate) fn into_memslot(self, serial: u64) -> Memslot {
        let Self { slot, gpa, size, ram, ram_offset, readonly, log_dirty } = self;
        let words = (size / PAGE_SIZE).div_ceil(64) as usize;
        let dirty = (0..words).map(|_| AtomicU64::new(0)).collect();
        Memslot { slot, gpa, size, readonly, log_dirty, ram, ram_offset, dirty, serial }
    }
}

/// A run of guest-physical addresses backed by RAM.
#[derive(Debug)]
pub struct Memslot {
    /// Slot number, chosen by the machine.
    pub slot: u32,
    /// First guest-physical address; page-aligned.
    pub gpa: u64,
    /// Bytes; a multiple of the page size.
    pub size: u64,
    /// Guest stores leave as MMIO.
    pub readonly: bool,
    /// The dirty log is on.
    pub log_dirty: bool,
    pub(crate) ram: Arc<RamBlock>,
    pub(crate) ram_offset: u64,
    pub(crate) dirty: Box<[AtomicU64]>,
    /// Unlike that of any slot of this memory before.
    pub(crate) serial: u64,
}

impl Memslot {
    /// Host address of the slot's first byte.
    pub fn host_base(&self) -> *mut u8 {
        // SAFETY: `NewMemslot::check` made sure that the offset lies inside the block.
        unsafe { self.ram.base().add(self.ram_offset as usize) }
    }

    pub(crate) fn bit(&self, gpa: u64) -> (usize, u64) {
        let page = (gpa - self.gpa) / PAGE_SIZE;
        ((page / 64) as usize, 1 << (page % 64))
    }

    /// See [`GuestMemory::mark_code_page`]; they belong to the page of RAM, whatever slots show it.
    pub(crate) fn code_marks(&self, gpa: u64) -> &AtomicU64 {
        self.ram.code_marks(self.ram_offset + (gpa - self.gpa))
    }

    /// The address here of a byte of `ram`, if the slot shows it.
    pub(crate) fn address_of(&self, ram: &Arc<RamBlock>, offset: u64) -> Option<u64> {
        let here = offset.wrapping_sub(self.ram_offset);
        (Arc::ptr_eq(ram, &self.ram) && here < self.size).then(|| self.gpa + here)
    }

    pub(crate) fn contains(&self, gpa: u64) -> bool {
        gpa.wrapping_sub(self.gpa) < self.size
    }
}

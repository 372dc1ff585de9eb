//! Memslots, and every access to guest memory by guest-physical address.

use crate::memslot::{Memslot, NewMemslot};
use crate::{CodeMark, RamBlock, PAGE_SIZE, SMM_SPACE};
use arc_swap::ArcSwap;
use std::sync::atomic::{fence, AtomicBool, AtomicU16, AtomicU32, AtomicU64, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// An access that no memslot covers, or a slot that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemoryError {
    /// `gpa .. gpa + size` is not all RAM.
    OutOfRange {
        /// First byte asked for.
        gpa: u64,
        /// Bytes asked for.
        size: u64,
    },
    /// The slot overlaps another, is unaligned, or lies outside its RAM block.
    BadSlot(String),
}

impl std::fmt::Display for MemoryError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::OutOfRange { gpa, size } => {
                write!(f, "guest memory {gpa:#x}..{:#x} is not RAM", gpa.wrapping_add(*size))
            }
            Self::BadSlot(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for MemoryError {}

/// Told of stores to pages marked by [`GuestMemory::mark_code_page`].
pub trait CodeWatcher: Send + Sync {
    /// `gpa .. gpa + size`, within one page, has changed; the vCPUs whose bits are set in `vcpus`
    /// hold code of that page. Called once for each address that the page has.
    fn code_written(&self, gpa: u64, size: u64, vcpus: u64);
}

/// What the MMU needs to know of the page that holds a guest-physical address.
#[derive(Debug, Clone, Copy)]
pub struct HostPage {
    /// Host address of the page's first byte.
    pub host: *mut u8,
    /// Stores must leave as MMIO.
    pub readonly: bool,
    /// The page's dirty bit is logged and still clear: the first store must be seen.
    pub log_dirty: bool,
    /// The page holds translated code: each store must be seen.
    pub code: bool,
    /// Tells the slot from all others that there have been, those with the same number and RAM among them.
    pub slot: u64,
}

impl HostPage {
    /// Stores may be made by its host address: neither do they change code nor are they refused.
    pub fn takes_stores(&self) -> bool {
        !(self.code || self.readonly)
    }
}

/// Where the bytes from a guest-physical address on are in the file behind their slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FilePart {
    /// The `memfd`; open while the slot exists.
    pub fd: i32,
    /// Offset in it.
    pub offset: u64,
    /// Bytes to the slot's end.
    pub size: u64,
}

/// All RAM of one virtual machine, by guest-physical address.
#[derive(Default)]
pub struct GuestMemory {
    slots: ArcSwap<Vec<Arc<Memslot>>>,
    changing: Mutex<()>,
    generation: AtomicU64,
    /// Slots made so far.
    made: AtomicU64,
    watcher: OnceLock<Arc<dyn CodeWatcher>>,
    /// Bits of addresses that are forced to zero: bit 20 while the A20 gate is closed.
    grounded: AtomicU64,
    /// All processors find the memory of system-management mode.
    smm_open: AtomicBool,
}

impl std::fmt::Debug for GuestMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuestMemory").field("slots", &self.slots()).finish_non_exhaustive()
    }
}

impl GuestMemory {
    /// Memory with no slots.
    pub fn new() -> Self {
        Self::default()
    }

    /// Open or close the A20 gate, which address bit 20 of the processors passes; open at first. The
    /// engine applies it to vCPUs' accesses with [`Self::wired`]; devices are not behind it.
    pub fn set_a20(&self, open: bool) {
        self.grounded.store(if open { 0 } else { 1 << 20 }, Ordering::Release);
    }

    /// The address that comes out of the gate for an address of a processor.
    #[inline]
    pub fn wired(&self, gpa: u64) -> u64 {
        let at = gpa & !self.grounded.load(Ordering::Relaxed);
        if self.smm_open.load(Ordering::Relaxed) {
            return self.view().wired_in_smm(at);
        }
        at
    }

    /// Let all processors find the memory of system-management mode, as firmware wants it to put code there;
    /// hidden from them at first. Devices never do.
    pub fn set_smm_open(&self, open: bool) {
        self.smm_open.store(open, Ordering::Release);
    }

    /// As [`Self::wired`], for a processor in system-management mode: where memory of that mode answers,
    /// the address is that memory's.
    pub fn wired_in_smm(&self, gpa: u64) -> u64 {
        self.view().wired_in_smm(self.wired(gpa))
    }

    /// Set who hears of device stores to code pages. The first call wins.
    pub fn set_code_watcher(&self, watcher: Arc<dyn CodeWatcher>) {
        let _ = self.watcher.set(watcher);
    }

    /// Changes whenever a slot is added, changed or removed.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The slots, in order of address.
    pub fn slots(&self) -> Arc<Vec<Arc<Memslot>>> {
        self.slots.load_full()
    }

    /// Add a slot, or replace the one with this number. Its address may be one of [`SMM_SPACE`].
    ///
    /// # Errors
    /// [`MemoryError::BadSlot`] naming what is wrong.
    #[allow(clippy::too_many_arguments)]
    pub fn set_memslot(
        &self,
        slot: u32,
        gpa: u64,
        size: u64,
        ram: Arc<RamBlock>,
        ram_offset: u64,
        readonly: bool,
        log_dirty: bool,
    ) -> Result<(), MemoryError> {
        let new = NewMemslot { slot, gpa, size, ram, ram_offset, readonly, log_dirty };
        self.change_memslots(&[], vec![new])
    }

    /// Remove a slot; unknown numbers are ignored.
    pub fn remove_memslot(&self, slot: u32) {
        // Removing nothing that is not there cannot fail.
        let _ = self.change_memslots(&[slot], Vec::new());
    }

    /// Remove slots and add others, or replace those with the same numbers, all at one moment: whoever looks
    /// finds either the slots of before or those of after. Numbers in `gone` that are unknown are ignored.
    ///
    /// # Errors
    /// [`MemoryError::BadSlot`] naming what is wrong with one of them; nothing has changed then.
    pub fn change_memslots(&self, gone: &[u32], new: Vec<NewMemslot>) -> Result<(), MemoryError> {
        let _one_at_a_time = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut slots = self.slots.load().as_ref().clone();
        slots.retain(|slot| !gone.contains(&slot.slot) && new.iter().all(|new| new.slot != slot.slot));
        for new in new {
            new.check(&slots)?;
            slots.push(Arc::new(new.into_memslot(self.made.fetch_add(1, Ordering::Relaxed))));
        }
        slots.sort_by_key(|slot| slot.gpa);
        self.slots.store(Arc::new(slots));
        self.generation.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    /// The host page that holds `gpa`, for an MMU that will keep the address.
    #[inline]
    pub fn host_page(&self, gpa: u64) -> Option<HostPage> {
        let view = self.view();
        let slot = view.find(gpa)?;
        let (word, bit) = slot.bit(gpa);
        let offset = (gpa - slot.gpa) & !(PAGE_SIZE - 1);
        Some(HostPage {
            // SAFETY: `offset` is less than the slot's size.
            host: unsafe { slot.host_base().add(offset as usize) },
            readonly: slot.readonly,
            log_dirty: slot.log_dirty && slot.dirty[word].load(Ordering::Relaxed) & bit == 0,
            code: slot.code_marks(gpa).load(Ordering::SeqCst) != 0,
            slot: slot.serial,
        })
    }

    /// Mark the page of `gpa` dirty in the log.
    pub fn mark_dirty(&self, gpa: u64) {
        if let Some(slot) = self.view().find(gpa) {
            let (word, bit) = slot.bit(gpa);
            slot.dirty[word].fetch_or(bit, Ordering::Relaxed);
        }
    }

    /// Take and clear the dirty bitmap of a slot; `None` when there is no such slot.
    pub fn take_dirty(&self, slot: u32) -> Option<Vec<u64>> {
        let slots = self.slots();
        let slot = slots.iter().find(|other| other.slot == slot)?;
        Some(slot.dirty.iter().map(|word| word.swap(0, Ordering::AcqRel)).collect())
    }

    /// Note that vCPU `vcpu` (0 to 63) holds code translated from the page of `gpa`, until the mark is
    /// dropped. Also returns the marks of before, a bit for each vCPU; `None` where there is no RAM.
    ///
    /// A vCPU has one mark of a page at most, whatever addresses the page has.
    pub fn mark_code_page(&self, gpa: u64, vcpu: u32) -> Option<(CodeMark, u64)> {
        let view = self.view();
        let slot = view.find(gpa)?;
        Some(CodeMark::new(slot.ram.clone(), slot.ram_offset + (gpa - slot.gpa), vcpu))
    }

    /// Every address under which the slots show the byte at `gpa`, `gpa` among them.
    pub fn aliases(&self, gpa: u64) -> Vec<u64> {
        let view = self.view();
        let Some(slot) = view.find(gpa) else { return vec![gpa] };
        let offset = slot.ram_offset + (gpa - slot.gpa);
        view.0.iter().filter_map(|other| other.address_of(&slot.ram, offset)).collect()
    }

    /// Copy out of guest memory.
    ///
    /// # Errors
    /// [`MemoryError::OutOfRange`]; nothing is then promised of `data`.
    pub fn read(&self, gpa: u64, data: &mut [u8]) -> Result<(), MemoryError> {
        self.view().read(gpa, data)
    }

    /// A guest's store of at most a page's rest: marks the page dirty and reports code. Aligned
    /// integers are stored atomically.
    ///
    /// Returns false, and writes nothing, where there is no RAM that takes stores.
    #[inline]
    pub fn store(&self, gpa: u64, data: &[u8]) -> bool {
        let size = data.len() as u64;
        let view = self.view();
        let Some(slot) = view.find(gpa).filter(|slot| !slot.readonly && size <= slot.size - (gpa - slot.gpa))
        else {
            return false;
        };
        // SAFETY: the filter keeps the store inside the slot, whose memory lives as long as it;
        // the atomic stores are aligned, because slots are.
        unsafe {
            let target = slot.host_base().add((gpa - slot.gpa) as usize);
            match data.try_into().map(u64::from_le_bytes) {
                Ok(value) if gpa % 8 == 0 => {
                    AtomicU64::from_ptr(target.cast()).store(value, Ordering::Release)
                }
                _ => match data.try_into().map(u32::from_le_bytes) {
                    Ok(value) if gpa % 4 == 0 => {
                        AtomicU32::from_ptr(target.cast()).store(value, Ordering::Release);
                    }
                    _ => store_small(target, data),
                },
            }
        }
        self.note_write(slot, gpa - slot.gpa, size);
        true
    }

    /// Copy into guest memory (a device's DMA): marks pages dirty and reports code pages.
    /// Read-only slots are written too: this is how firmware gets there.
    ///
    /// # Errors
    /// [`MemoryError::OutOfRange`]; nothing is then written past the last covered byte.
    pub fn write(&self, gpa: u64, data: &[u8]) -> Result<(), MemoryError> {
        self.pieces(gpa, data.len() as u64, |slot, offset, done, size| {
            // SAFETY: `pieces` keeps `offset + size` inside the slot and `done + size` inside `data`.
            unsafe {
                let target = slot.host_base().add(offset as usize);
                std::ptr::copy_nonoverlapping(data.as_ptr().add(done), target, size);
            }
            // A device answers no requests: the store comes before the look at the marks, or the vCPU
            // that marks the page meanwhile would neither read it nor hear of it.
            fence(Ordering::SeqCst);
            self.note_write(slot, offset, size as u64);
        })
    }

    /// A guest's copy of `size` bytes, all in one slot each, as `memmove` does it: marks pages dirty
    /// and reports code.
    ///
    /// Returns false, and writes nothing, where there is no RAM or none that takes stores.
    pub fn copy(&self, source: u64, target: u64, size: u64) -> bool {
        let view = self.view();
        let holds = |slot: &&Memslot, gpa: u64| size <= slot.size - (gpa - slot.gpa);
        let from = view.find(source).filter(|slot| holds(slot, source));
        let to = view.find(target).filter(|slot| !slot.readonly && holds(slot, target));
        let (Some(from), Some(to)) = (from, to) else { return false };
        // SAFETY: the filters keep both ranges inside their slots, which the view keeps alive.
        unsafe {
            let source = from.host_base().add((source - from.gpa) as usize);
            let target = to.host_base().add((target - to.gpa) as usize);
            std::ptr::copy(source, target, size as usize);
        }
        self.note_write(to, target - to.gpa, size);
        true
    }

    /// As [`Self::copy`], with `size` times the same byte.
    pub fn fill(&self, target: u64, size: u64, byte: u8) -> bool {
        let view = self.view();
        let takes = |slot: &&Memslot| !slot.readonly && size <= slot.size - (target - slot.gpa);
        let Some(slot) = view.find(target).filter(takes) else { return false };
        // SAFETY: the filter keeps the range inside the slot, which the view keeps alive.
        unsafe {
            std::ptr::write_bytes(slot.host_base().add((target - slot.gpa) as usize), byte, size as usize)
        };
        self.note_write(slot, target - slot.gpa, size);
        true
    }

    /// Called after the store, so that nothing derived from the old bytes stays: a translation made
    /// in between is reported stale.
    fn note_write(&self, slot: &Memslot, offset: u64, size: u64) {
        let mut at = offset;
        while at < offset + size {
            let next = ((at / PAGE_SIZE) + 1) * PAGE_SIZE;
            let piece = next.min(offset + size) - at;
            if slot.log_dirty {
                let (word, bit) = slot.bit(slot.gpa + at);
                slot.dirty[word].fetch_or(bit, Ordering::Relaxed);
            }
            let marks = slot.code_marks(slot.gpa + at);
            if marks.load(Ordering::Relaxed) != 0 {
                // Whoever adds a mark after this look reads the new bytes.
                fence(Ordering::SeqCst);
                self.report_code(slot, at, piece, marks.load(Ordering::SeqCst));
            }
            at += piece;
        }
    }

    /// Report a store to a page with code under each address that the page has.
    #[cold]
    fn report_code(&self, slot: &Memslot, offset: u64, size: u64, vcpus: u64) {
        let Some(watcher) = self.watcher.get() else { return };
        let view = self.view();
        for gpa in view.0.iter().filter_map(|other| other.address_of(&slot.ram, slot.ram_offset + offset)) {
            watcher.code_written(gpa, size, vcpus);
        }
    }

    /// A guest's store of `size` bytes at `gpa`, within one page, has been made through the host's
    /// address: mark it dirty and report code.
    pub fn stored(&self, gpa: u64, size: u64) {
        let view = self.view();
        if let Some(slot) = view.find(gpa) {
            self.note_write(slot, gpa - slot.gpa, size);
        }
    }

    /// A device has stored to `gpa .. gpa + size`, at the addresses of [`MemoryView::host_pieces`]: mark
    /// it dirty and report code.
    pub fn written(&self, view: &MemoryView, gpa: u64, size: u64) {
        // As in `write`: the stores come before the look at the marks.
        fence(Ordering::SeqCst);
        let note = |slot: &Memslot, offset, _, size: usize| self.note_write(slot, offset, size as u64);
        // Where there is no RAM, nothing was stored.
        let _ = view.pieces(gpa, size, note);
    }

    fn pieces(
        &self,
        gpa: u64,
        size: u64,
        each: impl FnMut(&Memslot, u64, usize, usize),
    ) -> Result<(), MemoryError> {
        self.view().pieces(gpa, size, each)
    }

    /// Host address of `size` bytes that lie in one slot, without marking anything.
    ///
    /// # Errors
    /// [`MemoryError::OutOfRange`].
    pub fn host_address(&self, gpa: u64, size: u64) -> Result<*mut u8, MemoryError> {
        let error = MemoryError::OutOfRange { gpa, size };
        let view = self.view();
        let slot = view.find(gpa).ok_or(error.clone())?;
        let offset = gpa - slot.gpa;
        if size > slot.size - offset {
            return Err(error);
        }
        // SAFETY: `offset` is inside the slot.
        Ok(unsafe { slot.host_base().add(offset as usize) })
    }

    /// The slots as they are now, for several reads in a row at the price of one.
    #[inline]
    pub fn view(&self) -> MemoryView {
        MemoryView(self.slots.load())
    }

    /// Atomically read an aligned integer; `None` outside RAM or unaligned.
    pub fn load_u64(&self, gpa: u64) -> Option<u64> {
        self.view().load_u64(gpa)
    }

    /// As [`Self::load_u64`], 4 bytes.
    pub fn load_u32(&self, gpa: u64) -> Option<u32> {
        self.view().load_u32(gpa)
    }

    /// As [`Self::load_u64`], 2 bytes.
    pub fn load_u16(&self, gpa: u64) -> Option<u16> {
        self.view().load_u16(gpa)
    }

    /// As [`Self::load_u64`], 1 byte.
    pub fn load_u8(&self, gpa: u64) -> Option<u8> {
        self.view().load_u8(gpa)
    }

    /// Atomically set bits of a page-table entry if it still is `old`; marks the page dirty.
    /// Returns whether it was. `None` outside RAM, unaligned or read-only.
    pub fn update_u64(&self, gpa: u64, old: u64, new: u64) -> Option<bool> {
        let at = self.aligned_for_update(gpa, 8)?;
        // SAFETY: as in `MemoryView::load_u64`.
        let cell = unsafe { AtomicU64::from_ptr(at.cast()) };
        let done = cell.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if let Some(slot) = self.view().find(gpa) {
            self.note_write(slot, gpa - slot.gpa, 8);
        }
        Some(done)
    }

    /// As [`Self::update_u64`], 4 bytes.
    pub fn update_u32(&self, gpa: u64, old: u32, new: u32) -> Option<bool> {
        let at = self.aligned_for_update(gpa, 4)?;
        // SAFETY: as in `MemoryView::load_u64`.
        let cell = unsafe { AtomicU32::from_ptr(at.cast()) };
        let done = cell.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if let Some(slot) = self.view().find(gpa) {
            self.note_write(slot, gpa - slot.gpa, 4);
        }
        Some(done)
    }

    /// Atomically set bits of a byte, and mark its page dirty. Returns the byte as it was; `None` outside RAM
    /// and where it is read-only.
    pub fn set_bits(&self, gpa: u64, bits: u8) -> Option<u8> {
        self.update_byte(gpa, |cell| cell.fetch_or(bits, Ordering::SeqCst))
    }

    /// As [`Self::set_bits`], but clear them.
    pub fn clear_bits(&self, gpa: u64, bits: u8) -> Option<u8> {
        self.update_byte(gpa, |cell| cell.fetch_and(!bits, Ordering::SeqCst))
    }

    fn update_byte(&self, gpa: u64, update: impl FnOnce(&AtomicU8) -> u8) -> Option<u8> {
        let at = self.aligned_for_update(gpa, 1)?;
        // SAFETY: as in `MemoryView::load_u64`.
        let before = update(unsafe { AtomicU8::from_ptr(at) });
        self.stored(gpa, 1);
        Some(before)
    }

    fn aligned(&self, gpa: u64, size: u64) -> Option<*mut u8> {
        if gpa % size != 0 {
            return None;
        }
        self.host_address(gpa, size).ok()
    }

    fn aligned_for_update(&self, gpa: u64, size: u64) -> Option<*mut u8> {
        self.view().find(gpa).filter(|slot| !slot.readonly)?;
        self.aligned(gpa, size)
    }
}

/// Store bytes, two at an even address in one go.
///
/// # Safety
/// `target` is good for stores of `data.len()` bytes.
unsafe fn store_small(target: *mut u8, data: &[u8]) {
    // SAFETY: as the caller promises; the address is even where it has to be.
    unsafe {
        match data.try_into().map(u16::from_le_bytes) {
            Ok(value) if target as usize % 2 == 0 => {
                AtomicU16::from_ptr(target.cast()).store(value, Ordering::Release);
            }
            _ => std::ptr::copy_nonoverlapping(data.as_ptr(), target, data.len()),
        }
    }
}

/// All RAM at one moment, see [`GuestMemory::view`].
pub struct MemoryView(arc_swap::Guard<Arc<Vec<Arc<Memslot>>>>);

impl MemoryView {
    /// The slot that covers `gpa`.
    #[inline]
    pub fn find(&self, gpa: u64) -> Option<&Memslot> {
        let after = self.0.partition_point(|slot| slot.gpa <= gpa);
        self.0[..after].last().filter(|slot| slot.contains(gpa)).map(AsRef::as_ref)
    }

    /// Where `gpa` is in the file behind its slot, for who maps it once more; `None` outside RAM.
    pub fn file_part(&self, gpa: u64) -> Option<FilePart> {
        let slot = self.find(gpa)?;
        let inside = gpa - slot.gpa;
        Some(FilePart { fd: slot.ram.fd(), offset: slot.ram_offset + inside, size: slot.size - inside })
    }

    /// Where a processor in system-management mode finds `gpa`.
    pub fn wired_in_smm(&self, gpa: u64) -> u64 {
        match self.find(gpa | SMM_SPACE) {
            Some(_) => gpa | SMM_SPACE,
            None => gpa,
        }
    }

    /// Call `each` with the slot, the offset in it, the bytes before and the bytes of every piece of
    /// `gpa .. gpa + size`.
    fn pieces(
        &self,
        gpa: u64,
        size: u64,
        mut each: impl FnMut(&Memslot, u64, usize, usize),
    ) -> Result<(), MemoryError> {
        let mut done = 0;
        while done < size {
            let at = gpa.wrapping_add(done);
            let slot = self.find(at).ok_or(MemoryError::OutOfRange { gpa, size })?;
            let offset = at - slot.gpa;
            let piece = (size - done).min(slot.size - offset);
            each(slot, offset, done as usize, piece as usize);
            done += piece;
        }
        Ok(())
    }

    /// Call `each` with the host's address and the bytes of every piece of `gpa .. gpa + size`. They are
    /// there as long as this view is. Who stores to them calls [`GuestMemory::written`] after.
    ///
    /// # Errors
    /// [`MemoryError::OutOfRange`]; pieces may have been given before.
    pub fn host_pieces(
        &self,
        gpa: u64,
        size: u64,
        mut each: impl FnMut(*mut u8, usize),
    ) -> Result<(), MemoryError> {
        self.pieces(gpa, size, |slot, offset, _, size| {
            // SAFETY: `pieces` keeps `offset` inside the slot.
            each(unsafe { slot.host_base().add(offset as usize) }, size);
        })
    }

    /// Copy out of guest memory.
    ///
    /// # Errors
    /// [`MemoryError::OutOfRange`]; nothing is then promised of `data`.
    pub fn read(&self, gpa: u64, data: &mut [u8]) -> Result<(), MemoryError> {
        let (mut at, mut rest) = (gpa, data);
        while !rest.is_empty() {
            let size = rest.len() as u64;
            let slot = self.find(at).ok_or(MemoryError::OutOfRange { gpa, size })?;
            let offset = at - slot.gpa;
            let (piece, after) = rest.split_at_mut(size.min(slot.size - offset) as usize);
            // SAFETY: `offset + piece` is inside the slot; the view keeps the slot and its memory.
            unsafe {
                let source = slot.host_base().add(offset as usize);
                std::ptr::copy_nonoverlapping(source, piece.as_mut_ptr(), piece.len());
            }
            at = at.wrapping_add(piece.len() as u64);
            rest = after;
        }
        Ok(())
    }

    /// Host address of `size` bytes at a multiple of `size`.
    #[inline]
    fn aligned(&self, gpa: u64, size: u64) -> Option<*mut u8> {
        let slot = self.find(gpa).filter(|_| gpa % size == 0)?;
        // SAFETY: the offset is less than the slot's size, and slots are made of whole pages.
        Some(unsafe { slot.host_base().add((gpa - slot.gpa) as usize) })
    }

    /// Atomically read an aligned integer; `None` outside RAM or unaligned.
    #[inline]
    pub fn load_u64(&self, gpa: u64) -> Option<u64> {
        let at = self.aligned(gpa, 8)?;
        // SAFETY: `aligned` checked range and alignment; the view keeps the slot and its memory.
        Some(unsafe { AtomicU64::from_ptr(at.cast()) }.load(Ordering::Acquire))
    }

    /// As [`Self::load_u64`], 4 bytes.
    #[inline]
    pub fn load_u32(&self, gpa: u64) -> Option<u32> {
        let at = self.aligned(gpa, 4)?;
        // SAFETY: as in `load_u64`.
        Some(unsafe { AtomicU32::from_ptr(at.cast()) }.load(Ordering::Acquire))
    }

    /// As [`Self::load_u64`], 2 bytes.
    #[inline]
    pub fn load_u16(&self, gpa: u64) -> Option<u16> {
        let at = self.aligned(gpa, 2)?;
        // SAFETY: as in `load_u64`.
        Some(unsafe { AtomicU16::from_ptr(at.cast()) }.load(Ordering::Acquire))
    }

    /// As [`Self::load_u64`], 1 byte.
    #[inline]
    pub fn load_u8(&self, gpa: u64) -> Option<u8> {
        let at = self.aligned(gpa, 1)?;
        // SAFETY: as in `load_u64`.
        Some(unsafe { AtomicU8::from_ptr(at) }.load(Ordering::Acquire))
    }
}

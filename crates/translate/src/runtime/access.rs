//! Memory accesses that the inline check refuses: TLB misses, page crossings, MMIO, stores to
//! pages that hold code.

use super::entry::resume;
use super::vcpu::VcpuCore;
use crate::cpu::{Exception, Stop};
use crate::emit::Descriptor;
use crate::mmu::walk::{is_canonical, Access, Kind, Walk};
use crate::optimisations::Optimisation;
use crate::state::{seg, BOUNCE_BYTES};
use crate::system::memory::{bus_size, AccessMode};
use std::sync::atomic::Ordering;
use std::sync::PoisonError;
use sublet_engine::Exit;

const MATH_FAULT: u8 = 16;

/// Bytes of one access on one page.
#[derive(Debug, Clone, Copy, Default)]
struct Piece {
    gpa: u64,
    size: usize,
    /// RAM that may be written directly; otherwise a device or read-only memory.
    ram: bool,
}

/// A part of a [`Piece`] that is accessed in one go.
#[derive(Debug, Clone, Copy)]
struct Run {
    gpa: u64,
    /// Offset of the first byte in the access.
    at: usize,
    size: usize,
    ram: bool,
}

/// The runs of bytes that `selected` (bit 0 for the first) picks from `pieces`.
fn runs(pieces: [Piece; 2], selected: u128) -> impl Iterator<Item = Run> {
    let mut at = 0;
    let mut end = 0;
    let mut pieces = pieces.into_iter();
    let mut piece = Piece::default();
    let mut start = 0;
    std::iter::from_fn(move || loop {
        while at == end {
            piece = pieces.next()?;
            (start, end) = (at, at + piece.size);
        }
        let skipped = ((selected >> at).trailing_zeros() as usize).min(end - at);
        let size = ((!(selected >> at) >> skipped).trailing_zeros() as usize).min(end - at - skipped);
        let run =
            Run { gpa: piece.gpa + (at + skipped - start) as u64, at: at + skipped, size, ram: piece.ram };
        at += skipped + size;
        if size > 0 {
            return Some(run);
        }
    })
}

const ALIGNMENT_CHECK: u8 = 17;

/// A store that waits in the bounce buffer for its commit.
#[derive(Debug, Clone, Copy, Default)]
pub struct PendingStore {
    pieces: [Piece; 2],
    /// Which bytes are stored, see [`Descriptor::selected`].
    selected: u128,
    stays: bool,
    /// The operation stores where the bytes belong, in the first piece; they are to be reported only.
    in_place: bool,
}

/// Entry from `sublet_slow_access`.
///
/// # Safety
/// Called only from there: `core` is the vCPU whose translated code is running.
pub unsafe extern "sysv64" fn slow_access(core: *mut VcpuCore, descriptor: u32, la: u64, pc: u64) -> u64 {
    // SAFETY: as the caller promises; the run loop holds no reference while translated code runs.
    let core = unsafe { &mut *core };
    core.guarded(|core| match core.resolve(Descriptor(descriptor), la, pc) {
        Ok(action) => action,
        Err(stop) => {
            core.stop_at(pc, stop);
            resume::LEAVE
        }
    })
}

/// Entry from `sublet_commit`.
///
/// # Safety
/// As for [`slow_access`].
pub unsafe extern "sysv64" fn commit(core: *mut VcpuCore, pc: u64) -> u64 {
    // SAFETY: as in `slow_access`.
    let core = unsafe { &mut *core };
    core.guarded(|core| core.commit_store(pc))
}

impl VcpuCore {
    fn resolve(&mut self, descriptor: Descriptor, la: u64, pc: u64) -> Result<u64, Stop> {
        self.counters.slow_accesses += 1;
        if let Some(segment) = descriptor.checked_segment() {
            return self.check_segment(descriptor, segment, la);
        }
        if descriptor.is_math() && x87_exception_pending() {
            return Err(Exception::new(MATH_FAULT).into());
        }
        let selected = descriptor.selected(&self.cpu.state.hot.opmask);
        if selected == 0 {
            return self.through_bounce(descriptor, la, [Piece::default(); 2], 0);
        }
        self.check_stack_limit(descriptor, la)?;
        self.check_address(descriptor, la, selected)?;
        let size = descriptor.size();
        if self.mode().checks_alignment() && la % descriptor.alignment() != 0 {
            return Err(Exception::with_code(ALIGNMENT_CHECK, 0).into());
        }
        let crosses = (la & 0xfff) + size > 4096;
        if descriptor.is_leader() && !self.range_in_page(la, size) {
            return self.unshare(pc);
        }
        if crosses {
            if descriptor.is_write() && descriptor.loads() && !self.is_alone_in_vm() {
                return self.leave_for_exclusive();
            }
            return self.resolve_crossing(descriptor, la, selected);
        }
        let walk = self.walk_for(la, descriptor.is_write())?;
        self.cpu.watch(la, size, descriptor.is_write());
        let page = self.cpu.memory.host_page(walk.gpa);
        let plain = page.is_some_and(|page| !descriptor.is_write() || page.takes_stores());
        if descriptor.is_leader() && !plain {
            return self.unshare(pc);
        }
        let Some(page) = page else {
            return self.through_bounce(
                descriptor,
                la,
                [Piece { gpa: walk.gpa, size: size as usize, ram: false }, Piece::default()],
                selected,
            );
        };
        if descriptor.is_write() && !page.takes_stores() {
            let piece = Piece { gpa: walk.gpa, size: size as usize, ram: !page.readonly };
            return match page.readonly {
                true => self.through_bounce(descriptor, la, [piece, Piece::default()], selected),
                false => self.store_in_place(descriptor, la, piece, page.host as u64),
            };
        }
        if descriptor.is_write() && page.log_dirty {
            self.cpu.memory.mark_dirty(walk.gpa);
        }
        self.fill(la, &walk, page.host as u64, descriptor.is_write());
        Ok(resume::DIRECT)
    }

    /// Whether the range of a leader lies in one page.
    fn range_in_page(&self, la: u64, size: u64) -> bool {
        let range = self.cpu.state.hot.range;
        let (before, after) = (range & 0xffff, range >> 16 & 0xffff);
        let offset = la & 0xfff;
        offset >= before && offset + size + after <= 4096
    }

    /// Leave, to run this instruction on its own. Nothing has happened yet. A block that does this
    /// again and again is translated anew without sharing.
    fn unshare(&mut self, pc: u64) -> Result<u64, Stop> {
        self.cache.blame(pc - 1);
        self.counters.unshared += 1;
        self.alone = true;
        Err(Stop::Exit(Exit::Interrupted))
    }

    /// Whether no other vCPU can access memory at this moment.
    fn is_alone_in_vm(&self) -> bool {
        self.exclusive || self.shared.vcpus.read().unwrap_or_else(PoisonError::into_inner).len() == 1
    }

    /// Leave, to run this instruction, which may be a locked one, while the other vCPUs stand still. Nothing
    /// has happened yet.
    fn leave_for_exclusive(&mut self) -> Result<u64, Stop> {
        self.alone = true;
        self.exclusive_wanted = true;
        Err(Stop::Exit(Exit::Interrupted))
    }

    /// Limit and type checks of an access at offset `offset` of a segment; no access yet. A pending x87
    /// exception and a misaligned operand come before them, as processors have it.
    fn check_segment(&mut self, descriptor: Descriptor, segment: usize, offset: u64) -> Result<u64, Stop> {
        if descriptor.is_probe() {
            let beyond = offset > u64::from(self.cpu.state.segments[seg::CS].limit);
            return if beyond { Err(Exception::protection(0).into()) } else { Ok(resume::DIRECT) };
        }
        if descriptor.is_math() && x87_exception_pending() {
            return Err(Exception::new(MATH_FAULT).into());
        }
        let la = self.cpu.state.segments[segment].base.wrapping_add(offset);
        if descriptor.is_aligned() && la % descriptor.size() != 0 {
            return Err(Exception::protection(0).into());
        }
        let selected = descriptor.selected(&self.cpu.state.hot.opmask);
        if selected != 0 {
            let first = offset + u64::from(selected.trailing_zeros());
            let last = offset + u64::from(127 - selected.leading_zeros());
            self.cpu.segment_linear(segment, first, last - first + 1, kind(descriptor))?;
        }
        Ok(resume::DIRECT)
    }

    /// Translated code adds the base of a stack segment that is not flat without checking its limit.
    fn check_stack_limit(&self, descriptor: Descriptor, la: u64) -> Result<(), Exception> {
        if !descriptor.is_stack() || self.mode().is64() || self.mode().stack_flat() {
            return Ok(());
        }
        let offset = la.wrapping_sub(self.cpu.state.segments[seg::SS].base) & 0xffff_ffff;
        self.cpu.segment_linear(seg::SS, offset, descriptor.size(), kind(descriptor)).map(|_| ())
    }

    fn check_address(&self, descriptor: Descriptor, la: u64, selected: u128) -> Result<(), Exception> {
        if descriptor.is_aligned() && la % descriptor.size() != 0 {
            return Err(Exception::protection(0));
        }
        let first = la.wrapping_add(u64::from(selected.trailing_zeros()));
        let last = la.wrapping_add(u64::from(127 - selected.leading_zeros()));
        // Segments of 4 GiB end there; no base makes an access of a program's lie across that end.
        let wraps = !self.mode().is64() && last > u64::from(u32::MAX);
        if wraps && selected != 0 {
            return Err(if descriptor.is_stack() { Exception::stack(0) } else { Exception::protection(0) });
        }
        let canonical = !self.cpu.state.long_mode() || (is_canonical(first) && is_canonical(last));
        if !canonical {
            return Err(if descriptor.is_stack() { Exception::stack(0) } else { Exception::protection(0) });
        }
        Ok(())
    }

    pub(super) fn walk_for(&mut self, la: u64, write: bool) -> Result<Walk, Exception> {
        let kind = if write { Kind::Write } else { Kind::Read };
        let access: Access = self.cpu.access(AccessMode::Current, kind);
        self.counters.walks += 1;
        self.cpu.translate_linear(la, access)
    }

    pub(super) fn fill(&mut self, la: u64, walk: &Walk, host_page: u64, write: bool) {
        let mode = self.mode();
        let hot = &mut self.cpu.state.hot;
        hot.access_addend = host_page.wrapping_sub(la & !0xfff);
        // With a data breakpoint every access must be seen.
        let refused = self.cpu.watching || mode.checks_alignment();
        if refused || !self.shared.optimisations.has(Optimisation::DataTlb) {
            return;
        }
        self.tlb.fill_data(hot, mode.mmu_index(), write, la, host_page, walk);
    }

    /// Pages that hold no selected byte are not looked at.
    fn resolve_crossing(&mut self, descriptor: Descriptor, la: u64, selected: u128) -> Result<u64, Stop> {
        self.counters.crossings += 1;
        let size = descriptor.size() as usize;
        let first_size = 4096 - (la & 0xfff) as usize;
        let second_la = self.wrap_linear((la | 0xfff).wrapping_add(1));
        let write = descriptor.is_write();
        let mut pieces = [
            Piece { size: first_size, ..Piece::default() },
            Piece { size: size - first_size, ..Piece::default() },
        ];
        if selected & ((1 << first_size) - 1) != 0 {
            self.place_piece(&mut pieces[0], la, write)?;
        }
        if selected >> first_size != 0 {
            self.place_piece(&mut pieces[1], second_la, write)?;
        }
        self.cpu.watch(la, size as u64, write);
        self.through_bounce(descriptor, la, pieces, selected)
    }

    fn place_piece(&mut self, piece: &mut Piece, la: u64, write: bool) -> Result<(), Exception> {
        piece.gpa = self.walk_for(la, write)?.gpa;
        let page = self.cpu.memory.host_page(piece.gpa);
        piece.ram = page.is_some_and(|page| !(write && page.readonly));
        Ok(())
    }

    fn wrap_linear(&self, la: u64) -> u64 {
        if self.cpu.state.long_mode() {
            la
        } else {
            la & 0xffff_ffff
        }
    }

    /// Serve the access from the bounce buffer: load its present value if that matters, and for a
    /// store remember where the result goes.
    fn through_bounce(
        &mut self,
        descriptor: Descriptor,
        la: u64,
        pieces: [Piece; 2],
        selected: u128,
    ) -> Result<u64, Stop> {
        if descriptor.is_probe() {
            return Ok(resume::BOUNCE);
        }
        if !self.cpu.posted_writes.is_empty() {
            // Device accesses stay in order: the earlier store is carried out first.
            return Err(Stop::Exit(Exit::Interrupted));
        }
        if descriptor.loads() {
            self.load_pieces(pieces, selected)?;
        }
        let buffer = self.cpu.state.hot.bounce.as_ptr() as u64;
        self.cpu.state.hot.access_addend = buffer.wrapping_sub(la);
        if !descriptor.is_write() {
            return Ok(resume::DIRECT);
        }
        self.store = PendingStore { pieces, selected, stays: descriptor.stays(), in_place: false };
        Ok(resume::BOUNCE)
    }

    /// Have the operation store to a page of code itself, atomically if it is a locked one; the commit tells
    /// those who hold code of its bytes.
    fn store_in_place(
        &mut self,
        descriptor: Descriptor,
        la: u64,
        piece: Piece,
        host_page: u64,
    ) -> Result<u64, Stop> {
        if descriptor.is_probe() {
            return Ok(resume::BOUNCE);
        }
        if !self.cpu.posted_writes.is_empty() {
            // Device accesses stay in order: the earlier store is carried out first.
            return Err(Stop::Exit(Exit::Interrupted));
        }
        self.cpu.state.hot.access_addend = host_page.wrapping_sub(la & !0xfff);
        let pieces = [piece, Piece::default()];
        self.store = PendingStore { pieces, selected: 0, stays: descriptor.stays(), in_place: true };
        Ok(resume::BOUNCE)
    }

    /// Bytes that are not selected are zero.
    fn load_pieces(&mut self, pieces: [Piece; 2], selected: u128) -> Result<(), Stop> {
        let mut data = [0u8; BOUNCE_BYTES];
        let mut reads = 0;
        for run in runs(pieces, selected) {
            let target = &mut data[run.at..run.at + run.size];
            if self.cpu.memory.read(run.gpa, target).is_err() {
                self.load_device(run, target, &mut reads)?;
            }
        }
        self.mmio_reads.clear();
        self.cpu.state.hot.bounce = data;
        Ok(())
    }

    /// Read from a device in aligned parts of at most 8 bytes. The instruction restarts for each;
    /// `mmio_reads` keeps those that are done.
    fn load_device(&mut self, run: Run, data: &mut [u8], reads: &mut usize) -> Result<(), Stop> {
        let mut done = 0;
        while done < run.size {
            let gpa = run.gpa + done as u64;
            let size = bus_size(gpa, run.size - done);
            let value = match self.mmio_reads.get(*reads) {
                Some(value) => *value,
                None => {
                    self.cpu.bus_reads.forget();
                    let value = self.cpu.mmio_read(gpa, size as u8)?;
                    self.cpu.bus_reads.forget();
                    self.mmio_reads.push(value);
                    value
                }
            };
            *reads += 1;
            data[done..done + size].copy_from_slice(&value.to_le_bytes()[..size]);
            done += size;
        }
        Ok(())
    }

    fn commit_store(&mut self, pc: u64) -> u64 {
        let store = self.store;
        let bounce = self.cpu.state.hot.bounce;
        if store.in_place {
            self.cpu.memory.stored(store.pieces[0].gpa, store.pieces[0].size as u64);
        }
        for run in runs(store.pieces, store.selected) {
            let data = &bounce[run.at..run.at + run.size];
            if !(run.ram && self.cpu.memory.write(run.gpa, data).is_ok()) {
                self.store_device(run, data);
            }
        }
        let dead = self.take_stores_inside(pc);
        if store.stays {
            if !self.cpu.posted_writes.is_empty() {
                self.cpu.state.hot.permit.store(0, Ordering::SeqCst);
            }
            return resume::DIRECT;
        }
        if dead || !self.cpu.posted_writes.is_empty() {
            self.stop_at(pc, Stop::Exit(Exit::Interrupted));
            return resume::LEAVE;
        }
        resume::DIRECT
    }

    fn store_device(&mut self, run: Run, data: &[u8]) {
        let mut done = 0;
        while done < run.size {
            let gpa = run.gpa + done as u64;
            let size = bus_size(gpa, run.size - done);
            let mut value = [0; 8];
            value[..size].copy_from_slice(&data[done..done + size]);
            self.cpu.mmio_write(gpa, size as u8, u64::from_le_bytes(value));
            done += size;
        }
    }

    /// Leave the cache at the guest instruction that the host address `pc` is in.
    pub(super) fn stop_at(&mut self, pc: u64, stop: Stop) {
        if !matches!(stop, Stop::Exit(_)) {
            self.mmio_reads.clear();
        }
        let located = self.cache.locate(pc - 1);
        if let Some((_, page_offset)) = located {
            self.set_rip_in_page(i64::from(page_offset));
        }
        self.stopped = Some(stop);
        self.cpu.state.hot.exit_reason = super::entry::exit::ACCESS;
    }
}

fn kind(descriptor: Descriptor) -> Kind {
    match descriptor.is_write() {
        true => Kind::Write,
        false => Kind::Read,
    }
}

/// Whether the guest's x87 state, which stays in the processor while compiled code runs, has an
/// unmasked exception pending (status word bit 7, ES).
fn x87_exception_pending() -> bool {
    const ES: u16 = 1 << 7;
    super::math_error::status_word() & ES != 0
}

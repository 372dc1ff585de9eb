//! Memory accesses that the inline check refuses: TLB misses, page crossings, MMIO, stores to
//! pages that hold code.

use super::entry::resume;
use super::shared::lock;
use super::vcpu::VcpuCore;
use crate::cpu::{Exception, Stop};
use crate::emit::Descriptor;
use crate::mmu::walk::{is_canonical, Access, Kind, Walk};
use crate::state::BOUNCE_BYTES;
use crate::system::memory::AccessMode;
use std::sync::atomic::Ordering;
use sublet_engine::Exit;

/// Bytes of one access on one page.
#[derive(Debug, Clone, Copy, Default)]
struct Piece {
    gpa: u64,
    size: usize,
    /// RAM that may be written directly; otherwise a device or read-only memory.
    ram: bool,
}

/// A store that waits in the bounce buffer for its commit.
#[derive(Debug, Clone, Copy, Default)]
pub struct PendingStore {
    pieces: [Piece; 2],
    stays: bool,
}

/// Entry from `sublet_slow_access`.
///
/// # Safety
/// Called only from there: `core` is the vCPU whose translated code is running.
pub unsafe extern "sysv64" fn slow_access(core: *mut VcpuCore, descriptor: u32, la: u64, pc: u64) -> u64 {
    // SAFETY: as the caller promises; the run loop holds no reference while translated code runs.
    let core = unsafe { &mut *core };
    core.guarded(|core| match core.resolve(Descriptor(descriptor), la) {
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
    fn resolve(&mut self, descriptor: Descriptor, la: u64) -> Result<u64, Stop> {
        self.counters.slow_accesses += 1;
        let size = descriptor.size();
        self.check_address(descriptor, la)?;
        let crosses = (la & 0xfff) + size > 4096;
        if crosses {
            return self.resolve_crossing(descriptor, la);
        }
        let walk = self.walk_for(la, descriptor.is_write())?;
        self.watch(la, size, descriptor.is_write());
        let Some(page) = self.cpu.memory.host_page(walk.gpa) else {
            return self.through_bounce(
                descriptor,
                la,
                [Piece { gpa: walk.gpa, size: size as usize, ram: false }, Piece::default()],
            );
        };
        if descriptor.is_write() && (page.code || page.readonly) {
            let piece = Piece { gpa: walk.gpa, size: size as usize, ram: !page.readonly };
            return self.through_bounce(descriptor, la, [piece, Piece::default()]);
        }
        if descriptor.is_write() && page.log_dirty {
            self.cpu.memory.mark_dirty(walk.gpa);
        }
        self.fill(la, &walk, page.host as u64, descriptor.is_write());
        Ok(resume::DIRECT)
    }

    fn check_address(&self, descriptor: Descriptor, la: u64) -> Result<(), Exception> {
        let size = descriptor.size();
        let canonical =
            !self.cpu.state.long_mode() || (is_canonical(la) && is_canonical(la.wrapping_add(size - 1)));
        if !canonical {
            return Err(if descriptor.is_stack() { Exception::stack(0) } else { Exception::protection(0) });
        }
        if descriptor.is_aligned() && la % size != 0 {
            return Err(Exception::protection(0));
        }
        Ok(())
    }

    fn walk_for(&mut self, la: u64, write: bool) -> Result<Walk, Exception> {
        let kind = if write { Kind::Write } else { Kind::Read };
        let access: Access = self.cpu.access(AccessMode::Current, kind);
        self.counters.walks += 1;
        self.cpu.translate_linear(la, access)
    }

    fn fill(&mut self, la: u64, walk: &Walk, host_page: u64, write: bool) {
        let mmu = self.mode().mmu_index();
        let hot = &mut self.cpu.state.hot;
        hot.access_addend = host_page.wrapping_sub(la & !0xfff);
        // With a data breakpoint every access must be seen.
        if self.watching {
            return;
        }
        self.tlb.fill_data(hot, mmu, write, la, host_page, walk.global);
    }

    fn watch(&mut self, la: u64, size: u64, write: bool) {
        if self.watching {
            self.debug_hits |= self.cpu.data_breakpoints_hit(la, size, write);
        }
    }

    fn resolve_crossing(&mut self, descriptor: Descriptor, la: u64) -> Result<u64, Stop> {
        self.counters.crossings += 1;
        let size = descriptor.size() as usize;
        let first_size = 4096 - (la & 0xfff) as usize;
        let second_la = self.wrap_linear((la | 0xfff).wrapping_add(1));
        let write = descriptor.is_write();
        let first = self.walk_for(la, write)?;
        let second = self.walk_for(second_la, write)?;
        self.watch(la, size as u64, write);
        let is_ram = |core: &Self, gpa: u64| {
            core.cpu.memory.host_page(gpa).is_some_and(|page| !(write && page.readonly))
        };
        let pieces = [
            Piece { gpa: first.gpa, size: first_size, ram: is_ram(self, first.gpa) },
            Piece { gpa: second.gpa, size: size - first_size, ram: is_ram(self, second.gpa) },
        ];
        self.through_bounce(descriptor, la, pieces)
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
    fn through_bounce(&mut self, descriptor: Descriptor, la: u64, pieces: [Piece; 2]) -> Result<u64, Stop> {
        if !self.mmio_writes.is_empty() {
            // Device accesses stay in order: the earlier store is carried out first.
            return Err(Stop::Exit(Exit::Interrupted));
        }
        if descriptor.loads() {
            self.load_pieces(&pieces)?;
        }
        let buffer = self.cpu.state.hot.bounce.as_ptr() as u64;
        self.cpu.state.hot.access_addend = buffer.wrapping_sub(la);
        if !descriptor.is_write() {
            return Ok(resume::DIRECT);
        }
        self.store = PendingStore { pieces, stays: descriptor.stays() };
        Ok(resume::BOUNCE)
    }

    fn load_pieces(&mut self, pieces: &[Piece; 2]) -> Result<(), Stop> {
        let mut data = [0u8; BOUNCE_BYTES];
        let mut at = 0;
        let mut reads = 0;
        for piece in pieces.iter().filter(|piece| piece.size > 0) {
            let target = &mut data[at..at + piece.size];
            if self.cpu.memory.read(piece.gpa, target).is_err() {
                self.load_device(piece, &mut data[at..at + piece.size], &mut reads)?;
            }
            at += piece.size;
        }
        self.mmio_reads.clear();
        self.cpu.state.hot.bounce[..at].copy_from_slice(&data[..at]);
        Ok(())
    }

    /// Read from a device in aligned parts of at most 8 bytes. The instruction restarts for each;
    /// `mmio_reads` keeps those that are done.
    fn load_device(&mut self, piece: &Piece, data: &mut [u8], reads: &mut usize) -> Result<(), Stop> {
        let mut done = 0;
        while done < piece.size {
            let gpa = piece.gpa + done as u64;
            let size = bus_size(gpa, piece.size - done);
            let value = match self.mmio_reads.get(*reads) {
                Some(value) => *value,
                None => {
                    let value = self.cpu.mmio_read(gpa, size as u8)?;
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
        let mut at = 0;
        for piece in store.pieces.iter().filter(|piece| piece.size > 0) {
            let data = &bounce[at..at + piece.size];
            at += piece.size;
            if !(piece.ram && self.cpu.memory.write(piece.gpa, data).is_ok()) {
                self.store_device(piece, data);
            }
        }
        if store.stays {
            if !self.mmio_writes.is_empty() {
                self.cpu.state.hot.permit.store(0, Ordering::SeqCst);
            }
            return resume::DIRECT;
        }
        let dead = self.running_block_is_dead(pc);
        if dead || !self.mmio_writes.is_empty() {
            self.stop_at(pc, Stop::Exit(Exit::Interrupted));
            return resume::LEAVE;
        }
        resume::DIRECT
    }

    fn store_device(&mut self, piece: &Piece, data: &[u8]) {
        let mut done = 0;
        while done < piece.size {
            let gpa = piece.gpa + done as u64;
            let size = bus_size(gpa, piece.size - done);
            let mut value = [0; 8];
            value[..size].copy_from_slice(&data[done..done + size]);
            if let Err(Stop::Exit(exit)) = self.cpu.mmio_write(gpa, size as u8, u64::from_le_bytes(value)) {
                self.mmio_writes.push_back(exit);
            }
            done += size;
        }
    }

    fn running_block_is_dead(&self, pc: u64) -> bool {
        let cache = lock(&self.shared.cache);
        cache.locate(pc - 1).is_none_or(|(id, _)| !cache.block(id).alive)
    }

    /// Leave the cache at the guest instruction that the host address `pc` is in.
    pub(super) fn stop_at(&mut self, pc: u64, stop: Stop) {
        if !matches!(stop, Stop::Exit(_)) {
            self.mmio_reads.clear();
        }
        let located = lock(&self.shared.cache).locate(pc - 1);
        if let Some((_, page_offset)) = located {
            self.set_rip_in_page(i64::from(page_offset));
        }
        self.stopped = Some(stop);
        self.cpu.state.hot.exit_reason = super::entry::exit::ACCESS;
    }
}

/// The largest naturally aligned part of at most 8 bytes.
fn bus_size(gpa: u64, left: usize) -> usize {
    [8usize, 4, 2].into_iter().find(|&size| left >= size && gpa % size as u64 == 0).unwrap_or(1)
}

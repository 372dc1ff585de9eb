//! Guest memory as compiled code reaches it: by linear address, or by segment and offset.
//!
//! Data in RAM goes through [`sublet_memory::GuestMemory`]. What is not RAM is asked of the
//! in-core interrupt controllers, then of the machine outside ([`Stop::Exit`]).
//!
//! Deviation: the part of a page-crossing access that is not RAM reads as all ones and ignores
//! stores, because one exit carries one naturally sized piece.

use crate::cpu::{Cpu, Exception, Outcome, Stop};
use crate::mmu::walk::{is_canonical, walk, Access, Kind, PagingRegs, Walk};
use crate::state::{flag, seg, SegmentRegister};
use sublet_engine::Exit;
use sublet_memory::PAGE_SIZE;

/// On whose behalf memory is accessed (Intel SDM vol. 3A §4.6 "Access Rights").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessMode {
    /// By the running program: the current privilege level decides; MMIO reaches devices.
    Current,
    /// By the processor itself, to its tables (GDT, LDT, IDT, TSS): always a supervisor access,
    /// never exempt from SMAP. MMIO reads as all ones and ignores stores.
    System,
    /// Explicitly, at this privilege level (stack frames of events and gates). MMIO as `System`.
    Level(u8),
}

const CR0_AM: u64 = 1 << 18;
const APIC_PAGE_MASK: u64 = 0x000f_ffff_ffff_f000;
const ALL_ONES: u64 = u64::MAX;

/// The low `size` bytes of a value, `size` 1 to 8.
fn low_bytes(value: u64, size: u8) -> u64 {
    value & (ALL_ONES >> (64 - 8 * u32::from(size)))
}

/// The largest naturally aligned part of at most 8 bytes.
pub(crate) fn bus_size(gpa: u64, left: usize) -> usize {
    [8usize, 4, 2].into_iter().find(|&size| left >= size && gpa % size as u64 == 0).unwrap_or(1)
}

/// The bytes from `la` to the end of its page.
fn to_page_end(la: u64) -> usize {
    (PAGE_SIZE - la % PAGE_SIZE) as usize
}

impl Cpu {
    /// The registers that page walks use.
    #[inline]
    pub fn paging_regs(&self) -> PagingRegs {
        let state = &self.state;
        PagingRegs {
            cr0: state.cr0,
            cr3: state.cr3,
            cr4: state.cr4,
            efer: state.efer,
            pdptes: state.pdptes,
            physical_bits: self.physical_bits,
            smm: self.smm.active,
        }
    }

    /// Where the processor finds physical address `gpa`: past the A20 gate, in SMRAM where it may.
    #[inline]
    pub(crate) fn bus_address(&self, gpa: u64) -> u64 {
        if self.smm.active {
            self.memory.wired_in_smm(gpa)
        } else {
            self.memory.wired(gpa)
        }
    }

    /// The access that `mode` and `kind` mean at the moment.
    #[inline]
    pub fn access(&self, mode: AccessMode, kind: Kind) -> Access {
        let cpl = self.state.cpl();
        let user = match mode {
            AccessMode::System => return Access { kind, user: false, smap_override: false },
            AccessMode::Current => cpl == 3,
            AccessMode::Level(level) => level == 3,
        };
        // What a program at level 3 causes at an inner level is implicit: its AC does not count.
        Access { kind, user, smap_override: cpl < 3 && self.state.rflags & flag::AC != 0 }
    }

    /// Translate a linear address, setting accessed and dirty flags.
    ///
    /// # Errors
    /// #PF; #GP(0) for an address that is not canonical in long mode.
    #[inline]
    pub fn translate_linear(&mut self, la: u64, access: Access) -> Result<Walk, Exception> {
        if self.state.long_mode() && !is_canonical(la) {
            return Err(Exception::protection(0));
        }
        let found = walk(&self.memory, &self.paging_regs(), la, access)?;
        Ok(Walk { gpa: self.bus_address(found.gpa), ..found })
    }

    /// Linear addresses have 32 bits outside long mode.
    #[inline]
    fn wrap_linear(&self, la: u64) -> u64 {
        if self.state.long_mode() {
            la
        } else {
            la & 0xffff_ffff
        }
    }

    /// Read `size` (1, 2, 4 or 8) bytes at a linear address.
    ///
    /// # Errors
    /// Page faults; for [`AccessMode::Current`] the exit that fetches MMIO data.
    #[inline]
    pub fn read_linear(&mut self, la: u64, size: u8, mode: AccessMode) -> Outcome<u64> {
        if usize::from(size) > to_page_end(la) {
            let mut bytes = [0; 8];
            self.read_bytes(la, &mut bytes[..usize::from(size)], mode)?;
            return Ok(u64::from_le_bytes(bytes));
        }
        let gpa = self.translate_linear(la, self.access(mode, Kind::Read))?.gpa;
        match self.read_ram(gpa, size) {
            Some(value) => Ok(value),
            None if mode == AccessMode::Current => self.mmio_read(gpa, size),
            None => Ok(low_bytes(ALL_ONES, size)),
        }
    }

    /// Write the low `size` (1, 2, 4 or 8) bytes of `value` at a linear address. Nothing is
    /// written when a page of it faults.
    ///
    /// # Errors
    /// Page faults.
    #[inline]
    pub fn write_linear(&mut self, la: u64, size: u8, value: u64, mode: AccessMode) -> Outcome {
        if usize::from(size) > to_page_end(la) {
            return self.write_bytes(la, &value.to_le_bytes()[..usize::from(size)], mode);
        }
        let gpa = self.translate_linear(la, self.access(mode, Kind::Write))?.gpa;
        if self.memory.store(gpa, &value.to_le_bytes()[..usize::from(size)]) {
            return Ok(());
        }
        if mode == AccessMode::Current {
            self.mmio_write(gpa, size, low_bytes(value, size));
        }
        Ok(())
    }

    /// Read bytes at a linear address. What is not RAM reads as all ones.
    ///
    /// # Errors
    /// Page faults.
    pub fn read_bytes(&mut self, la: u64, data: &mut [u8], mode: AccessMode) -> Outcome {
        let access = self.access(mode, Kind::Read);
        let (mut la, mut rest) = (la, data);
        while !rest.is_empty() {
            let (piece, after) = rest.split_at_mut(rest.len().min(to_page_end(la)));
            let gpa = self.translate_linear(la, access)?.gpa;
            if self.memory.read(gpa, piece).is_err() {
                piece.fill(0xff);
            }
            la = self.wrap_linear(la.wrapping_add(piece.len() as u64));
            rest = after;
        }
        Ok(())
    }

    /// Write bytes at a linear address, none when a page of them faults. What is not RAM takes those of
    /// the guest's own instructions, in naturally aligned parts of at most 8 bytes.
    ///
    /// # Errors
    /// Page faults.
    pub fn write_bytes(&mut self, la: u64, data: &[u8], mode: AccessMode) -> Outcome {
        let access = self.access(mode, Kind::Write);
        let first = self.translate_linear(la, access)?.gpa;
        let (head, tail) = data.split_at(data.len().min(to_page_end(la)));
        let next = self.wrap_linear(la.wrapping_add(head.len() as u64));
        self.probe_write(next, tail.len(), access)?;
        self.store_piece_of(first, head, mode);
        let (mut la, mut rest) = (next, tail);
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(rest.len().min(to_page_end(la)));
            let gpa = self.translate_linear(la, access)?.gpa;
            self.store_piece_of(gpa, piece, mode);
            la = self.wrap_linear(la.wrapping_add(piece.len() as u64));
            rest = after;
        }
        Ok(())
    }

    /// Store bytes that lie in one page.
    fn store_piece_of(&mut self, gpa: u64, data: &[u8], mode: AccessMode) {
        if data.is_empty() || self.memory.store(gpa, data) || mode != AccessMode::Current {
            return;
        }
        let mut done = 0;
        while done < data.len() {
            let at = gpa + done as u64;
            let size = bus_size(at, data.len() - done);
            let mut value = [0; 8];
            value[..size].copy_from_slice(&data[done..done + size]);
            self.mmio_write(at, size as u8, u64::from_le_bytes(value));
            done += size;
        }
    }

    /// Check that `size` bytes at `la` can be written.
    fn probe_write(&mut self, la: u64, size: usize, access: Access) -> Result<(), Exception> {
        let (mut la, mut rest) = (la, size);
        while rest > 0 {
            self.translate_linear(la, access)?;
            let piece = rest.min(to_page_end(la));
            la = self.wrap_linear(la.wrapping_add(piece as u64));
            rest -= piece;
        }
        Ok(())
    }

    /// `None` where there is no RAM. Aligned reads are single-copy atomic.
    #[inline]
    fn read_ram(&self, gpa: u64, size: u8) -> Option<u64> {
        let memory = &self.memory;
        match size {
            1 => return memory.load_u8(gpa).map(u64::from),
            2 if gpa % 2 == 0 => return memory.load_u16(gpa).map(u64::from),
            4 if gpa % 4 == 0 => return memory.load_u32(gpa).map(u64::from),
            8 if gpa % 8 == 0 => return memory.load_u64(gpa),
            _ => {}
        }
        let mut bytes = [0; 8];
        memory.read(gpa, &mut bytes[..usize::from(size)]).ok()?;
        Some(u64::from_le_bytes(bytes))
    }

    /// The offset in the local APIC's page, when `gpa` lies there and the APIC is in xAPIC mode.
    fn apic_offset(&self, gpa: u64) -> Option<u32> {
        let apic = self.apic.as_ref()?;
        let base = apic.apic_base() & APIC_PAGE_MASK;
        (gpa & !0xfff == base && apic.enabled() && !apic.is_x2apic()).then_some((gpa & 0xfff) as u32)
    }

    /// Read `size` bytes that are not RAM.
    ///
    /// # Errors
    /// The exit that fetches the data, unless a restart brought it.
    pub fn mmio_read(&mut self, gpa: u64, size: u8) -> Outcome<u64> {
        if let Some(offset) = self.apic_offset(gpa) {
            return Ok(self.apic_page_read(offset, size));
        }
        if let Some(data) = self.irqchip.as_ref().and_then(|chip| chip.mmio_read(gpa, size)) {
            return Ok(low_bytes(data, size));
        }
        match self.take_completed_read(false, gpa, size) {
            Some(data) => Ok(low_bytes(data, size)),
            None => Err(Stop::Exit(Exit::MmioRead { gpa, size })),
        }
    }

    /// Write `size` (at most 8) bytes to what is not RAM: to an in-core device, or by an exit that waits
    /// in `posted_writes` until the instruction is done.
    pub fn mmio_write(&mut self, gpa: u64, size: u8, data: u64) {
        if let Some(offset) = self.apic_offset(gpa) {
            if let Some(apic) = self.apic.as_ref().filter(|_| offset % 16 == 0) {
                apic.mmio_write(offset, data as u32);
            }
            return;
        }
        if !self.irqchip.as_ref().is_some_and(|chip| chip.mmio_write(gpa, size, data)) {
            self.posted_writes.push_back(Exit::MmioWrite { gpa, size, data });
        }
    }

    /// Registers are 32 bits wide, 16 bytes apart (Intel SDM vol. 3A §11.4.1 "The Local APIC
    /// Block Diagram"); anything else is undefined there and reads as zero here.
    fn apic_page_read(&self, offset: u32, size: u8) -> u64 {
        let Some(apic) = self.apic.as_ref() else { return 0 };
        let within = offset % 16;
        if within >= 4 {
            return 0;
        }
        low_bytes(u64::from(apic.mmio_read(offset & !15)) >> (8 * within), size)
    }

    /// Read `size` (1, 2, 4 or 8) bytes at an offset in a segment, at the current privilege.
    ///
    /// # Errors
    /// #SS or #GP of the segment's checks, #AC, page faults, MMIO exits.
    pub fn read_seg(&mut self, segment: usize, offset: u64, size: u8) -> Outcome<u64> {
        let la = self.data_linear(segment, offset, size, Kind::Read)?;
        let value = self.read_linear(la, size, AccessMode::Current)?;
        self.watch(la, u64::from(size), false);
        Ok(value)
    }

    /// Write `size` (1, 2, 4 or 8) bytes at an offset in a segment, at the current privilege.
    ///
    /// # Errors
    /// As [`Self::read_seg`].
    pub fn write_seg(&mut self, segment: usize, offset: u64, size: u8, value: u64) -> Outcome {
        let la = self.data_linear(segment, offset, size, Kind::Write)?;
        self.write_linear(la, size, value, AccessMode::Current)?;
        self.watch(la, u64::from(size), true);
        Ok(())
    }

    /// The linear address of a data access, with segment and alignment checks.
    ///
    /// # Errors
    /// #SS(0), #GP(0) or #AC(0).
    pub(crate) fn data_linear(
        &self,
        segment: usize,
        offset: u64,
        size: u8,
        kind: Kind,
    ) -> Result<u64, Exception> {
        let la = self.segment_linear(segment, offset, u64::from(size), kind)?;
        let aligned = la & (u64::from(size) - 1) == 0;
        if !aligned && self.alignment_checked() {
            return Err(Exception::with_code(17, 0));
        }
        Ok(la)
    }

    /// Alignment checking is on (Intel SDM vol. 3A §6.15 "Alignment Check Exception").
    pub fn alignment_checked(&self) -> bool {
        self.state.cr0 & CR0_AM != 0 && self.state.rflags & flag::AC != 0 && self.state.cpl() == 3
    }

    /// The linear address of `size` (at least 1) bytes at an offset in a segment register.
    ///
    /// # Errors
    /// #SS(0) for SS, #GP(0) for the others: limit, type, null segment, or not canonical.
    #[inline]
    pub fn segment_linear(
        &self,
        segment: usize,
        offset: u64,
        size: u64,
        kind: Kind,
    ) -> Result<u64, Exception> {
        let register = &self.state.segments[segment];
        let violation = || {
            if segment == seg::SS {
                Exception::stack(0)
            } else {
                Exception::protection(0)
            }
        };
        if self.state.code64() {
            let base = if segment >= seg::FS { register.base } else { 0 };
            let la = base.wrapping_add(offset);
            let whole = is_canonical(la) && is_canonical(la.wrapping_add(size - 1));
            return whole.then_some(la).ok_or_else(violation);
        }
        checked_linear(register, offset, size, kind).ok_or_else(violation)
    }

    /// Read one byte at a linear address; see [`Self::read_linear`].
    ///
    /// # Errors
    /// As [`Self::read_linear`], and so below.
    pub fn read_u8(&mut self, la: u64, mode: AccessMode) -> Outcome<u8> {
        Ok(self.read_linear(la, 1, mode)? as u8)
    }

    /// Read two bytes.
    ///
    /// # Errors
    /// As [`Self::read_linear`].
    pub fn read_u16(&mut self, la: u64, mode: AccessMode) -> Outcome<u16> {
        Ok(self.read_linear(la, 2, mode)? as u16)
    }

    /// Read four bytes.
    ///
    /// # Errors
    /// As [`Self::read_linear`].
    pub fn read_u32(&mut self, la: u64, mode: AccessMode) -> Outcome<u32> {
        Ok(self.read_linear(la, 4, mode)? as u32)
    }

    /// Read eight bytes.
    ///
    /// # Errors
    /// As [`Self::read_linear`].
    pub fn read_u64(&mut self, la: u64, mode: AccessMode) -> Outcome<u64> {
        self.read_linear(la, 8, mode)
    }

    /// Write one byte.
    ///
    /// # Errors
    /// As [`Self::write_linear`].
    pub fn write_u8(&mut self, la: u64, value: u8, mode: AccessMode) -> Outcome {
        self.write_linear(la, 1, u64::from(value), mode)
    }

    /// Write two bytes.
    ///
    /// # Errors
    /// As [`Self::write_linear`].
    pub fn write_u16(&mut self, la: u64, value: u16, mode: AccessMode) -> Outcome {
        self.write_linear(la, 2, u64::from(value), mode)
    }

    /// Write four bytes.
    ///
    /// # Errors
    /// As [`Self::write_linear`].
    pub fn write_u32(&mut self, la: u64, value: u32, mode: AccessMode) -> Outcome {
        self.write_linear(la, 4, u64::from(value), mode)
    }

    /// Write eight bytes.
    ///
    /// # Errors
    /// As [`Self::write_linear`].
    pub fn write_u64(&mut self, la: u64, value: u64, mode: AccessMode) -> Outcome {
        self.write_linear(la, 8, value, mode)
    }

    /// Read one of the processor's own tables (1, 2, 4 or 8 bytes).
    ///
    /// # Errors
    /// Page faults, as supervisor accesses.
    pub(crate) fn read_table(&mut self, la: u64, size: u8) -> Result<u64, Exception> {
        only_exception(self.read_linear(la, size, AccessMode::System))
    }

    /// Read 16 bytes of one of the processor's own tables with one walk: low half, high half.
    ///
    /// # Errors
    /// Page faults, as supervisor accesses.
    #[inline]
    pub(crate) fn read_table_pair(&mut self, la: u64) -> Result<(u64, u64), Exception> {
        let mut bytes = [0; 16];
        only_exception(self.read_bytes(la, &mut bytes, AccessMode::System))?;
        let both = u128::from_le_bytes(bytes);
        Ok((both as u64, (both >> 64) as u64))
    }

    /// Write one of the processor's own tables.
    ///
    /// # Errors
    /// Page faults, as supervisor accesses.
    pub(crate) fn write_table(&mut self, la: u64, size: u8, value: u64) -> Result<(), Exception> {
        only_exception(self.write_linear(la, size, value, AccessMode::System))
    }
}

/// INVARIANT: only [`AccessMode::Current`] accesses leave with an exit.
pub(crate) fn only_exception<T>(outcome: Outcome<T>) -> Result<T, Exception> {
    outcome.map_err(|stop| match stop {
        Stop::Exception(exception) => exception,
        Stop::Exit(_) => Exception::with_code(8, 0),
    })
}

/// Limit and type checks of a segment outside 64-bit code (Intel SDM vol. 3A §5.3 "Limit
/// Checking", §5.5 "Privilege Levels" for types); `None` when one fails.
pub(crate) fn checked_linear(register: &SegmentRegister, offset: u64, size: u64, kind: Kind) -> Option<u64> {
    const CODE: u8 = 8;
    const EXPAND_DOWN: u8 = 4;
    const READABLE_OR_WRITABLE: u8 = 2;
    let is_code = register.kind() & CODE != 0;
    let granted = register.kind() & READABLE_OR_WRITABLE != 0;
    let allowed = match kind {
        Kind::Read => !is_code || granted,
        Kind::Write => !is_code && granted,
        Kind::Execute => is_code,
    };
    let last = offset.checked_add(size - 1)?;
    let limit = u64::from(register.limit);
    let inside = if !is_code && register.kind() & EXPAND_DOWN != 0 {
        let top = if register.big() { 0xffff_ffff } else { 0xffff };
        offset > limit && last <= top
    } else {
        last <= limit
    };
    (register.present() && allowed && inside).then_some(register.base.wrapping_add(offset) & 0xffff_ffff)
}

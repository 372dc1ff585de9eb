//! System-management mode: what an SMI saves and where it leads, and RSM.
//!
//! The state-save area has the layout of 64-bit processors in AMD APM vol. 2 §10.2.3 "SMRAM State-Save Area"
//! (table 10-1), whatever vendor CPUID names: it is the one that firmware for virtual machines knows. The
//! revision says that SMBASE can be moved and that I/O instructions are not restarted.
//!
//! SMRAM is memory at [`sublet_memory::SMM_SPACE`]: see [`Cpu::bus_address`] and `docs/theory/smm.md`.

use crate::cpu::{Cpu, Events, Exception, Flush, Outcome, Stop};
use crate::state::{flag, seg, SegmentRegister, TableRegister};
use crate::system::control::{cr0, cr4, efer};
use sublet_engine::Exit;

/// SMBASE after RESET.
pub const SMBASE_RESET: u32 = 0x3_0000;
/// Bytes from SMBASE to the handler's first instruction.
const ENTRY: u64 = 0x8000;
/// Bytes from SMBASE to the state-save area, and its size.
const SAVE_AREA: u64 = 0xfe00;
const SAVE_SIZE: usize = 0x200;
/// Bits of CR0 that an SMI clears.
const CR0_CLEARED: u64 = cr0::PE | cr0::EM | cr0::TS | cr0::PG;
/// Attributes of a segment as the state-save area has them: all but the four bits of the limit.
const ATTRIBUTES: u16 = 0xf0ff;
const FLAGS: u64 = 0x003f_7fd5;

/// Offsets in the state-save area.
mod at {
    pub const SEGMENTS: usize = 0x000;
    pub const GDTR: usize = 0x060;
    pub const LDTR: usize = 0x070;
    pub const IDTR: usize = 0x080;
    pub const TR: usize = 0x090;
    pub const HALT_RESTART: usize = 0x0c9;
    pub const EFER: usize = 0x0d0;
    pub const REVISION: usize = 0x0fc;
    pub const SMBASE: usize = 0x100;
    pub const CR4: usize = 0x148;
    pub const CR3: usize = 0x150;
    pub const CR0: usize = 0x158;
    pub const DR7: usize = 0x160;
    pub const DR6: usize = 0x168;
    pub const RFLAGS: usize = 0x170;
    pub const RIP: usize = 0x178;
    /// RAX; the others, in encoding order, lie below it.
    pub const RAX: usize = 0x1f8;
}

/// AMD64's layout, with relocation of SMBASE.
const REVISION: u32 = 0x0002_0064;

/// System-management mode as a processor has it. INIT leaves it alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Smm {
    /// In the mode.
    pub active: bool,
    /// An SMI waits.
    pub pending: bool,
    /// NMIs were blocked when the mode was entered.
    pub inside_nmi: bool,
    /// Where the handler and the state-save area are counted from.
    pub base: u32,
}

impl Default for Smm {
    fn default() -> Self {
        Self { active: false, pending: false, inside_nmi: false, base: SMBASE_RESET }
    }
}

/// The bytes of a state-save area.
struct SaveArea([u8; SAVE_SIZE]);

impl SaveArea {
    fn put(&mut self, offset: usize, bytes: &[u8]) {
        self.0[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn put_u64(&mut self, offset: usize, value: u64) {
        self.put(offset, &value.to_le_bytes());
    }

    fn take<const N: usize>(&self, offset: usize) -> [u8; N] {
        std::array::from_fn(|index| self.0[offset + index])
    }

    fn take_u64(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.take(offset))
    }

    fn take_u32(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.take(offset))
    }

    fn put_segment(&mut self, offset: usize, segment: &SegmentRegister) {
        self.put(offset, &segment.selector.to_le_bytes());
        self.put(offset + 2, &segment.attributes.to_le_bytes());
        self.put(offset + 4, &segment.limit.to_le_bytes());
        self.put_u64(offset + 8, segment.base);
    }

    fn take_segment(&self, offset: usize) -> SegmentRegister {
        SegmentRegister {
            selector: u16::from_le_bytes(self.take(offset)),
            attributes: u16::from_le_bytes(self.take(offset + 2)) & ATTRIBUTES,
            limit: self.take_u32(offset + 4),
            base: self.take_u64(offset + 8),
        }
    }

    fn put_table(&mut self, offset: usize, table: &TableRegister) {
        self.put(offset + 4, &u32::from(table.limit).to_le_bytes());
        self.put_u64(offset + 8, table.base);
    }

    fn take_table(&self, offset: usize) -> TableRegister {
        TableRegister { base: self.take_u64(offset + 8), limit: self.take_u32(offset + 4) as u16 }
    }
}

impl Cpu {
    /// Take the SMI that waits (Intel SDM vol. 3C §32.3.1 "Entering SMM"): save the state, and go on at the
    /// handler in a mode like real mode with segments of 4 GiB.
    pub fn enter_smm(&mut self) {
        self.smm.pending = false;
        self.smm.active = true;
        self.smm.inside_nmi = self.events.nmi_masked;
        let area = self.saved_state();
        self.store_save_area(&area);
        let nmi_pending = self.events.nmi_pending;
        self.events = Events { nmi_pending, nmi_masked: true, ..Events::default() };
        self.load_handler_state();
        self.mmu.flush(Flush::All);
    }

    fn saved_state(&self) -> SaveArea {
        let state = &self.state;
        let mut area = SaveArea([0; SAVE_SIZE]);
        for (index, segment) in state.segments.iter().enumerate() {
            area.put_segment(at::SEGMENTS + 16 * index, segment);
        }
        area.put_segment(at::LDTR, &state.ldtr);
        area.put_segment(at::TR, &state.tr);
        area.put_table(at::GDTR, &state.gdtr);
        area.put_table(at::IDTR, &state.idtr);
        area.put(at::HALT_RESTART, &[u8::from(self.events.halted)]);
        area.put_u64(at::EFER, state.efer);
        area.put(at::REVISION, &REVISION.to_le_bytes());
        area.put(at::SMBASE, &self.smm.base.to_le_bytes());
        for (offset, value) in [
            (at::CR4, state.cr4),
            (at::CR3, state.cr3),
            (at::CR0, state.cr0),
            (at::DR7, state.dr[7]),
            (at::DR6, state.dr[6]),
            (at::RFLAGS, state.rflags),
            (at::RIP, state.rip),
        ] {
            area.put_u64(offset, value);
        }
        for (number, value) in state.gpr.iter().enumerate() {
            area.put_u64(at::RAX - 8 * number, *value);
        }
        area
    }

    /// The registers that the handler starts with (SDM vol. 3C §32.4.1 "Initial SMM Execution Environment").
    fn load_handler_state(&mut self) {
        const FLAT: SegmentRegister =
            SegmentRegister { base: 0, limit: u32::MAX, selector: 0, attributes: 0x8093 };
        let base = self.smm.base;
        let state = &mut self.state;
        state.rflags = flag::FIXED;
        state.rip = ENTRY;
        state.cr0 &= !CR0_CLEARED;
        (state.cr4, state.efer, state.dr[7]) = (0, 0, 0x400);
        state.segments = [FLAT; 6];
        state.segments[seg::CS] =
            SegmentRegister { base: u64::from(base), selector: (base >> 4) as u16, ..FLAT };
        self.watching = false;
    }

    /// RSM (SDM vol. 3C §32.3.2 "Exiting From SMM").
    ///
    /// # Errors
    /// #UD outside the mode; the shutdown that a state no processor can be in leads to.
    pub(crate) fn rsm(&mut self) -> Outcome {
        if !self.smm.active {
            return Err(Exception::UNDEFINED.into());
        }
        let area = self.load_save_area();
        self.smm.active = false;
        if !self.smm.inside_nmi {
            self.events.nmi_masked = false;
        }
        if area.take_u32(at::REVISION) & REVISION & 0x2_0000 != 0 {
            self.smm.base = area.take_u32(at::SMBASE);
        }
        self.events.halted = area.take::<1>(at::HALT_RESTART)[0] & 1 != 0;
        self.mmu.flush(Flush::All);
        self.restore_control(&area)?;
        self.restore_registers(&area);
        Ok(())
    }

    fn restore_control(&mut self, area: &SaveArea) -> Outcome {
        let shutdown = Stop::Exit(Exit::Shutdown);
        let (new_cr0, new_cr4) = (u64::from(area.take_u32(at::CR0)), area.take_u64(at::CR4));
        let (new_cr3, new_efer) = (area.take_u64(at::CR3), area.take_u64(at::EFER));
        if !self.is_possible(new_cr0, new_cr3, new_cr4, new_efer) {
            return Err(shutdown);
        }
        let state = &mut self.state;
        state.cr0 = new_cr0 & cr0::DEFINED | cr0::ET;
        (state.cr3, state.cr4, state.efer) = (new_cr3, new_cr4, new_efer);
        self.load_pdptes_if(new_cr0, new_cr4, new_cr3, true).map_err(|_| shutdown)
    }

    /// Whether a processor can have these control registers together.
    fn is_possible(&self, new_cr0: u64, new_cr3: u64, new_cr4: u64, new_efer: u64) -> bool {
        const EFER_DEFINED: u64 = efer::SCE | efer::LME | efer::LMA | efer::NXE | efer::AIBRSE;
        let has = |value: u64, bit: u64| value & bit != 0;
        let paging = has(new_cr0, cr0::PG);
        let long = has(new_efer, efer::LMA);
        let pairs = (!paging || has(new_cr0, cr0::PE)) && (!has(new_cr0, cr0::NW) || has(new_cr0, cr0::CD));
        let exist = new_cr4 & !self.cr4_allowed() == 0
            && new_efer & !EFER_DEFINED == 0
            && new_cr3 >> self.physical_bits == 0;
        let long_fits = long == (paging && has(new_efer, efer::LME))
            && (!long || has(new_cr4, cr4::PAE))
            && (long || !has(new_cr4, cr4::PCIDE));
        pairs && exist && long_fits
    }

    fn restore_registers(&mut self, area: &SaveArea) {
        let state = &mut self.state;
        for (index, segment) in state.segments.iter_mut().enumerate() {
            *segment = area.take_segment(at::SEGMENTS + 16 * index);
        }
        state.ldtr = area.take_segment(at::LDTR);
        state.tr = area.take_segment(at::TR);
        state.gdtr = area.take_table(at::GDTR);
        state.idtr = area.take_table(at::IDTR);
        for (number, value) in state.gpr.iter_mut().enumerate() {
            *value = area.take_u64(at::RAX - 8 * number);
        }
        state.rip = area.take_u64(at::RIP);
        state.rflags = area.take_u64(at::RFLAGS) & FLAGS | flag::FIXED;
        state.dr[6] = u64::from(area.take_u32(at::DR6)) & 0xe00f | 0xffff_0ff0;
        state.dr[7] = u64::from(area.take_u32(at::DR7)) & 0xffff_2fff | 0x400;
        if state.long_mode() {
            state.rflags &= !flag::VM;
        }
        if !state.code64() {
            state.rip &= 0xffff_ffff;
        }
        self.watching = self.any_breakpoint_enabled();
        self.debug_hits = 0;
    }

    fn save_area_pieces(&self) -> impl Iterator<Item = (u64, std::ops::Range<usize>)> {
        let first = u64::from(self.smm.base) + SAVE_AREA;
        let split = ((0x1000 - (first & 0xfff)) as usize).min(SAVE_SIZE);
        [(first, 0..split), (first + split as u64, split..SAVE_SIZE)]
            .into_iter()
            .filter(|(_, range)| !range.is_empty())
    }

    /// What is not RAM keeps nothing.
    fn store_save_area(&mut self, area: &SaveArea) {
        for (gpa, range) in self.save_area_pieces() {
            self.memory.store(self.bus_address(gpa), &area.0[range]);
        }
    }

    /// What is not RAM reads as all ones.
    fn load_save_area(&self) -> SaveArea {
        let mut area = SaveArea([0xff; SAVE_SIZE]);
        for (gpa, range) in self.save_area_pieces() {
            // Where it fails the bytes stay as they are: nothing has been copied.
            let _ = self.memory.read(self.bus_address(gpa), &mut area.0[range]);
        }
        area
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::state::gpr;
    use crate::system::fixture::{cpu32, cpu64, get, put, run, CODE, DATA};
    use std::sync::Arc;
    use sublet_memory::{RamBlock, SMM_SPACE};

    const RSM: &[u8] = &[0x0f, 0xaa];
    const SHUTDOWN: Outcome = Err(Stop::Exit(Exit::Shutdown));
    /// Where the fixture's state-save area lies.
    const AREA: u64 = SMBASE_RESET as u64 + SAVE_AREA;

    fn in_smm(mut cpu: Cpu) -> Cpu {
        cpu.smm.pending = true;
        cpu.enter_smm();
        cpu
    }

    /// SDM vol. 3C table 32-4: registers at the handler's start.
    #[test]
    fn the_handler_starts_in_16_bit_code_at_smbase_with_flat_segments() {
        let cpu = in_smm(cpu64());
        let state = &cpu.state;
        assert_eq!((state.rip, state.rflags, state.cr4, state.efer), (0x8000, 2, 0, 0));
        assert_eq!(state.cr0 & CR0_CLEARED, 0);
        assert_eq!((state.segments[seg::CS].base, state.segments[seg::CS].selector), (0x3_0000, 0x3000));
        assert!(state.segments.iter().all(|segment| segment.limit == u32::MAX && !segment.big()));
        assert!(cpu.smm.active && cpu.events.nmi_masked);
    }

    /// APM vol. 2 table 10-1.
    #[test]
    fn the_state_lies_where_firmware_looks_for_it() {
        let mut cpu = cpu64();
        cpu.state.gpr[gpr::RAX] = 0x1122_3344_5566_7788;
        cpu.state.gpr[15] = 15;
        cpu.state.segments[seg::CS].base = 0x77;
        let cpu = in_smm(cpu);
        assert_eq!(get(&cpu, AREA + 0x1f8), 0x1122_3344_5566_7788);
        assert_eq!(get(&cpu, AREA + 0x180), 15);
        assert_eq!(get(&cpu, AREA + 0x178), CODE);
        assert_eq!(get(&cpu, AREA + 0x18), 0x77);
        assert_eq!(get(&cpu, AREA + 0x10), u64::from(u32::MAX) << 32 | 0xa09b << 16 | 8);
        assert_eq!(get(&cpu, AREA + 0xfc), u64::from(SMBASE_RESET) << 32 | 0x2_0064);
    }

    #[test]
    fn rsm_goes_on_where_the_smi_came_and_moves_smbase() {
        for start in [cpu64(), cpu32()] {
            let before = (start.state.gpr, start.state.rip, start.state.cr0, start.state.efer);
            let segments = start.state.segments;
            let mut cpu = in_smm(start);
            cpu.state.gpr = [7; 16];
            put(&cpu, AREA + 0x100, 0xa_0000);
            run(&mut cpu, RSM).unwrap();
            assert_eq!((cpu.state.gpr, cpu.state.rip, cpu.state.cr0, cpu.state.efer), before);
            assert_eq!((cpu.state.segments, cpu.smm.base), (segments, 0xa_0000));
            assert!(!cpu.smm.active && !cpu.events.nmi_masked);
        }
    }

    #[test]
    fn rsm_outside_the_mode_is_undefined() {
        assert_eq!(run(&mut cpu64(), RSM), Err(Exception::UNDEFINED.into()));
    }

    /// SDM vol. 3C §32.3.2: states that shut the processor down.
    #[test]
    fn rsm_with_an_impossible_state_shuts_down() {
        let (cr0_at, cr4_at, efer_at) = (AREA + 0x158, AREA + 0x148, AREA + 0xd0);
        for (at, value) in [(cr0_at, cr0::PG), (cr0_at, cr0::PE | cr0::NW), (cr4_at, 1 << 30), (efer_at, 2)] {
            let mut cpu = in_smm(cpu64());
            put(&cpu, at, value);
            assert_eq!(run(&mut cpu, RSM), SHUTDOWN, "{at:#x} = {value:#x}");
        }
    }

    /// SDM vol. 3C §32.10 "Auto HALT Restart".
    #[test]
    fn a_halted_processor_halts_again_unless_the_handler_says_otherwise() {
        for (restart, halted) in [(1, true), (0, false)] {
            let mut cpu = cpu64();
            cpu.events.halted = true;
            let mut cpu = in_smm(cpu);
            assert!(!cpu.events.halted);
            assert_eq!(get(&cpu, AREA + 0xc8) >> 8 & 0xff, 1);
            put(&cpu, AREA + 0xc8, restart << 8);
            run(&mut cpu, RSM).unwrap();
            assert_eq!(cpu.events.halted, halted);
        }
    }

    /// SDM vol. 3C §32.8 "NMI Handling While in SMM".
    #[test]
    fn nmis_stay_blocked_after_rsm_only_if_they_were_before_the_smi() {
        for blocked in [false, true] {
            let mut cpu = cpu64();
            cpu.events.nmi_masked = blocked;
            let mut cpu = in_smm(cpu);
            run(&mut cpu, RSM).unwrap();
            assert_eq!(cpu.events.nmi_masked, blocked);
        }
    }

    /// Memory of the mode is found in the mode alone, by data accesses and by page walks.
    #[test]
    fn smram_answers_in_the_mode_alone() {
        use crate::system::memory::AccessMode;
        let mut cpu = cpu64();
        let hidden = Arc::new(RamBlock::new(0x1000).unwrap());
        cpu.memory.set_memslot(9, SMM_SPACE | DATA, 0x1000, hidden, 0, false, false).unwrap();
        put(&cpu, DATA, 1);
        put(&cpu, SMM_SPACE | DATA, 2);
        assert_eq!(cpu.read_linear(DATA, 8, AccessMode::Current), Ok(1));
        let mut cpu = in_smm(cpu);
        assert_eq!(cpu.read_linear(DATA, 8, AccessMode::Current), Ok(2));
        cpu.write_linear(DATA, 8, 3, AccessMode::Current).unwrap();
        run(&mut cpu, RSM).unwrap();
        assert_eq!(cpu.read_linear(DATA, 8, AccessMode::Current), Ok(1));
        assert_eq!(get(&cpu, SMM_SPACE | DATA), 3);
    }
}

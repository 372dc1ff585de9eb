//! Hardware task switching (Intel SDM vol. 3A, edition 081, chapter 8 "Task Management"); legacy
//! protected mode only.
//!
//! Deviation: the debug trap flag (T) of a TSS is ignored.

use super::frame::protection_to_invalid_tss;
use super::memory::only_exception;
use super::segment::{code_of, is_null, rpl, system_type, Descriptor};
use crate::cpu::{Cpu, Exception, Flush};
use crate::state::{flag, seg, SegmentRegister};
use crate::system::memory::AccessMode;

const CR0_PG: u64 = 1 << 31;
const CR0_TS: u64 = 1 << 3;
/// L0 to L3 and LE: breakpoints of one task.
const DR7_LOCAL: u64 = 0x155;
const DR6_BT: u64 = 1 << 15;
const CR4_PAE: u64 = 1 << 5;
/// Smallest limits (§8.2.2 "TSS Descriptor").
const LIMIT_32: u32 = 0x67;
const LIMIT_16: u32 = 0x2b;

/// What causes a task switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Switch {
    Jump,
    Call,
    /// An interrupt or exception through a task gate.
    Event,
    /// `IRET` with NT set.
    Return,
}

impl Switch {
    /// The old task stays busy and the new one links back to it.
    fn nests(self) -> bool {
        matches!(self, Self::Call | Self::Event)
    }
}

/// The fields of a TSS that a switch loads or stores.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct TaskState {
    cr3: u64,
    rip: u64,
    flags: u64,
    gpr: [u64; 8],
    /// In register order; FS and GS are null in a 16-bit TSS.
    selectors: [u16; 6],
    ldt: u16,
    /// A debug trap before the task's first instruction (T, §8.2.1).
    traps: bool,
}

fn field(bytes: &[u8], offset: usize, size: usize) -> u64 {
    bytes[offset..offset + size].iter().rev().fold(0, |sum, byte| (sum << 8) | u64::from(*byte))
}

impl TaskState {
    /// From a 32-bit TSS (§8.2.1 figure 8-2).
    fn from_tss_32(tss: &[u8; 104]) -> Self {
        Self {
            cr3: field(tss, 0x1c, 4),
            rip: field(tss, 0x20, 4),
            flags: field(tss, 0x24, 4),
            gpr: std::array::from_fn(|index| field(tss, 0x28 + 4 * index, 4)),
            selectors: std::array::from_fn(|index| field(tss, 0x48 + 4 * index, 2) as u16),
            ldt: field(tss, 0x60, 2) as u16,
            traps: tss[0x64] & 1 != 0,
        }
    }

    /// From a 16-bit TSS (§8.6 figure 8-10).
    fn from_tss_16(tss: &[u8; 104]) -> Self {
        let selector = |index| if index < 4 { field(tss, 0x22 + 2 * index, 2) as u16 } else { 0 };
        Self {
            cr3: 0,
            rip: field(tss, 0x0e, 2),
            flags: field(tss, 0x10, 2),
            gpr: std::array::from_fn(|index| 0xffff_0000 | field(tss, 0x12 + 2 * index, 2)),
            selectors: std::array::from_fn(selector),
            ldt: field(tss, 0x2a, 2) as u16,
            traps: false,
        }
    }

    /// The 64 bytes that a switch stores in a 32-bit TSS, from EIP to GS.
    fn to_tss_32(self) -> [u8; 64] {
        let mut bytes = [0; 64];
        let selectors = self.selectors.map(u64::from);
        let values = [self.rip, self.flags].into_iter().chain(self.gpr).chain(selectors);
        for (word, value) in bytes.chunks_exact_mut(4).zip(values) {
            word.copy_from_slice(&(value as u32).to_le_bytes());
        }
        bytes
    }

    /// The 28 bytes that a switch stores in a 16-bit TSS, from IP to DS.
    fn to_tss_16(self) -> [u8; 28] {
        let mut bytes = [0; 28];
        let selectors = self.selectors.map(u64::from);
        let values = [self.rip, self.flags].into_iter().chain(self.gpr).chain(selectors);
        for (word, value) in bytes.chunks_exact_mut(2).zip(values) {
            word.copy_from_slice(&(value as u16).to_le_bytes());
        }
        bytes
    }
}

impl Cpu {
    /// Switch to the task of a TSS selector. `next_rip` and `flags` go to the old task's TSS.
    /// Faults up to the commit belong to the old task, later ones to the new task.
    ///
    /// # Errors
    /// #GP, #NP, #TS, #SS with a selector, page faults.
    pub(crate) fn switch_task(
        &mut self,
        selector: u16,
        switch: Switch,
        next_rip: u64,
        flags: u64,
    ) -> Result<(), Exception> {
        let descriptor = self.task_descriptor(selector, switch)?;
        let tss = descriptor.register(selector);
        let wide = descriptor.kind() & 8 != 0;
        let task = self.read_task(&tss, wide)?;
        let claims = switch != Switch::Return;
        if claims {
            self.mark_busy(&descriptor, selector)?;
        }
        if let Err(fault) = self.leave_task(&tss, switch, next_rip, flags) {
            if claims {
                self.clear_busy(selector)?;
            }
            return Err(fault);
        }
        self.state.tr = SegmentRegister { attributes: tss.attributes | 2, ..tss };
        self.state.cr0 |= CR0_TS;
        self.state.dr[7] &= !DR7_LOCAL;
        self.load_task(&task, wide, switch.nests())?;
        if task.traps {
            self.debug_hits |= DR6_BT;
        }
        Ok(())
    }

    /// Save the old task, and mark it available or link the new one back to it.
    fn leave_task(
        &mut self,
        tss: &SegmentRegister,
        switch: Switch,
        next_rip: u64,
        flags: u64,
    ) -> Result<(), Exception> {
        let old_selector = self.state.tr.selector;
        self.save_task(next_rip, if switch == Switch::Return { flags & !flag::NT } else { flags })?;
        match switch.nests() {
            true => self.write_table(tss.base, 2, u64::from(old_selector)),
            false => self.clear_busy(old_selector),
        }
    }

    /// `IRET` with NT set (§8.4 "Task Linking"). IRET is one byte and perhaps an operand-size prefix.
    pub(crate) fn return_to_previous_task(&mut self) -> Result<(), Exception> {
        let link = self.read_tss(0, 2)? as u16;
        let next_rip = self.state.rip.wrapping_add(1);
        self.switch_task(link, Switch::Return, next_rip, self.state.rflags)
    }

    fn task_descriptor(&mut self, selector: u16, switch: Switch) -> Result<Descriptor, Exception> {
        let code = code_of(selector);
        let returning = switch == Switch::Return;
        let fault = if returning { Exception::invalid_tss(code) } else { Exception::protection(code) };
        if is_null(selector) || selector & 4 != 0 {
            return Err(fault);
        }
        let descriptor = self.descriptor(selector)?.ok_or(fault)?;
        let legal = match descriptor.kind() {
            system_type::TSS | system_type::TSS_16 => !returning,
            system_type::TSS_BUSY | system_type::TSS_16_BUSY => returning,
            _ => false,
        };
        if descriptor.is_code_or_data() || !legal {
            return Err(fault);
        }
        if !descriptor.present() {
            return Err(Exception::not_present(code));
        }
        Ok(descriptor)
    }

    fn read_task(&mut self, tss: &SegmentRegister, wide: bool) -> Result<TaskState, Exception> {
        let smallest = if wide { LIMIT_32 } else { LIMIT_16 };
        if tss.limit < smallest {
            return Err(Exception::invalid_tss(code_of(tss.selector)));
        }
        let mut bytes = [0; 104];
        let used = smallest as usize + 1;
        only_exception(self.read_bytes(tss.base, &mut bytes[..used], AccessMode::System))?;
        Ok(if wide { TaskState::from_tss_32(&bytes) } else { TaskState::from_tss_16(&bytes) })
    }

    /// Store the running task in its TSS, all or nothing.
    fn save_task(&mut self, next_rip: u64, flags: u64) -> Result<(), Exception> {
        let state = &self.state;
        let task = TaskState {
            cr3: 0,
            rip: next_rip,
            flags,
            gpr: std::array::from_fn(|index| state.gpr[index]),
            selectors: state.segments.map(|register| register.selector),
            ldt: 0,
            traps: false,
        };
        let base = state.tr.base;
        only_exception(if state.tr.kind() & 8 != 0 {
            self.write_bytes(base.wrapping_add(0x20), &task.to_tss_32(), AccessMode::System)
        } else {
            self.write_bytes(base.wrapping_add(0x0e), &task.to_tss_16(), AccessMode::System)
        })
    }

    fn load_task(&mut self, task: &TaskState, wide: bool, nested: bool) -> Result<(), Exception> {
        if wide && self.state.cr0 & CR0_PG != 0 {
            self.load_task_cr3(task.cr3);
        }
        self.state.rip = task.rip;
        self.state.gpr[..8].copy_from_slice(&task.gpr);
        let nesting = if nested { flag::NT } else { 0 };
        self.state.rflags = (task.flags & 0x003f_7fd5) | flag::FIXED | nesting;
        for (register, selector) in self.state.segments.iter_mut().zip(task.selectors) {
            *register = SegmentRegister { selector, ..SegmentRegister::default() };
        }
        self.state.ldtr = SegmentRegister { selector: task.ldt, ..SegmentRegister::default() };
        self.load_task_ldt(task.ldt)?;
        if self.state.v86() {
            for (segment, selector) in task.selectors.into_iter().enumerate() {
                self.state.segments[segment] = self.paragraph_segment(segment, selector);
            }
            return Ok(());
        }
        self.load_task_segments(&task.selectors)
    }

    fn load_task_cr3(&mut self, cr3: u64) {
        self.state.cr3 = cr3;
        if self.state.cr4 & CR4_PAE != 0 {
            let table = cr3 & 0xffff_ffe0;
            self.state.pdptes =
                [0, 8, 16, 24].map(|offset| self.load_table_entry(table + offset).unwrap_or(0));
        }
        self.mmu.flush(Flush::NonGlobal);
    }

    fn load_task_ldt(&mut self, selector: u16) -> Result<(), Exception> {
        if is_null(selector) {
            return Ok(());
        }
        let fault = Exception::invalid_tss(code_of(selector));
        let descriptor = self.descriptor(selector)?.filter(|_| selector & 4 == 0).ok_or(fault)?;
        let legal = !descriptor.is_code_or_data() && descriptor.kind() == system_type::LDT;
        if !legal || !descriptor.present() {
            return Err(fault);
        }
        self.state.ldtr = self.system_register(descriptor, selector)?;
        Ok(())
    }

    /// CS and with it the privilege level, SS, then the data segments; all blame the TSS.
    fn load_task_segments(&mut self, selectors: &[u16; 6]) -> Result<(), Exception> {
        let selector = selectors[seg::CS];
        let level = rpl(selector);
        let fault = Exception::invalid_tss(code_of(selector));
        let target = self.descriptor(selector)?.filter(|_| !is_null(selector)).ok_or(fault)?;
        let level_fits = if target.is_conforming() { target.dpl() <= level } else { target.dpl() == level };
        if !target.is_code() || !level_fits {
            return Err(fault);
        }
        self.state.segments[seg::SS].attributes = u16::from(level) << 5;
        self.state.segments[seg::CS] = self.code_segment(target, selector, level)?;
        self.state.segments[seg::SS] =
            self.stack_segment(selectors[seg::SS], level, false).map_err(protection_to_invalid_tss)?;
        for segment in [seg::ES, seg::DS, seg::FS, seg::GS] {
            self.state.segments[segment] =
                self.data_segment(selectors[segment]).map_err(protection_to_invalid_tss)?;
        }
        self.check_target(&self.state.segments[seg::CS], self.state.rip)
    }
}

//! Frequent system instructions of 64-bit kernels, carried out between two blocks without the run loop; and
//! repeated string instructions of any 64-bit code.
//!
//! What the run loop does after each exit is left out because nothing of it can be due: the instructions change
//! neither the mode nor what system calls load, and where an event, a request or a store waits, the cache is
//! left after all.

use super::entry::{exit, resume};
use super::vcpu::VcpuCore;
use super::vectors::uses_vectors;
use crate::cpu::{Outcome, Stop};
use crate::mode::Mode;
use crate::state::gpr;
use iced_x86::{Instruction, Mnemonic};
use std::sync::atomic::Ordering;
use sublet_engine::Exit;

/// Bases of FS and GS, the timer's deadline, x2APIC registers: MSRs whose change changes no mode.
const PLAIN_MSRS: [std::ops::RangeInclusive<u32>; 3] =
    [0xc000_0100..=0xc000_0102, 0x6e0..=0x6e0, 0x802..=0x8ff];

/// Entry from `sublet_in_place`: carry out the instruction of `HotState::exit_argument`.
///
/// # Safety
/// Called only from there: `core` is the vCPU whose translated code is running.
pub unsafe extern "sysv64" fn in_place(core: *mut VcpuCore) -> u64 {
    // SAFETY: as the caller promises; the run loop holds no reference while translated code runs.
    let core = unsafe { &mut *core };
    core.guarded(VcpuCore::carry_out_in_place)
}

impl VcpuCore {
    fn carry_out_in_place(&mut self) -> u64 {
        let instruction = self.cache.system_instruction(self.cpu.state.hot.exit_argument);
        if !self.may_stay(&instruction) {
            // The run loop carries it out.
            self.cpu.state.hot.exit_reason = exit::SYSTEM;
            return resume::LEAVE;
        }
        self.counters.system += 1;
        self.carried_out.count(instruction.mnemonic());
        self.set_rip_in_page(instruction.ip() as i64);
        let next = self.cpu.next_rip(&instruction);
        if let Err(stop) = self.execute_in_place(&instruction) {
            return self.leave_in_place(Some(stop));
        }
        // A string instruction may have elements left.
        if self.bring_up_to_date() && self.cpu.state.rip == next {
            self.load_vectors();
            return resume::DIRECT;
        }
        self.leave_in_place(None)
    }

    fn execute_in_place(&mut self, instruction: &Instruction) -> Outcome {
        if instruction.is_string_instruction() && self.string_in_place(instruction)? {
            return Ok(());
        }
        if uses_vectors(instruction) {
            if let Some(outcome) = self.host_xsave(instruction) {
                return outcome;
            }
            self.store_vectors();
        }
        self.cpu.execute(instruction)
    }

    /// Whether nothing stands in the way beforehand.
    fn may_stay(&self, instruction: &Instruction) -> bool {
        let plain = |number: &u32| PLAIN_MSRS.iter().any(|range| range.contains(number));
        let right = match instruction.mnemonic() {
            Mnemonic::Wrmsr => plain(&(self.cpu.state.gpr[gpr::RCX] as u32)),
            _ => true,
        };
        right && self.unconfirmed.is_empty() && self.cpu.posted_writes.is_empty() && !self.cpu.watching
    }

    /// Carry out flushes. Returns whether translated code may go on behind the instruction.
    fn bring_up_to_date(&mut self) -> bool {
        let same_code = !self.cpu.mmu.has_pending() || self.flush_in_place();
        let asked = self.cpu.state.hot.permit.load(Ordering::SeqCst) == 0;
        let stored = self.requests.stores_wait.load(Ordering::SeqCst);
        same_code && !asked && !stored && self.cpu.posted_writes.is_empty()
    }

    /// Returns whether what follows in the running block's page is sure to be mapped as it was.
    fn flush_in_place(&mut self) -> bool {
        let mode = self.mode();
        let before = (!self.tlb.has_local_kernel_code()).then(|| self.tlb.generation(mode));
        self.apply_flushes();
        // The programs of another address space may have windows or none.
        let same_mode = self.choose_windows(Mode::of(&self.cpu.state)) == mode;
        self.tlb.jumps.enter_mode(&mut self.cpu.state.hot, mode);
        same_mode && before == Some(self.tlb.generation(mode))
    }

    /// Leave: RIP is that of the instruction if it was stopped, otherwise behind it.
    fn leave_in_place(&mut self, stop: Option<Stop>) -> u64 {
        self.mode_stale = true;
        self.stopped = Some(stop.unwrap_or(Stop::Exit(Exit::Interrupted)));
        self.cpu.state.hot.exit_reason = exit::ACCESS;
        resume::LEAVE
    }
}

//! x87 errors while CR0.NE is clear: FERR#, IRQ 13 and IGNNE# in place of #MF.
//!
//! A waiting x87 or MMX instruction that finds an unmasked exception asserts FERR#, at the latest as
//! processors do, and stands still before it has done anything, as in HLT, until an interrupt comes: that of
//! the chipset (`sublet_irq::CoprocessorError`) or any other. While the chipset asserts IGNNE# the
//! instruction runs with the exception hidden from the host's x87 unit, which knows #MF alone.
//!
//! Reference: Intel SDM vol. 1 §8.7.2 "MS-DOS Compatibility Sub-mode", §D.2.

use super::vcpu::{Next, VcpuCore};
use crate::frontend::{decoder_options, MAX_INSTRUCTION_BYTES};
use crate::system::memory::AccessMode;
use iced_x86::{Decoder, Mnemonic};
use std::arch::asm;

const NUMERIC_ERROR: u64 = 1 << 5;
/// Status word: IE, DE, ZE, OE, UE, PE; their masks are the same bits of the control word.
const EXCEPTIONS: u16 = 0x3f;

/// An instruction that is to run although an x87 exception is pending.
#[derive(Debug, Clone, Copy)]
pub(super) struct IgnoredError {
    /// Its address.
    rip: u64,
    /// It loads a status word, with which the exception goes.
    replaces_status: bool,
    /// Exceptions that were taken out of the x87 unit.
    hidden: u16,
}

impl VcpuCore {
    /// CR0.NE: x87 errors are exceptions.
    pub(super) fn reports_math_errors(&self) -> bool {
        self.cpu.state.cr0 & NUMERIC_ERROR != 0
    }

    /// The instruction at RIP found an x87 exception pending.
    pub(super) fn math_error_by_interrupt(&mut self) -> Next {
        let ignored = self.cpu.irqchip.as_ref().is_some_and(|chip| chip.set_math_error(self.number, true));
        if !ignored {
            self.cpu.events.halted = true;
            return Next::Continue;
        }
        let replaces_status = self.replaces_status();
        self.ignored_error = Some(IgnoredError { rip: self.cpu.state.rip, replaces_status, hidden: 0 });
        self.alone = true;
        self.enter_current()
    }

    /// Whether the instruction at RIP is FLDENV or FRSTOR.
    fn replaces_status(&mut self) -> bool {
        let mut bytes = [0; MAX_INSTRUCTION_BYTES];
        let la = self.linear_rip();
        // At the end of a page that another vCPU has taken away meanwhile, either answer will do.
        let _ = self.cpu.read_bytes(la, &mut bytes, AccessMode::System);
        let bits = self.mode().code().bits();
        let instruction = Decoder::new(bits, &bytes, decoder_options()).decode();
        matches!(instruction.mnemonic(), Mnemonic::Fldenv | Mnemonic::Frstor)
    }

    /// Before an instruction that runs in spite of a pending exception, see
    /// [`Self::math_error_by_interrupt`]: hide it. `None` before all others.
    pub(super) fn hide_math_error(&mut self) -> Option<IgnoredError> {
        let ignored = self.ignored_error.take().filter(|ignored| ignored.rip == self.cpu.state.rip)?;
        Some(IgnoredError { hidden: take_exceptions(), ..ignored })
    }

    /// After what ran in the cache: show what was hidden, and let FERR# fall when the exception has gone or
    /// is reported otherwise. What ends an exception without waiting for it leaves the cache.
    pub(super) fn settle_math_error(&mut self, hidden: Option<IgnoredError>) {
        if let Some(hidden) = hidden {
            self.show_math_error(hidden);
        }
        let Some(chip) = self.cpu.irqchip.as_ref().filter(|chip| chip.math_error(self.number)) else {
            return;
        };
        let chip = chip.clone();
        if self.reports_math_errors() || !self.math_error_pending() {
            chip.set_math_error(self.number, false);
        }
    }

    fn show_math_error(&mut self, ignored: IgnoredError) {
        if self.alone {
            // It has yet to run, while all other vCPUs stand still.
            self.ignored_error = Some(ignored);
        }
        let done = !self.faulted && self.cpu.state.rip != ignored.rip;
        if ignored.replaces_status && done {
            return;
        }
        match self.vectors_in_area {
            true => self.cpu.add_x87_exceptions(ignored.hidden),
            false => add_exceptions(ignored.hidden),
        }
    }

    fn math_error_pending(&mut self) -> bool {
        if self.vectors_in_area {
            return self.cpu.math_error_pending();
        }
        let (status, mut control) = (status_word(), 0u16);
        // SAFETY: stores the control word to a local, changes nothing and does not wait for exceptions.
        unsafe { asm!("fnstcw [{}]", in(reg) &mut control, options(nostack, preserves_flags)) };
        status & !control & EXCEPTIONS != 0
    }
}

/// The status word of the guest's x87 state, which is in the processor.
pub(super) fn status_word() -> u16 {
    let status: u16;
    // SAFETY: stores the status word, changes nothing and does not wait for exceptions.
    unsafe { asm!("fnstsw ax", out("ax") status, options(nomem, nostack, preserves_flags)) };
    status
}

/// Clear the exceptions of the guest's x87 state, which is in the processor; returns them.
fn take_exceptions() -> u16 {
    let status = status_word();
    // SAFETY: changes the status word, whose exceptions compiled code does not look at; does not wait.
    unsafe { asm!("fnclex", options(nomem, nostack, preserves_flags)) };
    status & EXCEPTIONS
}

/// Let `exceptions` be pending in the processor beside those that are.
fn add_exceptions(exceptions: u16) {
    const STATUS: usize = 2;
    let mut environment = [0u16; 14];
    // SAFETY: FNSTENV stores 28 bytes to a local and masks all exceptions, so that FLDENV, which restores
    // all that was stored but the status word, finds none to wait for.
    unsafe {
        asm!("fnstenv [{}]", in(reg) &mut environment, options(nostack, preserves_flags));
        environment[STATUS] |= exceptions;
        asm!("fldenv [{}]", in(reg) &environment, options(nostack, preserves_flags, readonly));
    }
}

//! RFLAGS as a whole: read, and taken from the stack.

use super::access::{AccessKind, Descriptor};
use super::builder::{hot, Unencodable};
use super::{Builder, Host};
use crate::mode::Width;
use crate::state::{flag, CpuState, HotState};
use iced_x86::{Instruction, Mnemonic};
use std::mem::offset_of;
use std::rc::Rc;

/// Flags of a popped image that have to be those of the mode, whatever the privilege.
const OF_THE_MODE: u64 = flag::TF | flag::DF | flag::NT | flag::AC;

impl Builder {
    /// RCX = RFLAGS: the arithmetic flags from the host's, the others from memory. Uses R14.
    pub(super) fn read_flags(&mut self) {
        self.asm.pushf_pop(Host::RCX);
        self.keep_bits(Host::RCX, hot!(arithmetic_mask));
        self.asm.load(Host::R14, offset_of!(CpuState, rflags) as i32);
        self.keep_bits(Host::R14, hot!(not_arithmetic_mask));
        self.asm.lea(true, Host::RCX, Some(Host::RCX), Some((Host::R14, 1)), 0);
    }

    fn keep_bits(&mut self, register: Host, mask: i32) {
        self.asm.pext(register, register, mask);
        self.asm.pdep(register, register, mask);
    }

    /// RCX = the bits of RCX that are in `mask`. Uses R15.
    pub(super) fn keep_only(&mut self, mask: u64) {
        self.asm.mov_immediate(Host::R15, mask);
        self.asm.pext_by(Host::RCX, Host::RCX, Host::R15);
        self.asm.pdep_by(Host::RCX, Host::RCX, Host::R15);
    }

    /// What RFLAGS holds of the flags that the mode tells: all but the arithmetic ones, IF and ID.
    pub(super) fn flags_of_mode(&self) -> u64 {
        let df = if self.mode.backwards() { flag::DF } else { 0 };
        let ac = if self.mode.access_override() { flag::AC } else { 0 };
        flag::FIXED | df | ac
    }

    /// POPFD or POPFQ of flags that leave the mode as it is. Returns whether this is one that could be.
    pub(super) fn pop_flags(&mut self, instruction: &Instruction) -> Result<bool, Unencodable> {
        let size = match instruction.mnemonic() {
            Mnemonic::Popfd => 4,
            Mnemonic::Popfq => 8,
            _ => return Ok(false),
        };
        let kernel = self.mode.cpl() == 0;
        if !(kernel || self.mode.cpl() == 3) || !self.mode.protected() || self.mode.stack() == Width::W16 {
            return Ok(false);
        }
        let address = self.stack_address(0);
        self.access(
            address,
            Descriptor::new(size, AccessKind::Read).stack(),
            Rc::new(move |builder, place| {
                builder.load_place(Host::RCX, place, size)?;
                builder.asm.store(hot!(temporary), Host::RCX);
                Ok(())
            }),
        )?;
        let mut slow = Vec::new();
        // IOPL is the kernel's to change.
        let mask = OF_THE_MODE | if kernel { flag::IOPL } else { 0 };
        self.asm.load(Host::RCX, hot!(temporary));
        self.keep_only(mask);
        self.asm.lea_base(Host::RCX, Host::RCX, -((self.flags_of_mode() & mask) as i32));
        slow.push(self.jump_if_rcx_is_not_zero());
        if kernel {
            slow.push(self.unless_interrupts_may_be_on());
        }
        self.adjust_stack(size as i32);
        self.take_popped_flags(kernel);
        self.leave_at(slow, instruction);
        Ok(true)
    }

    /// Jump if the flags in `HotState::temporary` have IF set while an event waits for it.
    pub(super) fn unless_interrupts_may_be_on(&mut self) -> super::assembler::Patch {
        self.asm.load(Host::RCX, hot!(temporary));
        self.keep_only(flag::IF);
        let off = self.asm.jrcxz();
        self.asm.load(Host::RCX, hot!(nothing_waits));
        let waits = self.jump_if_rcx_is_zero();
        self.asm.bind_short(off);
        waits
    }

    /// RFLAGS = `HotState::temporary` where a program may change it, and for the rest what the mode says.
    /// A user program keeps its IF. Uses R14 and R15.
    pub(super) fn take_popped_flags(&mut self, kernel: bool) {
        let rflags = offset_of!(CpuState, rflags) as i32;
        let taken = flag::ARITHMETIC | flag::ID | if kernel { flag::IF } else { 0 };
        if !kernel {
            self.asm.load(Host::RCX, rflags);
            self.keep_only(flag::IF);
            self.asm.mov(Host::R14, Host::RCX);
        }
        self.asm.load(Host::RCX, hot!(temporary));
        self.keep_only(taken);
        let rest = self.flags_of_mode() as i32;
        match kernel {
            true => self.asm.lea_base(Host::RCX, Host::RCX, rest),
            false => self.asm.lea(true, Host::RCX, Some(Host::RCX), Some((Host::R14, 1)), rest),
        }
        self.asm.store(rflags, Host::RCX);
        self.asm.flags_from_rcx(Host::R14);
    }
}

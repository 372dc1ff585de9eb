//! Into a 32-bit kernel and back to its programs.
//!
//! Only for programs and kernels in flat segments: the mode then tells what the other side's is. What a
//! model-specific register or a descriptor says otherwise is carried out by compiled code.

use super::builder::hot;
use super::registers::{GUEST_RCX, GUEST_RSP};
use super::system::FLAGS_BYTE_1;
use super::{Builder, Host};
use crate::mode::{Mode, Width};
use crate::state::{seg, CpuState, HotState};
use iced_x86::Instruction;
use std::mem::offset_of;

impl Builder {
    /// The mode of the other side, `cpl` 0 or 3, if the segments and flags that stay let it be told.
    fn flat_side(&self, cpl: u8) -> Option<Mode> {
        let plain = self.mode.flat()
            && self.mode.code() == Width::W32
            && self.mode.stack() == Width::W32
            && !self.mode.code_limited()
            && !self.mode.is_alone();
        (plain && !self.mode.access_override()).then(|| self.mode.at_level(cpl))
    }

    /// SYSENTER. Returns whether it could be emitted.
    pub(super) fn sysenter(&mut self, instruction: &Instruction) -> bool {
        let Some(kernel) = self.flat_side(0) else { return false };
        self.asm.load(Host::RCX, hot!(sysenter_ready));
        let slow = self.jump_if_rcx_is_zero();
        self.set_segment(seg::CS, hot!(sysenter_segments));
        self.set_segment(seg::SS, hot!(sysenter_segments) + 8);
        let flags = self.flags_byte(false);
        self.asm.store_byte(FLAGS_BYTE_1, flags);
        self.asm.load(GUEST_RSP, offset_of!(CpuState, sysenter_esp) as i32);
        self.asm.mov32(GUEST_RSP, GUEST_RSP);
        self.asm.load(Host::R14, offset_of!(CpuState, sysenter_eip) as i32);
        self.switch_mode(kernel);
        self.leave_at(vec![slow], instruction);
        true
    }

    /// SYSEXIT. Returns whether it could be emitted.
    pub(super) fn sysexit(&mut self, instruction: &Instruction) -> bool {
        let Some(user) = self.flat_side(3) else { return false };
        self.asm.load(Host::RCX, hot!(sysenter_ready));
        let slow = self.jump_if_rcx_is_zero();
        self.set_segment(seg::CS, hot!(sysexit_segments));
        self.set_segment(seg::SS, hot!(sysexit_segments) + 8);
        self.asm.mov32(GUEST_RSP, GUEST_RCX);
        self.asm.mov(Host::R14, Host::RDX);
        self.switch_mode(user);
        self.leave_at(vec![slow], instruction);
        true
    }
}

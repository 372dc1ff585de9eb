//! System instructions that are frequent enough to stay in the cache.
//!
//! Each has the same effect as its compiled form in `system`, for the case that kernels are in:
//! CPL 0, IOPL 0. Every other case leaves the cache. None of the code here changes the host's
//! flags, because they are the guest's.

use super::builder::hot;
use super::registers::number;
use super::{Builder, Host};
use crate::mode::Mode;
use crate::state::{flag, seg, CpuState, HotState, SegmentRegister};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use std::mem::{offset_of, size_of};

/// Offset of RFLAGS bits 15:8 from the GS base.
const FLAGS_BYTE_1: i32 = offset_of!(CpuState, rflags) as i32 + 1;

impl Builder {
    /// Emit a system instruction in place, if this one can be. Returns whether it was.
    pub(super) fn inline_system(&mut self, instruction: &Instruction) -> bool {
        if self.mode.cpl() != 0 || !self.mode.is64() || self.mode.single_step() || self.mode.unusual_flags() {
            return false;
        }
        match instruction.mnemonic() {
            Mnemonic::Cli => self.interrupts_off(),
            Mnemonic::Sti => self.interrupts_on(instruction),
            Mnemonic::Swapgs => self.swap_gs(),
            Mnemonic::Stac => self.set_access_override(true),
            Mnemonic::Clac => self.set_access_override(false),
            Mnemonic::Mov => return self.read_control_register(instruction),
            _ => return false,
        }
        true
    }

    /// RFLAGS bits 15:8 with this interrupt flag: the others are known from the mode, but for OF,
    /// which is in the host's flags.
    fn flags_byte(&self, interrupts: bool) -> u8 {
        let df = if self.mode.backwards() { flag::DF >> 8 } else { 0 };
        let interrupt = if interrupts { flag::IF >> 8 } else { 0 };
        (df | interrupt) as u8
    }

    fn interrupts_off(&mut self) {
        let value = self.flags_byte(false);
        self.asm.store_byte(FLAGS_BYTE_1, value);
    }

    /// With an event waiting, the run loop has to look: it carries out the instruction.
    fn interrupts_on(&mut self, instruction: &Instruction) {
        self.asm.load(Host::RCX, hot!(nothing_waits));
        let waits = self.asm.jrcxz();
        let go = self.asm.jump_short();
        self.asm.bind_short(waits);
        let out = self.asm.jump();
        self.asm.bind_short(go);
        let value = self.flags_byte(true);
        self.asm.store_byte(FLAGS_BYTE_1, value);
        let index = self.out.system.len();
        self.out.system.push(*instruction);
        self.later(move |builder| {
            builder.asm.bind(out);
            builder.numbered_exit(index, false);
        });
    }

    fn swap_gs(&mut self) {
        let base = offset_of!(CpuState, segments) + seg::GS * size_of::<SegmentRegister>();
        let base = (base + offset_of!(SegmentRegister, base)) as i32;
        let kernel = offset_of!(CpuState, kernel_gs_base) as i32;
        self.asm.load(Host::RCX, base);
        self.asm.load(Host::R14, kernel);
        self.asm.store(base, Host::R14);
        self.asm.store(kernel, Host::RCX);
    }

    /// STAC and CLAC: what follows runs in another mode, by other TLBs.
    fn set_access_override(&mut self, on: bool) {
        let flags = offset_of!(CpuState, rflags) as i32;
        self.asm.load(Host::RCX, flags);
        self.asm.pext(Host::RCX, Host::RCX, hot!(not_ac_mask));
        self.asm.pdep(Host::RCX, Host::RCX, hot!(not_ac_mask));
        if on {
            self.asm.lea_base(Host::RCX, Host::RCX, flag::AC as i32);
        }
        self.asm.store(flags, Host::RCX);
        let mode = self.mode.with_access_override(on);
        if mode == self.mode {
            return;
        }
        self.exit_to_mode(self.next, mode);
    }

    /// Go on at page offset `target` in another mode, whose jump cache the run loop keeps ready.
    fn exit_to_mode(&mut self, target: i64, mode: Mode) {
        self.asm.store_immediate(hot!(mode), mode.0 as i32);
        self.target_rip(target);
        let here = std::mem::replace(&mut self.mode, mode);
        self.exit_indirect(crate::mode::Width::W64);
        self.mode = here;
    }

    /// MOV from CR0, CR2, CR3 and CR4.
    fn read_control_register(&mut self, instruction: &Instruction) -> bool {
        if instruction.op0_kind() != OpKind::Register || instruction.op1_kind() != OpKind::Register {
            return false;
        }
        let at = match instruction.op1_register() {
            Register::CR0 => offset_of!(CpuState, cr0),
            Register::CR2 => offset_of!(CpuState, cr2),
            Register::CR3 => offset_of!(CpuState, cr3),
            Register::CR4 => offset_of!(CpuState, cr4),
            _ => return false,
        };
        let Some(guest) = number(instruction.op0_register()) else { return false };
        self.asm.load(Host::RCX, at as i32);
        self.write_guest(guest, Host::RCX);
        true
    }
}

//! System instructions that are frequent enough to stay in the cache.
//!
//! Each has the same effect as its compiled form in `system`, for the case that kernels are in:
//! CPL 0, IOPL 0. Every other case leaves the cache. None of the code here changes the host's
//! flags, because they are the guest's.

use super::assembler::Patch;
use super::builder::{hot, Unencodable};
use super::registers::{number, GUEST_RCX};
use super::{Builder, Host};
use crate::frontend::{classify, Kind};
use crate::mode::{Mode, Width};
use crate::optimisations::Optimisation;
use crate::state::{flag, seg, CpuState, HotState, SegmentRegister};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use std::mem::{offset_of, size_of};

/// RFLAGS bits that a system call may leave set, or return to a user program, without it mattering
/// to the mode: all others go through `unusual_mask`.
pub const FREE_FLAGS: u64 = flag::ARITHMETIC | flag::ID;
/// What must be left of a user program's flags behind `unusual_mask`: bit 1 and IF, compressed.
const USUAL_FLAGS: u64 = compress(flag::FIXED | flag::IF, !FREE_FLAGS);

/// Whether kernels carry it out so often that leaving the cache for it matters: at each context switch, page
/// fault or timer.
fn is_frequent(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    match instruction.mnemonic() {
        M::Mov => instruction.op0_register() == Register::CR3,
        M::Invlpg | M::Invpcid | M::Wrmsr | M::Rdtsc | M::Rdtscp => true,
        M::Xsave64 | M::Xsaveopt64 | M::Xsavec64 | M::Xsaves64 | M::Xrstor64 | M::Xrstors64 => true,
        _ => false,
    }
}

/// What PEXT computes.
const fn compress(value: u64, mask: u64) -> u64 {
    let (mut result, mut position, mut bit) = (0, 0, 0);
    while bit < 64 {
        if mask >> bit & 1 != 0 {
            result |= (value >> bit & 1) << position;
            position += 1;
        }
        bit += 1;
    }
    result
}

/// Offset of RFLAGS bits 15:8 in the state.
pub(super) const FLAGS_BYTE_1: i32 = offset_of!(CpuState, rflags) as i32 + 1;

impl Builder {
    /// Emit a system instruction in place, if this one can be. Returns whether it was.
    ///
    /// # Errors
    /// It could have been, but for an operand that cannot be encoded.
    pub(super) fn inline_system(&mut self, instruction: &Instruction) -> Result<bool, Unencodable> {
        let wanted = self.optimisations.has(Optimisation::SystemInstructions);
        if !wanted || self.mode.single_step() || self.mode.unusual_flags() {
            return Ok(false);
        }
        if self.read_segment_register(instruction)?
            || self.load_segment_register(instruction)?
            || (self.mode.is64() && self.segment_base_access(instruction)?)
            || (self.mode.is64() && self.interrupt_return(instruction)?)
            || self.pop_flags(instruction)?
        {
            return Ok(true);
        }
        Ok(match self.mode.code() {
            Width::W64 => self.inline_wide(instruction),
            Width::W32 if self.mode.protected() => self.inline_narrow(instruction),
            _ => false,
        })
    }

    /// Of 32-bit code.
    fn inline_narrow(&mut self, instruction: &Instruction) -> bool {
        if instruction.mnemonic() == Mnemonic::Sysenter {
            return self.sysenter(instruction);
        }
        if self.mode.cpl() != 0 {
            return false;
        }
        match instruction.mnemonic() {
            Mnemonic::Sysexit => return self.sysexit(instruction),
            Mnemonic::Cli => self.interrupts_off(),
            Mnemonic::Sti if self.followed => self.interrupts_on(instruction),
            Mnemonic::Stac => self.set_access_override(true),
            Mnemonic::Clac => self.set_access_override(false),
            Mnemonic::Mov => return self.read_control_register(instruction),
            _ => return false,
        }
        true
    }

    fn inline_wide(&mut self, instruction: &Instruction) -> bool {
        // SYSRETQ must lead back to the mode whose blocks the user's jump cache holds, and SYSCALL to
        // the kernel's.
        if instruction.mnemonic() == Mnemonic::Syscall && self.mode.without_windows() == self.mode.user_side()
        {
            self.enter_kernel(instruction);
            return true;
        }
        if self.mode.cpl() != 0 {
            return false;
        }
        match instruction.mnemonic() {
            Mnemonic::Sysretq if !self.mode.backwards() => self.return_to_user(instruction),
            Mnemonic::Cli => self.interrupts_off(),
            // Its shadow covers the next instruction: no interrupt between blocks may come before that.
            Mnemonic::Sti if self.followed => self.interrupts_on(instruction),
            Mnemonic::Swapgs => self.swap_gs(),
            Mnemonic::Stac => self.set_access_override(true),
            Mnemonic::Clac => self.set_access_override(false),
            Mnemonic::Mov if self.read_control_register(instruction) => {}
            _ => return self.in_place(instruction),
        }
        true
    }

    /// Whether compiled code may carry out an instruction that the block goes on behind.
    pub(super) fn calls_in_place(&self) -> bool {
        let alone = self.mode.is_alone() || self.mode.single_step();
        self.mode.is64() && !alone && self.optimisations.has(Optimisation::InPlace)
    }

    /// Have compiled code carry out a frequent instruction of a kernel's, and go on without the run loop. Ends
    /// the block: what its accesses share may no longer hold.
    fn in_place(&mut self, instruction: &Instruction) -> bool {
        let system = matches!(classify(instruction, self.mode), Kind::System);
        if !self.calls_in_place() || !system || !is_frequent(instruction) {
            return false;
        }
        let index = self.out.system.len();
        self.out.system.push(*instruction);
        self.store_number(index, false);
        self.asm.call_at(hot!(in_place));
        self.exit_to(self.next);
        true
    }

    /// RFLAGS bits 15:8 with this interrupt flag: the others are known from the mode, but for OF,
    /// which is in the host's flags.
    pub(super) fn flags_byte(&self, interrupts: bool) -> u8 {
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
        let out = self.jump_if_rcx_is_zero();
        let value = self.flags_byte(true);
        self.asm.store_byte(FLAGS_BYTE_1, value);
        self.leave_at(vec![out], instruction);
    }

    pub(super) fn jump_if_rcx_is_zero(&mut self) -> Patch {
        let zero = self.asm.jrcxz();
        let go = self.asm.jump_short();
        self.asm.bind_short(zero);
        let out = self.asm.jump();
        self.asm.bind_short(go);
        out
    }

    pub(super) fn jump_if_rcx_is_not_zero(&mut self) -> Patch {
        let zero = self.asm.jrcxz();
        let out = self.asm.jump();
        self.asm.bind_short(zero);
        out
    }

    /// Where the patches lead, compiled code carries the instruction out.
    pub(super) fn leave_at(&mut self, patches: Vec<Patch>, instruction: &Instruction) {
        let index = self.out.system.len();
        self.out.system.push(*instruction);
        self.later(move |builder| {
            patches.into_iter().for_each(|patch| builder.asm.bind(patch));
            builder.numbered_exit(index, false);
        });
    }

    /// SYSCALL into a kernel that masks every flag (`hot.syscall_ready` says so).
    fn enter_kernel(&mut self, instruction: &Instruction) {
        self.asm.load(Host::RCX, hot!(syscall_ready));
        let slow = self.jump_if_rcx_is_zero();
        self.read_flags();
        self.write_guest(11, Host::RCX);
        self.load_rip(GUEST_RCX, self.next as i32);
        self.set_segment(seg::CS, hot!(syscall_segments));
        self.set_segment(seg::SS, hot!(syscall_segments) + 8);
        self.asm.store_immediate(offset_of!(CpuState, rflags) as i32, flag::FIXED as i32);
        self.asm.clear_flags(Host::R14);
        self.asm.load(Host::R14, offset_of!(CpuState, lstar) as i32);
        self.switch_mode(self.mode.kernel_side());
        self.leave_at(vec![slow], instruction);
    }

    /// SYSRETQ to a user program whose flags are the usual ones.
    fn return_to_user(&mut self, instruction: &Instruction) {
        let rflags = offset_of!(CpuState, rflags) as i32;
        self.asm.load(Host::RCX, hot!(sysret_ready));
        let mut slow = vec![self.jump_if_rcx_is_zero()];
        self.asm.load(Host::RCX, hot!(nothing_waits));
        slow.push(self.jump_if_rcx_is_zero());
        // Of R11, only IF, bit 1, the arithmetic flags and ID may be set, and the first two are.
        self.read_guest(Host::RCX, 11);
        self.asm.pext(Host::RCX, Host::RCX, hot!(unusual_mask));
        self.asm.lea_base(Host::RCX, Host::RCX, -(USUAL_FLAGS as i32));
        slow.push(self.jump_if_rcx_is_not_zero());
        self.asm.pext(Host::RCX, GUEST_RCX, hot!(not_user_mask));
        slow.push(self.jump_if_rcx_is_not_zero());
        self.set_segment(seg::CS, hot!(sysret_segments));
        self.set_segment(seg::SS, hot!(sysret_segments) + 8);
        self.read_guest(Host::RCX, 11);
        self.asm.store(rflags, Host::RCX);
        self.asm.flags_from_rcx(Host::R14);
        self.asm.mov(Host::R14, GUEST_RCX);
        self.switch_to_user();
        self.leave_at(slow, instruction);
    }

    /// Load a segment register with base 0 and the rest from `image`. Uses RCX.
    pub(super) fn set_segment(&mut self, index: usize, image: i32) {
        let at = offset_of!(CpuState, segments) + index * size_of::<SegmentRegister>();
        self.asm.store_immediate((at + offset_of!(SegmentRegister, base)) as i32, 0);
        self.asm.load(Host::RCX, image);
        self.asm.store((at + offset_of!(SegmentRegister, limit)) as i32, Host::RCX);
    }

    /// Go on at the RIP in R14 in another mode, whose jump cache the run loop keeps ready.
    pub(super) fn switch_mode(&mut self, mode: Mode) {
        self.asm.store_immediate(hot!(mode), mode.0 as i32);
        let here = std::mem::replace(&mut self.mode, mode);
        self.exit_indirect(Width::W64);
        self.mode = here;
    }

    /// Go on at the RIP in R14 in the mode of user code, which is with or without memory windows as the run loop
    /// has said.
    pub(super) fn switch_to_user(&mut self) {
        self.asm.load(Host::RCX, hot!(user_mode));
        self.asm.store(hot!(mode), Host::RCX);
        let user = self.mode.user_side();
        let here = std::mem::replace(&mut self.mode, user);
        self.exit_indirect(Width::W64);
        self.mode = here;
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
        self.target_rip(self.next);
        self.switch_mode(mode);
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

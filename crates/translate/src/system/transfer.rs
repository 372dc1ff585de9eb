//! Control transfers that change CS or the privilege level.
//!
//! Each follows the pseudo-code of its instruction in Intel SDM vol. 2 (edition 081). On entry
//! `state.rip` is that of the instruction; on success it is the target. When one fails, registers
//! are those before the instruction.

use super::frame::{pointer_mask, Stack};
use super::interrupt::Event;
use super::segment::{code_of, is_null, rpl, system_type, Descriptor};
use super::task::Switch;
use crate::cpu::{Cpu, Exception, Outcome, Stop};
use crate::mmu::walk::is_canonical;
use crate::state::{flag, gpr, seg, SegmentRegister};
use sublet_engine::Exit;

const EFER_SCE: u64 = 1;
/// Flat segments that SYSCALL, SYSENTER and their returns load without reading descriptors:
/// present, accessed, 4 GiB. Bits 6:5 take the privilege level.
const FLAT_CODE_64: u16 = 0xa09b;
const FLAT_CODE_32: u16 = 0xc09b;
const FLAT_STACK: u16 = 0xc093;

fn flat(selector: u64, attributes: u16, level: u8) -> SegmentRegister {
    SegmentRegister {
        base: 0,
        limit: 0xffff_ffff,
        selector: (selector as u16 & !3) | u16::from(level),
        attributes: attributes | (u16::from(level) << 5),
    }
}

/// The low `size` (2, 4 or 8) bytes.
fn truncate(value: u64, size: u8) -> u64 {
    value & (u64::MAX >> (64 - 8 * u32::from(size)))
}

/// Whether `JMP` or `CALL` transfers through a gate or TSS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transfer {
    Jump,
    Call { size: u8, next_rip: u64 },
}

impl Cpu {
    fn commit_code(&mut self, code: SegmentRegister, rip: u64) {
        self.state.segments[seg::CS] = code;
        self.state.rip = rip;
    }

    /// Deliver `INT n`, `INT3` (3) or `INTO` (4) that ends at `next_rip`. Use
    /// [`Self::int_n`] for `INT n`, which virtual-8086 mode treats differently.
    ///
    /// # Errors
    /// Only `Exit::Shutdown`: exceptions on the way have been delivered.
    pub fn software_interrupt(&mut self, vector: u8, next_rip: u64) -> Outcome {
        self.deliver(Event::Software { vector, next_rip }).map_err(|_| Stop::Exit(Exit::Shutdown))
    }

    /// `INT n`.
    ///
    /// # Errors
    /// #GP(0) in virtual-8086 mode with IOPL below 3, `Exit::Shutdown`.
    pub fn int_n(&mut self, vector: u8, next_rip: u64) -> Outcome {
        if self.state.protected() && self.state.v86() && self.redirect_v86_interrupt(vector, next_rip)? {
            return Ok(());
        }
        self.software_interrupt(vector, next_rip)
    }

    /// `IRET`, `IRETD`, `IRETQ`: `size` is the operand size, 2, 4 or 8. NMIs are unblocked even
    /// when it faults (vol. 3A §6.7.1 "Handling Multiple NMIs").
    ///
    /// # Errors
    /// #GP, #NP, #SS, #TS, page faults.
    pub fn iret(&mut self, size: u8) -> Outcome {
        self.events.nmi_masked = false;
        if !self.state.protected() {
            return Ok(self.iret_real(size)?);
        }
        if self.state.v86() {
            return Ok(self.iret_v86(size)?);
        }
        if self.state.rflags & flag::NT == 0 {
            return Ok(self.iret_protected(size)?);
        }
        if self.state.long_mode() {
            return Err(Exception::protection(0).into());
        }
        Ok(self.return_to_previous_task()?)
    }

    /// Flags that `IRET` at `cpl` takes from the stack; VM never.
    fn restore_flags(&mut self, popped: u64, size: u8, cpl: u8) {
        let iopl = ((self.state.rflags & flag::IOPL) >> 12) as u8;
        let mut mask = flag::ARITHMETIC | flag::TF | flag::DF | flag::NT;
        if size > 2 {
            mask |= flag::RF | flag::AC | flag::ID;
        }
        if cpl <= iopl {
            mask |= flag::IF;
        }
        if cpl == 0 {
            mask |= flag::IOPL;
        }
        if cpl == 0 && size > 2 {
            mask |= flag::VIF | flag::VIP;
        }
        self.state.rflags = (self.state.rflags & !mask) | (popped & mask) | flag::FIXED;
    }

    /// IRET-OUTER, -SAME and 64-bit IRETQ.
    #[inline]
    fn iret_protected(&mut self, size: u8) -> Result<(), Exception> {
        let cpl = self.state.cpl();
        let mut stack = Stack::current(self);
        let (rip, cs, flags, outer);
        if self.state.code64() {
            let frame: [u64; 5] = self.pop_frame(&mut stack, size)?;
            (rip, cs, flags) = (frame[0], frame[1] as u16, frame[2]);
            outer = Some((frame[3], frame[4] as u16));
        } else {
            let frame: [u64; 3] = self.pop_frame(&mut stack, size)?;
            (rip, cs, flags) = (frame[0], frame[1] as u16, frame[2]);
            if flags & flag::VM != 0 && size == 4 && cpl == 0 && !self.state.long_mode() {
                return self.iret_to_v86(stack, rip, cs, flags);
            }
            outer = None;
        }
        let code = self.return_code_segment(cs)?;
        self.check_target(&code, rip)?;
        self.return_stack(stack, outer, &code, size, 0)?;
        self.restore_flags(flags, size, cpl);
        self.commit_code(code, rip);
        Ok(())
    }

    /// What CS gets on a return to `selector`.
    fn return_code_segment(&mut self, selector: u16) -> Result<SegmentRegister, Exception> {
        if is_null(selector) {
            return Err(Exception::protection(0));
        }
        let descriptor = self.descriptor_or_gp(selector)?;
        let level = rpl(selector);
        let level_fits =
            if descriptor.is_conforming() { descriptor.dpl() <= level } else { descriptor.dpl() == level };
        if !descriptor.is_code() || level < self.state.cpl() || !level_fits {
            return Err(Exception::protection(code_of(selector)));
        }
        self.code_segment(descriptor, selector, level)
    }

    /// Take RSP and SS on a return to `code`: from `popped`, from `stack` when the return goes to
    /// an outer level, or keep SS. `release` bytes of parameters go from both stacks.
    fn return_stack(
        &mut self,
        mut stack: Stack,
        popped: Option<(u64, u16)>,
        code: &SegmentRegister,
        size: u8,
        release: u64,
    ) -> Result<(), Exception> {
        let level = rpl(code.selector);
        let outward = level > self.state.cpl();
        stack.skip(release);
        let (pointer, selector) = match popped {
            Some(popped) => popped,
            None if outward => {
                let [pointer, selector] = self.pop_frame(&mut stack, size)?;
                (pointer, selector as u16)
            }
            None => {
                self.commit_stack(&stack);
                return Ok(());
            }
        };
        let to_code64 = self.state.long_mode() && code.long();
        let segment = self.stack_segment(selector, level, to_code64)?;
        // Quirk: with a 16-bit stack segment the upper half of ESP keeps its old value.
        let mask = pointer_mask(&segment, to_code64);
        let kept = if mask == 0xffff { self.state.gpr[gpr::RSP] & 0xffff_0000 } else { 0 };
        let mut outer = Stack::new(segment, kept | (pointer & mask), level, to_code64);
        if outward {
            outer.skip(release);
            self.drop_inner_segments(level);
        }
        self.commit_stack(&outer);
        Ok(())
    }

    fn iret_real(&mut self, size: u8) -> Result<(), Exception> {
        let mut stack = Stack::current(self);
        let [rip, cs, flags] = self.pop_frame(&mut stack, size)?;
        let code = self.paragraph_segment(seg::CS, cs as u16);
        self.check_target(&code, rip)?;
        self.commit_stack(&stack);
        self.restore_flags(flags, size, 0);
        self.commit_code(code, rip);
        Ok(())
    }

    /// Virtual-8086 mode (vol. 3A §21.2.7): with IOPL below 3 only the virtual interrupt flag
    /// can change, and only under CR4.VME.
    fn iret_v86(&mut self, size: u8) -> Result<(), Exception> {
        const CR4_VME: u64 = 1;
        let trusted = self.state.rflags & flag::IOPL == flag::IOPL;
        if !trusted && (self.state.cr4 & CR4_VME == 0 || size != 2) {
            return Err(Exception::protection(0));
        }
        let mut stack = Stack::current(self);
        let [rip, cs, flags] = self.pop_frame(&mut stack, size)?;
        let wants_interrupts = flags & flag::IF != 0;
        let pending = self.state.rflags & flag::VIP != 0;
        if !trusted && (flags & flag::TF != 0 || (wants_interrupts && pending)) {
            return Err(Exception::protection(0));
        }
        let code = self.paragraph_segment(seg::CS, cs as u16);
        self.check_target(&code, rip)?;
        self.commit_stack(&stack);
        self.restore_flags(flags, size, 3);
        if !trusted {
            let virtual_if = if wants_interrupts { flag::VIF } else { 0 };
            self.state.rflags = (self.state.rflags & !flag::VIF) | virtual_if;
        }
        self.commit_code(code, rip);
        Ok(())
    }

    /// RETURN-TO-VIRTUAL-8086-MODE of `IRETD` at level 0.
    fn iret_to_v86(&mut self, mut stack: Stack, rip: u64, cs: u16, flags: u64) -> Result<(), Exception> {
        const RESTORED: u64 = flag::ARITHMETIC
            | flag::TF
            | flag::IF
            | flag::DF
            | flag::IOPL
            | flag::NT
            | flag::RF
            | flag::VM
            | flag::AC
            | flag::VIF
            | flag::VIP
            | flag::ID;
        let [esp, ss, es, ds, fs, gs] = self.pop_frame(&mut stack, 4)?;
        if rip > 0xffff {
            return Err(Exception::protection(0));
        }
        self.state.rflags = (flags & RESTORED) | flag::FIXED;
        let selectors = [es, u64::from(cs), ss, ds, fs, gs];
        for (segment, selector) in selectors.into_iter().enumerate() {
            self.state.segments[segment] = self.paragraph_segment(segment, selector as u16);
        }
        self.state.gpr[gpr::RSP] = esp;
        self.state.rip = rip;
        Ok(())
    }

    /// Far `RET`: `size` is the operand size, `release` the bytes of parameters to drop.
    ///
    /// # Errors
    /// #GP, #NP, #SS, page faults.
    pub fn far_return(&mut self, release: u16, size: u8) -> Outcome {
        let mut stack = Stack::current(self);
        let [rip, cs] = self.pop_frame(&mut stack, size)?;
        let paragraphs = self.selectors_are_paragraphs();
        let code = if paragraphs {
            self.paragraph_segment(seg::CS, cs as u16)
        } else {
            self.return_code_segment(cs as u16)?
        };
        self.check_target(&code, rip)?;
        if paragraphs {
            stack.skip(u64::from(release));
            self.commit_stack(&stack);
        } else {
            self.return_stack(stack, None, &code, size, u64::from(release))?;
        }
        self.commit_code(code, rip);
        Ok(())
    }

    /// Far `JMP` with operand size `size`, which ends at `next_rip`.
    ///
    /// # Errors
    /// #GP, #NP, #TS, page faults.
    pub fn far_jump(&mut self, selector: u16, offset: u64, size: u8, next_rip: u64) -> Outcome {
        let offset = truncate(offset, size);
        if self.selectors_are_paragraphs() {
            let code = self.paragraph_segment(seg::CS, selector);
            self.check_target(&code, offset)?;
            self.commit_code(code, offset);
            return Ok(());
        }
        let descriptor = self.far_target(selector)?;
        if !descriptor.is_code_or_data() {
            return Ok(self.far_system(descriptor, selector, next_rip, Transfer::Jump)?);
        }
        let code = self.load_code_segment(descriptor, selector)?;
        self.check_target(&code, offset)?;
        self.commit_code(code, offset);
        Ok(())
    }

    /// Far `CALL` with operand size `size`, which ends at `next_rip`.
    ///
    /// # Errors
    /// #GP, #NP, #SS, #TS, page faults.
    pub fn far_call(&mut self, selector: u16, offset: u64, size: u8, next_rip: u64) -> Outcome {
        let offset = truncate(offset, size);
        let code = if self.selectors_are_paragraphs() {
            self.paragraph_segment(seg::CS, selector)
        } else {
            let descriptor = self.far_target(selector)?;
            if !descriptor.is_code_or_data() {
                let call = Transfer::Call { size, next_rip };
                return Ok(self.far_system(descriptor, selector, next_rip, call)?);
            }
            self.load_code_segment(descriptor, selector)?
        };
        self.check_target(&code, offset)?;
        let mut stack = Stack::current(self);
        self.push_return(&mut stack, size, next_rip)?;
        self.commit_stack(&stack);
        self.commit_code(code, offset);
        Ok(())
    }

    fn push_return(&mut self, stack: &mut Stack, size: u8, next_rip: u64) -> Result<(), Exception> {
        let cs = u64::from(self.state.segments[seg::CS].selector);
        self.push(stack, size, cs)?;
        self.push(stack, size, next_rip)
    }

    fn far_target(&mut self, selector: u16) -> Result<Descriptor, Exception> {
        if is_null(selector) {
            return Err(Exception::protection(0));
        }
        self.descriptor_or_gp(selector)
    }

    /// A far transfer through a call gate, a task gate or a TSS.
    fn far_system(
        &mut self,
        descriptor: Descriptor,
        selector: u16,
        next_rip: u64,
        transfer: Transfer,
    ) -> Result<(), Exception> {
        let fault = Exception::protection(code_of(selector));
        let dpl = descriptor.dpl();
        if dpl < self.state.cpl() || dpl < rpl(selector) {
            return Err(fault);
        }
        let long = self.state.long_mode();
        let switch = match transfer {
            Transfer::Jump => Switch::Jump,
            Transfer::Call { .. } => Switch::Call,
        };
        let target = match descriptor.kind() {
            system_type::CALL_GATE => return self.call_gate(descriptor, selector, transfer),
            system_type::CALL_GATE_16 if !long => return self.call_gate(descriptor, selector, transfer),
            system_type::TSS | system_type::TSS_16 if !long => selector,
            system_type::TASK_GATE if !long && descriptor.present() => descriptor.gate_selector(),
            system_type::TASK_GATE if !long => return Err(Exception::not_present(code_of(selector))),
            _ => return Err(fault),
        };
        self.switch_task(target, switch, next_rip, self.state.rflags)
    }

    /// §5.8.4 "Accessing a Code Segment Through a Call Gate".
    fn call_gate(&mut self, gate: Descriptor, selector: u16, transfer: Transfer) -> Result<(), Exception> {
        let long = self.state.long_mode();
        if !gate.present() {
            return Err(Exception::not_present(code_of(selector)));
        }
        let (high, mask) = match (long, gate.kind()) {
            (true, _) => (self.descriptor_high(selector)?, u64::MAX),
            (false, system_type::CALL_GATE) => (0, 0xffff_ffff),
            (false, _) => (0, 0xffff),
        };
        let rip = (gate.gate_offset() | (high << 32)) & mask;
        let target_selector = gate.gate_selector();
        let target = self.far_target(target_selector)?;
        let cpl = self.state.cpl();
        let inward = !target.is_conforming() && target.dpl() < cpl;
        let legal_level = target.dpl() <= cpl && (transfer != Transfer::Jump || !inward);
        let legal_size = !long || (target.long() && !target.big());
        if !target.is_code() || !legal_level || !legal_size {
            return Err(Exception::protection(code_of(target_selector)));
        }
        let level = if inward { target.dpl() } else { cpl };
        let code = self.code_segment(target, target_selector, level)?;
        self.check_target(&code, rip)?;
        if let Transfer::Call { next_rip, .. } = transfer {
            let stack = self.push_gate_frame(gate, level, inward, next_rip)?;
            self.commit_stack(&stack);
        }
        self.commit_code(code, rip);
        Ok(())
    }

    /// The frame of a call through a gate; the gate's type gives the size.
    fn push_gate_frame(
        &mut self,
        gate: Descriptor,
        level: u8,
        inward: bool,
        next_rip: u64,
    ) -> Result<Stack, Exception> {
        let long = self.state.long_mode();
        let size = match (long, gate.kind()) {
            (true, _) => 8,
            (false, system_type::CALL_GATE) => 4,
            (false, _) => 2,
        };
        let old = Stack::current(self);
        if !inward {
            let mut stack = if long { old.flatten() } else { old };
            self.push_return(&mut stack, size, next_rip)?;
            return Ok(stack);
        }
        let mut stack = if long { self.inner_stack_long(level)? } else { self.inner_stack(level)? };
        self.push(&mut stack, size, u64::from(old.segment.selector))?;
        self.push(&mut stack, size, old.pointer)?;
        if !long {
            self.copy_parameters(&old, &mut stack, (gate.raw >> 32) as u8 & 31, size)?;
        }
        self.push_return(&mut stack, size, next_rip)?;
        Ok(stack)
    }

    /// Copy `count` words of `size` bytes from the caller's stack, keeping their order.
    fn copy_parameters(
        &mut self,
        old: &Stack,
        new: &mut Stack,
        count: u8,
        size: u8,
    ) -> Result<(), Exception> {
        for index in (0..count).rev() {
            let mut source = *old;
            source.skip(u64::from(index) * u64::from(size));
            let value = self.pop(&mut source, size)?;
            self.push(new, size, value)?;
        }
        Ok(())
    }

    /// `SYSCALL` that ends at `next_rip`. AMD's also works in compatibility mode (through CSTAR)
    /// and in legacy mode (AMD64 APM vol. 2 §6.1.1 "SYSCALL and SYSRET"); Intel's only in 64-bit mode.
    ///
    /// # Errors
    /// #UD where it is not available.
    #[inline]
    pub fn syscall(&mut self, next_rip: u64) -> Outcome {
        let state = &mut self.state;
        let code64 = state.code64();
        if state.efer & EFER_SCE == 0 || !(code64 || (self.amd && state.protected())) {
            return Err(Exception::UNDEFINED.into());
        }
        let selector = state.star >> 32;
        state.gpr[gpr::RCX] = next_rip;
        let (attributes, rip) = if state.long_mode() {
            state.gpr[11] = state.rflags;
            state.rflags = (state.rflags & !(state.sfmask | flag::RF)) | flag::FIXED;
            (FLAT_CODE_64, if code64 { state.lstar } else { state.cstar })
        } else {
            state.rflags &= !(flag::VM | flag::IF | flag::RF);
            (FLAT_CODE_32, state.star & 0xffff_ffff)
        };
        state.segments[seg::SS] = flat((selector & 0xfffc) + 8, FLAT_STACK, 0);
        self.commit_code(flat(selector, attributes, 0), rip);
        Ok(())
    }

    /// CS and SS after SYSCALL and after SYSRETQ, in long mode.
    pub(crate) fn system_call_segments(&self) -> [[SegmentRegister; 2]; 2] {
        let (down, up) = (self.state.star >> 32, self.state.star >> 48);
        [
            [flat(down, FLAT_CODE_64, 0), flat((down & 0xfffc) + 8, FLAT_STACK, 0)],
            [flat(up + 16, FLAT_CODE_64, 3), flat(up + 8, FLAT_STACK, 3)],
        ]
    }

    /// `SYSRET`, `operand64` with REX.W. On a non-canonical RCX an Intel CPU faults here, at level
    /// 0; an AMD one returns and faults at level 3 on the fetch, which the run loop raises.
    /// SS gets flat attributes on both (AMD's leaves them alone; system software reloads SS).
    ///
    /// # Errors
    /// #UD where it is not available, #GP(0) above level 0 or (Intel) for the address.
    #[inline]
    pub fn sysret(&mut self, operand64: bool) -> Outcome {
        let state = &mut self.state;
        if state.efer & EFER_SCE == 0 || !(state.code64() || (self.amd && state.protected())) {
            return Err(Exception::UNDEFINED.into());
        }
        let rcx = state.gpr[gpr::RCX];
        if state.cpl() != 0 || (operand64 && !self.amd && !is_canonical(rcx)) {
            return Err(Exception::protection(0).into());
        }
        let selector = state.star >> 48;
        let (code, rip) = if operand64 {
            (flat(selector + 16, FLAT_CODE_64, 3), rcx)
        } else {
            (flat(selector, FLAT_CODE_32, 3), rcx & 0xffff_ffff)
        };
        if state.long_mode() {
            const RESTORED: u64 = 0x003c_7fd7;
            state.rflags = (state.gpr[11] & RESTORED) | flag::FIXED;
        } else {
            state.rflags |= flag::IF;
        }
        state.segments[seg::SS] = flat(selector + 8, FLAT_STACK, 3);
        self.commit_code(code, rip);
        Ok(())
    }

    /// `SYSENTER`; AMD has it in legacy mode only (APM vol. 2 §6.1.2).
    ///
    /// # Errors
    /// #GP(0) in real mode or while IA32_SYSENTER_CS is null, #UD on AMD in long mode.
    pub fn sysenter(&mut self) -> Outcome {
        let cs = self.sysenter_selector()?;
        let state = &mut self.state;
        let long = state.long_mode();
        state.rflags &= !(flag::VM | flag::IF | flag::RF);
        let mask = if long { u64::MAX } else { 0xffff_ffff };
        let rip = state.sysenter_eip & mask;
        state.gpr[gpr::RSP] = state.sysenter_esp & mask;
        state.segments[seg::SS] = flat((cs & 0xfffc) + 8, FLAT_STACK, 0);
        self.commit_code(flat(cs, if long { FLAT_CODE_64 } else { FLAT_CODE_32 }, 0), rip);
        Ok(())
    }

    /// `SYSEXIT`, `operand64` with REX.W.
    ///
    /// # Errors
    /// As [`Self::sysenter`], and #GP(0) above level 0 or for addresses that are not canonical.
    pub fn sysexit(&mut self, operand64: bool) -> Outcome {
        let cs = self.sysenter_selector()? & 0xfffc;
        let (rip, rsp) = (self.state.gpr[gpr::RDX], self.state.gpr[gpr::RCX]);
        let bad_address = operand64 && !(is_canonical(rip) && is_canonical(rsp));
        if self.state.cpl() != 0 || bad_address {
            return Err(Exception::protection(0).into());
        }
        let (code, stack, mask) = if operand64 {
            (flat(cs + 32, FLAT_CODE_64, 3), flat(cs + 40, FLAT_STACK, 3), u64::MAX)
        } else {
            (flat(cs + 16, FLAT_CODE_32, 3), flat(cs + 24, FLAT_STACK, 3), 0xffff_ffff)
        };
        self.state.gpr[gpr::RSP] = rsp & mask;
        self.state.segments[seg::SS] = stack;
        self.commit_code(code, rip & mask);
        Ok(())
    }

    /// CS and SS after SYSENTER and after SYSEXIT outside long mode; `None` where either faults.
    pub(crate) fn narrow_call_segments(&self) -> Option<[[SegmentRegister; 2]; 2]> {
        let cs = self.sysenter_selector().ok().filter(|_| !self.state.long_mode())?;
        let user = cs & 0xfffc;
        Some([
            [flat(cs, FLAT_CODE_32, 0), flat(user + 8, FLAT_STACK, 0)],
            [flat(user + 16, FLAT_CODE_32, 3), flat(user + 24, FLAT_STACK, 3)],
        ])
    }

    fn sysenter_selector(&self) -> Result<u64, Exception> {
        let cs = self.state.sysenter_cs;
        if self.amd && self.state.long_mode() {
            return Err(Exception::UNDEFINED);
        }
        if !self.state.protected() || cs & 0xfffc == 0 {
            return Err(Exception::protection(0));
        }
        Ok(cs)
    }
}

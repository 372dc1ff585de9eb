//! Far transfers, segment pushes and pops, and the instructions that 64-bit code lost.

use super::execute::{next, Flow, Step};
use super::operand::{segment_index, sign_extend, truncate, MemoryOperand};
use crate::cpu::{Cpu, Exception, Outcome};
use crate::state::{flag, gpr, seg};
use iced_x86::{Code, Instruction, Mnemonic, OpKind};

impl Cpu {
    /// Carry the instruction out if it is one of this module's.
    pub(crate) fn dispatch_legacy(&mut self, i: &Instruction, next_rip: u64) -> Option<Step> {
        Some(match i.mnemonic() {
            Mnemonic::Call | Mnemonic::Jmp => return self.far_transfer(i, next_rip),
            Mnemonic::Retf => self.far_return_instruction(i),
            Mnemonic::Into => self.overflow_interrupt(next_rip),
            Mnemonic::Push => return push_size(i.code()).map(|size| next(self.push_segment(i, size))),
            Mnemonic::Pop => return pop_size(i.code()).map(|size| next(self.pop_segment(i, size))),
            Mnemonic::Pusha => next(self.push_all(2)),
            Mnemonic::Pushad => next(self.push_all(4)),
            Mnemonic::Popa => next(self.pop_all(2)),
            Mnemonic::Popad => next(self.pop_all(4)),
            Mnemonic::Enter => next(self.enter(i)),
            Mnemonic::Leave => next(self.leave(i)),
            Mnemonic::Bound => next(self.bound(i)),
            Mnemonic::Xlatb => next(self.xlat(i)),
            Mnemonic::Lds | Mnemonic::Les | Mnemonic::Lfs | Mnemonic::Lgs | Mnemonic::Lss => {
                next(self.load_far_pointer(i))
            }
            Mnemonic::Arpl => next(self.arpl(i)),
            Mnemonic::Salc => next(self.salc()),
            Mnemonic::Aaa | Mnemonic::Aas => next(self.ascii_adjust(i.mnemonic() == Mnemonic::Aaa)),
            Mnemonic::Aam => next(self.aam(i.immediate8())),
            Mnemonic::Aad => next(self.aad(i.immediate8())),
            Mnemonic::Daa | Mnemonic::Das => next(self.decimal_adjust(i.mnemonic() == Mnemonic::Daa)),
            Mnemonic::Cmpxchg8b => next(self.cmpxchg_pair(i, 4)),
            Mnemonic::Cmpxchg16b => next(self.cmpxchg_pair(i, 8)),
            _ => return None,
        })
    }

    /// Far CALL and JMP; `None` for near ones.
    fn far_transfer(&mut self, i: &Instruction, next_rip: u64) -> Option<Step> {
        let (call, size) = match i.code() {
            Code::Call_ptr1616 | Code::Call_m1616 => (true, 2),
            Code::Call_ptr1632 | Code::Call_m1632 => (true, 4),
            Code::Call_m1664 => (true, 8),
            Code::Jmp_ptr1616 | Code::Jmp_m1616 => (false, 2),
            Code::Jmp_ptr1632 | Code::Jmp_m1632 => (false, 4),
            Code::Jmp_m1664 => (false, 8),
            _ => return None,
        };
        let run = |cpu: &mut Self| {
            let (selector, offset) = cpu.far_pointer(i, size)?;
            match call {
                true => cpu.far_call(selector, offset, size, next_rip),
                false => cpu.far_jump(selector, offset, size, next_rip),
            }
        };
        Some(run(self).map(|()| Flow::Set))
    }

    /// Selector and offset from the instruction or from memory.
    fn far_pointer(&mut self, i: &Instruction, size: u8) -> Outcome<(u16, u64)> {
        match i.op0_kind() {
            OpKind::FarBranch16 => Ok((i.far_branch_selector(), u64::from(i.far_branch16()))),
            OpKind::FarBranch32 => Ok((i.far_branch_selector(), u64::from(i.far_branch32()))),
            _ => self.load_pointer(self.memory_operand(i), size),
        }
    }

    /// An offset of `size` bytes followed by a selector.
    fn load_pointer(&mut self, at: MemoryOperand, size: u8) -> Outcome<(u16, u64)> {
        let offset = self.load(at, size)?;
        let selector = self.load(at.after(u64::from(size)), 2)?;
        Ok((selector as u16, offset))
    }

    fn far_return_instruction(&mut self, i: &Instruction) -> Step {
        let size = match i.code() {
            Code::Retfw | Code::Retfw_imm16 => 2,
            Code::Retfq | Code::Retfq_imm16 => 8,
            _ => 4,
        };
        let release = if i.op_count() == 0 { 0 } else { i.immediate16() };
        self.far_return(release, size).map(|()| Flow::Set)
    }

    fn overflow_interrupt(&mut self, next_rip: u64) -> Step {
        if self.state.rflags & flag::OF == 0 {
            return Ok(Flow::Next);
        }
        self.software_interrupt(4, next_rip).map(|()| Flow::Set)
    }

    /// PUSHA: the lowest address is checked first, so that a fault leaves the stack untouched.
    fn push_all(&mut self, size: u8) -> Outcome {
        let total = 8 * i64::from(size);
        let registers = self.state.gpr;
        for (n, value) in registers[..8].iter().enumerate().rev() {
            // RAX lies highest.
            let offset = self.stack_offset(-total + i64::from(size) * (7 - n as i64));
            self.write_seg(seg::SS, offset, size, *value)?;
        }
        self.drop_stack(-total);
        Ok(())
    }

    fn pop_all(&mut self, size: u8) -> Outcome {
        let mut values = [0; 8];
        for (n, value) in values.iter_mut().enumerate() {
            *value = self.peek_value(i64::from(size) * (7 - n as i64), size)?;
        }
        for (register, value) in values.into_iter().enumerate().filter(|(r, _)| *r != gpr::RSP) {
            self.gpr_merge(register, size, value);
        }
        self.drop_stack(8 * i64::from(size));
        Ok(())
    }

    /// ENTER (Intel SDM vol. 2A "ENTER"): up to 31 frame pointers are copied.
    fn enter(&mut self, i: &Instruction) -> Outcome {
        let size = match i.code() {
            Code::Enterw_imm16_imm8 => 2,
            Code::Enterd_imm16_imm8 => 4,
            _ => 8,
        };
        let (bytes, level) = (i64::from(i.immediate16()), i.immediate8_2nd() % 32);
        let step = i64::from(size);
        let mut depth = -step;
        self.write_seg(seg::SS, self.stack_offset(depth), size, self.state.gpr[gpr::RBP])?;
        // With a 16-bit stack and 32-bit operands, the upper half of ESP is part of the frame pointer.
        let frame = match self.stack_size() {
            2 => self.state.gpr[gpr::RSP] & !0xffff | self.stack_offset(depth),
            _ => self.stack_offset(depth),
        };
        for n in 1..i64::from(level) {
            let from = self.state.gpr[gpr::RBP].wrapping_add_signed(-step * n);
            let pointer = self.read_seg(seg::SS, truncate(from, self.stack_size()), size)?;
            depth -= step;
            self.write_seg(seg::SS, self.stack_offset(depth), size, pointer)?;
        }
        if level > 0 {
            depth -= step;
            self.write_seg(seg::SS, self.stack_offset(depth), size, frame)?;
        }
        // The new top of stack must be writable.
        let top = self.stack_offset(depth - bytes);
        let la = self.data_linear(seg::SS, top, size, crate::mmu::walk::Kind::Write)?;
        let mode = crate::system::memory::AccessMode::Current;
        self.translate_linear(la, self.access(mode, crate::mmu::walk::Kind::Write))?;
        self.gpr_merge(gpr::RBP, size, frame);
        self.set_stack_pointer(top);
        Ok(())
    }

    fn leave(&mut self, i: &Instruction) -> Outcome {
        let size = match i.code() {
            Code::Leavew => 2,
            Code::Leaved => 4,
            _ => 8,
        };
        let frame = truncate(self.state.gpr[gpr::RBP], self.stack_size());
        let value = self.read_seg(seg::SS, frame, size)?;
        self.set_stack_pointer(frame.wrapping_add(u64::from(size)));
        self.gpr_merge(gpr::RBP, size, value);
        Ok(())
    }

    /// BOUND: #BR unless the signed index lies within the pair of bounds.
    fn bound(&mut self, i: &Instruction) -> Outcome {
        let size = i.op0_register().size() as u8;
        let at = self.memory_operand(i);
        let index = sign_extend(self.gpr_read(i.op0_register()), size);
        let lower = sign_extend(self.load(at, size)?, size);
        let upper = sign_extend(self.load(at.after(u64::from(size)), size)?, size);
        match (lower..=upper).contains(&index) {
            true => Ok(()),
            false => Err(Exception::new(5).into()),
        }
    }

    fn xlat(&mut self, i: &Instruction) -> Outcome {
        let at = self.memory_operand(i);
        let value = self.load(at, 1)?;
        self.gpr_merge(gpr::RAX, 1, value);
        Ok(())
    }

    /// LDS and its kin: the segment first, so that a fault leaves the register.
    fn load_far_pointer(&mut self, i: &Instruction) -> Outcome {
        let target = i.op0_register();
        let segment = match i.mnemonic() {
            Mnemonic::Lds => seg::DS,
            Mnemonic::Les => seg::ES,
            Mnemonic::Lfs => seg::FS,
            Mnemonic::Lgs => seg::GS,
            _ => seg::SS,
        };
        let (selector, offset) = self.load_pointer(self.memory_operand(i), target.size() as u8)?;
        self.load_segment(segment, selector)?;
        self.gpr_write(target, offset);
        Ok(())
    }

    fn al(&self) -> u8 {
        self.state.gpr[gpr::RAX] as u8
    }

    fn set_ax(&mut self, ah: u8, al: u8) {
        self.gpr_merge(gpr::RAX, 2, u64::from(ah) << 8 | u64::from(al));
    }

    fn salc(&mut self) -> Outcome {
        let carry = self.state.rflags & flag::CF != 0;
        self.gpr_merge(gpr::RAX, 1, if carry { 0xff } else { 0 });
        Ok(())
    }

    /// AAA and AAS (Intel SDM vol. 2A).
    fn ascii_adjust(&mut self, add: bool) -> Outcome {
        let adjust = self.al() & 0xf > 9 || self.state.rflags & flag::AF != 0;
        let mut ax = self.state.gpr[gpr::RAX] as u16;
        if adjust {
            ax = if add { ax.wrapping_add(0x106) } else { ax.wrapping_sub(0x106) };
        }
        self.gpr_merge(gpr::RAX, 2, u64::from(ax & 0xff0f));
        self.assign_flag(flag::AF, adjust);
        self.assign_flag(flag::CF, adjust);
        Ok(())
    }

    fn aam(&mut self, base: u8) -> Outcome {
        let al = self.al();
        let (Some(quotient), Some(remainder)) = (al.checked_div(base), al.checked_rem(base)) else {
            return Err(Exception::DIVIDE.into());
        };
        self.set_ax(quotient, remainder);
        self.set_result_flags(u64::from(remainder), 1);
        Ok(())
    }

    fn aad(&mut self, base: u8) -> Outcome {
        let ah = (self.state.gpr[gpr::RAX] >> 8) as u8;
        let al = self.al().wrapping_add(ah.wrapping_mul(base));
        self.set_ax(0, al);
        self.set_result_flags(u64::from(al), 1);
        Ok(())
    }

    /// DAA and DAS (Intel SDM vol. 2A).
    fn decimal_adjust(&mut self, add: bool) -> Outcome {
        let old = self.al();
        let carry = self.state.rflags & flag::CF != 0;
        let low = old & 0xf > 9 || self.state.rflags & flag::AF != 0;
        let high = old > 0x99 || carry;
        let delta = if low { 6 } else { 0 } + if high { 0x60 } else { 0 };
        let al = if add { old.wrapping_add(delta) } else { old.wrapping_sub(delta) };
        // DAS also carries out of the low adjustment's borrow.
        let borrowed = !add && low && old < 6;
        self.gpr_merge(gpr::RAX, 1, u64::from(al));
        self.assign_flag(flag::AF, low);
        self.assign_flag(flag::CF, high || borrowed);
        self.set_result_flags(u64::from(al), 1);
        Ok(())
    }

    /// CMPXCHG8B and CMPXCHG16B, where translated code cannot do them in place.
    ///
    /// Deviation: not one atomic access. The forms that reach RAM here are those whose registers the
    /// emitter could not place; translated code does all others with the host's own instruction.
    fn cmpxchg_pair(&mut self, i: &Instruction, half: u8) -> Outcome {
        let at = self.memory_operand(i);
        let upper = at.after(u64::from(half));
        if half == 8 && at.offset % 16 != 0 {
            return Err(Exception::protection(0).into());
        }
        let (low, high) = (self.load(at, half)?, self.load(upper, half)?);
        let register = |index: usize| truncate(self.state.gpr[index], half);
        let equal = low == register(gpr::RAX) && high == register(gpr::RDX);
        let (new_low, new_high) = match equal {
            true => (register(gpr::RBX), register(gpr::RCX)),
            false => (low, high),
        };
        self.store(at, half, new_low)?;
        self.store(upper, half, new_high)?;
        self.assign_flag(flag::ZF, equal);
        if !equal {
            self.gpr_merge(gpr::RAX, half, low);
            self.gpr_merge(gpr::RDX, half, high);
        }
        Ok(())
    }

    /// PUSH Sreg.
    fn push_segment(&mut self, i: &Instruction, size: u8) -> Outcome {
        let selector = self.state.segments[segment_index(i.op0_register())].selector;
        self.push_value(size, u64::from(selector))
    }

    /// POP Sreg; SS holds off interrupts for one instruction.
    fn pop_segment(&mut self, i: &Instruction, size: u8) -> Outcome {
        let segment = segment_index(i.op0_register());
        if segment == seg::CS {
            return Err(Exception::UNDEFINED.into());
        }
        let selector = self.peek_value(0, size)? as u16;
        let (after, stack_size) = (self.stack_offset(i64::from(size)), self.stack_size());
        self.load_segment(segment, selector)?;
        self.gpr_merge(gpr::RSP, stack_size, after);
        self.note_stack_segment_load(segment);
        Ok(())
    }
}

/// Operand size of PUSH Sreg; `None` for other pushes.
fn push_size(code: Code) -> Option<u8> {
    match code {
        Code::Pushw_ES
        | Code::Pushw_CS
        | Code::Pushw_SS
        | Code::Pushw_DS
        | Code::Pushw_FS
        | Code::Pushw_GS => Some(2),
        Code::Pushd_ES
        | Code::Pushd_CS
        | Code::Pushd_SS
        | Code::Pushd_DS
        | Code::Pushd_FS
        | Code::Pushd_GS => Some(4),
        Code::Pushq_FS | Code::Pushq_GS => Some(8),
        _ => None,
    }
}

/// Operand size of POP Sreg; `None` for other pops.
fn pop_size(code: Code) -> Option<u8> {
    match code {
        Code::Popw_ES | Code::Popw_CS | Code::Popw_SS | Code::Popw_DS | Code::Popw_FS | Code::Popw_GS => {
            Some(2)
        }
        Code::Popd_ES | Code::Popd_SS | Code::Popd_DS | Code::Popd_FS | Code::Popd_GS => Some(4),
        Code::Popq_FS | Code::Popq_GS => Some(8),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Stop;
    use crate::system::fixture::{cpu32, cpu64, get, put, run, step, CODE, DATA};

    fn ax_after(code: &[u8], ax: u64, flags: u64) -> (u64, u64) {
        let mut cpu = cpu32();
        cpu.state.gpr[gpr::RAX] = ax;
        cpu.state.rflags |= flags;
        step(&mut cpu, code);
        (cpu.state.gpr[gpr::RAX], cpu.state.rflags & flag::ARITHMETIC)
    }

    /// Intel SDM vol. 2A, the examples of DAA, DAS, AAA, AAM and AAD.
    #[test]
    fn decimal_arithmetic() {
        assert_eq!(ax_after(&[0x27], 0xae, 0).0, 0x14);
        assert_eq!(ax_after(&[0x2f], 0x0e, flag::CF).0 & 0xff, 0xa8);
        assert_eq!(ax_after(&[0x37], 0x0b, 0).0, 0x101);
        assert_eq!(ax_after(&[0x3f], 0x20f, 0).0, 0x109);
        assert_eq!(ax_after(&[0xd4, 10], 57, 0).0, 0x507);
        assert_eq!(ax_after(&[0xd5, 10], 0x507, 0).0, 57);
        let mut cpu = cpu32();
        assert_eq!(run(&mut cpu, &[0xd4, 0]), Err(Exception::DIVIDE.into()));
    }

    #[test]
    fn pusha_and_popa_mirror_each_other() {
        let mut cpu = cpu32();
        cpu.state.gpr = std::array::from_fn(|n| 0x10 + n as u64);
        cpu.state.gpr[gpr::RSP] = DATA + 32;
        step(&mut cpu, &[0x60]);
        assert_eq!((cpu.state.gpr[gpr::RSP], get(&cpu, DATA + 24)), (DATA, 0x10 << 32 | 0x11));
        cpu.state.gpr[gpr::RAX] = 0;
        step(&mut cpu, &[0x61]);
        assert_eq!((cpu.state.gpr[gpr::RAX], cpu.state.gpr[gpr::RSP]), (0x10, DATA + 32));
    }

    /// Intel SDM vol. 2A "ENTER": level 2 copies one frame pointer and adds its own.
    #[test]
    fn enter_builds_a_nested_frame() {
        let mut cpu = cpu64();
        cpu.state.gpr[gpr::RSP] = DATA + 0x100;
        cpu.state.gpr[gpr::RBP] = DATA + 0x200;
        put(&cpu, DATA + 0x1f8, 0xabc);
        step(&mut cpu, &[0xc8, 0x20, 0x00, 0x02]);
        let frame = DATA + 0xf8;
        assert_eq!((cpu.state.gpr[gpr::RBP], cpu.state.gpr[gpr::RSP]), (frame, frame - 16 - 0x20));
        assert_eq!([frame, frame - 8, frame - 16].map(|at| get(&cpu, at)), [DATA + 0x200, 0xabc, frame]);
    }

    #[test]
    fn bound_raises_br_outside() {
        let mut cpu = cpu32();
        cpu.state.gpr[gpr::RBX] = DATA;
        put(&cpu, DATA, 10 << 32 | 0xffff_fffe);
        for (index, outcome) in [(0, Ok(())), (10, Ok(())), (11, Err(Stop::Exception(Exception::new(5))))] {
            cpu.state.rip = CODE;
            cpu.state.gpr[gpr::RAX] = index;
            assert_eq!(run(&mut cpu, &[0x62, 0x03]), outcome);
        }
    }

    #[test]
    fn cmpxchg16b_swaps_or_loads() {
        let mut cpu = cpu64();
        cpu.state.gpr[gpr::RSI] = DATA;
        put(&cpu, DATA, 1);
        put(&cpu, DATA + 8, 2);
        let code = [0x48, 0x0f, 0xc7, 0x0e];
        step(&mut cpu, &code);
        assert_eq!((cpu.state.gpr[gpr::RAX], cpu.state.gpr[gpr::RDX]), (1, 2));
        cpu.state.gpr[gpr::RBX] = 3;
        cpu.state.gpr[gpr::RCX] = 4;
        step(&mut cpu, &code);
        assert_eq!((get(&cpu, DATA), get(&cpu, DATA + 8)), (3, 4));
        assert_ne!(cpu.state.rflags & flag::ZF, 0);
    }

    #[test]
    fn pushing_segments_and_popping_ss() {
        let mut cpu = cpu64();
        cpu.state.gpr[gpr::RSP] = DATA + 8;
        cpu.state.segments[seg::FS].selector = 0x2b;
        step(&mut cpu, &[0x0f, 0xa0]);
        assert_eq!((cpu.state.gpr[gpr::RSP], get(&cpu, DATA)), (DATA, 0x2b));
        put(&cpu, DATA, 0);
        step(&mut cpu, &[0x0f, 0xa1]);
        assert_eq!((cpu.state.segments[seg::FS].selector, cpu.state.gpr[gpr::RSP]), (0, DATA + 8));
    }
}

//! Instructions with implicit stack or string operands, LEA and RDTSC.

use super::access::{AccessKind, Descriptor, Operation, Place};
use super::builder::{hot, Unencodable};
use super::registers::{in_register, number, sized, slot, GUEST_RSP};
use super::{Builder, Host};
use crate::mode::Width;
use crate::state::{CpuState, HotState};
use iced_x86::{Code, Instruction, MemoryOperand, Mnemonic, OpKind, Register};
use std::mem::offset_of;
use std::rc::Rc;

const RSP: usize = 4;

/// What PUSH stores.
#[derive(Debug, Clone, Copy)]
pub(super) enum Pushed {
    /// A guest register.
    Guest(usize),
    /// A sign-extended immediate.
    Immediate(i32),
    /// `HotState::temporary`.
    Temporary,
    /// RIP of the page offset.
    Rip(i64),
}

impl Builder {
    pub(super) fn special(&mut self, instruction: &Instruction) -> Result<(), Unencodable> {
        match instruction.mnemonic() {
            Mnemonic::Lea => self.lea(instruction),
            Mnemonic::Rdtsc => {
                self.rdtsc();
                Ok(())
            }
            Mnemonic::Push => self.push(instruction),
            Mnemonic::Pushf | Mnemonic::Pushfd | Mnemonic::Pushfq => self.push_flags(instruction),
            Mnemonic::Pop => self.pop(instruction),
            Mnemonic::Leave => self.leave(instruction),
            Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq => {
                self.string_move(instruction)
            }
            Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => {
                self.string_store(instruction)
            }
            Mnemonic::Lodsb | Mnemonic::Lodsw | Mnemonic::Lodsd | Mnemonic::Lodsq => {
                self.string_load(instruction)
            }
            Mnemonic::Scasb | Mnemonic::Scasw | Mnemonic::Scasd | Mnemonic::Scasq => {
                self.string_scan(instruction)
            }
            Mnemonic::Cmpsb | Mnemonic::Cmpsw | Mnemonic::Cmpsd | Mnemonic::Cmpsq => {
                self.string_compare(instruction)
            }
            _ => self.branch(instruction),
        }
    }

    fn lea(&mut self, instruction: &Instruction) -> Result<(), Unencodable> {
        let target = instruction.op0_register();
        let guest = number(target).ok_or(Unencodable)?;
        if target.size() == 2 {
            self.effective_address(Host::R14, instruction)?;
            self.write_sized(guest, Host::R14, 2);
            return Ok(());
        }
        let to = in_register(guest).unwrap_or(Host::R14);
        self.low_address(to, target.size() == 8, instruction)?;
        self.write_guest(guest, to);
        Ok(())
    }

    /// Host time-stamp counter plus the guest's offset, without touching flags.
    fn rdtsc(&mut self) {
        self.asm.bytes(&[0x0f, 0x31]);
        self.asm.mov_immediate(Host::RCX, 32);
        self.asm.shlx(Host::RDX, Host::RDX, Host::RCX);
        self.asm.lea(true, Host::RAX, Some(Host::RAX), Some((Host::RDX, 1)), 0);
        self.asm.load(Host::RCX, offset_of!(CpuState, tsc_offset) as i32);
        self.asm.lea(true, Host::RAX, Some(Host::RAX), Some((Host::RCX, 1)), 0);
        self.asm.rorx(Host::RDX, Host::RAX, 32);
        self.asm.mov32(Host::RDX, Host::RDX);
        self.asm.mov32(Host::RAX, Host::RAX);
    }

    /// Bytes that PUSH or POP moves.
    fn stack_operand_size(instruction: &Instruction) -> usize {
        usize::try_from(instruction.stack_pointer_increment().unsigned_abs()).unwrap_or(8)
    }

    fn push(&mut self, instruction: &Instruction) -> Result<(), Unencodable> {
        let size = Self::stack_operand_size(instruction);
        let pushed = match instruction.op0_kind() {
            OpKind::Register if instruction.op0_register().is_segment_register() => {
                self.load_selector(instruction.op0_register());
                Pushed::Temporary
            }
            OpKind::Register => Pushed::Guest(number(instruction.op0_register()).ok_or(Unencodable)?),
            OpKind::Memory => {
                self.load_temporary(instruction, size)?;
                Pushed::Temporary
            }
            _ => Pushed::Immediate(instruction.immediate(0) as i32),
        };
        self.push_value(pushed, size, false)
    }

    fn push_flags(&mut self, instruction: &Instruction) -> Result<(), Unencodable> {
        self.read_flags();
        self.asm.store(hot!(temporary), Host::RCX);
        self.push_value(Pushed::Temporary, Self::stack_operand_size(instruction), false)
    }

    /// `HotState::temporary` = the selector in a segment register.
    fn load_selector(&mut self, register: Register) {
        self.read_selector(Host::RCX, register);
        self.asm.store(hot!(temporary), Host::RCX);
    }

    /// Load the memory operand into `HotState::temporary`, zero-extended.
    pub(super) fn load_temporary(
        &mut self,
        instruction: &Instruction,
        size: usize,
    ) -> Result<(), Unencodable> {
        let operation: Operation = Rc::new(move |builder, place| {
            builder.load_place(Host::RCX, place, size)?;
            builder.asm.store(hot!(temporary), Host::RCX);
            Ok(())
        });
        self.load_operand(instruction, size, operation)
    }

    /// Have `operation` read the memory operand.
    pub(super) fn load_operand(
        &mut self,
        instruction: &Instruction,
        size: usize,
        operation: Operation,
    ) -> Result<(), Unencodable> {
        let descriptor = self.through_segment(Descriptor::new(size, AccessKind::Read), instruction);
        self.access_operand(instruction, descriptor, operation)
    }

    /// Push onto the guest's stack; `stay` if a branch follows.
    pub(super) fn push_value(&mut self, pushed: Pushed, size: usize, stay: bool) -> Result<(), Unencodable> {
        let mut descriptor = Descriptor::new(size, AccessKind::Write).stack();
        if stay {
            descriptor = descriptor.stay();
        }
        let operation: Operation = Rc::new(move |builder, place| {
            builder.store_pushed(pushed, place, size)?;
            builder.adjust_stack(-(size as i32));
            Ok(())
        });
        self.stack_access(-(size as i32), descriptor, operation)
    }

    fn store_pushed(&mut self, pushed: Pushed, place: Place, size: usize) -> Result<(), Unencodable> {
        match pushed {
            Pushed::Immediate(value) => {
                let code = match size {
                    2 => Code::Mov_rm16_imm16,
                    4 => Code::Mov_rm32_imm32,
                    _ => Code::Mov_rm64_imm32,
                };
                let memory = MemoryOperand::with_base(Register::RAX);
                let mut store = Instruction::with2(code, memory, value).map_err(|_| Unencodable)?;
                Self::set_place(&mut store, place);
                return self.encode(&store);
            }
            Pushed::Guest(guest) => {
                let from = in_register(guest).unwrap_or(Host::RCX);
                self.read_guest(from, guest);
                return self.store_place(from, place, size);
            }
            Pushed::Temporary => self.asm.load(Host::RCX, hot!(temporary)),
            Pushed::Rip(offset) => self.load_rip(Host::RCX, offset as i32),
        }
        self.store_place(Host::RCX, place, size)
    }

    /// An access `delta` bytes from the top of the stack.
    pub(super) fn stack_access(
        &mut self,
        delta: i32,
        descriptor: Descriptor,
        operation: Operation,
    ) -> Result<(), Unencodable> {
        if let Some(part) = self.part {
            return self.shared_access(part, RSP, delta, descriptor, &operation);
        }
        if self.has_windows() {
            return self.window_access(None, GUEST_RSP, delta, &operation);
        }
        let address = self.stack_address(delta);
        self.access(address, descriptor, operation)
    }

    /// The linear address `delta` bytes from the top of the stack; R14, or RSP's own register.
    pub(super) fn stack_address(&mut self, delta: i32) -> Host {
        if self.mode.stack() == Width::W64 {
            if delta == 0 {
                return GUEST_RSP;
            }
            self.asm.lea_base(Host::R14, GUEST_RSP, delta);
            return Host::R14;
        }
        self.asm.lea(false, Host::R14, Some(GUEST_RSP), None, delta);
        if self.mode.stack() == Width::W16 {
            self.asm.movzx16(Host::R14, Host::R14);
        }
        self.add_stack_base();
        Host::R14
    }

    fn add_stack_base(&mut self) {
        if self.mode.stack_flat() {
            return;
        }
        if let Some(base) = self.segment_base(Register::SS) {
            self.asm.load(Host::R15, base);
            self.asm.lea(false, Host::R14, Some(Host::R14), Some((Host::R15, 1)), 0);
        }
    }

    /// Add to the stack pointer at its width. Uses RCX for 16-bit stacks.
    pub(super) fn adjust_stack(&mut self, delta: i32) {
        match self.mode.stack() {
            Width::W64 => self.asm.lea_base(GUEST_RSP, GUEST_RSP, delta),
            Width::W32 => self.asm.lea(false, GUEST_RSP, Some(GUEST_RSP), None, delta),
            Width::W16 => {
                self.asm.lea(false, Host::RCX, Some(GUEST_RSP), None, delta);
                self.asm.mov16(GUEST_RSP, Host::RCX);
            }
        }
    }

    fn pop(&mut self, instruction: &Instruction) -> Result<(), Unencodable> {
        let size = Self::stack_operand_size(instruction);
        if instruction.op0_kind() == OpKind::Memory {
            return self.pop_memory(instruction, size);
        }
        let guest = number(instruction.op0_register()).ok_or(Unencodable)?;
        self.stack_access(
            0,
            Descriptor::new(size, AccessKind::Read).stack(),
            Rc::new(move |builder, place| {
                // A register as wide as the code takes the value at once, but not the stack pointer, which moves first.
                let to = in_register(guest).filter(|_| size > 2 && guest != RSP).unwrap_or(Host::R14);
                builder.load_place(to, place, size)?;
                builder.adjust_stack(size as i32);
                builder.write_sized(guest, to, size);
                Ok(())
            }),
        )
    }

    fn pop_memory(&mut self, instruction: &Instruction, size: usize) -> Result<(), Unencodable> {
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
        // An address based on RSP is computed after the increment (SDM vol. 2 "POP").
        let mut target = *instruction;
        if number(target.memory_base()) == Some(4) {
            let displacement = target.memory_displacement64().wrapping_add(size as u64);
            target.set_memory_displacement64(displacement);
        }
        let address = self.linear_address(&target)?;
        self.access(
            address,
            self.through_segment(Descriptor::new(size, AccessKind::Write), instruction),
            Rc::new(move |builder, place| {
                builder.asm.load(Host::RCX, hot!(temporary));
                builder.store_place(Host::RCX, place, size)?;
                builder.adjust_stack(size as i32);
                Ok(())
            }),
        )
    }

    /// Write the low `size` bytes of a register as the guest's MOV would.
    pub(super) fn write_sized(&mut self, guest: usize, from: Host, size: usize) {
        match (size, super::registers::home(guest)) {
            (2, super::registers::Home::Host(to)) => self.asm.mov16(to, from),
            (2, super::registers::Home::Memory(_)) => {
                self.read_guest(Host::RCX, guest);
                self.asm.mov16(Host::RCX, from);
                self.asm.store(slot(guest), Host::RCX);
            }
            _ => self.write_guest(guest, from),
        }
    }

    fn leave(&mut self, instruction: &Instruction) -> Result<(), Unencodable> {
        let size = match instruction.code() {
            Code::Leavew => 2,
            Code::Leaved => 4,
            _ => 8,
        };
        if self.mode.stack() == Width::W16 || size == 2 {
            return Err(Unencodable);
        }
        let wide = self.mode.stack() == Width::W64;
        if wide {
            self.asm.mov(Host::R14, Host::RBP);
        } else {
            self.asm.mov32(Host::R14, Host::RBP);
            self.add_stack_base();
        }
        self.access(
            Host::R14,
            Descriptor::new(size, AccessKind::Read).stack(),
            Rc::new(move |builder, place| {
                builder.load_place(Host::RCX, place, size)?;
                builder.asm.lea(wide, GUEST_RSP, Some(Host::RBP), None, size as i32);
                builder.asm.mov(Host::RBP, Host::RCX);
                Ok(())
            }),
        )
    }

    /// Load `size` bytes, zero-extended.
    pub(super) fn load_place(&mut self, to: Host, place: Place, size: usize) -> Result<(), Unencodable> {
        let code = match size {
            1 => Code::Movzx_r32_rm8,
            2 => Code::Movzx_r32_rm16,
            4 => Code::Mov_r32_rm32,
            _ => Code::Mov_r64_rm64,
        };
        let like = if size == 8 { Register::RAX } else { Register::EAX };
        let memory = MemoryOperand::with_base(Register::RAX);
        let mut load = Instruction::with2(code, sized(to, like), memory).map_err(|_| Unencodable)?;
        Self::set_place(&mut load, place);
        self.asm.wrote(to);
        self.encode(&load)
    }

    /// Store the low `size` bytes.
    pub(super) fn store_place(&mut self, from: Host, place: Place, size: usize) -> Result<(), Unencodable> {
        let (code, like) = match size {
            1 => (Code::Mov_rm8_r8, Register::AL),
            2 => (Code::Mov_rm16_r16, Register::AX),
            4 => (Code::Mov_rm32_r32, Register::EAX),
            _ => (Code::Mov_rm64_r64, Register::RAX),
        };
        let memory = MemoryOperand::with_base(Register::RAX);
        let mut store = Instruction::with2(code, memory, sized(from, like)).map_err(|_| Unencodable)?;
        Self::set_place(&mut store, place);
        self.encode(&store)
    }

    fn string_size(instruction: &Instruction) -> usize {
        use Mnemonic as M;
        match instruction.mnemonic() {
            M::Movsb | M::Stosb | M::Lodsb | M::Scasb | M::Cmpsb => 1,
            M::Movsw | M::Stosw | M::Lodsw | M::Scasw | M::Cmpsw => 2,
            M::Movsd | M::Stosd | M::Lodsd | M::Scasd | M::Cmpsd => 4,
            _ => 8,
        }
    }

    /// Move an index register on; it has the width of the code.
    fn step(&mut self, register: Host, size: usize) {
        let step = if self.mode.backwards() { -(size as i32) } else { size as i32 };
        self.asm.lea(self.mode.is64(), register, Some(register), None, step);
    }

    /// The linear address that an index register means, in flat segments. Uses R14 for 32 bits.
    fn string_address(&mut self, index: Host) -> Host {
        if self.mode.is64() {
            return index;
        }
        self.asm.lea(false, Host::R14, Some(index), None, 0);
        Host::R14
    }

    /// Load from [RSI] into `HotState::temporary`.
    fn string_operand(&mut self, size: usize) -> Result<(), Unencodable> {
        let pointer = self.string_address(Host::RSI);
        self.access(
            pointer,
            Descriptor::new(size, AccessKind::Read),
            Rc::new(move |builder, place| {
                builder.load_place(Host::RCX, place, size)?;
                builder.asm.store(hot!(temporary), Host::RCX);
                Ok(())
            }),
        )
    }

    fn string_move(&mut self, instruction: &Instruction) -> Result<(), Unencodable> {
        let size = Self::string_size(instruction);
        self.string_operand(size)?;
        let pointer = self.string_address(Host::RDI);
        self.access(
            pointer,
            Descriptor::new(size, AccessKind::Write),
            Rc::new(move |builder, place| {
                builder.asm.load(Host::RCX, hot!(temporary));
                builder.store_place(Host::RCX, place, size)?;
                builder.step(Host::RSI, size);
                builder.step(Host::RDI, size);
                Ok(())
            }),
        )
    }

    fn string_store(&mut self, instruction: &Instruction) -> Result<(), Unencodable> {
        let size = Self::string_size(instruction);
        let pointer = self.string_address(Host::RDI);
        self.access(
            pointer,
            Descriptor::new(size, AccessKind::Write),
            Rc::new(move |builder, place| {
                builder.store_place(Host::RAX, place, size)?;
                builder.step(Host::RDI, size);
                Ok(())
            }),
        )
    }

    fn string_load(&mut self, instruction: &Instruction) -> Result<(), Unencodable> {
        let size = Self::string_size(instruction);
        let pointer = self.string_address(Host::RSI);
        self.access(
            pointer,
            Descriptor::new(size, AccessKind::Read),
            Rc::new(move |builder, place| {
                let (code, register) = match size {
                    1 => (Code::Mov_r8_rm8, Register::AL),
                    2 => (Code::Mov_r16_rm16, Register::AX),
                    4 => (Code::Mov_r32_rm32, Register::EAX),
                    _ => (Code::Mov_r64_rm64, Register::RAX),
                };
                let memory = MemoryOperand::with_base(Register::RAX);
                let mut load = Instruction::with2(code, register, memory).map_err(|_| Unencodable)?;
                Self::set_place(&mut load, place);
                builder.encode(&load)?;
                builder.step(Host::RSI, size);
                Ok(())
            }),
        )
    }

    fn string_scan(&mut self, instruction: &Instruction) -> Result<(), Unencodable> {
        let size = Self::string_size(instruction);
        let pointer = self.string_address(Host::RDI);
        self.access(
            pointer,
            Descriptor::new(size, AccessKind::Read),
            Rc::new(move |builder, place| {
                builder.compare(Host::RAX, place, size)?;
                builder.step(Host::RDI, size);
                Ok(())
            }),
        )
    }

    fn string_compare(&mut self, instruction: &Instruction) -> Result<(), Unencodable> {
        let size = Self::string_size(instruction);
        self.string_operand(size)?;
        let pointer = self.string_address(Host::RDI);
        self.access(
            pointer,
            Descriptor::new(size, AccessKind::Read),
            Rc::new(move |builder, place| {
                builder.asm.load(Host::RCX, hot!(temporary));
                builder.compare(Host::RCX, place, size)?;
                builder.step(Host::RSI, size);
                builder.step(Host::RDI, size);
                Ok(())
            }),
        )
    }

    fn compare(&mut self, left: Host, place: Place, size: usize) -> Result<(), Unencodable> {
        let (code, like) = match size {
            1 => (Code::Cmp_r8_rm8, Register::AL),
            2 => (Code::Cmp_r16_rm16, Register::AX),
            4 => (Code::Cmp_r32_rm32, Register::EAX),
            _ => (Code::Cmp_r64_rm64, Register::RAX),
        };
        let memory = MemoryOperand::with_base(Register::RAX);
        let mut compare = Instruction::with2(code, sized(left, like), memory).map_err(|_| Unencodable)?;
        Self::set_place(&mut compare, place);
        self.encode(&compare)
    }
}

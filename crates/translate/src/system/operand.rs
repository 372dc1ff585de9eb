//! Operands of a decoded instruction: registers, effective addresses, memory, the stack.

use crate::cpu::{Cpu, Exception, Outcome};
use crate::mmu::walk::Kind;
use crate::state::{gpr, seg};
use iced_x86::{Instruction, OpKind, Register};

/// A memory operand: an offset in a segment register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryOperand {
    /// Index of the segment register ([`seg`]).
    pub segment: usize,
    /// Offset, truncated to the address size.
    pub offset: u64,
    /// Address size in bytes: 2, 4 or 8.
    pub address_size: u8,
}

impl MemoryOperand {
    /// The operand `bytes` further on; wraps at the address size.
    pub fn after(self, bytes: u64) -> Self {
        let offset = truncate(self.offset.wrapping_add(bytes), self.address_size);
        Self { offset, ..self }
    }
}

/// The low `size` bytes (1 to 8) of a value.
pub fn truncate(value: u64, size: u8) -> u64 {
    match size {
        8.. => value,
        _ => value & ((1 << (8 * u32::from(size))) - 1),
    }
}

/// The low `size` bytes (1 to 8) of a value, sign-extended.
pub fn sign_extend(value: u64, size: u8) -> i64 {
    let shift = 64 - 8 * u32::from(size.min(8));
    ((value << shift) as i64) >> shift
}

/// Encoding index of a segment register; DS for anything else.
pub fn segment_index(register: Register) -> usize {
    match register {
        Register::ES => seg::ES,
        Register::CS => seg::CS,
        Register::SS => seg::SS,
        Register::FS => seg::FS,
        Register::GS => seg::GS,
        _ => seg::DS,
    }
}

/// Index of the segment register that the explicit memory operand goes through. 64-bit code has no
/// segment prefixes but FS and GS: there RSP and RBP as base mean SS, whatever prefixes say
/// (Intel SDM vol. 1 §3.7.4.1 "Segmentation in 64-Bit Mode").
pub fn operand_segment(instruction: &Instruction, code64: bool) -> usize {
    let named = segment_index(instruction.memory_segment());
    if !code64 || named >= seg::FS {
        return named;
    }
    let base = instruction.memory_base();
    match base.is_gpr() && matches!(base.full_register(), Register::RSP | Register::RBP) {
        true => seg::SS,
        false => seg::DS,
    }
}

/// AH, CH, DH or BH.
fn is_high_byte(register: Register) -> bool {
    matches!(register, Register::AH | Register::CH | Register::DH | Register::BH)
}

/// Address size in bytes that the encoding of a memory operand uses.
fn address_size(instruction: &Instruction, code64: bool) -> u8 {
    let by_register = |register: Register| register.is_gpr() || register.is_ip();
    let base = instruction.memory_base();
    if by_register(base) {
        return base.size() as u8;
    }
    let index = instruction.memory_index();
    if by_register(index) {
        return index.size() as u8;
    }
    match instruction.memory_displ_size() {
        2 => 2,
        4 => 4,
        8 => 8,
        _ if code64 => 8,
        _ => 4,
    }
}

impl Cpu {
    /// RIP of the next instruction: 64 bits in 64-bit code, else 32, in 16-bit code too.
    pub fn next_rip(&self, instruction: &Instruction) -> u64 {
        let rip = self.state.rip.wrapping_add(instruction.len() as u64);
        truncate(rip, if self.state.code64() { 8 } else { 4 })
    }

    /// Read a general register of any size, zero-extended.
    pub fn gpr_read(&self, register: Register) -> u64 {
        let number = register.number();
        if is_high_byte(register) {
            return (self.state.gpr[number & 3] >> 8) & 0xff;
        }
        truncate(self.state.gpr[number & 15], register.size() as u8)
    }

    /// Write a general register of any size; 32-bit writes clear the upper half.
    pub fn gpr_write(&mut self, register: Register, value: u64) {
        let number = register.number();
        if is_high_byte(register) {
            let slot = &mut self.state.gpr[number & 3];
            *slot = *slot & !0xff00 | (value & 0xff) << 8;
            return;
        }
        self.gpr_merge(number & 15, register.size() as u8, value);
    }

    /// Write the low `size` bytes of general register `index`; 4 bytes clear the upper half.
    pub fn gpr_merge(&mut self, index: usize, size: u8, value: u64) {
        let slot = &mut self.state.gpr[index & 15];
        *slot = match size {
            1 => *slot & !0xff | value & 0xff,
            2 => *slot & !0xffff | value & 0xffff,
            4 => value & 0xffff_ffff,
            _ => value,
        };
    }

    /// EDX:EAX.
    pub fn edx_eax(&self) -> u64 {
        truncate(self.state.gpr[gpr::RDX], 4) << 32 | truncate(self.state.gpr[gpr::RAX], 4)
    }

    /// Set EDX:EAX; the upper halves of RAX and RDX become zero.
    pub fn set_edx_eax(&mut self, value: u64) {
        self.state.gpr[gpr::RAX] = value & 0xffff_ffff;
        self.state.gpr[gpr::RDX] = value >> 32;
    }

    /// Segment and offset of the memory operand; for VSIB without its index.
    pub fn memory_operand(&self, instruction: &Instruction) -> MemoryOperand {
        let size = address_size(instruction, self.state.code64());
        let (base, index) = (instruction.memory_base(), instruction.memory_index());
        let mut offset = instruction.memory_displacement64();
        if base.is_ip() {
            // The displacement is already a target, counted from the decoder's idea of RIP.
            let relative = offset.wrapping_sub(instruction.next_ip());
            offset = self.next_rip(instruction).wrapping_add(relative);
        } else if base.is_gpr() {
            offset = offset.wrapping_add(self.gpr_read(base));
        }
        if index.is_gpr() {
            let scale = u64::from(instruction.memory_index_scale());
            offset = offset.wrapping_add(self.gpr_read(index).wrapping_mul(scale));
        }
        MemoryOperand {
            segment: operand_segment(instruction, self.state.code64()),
            offset: truncate(offset, size),
            address_size: size,
        }
    }

    /// Read 1, 2, 4 or 8 bytes of a memory operand.
    pub fn load(&mut self, at: MemoryOperand, size: u8) -> Outcome<u64> {
        self.read_seg(at.segment, at.offset, size)
    }

    /// Write 1, 2, 4 or 8 bytes of a memory operand.
    pub fn store(&mut self, at: MemoryOperand, size: u8, value: u64) -> Outcome {
        self.write_seg(at.segment, at.offset, size, value)
    }

    /// Read a register, immediate or memory operand of `size` bytes, zero-extended.
    pub fn operand_read(&mut self, instruction: &Instruction, index: u32, size: u8) -> Outcome<u64> {
        match instruction.op_kind(index) {
            OpKind::Register => Ok(self.register_read(instruction.op_register(index), size)),
            OpKind::Memory => self.load(self.memory_operand(instruction), size),
            _ => Ok(truncate(instruction.try_immediate(index).unwrap_or(0), size)),
        }
    }

    fn register_read(&self, register: Register, size: u8) -> u64 {
        if register.is_segment_register() {
            return u64::from(self.state.segments[segment_index(register)].selector);
        }
        truncate(self.gpr_read(register), size)
    }

    /// Write a general register (at its own size) or `size` bytes of memory.
    pub fn operand_write(&mut self, instruction: &Instruction, index: u32, size: u8, value: u64) -> Outcome {
        match instruction.op_kind(index) {
            OpKind::Register => {
                self.gpr_write(instruction.op_register(index), value);
                Ok(())
            }
            OpKind::Memory => self.store(self.memory_operand(instruction), size, value),
            _ => Err(Exception::UNDEFINED.into()),
        }
    }

    /// Stack-address size in bytes: 2, 4 or 8.
    pub fn stack_size(&self) -> u8 {
        match (self.state.code64(), self.state.segments[seg::SS].big()) {
            (true, _) => 8,
            (false, true) => 4,
            (false, false) => 2,
        }
    }

    /// RSP moved by `bytes`, as an offset in SS.
    pub fn stack_offset(&self, bytes: i64) -> u64 {
        truncate(self.state.gpr[gpr::RSP].wrapping_add_signed(bytes), self.stack_size())
    }

    /// Set the stack pointer at the stack-address size.
    pub fn set_stack_pointer(&mut self, offset: u64) {
        self.gpr_merge(gpr::RSP, self.stack_size(), offset);
    }

    /// Push `size` (2, 4 or 8) bytes.
    pub fn push_value(&mut self, size: u8, value: u64) -> Outcome {
        let offset = self.stack_offset(-i64::from(size));
        self.write_seg(seg::SS, offset, size, value)?;
        self.set_stack_pointer(offset);
        Ok(())
    }

    /// Read `size` bytes `depth` bytes above the stack pointer, without moving it.
    pub fn peek_value(&mut self, depth: i64, size: u8) -> Outcome<u64> {
        let offset = self.stack_offset(depth);
        self.read_seg(seg::SS, offset, size)
    }

    /// Drop bytes from the stack.
    pub fn drop_stack(&mut self, bytes: i64) {
        self.set_stack_pointer(self.stack_offset(bytes));
    }

    /// Linear address of `size` bytes of a memory operand.
    pub fn operand_linear(&self, at: MemoryOperand, size: u64, kind: Kind) -> Result<u64, Exception> {
        self.segment_linear(at.segment, at.offset, size, kind)
    }

    /// #GP(0) unless at privilege level 0.
    pub fn require_cpl0(&self) -> Result<(), Exception> {
        match self.state.cpl() {
            0 => Ok(()),
            _ => Err(Exception::protection(0)),
        }
    }
}

//! A small assembler for the fixed sequences that surround rewritten guest instructions.
//!
//! Only what those sequences need; guest instructions go through iced's encoder.
//! Every method but those named after flag-changing instructions leaves flags alone.

use crate::state::STACK_TOP;

/// A host general register by encoding number, 0 to 15.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Host(pub u8);

#[allow(missing_docs)]
impl Host {
    pub const RAX: Self = Self(0);
    pub const RCX: Self = Self(1);
    pub const RDX: Self = Self(2);
    pub const RSP: Self = Self(4);
    pub const RBP: Self = Self(5);
    pub const RSI: Self = Self(6);
    pub const RDI: Self = Self(7);
    pub const R10: Self = Self(10);
    pub const R11: Self = Self(11);
    pub const R14: Self = Self(14);
    pub const R15: Self = Self(15);

    fn low(self) -> u8 {
        self.0 & 7
    }
    fn high(self) -> u8 {
        self.0 >> 3
    }
}

/// A 32-bit branch displacement to be filled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patch(pub usize);

/// An 8-bit branch displacement to be filled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShortPatch(pub usize);

/// Host code under construction; positions are offsets from its start.
#[derive(Debug)]
pub struct Assembler {
    /// The bytes so far, and room for more.
    buffer: Vec<u8>,
    /// How many there are.
    used: usize,
    /// Where the part begins that will lie elsewhere than what comes before it, once that is known.
    cold_start: Option<usize>,
    /// Displacements of branches from one part to the other.
    crossings: Vec<usize>,
    /// The slots whose values R15 and R14 hold, until they are written to.
    held: [Option<usize>; 2],
    /// Which of the two was used last.
    recent: Host,
}

/// Distance from RSP to the field of the vCPU's state at `offset`.
pub const fn displacement(offset: i32) -> i32 {
    offset - STACK_TOP as i32
}

impl Default for Assembler {
    fn default() -> Self {
        let (buffer, crossings) = (Vec::new(), Vec::new());
        Self { buffer, used: 0, cold_start: None, crossings, held: [None; 2], recent: Host::R15 }
    }
}

impl Assembler {
    /// Offset of the next byte.
    pub fn position(&self) -> usize {
        self.used
    }

    /// The bytes so far.
    pub fn code(&self) -> &[u8] {
        &self.buffer[..self.used]
    }

    /// Begin anew.
    pub fn clear(&mut self) {
        self.used = 0;
        self.cold_start = None;
        self.crossings.clear();
        self.forget_held();
    }

    /// Take back what comes after the first `size` bytes.
    pub fn truncate(&mut self, size: usize) {
        self.used = self.used.min(size);
        self.forget_held();
    }

    /// Append raw bytes.
    #[inline(always)]
    pub fn bytes<const COUNT: usize>(&mut self, bytes: &[u8; COUNT]) {
        if self.buffer.len() - self.used < COUNT {
            self.make_room(COUNT);
        }
        self.buffer[self.used..self.used + COUNT].copy_from_slice(bytes);
        self.used += COUNT;
    }

    /// Append raw bytes, as many as there are.
    pub fn slice(&mut self, bytes: &[u8]) {
        self.make_room(bytes.len());
        self.buffer[self.used..self.used + bytes.len()].copy_from_slice(bytes);
        self.used += bytes.len();
    }

    fn make_room(&mut self, count: usize) {
        const FIRST: usize = 4096;
        let wanted = self.used + count;
        if self.buffer.len() < wanted {
            self.buffer.resize(wanted.next_power_of_two().max(FIRST), 0);
        }
    }

    /// R15 or R14 holds the value of a slot from here on. What the other one holds of it is out of date.
    pub fn hold(&mut self, register: Host, slot: usize) {
        self.held.iter_mut().filter(|held| **held == Some(slot)).for_each(|held| *held = None);
        self.held[usize::from(register == Host::R14)] = Some(slot);
        self.recent = register;
    }

    /// Which register holds the value of a slot, in code that runs straight on from [`Self::hold`].
    pub fn holder(&mut self, slot: usize) -> Option<Host> {
        let place = self.held.iter().position(|&held| held == Some(slot))?;
        self.recent = [Host::R15, Host::R14][place];
        Some(self.recent)
    }

    /// The register to hold another slot's value: one that holds none, or that was not used last.
    pub fn free_holder(&self) -> Host {
        match self.held {
            [None, _] => Host::R15,
            [_, None] => Host::R14,
            _ if self.recent == Host::R15 => Host::R14,
            _ => Host::R15,
        }
    }

    /// Neither register holds a slot's value: code out of the way may write to them, and come back.
    pub fn forget_held(&mut self) {
        self.held = [None; 2];
    }

    /// A register is written to by something else than the methods here.
    pub fn wrote(&mut self, register: Host) {
        match register {
            Host::R15 => self.held[0] = None,
            Host::R14 => self.held[1] = None,
            _ => {}
        }
    }

    /// What comes from here on will lie elsewhere.
    pub fn begin_cold(&mut self) {
        self.cold_start = Some(self.position());
    }

    /// The code, the part of it that lies elsewhere, and the displacements of branches between the two.
    pub fn parts(&self) -> (&[u8], &[u8], &[usize]) {
        let (code, cold) = self.code().split_at(self.cold_start.unwrap_or(self.used));
        (code, cold, &self.crossings)
    }

    fn dword(&mut self, value: i32) {
        self.bytes(&value.to_le_bytes());
    }

    /// ModRM, SIB and displacement of the state's field at `offset`; `reg` has three bits.
    #[inline(always)]
    fn field(&mut self, reg: u8, offset: i32) {
        let displacement = displacement(offset);
        match i8::try_from(displacement) {
            Ok(short) => self.bytes(&[0x44 | (reg << 3), 0x24, short as u8]),
            Err(_) => {
                let [a, b, c, d] = displacement.to_le_bytes();
                self.bytes(&[0x84 | (reg << 3), 0x24, a, b, c, d]);
            }
        }
    }

    /// `mov reg, [state + offset]`
    pub fn load(&mut self, reg: Host, offset: i32) {
        self.wrote(reg);
        self.bytes(&[0x48 | (reg.high() << 2), 0x8b]);
        self.field(reg.low(), offset);
    }

    /// `mov [state + offset], reg`
    pub fn store(&mut self, offset: i32, reg: Host) {
        self.bytes(&[0x48 | (reg.high() << 2), 0x89]);
        self.field(reg.low(), offset);
    }

    /// `mov reg, [state + table + index * 8]`
    pub fn load_indexed(&mut self, reg: Host, table: i32, index: Host) {
        self.wrote(reg);
        self.bytes(&[0x48 | (reg.high() << 2) | (index.high() << 1), 0x8b]);
        self.indexed_field(reg.low(), table, index);
    }

    /// `mov [state + table + index * 8], reg`
    pub fn store_indexed(&mut self, table: i32, index: Host, reg: Host) {
        self.bytes(&[0x48 | (reg.high() << 2) | (index.high() << 1), 0x89]);
        self.indexed_field(reg.low(), table, index);
    }

    /// `jmp [state + table + index * 8]`
    pub fn jump_indexed(&mut self, table: i32, index: Host) {
        if index.high() != 0 {
            self.bytes(&[0x42]);
        }
        self.bytes(&[0xff]);
        self.indexed_field(4, table, index);
    }

    fn indexed_field(&mut self, reg: u8, table: i32, index: Host) {
        self.bytes(&[0x84 | (reg << 3), 0xc4 | (index.low() << 3)]);
        self.dword(displacement(table));
    }

    /// `mov qword [state + offset], value`
    pub fn store_immediate(&mut self, offset: i32, value: i32) {
        self.bytes(&[0x48, 0xc7]);
        self.field(0, offset);
        self.dword(value);
    }

    /// `mov byte [state + offset], value`
    pub fn store_byte(&mut self, offset: i32, value: u8) {
        self.bytes(&[0xc6]);
        self.field(0, offset);
        self.bytes(&[value]);
    }

    /// `mov to, from`
    pub fn mov(&mut self, to: Host, from: Host) {
        self.wrote(to);
        self.bytes(&[0x48 | (from.high() << 2) | to.high(), 0x89, 0xc0 | (from.low() << 3) | to.low()]);
    }

    /// `mov to32, from32` (zero-extends)
    pub fn mov32(&mut self, to: Host, from: Host) {
        self.wrote(to);
        self.bytes(&[0x40 | (from.high() << 2) | to.high(), 0x89, 0xc0 | (from.low() << 3) | to.low()]);
    }

    /// `movzx to32, from16`
    pub fn movzx16(&mut self, to: Host, from: Host) {
        self.wrote(to);
        self.bytes(&[0x40 | (to.high() << 2) | from.high(), 0x0f, 0xb7, 0xc0 | (to.low() << 3) | from.low()]);
    }

    /// `movzx to32, from8`
    pub fn movzx8(&mut self, to: Host, from: Host) {
        self.wrote(to);
        self.bytes(&[0x40 | (to.high() << 2) | from.high(), 0x0f, 0xb6, 0xc0 | (to.low() << 3) | from.low()]);
    }

    /// `not reg`, 64-bit; no flag changes.
    pub fn not(&mut self, reg: Host) {
        self.wrote(reg);
        self.bytes(&[0x48 | reg.high(), 0xf7, 0xd0 | reg.low()]);
    }

    /// `mov to16, from16` (keeps the upper bits)
    pub fn mov16(&mut self, to: Host, from: Host) {
        self.wrote(to);
        self.bytes(&[0x66, 0x40 | (from.high() << 2) | to.high(), 0x89, 0xc0 | (from.low() << 3) | to.low()]);
    }

    /// `mov reg, value` in the shortest form that keeps all 64 bits
    pub fn mov_immediate(&mut self, reg: Host, value: u64) {
        self.wrote(reg);
        if let Ok(value) = u32::try_from(value) {
            self.bytes(&[0x40 | reg.high(), 0xb8 | reg.low()]);
            self.bytes(&value.to_le_bytes());
        } else if i64::from(value as i32) as u64 == value {
            self.bytes(&[0x48 | reg.high(), 0xc7, 0xc0 | reg.low()]);
            self.dword(value as i32);
        } else {
            self.bytes(&[0x48 | reg.high(), 0xb8 | reg.low()]);
            self.bytes(&value.to_le_bytes());
        }
    }

    /// `lea to, [base + index * scale + displacement]`; `wide` selects a 64-bit result.
    pub fn lea(
        &mut self,
        wide: bool,
        to: Host,
        base: Option<Host>,
        index: Option<(Host, u8)>,
        displacement: i32,
    ) {
        self.wrote(to);
        let base_high = base.map_or(0, Host::high);
        let index_high = index.map_or(0, |(index, _)| index.high());
        let rex = 0x40 | (u8::from(wide) << 3) | (to.high() << 2) | (index_high << 1) | base_high;
        self.bytes(&[rex, 0x8d]);
        let scale_bits = |scale: u8| (scale.trailing_zeros() as u8) << 6;
        let index_bits = index.map_or(4 << 3, |(index, scale)| scale_bits(scale) | (index.low() << 3));
        let Some(base) = base else {
            self.bytes(&[(to.low() << 3) | 4, index_bits | 5]);
            return self.dword(displacement);
        };
        let needs_sib = index.is_some() || base.low() == 4;
        let short = i8::try_from(displacement);
        let mode = match short {
            Ok(0) if base.low() != 5 => 0x00,
            Ok(_) => 0x40,
            Err(_) => 0x80,
        };
        if needs_sib {
            self.bytes(&[mode | (to.low() << 3) | 4, index_bits | base.low()]);
        } else {
            self.bytes(&[mode | (to.low() << 3) | base.low()]);
        }
        match (mode, short) {
            (0x40, Ok(short)) => self.bytes(&short.to_le_bytes()),
            (0x80, _) => self.dword(displacement),
            _ => {}
        }
    }

    /// `lea to, [base + displacement]`, 64-bit
    pub fn lea_base(&mut self, to: Host, base: Host, displacement: i32) {
        self.lea(true, to, Some(base), None, displacement);
    }

    /// `lea to, [base + displacement]` with a 32-bit displacement of 0 that can be replaced.
    pub fn lea_base_patchable(&mut self, to: Host, base: Host) -> Patch {
        self.wrote(to);
        debug_assert!(base.low() != 4);
        self.bytes(&[0x48 | (to.high() << 2) | base.high(), 0x8d, 0x80 | (to.low() << 3) | base.low()]);
        self.dword(0);
        Patch(self.position() - 4)
    }

    /// Three-byte VEX prefix with `map` (2: 0F38, 3: 0F3A), `pp` (1: 66, 2: F3, 3: F2), W=1.
    fn vex(&mut self, map: u8, pp: u8, reg: Host, vvvv: Host, rm_high: u8) {
        self.wrote(reg);
        self.bytes(&[
            0xc4,
            ((reg.high() ^ 1) << 7) | (1 << 6) | ((rm_high ^ 1) << 5) | map,
            0x80 | ((!vvvv.0 & 15) << 3) | pp,
        ]);
    }

    /// `pext to, from, [state + mask]`
    pub fn pext(&mut self, to: Host, from: Host, mask: i32) {
        self.vex(2, 2, to, from, 0);
        self.bytes(&[0xf5]);
        self.field(to.low(), mask);
    }

    /// `pdep to, from, [state + mask]`
    pub fn pdep(&mut self, to: Host, from: Host, mask: i32) {
        self.vex(2, 3, to, from, 0);
        self.bytes(&[0xf5]);
        self.field(to.low(), mask);
    }

    /// `pext to, from, mask`
    pub fn pext_by(&mut self, to: Host, from: Host, mask: Host) {
        self.vex(2, 2, to, from, mask.high());
        self.bytes(&[0xf5, 0xc0 | (to.low() << 3) | mask.low()]);
    }

    /// `pdep to, from, mask`
    pub fn pdep_by(&mut self, to: Host, from: Host, mask: Host) {
        self.vex(2, 3, to, from, mask.high());
        self.bytes(&[0xf5, 0xc0 | (to.low() << 3) | mask.low()]);
    }

    /// `shrx to, from, count` (64-bit)
    pub fn shrx(&mut self, to: Host, from: Host, count: Host) {
        self.vex(2, 3, to, count, from.high());
        self.bytes(&[0xf7, 0xc0 | (to.low() << 3) | from.low()]);
    }

    /// `rorx to, from, count` (64-bit)
    pub fn rorx(&mut self, to: Host, from: Host, count: u8) {
        self.vex(3, 3, to, Host(0), from.high());
        self.bytes(&[0xf0, 0xc0 | (to.low() << 3) | from.low(), count]);
    }

    /// `shlx to, from, count` (64-bit)
    pub fn shlx(&mut self, to: Host, from: Host, count: Host) {
        self.vex(2, 1, to, count, from.high());
        self.bytes(&[0xf7, 0xc0 | (to.low() << 3) | from.low()]);
    }

    /// `sarx to, from, count` (64-bit)
    pub fn sarx(&mut self, to: Host, from: Host, count: Host) {
        self.vex(2, 2, to, count, from.high());
        self.bytes(&[0xf7, 0xc0 | (to.low() << 3) | from.low()]);
    }

    /// `pushfq; pop reg`
    pub fn pushf_pop(&mut self, reg: Host) {
        self.wrote(reg);
        self.bytes(&[0x9c]);
        if reg.high() != 0 {
            self.bytes(&[0x41]);
        }
        self.bytes(&[0x58 | reg.low()]);
    }

    /// Clear the arithmetic flags; RAX is kept in `scratch` meanwhile.
    pub fn clear_flags(&mut self, scratch: Host) {
        self.mov(scratch, Host::RAX);
        // xor eax, eax; sahf
        self.bytes(&[0x31, 0xc0, 0x9e]);
        self.mov(Host::RAX, scratch);
    }

    /// Set the arithmetic flags from the RFLAGS image in RCX; RAX is kept in `scratch` meanwhile.
    pub fn flags_from_rcx(&mut self, scratch: Host) {
        self.mov(scratch, Host::RAX);
        // bt ecx, 11; setc al; mov ah, cl; add al, 0x7f (OF = bit 11); sahf
        self.bytes(&[0x0f, 0xba, 0xe1, 11, 0x0f, 0x92, 0xc0, 0x88, 0xcc, 0x04, 0x7f, 0x9e]);
        self.mov(Host::RAX, scratch);
    }

    /// `jrcxz` forward, to be bound.
    pub fn jrcxz(&mut self) -> ShortPatch {
        self.bytes(&[0xe3, 0]);
        ShortPatch(self.position() - 1)
    }

    /// `jmp rel8` forward, to be bound.
    pub fn jump_short(&mut self) -> ShortPatch {
        self.bytes(&[0xeb, 0]);
        ShortPatch(self.position() - 1)
    }

    /// `jmp rel32`, to be patched.
    pub fn jump(&mut self) -> Patch {
        self.bytes(&[0xe9, 0, 0, 0, 0]);
        Patch(self.position() - 4)
    }

    /// `jcc rel32`, to be patched; `condition` is the low nibble of the opcode.
    pub fn jump_if(&mut self, condition: u8) -> Patch {
        self.bytes(&[0x0f, 0x80 | condition, 0, 0, 0, 0]);
        Patch(self.position() - 4)
    }

    /// `lea to, [rip + distance]`, to be patched: the address of code.
    pub fn code_address(&mut self, to: Host) -> Patch {
        self.wrote(to);
        self.bytes(&[0x48 | (to.high() << 2), 0x8d, 0x05 | (to.low() << 3), 0, 0, 0, 0]);
        Patch(self.position() - 4)
    }

    /// `jmp reg`
    pub fn jump_to(&mut self, reg: Host) {
        self.bytes(&[0x40 | reg.high(), 0xff, 0xe0 | reg.low()]);
    }

    /// `call [state + offset]`
    pub fn call_at(&mut self, offset: i32) {
        self.forget_held();
        self.bytes(&[0xff]);
        self.field(2, offset);
    }

    /// `jmp [state + offset]`
    pub fn jump_at(&mut self, offset: i32) {
        self.bytes(&[0xff]);
        self.field(4, offset);
    }

    /// Bind a short branch to the next byte.
    pub fn bind_short(&mut self, patch: ShortPatch) {
        let distance = self.position() - patch.0 - 1;
        debug_assert!(distance < 128);
        self.buffer[patch.0] = distance as u8;
    }

    /// Point a branch at `target`.
    pub fn point(&mut self, patch: Patch, target: usize) {
        if self.cold_start.is_some_and(|start| (patch.0 < start) != (target < start)) {
            self.crossings.push(patch.0);
        }
        let distance = target as i64 - (patch.0 as i64 + 4);
        self.buffer[patch.0..patch.0 + 4].copy_from_slice(&(distance as i32).to_le_bytes());
    }

    /// Bind a branch to the next byte.
    pub fn bind(&mut self, patch: Patch) {
        self.point(patch, self.position());
    }
}

#[cfg(test)]
mod tests {
    use super::{Assembler, Host, STACK_TOP};
    use iced_x86::{Decoder, DecoderOptions, Instruction};

    fn decode(code: &[u8]) -> Vec<Instruction> {
        Decoder::new(64, code, DecoderOptions::NONE).into_iter().collect()
    }

    #[test]
    fn a_slot_s_newest_value_is_the_one_held() {
        let mut a = Assembler::default();
        a.hold(Host::R15, 3);
        assert_eq!(a.free_holder(), Host::R14);
        a.hold(Host::R14, 3);
        assert_eq!(a.holder(3), Some(Host::R14));
        assert_eq!(a.free_holder(), Host::R15);
        a.hold(Host::R15, 5);
        assert_eq!(
            (a.holder(5), a.holder(3), a.free_holder()),
            (Some(Host::R15), Some(Host::R14), Host::R15)
        );
        a.mov(Host::R14, Host::RAX);
        assert_eq!((a.holder(3), a.holder(5)), (None, Some(Host::R15)));
        a.call_at(0);
        assert_eq!(a.holder(5), None);
    }

    #[test]
    fn every_form_decodes_to_itself() {
        let mut a = Assembler::default();
        for number in 0..16 {
            let (reg, other) = (Host(number), Host(15 - number));
            a.load(reg, 0x1234);
            a.store(0x1234, reg);
            a.mov(reg, other);
            a.pext(reg, other, 0x40);
            a.rorx(reg, other, 8);
            a.pext_by(reg, other, reg);
            a.pdep_by(reg, other, reg);
            a.shlx(reg, other, reg);
            a.lea(true, reg, Some(other), None, -8);
            a.lea(false, reg, Some(other), Some((Host(0), 4)), 0x1000);
            a.lea(true, reg, None, Some((Host(1), 8)), 16);
            if number != 4 {
                a.load_indexed(reg, 0x2000, reg);
                a.jump_indexed(0x2000, reg);
            }
            a.mov16(reg, other);
            a.movzx16(reg, other);
        }
        let all = decode(a.code());
        assert!(all.iter().all(|instruction| !instruction.is_invalid()));
        assert_eq!(all[0].mnemonic(), iced_x86::Mnemonic::Mov);
        assert_eq!(all[0].memory_base(), iced_x86::Register::RSP);
        assert_eq!(all[0].memory_displacement64(), 0x1234 - STACK_TOP as u64);
        assert_eq!(all[3].mnemonic(), iced_x86::Mnemonic::Pext);
        assert_eq!(all[3].op1_register(), iced_x86::Register::R15);
        assert_eq!(all[4].mnemonic(), iced_x86::Mnemonic::Rorx);
        let by = [all[5].mnemonic(), all[6].mnemonic()];
        assert_eq!(by, [iced_x86::Mnemonic::Pext, iced_x86::Mnemonic::Pdep]);
        assert_eq!(all[6].op1_register(), iced_x86::Register::R15);
        assert_eq!(all[8].memory_displacement64() as i64, -8);
    }
}

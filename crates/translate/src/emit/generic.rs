//! The bulk of the instruction set: decode, rename, translate the memory operand, encode.

use super::access::{address_width, AccessKind, Descriptor, Operation, Place};
use super::builder::{hot, Unencodable};
use super::registers::{home, is_high_byte, number, sized, Home, GUEST_RCX};
use super::{Builder, Host};
use crate::frontend;
use crate::mode::Width;
use crate::state::{CpuState, HotState};
use crate::system::operand::operand_segment;
use iced_x86::{
    Code, EncodingKind, Instruction, InstructionInfoOptions, Mnemonic, OpAccess, OpCodeOperandKind, OpKind,
    Register,
};
use std::mem::offset_of;
use std::rc::Rc;

/// An operand that names a guest register without a host register of its own.
#[derive(Clone, Copy)]
struct Borrowed {
    operand: u32,
    guest: usize,
    /// Its old value matters, or part of it stays.
    read: bool,
    written: bool,
}

impl Builder {
    /// Translate an instruction generically.
    pub(super) fn generic(&mut self, instruction: &Instruction, bytes: &[u8]) -> Result<(), Unencodable> {
        let mut instruction = *instruction;
        normalise(&mut instruction, self.mode.is64())?;
        let Some(memory) = memory_operand(&instruction) else {
            return match instruction.mnemonic() {
                Mnemonic::Vzeroupper | Mnemonic::Vzeroall if !self.mode.is64() => {
                    self.clear_low_vectors(instruction.mnemonic() == Mnemonic::Vzeroall);
                    Ok(())
                }
                _ => self.register_form(&instruction, bytes),
            };
        };
        if matches!(instruction.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc)
            && instruction.op1_kind() == OpKind::Register
        {
            return self.bit_string(&instruction);
        }
        let descriptor = self.describe(&instruction, memory);
        if self.has_windows() && !self.can_use_window(&instruction) {
            let operation: Operation =
                Rc::new(move |builder, place| builder.renamed(&instruction, Some(place)));
            let address = self.linear_address(&instruction)?;
            return self.checked_access(address, descriptor, operation);
        }
        if let Some(part) = self.part {
            let base = number(instruction.memory_base()).ok_or(Unencodable)?;
            let offset = instruction.memory_displacement64() as i32;
            let operation: Operation =
                Rc::new(move |builder, place| builder.renamed(&instruction, Some(place)));
            return self.shared_access(part, base, offset, descriptor, &operation);
        }
        if is_cache_control(&instruction) {
            let address = self.linear_address(&instruction)?;
            return self.checked_access(address, descriptor, Rc::new(|_, _| Ok(())));
        }
        let operation: Operation = Rc::new(move |builder, place| builder.renamed(&instruction, Some(place)));
        self.access_operand(&instruction, descriptor, operation)
    }

    /// Whether the operation leaves R15, which tells the window, alone until the access is made.
    fn can_use_window(&mut self, instruction: &Instruction) -> bool {
        let rcx_taken = uses_cl_count(instruction) || uses_rcx_implicitly(instruction);
        is_cache_control(instruction) || self.borrowed(instruction).len() <= usize::from(!rcx_taken)
    }

    fn register_form(&mut self, instruction: &Instruction, bytes: &[u8]) -> Result<(), Unencodable> {
        if self.mode.is64() && instruction.len() == bytes.len() && is_identity(instruction) {
            self.asm.slice(bytes);
            return Ok(());
        }
        if self.on_slot(instruction)? {
            return Ok(());
        }
        self.renamed(instruction, None)
    }

    /// Size and kind of the access that memory operand `index` makes.
    fn describe(&mut self, instruction: &Instruction, index: u32) -> Descriptor {
        let kind = self.access_kind(instruction, index);
        let size = match instruction.mnemonic() {
            Mnemonic::Clflush | Mnemonic::Clflushopt | Mnemonic::Clwb => 1,
            _ => instruction.memory_size().size().clamp(1, crate::state::BOUNCE_BYTES),
        };
        let mut descriptor = Descriptor::new(size, kind);
        let math = frontend::waits_for_x87(instruction);
        // An x87 store that raises an unmasked exception stores nothing.
        let partial = math || self.operand_access(instruction, index) != OpAccess::Write;
        if kind == AccessKind::Write && partial {
            descriptor = descriptor.load_too();
        }
        if math {
            descriptor = descriptor.math();
        }
        if needs_alignment(instruction, size) {
            descriptor = descriptor.aligned();
        }
        descriptor = self.through_segment(descriptor, instruction);
        descriptor.masked_as(instruction)
    }

    fn access_kind(&mut self, instruction: &Instruction, index: u32) -> AccessKind {
        match self.operand_access(instruction, index) {
            OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess | OpAccess::None => AccessKind::Read,
            _ => AccessKind::Write,
        }
    }

    /// What the instruction does with its explicit memory operand.
    pub(super) fn memory_access(&mut self, instruction: &Instruction) -> AccessKind {
        match memory_operand(instruction) {
            Some(index) => self.access_kind(instruction, index),
            None => AccessKind::Read,
        }
    }

    /// VZEROUPPER, or VZEROALL, of registers 0 to 7: those that code of less than 64 bits has
    /// (Intel SDM vol. 2C "VZEROALL").
    fn clear_low_vectors(&mut self, all: bool) {
        for register in 0..8u8 {
            let modrm = 0xc0 | register << 3 | register;
            if all {
                // vpxor xmm, xmm, xmm; the second operand is inverted in the prefix.
                self.asm.bytes(&[0xc5, 0x81 | (!register & 15) << 3, 0xef, modrm]);
            } else {
                // vmovaps xmm, xmm
                self.asm.bytes(&[0xc5, 0xf8, 0x28, modrm]);
            }
        }
    }

    pub(super) fn operand_access(&mut self, instruction: &Instruction, index: u32) -> OpAccess {
        let options = InstructionInfoOptions::NO_MEMORY_USAGE | InstructionInfoOptions::NO_REGISTER_USAGE;
        self.info.info_options(instruction, options).op_access(index)
    }

    /// Encode with host registers in place of guest registers and the memory operand at `place`.
    pub(super) fn renamed(
        &mut self,
        instruction: &Instruction,
        place: Option<Place>,
    ) -> Result<(), Unencodable> {
        if has_high_byte(instruction) {
            return self.high_byte(instruction, place);
        }
        let counts_in_cl = uses_cl_count(instruction);
        let implicit_rcx = uses_rcx_implicitly(instruction);
        let borrowed = self.borrowed(instruction);
        let mut renamed = *instruction;
        let temporaries = self.temporaries(place, borrowed.len(), counts_in_cl || implicit_rcx);
        if borrowed.len() > temporaries.len() {
            return Err(Unencodable);
        }
        let place = self.free_r15(place, &temporaries, borrowed.len());
        for (borrow, &temporary) in borrowed.iter().zip(&temporaries) {
            if borrow.read {
                self.read_guest(temporary, borrow.guest);
            } else {
                self.asm.wrote(temporary);
            }
            let like = instruction.op_register(borrow.operand);
            renamed.set_op_register(borrow.operand, sized(temporary, like));
        }
        self.rename_homed(instruction, &mut renamed, counts_in_cl);
        if counts_in_cl || implicit_rcx {
            self.asm.mov(Host::RCX, GUEST_RCX);
        }
        if let Some(place) = place {
            Self::set_place(&mut renamed, place);
        } else {
            renamed.set_segment_prefix(Register::None);
        }
        self.encode(&renamed)?;
        if implicit_rcx && writes_ecx(instruction) {
            self.asm.mov(GUEST_RCX, Host::RCX);
        }
        for (borrow, &temporary) in borrowed.iter().zip(&temporaries) {
            if borrow.written {
                self.write_guest(borrow.guest, temporary);
            }
        }
        Ok(())
    }

    /// Operands in guest registers that live in memory. The same register twice shares a temporary
    /// only by being listed once for each operand; both are loaded, the written one is stored last.
    fn borrowed(&mut self, instruction: &Instruction) -> Vec<Borrowed> {
        let mut all = Vec::new();
        for operand in 0..instruction.op_count() {
            if instruction.op_kind(operand) != OpKind::Register {
                continue;
            }
            let Some(guest) = number(instruction.op_register(operand)) else { continue };
            if matches!(home(guest), Home::Memory(_)) {
                let access = self.operand_access(instruction, operand);
                let written = !matches!(access, OpAccess::Read | OpAccess::CondRead | OpAccess::None);
                let whole = instruction.op_register(operand).size() >= 4 && overwrites(instruction);
                let read = access != OpAccess::Write || !whole;
                all.push(Borrowed { operand, guest, read, written });
            }
        }
        // Written operands are stored in order: for `xadd r10, r10` and the like the first
        // operand's value must be the last stored.
        all.reverse();
        all
    }

    fn temporaries(&self, place: Option<Place>, wanted: usize, rcx_taken: bool) -> Vec<Host> {
        if wanted == 0 {
            return Vec::new();
        }
        let mut free = Vec::with_capacity(3);
        if !rcx_taken {
            free.push(Host::RCX);
        }
        match place {
            None | Some(Place::Bounce | Place::Slot(_)) => free.extend([Host::R14, Host::R15]),
            // R15 has to lead to the window until the access is made.
            Some(Place::Known(_)) => free.push(Host::R14),
            Some(Place::At(base)) if base != Host::R14 => free.extend([Host::R14, Host::R15]),
            Some(Place::Direct(base) | Place::Offset(base, _)) if base != Host::R14 => {
                free.push(Host::R14);
                if wanted > free.len() {
                    // R14 takes the sum, R15 becomes free instead; see `free_r15`.
                    free.pop();
                    free.push(Host::R15);
                }
            }
            // R15 may hold another window's distance, and is not needed: see `can_use_window`.
            Some(Place::Away(..)) => {}
            Some(_) => free.push(Host::R15),
        }
        free
    }

    /// If R15 is to serve as a temporary, fold it into the address first.
    fn free_r15(&mut self, place: Option<Place>, temporaries: &[Host], wanted: usize) -> Option<Place> {
        let needed = temporaries.iter().take(wanted).any(|&temporary| temporary == Host::R15);
        match place {
            Some(Place::Direct(base)) if needed => {
                self.asm.lea(true, Host::R14, Some(base), Some((Host::R15, 1)), 0);
                Some(Place::At(Host::R14))
            }
            Some(Place::Offset(base, offset)) if needed => {
                self.asm.lea(true, Host::R14, Some(base), Some((Host::R15, 1)), offset);
                Some(Place::At(Host::R14))
            }
            other => other,
        }
    }

    fn rename_homed(&self, instruction: &Instruction, renamed: &mut Instruction, counts_in_cl: bool) {
        for operand in 0..instruction.op_count() {
            if instruction.op_kind(operand) != OpKind::Register {
                continue;
            }
            let register = instruction.op_register(operand);
            if counts_in_cl && is_count_operand(instruction, operand) {
                continue;
            }
            if let Some(Home::Host(host)) = number(register).map(home) {
                renamed.set_op_register(operand, sized(host, register));
            }
        }
    }

    /// AH, BH, CH and DH cannot be named beside registers that need a REX prefix: work on the
    /// register rotated right by 8.
    fn high_byte(&mut self, instruction: &Instruction, place: Option<Place>) -> Result<(), Unencodable> {
        match place {
            None => self.high_byte_registers(instruction),
            Some(place) => self.high_byte_memory(instruction, place),
        }
    }

    fn high_byte_registers(&mut self, instruction: &Instruction) -> Result<(), Unencodable> {
        let extended =
            |register: Register| matches!(number(register), Some(4 | 8..)) && !is_high_byte(register);
        let any_extended = (0..instruction.op_count()).any(|index| {
            instruction.op_kind(index) == OpKind::Register && extended(instruction.op_register(index))
        });
        if any_extended {
            // MOVZX/MOVSX from a high byte to guest RSP: the only form that exists.
            return self.high_byte_memory(instruction, Place::Bounce);
        }
        // All operands are legacy registers: the guest's RCX stands in its own for a moment.
        let uses_rcx = (0..instruction.op_count()).any(|index| {
            instruction.op_kind(index) == OpKind::Register
                && number(instruction.op_register(index)) == Some(1)
        });
        if uses_rcx {
            self.asm.mov(Host::RCX, GUEST_RCX);
        }
        self.encode(instruction)?;
        if uses_rcx {
            self.asm.mov(GUEST_RCX, Host::RCX);
        }
        Ok(())
    }

    fn high_byte_memory(&mut self, instruction: &Instruction, place: Place) -> Result<(), Unencodable> {
        let high = (0..instruction.op_count())
            .find(|&index| {
                instruction.op_kind(index) == OpKind::Register && is_high_byte(instruction.op_register(index))
            })
            .ok_or(Unencodable)?;
        let Some(Home::Host(parent)) = number(instruction.op_register(high)).map(home) else {
            return Err(Unencodable);
        };
        let written = !matches!(self.operand_access(instruction, high), OpAccess::Read | OpAccess::CondRead);
        let mut renamed = *instruction;
        self.rename_homed(instruction, &mut renamed, false);
        renamed.set_op_register(high, Register::CL);
        if memory_operand(instruction).is_some() {
            Self::set_place(&mut renamed, place);
        }
        self.asm.rorx(Host::RCX, parent, 8);
        self.encode(&renamed)?;
        if written {
            self.asm.rorx(parent, Host::RCX, 56);
        }
        Ok(())
    }

    /// BT and kin with a register bit offset, which reaches beyond the operand.
    fn bit_string(&mut self, instruction: &Instruction) -> Result<(), Unencodable> {
        let register = instruction.op1_register();
        let guest = number(register).ok_or(Unencodable)?;
        let (shift, mask) = match register.size() {
            2 => (4u8, 2usize),
            4 => (5, 1),
            _ => (6, 0),
        };
        let kind = if instruction.mnemonic() == Mnemonic::Bt { AccessKind::Read } else { AccessKind::Write };
        let descriptor = Descriptor::new(register.size(), kind).load_too();
        let index = operand_segment(instruction, self.mode.is64());
        let descriptor = self.through_segment(descriptor, instruction);
        self.effective_address(Host::R14, instruction)?;
        // The signed bit offset, in units of the operand's size.
        self.sign_extended(Host::RCX, guest, register.size());
        self.asm.mov_immediate(Host::R15, u64::from(shift));
        self.asm.sarx(Host::RCX, Host::RCX, Host::R15);
        self.asm.lea(true, Host::R14, Some(Host::R14), Some((Host::RCX, register.size() as u8)), 0);
        match address_width(instruction, self.mode.code()) {
            Width::W64 => {}
            Width::W32 => self.asm.mov32(Host::R14, Host::R14),
            Width::W16 => self.asm.movzx16(Host::R14, Host::R14),
        }
        self.add_segment(index, descriptor)?;
        let instruction = *instruction;
        let mask = hot!(bit_masks) + 8 * mask as i32;
        self.access(
            Host::R14,
            descriptor,
            Rc::new(move |builder, place| {
                builder.read_guest(Host::RCX, guest);
                builder.asm.pext(Host::RCX, Host::RCX, mask);
                let mut renamed = instruction;
                renamed.set_op1_register(sized(Host::RCX, register));
                Self::set_place(&mut renamed, place);
                builder.encode(&renamed)
            }),
        )
    }

    fn sign_extended(&mut self, to: Host, guest: usize, size: usize) {
        self.read_guest(to, guest);
        // to is RCX: movsx rcx, cx / movsxd rcx, ecx
        match size {
            2 => self.asm.bytes(&[0x48, 0x0f, 0xbf, 0xc9]),
            4 => self.asm.bytes(&[0x48, 0x63, 0xc9]),
            _ => {}
        }
        debug_assert!(to == Host::RCX);
    }
}

/// The index of the explicit memory operand.
pub(super) fn memory_operand(instruction: &Instruction) -> Option<u32> {
    (0..instruction.op_count()).find(|&index| instruction.op_kind(index) == OpKind::Memory)
}

/// Instructions that always write all of a destination that they do not read, at 32 bits or more.
fn overwrites(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    matches!(
        instruction.mnemonic(),
        M::Mov | M::Movzx | M::Movsx | M::Movsxd | M::Movd | M::Movq | M::Imul | M::Cvttsd2si | M::Cvttss2si
    )
}

fn is_cache_control(instruction: &Instruction) -> bool {
    matches!(instruction.mnemonic(), Mnemonic::Clflush | Mnemonic::Clflushopt | Mnemonic::Clwb)
}

pub(super) fn has_high_byte(instruction: &Instruction) -> bool {
    (0..instruction.op_count()).any(|index| {
        instruction.op_kind(index) == OpKind::Register && is_high_byte(instruction.op_register(index))
    })
}

fn is_count_operand(instruction: &Instruction, operand: u32) -> bool {
    instruction.op_code().op_kind(operand) == OpCodeOperandKind::cl
}

fn uses_cl_count(instruction: &Instruction) -> bool {
    (0..instruction.op_count()).any(|operand| is_count_operand(instruction, operand))
}

fn uses_rcx_implicitly(instruction: &Instruction) -> bool {
    writes_ecx(instruction) || matches!(instruction.mnemonic(), Mnemonic::Cmpxchg8b | Mnemonic::Cmpxchg16b)
}

fn writes_ecx(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    matches!(
        instruction.mnemonic(),
        M::Pcmpestri | M::Pcmpistri | M::Vpcmpestri | M::Vpcmpistri | M::Pcmpestri64 | M::Vpcmpestri64
    )
}

/// Every register it names is itself on the host, so that the guest's bytes can be copied.
fn is_identity(instruction: &Instruction) -> bool {
    let operands_ok = (0..instruction.op_count()).all(|index| {
        if instruction.op_kind(index) != OpKind::Register {
            return true;
        }
        match number(instruction.op_register(index)) {
            Some(guest) => home(guest) == Home::Host(Host(guest as u8)),
            None => true,
        }
    });
    operands_ok && !uses_rcx_implicitly(instruction) && instruction.segment_prefix() == Register::None
}

/// Whether a misaligned memory operand is #GP (Intel SDM vol. 1 §4.1.1; vol. 2 §2.4 exception types 1, 2 and 4).
pub(super) fn needs_alignment(instruction: &Instruction, size: usize) -> bool {
    use Mnemonic as M;
    if size < 16 {
        return false;
    }
    match instruction.mnemonic() {
        M::Vmovaps | M::Vmovapd | M::Vmovdqa | M::Vmovdqa32 | M::Vmovdqa64 => true,
        M::Vmovntps | M::Vmovntpd | M::Vmovntdq | M::Vmovntdqa => true,
        M::Movups | M::Movupd | M::Movdqu | M::Lddqu => false,
        M::Pcmpestri | M::Pcmpestrm | M::Pcmpistri | M::Pcmpistrm | M::Pcmpestri64 | M::Pcmpestrm64 => false,
        M::Cmpxchg16b | M::Cvtpd2pi | M::Cvttpd2pi => true,
        // Processors differ; where the access is direct this one decides.
        M::Sha1msg1 | M::Sha1msg2 | M::Sha1nexte | M::Sha1rnds4 => false,
        M::Sha256msg1 | M::Sha256msg2 | M::Sha256rnds2 => false,
        _ => {
            let vector = (0..instruction.op_count()).any(|index| {
                instruction.op_kind(index) == OpKind::Register && instruction.op_register(index).is_xmm()
            });
            vector && instruction.code().encoding() == EncodingKind::Legacy
        }
    }
}

/// Turn forms that 64-bit mode lacks, or that name their address oddly, into general ones.
fn normalise(instruction: &mut Instruction, is64: bool) -> Result<(), Unencodable> {
    let code = match instruction.code() {
        Code::Mov_AL_moffs8 => Code::Mov_r8_rm8,
        Code::Mov_AX_moffs16 => Code::Mov_r16_rm16,
        Code::Mov_EAX_moffs32 => Code::Mov_r32_rm32,
        Code::Mov_RAX_moffs64 => Code::Mov_r64_rm64,
        Code::Mov_moffs8_AL => Code::Mov_rm8_r8,
        Code::Mov_moffs16_AX => Code::Mov_rm16_r16,
        Code::Mov_moffs32_EAX => Code::Mov_rm32_r32,
        Code::Mov_moffs64_RAX => Code::Mov_rm64_r64,
        Code::Inc_r16 => Code::Inc_rm16,
        Code::Inc_r32 => Code::Inc_rm32,
        Code::Dec_r16 => Code::Dec_rm16,
        Code::Dec_r32 => Code::Dec_rm32,
        other => other,
    };
    if !is64 && code.op_code().mode64() {
        instruction.set_code(code);
        return Ok(());
    }
    if !is64 {
        // 82 /r is 80 /r.
        let code = match code {
            Code::Add_rm8_imm8_82 => Code::Add_rm8_imm8,
            Code::Or_rm8_imm8_82 => Code::Or_rm8_imm8,
            Code::Adc_rm8_imm8_82 => Code::Adc_rm8_imm8,
            Code::Sbb_rm8_imm8_82 => Code::Sbb_rm8_imm8,
            Code::And_rm8_imm8_82 => Code::And_rm8_imm8,
            Code::Sub_rm8_imm8_82 => Code::Sub_rm8_imm8,
            Code::Xor_rm8_imm8_82 => Code::Xor_rm8_imm8,
            Code::Cmp_rm8_imm8_82 => Code::Cmp_rm8_imm8,
            _ => return Err(Unencodable),
        };
        instruction.set_code(code);
        return Ok(());
    }
    instruction.set_code(code);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{is_identity, needs_alignment};
    use iced_x86::{Decoder, DecoderOptions, Instruction};

    fn decode(bytes: &[u8]) -> Instruction {
        Decoder::new(64, bytes, DecoderOptions::NONE).decode()
    }

    #[test]
    fn only_registers_at_home_are_copied_raw() {
        assert!(is_identity(&decode(&[0x48, 0x01, 0xd8]))); // add rax, rbx
        assert!(!is_identity(&decode(&[0x48, 0x01, 0xc8]))); // add rax, rcx
        assert!(!is_identity(&decode(&[0x4d, 0x01, 0xd2]))); // add r10, r10
    }

    #[test]
    fn legacy_sse_wants_alignment_and_avx_does_not() {
        assert!(needs_alignment(&decode(&[0x0f, 0x58, 0x00]), 16)); // addps xmm0, [rax]
        assert!(!needs_alignment(&decode(&[0xc5, 0xf8, 0x58, 0x00]), 16)); // vaddps xmm0, xmm0, [rax]
        assert!(!needs_alignment(&decode(&[0x0f, 0x10, 0x00]), 16)); // movups
    }
}

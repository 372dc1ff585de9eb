//! Guest registers that live in memory, as memory operands: where an instruction has a form for it, it works on the
//! register's slot in `CpuState`, with no load before and no store behind.

use super::access::Place;
use super::builder::Unencodable;
use super::generic::has_high_byte;
use super::registers::{home, number, sized, Home};
use super::{Builder, Host};
use crate::optimisations::Optimisation;
use iced_x86::{Code, ConditionCode, Instruction, Mnemonic, OpAccess, OpCodeOperandKind, OpKind};

/// Forms that store to, or compare with, a register or memory; and those that load from it.
const PAIRS: [(Code, Code); 36] = [
    (Code::Mov_rm8_r8, Code::Mov_r8_rm8),
    (Code::Mov_rm16_r16, Code::Mov_r16_rm16),
    (Code::Mov_rm32_r32, Code::Mov_r32_rm32),
    (Code::Mov_rm64_r64, Code::Mov_r64_rm64),
    (Code::Add_rm8_r8, Code::Add_r8_rm8),
    (Code::Add_rm16_r16, Code::Add_r16_rm16),
    (Code::Add_rm32_r32, Code::Add_r32_rm32),
    (Code::Add_rm64_r64, Code::Add_r64_rm64),
    (Code::Or_rm8_r8, Code::Or_r8_rm8),
    (Code::Or_rm16_r16, Code::Or_r16_rm16),
    (Code::Or_rm32_r32, Code::Or_r32_rm32),
    (Code::Or_rm64_r64, Code::Or_r64_rm64),
    (Code::Adc_rm8_r8, Code::Adc_r8_rm8),
    (Code::Adc_rm16_r16, Code::Adc_r16_rm16),
    (Code::Adc_rm32_r32, Code::Adc_r32_rm32),
    (Code::Adc_rm64_r64, Code::Adc_r64_rm64),
    (Code::Sbb_rm8_r8, Code::Sbb_r8_rm8),
    (Code::Sbb_rm16_r16, Code::Sbb_r16_rm16),
    (Code::Sbb_rm32_r32, Code::Sbb_r32_rm32),
    (Code::Sbb_rm64_r64, Code::Sbb_r64_rm64),
    (Code::And_rm8_r8, Code::And_r8_rm8),
    (Code::And_rm16_r16, Code::And_r16_rm16),
    (Code::And_rm32_r32, Code::And_r32_rm32),
    (Code::And_rm64_r64, Code::And_r64_rm64),
    (Code::Sub_rm8_r8, Code::Sub_r8_rm8),
    (Code::Sub_rm16_r16, Code::Sub_r16_rm16),
    (Code::Sub_rm32_r32, Code::Sub_r32_rm32),
    (Code::Sub_rm64_r64, Code::Sub_r64_rm64),
    (Code::Xor_rm8_r8, Code::Xor_r8_rm8),
    (Code::Xor_rm16_r16, Code::Xor_r16_rm16),
    (Code::Xor_rm32_r32, Code::Xor_r32_rm32),
    (Code::Xor_rm64_r64, Code::Xor_r64_rm64),
    (Code::Cmp_rm8_r8, Code::Cmp_r8_rm8),
    (Code::Cmp_rm16_r16, Code::Cmp_r16_rm16),
    (Code::Cmp_rm32_r32, Code::Cmp_r32_rm32),
    (Code::Cmp_rm64_r64, Code::Cmp_r64_rm64),
];

impl Builder {
    /// Emit an instruction without a memory operand by a form that has one for a register's slot. Returns whether
    /// there was such a form.
    pub(super) fn on_slot(&mut self, instruction: &Instruction) -> Result<bool, Unencodable> {
        let wanted = self.optimisations.has(Optimisation::SlotOperands);
        if !wanted || !may_use_slot(instruction) || has_high_byte(instruction) {
            return Ok(false);
        }
        if let Some(guest) = zeroed(instruction) {
            self.zero(instruction, guest)?;
            return Ok(true);
        }
        for operand in 0..instruction.op_count() {
            if let Some((form, slot)) = self.slot_form(instruction, operand) {
                self.renamed(&form, Some(Place::Slot(slot)))?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// `instruction` with the slot for operand `operand`, and its offset in the state.
    fn slot_form(&mut self, instruction: &Instruction, operand: u32) -> Option<(Instruction, i32)> {
        if instruction.op_kind(operand) != OpKind::Register {
            return None;
        }
        let register = instruction.op_register(operand);
        let Home::Memory(slot) = home(number(register)?) else { return None };
        // A 32-bit result clears the register's upper half; a shorter one would make the next load of all wait.
        let read_only =
            matches!(self.operand_access(instruction, operand), OpAccess::Read | OpAccess::CondRead);
        if register.size() != 8 && !read_only {
            return None;
        }
        let mut form = *instruction;
        form.set_code(memory_code(instruction.code(), operand)?);
        form.set_op_kind(operand, OpKind::Memory);
        Some((form, slot))
    }

    /// XOR or SUB of a register in memory with itself.
    fn zero(&mut self, instruction: &Instruction, guest: usize) -> Result<(), Unencodable> {
        let mut renamed = *instruction;
        let to = sized(Host::RCX, instruction.op0_register());
        renamed.set_op0_register(to);
        renamed.set_op1_register(to);
        self.encode(&renamed)?;
        self.write_guest(guest, Host::RCX);
        Ok(())
    }
}

/// Instructions that do the same to memory as to a register, and nothing else: SETcc and CMOVcc too, which are
/// those with a condition that come here.
fn may_use_slot(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    matches!(
        instruction.mnemonic(),
        M::Mov
            | M::Add
            | M::Or
            | M::Adc
            | M::Sbb
            | M::And
            | M::Sub
            | M::Xor
            | M::Cmp
            | M::Test
            | M::Inc
            | M::Dec
            | M::Neg
            | M::Not
            | M::Shl
            | M::Shr
            | M::Sar
            | M::Rol
            | M::Ror
            | M::Imul
            | M::Mul
            | M::Movzx
            | M::Movsx
            | M::Movsxd
            | M::Movq
            | M::Movd
            | M::Cvtsi2sd
            | M::Cvtsi2ss
            | M::Adcx
            | M::Adox
            | M::Mulx
            | M::Andn
            | M::Rorx
            | M::Shlx
            | M::Shrx
            | M::Sarx
            | M::Popcnt
            | M::Lzcnt
            | M::Tzcnt
    ) || instruction.condition_code() != ConditionCode::None
}

/// The guest register in memory that an instruction clears as a whole.
fn zeroed(instruction: &Instruction) -> Option<usize> {
    let cleared = matches!(instruction.mnemonic(), Mnemonic::Xor | Mnemonic::Sub)
        && instruction.op1_kind() == OpKind::Register
        && instruction.op0_register() == instruction.op1_register();
    let register = instruction.op0_register();
    let guest = number(register).filter(|_| cleared && register.size() >= 4)?;
    matches!(home(guest), Home::Memory(_)).then_some(guest)
}

/// The form of `code` whose operand `operand` may be memory.
fn memory_code(code: Code, operand: u32) -> Option<Code> {
    use OpCodeOperandKind as K;
    if matches!(code.op_code().op_kind(operand), K::r8_or_mem | K::r16_or_mem | K::r32_or_mem | K::r64_or_mem)
    {
        return Some(code);
    }
    let of = |(store, load): &(Code, Code)| match operand {
        0 if *load == code => Some(*store),
        1 if *store == code => Some(*load),
        _ => None,
    };
    PAIRS.iter().find_map(of)
}

#[cfg(test)]
mod tests {
    use super::Builder;
    use crate::optimisations::{Optimisation, Optimisations};
    use iced_x86::{Decoder, DecoderOptions};

    /// The host's instructions for one of the guest's, with those optimisations.
    fn translated(bytes: &[u8], optimisations: Optimisations) -> Vec<String> {
        let mut builder = Builder::default();
        builder.optimisations = optimisations;
        let guest = Decoder::new(64, bytes, DecoderOptions::NONE).decode();
        if !builder.on_slot(&guest).unwrap_or(false) {
            return Vec::new();
        }
        let host = Decoder::new(64, builder.asm.code(), DecoderOptions::NONE);
        host.into_iter().map(|instruction| instruction.to_string()).collect()
    }

    #[test]
    fn the_slot_takes_the_register_s_place() {
        let forms: [(&[u8], &str); 5] = [
            (&[0x49, 0x83, 0xd2, 0x00], "adc qword ptr [rsp+50h],0"),
            (&[0x4d, 0x89, 0xe6], "mov [rsp+70h],r12"),
            (&[0x4c, 0x03, 0xcf], ""), // add r9,rdi
            (&[0x4c, 0x01, 0xf0], "add rax,[rsp+70h]"),
            (&[0x41, 0x39, 0xfb], "cmp [rsp+58h],edi"),
        ];
        for (bytes, form) in forms {
            assert_eq!(translated(bytes, Optimisations::ALL).join("; "), form, "{bytes:x?}");
            let without = Optimisations::ALL.without(Optimisation::SlotOperands);
            assert!(translated(bytes, without).is_empty());
        }
    }

    #[test]
    fn results_shorter_than_the_slot_are_not_stored_in_it() {
        // add r10d,eax; mov r11b,al; sete r14b
        for bytes in [&[0x41, 0x01, 0xc2][..], &[0x41, 0x88, 0xc3], &[0x41, 0x0f, 0x94, 0xc6]] {
            assert!(translated(bytes, Optimisations::ALL).is_empty(), "{bytes:x?}");
        }
    }

    #[test]
    fn a_register_is_cleared_without_being_read() {
        // xor r15d,r15d
        assert_eq!(
            translated(&[0x45, 0x31, 0xff], Optimisations::ALL).join("; "),
            "xor ecx,ecx; mov [rsp+78h],rcx"
        );
    }
}

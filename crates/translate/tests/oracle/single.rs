//! Cases of one instruction: every encoding, with every kind of operand.

use crate::case::{Case, Class, CpuImage, CODE, DATA, PAGE, READ_ONLY, STACK, TWO_PAGES};
use crate::inputs;
use crate::rng::Rng;
use iced_x86::{
    Code, CpuidFeature, Decoder, DecoderOptions, Encoder, EncodingKind, Instruction, MemorySize, Mnemonic,
    OpCodeInfo, OpCodeOperandKind as K, OpKind, Register, RoundingControl,
};

/// Where a memory operand lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Inside,
    CrossPages,
    CrossIntoReadOnly,
    CrossOutOfMapped,
    CrossIntoMapped,
    Unmapped,
    ReadOnly,
    NonCanonical,
}

/// An instruction being filled in, with the state that makes its operands meaningful.
struct Draft<'a> {
    rng: &'a mut Rng,
    op: &'static OpCodeInfo,
    bits: u32,
    instruction: Instruction,
    cpu: CpuImage,
    memory_form: bool,
    place: Place,
    size: u64,
    target: u64,
    pointer: Option<(Register, u64)>,
    notes: String,
}

/// Whether any operand of `code` can lie in memory.
pub fn has_memory_form(code: Code) -> bool {
    code.op_code().op_kinds().iter().any(|kind| is_memory(*kind) || is_either(*kind) || is_implicit(*kind))
}

/// Whether `code` has an operand that can only lie in memory.
fn needs_memory(code: Code) -> bool {
    code.op_code().op_kinds().iter().any(|kind| is_memory(*kind) || is_implicit(*kind))
}

fn is_memory(kind: K) -> bool {
    matches!(
        kind,
        K::mem
            | K::mem_offs
            | K::mem_vsib32x
            | K::mem_vsib32y
            | K::mem_vsib32z
            | K::mem_vsib64x
            | K::mem_vsib64y
            | K::mem_vsib64z
    )
}

fn is_either(kind: K) -> bool {
    matches!(
        kind,
        K::r8_or_mem
            | K::r16_or_mem
            | K::r32_or_mem
            | K::r64_or_mem
            | K::mm_or_mem
            | K::xmm_or_mem
            | K::ymm_or_mem
            | K::zmm_or_mem
            | K::k_or_mem
    )
}

fn is_implicit(kind: K) -> bool {
    matches!(kind, K::seg_rSI | K::es_rDI | K::seg_rDI | K::seg_rBX_al)
}

/// Whether `code` deserves more cases than others: several or implicit accesses to memory.
pub fn is_intricate(code: Code) -> bool {
    use Mnemonic as M;
    let op = code.op_code();
    let spread = op.op_kinds().iter().any(|kind| is_implicit(*kind) || vsib_registers(*kind).is_some());
    let listed = matches!(
        code.mnemonic(),
        M::Cmpxchg
            | M::Cmpxchg8b
            | M::Cmpxchg16b
            | M::Xadd
            | M::Xchg
            | M::Bt
            | M::Bts
            | M::Btr
            | M::Btc
            | M::Div
            | M::Idiv
            | M::Vmaskmovps
            | M::Vmaskmovpd
            | M::Vpmaskmovd
            | M::Vpmaskmovq
            | M::Fldenv
            | M::Fldcw
            | M::Fnstcw
            | M::Fnstsw
    );
    spread || listed || op.is_stack_instruction()
}

/// Make case number `variant` of `code`. `None` when the random choices cannot be encoded.
pub fn generate(code: Code, variant: u64, bits: u32, rng: &mut Rng) -> Option<Case> {
    (0..8).find_map(|_| attempt(code, variant, bits, rng))
}

fn attempt(code: Code, variant: u64, bits: u32, rng: &mut Rng) -> Option<Case> {
    let mut cpu = inputs::state(rng);
    if bits == 32 {
        cpu.truncate();
    }
    let memory_form = needs_memory(code) || (has_memory_form(code) && variant % 3 != 0);
    let place = choose_place(memory_form, rng);
    let mut draft = Draft::new(code, bits, cpu, memory_form, place, rng);
    draft.fill()?;
    draft.finish()
}

/// One instruction for a sequence in `bits`-bit code: random registers, memory through `pointer`,
/// whose value is `pointer.1`, at a place that faults when `faulting`. `None` when this `code`
/// does not fit in.
pub fn instruction(
    code: Code,
    bits: u32,
    pointer: (Register, u64),
    faulting: bool,
    rng: &mut Rng,
) -> Option<Instruction> {
    let kinds = code.op_code().op_kinds();
    if kinds.iter().any(|kind| is_implicit(*kind)) {
        return None;
    }
    let memory_form = needs_memory(code) || (has_memory_form(code) && (faulting || rng.chance(50)));
    let place = match (faulting, memory_form) {
        (true, false) => return None,
        (true, true) => rng.pick(&[Place::CrossOutOfMapped, Place::Unmapped, Place::CrossIntoReadOnly]),
        (false, true) if rng.chance(8) => Place::CrossPages,
        (false, _) => Place::Inside,
    };
    let mut draft = Draft::new(code, bits, CpuImage::default(), memory_form, place, rng);
    draft.pointer = Some(pointer);
    draft.fill()?;
    Encoder::new(bits).encode(&draft.instruction, CODE).ok()?;
    Some(draft.instruction)
}

fn choose_place(memory_form: bool, rng: &mut Rng) -> Place {
    if !memory_form {
        return Place::Inside;
    }
    match rng.below(16) {
        0..=8 => Place::Inside,
        9 | 10 => Place::CrossPages,
        11 => Place::CrossOutOfMapped,
        12 => Place::CrossIntoReadOnly,
        13 => rng.pick(&[Place::CrossIntoMapped, Place::CrossIntoReadOnly]),
        14 => rng.pick(&[Place::Unmapped, Place::ReadOnly]),
        _ => rng.pick(&[Place::NonCanonical, Place::ReadOnly]),
    }
}

/// Group of the summary that `code` belongs to.
pub fn class_of(code: Code) -> Class {
    let op = code.op_code();
    let has = |wanted: &[CpuidFeature]| code.cpuid_features().iter().any(|f| wanted.contains(f));
    use CpuidFeature as F;
    if op.op_kinds().iter().any(|k| matches!(k, K::seg_rSI | K::es_rDI)) {
        return Class::String;
    }
    match op.encoding() {
        EncodingKind::EVEX => Class::Avx512,
        _ if op.op_kinds().iter().any(|k| matches!(k, K::k_reg | K::k_rm | K::k_vvvv | K::k_or_mem)) => {
            Class::Avx512
        }
        EncodingKind::VEX if has(&[F::BMI1, F::BMI2]) => Class::Bmi,
        EncodingKind::VEX if has(&[F::AVX2]) => Class::Avx2,
        EncodingKind::VEX => Class::Avx,
        _ if has(&[F::BMI1, F::ADX, F::LZCNT, F::POPCNT]) => Class::Bmi,
        _ if has(&[F::FPU, F::FPU287, F::FPU387]) => Class::X87,
        _ if op.op_kinds().iter().any(|k| matches!(k, K::mm_reg | K::mm_rm | K::mm_or_mem)) => Class::Mmx,
        _ if has(&[F::MMX]) => Class::Mmx,
        _ if is_sse(code) => Class::Sse,
        _ => Class::Integer,
    }
}

fn is_sse(code: Code) -> bool {
    use CpuidFeature as F;
    let features = [
        F::SSE,
        F::SSE2,
        F::SSE3,
        F::SSSE3,
        F::SSE4_1,
        F::SSE4_2,
        F::SSE4A,
        F::AES,
        F::SHA,
        F::PCLMULQDQ,
        F::GFNI,
    ];
    code.cpuid_features().iter().any(|feature| features.contains(feature))
}

/// Index of a general register (any width) in encoding order.
pub fn gpr_index(register: Register) -> usize {
    register.full_register().number()
}

impl<'a> Draft<'a> {
    fn new(code: Code, bits: u32, cpu: CpuImage, memory_form: bool, place: Place, rng: &'a mut Rng) -> Self {
        let mut instruction = Instruction::default();
        instruction.set_code(code);
        Self {
            rng,
            op: code.op_code(),
            bits,
            instruction,
            cpu,
            memory_form,
            place,
            size: 0,
            target: 0,
            pointer: None,
            notes: String::new(),
        }
    }

    fn fill(&mut self) -> Option<()> {
        self.decorate();
        self.size = self.memory_bytes();
        self.target = self.choose_target();
        let mut immediates = 0;
        for operand in 0..self.op.op_count() {
            self.operand(operand, &mut immediates)?;
        }
        self.special_inputs();
        Some(())
    }

    /// Mask registers, broadcast, rounding, LOCK and REP, as the encoding allows.
    fn decorate(&mut self) {
        let (op, rng) = (self.op, &mut *self.rng);
        let masks = [
            Register::K1,
            Register::K2,
            Register::K3,
            Register::K4,
            Register::K5,
            Register::K6,
            Register::K7,
        ];
        let masked = op.require_op_mask_register() || (op.can_use_op_mask_register() && rng.chance(60));
        if masked {
            self.instruction.set_op_mask(rng.pick(&masks));
            let to_memory = self.memory_form
                && op.op_count() > 0
                && (is_memory(op.op0_kind()) || is_either(op.op0_kind()));
            if op.can_use_zeroing_masking() && !to_memory && rng.chance(50) {
                self.instruction.set_zeroing_masking(true);
            }
        }
        if self.memory_form {
            self.instruction.set_is_broadcast(op.can_broadcast() && rng.chance(40));
            self.instruction.set_has_lock_prefix(op.can_use_lock_prefix() && rng.chance(30));
        } else if op.can_use_rounding_control() && rng.chance(40) {
            let modes = [
                RoundingControl::RoundToNearest,
                RoundingControl::RoundDown,
                RoundingControl::RoundUp,
                RoundingControl::RoundTowardZero,
            ];
            self.instruction.set_rounding_control(rng.pick(&modes));
        } else if op.can_suppress_all_exceptions() && rng.chance(40) {
            self.instruction.set_suppress_all_exceptions(true);
        }
        if op.can_use_rep_prefix() && rng.chance(60) {
            self.instruction.set_has_rep_prefix(true);
        } else if op.can_use_repne_prefix() && op.can_use_rep_prefix() && rng.chance(60) {
            self.instruction.set_has_repne_prefix(true);
        }
    }

    fn memory_bytes(&self) -> u64 {
        let broadcast = self.instruction.is_broadcast();
        let size = if broadcast { self.op.broadcast_memory_size() } else { self.op.memory_size() };
        match (size, size.size() as u64) {
            (MemorySize::Fxsave_512Byte | MemorySize::Fxsave64_512Byte, _) => 512,
            (_, 0) => 8,
            (_, bytes) => bytes,
        }
    }

    fn choose_target(&mut self) -> u64 {
        let size = self.size;
        let inside = self.rng.range(0, size.saturating_sub(2));
        let back = (inside + 1).min(size.max(2) - 1);
        let aligned = |address: u64| if size.is_power_of_two() { address & !(size - 1) } else { address };
        match self.place {
            Place::Inside if self.rng.chance(if self.pointer.is_some() { 92 } else { 60 }) => {
                aligned(DATA + self.rng.range(1024, 3000))
            }
            Place::Inside => DATA + self.rng.range(1024, 3000),
            Place::CrossPages => DATA + PAGE - back,
            Place::CrossIntoReadOnly => READ_ONLY - back,
            Place::CrossOutOfMapped => READ_ONLY + PAGE - back,
            Place::CrossIntoMapped => DATA - back,
            Place::Unmapped => aligned(READ_ONLY + PAGE + self.rng.below(2048)),
            Place::ReadOnly => aligned(READ_ONLY + self.rng.below(3000)),
            Place::NonCanonical if self.bits == 32 => aligned(READ_ONLY + PAGE + self.rng.below(2048)),
            Place::NonCanonical => {
                self.rng.pick(&[0x0000_8000_0000_0000, 0x7fff_ffff_ffff_fff0, 0xffff_0000_0000_0000])
            }
        }
    }

    fn operand(&mut self, operand: u32, immediates: &mut u32) -> Option<()> {
        let kind = self.op.op_kind(operand);
        if is_memory(kind) || (is_either(kind) && self.memory_form) {
            return self.memory_operand(operand, kind);
        }
        if is_implicit(kind) {
            return self.implicit_memory(operand, kind);
        }
        if let Some(register) = self.fixed_register(kind).or_else(|| self.random_register(kind)) {
            self.instruction.set_op_kind(operand, OpKind::Register);
            self.instruction.set_op_register(operand, register);
            return Some(());
        }
        self.immediate(operand, kind, immediates)
    }

    fn fixed_register(&self, kind: K) -> Option<Register> {
        Some(match kind {
            K::es => Register::ES,
            K::cs => Register::CS,
            K::ss => Register::SS,
            K::ds => Register::DS,
            K::fs => Register::FS,
            K::gs => Register::GS,
            K::al => Register::AL,
            K::cl => Register::CL,
            K::ax => Register::AX,
            K::dx => Register::DX,
            K::eax => Register::EAX,
            K::rax => Register::RAX,
            K::st0 => Register::ST0,
            _ => return None,
        })
    }

    fn random_register(&mut self, kind: K) -> Option<Register> {
        let general = if self.bits == 64 { 16 } else { 8 };
        let vectors = match (self.bits, self.op.encoding()) {
            (64, EncodingKind::EVEX) => 32,
            (64, _) => 16,
            _ => 8,
        };
        let (first, count) = match kind {
            K::r8_or_mem | K::r8_reg | K::r8_opcode => (Register::AL, if self.bits == 64 { 20 } else { 8 }),
            K::r16_or_mem | K::r16_reg | K::r16_rm | K::r16_opcode | K::r16_reg_mem => {
                (Register::AX, general)
            }
            K::r32_or_mem | K::r32_reg | K::r32_rm | K::r32_opcode | K::r32_vvvv | K::r32_reg_mem => {
                (Register::EAX, general)
            }
            K::r64_or_mem | K::r64_reg | K::r64_rm | K::r64_opcode | K::r64_vvvv | K::r64_reg_mem => {
                (Register::RAX, general)
            }
            K::k_or_mem | K::k_reg | K::k_rm | K::k_vvvv => (Register::K0, 8),
            K::kp1_reg => return Some(Register::K0 + 2 * self.rng.below(4) as u32),
            K::mm_or_mem | K::mm_reg | K::mm_rm => (Register::MM0, 8),
            K::xmm_or_mem | K::xmm_reg | K::xmm_rm | K::xmm_vvvv | K::xmm_is4 => (Register::XMM0, vectors),
            K::ymm_or_mem | K::ymm_reg | K::ymm_rm | K::ymm_vvvv | K::ymm_is4 => (Register::YMM0, vectors),
            K::zmm_or_mem | K::zmm_reg | K::zmm_rm | K::zmm_vvvv => (Register::ZMM0, vectors),
            K::sti_opcode => (Register::ST0, 8),
            _ => return None,
        };
        Some(first + self.rng.below(count) as u32)
    }

    fn immediate(&mut self, operand: u32, kind: K, immediates: &mut u32) -> Option<()> {
        let value = inputs::integer(self.rng);
        let set = &mut self.instruction;
        let op_kind = match kind {
            K::imm8 if *immediates > 0 => OpKind::Immediate8_2nd,
            K::imm8 | K::imm4_m2z | K::imm8_const_1 => OpKind::Immediate8,
            K::imm8sex16 => OpKind::Immediate8to16,
            K::imm8sex32 => OpKind::Immediate8to32,
            K::imm8sex64 => OpKind::Immediate8to64,
            K::imm16 => OpKind::Immediate16,
            K::imm32 => OpKind::Immediate32,
            K::imm32sex64 => OpKind::Immediate32to64,
            K::imm64 => OpKind::Immediate64,
            _ => return None,
        };
        *immediates += 1;
        set.set_op_kind(operand, op_kind);
        match op_kind {
            OpKind::Immediate8_2nd => set.set_immediate8_2nd(
                value as u8 & if self.op.mnemonic() == Mnemonic::Enter { 3 } else { 0xff },
            ),
            OpKind::Immediate8 if kind == K::imm8_const_1 => set.set_immediate8(1),
            OpKind::Immediate8 if kind == K::imm4_m2z => set.set_immediate8(value as u8 & 3),
            OpKind::Immediate8 => set.set_immediate8(value as u8),
            OpKind::Immediate8to16 => set.set_immediate8to16(i16::from(value as i8)),
            OpKind::Immediate8to32 => set.set_immediate8to32(i32::from(value as i8)),
            OpKind::Immediate8to64 => set.set_immediate8to64(i64::from(value as i8)),
            OpKind::Immediate16 => set.set_immediate16(value as u16),
            OpKind::Immediate32 => set.set_immediate32(value as u32),
            OpKind::Immediate32to64 => set.set_immediate32to64(i64::from(value as i32)),
            _ => set.set_immediate64(value),
        }
        Some(())
    }

    /// RSI, RDI or RBX+AL as the address; a small count and any direction for string instructions.
    fn implicit_memory(&mut self, operand: u32, kind: K) -> Option<()> {
        let wide = self.bits == 64;
        let (op_kind, register) = match kind {
            K::seg_rSI if wide => (OpKind::MemorySegRSI, 6),
            K::seg_rSI => (OpKind::MemorySegESI, 6),
            K::es_rDI if wide => (OpKind::MemoryESRDI, 7),
            K::es_rDI => (OpKind::MemoryESEDI, 7),
            K::seg_rDI if wide => (OpKind::MemorySegRDI, 7),
            K::seg_rDI => (OpKind::MemorySegEDI, 7),
            _ => (OpKind::Memory, 3),
        };
        self.instruction.set_op_kind(operand, op_kind);
        self.cpu.gpr[register] = self.target;
        match kind {
            K::seg_rBX_al => {
                let base = if wide { Register::RBX } else { Register::EBX };
                self.instruction.set_memory_base(base);
                self.instruction.set_memory_index(Register::AL);
                self.cpu.gpr[3] = self.target.wrapping_sub(self.cpu.gpr[0] & 0xff) & self.address_mask();
            }
            K::seg_rSI | K::es_rDI => {
                self.string_inputs();
                if kind == K::es_rDI && self.rng.chance(60) {
                    self.cpu.gpr[7] = DATA + self.rng.range(0x80, TWO_PAGES - 0x80);
                }
            }
            _ => {}
        }
        Some(())
    }

    fn string_inputs(&mut self) {
        self.cpu.gpr[1] = self.rng.pick(&[0, 1, 2, 3, 7, 16, 33, 100, 600]);
        if self.rng.chance(30) {
            self.cpu.rflags |= inputs::DIRECTION;
        }
    }

    fn address_mask(&self) -> u64 {
        if self.bits == 64 {
            u64::MAX
        } else {
            0xffff_ffff
        }
    }

    fn memory_operand(&mut self, operand: u32, kind: K) -> Option<()> {
        self.instruction.set_op_kind(operand, OpKind::Memory);
        if let Some((register, value)) = self.pointer {
            return self.through_pointer(kind, register, value);
        }
        if kind == K::mem_offs {
            self.instruction.set_memory_displ_size(self.bits / 8);
            self.instruction.set_memory_displacement64(self.target & self.address_mask());
            return Some(());
        }
        let mut wanted = self.target;
        if self.bits == 64 && self.rng.chance(15) {
            let (segment, base) =
                self.rng.pick(&[(Register::FS, self.cpu.fs_base), (Register::GS, self.cpu.gs_base)]);
            self.instruction.set_segment_prefix(segment);
            wanted = wanted.wrapping_sub(base);
        }
        if let Some((first, count)) = vsib_registers(kind) {
            return self.vector_index(first, count, kind, wanted);
        }
        let narrow = self.bits == 64 && wanted <= 0xffff_ffff && self.rng.chance(12);
        match self.rng.below(8) {
            0 if self.bits == 64 && i64::from(wanted as i32) as u64 == wanted && !narrow => {
                self.absolute(wanted)
            }
            0 | 1 if self.bits == 64 && wanted.abs_diff(CODE) < 1 << 31 => self.rip_relative(wanted),
            0..=4 => self.base_only(wanted, narrow),
            _ => self.base_and_index(wanted, narrow),
        }
        Some(())
    }

    /// In a sequence: off the one register that no instruction of the sequence changes.
    fn through_pointer(&mut self, kind: K, register: Register, value: u64) -> Option<()> {
        if kind == K::mem_offs || vsib_registers(kind).is_some() {
            return None;
        }
        self.instruction.set_memory_base(register);
        self.set_displacement(self.target.wrapping_sub(value) as i32, false);
        Some(())
    }

    fn absolute(&mut self, address: u64) {
        self.instruction.set_memory_displ_size(8);
        self.instruction.set_memory_displacement64(address);
    }

    fn rip_relative(&mut self, address: u64) {
        self.instruction.set_memory_base(Register::RIP);
        self.instruction.set_memory_displ_size(8);
        self.instruction.set_memory_displacement64(address);
    }

    fn displacement(&mut self) -> i32 {
        let wide = self.rng.next() as i32 >> 8;
        match self.rng.below(3) {
            0 => 0,
            1 => i32::from(self.rng.next() as i8),
            _ => wide,
        }
    }

    fn set_displacement(&mut self, displacement: i32, narrow: bool) {
        let full = if self.bits == 64 && !narrow { 8 } else { 4 };
        let size = match displacement {
            0 => 0,
            -128..=127 => 1,
            _ => full,
        };
        self.instruction.set_memory_displ_size(size);
        let wide = i64::from(displacement) as u64;
        self.instruction.set_memory_displacement64(if full == 4 { wide & 0xffff_ffff } else { wide });
    }

    fn address_register(&mut self, narrow: bool) -> (usize, Register) {
        let number = self.rng.below(if self.bits == 64 { 16 } else { 8 }) as usize;
        let first = if narrow || self.bits == 32 { Register::EAX } else { Register::RAX };
        (number, first + number as u32)
    }

    /// `[base + displacement]`. An RSP base moves the operand to the stack, where pushes work too.
    fn base_only(&mut self, wanted: u64, narrow: bool) {
        let (number, register) = self.address_register(narrow);
        let displacement = self.displacement();
        self.instruction.set_memory_base(register);
        self.set_displacement(displacement, narrow);
        let wanted = if number == 4 { STACK + PAGE } else { wanted };
        self.put_address(number, wanted.wrapping_sub(i64::from(displacement) as u64), narrow);
    }

    /// A register's address value; a 32-bit address ignores the upper half, so that one is random.
    fn put_address(&mut self, number: usize, value: u64, narrow: bool) {
        self.cpu.gpr[number] = match (self.bits, narrow) {
            (32, _) => value & 0xffff_ffff,
            (_, true) if number != 4 => (value & 0xffff_ffff) | self.rng.next() << 32,
            _ => value,
        };
    }

    fn base_and_index(&mut self, wanted: u64, narrow: bool) {
        let (base_number, base) = self.address_register(narrow);
        let (index_number, index) = self.address_register(narrow);
        if index_number == 4 || base_number == 4 {
            return self.base_only(wanted, narrow);
        }
        let scale = self.rng.pick(&[1_u32, 2, 4, 8]);
        self.instruction.set_memory_base(base);
        self.instruction.set_memory_index(index);
        self.instruction.set_memory_index_scale(scale);
        if base_number == index_number {
            let value = wanted / (u64::from(scale) + 1);
            self.set_displacement((wanted - value * (u64::from(scale) + 1)) as i32, narrow);
            return self.put_address(base_number, value, narrow);
        }
        let displacement = self.displacement();
        self.set_displacement(displacement, narrow);
        let offset = self.cpu.gpr[index_number].wrapping_mul(u64::from(scale));
        let offset = offset.wrapping_add(i64::from(displacement) as u64);
        self.put_address(base_number, wanted.wrapping_sub(offset), narrow);
    }

    /// A gather or scatter: elements spread over the data pages, now and then one outside.
    fn vector_index(&mut self, first: Register, count: u32, kind: K, wanted: u64) -> Option<()> {
        let (base_number, base) = self.address_register(false);
        if base_number == 4 {
            return None;
        }
        let limit = if self.op.encoding() == EncodingKind::EVEX { count } else { count.min(16) };
        let index = first + self.rng.below(u64::from(limit)) as u32;
        let scale = self.rng.pick(&[1_u32, 2, 4, 8]);
        self.instruction.set_memory_base(base);
        self.instruction.set_memory_index(index);
        self.instruction.set_memory_index_scale(scale);
        let displacement = self.displacement();
        self.set_displacement(displacement, false);
        self.put_address(base_number, wanted.wrapping_sub(i64::from(displacement) as u64), false);
        let wide = matches!(kind, K::mem_vsib64x | K::mem_vsib64y | K::mem_vsib64z);
        let width = if wide { 8 } else { 4 };
        let spread = 900 / u64::from(scale);
        let stray = self.rng.chance(15);
        for element in self.cpu.vector[index.number()].chunks_mut(width) {
            let mut value = self.rng.below(2 * spread) as i64 - spread as i64;
            if stray && self.rng.chance(20) {
                value *= 64;
            }
            element.copy_from_slice(&value.to_le_bytes()[..width]);
        }
        Some(())
    }

    /// Inputs that keep an instruction interesting: bit offsets near, divisors that divide.
    fn special_inputs(&mut self) {
        let mnemonic = self.op.mnemonic();
        match mnemonic {
            Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc => self.bit_offset(),
            Mnemonic::Div | Mnemonic::Idiv if self.rng.chance(75) => {
                self.cpu.gpr[2] = if self.rng.chance(50) { 0 } else { self.rng.below(16) };
                if mnemonic == Mnemonic::Idiv && self.rng.chance(30) {
                    self.cpu.gpr[2] = self.address_mask();
                }
            }
            Mnemonic::Enter => self.cpu.gpr[5] = STACK + PAGE + 512,
            _ => {}
        }
    }

    fn bit_offset(&mut self) {
        let register = self.instruction.op1_register();
        let is_base = [self.instruction.memory_base(), self.instruction.memory_index()]
            .iter()
            .any(|used| *used != Register::None && used.full_register() == register.full_register());
        if self.memory_form && register != Register::None && !is_base && gpr_index(register) != 4 {
            let offset = self.rng.below(2 * 8 * 4096) as i64 - 8 * 4096;
            let keep = if self.rng.chance(80) { offset as u64 } else { self.rng.below(256) };
            self.cpu.gpr[gpr_index(register)] = keep & self.address_mask();
        }
    }

    /// Encode, place the code, and put numbers where the operand lies.
    fn finish(mut self) -> Option<Case> {
        let at = self.place_code();
        let mut encoder = Encoder::new(self.bits);
        encoder.encode(&self.instruction, at).ok()?;
        let code = encoder.take_buffer();
        let at = self.at_page_end(at, code.len() as u64);
        if at.1 {
            encoder = Encoder::new(self.bits);
            encoder.encode(&self.instruction, at.0).ok()?;
        }
        let mut code = if at.1 { encoder.take_buffer() } else { code };
        self.odd_prefix(&mut code);
        self.cpu.rip = at.0;
        let mut memory = vec![(at.0, code)];
        memory[0].1.truncate((CODE + TWO_PAGES - at.0) as usize);
        if let Some(contents) = self.operand_contents() {
            memory.push(contents);
        }
        let ignored = ignored_bytes(self.op.mnemonic(), self.target);
        let place = if self.memory_form { format!("{:?}", self.place) } else { "registers".to_owned() };
        let class = if self.bits == 32 { Class::Compat } else { class_of(self.op.code()) };
        let name = format!("{:?} {place}{}", self.op.code(), self.notes);
        let ignored_flags = undefined_flags(self.op.mnemonic());
        let any_address_in_page = has_several_accesses(&self.instruction);
        Some(Case {
            class,
            name,
            bits: self.bits,
            cpu: self.cpu,
            memory,
            selectors: None,
            ignored,
            ignored_flags,
            any_address_in_page,
            any_fault: false,
            partial_registers: gathered_registers(&self.instruction),
        })
    }

    fn place_code(&mut self) -> u64 {
        CODE + self.rng.range(0, 3000)
    }

    /// Now and then move the code so that it crosses into the second page, or out of the region.
    fn at_page_end(&mut self, at: u64, size: u64) -> (u64, bool) {
        match self.rng.below(40) {
            0..=3 => {
                self.notes.push_str(" code-crosses-pages");
                (CODE + PAGE - self.rng.below(size), true)
            }
            4 => {
                self.notes.push_str(" code-at-end");
                (CODE + TWO_PAGES - self.rng.range(1, size), true)
            }
            _ => (at, false),
        }
    }

    /// Now and then a prefix that the instruction does not ask for: without effect, or #UD.
    fn odd_prefix(&mut self, code: &mut Vec<u8>) {
        if !self.rng.chance(6) || self.notes.contains("code-at-end") {
            return;
        }
        let prefix = self.rng.pick(&[0xf0, 0xf0, 0x66, 0xf2, 0xf3, 0x2e, 0x3e, 0x36, 0x26, 0x4a]);
        let mut longer = vec![prefix];
        longer.extend_from_slice(code);
        let decoded = Decoder::new(self.bits, &longer, DecoderOptions::NONE).decode();
        let same = decoded.code() == self.op.code() || decoded.is_invalid();
        if same && !(self.bits == 32 && prefix == 0x4a) {
            self.notes.push_str(&format!(" prefix-{prefix:02x}"));
            *code = longer;
        }
    }

    fn operand_contents(&mut self) -> Option<(u64, Vec<u8>)> {
        if !self.memory_form || self.place != Place::Inside && self.place != Place::CrossPages {
            return None;
        }
        let mut bytes = vec![0; self.size.clamp(16, 512) as usize];
        inputs::fill_numbers(self.rng, &mut bytes);
        if self.op.mnemonic() == Mnemonic::Ldmxcsr || self.op.mnemonic() == Mnemonic::Vldmxcsr {
            bytes[..4].copy_from_slice(&(self.rng.next() as u32 & 0xffff).to_le_bytes());
        }
        Some((self.target, bytes))
    }
}

/// Whether `instruction` makes several accesses, or only some of those its operand's size suggests.
pub fn has_several_accesses(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    let listed = matches!(
        instruction.mnemonic(),
        M::Maskmovq
            | M::Maskmovdqu
            | M::Vmaskmovdqu
            | M::Vmaskmovps
            | M::Vmaskmovpd
            | M::Vpmaskmovd
            | M::Vpmaskmovq
            | M::Fldenv
            | M::Frstor
            | M::Fld
            | M::Fbld
            | M::Fbstp
            | M::Fstp
    );
    listed || instruction.op_mask() != Register::None
}

/// The destination and mask of a gather.
fn gathered_registers(instruction: &Instruction) -> Vec<usize> {
    let gather = format!("{:?}", instruction.mnemonic()).contains("gather");
    let number = |register: Register| match register {
        register if register.is_k() => 32 + register.number(),
        register => register.number(),
    };
    match (gather, instruction.op_mask()) {
        (false, _) => Vec::new(),
        (true, Register::None) => {
            vec![number(instruction.op0_register()), number(instruction.op2_register())]
        }
        (true, mask) => vec![number(instruction.op0_register()), number(mask)],
    }
}

/// Undefined flags of instructions that 64-bit code does not have: the host cannot execute them
/// for the guest, so that nothing makes these flags come out as the processor's.
pub fn undefined_flags(mnemonic: Mnemonic) -> u64 {
    const CF: u64 = 1;
    const PF: u64 = 1 << 2;
    const AF: u64 = 1 << 4;
    const ZF: u64 = 1 << 6;
    const SF: u64 = 1 << 7;
    const OF: u64 = 1 << 11;
    match mnemonic {
        Mnemonic::Aaa | Mnemonic::Aas => OF | SF | ZF | PF,
        Mnemonic::Aad | Mnemonic::Aam => OF | AF | CF,
        Mnemonic::Daa | Mnemonic::Das => OF,
        _ => 0,
    }
}

fn ignored_bytes(mnemonic: Mnemonic, target: u64) -> Vec<(u64, u64)> {
    match mnemonic {
        // FOP, FIP and FDP: a translator does not keep them.
        Mnemonic::Fxsave | Mnemonic::Fxsave64 => vec![(target + 6, 18)],
        _ => Vec::new(),
    }
}

fn vsib_registers(kind: K) -> Option<(Register, u32)> {
    Some(match kind {
        K::mem_vsib32x | K::mem_vsib64x => (Register::XMM0, 32),
        K::mem_vsib32y | K::mem_vsib64y => (Register::YMM0, 32),
        K::mem_vsib32z | K::mem_vsib64z => (Register::ZMM0, 32),
        _ => return None,
    })
}

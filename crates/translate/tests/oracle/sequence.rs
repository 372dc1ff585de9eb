//! Cases of several instructions: flags and registers flowing between them, branches, bounded
//! loops, calls, stack and string instructions, faults in the middle, code that changes itself.

use crate::case::{Case, Class, CODE, DATA, PAGE, STACK};
use crate::inputs;
use crate::rng::Rng;
use crate::single;
use iced_x86::{
    BlockEncoder, BlockEncoderOptions, Code, IcedError, Instruction, InstructionBlock,
    InstructionInfoFactory, MemoryOperand, OpAccess, Register,
};

/// The register that memory operands of 64-bit sequences go through; nothing in one changes it.
const POINTER: Register = Register::R12;
/// The same in 32-bit sequences.
const POINTER32: Register = Register::EBX;
const POINTER_VALUE: u64 = DATA + 2048;
/// Loop counters, 4 bytes each, where no memory operand reaches.
const COUNTERS: u64 = DATA + 64;
/// Memory operands of a sequence start here at the lowest.
const STRING_DATA: u64 = DATA + 0x1800;

/// Instructions that sequences are made of.
pub struct Pool {
    plain: Vec<Code>,
    chain: Vec<Code>,
}

impl Pool {
    /// Choose from the encodings that run as single instructions.
    pub fn new(codes: &[Code]) -> Self {
        let plain: Vec<Code> = codes.iter().copied().filter(|code| fits(*code)).collect();
        let chain = plain.iter().copied().filter(|code| is_flag_chain(*code)).collect();
        Self { plain, chain }
    }
}

fn fits(code: Code) -> bool {
    use iced_x86::Mnemonic as M;
    let op = code.op_code();
    let bit_test = matches!(code.mnemonic(), M::Bt | M::Bts | M::Btr | M::Btc)
        && op.op1_kind() != iced_x86::OpCodeOperandKind::imm8;
    let odd = matches!(code.mnemonic(), M::Wrfsbase | M::Wrgsbase | M::Leave | M::Enter | M::Movdir64b);
    let undefined = single::undefined_flags(code.mnemonic()) != 0;
    !undefined && !op.is_stack_instruction() && !bit_test && !odd && single::class_of(code) != Class::String
}

fn is_flag_chain(code: Code) -> bool {
    use iced_x86::Mnemonic as M;
    let name = format!("{:?}", code.mnemonic());
    let listed = matches!(
        code.mnemonic(),
        M::Adc
            | M::Sbb
            | M::Add
            | M::Sub
            | M::Cmp
            | M::Test
            | M::Inc
            | M::Dec
            | M::Rcl
            | M::Rcr
            | M::Shl
            | M::Sar
            | M::Adcx
            | M::Adox
            | M::Lahf
            | M::Sahf
            | M::Cmc
            | M::Stc
            | M::Clc
            | M::Neg
            | M::Mov
            | M::Movzx
            | M::Xchg
    );
    listed || name.starts_with("Set") || name.starts_with("Cmov")
}

/// A sequence being written. Labels are instruction pointers that stand for positions until the
/// block encoder lays the code out.
struct Writer<'a> {
    rng: &'a mut Rng,
    pool: &'a Pool,
    bits: u32,
    items: Vec<Instruction>,
    counters: u64,
    next_label: Option<u64>,
    labels: u64,
    /// Stores into code: (item that stores, item that it changes, offset of the bytes in it).
    patches: Vec<(usize, u64, u64)>,
    memory: Vec<(u64, Vec<u8>)>,
    kinds: Vec<&'static str>,
}

type Written = Result<(), IcedError>;

/// Make a sequence of `bits`-bit code out of `pool`.
pub fn generate(pool: &Pool, bits: u32, rng: &mut Rng) -> Option<Case> {
    (0..8).find_map(|_| attempt(pool, bits, rng))
}

fn attempt(pool: &Pool, bits: u32, rng: &mut Rng) -> Option<Case> {
    let mut cpu = inputs::state(rng);
    if bits == 32 {
        cpu.truncate();
    }
    cpu.gpr[if bits == 32 { 3 } else { 12 }] = POINTER_VALUE;
    cpu.gpr[4] = STACK + PAGE + 8 * rng.below(32);
    let mut writer = Writer::new(pool, bits, rng);
    for _ in 0..writer.rng.range(1, 4) {
        writer.part().ok()?;
    }
    writer.push(Instruction::with(Code::Int3));
    let at = CODE + writer.rng.pick(&[0, 0x100, PAGE - 16, PAGE - 40, 0x7fd]);
    let code = writer.encode(at)?;
    let class = match (bits, writer.patches.is_empty()) {
        (32, _) => Class::Compat,
        (_, true) => Class::Control,
        (_, false) => Class::SelfModifying,
    };
    let any_address_in_page = writer.items.iter().any(single::has_several_accesses);
    let mut memory = writer.memory;
    memory.push((at, code));
    cpu.rip = at;
    let name = format!("sequence {}", writer.kinds.join("+"));
    Some(Case {
        class,
        name,
        bits,
        cpu,
        memory,
        selectors: None,
        ignored: Vec::new(),
        ignored_flags: 0,
        any_address_in_page,
        any_fault: false,
        partial_registers: Vec::new(),
    })
}

impl<'a> Writer<'a> {
    fn new(pool: &'a Pool, bits: u32, rng: &'a mut Rng) -> Self {
        Self {
            rng,
            pool,
            bits,
            items: Vec::new(),
            counters: 0,
            next_label: None,
            labels: 0,
            patches: Vec::new(),
            memory: Vec::new(),
            kinds: Vec::new(),
        }
    }

    fn part(&mut self) -> Written {
        if self.bits == 32 {
            return match self.rng.below(5) {
                0 => self.plain_run(),
                1 => self.string(),
                2 => self.flag_chain(),
                3 => self.forward_branch(),
                _ => self.counted_loop(),
            };
        }
        match self.rng.below(18) {
            0 | 1 => self.plain_run(),
            2 => self.flag_chain(),
            3 | 4 => self.forward_branch(),
            5 | 6 => self.counted_loop(),
            7 => self.loop_instruction(),
            8 => self.call(),
            9 => self.indirect_call(),
            10 => self.indirect_jump(),
            11 => self.stack(),
            12 => self.frame(),
            13 => self.string(),
            14 => self.fault(),
            15 => self.partial_registers(),
            16 => self.narrow_branch(),
            _ => self.self_modifying(),
        }
    }

    fn push(&mut self, mut instruction: Instruction) {
        let ip = self.next_label.take().unwrap_or_else(|| self.label());
        instruction.set_ip(ip);
        self.items.push(instruction);
    }

    /// A new position, placed by [`Self::place`].
    fn label(&mut self) -> u64 {
        self.labels += 1;
        self.labels * 64
    }

    /// The next instruction is the one that `label` names.
    fn place(&mut self, label: u64) {
        if self.next_label.is_some() {
            self.push(Instruction::with(Code::Nopd));
        }
        self.next_label = Some(label);
    }

    fn branch(&mut self, code: Code, label: u64) -> Written {
        let code = if self.bits == 32 { in_32_bit_code(code) } else { code };
        self.push(Instruction::with_branch(code, label)?);
        Ok(())
    }

    fn condition(&mut self, label: u64) -> Written {
        let codes = [
            Code::Jo_rel32_64,
            Code::Jno_rel32_64,
            Code::Jb_rel32_64,
            Code::Jae_rel32_64,
            Code::Je_rel32_64,
            Code::Jne_rel32_64,
            Code::Jbe_rel32_64,
            Code::Ja_rel32_64,
            Code::Js_rel32_64,
            Code::Jns_rel32_64,
            Code::Jp_rel32_64,
            Code::Jnp_rel32_64,
            Code::Jl_rel32_64,
            Code::Jge_rel32_64,
            Code::Jle_rel32_64,
            Code::Jg_rel32_64,
        ];
        let code = self.rng.pick(&codes);
        self.branch(code, label)
    }

    fn random(&mut self, code: Code, faulting: bool) -> Option<Instruction> {
        single::instruction(code, self.bits, (self.pointer(), POINTER_VALUE), faulting, self.rng)
    }

    fn pointer(&self) -> Register {
        if self.bits == 32 {
            POINTER32
        } else {
            POINTER
        }
    }

    /// Whether an instruction changes the stack pointer, the pointer, or one of `kept`.
    fn changes(&self, instruction: &Instruction, kept: &[Register]) -> bool {
        let guarded = [Register::RSP, self.pointer().full_register()];
        let mut factory = InstructionInfoFactory::new();
        factory.info(instruction).used_registers().iter().any(|used| {
            let full = used.register().full_register();
            let reads_only = matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::None);
            (guarded.contains(&full) || kept.contains(&full)) && !reads_only
        })
    }

    /// One random instruction that leaves RSP, the pointer and `kept` alone.
    fn plain(&mut self, kept: &[Register]) {
        for _ in 0..20 {
            let code = if self.rng.chance(35) {
                self.rng.pick(&self.pool.chain)
            } else {
                self.rng.pick(&self.pool.plain)
            };
            let Some(instruction) = self.random(code, false) else {
                continue;
            };
            if !self.changes(&instruction, kept) {
                return self.push(instruction);
            }
        }
        self.push(Instruction::with(Code::Nopd));
    }

    fn plains(&mut self, most: u64, kept: &[Register]) {
        for _ in 0..self.rng.range(1, most) {
            self.plain(kept);
        }
    }

    fn plain_run(&mut self) -> Written {
        self.kinds.push("plain");
        self.plains(6, &[]);
        Ok(())
    }

    fn flag_chain(&mut self) -> Written {
        self.kinds.push("flags");
        for _ in 0..self.rng.range(2, 7) {
            let code = self.rng.pick(&self.pool.chain);
            match self.random(code, false) {
                Some(instruction) if !self.changes(&instruction, &[]) => self.push(instruction),
                _ => self.plain(&[]),
            }
        }
        Ok(())
    }

    fn forward_branch(&mut self) -> Written {
        self.kinds.push("jcc");
        let over = self.label();
        self.plain(&[]);
        self.condition(over)?;
        self.plains(3, &[]);
        self.place(over);
        self.plain(&[]);
        Ok(())
    }

    fn counter(&mut self) -> MemoryOperand {
        let address = COUNTERS + 4 * self.counters;
        self.counters += 1;
        let count = self.rng.range(1, 6) as u32;
        self.memory.push((address, count.to_le_bytes().to_vec()));
        MemoryOperand::with_displ(address, self.bits / 8)
    }

    /// Flags of the counter's decrement decide; other branches may leave the loop early.
    fn counted_loop(&mut self) -> Written {
        self.kinds.push("loop");
        let (top, out) = (self.label(), self.label());
        let counter = self.counter();
        self.place(top);
        self.plains(3, &[]);
        if self.rng.chance(40) {
            self.condition(out)?;
            self.plain(&[]);
        }
        if self.rng.chance(50) {
            self.push(Instruction::with1(Code::Dec_rm32, counter)?);
        } else {
            self.push(Instruction::with2(Code::Sub_rm32_imm8, counter, 1)?);
        }
        let code = self.rng.pick(&[Code::Jne_rel8_64, Code::Jg_rel8_64, Code::Jne_rel32_64]);
        self.branch(code, top)?;
        self.place(out);
        Ok(())
    }

    fn loop_instruction(&mut self) -> Written {
        self.kinds.push("loop/jrcxz");
        let (top, out) = (self.label(), self.label());
        let count = self.rng.range(1, 5) as u32;
        self.push(Instruction::with2(Code::Mov_r32_imm32, Register::ECX, count)?);
        self.place(top);
        self.plains(2, &[Register::RCX]);
        if self.rng.chance(30) {
            let code = self.rng.pick(&[Code::Jrcxz_rel8_64, Code::Jecxz_rel8_64]);
            self.branch(code, out)?;
        }
        let codes = [
            Code::Loop_rel8_64_RCX,
            Code::Loope_rel8_64_RCX,
            Code::Loopne_rel8_64_RCX,
            Code::Loop_rel8_64_ECX,
        ];
        let code = self.rng.pick(&codes);
        self.branch(code, top)?;
        self.place(out);
        Ok(())
    }

    /// A function of its own behind a jump; `ret` may drop arguments.
    fn function(&mut self, callee: u64, after: u64) -> Written {
        self.branch(Code::Jmp_rel32_64, after)?;
        self.place(callee);
        self.plains(3, &[]);
        self.push(Instruction::with(Code::Retnq));
        self.place(after);
        Ok(())
    }

    fn call(&mut self) -> Written {
        self.kinds.push("call");
        let (callee, after) = (self.label(), self.label());
        for _ in 0..self.rng.range(1, 3) {
            self.branch(Code::Call_rel32_64, callee)?;
            self.plain(&[]);
        }
        if self.rng.chance(50) {
            return self.function(callee, after);
        }
        let with_argument = self.label();
        self.push(Instruction::with1(Code::Push_r64, Register::RAX)?);
        self.branch(Code::Call_rel32_64, with_argument)?;
        self.branch(Code::Jmp_rel32_64, after)?;
        self.place(with_argument);
        self.plain(&[]);
        self.push(Instruction::with1(Code::Retnq_imm16, 8)?);
        self.place(callee);
        self.plain(&[]);
        self.push(Instruction::with(Code::Retnq));
        self.place(after);
        Ok(())
    }

    fn address_of(&mut self, register: Register, label: u64) -> Written {
        let operand = MemoryOperand::with_base_displ_size(Register::RIP, label as i64, 8);
        self.push(Instruction::with2(Code::Lea_r64_m, register, operand)?);
        Ok(())
    }

    fn indirect_call(&mut self) -> Written {
        self.kinds.push("call*");
        let (callee, after) = (self.label(), self.label());
        self.address_of(Register::R11, callee)?;
        if self.rng.chance(50) {
            self.push(Instruction::with1(Code::Call_rm64, Register::R11)?);
        } else {
            let slot = MemoryOperand::with_base_displ(POINTER, -512);
            self.push(Instruction::with2(Code::Mov_rm64_r64, slot, Register::R11)?);
            self.push(Instruction::with1(Code::Call_rm64, slot)?);
        }
        self.function(callee, after)
    }

    fn indirect_jump(&mut self) -> Written {
        self.kinds.push("jmp*");
        let target = self.label();
        self.address_of(Register::R11, target)?;
        match self.rng.below(3) {
            0 => self.push(Instruction::with1(Code::Jmp_rm64, Register::R11)?),
            1 => {
                self.push(Instruction::with1(Code::Push_r64, Register::R11)?);
                self.push(Instruction::with(Code::Retnq));
            }
            _ => {
                let slot = MemoryOperand::with_base_displ(POINTER, -520);
                self.push(Instruction::with2(Code::Mov_rm64_r64, slot, Register::R11)?);
                self.push(Instruction::with1(Code::Jmp_rm64, slot)?);
            }
        }
        self.plain(&[]);
        self.place(target);
        Ok(())
    }

    fn stack(&mut self) -> Written {
        self.kinds.push("stack");
        let registers = [Register::RAX, Register::RSP, Register::RBP, Register::R9, Register::RDI];
        let pushed = self.rng.pick(&registers);
        self.push(Instruction::with1(Code::Push_r64, pushed)?);
        self.push(Instruction::with(Code::Pushfq));
        self.push(Instruction::with1(Code::Push_r16, Register::DX)?);
        self.plain(&[]);
        self.push(Instruction::with1(Code::Pop_r16, Register::BX)?);
        if self.rng.chance(50) {
            self.push(Instruction::with(Code::Popfq));
        } else {
            self.push(Instruction::with1(Code::Pop_r64, Register::R10)?);
        }
        let slot = MemoryOperand::with_base_displ(POINTER, 64);
        let on_stack = MemoryOperand::with_base_displ(Register::RSP, 16);
        match self.rng.below(4) {
            0 => self.push(Instruction::with1(Code::Pop_rm64, slot)?),
            1 => self.push(Instruction::with1(Code::Pop_rm64, on_stack)?),
            2 => self.push(Instruction::with1(Code::Push_rm64, on_stack)?),
            _ => self.push(Instruction::with1(Code::Pop_r64, Register::RSI)?),
        }
        Ok(())
    }

    fn frame(&mut self) -> Written {
        self.kinds.push("frame");
        let size = 8 * self.rng.below(8) as u32;
        self.push(Instruction::with2(Code::Enterq_imm16_imm8, size, 0)?);
        self.plains(2, &[Register::RBP]);
        self.push(Instruction::with(Code::Leaveq));
        Ok(())
    }

    /// A string instruction between two buffers, which may overlap.
    fn string(&mut self) -> Written {
        self.kinds.push("string");
        let backward = self.rng.chance(30);
        let (from, to) = (STRING_DATA + self.rng.below(256), STRING_DATA + self.rng.below(256));
        self.push(Instruction::with2(Code::Mov_r32_imm32, Register::ESI, from as u32)?);
        self.push(Instruction::with2(Code::Mov_r32_imm32, Register::EDI, to as u32)?);
        let count = self.rng.pick(&[0_u32, 1, 2, 5, 17, 64]);
        self.push(Instruction::with2(Code::Mov_r32_imm32, Register::ECX, count)?);
        self.push(Instruction::with(if backward { Code::Std } else { Code::Cld }));
        self.string_instruction()?;
        if backward {
            self.push(Instruction::with(Code::Cld));
        }
        Ok(())
    }

    fn string_instruction(&mut self) -> Written {
        use iced_x86::RepPrefixKind as Rep;
        let any = self.rng.pick(&[Rep::None, Rep::Repe]);
        let compare = self.rng.pick(&[Rep::None, Rep::Repe, Rep::Repne]);
        let wide = self.bits == 64;
        let instruction = match self.rng.below(9) {
            0 => Instruction::with_movsb(self.bits, Register::None, any)?,
            2 if wide => Instruction::with_movsq(self.bits, Register::None, any)?,
            1 | 2 => Instruction::with_movsd(self.bits, Register::None, any)?,
            4 if wide => Instruction::with_stosq(self.bits, any)?,
            3 | 4 => Instruction::with_stosb(self.bits, any)?,
            5 => Instruction::with_lodsw(self.bits, Register::None, any)?,
            6 => Instruction::with_scasb(self.bits, compare)?,
            7 => Instruction::with_cmpsb(self.bits, Register::None, compare)?,
            _ => Instruction::with_cmpsd(self.bits, Register::None, compare)?,
        };
        self.push(instruction);
        Ok(())
    }

    /// An exception in the middle: state before it must be exact.
    fn fault(&mut self) -> Written {
        self.kinds.push("fault");
        self.plains(2, &[]);
        let over = self.label();
        self.condition(over)?;
        if self.rng.chance(20) {
            let code = self.rng.pick(&[Code::Ud2, Code::Int3]);
            self.push(Instruction::with(code));
        }
        for _ in 0..20 {
            let code = self.rng.pick(&self.pool.plain);
            let made = self.random(code, true);
            if let Some(instruction) = made.filter(|made| !self.changes(made, &[])) {
                self.push(instruction);
                break;
            }
        }
        self.plain(&[]);
        self.place(over);
        Ok(())
    }

    fn partial_registers(&mut self) -> Written {
        self.kinds.push("partial");
        let bytes = [
            Register::AL,
            Register::AH,
            Register::BL,
            Register::BH,
            Register::CH,
            Register::DH,
            Register::DL,
        ];
        for _ in 0..self.rng.range(1, 3) {
            let (to, from) = (self.rng.pick(&bytes), self.rng.pick(&bytes));
            let code =
                self.rng.pick(&[Code::Mov_r8_rm8, Code::Add_r8_rm8, Code::Xchg_rm8_r8, Code::Adc_rm8_r8]);
            self.push(Instruction::with2(code, to, from)?);
            let (loaded, immediate) = (self.rng.pick(&bytes), self.rng.below(128) as u32);
            self.push(Instruction::with2(Code::Mov_r8_imm8, loaded, immediate)?);
        }
        self.push(Instruction::with2(Code::Movzx_r32_rm16, Register::R9D, Register::AX)?);
        self.push(Instruction::with2(Code::Movsx_r64_rm8, Register::R10, Register::BL)?);
        Ok(())
    }

    /// A near branch with an operand-size prefix: processors of one vendor clear RIP's upper 48 bits, which
    /// faults here, those of another go on behind it.
    fn narrow_branch(&mut self) -> Written {
        self.kinds.push("66h");
        const BRANCHES: [&[u8]; 12] = [
            &[0xeb, 0],
            &[0xe9, 0, 0, 0, 0],
            &[0xe8, 0, 0, 0, 0],
            &[0x74, 0],
            &[0x0f, 0x85, 0, 0, 0, 0],
            &[0xe2, 0],
            &[0xe3, 0],
            &[0x48, 0xeb, 0],
            &[0x41, 0xff, 0xe3],       // jmp r11
            &[0x41, 0xff, 0xd3],       // call r11
            &[0x41, 0x53, 0x66, 0xc3], // push r11 (its low half), then ret
            &[0x49, 0xff, 0xe3],       // jmp r11 with REX.W
        ];
        let after = self.label();
        self.address_of(Register::R11, after)?;
        let bytes = [&[0x66][..], self.rng.pick(&BRANCHES)].concat();
        self.push(Instruction::with_declare_byte(&bytes)?);
        self.place(after);
        self.plain(&[]);
        Ok(())
    }

    /// A store that changes an immediate of a later or (in a loop) an earlier instruction.
    fn self_modifying(&mut self) -> Written {
        self.kinds.push("smc");
        let changed = self.label();
        let placeholder = MemoryOperand::with_displ(CODE, 8);
        let in_loop = self.rng.chance(40);
        let top = self.label();
        let counter = self.counter();
        if in_loop {
            self.place(top);
            self.plain(&[]);
        }
        let value = self.rng.below(128) as u32;
        let store = match self.rng.below(3) {
            0 => Instruction::with2(Code::Mov_rm8_imm8, placeholder, value)?,
            1 => Instruction::with2(Code::Add_rm32_imm8, placeholder, value)?,
            _ => Instruction::with2(Code::Mov_rm32_r32, placeholder, Register::EDX)?,
        };
        self.push(store);
        self.patches.push((self.items.len() - 1, changed, 2));
        match self.rng.below(3) {
            0 => self.branch(Code::Jmp_rel32_64, changed)?,
            1 => self.plain(&[]),
            _ => {}
        }
        self.place(changed);
        let immediate = self.rng.next() as u32;
        self.push(Instruction::with2(Code::Xor_rm32_imm32, Register::EBX, immediate)?);
        if in_loop {
            self.push(Instruction::with1(Code::Dec_rm32, counter)?);
            self.branch(Code::Jne_rel32_64, top)?;
        }
        Ok(())
    }

    /// Lay the code out at `at`, twice: the first time to learn where the changed bytes lie.
    fn encode(&mut self, at: u64) -> Option<Vec<u8>> {
        let options =
            BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS | BlockEncoderOptions::DONT_FIX_BRANCHES;
        let first = BlockEncoder::encode(self.bits, InstructionBlock::new(&self.items, at), options).ok()?;
        for (store, changed, offset) in &self.patches {
            let item = self.items.iter().position(|item| item.ip() == *changed)?;
            let address = at + u64::from(first.new_instruction_offsets[item]) + offset;
            self.items[*store].set_memory_displacement64(address);
        }
        let code = BlockEncoder::encode(self.bits, InstructionBlock::new(&self.items, at), options)
            .ok()?
            .code_buffer;
        (code.len() < 1024).then_some(code)
    }
}

/// The 32-bit form of the branches that 32-bit sequences use.
fn in_32_bit_code(code: Code) -> Code {
    match code {
        Code::Jo_rel32_64 => Code::Jo_rel32_32,
        Code::Jno_rel32_64 => Code::Jno_rel32_32,
        Code::Jb_rel32_64 => Code::Jb_rel32_32,
        Code::Jae_rel32_64 => Code::Jae_rel32_32,
        Code::Je_rel32_64 => Code::Je_rel32_32,
        Code::Jne_rel32_64 => Code::Jne_rel32_32,
        Code::Jbe_rel32_64 => Code::Jbe_rel32_32,
        Code::Ja_rel32_64 => Code::Ja_rel32_32,
        Code::Js_rel32_64 => Code::Js_rel32_32,
        Code::Jns_rel32_64 => Code::Jns_rel32_32,
        Code::Jp_rel32_64 => Code::Jp_rel32_32,
        Code::Jnp_rel32_64 => Code::Jnp_rel32_32,
        Code::Jl_rel32_64 => Code::Jl_rel32_32,
        Code::Jge_rel32_64 => Code::Jge_rel32_32,
        Code::Jle_rel32_64 => Code::Jle_rel32_32,
        Code::Jg_rel32_64 => Code::Jg_rel32_32,
        Code::Jne_rel8_64 => Code::Jne_rel8_32,
        Code::Jg_rel8_64 => Code::Jg_rel8_32,
        other => other,
    }
}

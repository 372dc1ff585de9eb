//! Which accesses of a block can share one TLB check.
//!
//! Accesses off the same base register, with nothing but known constants added to it in between,
//! mostly lie in one page. The first of them (the leader) checks the whole range that they span and
//! keeps the page's addend in memory; the others (followers) use it without a check of their own.
//! A leader whose range is not all in one page of plain RAM gives up: the block is run in a
//! translation without sharing (see `VcpuCore::unshare`). Nothing inside a block changes a mapping
//! (that takes the run loop), so that a checked page stays good to the block's end.
//!
//! Where accesses go through memory windows, what is shared is the distance to the window of the segment that the
//! base register points into. The guards between windows are checks enough, so that all accesses off a base share it.

use super::generic::memory_operand;
use super::registers::number;
use iced_x86::{
    Code, Instruction, InstructionInfoFactory, InstructionInfoOptions, Mnemonic, OpAccess, OpKind, Register,
};

/// Widest range that a leader checks, in bytes.
const MAX_SPAN: i64 = 256;
/// Widest range of those that share a window, which the guards beside it have to catch.
const MAX_WINDOW_SPAN: i64 = 1 << 30;
const RSP: usize = 4;

/// What accesses share.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Sharing {
    /// The check of a page.
    #[default]
    Check,
    /// A window.
    Window,
}

/// How an instruction's access takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Checks `before` bytes below its own first and `after` bytes above its own last as well.
    Leader {
        /// Number of the slot that keeps the addend.
        slot: usize,
        /// Bytes below.
        before: u16,
        /// Bytes above.
        after: u16,
    },
    /// Uses the addend in the slot.
    Follower {
        /// Number of the slot.
        slot: usize,
    },
}

/// An access relative to what its base register held when the group was opened.
#[derive(Debug, Clone, Copy)]
struct Access {
    instruction: usize,
    offset: i64,
    size: i64,
    write: bool,
}

/// How the instructions of a block share checks. One plan after another is made in the same memory.
#[derive(Debug, Default)]
pub struct Plan {
    sharing: Sharing,
    parts: Vec<Option<Part>>,
    /// The registers, a bit each, that have been changed before each instruction other than by known constants.
    changed: Vec<u16>,
    /// Accesses of groups that are open, each with its base register.
    open: Vec<(usize, Access)>,
    /// How many there are, for each base register.
    counts: [u8; 16],
    /// What has been added to each base register since its group was opened.
    deltas: [i64; 16],
}

impl Plan {
    /// How instruction `index` takes part.
    pub fn part(&self, index: usize) -> Option<Part> {
        self.parts.get(index).copied().flatten()
    }

    /// Whether a register still holds what it held at the block's start, but for known constants, before instruction
    /// `index`.
    pub fn is_unchanged(&self, index: usize, register: usize) -> bool {
        self.changed.get(index).is_some_and(|changed| changed >> register & 1 == 0)
    }

    /// Nothing is shared.
    pub fn nothing(&mut self, instructions: usize) {
        self.parts.clear();
        self.parts.resize(instructions, None);
        self.changed.clear();
    }

    /// Decide for each instruction of a 64-bit block.
    pub fn make(
        &mut self,
        instructions: &[Instruction],
        sharing: Sharing,
        info: &mut InstructionInfoFactory,
    ) {
        self.sharing = sharing;
        self.nothing(instructions.len());
        self.open.clear();
        (self.counts, self.deltas) = ([0; 16], [0; 16]);
        let mut changed = 0;
        for (index, instruction) in instructions.iter().enumerate() {
            self.changed.push(changed);
            if let Some((base, mut access)) = access_of(instruction, info) {
                access.instruction = index;
                access.offset += self.deltas[base];
                self.open.push((base, access));
                self.counts[base] += 1;
            }
            changed |= self.follow_registers(instruction, info);
        }
        (0..16).for_each(|base| self.close(base));
    }

    /// Account for what the instruction does to base registers. Returns which it changes by more than a constant.
    fn follow_registers(&mut self, instruction: &Instruction, info: &mut InstructionInfoFactory) -> u16 {
        if let Some((register, constant)) = constant_added(instruction) {
            self.deltas[register] += constant;
            return 0;
        }
        if tracks_stack(instruction) {
            self.deltas[RSP] += i64::from(instruction.stack_pointer_increment());
        }
        let written = written_registers(instruction, info);
        let mut left = written;
        while left != 0 {
            self.close(left.trailing_zeros() as usize);
            left &= left - 1;
        }
        written
    }

    /// Assign parts to the accesses of a group, and empty it.
    fn close(&mut self, base: usize) {
        self.deltas[base] = 0;
        let count = std::mem::take(&mut self.counts[base]);
        if count == 0 {
            return;
        }
        let of_group = || self.open.iter().filter(|one| one.0 == base).map(|one| one.1);
        if count > 1 && self.sharing == Sharing::Window {
            share(2 * base, of_group(), MAX_WINDOW_SPAN, &mut self.parts);
        } else if count > 1 {
            // Loads before the first store are not checked for writing.
            let reads = of_group().take_while(|access| !access.write).count();
            share(2 * base, of_group().take(reads), MAX_SPAN, &mut self.parts);
            share(2 * base + 1, of_group().skip(reads), MAX_SPAN, &mut self.parts);
        }
        self.open.retain(|one| one.0 != base);
    }
}

/// The base register and access of an instruction that may take part.
fn access_of(instruction: &Instruction, info: &mut InstructionInfoFactory) -> Option<(usize, Access)> {
    let stack =
        |offset: i64, size: i64, write: bool| Some((RSP, Access { instruction: 0, offset, size, write }));
    let explicit = memory_operand(instruction);
    let moved = i64::from(instruction.stack_pointer_increment());
    match instruction.mnemonic() {
        Mnemonic::Push if explicit.is_none() && !segment_operand(instruction) => stack(moved, -moved, true),
        Mnemonic::Pop if explicit.is_none() && !segment_operand(instruction) => stack(0, moved, false),
        Mnemonic::Call if explicit.is_none() => stack(moved, -moved, true),
        // With a constant to add to the stack pointer as well, it reads no more than the address.
        Mnemonic::Ret => stack(0, 8, false),
        Mnemonic::Push | Mnemonic::Pop | Mnemonic::Call | Mnemonic::Jmp | Mnemonic::Lea => None,
        Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc => None,
        Mnemonic::Clflush | Mnemonic::Clflushopt | Mnemonic::Clwb => None,
        _ => explicit_access(instruction, explicit?, info),
    }
}

fn segment_operand(instruction: &Instruction) -> bool {
    instruction.op0_kind() == OpKind::Register && instruction.op0_register().is_segment_register()
}

fn explicit_access(
    instruction: &Instruction,
    operand: u32,
    info: &mut InstructionInfoFactory,
) -> Option<(usize, Access)> {
    let base = instruction.memory_base();
    let plain = base.is_gpr64()
        && instruction.memory_index() == Register::None
        && !matches!(instruction.memory_segment(), Register::FS | Register::GS)
        && !instruction.has_op_mask()
        && !super::generic::has_high_byte(instruction);
    let size = instruction.memory_size().size() as i64;
    if !plain || !(1..=64).contains(&size) {
        return None;
    }
    let options = InstructionInfoOptions::NO_MEMORY_USAGE | InstructionInfoOptions::NO_REGISTER_USAGE;
    let access = info.info_options(instruction, options).op_access(operand);
    let write = match access {
        OpAccess::Read => false,
        OpAccess::Write | OpAccess::ReadWrite => true,
        // Whether it happens at all depends on data.
        _ => return None,
    };
    let offset = instruction.memory_displacement64() as i64;
    if i32::try_from(offset).is_err() || is_address(instruction) {
        return None;
    }
    Some((number(base)?, Access { instruction: 0, offset, size, write }))
}

/// Whether the displacement of an operand is an address of a kernel's, to which the base register adds an offset: the
/// last 2 GiB, where its code and data are, but for what structures and stacks have below their pointers.
pub(super) fn is_address(instruction: &Instruction) -> bool {
    (instruction.memory_displacement64() as i64) < -(1 << 28)
}

/// Whether the instruction moves the stack pointer by what it says, and no more.
fn tracks_stack(instruction: &Instruction) -> bool {
    matches!(instruction.mnemonic(), Mnemonic::Push | Mnemonic::Pop | Mnemonic::Call)
}

/// The registers, a bit each, that the instruction changes other than by a known constant.
fn written_registers(instruction: &Instruction, info: &mut InstructionInfoFactory) -> u16 {
    if writes_only_first_operand(instruction) {
        return first_operand(instruction);
    }
    if is_read_only(instruction) {
        return 0;
    }
    if tracks_stack(instruction) {
        return if instruction.mnemonic() == Mnemonic::Pop { first_operand(instruction) } else { 0 };
    }
    let mut written = 0;
    for used in info.info_options(instruction, InstructionInfoOptions::NO_MEMORY_USAGE).used_registers() {
        if !matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::None) {
            written |= number(used.register()).map_or(0, |register| 1 << register);
        }
    }
    written
}

fn first_operand(instruction: &Instruction) -> u16 {
    if instruction.op_count() == 0 || instruction.op0_kind() != OpKind::Register {
        return 0;
    }
    number(instruction.op0_register()).map_or(0, |register| 1 << register)
}

/// Common instructions whose only register result is their first operand.
fn writes_only_first_operand(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    matches!(
        instruction.mnemonic(),
        M::Mov
            | M::Add
            | M::Sub
            | M::And
            | M::Or
            | M::Xor
            | M::Adc
            | M::Sbb
            | M::Lea
            | M::Movzx
            | M::Movsx
            | M::Movsxd
            | M::Inc
            | M::Dec
            | M::Neg
            | M::Not
            | M::Shl
            | M::Shr
            | M::Sar
            | M::Rol
            | M::Ror
    ) || (instruction.mnemonic() == M::Imul && instruction.op_count() > 1)
}

fn is_read_only(instruction: &Instruction) -> bool {
    matches!(instruction.mnemonic(), Mnemonic::Cmp | Mnemonic::Test | Mnemonic::Nop)
        || instruction.is_jcc_short_or_near()
}

/// `add`, `sub` and `lea` that move a 64-bit register by a constant.
fn constant_added(instruction: &Instruction) -> Option<(usize, i64)> {
    let register = instruction.op0_register();
    if instruction.op_count() == 0 || instruction.op0_kind() != OpKind::Register || !register.is_gpr64() {
        return None;
    }
    let constant = match instruction.code() {
        Code::Add_rm64_imm8 | Code::Add_rm64_imm32 | Code::Add_RAX_imm32 => instruction.immediate(1) as i64,
        Code::Sub_rm64_imm8 | Code::Sub_rm64_imm32 | Code::Sub_RAX_imm32 => {
            -(instruction.immediate(1) as i64)
        }
        Code::Inc_rm64 => 1,
        Code::Dec_rm64 => -1,
        Code::Lea_r64_m
            if instruction.memory_base() == register && instruction.memory_index() == Register::None =>
        {
            instruction.memory_displacement64() as i64
        }
        _ => return None,
    };
    Some((number(register)?, constant))
}

/// The first access leads those within reach.
fn share(slot: usize, accesses: impl Iterator<Item = Access>, span: i64, parts: &mut [Option<Part>]) {
    let mut rest = accesses;
    let Some(leader) = rest.next() else { return };
    let (mut low, mut high) = (leader.offset, leader.offset + leader.size);
    let mut followed = false;
    for access in rest {
        let (new_low, new_high) = (low.min(access.offset), high.max(access.offset + access.size));
        if new_high - new_low <= span {
            (low, high) = (new_low, new_high);
            parts[access.instruction] = Some(Part::Follower { slot });
            followed = true;
        }
    }
    if followed {
        let (before, after) = (leader.offset - low, high - leader.offset - leader.size);
        parts[leader.instruction] = Some(Part::Leader { slot, before: before as u16, after: after as u16 });
    }
}

#[cfg(test)]
mod tests {
    use super::{Part, Plan, Sharing};
    use iced_x86::{Decoder, DecoderOptions, InstructionInfoFactory};

    fn parts(code: &[u8]) -> Vec<Option<Part>> {
        parts_of(Sharing::Check, code)
    }

    fn parts_of(sharing: Sharing, code: &[u8]) -> Vec<Option<Part>> {
        let instructions: Vec<_> = Decoder::new(64, code, DecoderOptions::NONE).into_iter().collect();
        let mut plan = Plan::default();
        plan.make(&instructions, sharing, &mut InstructionInfoFactory::new());
        plan.parts
    }

    #[test]
    fn pushes_share_the_first_ones_check() {
        // push rbp; push rbx; push r12
        let parts = parts(&[0x55, 0x53, 0x41, 0x54]);
        assert_eq!(parts[0], Some(Part::Leader { slot: 9, before: 16, after: 0 }));
        assert_eq!(parts[1], Some(Part::Follower { slot: 9 }));
        assert_eq!(parts[2], Some(Part::Follower { slot: 9 }));
    }

    #[test]
    fn a_return_shares_what_the_pops_before_it_checked() {
        // add rsp,8; pop rbx; ret
        let parts = parts(&[0x48, 0x83, 0xc4, 8, 0x5b, 0xc3]);
        assert_eq!(parts[1], Some(Part::Leader { slot: 8, before: 0, after: 8 }));
        assert_eq!(parts[2], Some(Part::Follower { slot: 8 }));
    }

    #[test]
    fn constants_added_to_the_accumulator_are_known() {
        // mov ecx,[rax]; add rax,0x100; mov edx,[rax]; sub rax,0x80; mov edx,[rax]
        let parts =
            parts(&[0x8b, 0x08, 0x48, 0x05, 0, 1, 0, 0, 0x8b, 0x10, 0x48, 0x2d, 0x80, 0, 0, 0, 0x8b, 0x10]);
        assert_eq!(parts[0], Some(Part::Leader { slot: 0, before: 0, after: 0x80 }));
        assert_eq!((parts[2], parts[4]), (None, Some(Part::Follower { slot: 0 })));
    }

    #[test]
    fn a_changed_base_starts_anew() {
        // mov eax,[rdi]; mov rdi,rsi; mov eax,[rdi]
        assert_eq!(parts(&[0x8b, 0x07, 0x48, 0x89, 0xf7, 0x8b, 0x07]), [None, None, None]);
        // pop rsp between two pops
        assert_eq!(parts(&[0x58, 0x5c, 0x59])[2], None);
    }

    #[test]
    fn constants_added_are_followed() {
        // mov eax,[rdi]; add rdi,8; mov eax,[rdi+4]
        let parts = parts(&[0x8b, 0x07, 0x48, 0x83, 0xc7, 8, 0x8b, 0x47, 4]);
        assert_eq!(parts[0], Some(Part::Leader { slot: 14, before: 0, after: 12 }));
        assert_eq!(parts[2], Some(Part::Follower { slot: 14 }));
    }

    #[test]
    fn a_read_before_the_first_store_is_not_checked_for_writing() {
        // mov eax,[rdi]; mov [rdi+4],eax; mov eax,[rdi+8]
        let parts = parts(&[0x8b, 0x07, 0x89, 0x47, 4, 0x8b, 0x47, 8]);
        assert_eq!(parts[0], None);
        assert_eq!(parts[1], Some(Part::Leader { slot: 15, before: 0, after: 4 }));
        assert_eq!(parts[2], Some(Part::Follower { slot: 15 }));
    }

    #[test]
    fn all_accesses_off_a_base_share_its_window() {
        // mov eax,[rdi]; mov [rdi+0x1000],eax; mov eax,[rdi+8]
        let parts = parts_of(Sharing::Window, &[0x8b, 0x07, 0x89, 0x87, 0, 0x10, 0, 0, 0x8b, 0x47, 8]);
        let follower = Some(Part::Follower { slot: 14 });
        assert!(matches!(parts[0], Some(Part::Leader { slot: 14, .. })));
        assert_eq!(parts[1..], [follower, follower]);
    }
}

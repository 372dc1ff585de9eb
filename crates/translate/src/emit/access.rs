//! Memory accesses: effective address, the inline software-TLB check, and what happens off it.

use super::assembler::displacement;
use super::builder::{hot, Unencodable};
use super::generic::needs_alignment;
use super::masked::masked_elements;
use super::registers::{home, number, Home};
use super::sharing::Part;
use super::{Builder, Host};
use crate::mode::Width;
use crate::state::{seg, CpuState, HotState, SegmentRegister, BOUNCE_BYTES};
use crate::system::operand::operand_segment;
use iced_x86::{Code, Instruction, Register};
use std::mem::offset_of;
use std::rc::Rc;

/// Where the bytes of a checked access are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// At `[register + r15]`.
    Direct(Host),
    /// At `[register + r15 + offset]`.
    Offset(Host, i32),
    /// At `[register + r14 + offset]`.
    Away(Host, i32),
    /// At `[r15 + address]`.
    Known(i32),
    /// At `[register]`.
    At(Host),
    /// In the bounce buffer.
    Bounce,
    /// In a guest register's slot, at this offset in the state.
    Slot(i32),
}

/// What an access does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessKind {
    /// Load.
    Read,
    /// Store, or load and store.
    Write,
}

/// An access, as the slow path is told of it in ECX.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor(pub u32);

impl Descriptor {
    const WRITE: u32 = 1 << 8;
    const STACK: u32 = 1 << 9;
    const STAY: u32 = 1 << 10;
    const ALIGNED: u32 = 1 << 11;
    const PROBE: u32 = 1 << 30;
    const LOAD_TOO: u32 = 1 << 12;
    const MATH: u32 = 1 << 13;
    const SEGMENT_CHECK: u32 = 1 << 14;
    const SEGMENT_SHIFT: u32 = 15;
    const OPMASK_SHIFT: u32 = 18;
    const ELEMENT_SHIFT: u32 = 21;
    const COUNT_SHIFT: u32 = 24;
    const LEADER: u32 = 1 << 31;

    /// Describe an access of `size` bytes.
    pub fn new(size: usize, kind: AccessKind) -> Self {
        let write = if kind == AccessKind::Write { Self::WRITE } else { 0 };
        Self(size as u32 | write)
    }
    /// Through SS: faults are #SS.
    #[must_use]
    pub fn stack(self) -> Self {
        Self(self.0 | Self::STACK)
    }
    /// A branch follows: do not leave the block at the commit.
    #[must_use]
    pub fn stay(self) -> Self {
        Self(self.0 | Self::STAY)
    }
    /// Misaligned accesses are #GP.
    #[must_use]
    pub fn aligned(self) -> Self {
        Self(self.0 | Self::ALIGNED)
    }
    /// A store that also loads.
    #[must_use]
    pub fn load_too(self) -> Self {
        Self(self.0 | Self::LOAD_TOO)
    }
    /// By an x87 or MMX instruction, which reports a pending x87 exception before it accesses memory.
    #[must_use]
    pub fn math(self) -> Self {
        Self(self.0 | Self::MATH)
    }
    /// Not an access: check that the bytes lie in the limits of segment register `segment`.
    #[must_use]
    pub fn segment_check(self, segment: usize) -> Self {
        Self(self.0 | Self::SEGMENT_CHECK | (segment as u32) << Self::SEGMENT_SHIFT)
    }
    /// Not an access: check that the address, a branch's target, lies in the limit of CS.
    #[must_use]
    pub fn branch_target() -> Self {
        Self::new(1, AccessKind::Read).segment_check(seg::CS).probe()
    }
    /// See [`Self::masked`]: by the opmask of an EVEX instruction, if it has one that suppresses faults.
    #[must_use]
    pub fn masked_as(self, instruction: &Instruction) -> Self {
        match masked_elements(instruction, self.size() as usize) {
            Some((element, count)) => self.masked(instruction.op_mask().number(), element, count),
            None => self,
        }
    }
    /// Not an access: find the page if it is plain RAM, and decline (as for the bounce buffer) if not.
    #[must_use]
    pub fn probe(self) -> Self {
        Self(self.0 | Self::PROBE)
    }
    /// See [`Self::probe`].
    pub fn is_probe(self) -> bool {
        self.0 & Self::PROBE != 0
    }
    /// Bits 0 to `count` - 1 (`count` 1 to 64) of opmask register `opmask` (1 to 7) select elements
    /// of `element` (1, 2, 4 or 8) bytes. When there are more bits than elements the elements are
    /// repeated: a broadcast.
    #[must_use]
    pub fn masked(self, opmask: usize, element: usize, count: usize) -> Self {
        let selection = (opmask as u32 & 7) << Self::OPMASK_SHIFT
            | (element.trailing_zeros() & 3) << Self::ELEMENT_SHIFT
            | ((count as u32 - 1) & 63) << Self::COUNT_SHIFT;
        Self(self.0 | selection)
    }
    /// The check covers more than the access: `HotState::range` holds the bytes below it (bits
    /// 15:0) and above it (31:16), which must lie in the same page of plain RAM.
    #[must_use]
    pub fn leader(self) -> Self {
        Self(self.0 | Self::LEADER)
    }
    /// See [`Self::leader`].
    pub fn is_leader(self) -> bool {
        self.0 & Self::LEADER != 0
    }
    /// Bytes.
    pub fn size(self) -> u64 {
        u64::from(self.0 & 0xff)
    }
    /// The alignment in bytes that #AC wants, where a program has asked for it: that of elements where a mask
    /// selects them, 16 for vectors of whatever size (Intel SDM vol. 3A table 7-7 "Alignment Requirements by Data
    /// Type"; what it leaves open is as AMD's Zen 5 does it).
    pub fn alignment(self) -> u64 {
        if self.0 >> Self::OPMASK_SHIFT & 7 != 0 {
            return 1 << (self.0 >> Self::ELEMENT_SHIFT & 3);
        }
        match self.size() {
            10 => 8,
            // Images of FLDENV and FRSTOR, with 16- and 32-bit words.
            14 | 94 => 2,
            28 | 108 => 4,
            size => size.next_power_of_two().min(16),
        }
    }
    /// Whether it stores.
    pub fn is_write(self) -> bool {
        self.0 & Self::WRITE != 0
    }
    /// See [`Self::stack`].
    pub fn is_stack(self) -> bool {
        self.0 & Self::STACK != 0
    }
    /// See [`Self::stay`].
    pub fn stays(self) -> bool {
        self.0 & Self::STAY != 0
    }
    /// See [`Self::aligned`].
    pub fn is_aligned(self) -> bool {
        self.0 & Self::ALIGNED != 0
    }
    /// See [`Self::math`].
    pub fn is_math(self) -> bool {
        self.0 & Self::MATH != 0
    }
    /// The segment register of a [`Self::segment_check`].
    pub fn checked_segment(self) -> Option<usize> {
        (self.0 & Self::SEGMENT_CHECK != 0).then_some((self.0 >> Self::SEGMENT_SHIFT & 7) as usize)
    }
    /// Which of the bytes are accessed, bit 0 for the first, given the opmask registers.
    pub fn selected(self, opmasks: &[u64; 8]) -> u128 {
        let all = u128::MAX >> (128 - self.size().clamp(1, 128));
        let opmask = (self.0 >> Self::OPMASK_SHIFT & 7) as usize;
        if opmask == 0 {
            return all;
        }
        let element = 1 << (self.0 >> Self::ELEMENT_SHIFT & 3);
        let count = (self.0 >> Self::COUNT_SHIFT & 63) + 1;
        let elements = (self.size() / element).max(1);
        (0..u64::from(count))
            .filter(|bit| opmasks[opmask] >> bit & 1 != 0)
            .fold(0, |selected, bit| selected | ((1 << element) - 1) << (bit % elements * element))
            & all
    }
    /// Whether the bytes' present value matters.
    pub fn loads(self) -> bool {
        !self.is_write() || self.0 & Self::LOAD_TOO != 0
    }
}

/// Emits the access proper, once for each place it may be at. May use RCX and R14, and R15 unless the
/// place is `Direct`; until the access is made only registers that the place does not name. Must not change flags except as the guest instruction does.
pub(super) type Operation = Rc<dyn Fn(&mut Builder, Place) -> Result<(), Unencodable>>;

impl Builder {
    /// Check an access at the linear address in `address` and carry it out. Uses RCX, R14, R15.
    pub(super) fn access(
        &mut self,
        address: Host,
        descriptor: Descriptor,
        operation: Operation,
    ) -> Result<(), Unencodable> {
        if self.has_windows() {
            self.find_window(Host::R15, address);
            return operation(self, Place::Direct(address));
        }
        self.checked_access(address, descriptor, operation)
    }

    /// As [`Self::access`], never through a window.
    pub(super) fn checked_access(
        &mut self,
        address: Host,
        descriptor: Descriptor,
        operation: Operation,
    ) -> Result<(), Unencodable> {
        let (tags, addends) = self.tlb(descriptor.is_write());
        let size = descriptor.size() as i32;
        let beyond = match descriptor.is_stack() && self.has_limited_stack() {
            true => Some(self.stack_limit(address)?),
            false => None,
        };
        self.asm.pext(Host::RCX, address, hot!(tlb_mask));
        self.asm.load_indexed(Host::R15, addends, Host::RCX);
        self.asm.load_indexed(Host::RCX, tags, Host::RCX);
        self.asm.lea(true, Host::RCX, Some(Host::RCX), Some((address, 1)), size - 1);
        self.asm.pext(Host::RCX, Host::RCX, hot!(page_mask));
        let hit = self.asm.jrcxz();
        let miss = self.asm.jump();
        self.asm.bind_short(hit);
        self.asm.forget_held();
        let resume = self.asm.position();
        operation(self, Place::Direct(address))?;
        let done = self.asm.position();
        self.later(move |builder| {
            beyond.into_iter().flatten().for_each(|patch| builder.asm.bind(patch));
            builder.asm.bind(miss);
            builder.slow_access(address, descriptor, resume, done, &operation);
        });
        Ok(())
    }

    /// An access at `[base + offset]` that shares its check with others of the block. 64-bit mode only.
    pub(super) fn shared_access(
        &mut self,
        part: Part,
        base: usize,
        offset: i32,
        descriptor: Descriptor,
        operation: &Operation,
    ) -> Result<(), Unencodable> {
        let address = self.in_host(base);
        if self.has_windows() {
            return self.window_access(Some(part), address, offset, operation);
        }
        match part {
            Part::Follower { slot } => {
                self.asm.load(Host::R15, shared_slot(slot));
                operation(self, Place::Offset(address, offset))
            }
            Part::Leader { slot, before, after } => {
                self.lead(address, offset, descriptor, i32::from(before), i32::from(after), slot);
                operation(self, Place::Offset(Host::R14, i32::from(before)))
            }
        }
    }

    /// Check `before` bytes below to `after` bytes above the access at `[base + offset]`, and keep the
    /// addend in the slot. Leaves R14 at the range's start and R15 = addend.
    fn lead(
        &mut self,
        base: Host,
        offset: i32,
        descriptor: Descriptor,
        before: i32,
        after: i32,
        slot: usize,
    ) {
        let (tags, addends) = self.tlb(descriptor.is_write());
        let size = descriptor.size() as i32;
        self.asm.lea_base(Host::R14, base, offset.wrapping_sub(before));
        self.asm.pext(Host::RCX, Host::R14, hot!(tlb_mask));
        self.asm.load_indexed(Host::R15, addends, Host::RCX);
        self.asm.load_indexed(Host::RCX, tags, Host::RCX);
        self.asm.lea(true, Host::RCX, Some(Host::RCX), Some((Host::R14, 1)), before + size + after - 1);
        self.asm.pext(Host::RCX, Host::RCX, hot!(page_mask));
        let hit = self.asm.jrcxz();
        let miss = self.asm.jump();
        self.asm.bind_short(hit);
        let resume = self.asm.position();
        self.asm.store(shared_slot(slot), Host::R15);
        self.later(move |builder| {
            builder.asm.bind(miss);
            builder.asm.lea_base(Host::R14, Host::R14, before);
            builder.asm.mov_immediate(Host::RCX, u64::from(descriptor.leader().0));
            builder.asm.store_immediate(hot!(range), before | after << 16);
            builder.asm.call_at(hot!(slow_access));
            builder.asm.lea_base(Host::R14, Host::R14, -before);
            let back = builder.asm.jump();
            builder.asm.point(back, resume);
        });
    }

    /// Whether SS has a limit or type that stack accesses must be checked against.
    fn has_limited_stack(&self) -> bool {
        !self.mode.is64() && !self.mode.stack_flat()
    }

    /// As [`Self::segment_limit`] for the linear address of a stack access: the slow path checks it,
    /// unless SS is a plain 4 GiB segment.
    fn stack_limit(&mut self, address: Host) -> Result<[super::assembler::Patch; 2], Unencodable> {
        debug_assert!(address == Host::R14);
        self.segment_limit(seg::SS, None)
    }

    /// Jump to the patches unless segment register `index` is a present, writable, expand-up data
    /// segment that holds the `size` bytes at offset R14 (`None`: that has all of 4 GiB).
    /// Uses RCX and R15, keeps flags.
    fn segment_limit(
        &mut self,
        index: usize,
        size: Option<u64>,
    ) -> Result<[super::assembler::Patch; 2], Unencodable> {
        // In the word of limit, selector and attributes: type bits W, E, code, and P.
        const TYPE_MASK: u64 = 0x008e << 48;
        const WRITABLE_PRESENT: u64 = 0b1001;
        let rest = segment_field(index, offset_of!(SegmentRegister, limit));
        self.asm.load(Host::RCX, rest);
        self.asm.mov_immediate(Host::R15, TYPE_MASK);
        self.three_operands(Code::VEX_Pext_r64_r64_rm64, Register::RCX, Register::RCX, Register::R15)?;
        self.asm.lea_base(Host::RCX, Host::RCX, -(WRITABLE_PRESENT as i32));
        let other_type = self.jump_unless_rcx_zero();
        self.asm.load(Host::RCX, rest);
        self.asm.mov32(Host::RCX, Host::RCX);
        match size {
            Some(size) => self.asm.lea_base(Host::R15, Host::R14, size as i32 - 1),
            None => self.asm.mov_immediate(Host::R15, u64::from(u32::MAX)),
        }
        // limit - last = limit + not last + 1; its sign bit decides. `not r15` keeps flags.
        self.asm.bytes(&[0x49, 0xf7, 0xd7]);
        self.asm.lea(true, Host::RCX, Some(Host::RCX), Some((Host::R15, 1)), 1);
        self.asm.mov_immediate(Host::R15, 63);
        self.three_operands(Code::VEX_Shrx_r64_rm64_r64, Register::RCX, Register::RCX, Register::R15)?;
        Ok([other_type, self.jump_unless_rcx_zero()])
    }

    pub(super) fn three_operands(
        &mut self,
        code: Code,
        to: Register,
        from: Register,
        by: Register,
    ) -> Result<(), Unencodable> {
        let instruction = Instruction::with3(code, to, from, by).map_err(|_| Unencodable)?;
        self.encode(&instruction)
    }

    pub(super) fn jump_unless_rcx_zero(&mut self) -> super::assembler::Patch {
        let zero = self.asm.jrcxz();
        let patch = self.asm.jump();
        self.asm.bind_short(zero);
        patch
    }

    /// Raise the exception of a segment violation unless `access` at offset R14 may be made through
    /// segment register `index`.
    fn check_segment(&mut self, index: usize, access: Descriptor) -> Result<(), Unencodable> {
        let descriptor = access.segment_check(index);
        let violations = self.segment_limit(index, Some(access.size()))?;
        let resume = self.asm.position();
        self.later(move |builder| {
            violations.into_iter().for_each(|patch| builder.asm.bind(patch));
            builder.asm.mov_immediate(Host::RCX, u64::from(descriptor.0));
            builder.asm.call_at(hot!(slow_access));
            let back = builder.asm.jump();
            builder.asm.point(back, resume);
        });
        Ok(())
    }

    fn slow_access(
        &mut self,
        address: Host,
        descriptor: Descriptor,
        resume: usize,
        done: usize,
        operation: &Operation,
    ) {
        if address != Host::R14 {
            self.asm.mov(Host::R14, address);
        }
        self.asm.mov_immediate(Host::RCX, u64::from(descriptor.0));
        self.asm.call_at(hot!(slow_access));
        let back = self.asm.jump();
        self.asm.point(back, resume);
        if !descriptor.is_write() {
            return;
        }
        // The slow path returns here, past the 5-byte jump, when it has to hear of the store: the addend leads to
        // the buffer, or to a page of code.
        if operation(self, Place::Direct(Host::R14)).is_err() {
            // The same operation was encoded once already; only the operand's form differs.
            self.asm.bytes(&[0x0f, 0x0b]);
        }
        let after = self.next;
        self.locate(after);
        self.asm.call_at(hot!(commit));
        let back = self.asm.jump();
        self.asm.point(back, done);
    }

    /// Point the memory operand of `instruction` at `place`.
    pub(super) fn set_place(instruction: &mut Instruction, place: Place) {
        instruction.set_memory_index_scale(1);
        let (base, index) = match place {
            Place::Direct(base) | Place::Offset(base, _) => {
                (super::registers::sized(base, Register::RAX), Register::R15)
            }
            Place::Away(base, _) => (super::registers::sized(base, Register::RAX), Register::R14),
            Place::Known(_) => (Register::R15, Register::None),
            Place::At(base) => (super::registers::sized(base, Register::RAX), Register::None),
            Place::Bounce | Place::Slot(_) => (Register::RSP, Register::None),
        };
        let offset = match place {
            Place::Offset(_, offset) | Place::Away(_, offset) | Place::Known(offset) => offset,
            Place::Bounce => displacement(hot!(bounce)),
            Place::Slot(slot) => displacement(slot),
            Place::Direct(_) | Place::At(_) => 0,
        };
        instruction.set_memory_base(base);
        instruction.set_memory_index(index);
        instruction.set_segment_prefix(Register::None);
        instruction.set_memory_displacement64(i64::from(offset) as u64);
        // 1: as short as can be.
        instruction.set_memory_displ_size(u32::from(offset != 0));
    }

    /// Compute the linear address of the memory operand; returns the register that holds it
    /// (R14, or the guest's base register itself). Uses RCX, R14, R15.
    pub(super) fn linear_address(&mut self, instruction: &Instruction) -> Result<Host, Unencodable> {
        let index = operand_segment(instruction, self.mode.is64());
        // Only the checks of segments ask what the access does.
        let kind = if self.mode.is64() { AccessKind::Read } else { self.memory_access(instruction) };
        if !self.segment_matters(index) {
            if let Some(base) = self.plain_base(instruction) {
                return Ok(base);
            }
        }
        self.effective_address(Host::R14, instruction)?;
        let size = instruction.memory_size().size().clamp(1, BOUNCE_BYTES);
        let mut access = Descriptor::new(size, kind).masked_as(instruction);
        if crate::frontend::waits_for_x87(instruction) {
            access = access.math();
        }
        if needs_alignment(instruction, size) {
            access = access.aligned();
        }
        self.add_segment(index, access)?;
        Ok(Host::R14)
    }

    /// Note in `descriptor` whether the instruction's memory operand lies in the stack segment.
    pub(super) fn through_segment(&self, descriptor: Descriptor, instruction: &Instruction) -> Descriptor {
        match operand_segment(instruction, self.mode.is64()) {
            seg::SS => descriptor.stack(),
            _ => descriptor,
        }
    }

    /// Whether an access through segment register `index` needs a check or has a base.
    fn segment_matters(&self, index: usize) -> bool {
        // A flat code segment still takes no stores, and may not be readable.
        let through_code = index == seg::CS && !self.mode.is64();
        through_code || self.base_offset(index).is_some()
    }

    /// Turn the offset in R14 of `access` into a linear address, with the segment's checks.
    /// Uses RCX and R15.
    pub(super) fn add_segment(&mut self, index: usize, access: Descriptor) -> Result<(), Unencodable> {
        if !self.segment_matters(index) {
            return Ok(());
        }
        if !self.mode.is64() && !self.mode.whole(index) {
            self.check_segment(index, access)?;
        }
        if let Some(offset) = self.base_offset(index) {
            self.asm.load(Host::R15, offset);
            self.asm.lea(self.mode.is64(), Host::R14, Some(Host::R14), Some((Host::R15, 1)), 0);
        }
        Ok(())
    }

    /// Offset of the base of `segment` if it has to be added.
    pub(super) fn segment_base(&self, segment: Register) -> Option<i32> {
        self.base_offset(crate::system::operand::segment_index(segment))
    }

    fn base_offset(&self, index: usize) -> Option<i32> {
        let flat = !matches!(index, seg::FS | seg::GS) && self.mode.flat();
        (!flat).then_some(segment_field(index, offset_of!(SegmentRegister, base)))
    }

    /// The host register that already holds the address, for an operand like `[rax]`.
    fn plain_base(&self, instruction: &Instruction) -> Option<Host> {
        let base = instruction.memory_base();
        let plain = base.is_gpr64()
            && instruction.memory_index() == Register::None
            && instruction.memory_displacement64() == 0;
        if !plain {
            return None;
        }
        match home(number(base)?) {
            Home::Host(host) => Some(host),
            Home::Memory(_) => None,
        }
    }

    /// Compute the operand's offset in its segment into `to`. Uses R14 and R15.
    pub(super) fn effective_address(
        &mut self,
        to: Host,
        instruction: &Instruction,
    ) -> Result<(), Unencodable> {
        self.low_address(to, true, instruction)
    }

    /// As [`Self::effective_address`], of which no more than 32 bits are wanted unless `wide`; the upper half is zero.
    pub(super) fn low_address(
        &mut self,
        to: Host,
        wide: bool,
        instruction: &Instruction,
    ) -> Result<(), Unencodable> {
        let width = address_width(instruction, self.mode.code());
        let wide = wide && width == Width::W64;
        let displacement = instruction.memory_displacement64();
        if let Some(address) = self.known_address(instruction) {
            self.asm.mov_immediate(to, if wide { address } else { u64::from(address as u32) });
            return Ok(());
        }
        let base = self.address_register(Host::R14, instruction.memory_base())?;
        let index = self.address_register(Host::R15, instruction.memory_index())?;
        let index = index.map(|index| (index, instruction.memory_index_scale() as u8));
        if base.is_none() && index.is_none() {
            self.asm.mov_immediate(to, if wide { displacement } else { u64::from(displacement as u32) });
        } else if width == Width::W64 && i32::try_from(displacement as i64).is_err() {
            // RIP-relative: the distance from the page's start may need more than 32 bits.
            self.asm.mov_immediate(Host::R15, displacement);
            self.asm.lea(wide, to, base, Some((Host::R15, 1)), 0);
        } else {
            self.asm.lea(wide, to, base, index, displacement as i32);
        }
        if width == Width::W16 {
            self.asm.movzx16(to, to);
        }
        Ok(())
    }

    /// The offset of an operand that is relative to RIP, where that is known.
    pub(super) fn known_address(&self, instruction: &Instruction) -> Option<u64> {
        let relative = instruction.memory_base() == Register::RIP;
        // Instructions are decoded with the page offset as address.
        self.placed.filter(|_| relative).map(|page| page.wrapping_add(instruction.memory_displacement64()))
    }

    fn address_register(&mut self, scratch: Host, register: Register) -> Result<Option<Host>, Unencodable> {
        if register == Register::None {
            return Ok(None);
        }
        if matches!(register, Register::RIP | Register::EIP) {
            self.load_rip_page(scratch);
            return Ok(Some(scratch));
        }
        match home(number(register).ok_or(Unencodable)?) {
            Home::Host(host) => Ok(Some(host)),
            Home::Memory(slot) => {
                self.asm.load(scratch, slot);
                Ok(Some(scratch))
            }
        }
    }
}

/// Offset of a field of segment register `index` in the state.
pub(super) fn segment_field(index: usize, field: usize) -> i32 {
    (offset_of!(CpuState, segments) + index * std::mem::size_of::<SegmentRegister>() + field) as i32
}

/// Address size of the memory operand.
pub(super) fn address_width(instruction: &Instruction, code: Width) -> Width {
    let by_size = |size: usize| match size {
        2 => Width::W16,
        4 => Width::W32,
        _ => Width::W64,
    };
    match (instruction.memory_base(), instruction.memory_index()) {
        (Register::None, Register::None) => match instruction.memory_displ_size() {
            0 => code,
            size => by_size(size as usize),
        },
        (Register::None, index) => by_size(index.size()),
        (base, _) => by_size(base.size()),
    }
}

/// Offset of a slot that keeps a shared addend.
fn shared_slot(slot: usize) -> i32 {
    hot!(shared) + 8 * slot as i32
}

//! REP MOVS and REP STOS within one page of the source and one of the destination: the host's own
//! instruction, on host addresses. REP MOVSB of no more than a page goes on over their ends (`runtime::pieces`). All
//! else is compiled code's.

use super::access::{AccessKind, Descriptor};
use super::assembler::Patch;
use super::builder::{hot, Unencodable};
use super::registers::GUEST_RCX;
use super::{Builder, Host};
use crate::state::{CpuState, HotState};
use iced_x86::{Code, Instruction, Mnemonic, Register};
use std::mem::offset_of;

/// Guest bytes of a page, as a power of two.
const PAGE_BITS: u8 = 12;
/// `not r15`, which keeps flags.
const NOT_R15: [u8; 3] = [0x49, 0xf7, 0xd7];

/// A page looked for in the software TLB.
struct Lookup {
    pointer: Host,
    kind: AccessKind,
    miss: Patch,
    /// Where to go on with R15 set.
    resume: usize,
}

/// What a repeated MOVS or STOS does.
#[derive(Debug, Clone, Copy)]
pub struct StringShape {
    /// Bytes of an element as a power of two.
    pub shift: u8,
    /// There is a source.
    pub moves: bool,
}

impl StringShape {
    /// `None` for any other instruction.
    pub fn of(instruction: &Instruction) -> Option<Self> {
        use Mnemonic as M;
        let (shift, moves) = match instruction.mnemonic() {
            M::Movsb => (0, true),
            M::Movsw => (1, true),
            M::Movsd => (2, true),
            M::Movsq => (3, true),
            M::Stosb => (0, false),
            M::Stosw => (1, false),
            M::Stosd => (2, false),
            M::Stosq => (3, false),
            _ => return None,
        };
        Some(Self { shift, moves })
    }
}

impl Builder {
    /// Emit a forward REP MOVS or REP STOS with plain pointers (see `frontend`).
    ///
    /// Uses RCX, R14 and R15; flags stay. The elements, at most a page's worth, must lie in one page of
    /// RAM of each operand. The source is looked at first, because its page fault comes first.
    pub(super) fn repeated_string(&mut self, instruction: &Instruction) -> Result<(), Unencodable> {
        let StringShape { shift, moves } = StringShape::of(instruction).ok_or(Unencodable)?;
        self.truncate_pointer(GUEST_RCX);
        self.truncate_pointer(Host::RDI);
        if moves {
            self.truncate_pointer(Host::RSI);
        }
        let long = self.more_than_a_page(shift)?;
        let mut lookups = Vec::new();
        if moves {
            lookups.push(self.find_page(Host::RSI, shift, AccessKind::Read));
            self.asm.store(hot!(temporary), Host::R15);
        }
        lookups.push(self.find_page(Host::RDI, shift, AccessKind::Write));
        self.run_on_host(shift, moves);
        let done = self.asm.position();
        let instruction = *instruction;
        self.later(move |builder| {
            builder.asm.bind(long);
            let mut misfits = vec![builder.unless_nothing_to_do(done)];
            let mut crossings = Vec::new();
            for lookup in lookups {
                let [crosses, misfit] = builder.look_up(&lookup, shift);
                crossings.push(crosses);
                misfits.push(misfit);
            }
            let index = builder.out.system.len();
            builder.out.system.push(instruction);
            if moves && shift == 0 && builder.calls_in_place() {
                std::mem::take(&mut crossings).into_iter().for_each(|patch| builder.asm.bind(patch));
                builder.copy_pieces(index, done);
            }
            misfits.into_iter().chain(crossings).for_each(|patch| builder.asm.bind(patch));
            if !builder.calls_in_place() {
                return builder.numbered_exit(index, false);
            }
            builder.store_number(index, false);
            builder.asm.call_at(hot!(in_place));
            let over = builder.asm.jump();
            builder.asm.point(over, done);
        });
        Ok(())
    }

    /// Copy what lies on two pages piece by piece, and go on at `done`.
    fn copy_pieces(&mut self, index: usize, done: usize) {
        self.store_number(index, false);
        for (register, write) in [(Host::R14, false), (Host::R15, true)] {
            let (tags, _) = self.tlb(write);
            self.asm.mov_immediate(register, tags as u64);
        }
        self.asm.call_at(hot!(copy_pieces));
        let over = self.asm.jump();
        self.asm.point(over, done);
    }

    /// Outside 64-bit code the upper half of a pointer or count means nothing.
    fn truncate_pointer(&mut self, register: Host) {
        if !self.mode.is64() {
            self.asm.mov32(register, register);
        }
    }

    /// The instruction itself, with R15 the addend of the destination's page.
    fn run_on_host(&mut self, shift: u8, moves: bool) {
        self.asm.lea(true, Host::R14, Some(Host::RDI), Some((Host::R15, 1)), 0);
        if moves {
            self.asm.load(Host::R15, hot!(temporary));
            self.asm.lea(true, Host::RSI, Some(Host::RSI), Some((Host::R15, 1)), 0);
        }
        self.exchange_rdi_r14();
        self.asm.mov(Host::RCX, GUEST_RCX);
        self.host_string(shift, moves);
        if moves {
            self.subtract_from_rsi(Host::R15);
            self.truncate_pointer(Host::RSI);
        }
        self.asm.lea(self.mode.is64(), Host::RDI, Some(Host::R14), Some((GUEST_RCX, 1 << shift)), 0);
        self.asm.mov(GUEST_RCX, Host::RCX);
    }

    /// Jump unless the count is from 1 to what a page holds.
    fn more_than_a_page(&mut self, shift: u8) -> Result<Patch, Unencodable> {
        self.asm.lea_base(Host::RCX, GUEST_RCX, -1);
        self.asm.mov_immediate(Host::R15, u64::from(PAGE_BITS - shift));
        self.three_operands(Code::VEX_Shrx_r64_rm64_r64, Register::RCX, Register::RCX, Register::R15)?;
        Ok(self.jump_unless_rcx_zero())
    }

    /// A count of 0 goes on at `done`: kernels end many a copy with the bytes that are left, often none.
    /// Returns the jump of other counts.
    fn unless_nothing_to_do(&mut self, done: usize) -> Patch {
        self.asm.mov(Host::RCX, GUEST_RCX);
        let some = self.jump_unless_rcx_zero();
        let nothing = self.asm.jump();
        self.asm.point(nothing, done);
        some
    }

    /// R15 = host address less guest address of the page of `pointer`, if the TLB has it and all
    /// elements lie there. The last byte's page is compared: the first one's is then the same.
    fn find_page(&mut self, pointer: Host, shift: u8, kind: AccessKind) -> Lookup {
        let (tags, addends) = self.tlb(kind == AccessKind::Write);
        self.asm.pext(Host::RCX, pointer, hot!(tlb_mask));
        self.asm.load_indexed(Host::R15, addends, Host::RCX);
        self.asm.load_indexed(Host::RCX, tags, Host::RCX);
        self.asm.lea(true, Host::RCX, Some(Host::RCX), Some((pointer, 1)), -1);
        self.asm.lea(true, Host::RCX, Some(Host::RCX), Some((GUEST_RCX, 1 << shift)), 0);
        self.asm.pext(Host::RCX, Host::RCX, hot!(page_mask));
        let miss = self.jump_unless_rcx_zero();
        Lookup { pointer, kind, miss, resume: self.asm.position() }
    }

    /// What follows a miss: if all elements lie in one page the slow path finds or faults it.
    /// Returns the jumps of elements on two pages, and to where compiled code takes over.
    fn look_up(&mut self, lookup: &Lookup, shift: u8) -> [Patch; 2] {
        self.asm.bind(lookup.miss);
        self.asm.pext(Host::R15, lookup.pointer, hot!(page_mask));
        self.asm.bytes(&NOT_R15);
        self.asm.lea(true, Host::RCX, Some(lookup.pointer), Some((GUEST_RCX, 1 << shift)), -1);
        self.asm.pext(Host::RCX, Host::RCX, hot!(page_mask));
        self.asm.lea(true, Host::RCX, Some(Host::RCX), Some((Host::R15, 1)), 1);
        let crosses = self.jump_unless_rcx_zero();
        self.asm.mov(Host::R14, lookup.pointer);
        let probe = Descriptor::new(1, lookup.kind).probe();
        self.asm.mov_immediate(Host::RCX, u64::from(probe.0));
        self.asm.call_at(hot!(slow_access));
        let found = self.asm.jump();
        self.asm.point(found, lookup.resume);
        // The slow path returns here, past the 5-byte jump, when it is no plain RAM.
        [crosses, self.asm.jump()]
    }

    fn exchange_rdi_r14(&mut self) {
        self.asm.bytes(&[0x49, 0x87, 0xfe]);
    }

    /// RSI -= `from`, by way of its complement. Changes `from`.
    fn subtract_from_rsi(&mut self, from: Host) {
        debug_assert!(from == Host::R15);
        self.asm.bytes(&NOT_R15);
        self.asm.lea(true, Host::RSI, Some(Host::RSI), Some((from, 1)), 1);
    }

    /// `rep movs` or `rep stos`.
    fn host_string(&mut self, shift: u8, moves: bool) {
        let opcode = if moves { 0xa4 } else { 0xaa };
        match shift {
            0 => self.asm.bytes(&[0xf3, opcode]),
            1 => self.asm.bytes(&[0x66, 0xf3, opcode + 1]),
            2 => self.asm.bytes(&[0xf3, opcode + 1]),
            _ => self.asm.bytes(&[0xf3, 0x48, opcode + 1]),
        }
    }
}

//! A block under construction.

use super::assembler::Patch;
use super::sharing::{Part, Plan, Sharing};
use super::{Assembler, Host};
use crate::cache::{Location, NewLink, Start, Translation};
use crate::frontend::{classify, Kind};
use crate::mode::{Mode, Width};
use crate::optimisations::{Optimisation, Optimisations};
use crate::state::{CpuState, HotState, Side};
use iced_x86::{Encoder, Instruction, InstructionInfoFactory};
use std::mem::offset_of;

/// Most guest instructions in a block.
pub const MAX_INSTRUCTIONS: usize = 64;

/// Offset of a `HotState` field in the state.
macro_rules! hot {
    ($($field:tt)+) => {
        (offset_of!(CpuState, hot) + offset_of!(HotState, $($field)+)) as i32
    };
}
pub(super) use hot;

/// Code that is out of the way of the usual path: emitted after the block's body, and kept away from it.
pub(super) type Cold = Box<dyn FnOnce(&mut Builder)>;

/// Into which segments (bits 63:32 of addresses) a kernel's registers point as a block is translated.
#[derive(Debug, Clone, Copy)]
pub struct Hints {
    registers: [u32; 16],
    usual: u32,
}

impl Default for Hints {
    fn default() -> Self {
        Self { registers: [0; 16], usual: FIRST_KERNEL_SEGMENT }
    }
}

/// Where a kernel's addresses begin: bits 63:32 of the lowest.
pub(super) const FIRST_KERNEL_SEGMENT: u32 = Side::Kernel.first() as u32;

impl Hints {
    /// `gpr`: the general registers; `data`: an address of the kernel's usual data.
    pub fn new(gpr: &[u64; 16], data: u64) -> Self {
        let usual = ((data >> 32) as u32).max(FIRST_KERNEL_SEGMENT);
        Self { registers: gpr.map(|value| (value >> 32) as u32), usual }
    }

    /// Where a register that still holds its value points, or any other.
    pub fn segment(&self, register: Option<usize>) -> u32 {
        let known = register.map(|register| self.registers[register]);
        known.filter(|&segment| segment >= FIRST_KERNEL_SEGMENT).unwrap_or(self.usual)
    }
}

/// Collects the host code of one block.
pub struct Builder {
    pub(super) asm: Assembler,
    pub(super) mode: Mode,
    /// RIP of the page's first byte, if the block holds for this one only.
    pub(super) placed: Option<u64>,
    pub(super) optimisations: Optimisations,
    pub(super) encoder: Encoder,
    pub(super) info: InstructionInfoFactory,
    pub(super) out: Translation,
    pub(super) cold: Vec<Cold>,
    plan: Plan,
    /// What the guest's registers hold where the block is entered for the first time.
    pub(super) hints: Hints,
    /// The segment that the next search for a window expects, if its instruction tells.
    pub(super) expected: Option<u32>,
    /// Page offset of the instruction being translated.
    pub(super) current: i64,
    /// Page offset of the next one.
    pub(super) next: i64,
    /// How the current instruction's access shares a check.
    pub(super) part: Option<Part>,
    /// The block's only instruction straddles two pages: no direct links.
    pub(super) straddles: bool,
    /// Another instruction of the block comes after this one.
    pub(super) followed: bool,
    /// An exit was emitted: nothing follows.
    pub(super) ended: bool,
}

/// An instruction that iced cannot encode as asked; the block ends before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unencodable;

impl Default for Builder {
    fn default() -> Self {
        Self {
            asm: Assembler::default(),
            mode: Mode(0),
            placed: None,
            optimisations: Optimisations::ALL,
            encoder: Encoder::new(64),
            info: InstructionInfoFactory::new(),
            out: Translation::default(),
            cold: Vec::new(),
            plan: Plan::default(),
            hints: Hints::default(),
            expected: None,
            current: 0,
            next: 0,
            part: None,
            straddles: false,
            followed: false,
            ended: false,
        }
    }
}

impl Builder {
    /// Start a block; `straddles` if its one instruction lies on two pages.
    pub fn begin(&mut self, start: Start, straddles: bool, optimisations: Optimisations) {
        self.asm.clear();
        self.out.clear();
        self.cold.clear();
        (self.mode, self.placed) = (start.mode, start.placed());
        (self.straddles, self.optimisations) = (straddles, optimisations);
        (self.current, self.next) = (0, 0);
        self.part = None;
        self.followed = false;
        self.ended = false;
    }

    /// What is known of the registers where the next block begins.
    pub fn expect(&mut self, hints: Hints) {
        self.hints = hints;
    }

    /// Whether a guest register holds what it held at the block's start, but for constants added.
    pub(super) fn is_unchanged(&self, guest: usize) -> bool {
        guest == 4 || self.plan.is_unchanged(usize::from(self.count()), guest)
    }

    /// What was taken back last, for its memory.
    pub fn unused(&mut self) -> Translation {
        std::mem::take(&mut self.out)
    }

    /// Take back what [`Self::finish`] gave, for its memory.
    pub fn reuse(&mut self, translation: Translation) {
        self.out = translation;
    }

    /// Instructions translated so far.
    pub fn count(&self) -> u16 {
        self.out.instructions
    }

    /// Decide which accesses of the block's instructions share a check.
    pub fn plan(&mut self, instructions: &[Instruction]) {
        let mode = self.mode;
        let shares = self.optimisations.has(Optimisation::SharedChecks) && mode.is64();
        // Alignment is each access's own.
        if !shares
            || mode.checks_alignment()
            || self.mode.is_alone()
            || self.mode.single_step()
            || self.straddles
        {
            return self.plan.nothing(instructions.len());
        }
        let sharing = if self.has_windows() { Sharing::Window } else { Sharing::Check };
        self.plan.make(instructions, sharing, &mut self.info);
    }

    /// Translate the next instruction of the plan; `followed` by another of the block, or the last.
    pub fn planned(&mut self, instruction: &Instruction, bytes: &[u8], followed: bool) -> bool {
        self.part = self.plan.part(usize::from(self.count()));
        self.followed = followed;
        let goes_on = self.instruction(instruction, bytes);
        self.part = None;
        goes_on
    }

    /// Translate one instruction, decoded with its page offset as address. Returns whether the
    /// block goes on.
    pub fn instruction(&mut self, instruction: &Instruction, bytes: &[u8]) -> bool {
        self.current = instruction.ip() as i64;
        self.next = self.current + instruction.len() as i64;
        self.locate(self.current);
        let start = self.asm.position();
        let cold = self.cold.len();
        if self.emit(instruction, bytes).is_err() {
            self.asm.truncate(start);
            self.cold.truncate(cold);
            self.exit_system(instruction);
        }
        self.out.instructions += 1;
        self.out.guest_length = self.next as u16;
        !self.ended
    }

    fn emit(&mut self, instruction: &Instruction, bytes: &[u8]) -> Result<(), Unencodable> {
        if self.inline_system(instruction)? {
            self.asm.forget_held();
            return Ok(());
        }
        let kind = classify(instruction, self.mode);
        if !matches!(kind, Kind::Nothing | Kind::Generic | Kind::Special) {
            self.asm.forget_held();
        }
        match kind {
            Kind::Nothing => self.prefetch(instruction),
            Kind::Generic => self.generic(instruction, bytes),
            Kind::Special => self.special(instruction),
            Kind::RepeatedString if self.optimisations.has(Optimisation::RepeatedStrings) => {
                self.repeated_string(instruction)
            }
            Kind::RepeatedString | Kind::System | Kind::Undefined | Kind::DeviceNotAvailable => {
                self.exit_system(instruction);
                Ok(())
            }
        }
    }

    /// Finish: `page_offset` is where the block starts.
    pub fn finish(&mut self, page_offset: i64) -> Translation {
        if !self.ended {
            self.exit_to(self.next);
        }
        if self.straddles {
            self.entry_for_links(page_offset);
        }
        // A dead block's first 8 bytes are replaced: there must be as many.
        while self.asm.position() < 16 {
            self.asm.bytes(&[0x90]);
        }
        if self.optimisations.has(Optimisation::ColdCode) {
            self.asm.begin_cold();
        }
        while !self.cold.is_empty() {
            let mut queued = std::mem::take(&mut self.cold);
            queued.drain(..).for_each(|cold| cold(self));
            if self.cold.is_empty() {
                self.cold = queued;
            }
        }
        self.out.guest_length = self.out.guest_length.wrapping_sub(page_offset as u16);
        let (code, cold, crossings) = self.asm.parts();
        self.out.code.extend_from_slice(code);
        self.out.cold.extend_from_slice(cold);
        self.out.crossings.extend_from_slice(crossings);
        std::mem::take(&mut self.out)
    }

    /// The way into a straddling block for direct links: a link holds as long as the first page's mapping
    /// does, but this block wants that of the second as well. The jump cache forgets it with either.
    fn entry_for_links(&mut self, page_offset: i64) {
        self.out.link_entry = self.asm.position();
        self.target_rip(page_offset);
        self.exit_indirect(Width::W64);
    }

    /// Host code from here on belongs to the guest instruction at `page_offset`.
    pub(super) fn locate(&mut self, page_offset: i64) {
        let host_offset = self.asm.position() as u32;
        let page_offset = page_offset as u16;
        if let Some(last) = self.out.locations.last_mut() {
            if last.host_offset == host_offset {
                last.page_offset = page_offset;
                return;
            }
            if last.page_offset == page_offset {
                return;
            }
        }
        self.out.locations.push(Location { host_offset, page_offset });
    }

    /// Queue code for after the block's body; it keeps the current instruction's location.
    pub(super) fn later(&mut self, cold: impl FnOnce(&mut Self) + 'static) {
        let (current, next) = (self.current, self.next);
        self.cold.push(Box::new(move |builder| {
            builder.current = current;
            builder.next = next;
            builder.locate(current);
            cold(builder);
        }));
    }

    /// Encode a guest instruction that has been rewritten for the host.
    pub(super) fn encode(&mut self, instruction: &Instruction) -> Result<(), Unencodable> {
        match self.encoder.encode(instruction, 0) {
            Ok(_) => {
                let mut bytes = self.encoder.take_buffer();
                self.asm.slice(&bytes);
                bytes.clear();
                self.encoder.set_buffer(bytes);
                Ok(())
            }
            Err(_) => {
                let mut bytes = self.encoder.take_buffer();
                bytes.clear();
                self.encoder.set_buffer(bytes);
                Err(Unencodable)
            }
        }
    }

    /// Leave to have compiled code carry out `instruction`; ends the block.
    pub(super) fn exit_system(&mut self, instruction: &Instruction) {
        let index = self.out.system.len();
        self.out.system.push(*instruction);
        self.numbered_exit(index, false);
        self.ended = true;
    }

    /// Leave with a number, see [`Self::store_number`].
    pub(super) fn numbered_exit(&mut self, index: usize, is_link: bool) {
        self.store_number(index, is_link);
        self.asm.jump_at(if is_link { hot!(exit_link) } else { hot!(exit_system) });
    }

    /// `mov qword [exit_argument], number`: of a link, or of an instruction for compiled code.
    pub(super) fn store_number(&mut self, index: usize, is_link: bool) {
        self.asm.store_immediate(hot!(exit_argument), 0);
        self.out.numbers.push((self.asm.position() - 4, index, is_link));
    }

    /// A direct branch whose displacement `patch` is linked on first use to page offset `target`.
    pub(super) fn link(&mut self, patch: Patch, target: i64) {
        let index = self.out.links.len();
        self.out.links.push(NewLink { patch: patch.0, unlinked: 0, delta: target, guard: None });
        self.later(move |builder| {
            let stub = builder.asm.position();
            builder.asm.point(patch, stub);
            builder.out.links[index].unlinked = stub;
            builder.numbered_exit(index, true);
        });
    }

    /// `to` = RIP of the page's first byte.
    pub(super) fn load_rip_page(&mut self, to: Host) {
        match self.placed {
            Some(rip_page) => self.asm.mov_immediate(to, rip_page),
            None => self.asm.load(to, hot!(rip_page)),
        }
    }

    /// `to` = RIP at a page offset.
    pub(super) fn load_rip(&mut self, to: Host, offset: i32) {
        if let Some(rip_page) = self.placed {
            return self.asm.mov_immediate(to, rip_page.wrapping_add_signed(offset.into()));
        }
        self.asm.load(to, hot!(rip_page));
        self.asm.lea_base(to, to, offset);
    }

    /// Address of the software TLB's arrays: (tags, addends).
    pub(super) fn tlb(&self, write: bool) -> (i32, i32) {
        use crate::state::Tlb;
        let size = std::mem::size_of::<Tlb>() as i32;
        let base = if write { hot!(write_tlb) } else { hot!(read_tlb) };
        let at = base + size * self.mode.mmu_index() as i32;
        (at + offset_of!(Tlb, tag) as i32, at + offset_of!(Tlb, addend) as i32)
    }

    /// Load a guest register (64 bits) into a host register.
    pub(super) fn read_guest(&mut self, to: Host, number: usize) {
        match super::registers::home(number) {
            super::registers::Home::Host(from) if from == to => {}
            super::registers::Home::Host(from) => self.asm.mov(to, from),
            super::registers::Home::Memory(slot) => self.asm.load(to, slot),
        }
    }

    /// Store a host register (64 bits) into a guest register.
    pub(super) fn write_guest(&mut self, number: usize, from: Host) {
        match super::registers::home(number) {
            super::registers::Home::Host(to) if from == to => {}
            super::registers::Home::Host(to) => self.asm.mov(to, from),
            super::registers::Home::Memory(slot) => self.asm.store(slot, from),
        }
    }
}

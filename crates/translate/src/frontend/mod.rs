//! From guest bytes to a block: decoding, and where a block ends.

mod classify;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod cost;

pub use classify::{classify, waits_for_x87, Kind};

use crate::cache::{Finished, Start, Translation};
use crate::emit::{Builder, Hints, MAX_INSTRUCTIONS};
use crate::mode::Mode;
use crate::optimisations::{Optimisation, Optimisations};
use iced_x86::{Decoder, DecoderError, DecoderOptions, FlowControl, Instruction, OpKind};

/// Longest instruction, in bytes.
pub const MAX_INSTRUCTION_BYTES: usize = 15;

/// Most turns of a loop in one block.
const MAX_TURNS: usize = 8;
const PAGE_BYTES: u64 = 4096;

/// What decoding at an address gave.
pub enum Fetched {
    /// A block.
    Block(Translation),
    /// The first instruction continues on the next page: fetch that too.
    NeedsNextPage,
}

/// Translates one block after another, in memory that it keeps.
#[derive(Default)]
pub struct Translator {
    builder: Builder,
    /// Those of the block.
    instructions: Vec<Instruction>,
}

// SAFETY: what is not `Send` is the queue of code to emit at a block's end, whose closures share operations by `Rc`.
// All owners of one are in that queue, or on the stack of `translate`: they go to another thread together.
unsafe impl Send for Translator {}

impl Translator {
    /// Translate the code at `start`, given its page's bytes.
    ///
    /// `next_page` holds the first bytes of the following page when the first instruction is known to
    /// straddle the two.
    pub fn translate(
        &mut self,
        start: Start,
        page: &[u8],
        next_page: Option<&[u8]>,
        optimisations: Optimisations,
    ) -> Fetched {
        match next_page {
            Some(next) => self.straddling(start, page, next, optimisations),
            None => self.within_page(start, page, optimisations),
        }
    }

    /// A copy of what another translator made.
    pub fn copy_of(&mut self, finished: &Finished) -> Translation {
        let mut copy = self.builder.unused();
        finished.copy_to(&mut copy);
        copy
    }

    /// Take back a translation that is no longer needed, for its memory.
    pub fn reuse(&mut self, translation: Translation) {
        self.builder.reuse(translation);
    }

    /// What the next blocks' registers hold as they are translated.
    pub fn expect(&mut self, hints: Hints) {
        self.builder.expect(hints);
    }

    fn within_page(&mut self, start: Start, page: &[u8], optimisations: Optimisations) -> Fetched {
        let page_offset = start.page_offset();
        let bytes = &page[page_offset..];
        if !decode_block(start.mode, bytes, page_offset, &mut self.instructions) {
            return Fetched::NeedsNextPage;
        }
        if start.mode.windowed() && optimisations.has(Optimisation::UnrolledLoops) {
            unroll(&mut self.instructions, page_offset);
        }
        let (builder, instructions) = (&mut self.builder, &self.instructions);
        builder.begin(start, false, optimisations);
        builder.plan(instructions);
        for instruction in instructions {
            let at = (instruction.ip() as usize) - page_offset;
            let followed = usize::from(builder.count()) + 1 < instructions.len();
            if !builder.planned(instruction, &bytes[at..at + instruction.len()], followed) {
                break;
            }
        }
        Fetched::Block(builder.finish(page_offset as i64))
    }

    fn straddling(
        &mut self,
        start: Start,
        page: &[u8],
        next: &[u8],
        optimisations: Optimisations,
    ) -> Fetched {
        let page_offset = start.page_offset();
        let mut bytes = page[page_offset..].to_vec();
        bytes.extend_from_slice(&next[..MAX_INSTRUCTION_BYTES.min(next.len())]);
        let mut decoder = decoder(start.mode, &bytes, page_offset);
        let instruction = decode_next(&mut decoder, &bytes);
        self.builder.begin(start, true, optimisations);
        self.builder.instruction(&instruction, &bytes[..decoder.position()]);
        Fetched::Block(self.builder.finish(page_offset as i64))
    }
}

/// What guests' code is decoded with: guests see the host's vendor. In 64-bit code AMD's processors heed 66h
/// before near branches, and LOCK MOV CR0 is CR8 (APM vol. 3 "JMP (Near)", "MOV CRn").
pub fn decoder_options() -> u32 {
    match classify::host_is_amd() {
        true => DecoderOptions::AMD,
        false => DecoderOptions::NONE,
    }
}

/// Decode the next instruction of `bytes`, which `decoder` was made of.
///
/// Deviation: AMD's processors ignore REX.W before far branches and loads of far pointers; all guests get the
/// 64-bit offsets of Intel's, as they do from QEMU and KVM's emulator, which kvm-unit-tests asks for.
fn decode_next(decoder: &mut Decoder<'_>, bytes: &[u8]) -> Instruction {
    use iced_x86::Code::{Call_m1632, Jmp_m1632, Lfs_r32_m1632, Lgs_r32_m1632, Lss_r32_m1632};
    let start = decoder.position();
    let instruction = decoder.decode();
    let far = [Jmp_m1632, Call_m1632, Lss_r32_m1632, Lfs_r32_m1632, Lgs_r32_m1632];
    if decoder.bitness() != 64 || !far.contains(&instruction.code()) {
        return instruction;
    }
    Decoder::with_ip(64, &bytes[start..], instruction.ip(), DecoderOptions::NONE).decode()
}

fn decoder(mode: Mode, bytes: &[u8], page_offset: usize) -> Decoder<'_> {
    // The address is the page offset: everything RIP-relative comes out relative to the page.
    Decoder::with_ip(mode.code().bits(), bytes, page_offset as u64, decoder_options())
}

/// Decode the instructions up to the first that ends a block; false if the first leaves the page.
fn decode_block(mode: Mode, bytes: &[u8], page_offset: usize, instructions: &mut Vec<Instruction>) -> bool {
    let mut decoder = decoder(mode, bytes, page_offset);
    let limit = if mode.single_step() || mode.is_alone() { 1 } else { MAX_INSTRUCTIONS };
    instructions.clear();
    while instructions.len() < limit && decoder.can_decode() {
        let instruction = decode_next(&mut decoder, bytes);
        if decoder.last_error() == DecoderError::NoMoreBytes {
            return !instructions.is_empty();
        }
        instructions.push(instruction);
        if ends_block(&instruction) {
            break;
        }
    }
    true
}

/// Repeat the instructions of a block that branches back to its own start, so that one look at what waits, and one
/// search for a window, serve several turns of the loop. All copies but the last leave where the branch is not taken.
fn unroll(instructions: &mut Vec<Instruction>, page_offset: usize) {
    let Some(last) = instructions.last() else { return };
    let back = last.is_jcc_short_or_near() && last.op0_kind() == OpKind::NearBranch64;
    if !back || last.near_branch_target() != page_offset as u64 || last.next_ip() >= PAGE_BYTES {
        return;
    }
    let (count, turns) = (instructions.len(), MAX_INSTRUCTIONS / instructions.len());
    for _ in 1..turns.min(MAX_TURNS) {
        instructions.extend_from_within(..count);
    }
}

/// Whether nothing after the instruction can belong to its block.
fn ends_block(instruction: &Instruction) -> bool {
    instruction.is_invalid()
        || !matches!(
            instruction.flow_control(),
            FlowControl::Next | FlowControl::Interrupt | FlowControl::Exception
        )
}

#[cfg(test)]
mod tests {
    use super::{decode_next, decoder_options, Decoder};
    use iced_x86::Code;

    fn decoded(bytes: &[u8]) -> Code {
        decode_next(&mut Decoder::new(64, bytes, decoder_options()), bytes).code()
    }

    #[test]
    fn far_pointers_have_64_bits_whoever_made_the_processor() {
        assert_eq!(decoded(&[0x48, 0xff, 0x2b]), Code::Jmp_m1664);
        assert_eq!(decoded(&[0xff, 0x2b]), Code::Jmp_m1632);
        assert_eq!(decoded(&[0x48, 0x0f, 0xb5, 0x03]), Code::Lgs_r64_m1664);
    }
}

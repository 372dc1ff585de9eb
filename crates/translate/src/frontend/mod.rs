//! From guest bytes to a block: decoding, and where a block ends.

mod classify;

pub use classify::{classify, waits_for_x87, Kind};

use crate::cache::Translation;
use crate::emit::{Builder, MAX_INSTRUCTIONS};
use crate::mode::Mode;
use crate::optimisations::Optimisations;
use iced_x86::{Decoder, DecoderError, DecoderOptions, FlowControl, Instruction};

/// Longest instruction, in bytes.
pub const MAX_INSTRUCTION_BYTES: usize = 15;

/// What decoding at an address gave.
pub enum Fetched {
    /// A block.
    Block(Translation),
    /// The first instruction continues on the next page: fetch that too.
    NeedsNextPage,
}

/// Translate the code at `page_offset` of a page, given the page's bytes.
///
/// `next_page` holds the first bytes of the following page when the first instruction is known to
/// straddle the two.
pub fn translate(
    mode: Mode,
    page: &[u8],
    page_offset: usize,
    next_page: Option<&[u8]>,
    optimisations: Optimisations,
) -> Fetched {
    match next_page {
        Some(next) => straddling(mode, page, page_offset, next, optimisations),
        None => within_page(mode, page, page_offset, optimisations),
    }
}

fn decoder(mode: Mode, bytes: &[u8], page_offset: usize) -> Decoder<'_> {
    // The address is the page offset: everything RIP-relative comes out relative to the page.
    Decoder::with_ip(mode.code().bits(), bytes, page_offset as u64, DecoderOptions::NONE)
}

fn within_page(mode: Mode, page: &[u8], page_offset: usize, optimisations: Optimisations) -> Fetched {
    let bytes = &page[page_offset..];
    let Some(instructions) = decode_block(mode, bytes, page_offset) else { return Fetched::NeedsNextPage };
    let mut builder = Builder::new(mode, false, optimisations);
    let parts = builder.plan(&instructions);
    for (instruction, part) in instructions.iter().zip(parts) {
        let start = (instruction.ip() as usize) - page_offset;
        let followed = usize::from(builder.count()) + 1 < instructions.len();
        if !builder.planned(instruction, &bytes[start..start + instruction.len()], part, followed) {
            break;
        }
    }
    Fetched::Block(builder.finish(page_offset as i64))
}

/// The instructions up to the first that ends a block; `None` if the first leaves the page.
fn decode_block(mode: Mode, bytes: &[u8], page_offset: usize) -> Option<Vec<Instruction>> {
    let mut decoder = decoder(mode, bytes, page_offset);
    let limit = if mode.single_step() || mode.is_alone() { 1 } else { MAX_INSTRUCTIONS };
    let mut instructions = Vec::with_capacity(16);
    while instructions.len() < limit && decoder.can_decode() {
        let instruction = decoder.decode();
        if decoder.last_error() == DecoderError::NoMoreBytes {
            return (!instructions.is_empty()).then_some(instructions);
        }
        instructions.push(instruction);
        if ends_block(&instruction) {
            break;
        }
    }
    Some(instructions)
}

/// Whether nothing after the instruction can belong to its block.
fn ends_block(instruction: &Instruction) -> bool {
    instruction.is_invalid()
        || !matches!(
            instruction.flow_control(),
            FlowControl::Next | FlowControl::Interrupt | FlowControl::Exception
        )
}

fn straddling(
    mode: Mode,
    page: &[u8],
    page_offset: usize,
    next: &[u8],
    optimisations: Optimisations,
) -> Fetched {
    let mut bytes = page[page_offset..].to_vec();
    bytes.extend_from_slice(&next[..MAX_INSTRUCTION_BYTES.min(next.len())]);
    let mut decoder = decoder(mode, &bytes, page_offset);
    let instruction = decoder.decode();
    let mut builder = Builder::new(mode, true, optimisations);
    builder.instruction(&instruction, &bytes[..decoder.position()]);
    Fetched::Block(builder.finish(page_offset as i64))
}

//! From guest bytes to a block: decoding, and where a block ends.

mod classify;

pub use classify::{classify, waits_for_x87, Kind};

use crate::cache::Translation;
use crate::emit::{Builder, MAX_INSTRUCTIONS};
use crate::mode::Mode;
use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction};

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
pub fn translate(mode: Mode, page: &[u8], page_offset: usize, next_page: Option<&[u8]>) -> Fetched {
    match next_page {
        Some(next) => straddling(mode, page, page_offset, next),
        None => within_page(mode, page, page_offset),
    }
}

fn decoder(mode: Mode, bytes: &[u8], page_offset: usize) -> Decoder<'_> {
    // The address is the page offset: everything RIP-relative comes out relative to the page.
    Decoder::with_ip(mode.code().bits(), bytes, page_offset as u64, DecoderOptions::NONE)
}

fn within_page(mode: Mode, page: &[u8], page_offset: usize) -> Fetched {
    let bytes = &page[page_offset..];
    let mut decoder = decoder(mode, bytes, page_offset);
    let mut builder = Builder::new(mode, false);
    let mut instruction = Instruction::default();
    let limit = if mode.single_step() { 1 } else { MAX_INSTRUCTIONS };
    for count in 0..limit {
        let start = decoder.position();
        if !decoder.can_decode() {
            break;
        }
        decoder.decode_out(&mut instruction);
        if decoder.last_error() == DecoderError::NoMoreBytes {
            if count == 0 {
                return Fetched::NeedsNextPage;
            }
            break;
        }
        if !builder.instruction(&instruction, &bytes[start..decoder.position()]) {
            break;
        }
    }
    Fetched::Block(builder.finish(page_offset as i64))
}

fn straddling(mode: Mode, page: &[u8], page_offset: usize, next: &[u8]) -> Fetched {
    let mut bytes = page[page_offset..].to_vec();
    bytes.extend_from_slice(&next[..MAX_INSTRUCTION_BYTES.min(next.len())]);
    let mut decoder = decoder(mode, &bytes, page_offset);
    let instruction = decoder.decode();
    let mut builder = Builder::new(mode, true);
    builder.instruction(&instruction, &bytes[..decoder.position()]);
    Fetched::Block(builder.finish(page_offset as i64))
}

//! What it costs to translate a program's code, for a profiler: counts, not times.
//!
//! `SUBLET_CODE=/bin/bash valgrind --tool=callgrind TEST-PROGRAM --ignored a_programs_code`

use super::{Fetched, Translator, MAX_INSTRUCTION_BYTES};
use crate::cache::{CodeCache, CodeMemory, Start};
use crate::mode::Mode;
use crate::optimisations::Optimisations;

/// 64-bit code at privilege 3 with every unit enabled.
const USER_64: Mode = Mode(2 | 2 << 2 | 3 << 4 | 1 << 6 | 7 << 12 | 1 << 17 | 1 << 19);
const PAGE: usize = 4096;
/// Where most programs have code.
const PAGES: std::ops::Range<usize> = 64..192;

#[test]
#[ignore = "a measurement, for a profiler"]
fn a_programs_code() {
    let program = std::env::var_os("SUBLET_CODE").unwrap_or_else(|| "/bin/bash".into());
    let bytes = std::fs::read(program).unwrap_or_default();
    let mut cache = CodeCache::new(CodeMemory::new(64 << 20).unwrap(), &[0xcc; 16]);
    let mut translator = Translator::default();
    let started = std::time::Instant::now();
    for number in PAGES {
        let Some(page) = bytes.get(number * PAGE..(number + 1) * PAGE) else { break };
        let mut offset = 0;
        while offset < PAGE - MAX_INSTRUCTION_BYTES {
            let start = Start::anywhere((number * PAGE + offset) as u64, USER_64);
            let fetched = translator.translate(start, page, None, Optimisations::ALL);
            let Fetched::Block(mut translation) = fetched else { break };
            let length = usize::from(translation.guest_length);
            cache.insert(start, None, &mut translation);
            translator.reuse(translation);
            offset += length;
        }
    }
    let made = cache.statistics;
    let nanoseconds = started.elapsed().as_nanos() as u64 / made.blocks.max(1);
    println!("{} blocks, {} instructions, {nanoseconds} ns a block", made.blocks, made.instructions);
}

//! Which case an index stands for.

use crate::case::Case;
use crate::features::Features;
use crate::rng::Rng;
use crate::sequence::{self, Pool};
use crate::{legacy, single, skip};
use iced_x86::Code;

/// What the environment asks for.
#[derive(Debug, Clone)]
pub struct Options {
    /// Cases to run.
    pub cases: u64,
    /// First index.
    pub first: u64,
    /// Seed of the run.
    pub seed: u64,
    /// Only single instructions whose encoding's name contains this (any case).
    pub filter: Option<String>,
    /// Only cases in segments of a local descriptor table.
    pub only_segments: bool,
}

/// All cases of a run: index to case, for ever the same for a seed on a given processor.
pub struct Plan {
    options: Options,
    codes: Vec<Code>,
    intricate: Vec<Code>,
    compat_codes: Vec<Code>,
    pool: Pool,
    compat_pool: Pool,
    features: Features,
    segments: bool,
}

impl Plan {
    /// Choose the encodings that this host can run.
    pub fn new(options: Options, features: &Features, compat: bool, segments: bool) -> Self {
        let wanted = |code: &Code| match &options.filter {
            Some(filter) => format!("{code:?}").to_lowercase().contains(&filter.to_lowercase()),
            None => true,
        };
        let runnable = |bits| move |code: &Code| skip::reason(*code, bits, features).is_none();
        let all: Vec<Code> = Code::values().filter(runnable(64)).collect();
        let all_compat: Vec<Code> = Code::values().filter(|code| compat && runnable(32)(code)).collect();
        let compat_codes = all_compat.iter().copied().filter(wanted).collect();
        let codes: Vec<Code> = all.iter().copied().filter(wanted).collect();
        let intricate = codes.iter().copied().filter(|code| single::is_intricate(*code)).collect();
        Self {
            codes,
            intricate,
            compat_codes,
            pool: Pool::new(&all),
            compat_pool: Pool::new(&all_compat),
            features: features.clone(),
            segments,
            options,
        }
    }

    /// The run's options.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Encodings run as single instructions, in 64-bit and in compatibility mode.
    pub fn encodings(&self) -> (usize, usize) {
        (self.codes.len(), self.compat_codes.len())
    }

    /// The case of `index`: of ten, six go round all single instructions, one round the intricate
    /// ones (strings, stack, gathers), one is a sequence, one is 32-bit code, one runs in segments of a
    /// local table. `None` when the random choices could not be encoded.
    pub fn case(&self, index: u64) -> Option<Case> {
        let mut rng = Rng::new(self.options.seed, index);
        let (round, turn) = (index / 10, index % 10);
        if self.options.only_segments || (turn == 8 && self.segments) {
            return legacy::generate(&self.features, self.options.filter.as_deref(), &mut rng);
        }
        match turn {
            9 if round % 4 == 3 && self.options.filter.is_none() && !self.compat_codes.is_empty() => {
                sequence::generate(&self.compat_pool, 32, &mut rng)
            }
            9 => nth(&self.compat_codes, round, 32, &mut rng),
            7 | 8 if self.options.filter.is_none() => sequence::generate(&self.pool, 64, &mut rng),
            6 if !self.intricate.is_empty() => nth(&self.intricate, round, 64, &mut rng),
            _ => nth(&self.codes, round * 6 + turn.min(5), 64, &mut rng),
        }
    }
}

fn nth(codes: &[Code], number: u64, bits: u32, rng: &mut Rng) -> Option<Case> {
    let count = codes.len() as u64;
    let code = codes.get((number % count.max(1)) as usize)?;
    single::generate(*code, number / count, bits, rng)
}

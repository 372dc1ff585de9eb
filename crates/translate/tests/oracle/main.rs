//! Instruction tests: the real processor is the oracle.
//!
//! Generated cases run natively and translated, and the outcomes must agree in every register,
//! flag, byte of memory and fault. See `docs/theory/testing.md`. The environment chooses:
//!
//! * `SUBLET_ORACLE_CASES`, `SUBLET_ORACLE_SEED`, `SUBLET_ORACLE_FILTER` (part of an encoding's name)
//! * `SUBLET_ORACLE_SEGMENTS`: only code in 16- and 32-bit segments of a local descriptor table
//! * `SUBLET_ORACLE_CASE`: one index, printed in full
//! * `SUBLET_ORACLE_TARGET`: `translate`, or `native` to hold the oracle against itself
//! * `SUBLET_FUZZ_SECONDS`: instead, feed random bytes to the translator for that long

mod case;
mod compare;
mod engine;
mod features;
mod fuzz;
mod inputs;
mod legacy;
mod machine;
mod native;
mod plan;
mod report;
mod rng;
mod segments;
mod sequence;
mod single;
mod skip;
mod translated;
mod worker;
mod xstate;

use plan::Options;
use std::process::ExitCode;

/// Cases of a run that the environment does not size.
const DEFAULT_CASES: u64 = 60_000;
/// Seed of a run that the environment does not seed.
const DEFAULT_SEED: u64 = 0x5eed;

fn main() -> ExitCode {
    if std::env::args().any(|argument| argument == "--list") {
        println!("instructions: test");
        return ExitCode::SUCCESS;
    }
    let result = match number("SUBLET_FUZZ_SECONDS") {
        Some(seconds) => fuzz::run(seconds, number("SUBLET_ORACLE_SEED").unwrap_or(DEFAULT_SEED)),
        None => worker::supervise(options(), &target_name()),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(text) => {
            println!("error: {text}");
            ExitCode::FAILURE
        }
    }
}

fn target_name() -> String {
    std::env::var("SUBLET_ORACLE_TARGET").unwrap_or_else(|_| "translate".to_owned())
}

fn options() -> Options {
    let one = number("SUBLET_ORACLE_CASE");
    Options {
        cases: if one.is_some() { 1 } else { number("SUBLET_ORACLE_CASES").unwrap_or(DEFAULT_CASES) },
        first: one.unwrap_or(0),
        seed: number("SUBLET_ORACLE_SEED").unwrap_or(DEFAULT_SEED),
        only_segments: std::env::var_os("SUBLET_ORACLE_SEGMENTS").is_some(),
        filter: std::env::var("SUBLET_ORACLE_FILTER").ok(),
    }
}

/// A number from the environment, decimal or with `0x`.
fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

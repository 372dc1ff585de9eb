//! Running a vCPU: in and out of the code cache, the run loop, the engine contract.

pub mod access;
mod blocks;
mod coherence;
pub mod entry;
mod events;
mod exclusive;
mod exits;
mod in_place;
mod kernel_windows;
mod math_error;
mod pieces;
mod profile;
mod requests;
mod shared;
mod signals;
mod spin;
mod strings;
mod tally;
mod vcpu;
mod vectors;
mod vm;
mod windows;
mod xsave;

pub use vm::TranslateEngine;

//! Running a vCPU: in and out of the code cache, the run loop, the engine contract.

pub mod access;
pub mod entry;
mod shared;
mod signals;
mod vcpu;
mod vm;

pub use vm::TranslateEngine;

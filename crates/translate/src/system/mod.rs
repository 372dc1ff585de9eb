//! System instructions and events.

pub mod control;
pub mod cpuid;
pub mod debug;
pub mod descriptor;
pub mod execute;
#[cfg(test)]
pub(crate) mod fixture;
pub mod flags;
pub(crate) mod frame;
pub mod interrupt;
pub mod io;
pub mod known;
pub mod legacy;
pub mod memory;
pub mod msr;
pub mod operand;
pub mod segment;
pub mod smm;
pub mod string;
pub(crate) mod task;
pub mod time;
pub mod transfer;
pub mod vector;
pub mod xstate;

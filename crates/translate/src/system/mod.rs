//! System instructions and events.

pub(crate) mod frame;
pub mod interrupt;
pub mod memory;
pub mod segment;
pub(crate) mod task;
pub mod transfer;

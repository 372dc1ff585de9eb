//! Emission of host code: a block under construction, and what each kind of instruction becomes.

mod access;
mod assembler;
mod branch;
mod builder;
mod entry;
mod flags;
mod generic;
mod interrupt_return;
mod masked;
mod registers;
mod repeat;
mod returns;
mod segments;
mod sharing;
mod slots;
mod special;
mod system;
mod window;

pub use access::Descriptor;
pub use assembler::{Assembler, Host};
pub use builder::{Builder, Hints, MAX_INSTRUCTIONS};
pub use repeat::StringShape;
pub use system::FREE_FLAGS;

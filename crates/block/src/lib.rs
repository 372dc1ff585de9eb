//! Disk images: what of their work is done without the interpreter.
//!
//! The formats are Python (`src/sublet/block`). Here is what they do for each request or each byte: no
//! format is opened, created or repaired here, and no metadata is written.

pub mod copy;
mod data_map;
pub mod file;
mod zeroes;

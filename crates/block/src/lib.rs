//! Disk images: what of their work is done without the interpreter.
//!
//! The formats are Python (`src/sublet/block`). Here is what they do for each request or each byte: no
//! format is opened, created or repaired here, and no metadata is written.
//!
//! A request that the host can carry out where the bytes lie goes from the queue in the guest's memory
//! ([`virtio`]) to the place in the file ([`in_place`]) and the guest's pages ([`dma`]). The format keeps
//! the tables, and a [`gate`] keeps requests out while it changes what they must not see.

pub mod copy;
mod data_map;
pub mod dma;
pub mod file;
pub mod gate;
pub mod in_place;
pub mod pieces;
mod source;
pub mod table;
pub mod virtio;
pub mod xts;
mod zeroes;

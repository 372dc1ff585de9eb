//! Guest memory: RAM blocks, memslots, the dirty log, and pages that hold translated code.
//!
//! Everything that reads or writes guest memory goes through [`GuestMemory`],
//! which checks bounds, marks dirty pages and reports stores to pages that hold
//! translated code. `unsafe` is confined to `ram.rs` (the mapping) and the
//! accessors that dereference it.

mod guest;
mod memslot;
mod ram;

pub use guest::{CodeWatcher, FilePart, GuestMemory, HostPage, MemoryError, MemoryView};
pub use memslot::{Memslot, NewMemslot};
pub use ram::{CodeMark, RamBlock};

/// Bytes of a small page.
pub const PAGE_SIZE: u64 = 4096;

/// Set in the address of memory that only processors in system-management mode see: no physical address
/// has this bit. A slot at `SMM_SPACE | gpa` answers at `gpa` in that mode (see [`GuestMemory::wired_in_smm`]),
/// in place of what all others find there.
pub const SMM_SPACE: u64 = 1 << 52;

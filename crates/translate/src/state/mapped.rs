//! Memory for a vCPU's state that takes what is used of it.
//!
//! Most of the 14 MiB are TLBs and jump caches whose untouched pages read as zero, which is what they hold when
//! they are empty. The allocator would write zeros to all of them, for want of another way to align the state.

use crate::state::CpuState;
use std::alloc::{handle_alloc_error, Layout};
use std::ops::{Deref, DerefMut};
use std::ptr::{null_mut, NonNull};

const SIZE: usize = std::mem::size_of::<CpuState>();

/// A `CpuState` in pages of its own.
#[derive(Debug)]
pub struct MappedState(NonNull<CpuState>);

// SAFETY: it owns the state as a box would, and the state is made of integers.
unsafe impl Send for MappedState {}
// SAFETY: as above; shared references give what the state itself gives.
unsafe impl Sync for MappedState {}

impl MappedState {
    /// All fields zero: not a state that a processor is ever in.
    pub fn zeroed() -> Self {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping touches no other; the result is checked.
        let pages = unsafe { libc::mmap(null_mut(), SIZE, access, kind, -1, 0) };
        match NonNull::new(pages.cast()) {
            Some(state) if pages != libc::MAP_FAILED => Self(state),
            _ => handle_alloc_error(Layout::new::<CpuState>()),
        }
    }
}

impl Drop for MappedState {
    fn drop(&mut self) {
        // SAFETY: the pages were mapped by `zeroed`, and nothing refers to them any more.
        unsafe { libc::munmap(self.0.as_ptr().cast(), SIZE) };
    }
}

impl Deref for MappedState {
    type Target = CpuState;

    fn deref(&self) -> &CpuState {
        // SAFETY: the pages live as long as `self` and are aligned; the state is made of integers (atomic ones too)
        // and arrays of them, for which all bytes are a value.
        unsafe { self.0.as_ref() }
    }
}

impl DerefMut for MappedState {
    fn deref_mut(&mut self) -> &mut CpuState {
        // SAFETY: as in `deref`, and `self` is borrowed for writing.
        unsafe { self.0.as_mut() }
    }
}

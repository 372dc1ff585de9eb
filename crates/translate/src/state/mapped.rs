//! Memory for a vCPU's state that takes what is used of it, with a stack before it and the table of segments at a fixed
//! distance behind.
//!
//! Most of the state's 14 MiB are TLBs and jump caches whose untouched pages read as zero, which is what they hold when
//! they are empty. The allocator would write zeros to all of them, for want of another way to align the state.

use crate::state::CpuState;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

const PAGE: usize = 4096;
/// Bytes of the stack on which translated code and what it calls runs.
const STACK_BYTES: usize = 256 << 10;
/// What comes before the state: the stack, and what it must not grow into.
const BEFORE: usize = STACK_BYTES + (64 << 10);
/// Log2 of the bytes of a segment of the linear address space.
pub const SEGMENT_BITS: u32 = 32;
/// Segments that user addresses lie in (4-level paging: 47 bits).
pub const USER_SEGMENTS: usize = 1 << (47 - SEGMENT_BITS);
/// Distance from the state to the table of segments, see [`MappedState::segments`].
pub const SEGMENT_TABLE: usize = std::mem::size_of::<CpuState>().next_multiple_of(PAGE);
/// Bytes of address space of an entry for each value that bits 63:32 of an address can have.
const TABLE_BYTES: usize = 8 << (64 - SEGMENT_BITS);

/// Bytes of address space on either side of the end of the kernel's table: bits 63:32 of an address are a signed index.
const KERNEL_REACH: usize = TABLE_BYTES / 2;
/// Bytes of a table's entries.
const ENTRIES: usize = size_of::<[u64; USER_SEGMENTS]>();

/// Whose addresses a table of segments is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Those of programs: below 2^47.
    User,
    /// Those of a kernel: from 2^64 - 2^47 on.
    Kernel,
}

impl Side {
    /// The first segment: bits 63:32 of the lowest address.
    pub const fn first(self) -> u64 {
        match self {
            Self::User => 0,
            Self::Kernel => (1 << (64 - SEGMENT_BITS)) - USER_SEGMENTS as u64,
        }
    }

    /// The entry for addresses of the segment of `la`, if it is one of this side.
    pub fn entry(self, la: u64) -> Option<usize> {
        let entry = (la >> SEGMENT_BITS).wrapping_sub(self.first());
        (entry < USER_SEGMENTS as u64).then_some(entry as usize)
    }

    /// The segment of an entry: bits 63:32 of its addresses.
    pub fn segment(self, entry: usize) -> u64 {
        self.first() + entry as u64
    }
}

/// A [`CpuState`] in a mapping of its own.
///
/// Before it lies a stack that grows down from [`CpuState::stack`]; behind it, at [`SEGMENT_TABLE`], lies address
/// space for the table of segments, if the host had so much: none of it can be accessed but the entries of user segments, once [`Self::segments`] has been called.
#[derive(Debug)]
pub struct MappedState {
    state: NonNull<CpuState>,
    /// From the state on.
    bytes: usize,
    /// Address space with the kernel's table, which ends in its middle.
    kernel: Option<NonNull<u8>>,
}

// SAFETY: it owns the state as a box would, and the state is made of integers.
unsafe impl Send for MappedState {}
// SAFETY: as above; shared references give what the state itself gives.
unsafe impl Sync for MappedState {}

impl MappedState {
    /// All fields zero: not a state that a processor is ever in.
    pub fn zeroed() -> Self {
        let with_table = SEGMENT_TABLE + TABLE_BYTES;
        let (start, bytes) = match reserve(BEFORE + with_table) {
            Some(start) => (start, with_table),
            None => (reserve(BEFORE + SEGMENT_TABLE).unwrap_or_else(no_memory), SEGMENT_TABLE),
        };
        // SAFETY: the mapping just made is larger.
        let state = unsafe { start.add(BEFORE) };
        // SAFETY: the range lies in the mapping just made.
        let enabled = unsafe {
            let stack = state.sub(STACK_BYTES);
            libc::mprotect(stack.as_ptr().cast(), STACK_BYTES + SEGMENT_TABLE, READ_WRITE)
        };
        if enabled != 0 {
            no_memory::<()>();
        }
        Self { state: state.cast(), bytes, kernel: None }
    }

    /// The entries for segments of one side, zero at first. `None` if the host had no address space for the table.
    pub fn segments(&mut self, side: Side) -> Option<&mut [u64; USER_SEGMENTS]> {
        let table = match side {
            Side::User => self.user_table()?,
            Side::Kernel => self.kernel_table()?,
        };
        // SAFETY: the entries lie in address space of this state's own, are zero or what this array's user stored, and
        // are borrowed as the whole is; nothing else refers to them but translated code, which runs meanwhile never.
        unsafe {
            let enabled = libc::mprotect(table.as_ptr().cast(), ENTRIES, READ_WRITE);
            (enabled == 0).then(|| &mut *table.cast::<[u64; USER_SEGMENTS]>().as_ptr())
        }
    }

    /// The state, for translated code.
    pub fn as_mut_ptr(&mut self) -> *mut CpuState {
        self.state.as_ptr()
    }

    fn user_table(&self) -> Option<NonNull<u8>> {
        // SAFETY: the table lies in the mapping behind the state.
        (self.bytes != SEGMENT_TABLE).then(|| unsafe { self.state.cast::<u8>().add(SEGMENT_TABLE) })
    }

    fn kernel_table(&mut self) -> Option<NonNull<u8>> {
        let start = match self.kernel {
            Some(start) => start,
            None => reserve(2 * KERNEL_REACH)?,
        };
        self.kernel = Some(start);
        // SAFETY: the place lies in the reservation.
        let end = unsafe { start.add(KERNEL_REACH) };
        self.hot.kernel_segments = ((end.as_ptr() as i64 - self.state.as_ptr() as i64) / 8) as u64;
        // SAFETY: as above.
        Some(unsafe { end.sub(ENTRIES) })
    }

    /// Whether a host address lies in the table, or in the address space kept for it.
    pub fn table_holds(&self, host: u64) -> bool {
        let start = self.state.as_ptr() as u64 + SEGMENT_TABLE as u64;
        let user = host.wrapping_sub(start) < (self.bytes - SEGMENT_TABLE) as u64;
        let in_kernel =
            |start: NonNull<u8>| host.wrapping_sub(start.as_ptr() as u64) < 2 * KERNEL_REACH as u64;
        user || self.kernel.is_some_and(in_kernel)
    }
}

const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;

/// Address space that cannot be accessed, and takes no memory.
pub(crate) fn reserve(bytes: usize) -> Option<NonNull<u8>> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping at an address that the kernel chooses; the result is checked.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_NONE, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return None;
    }
    NonNull::new(start.cast())
}

fn no_memory<T>() -> T {
    std::alloc::handle_alloc_error(std::alloc::Layout::new::<CpuState>())
}

impl Deref for MappedState {
    type Target = CpuState;
    fn deref(&self) -> &CpuState {
        // SAFETY: the mapping holds the state: integers (atomic ones too) and arrays of them, for which zero
        // bytes are a value.
        unsafe { self.state.as_ref() }
    }
}

impl DerefMut for MappedState {
    fn deref_mut(&mut self) -> &mut CpuState {
        // SAFETY: as above; borrowed as the whole is.
        unsafe { self.state.as_mut() }
    }
}

impl Drop for MappedState {
    fn drop(&mut self) {
        // SAFETY: the mapping is owned, and begins so far before the state.
        unsafe { libc::munmap(self.state.cast::<u8>().sub(BEFORE).as_ptr().cast(), BEFORE + self.bytes) };
        if let Some(start) = self.kernel {
            // SAFETY: the reservation is owned.
            unsafe { libc::munmap(start.as_ptr().cast(), 2 * KERNEL_REACH) };
        }
    }
}

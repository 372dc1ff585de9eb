//! A table of 64-bit entries that somebody else owns and changes.

use std::any::Any;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Entries in memory that stays where it is while this exists.
pub struct Table {
    entries: *const AtomicU64,
    length: usize,
    writable: bool,
    used: AtomicBool,
    _owner: Box<dyn Any + Send + Sync>,
}

// SAFETY: the entries are only read, atomically; their owner may be used and dropped on any thread.
unsafe impl Send for Table {}
// SAFETY: as above.
unsafe impl Sync for Table {}

impl Table {
    /// A table of `length` entries.
    ///
    /// `writable` says whether clusters that it calls the disk's own are so: no other table names them.
    ///
    /// # Safety
    /// `entries` is aligned to 8 and good for loads of `length` entries as long as `owner` lives, and
    /// whoever stores to them does it as [`store`] does.
    pub unsafe fn new(
        entries: *mut u64,
        length: usize,
        writable: bool,
        owner: Box<dyn Any + Send + Sync>,
    ) -> Self {
        Self { entries: entries.cast(), length, writable, used: AtomicBool::new(false), _owner: owner }
    }

    /// The entry at `index`; 0, which names nothing, past the end.
    pub fn get(&self, index: usize) -> u64 {
        if index >= self.length {
            return 0;
        }
        // SAFETY: `index` is inside the table, which `new` was promised to be readable.
        unsafe { &*self.entries.add(index) }.load(Ordering::Acquire)
    }

    /// Whether the disk's own clusters may be overwritten.
    pub fn writable(&self) -> bool {
        self.writable
    }

    /// Note that somebody looks things up here.
    pub fn touch(&self) {
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
    }

    /// Whether it was touched since the last call.
    pub fn take_used(&self) -> bool {
        self.used.swap(false, Ordering::Relaxed)
    }
}

/// Store `values` to a table from `target` on, each in one piece.
///
/// # Safety
/// `target` is aligned to 8 and good for stores of as many entries.
pub unsafe fn store(target: *mut u64, values: &[u64]) {
    for (index, value) in values.iter().enumerate() {
        // SAFETY: as the caller promises.
        unsafe { AtomicU64::from_ptr(target.add(index)) }.store(*value, Ordering::SeqCst);
    }
}

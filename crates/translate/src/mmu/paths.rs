//! The entries of the guest's page tables by which the kernel's pages came into memory windows.
//!
//! A processor may fill its TLB when it likes. So a flush need not drop a page that the next access would bring back:
//! as long as the entries on the way to it are what they were, it is as if it had been dropped and filled again.

use super::walk::Trace;
use std::collections::HashMap;
use sublet_memory::MemoryView;

/// Marks the keys of entries of the first level, which lies at another address in each address space.
const ROOT: u64 = 1 << 63;
/// Log2 of the bytes that an entry of each level is for, the first level first (4-level paging).
const LEVEL_BITS: [u32; 4] = [39, 30, 21, 12];

/// An entry as it was read.
#[derive(Debug)]
struct Noted {
    value: u64,
    /// An address that it maps.
    la: u64,
    /// Log2 of the bytes that it is for.
    bits: u32,
}

/// Entries by their guest-physical addresses; those of the first level by their offsets in it.
#[derive(Debug, Default)]
pub(super) struct Paths {
    noted: HashMap<u64, Noted>,
}

impl Paths {
    /// How many entries there are.
    pub(super) fn len(&self) -> usize {
        self.noted.len()
    }

    /// Note the entries on the way to `la`.
    pub(super) fn note(&mut self, la: u64, trace: &Trace) {
        for (level, (&(at, value), bits)) in trace.entries().iter().zip(LEVEL_BITS).enumerate() {
            let key = if level == 0 { ROOT | at & 0xfff } else { at };
            self.noted.insert(key, Noted { value, la, bits });
        }
    }

    /// Forget the entries that are no longer what they were, with the first level in the page at `root`. Returns an
    /// address that each of them mapped, with log2 of the bytes that it was for.
    pub(super) fn take_changed(&mut self, memory: &MemoryView, root: u64) -> Vec<(u64, u32)> {
        let mut changed = Vec::new();
        self.noted.retain(|&key, noted| {
            let at = if key & ROOT == 0 { key } else { root | key & !ROOT };
            let holds = memory.load_u64(at) == Some(noted.value);
            if !holds {
                changed.push((noted.la, noted.bits));
            }
            holds
        });
        changed
    }

    /// Forget all.
    pub(super) fn clear(&mut self) {
        self.noted.clear();
    }
}

//! The entries of the guest's page tables by which the kernel's pages came into memory windows.
//!
//! A processor may fill its TLB when it likes. So a flush need not drop a page that the next access would bring back:
//! as long as the entries on the way to it are what they were, it is as if it had been dropped and filled again.

use super::walk::Trace;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use sublet_memory::GuestMemory;

/// Log2 of the bytes that an entry of each level is for, the first level first (4-level paging).
const LEVEL_BITS: [u32; 4] = [39, 30, 21, 12];
const PAGE: u64 = 4096;

/// An entry as it was read.
#[derive(Debug)]
struct Noted {
    /// Host address; of the first level, which lies elsewhere in each address space, the offset in its page.
    at: u64,
    value: u64,
    /// An address that it maps.
    la: u64,
    /// Log2 of the bytes that it is for.
    bits: u32,
}

impl Noted {
    /// Whether it is what it was, with the first level at host address `root`.
    fn holds(&self, root: u64) -> bool {
        let host = if self.at < PAGE { root + self.at } else { self.at };
        // SAFETY: eight aligned bytes of RAM: `Paths::note` has taken the address from a memslot, and `take_changed` the
        // root. RAM stays mapped until every vCPU has acknowledged a change of memslots, which clears what is noted as
        // it empties the software TLBs.
        let entry = unsafe { AtomicU64::from_ptr(host as *mut u64) };
        entry.load(Ordering::Acquire) == self.value
    }
}

/// Entries, each noted once.
#[derive(Debug, Default)]
pub(super) struct Paths {
    noted: Vec<Noted>,
    /// Places in `noted` by `Noted::at`.
    places: HashMap<u64, usize>,
}

impl Paths {
    /// How many entries there are.
    pub(super) fn len(&self) -> usize {
        self.noted.len()
    }

    /// Note the entries on the way to `la`. Returns whether all are in RAM.
    pub(super) fn note(&mut self, memory: &GuestMemory, la: u64, trace: &Trace) -> bool {
        trace.entries().iter().zip(LEVEL_BITS).enumerate().all(|(level, (&(gpa, value), bits))| {
            let offset = gpa % PAGE;
            let page = match level {
                0 => Some(0),
                _ => memory.host_page(gpa).map(|page| page.host as u64),
            };
            page.map(|page| self.put(Noted { at: page + offset, value, la, bits })).is_some()
        })
    }

    fn put(&mut self, entry: Noted) {
        match self.places.get(&entry.at) {
            Some(&place) => self.noted[place] = entry,
            None => {
                self.places.insert(entry.at, self.noted.len());
                self.noted.push(entry);
            }
        }
    }

    /// Forget the entries that are no longer what they were, with the first level in the page at guest-physical address
    /// `root`. Returns an address that each of them mapped, with log2 of the bytes that it was for; `None` if the tables
    /// are not in RAM.
    pub(super) fn take_changed(&mut self, memory: &GuestMemory, root: u64) -> Option<Vec<(u64, u32)>> {
        let root = memory.host_page(root)?.host as u64;
        if self.noted.iter().all(|entry| entry.holds(root)) {
            return Some(Vec::new());
        }
        let (kept, changed): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.noted).into_iter().partition(|entry| entry.holds(root));
        self.places = kept.iter().enumerate().map(|(place, entry)| (entry.at, place)).collect();
        self.noted = kept;
        Some(changed.iter().map(|entry| (entry.la, entry.bits)).collect())
    }

    /// Forget all.
    pub(super) fn clear(&mut self) {
        self.noted.clear();
        self.places.clear();
    }
}

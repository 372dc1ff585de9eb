//! Page walks and the software TLBs filled from them.

mod filled;
pub mod jumps;
mod large_pages;
mod paths;
mod space;
pub mod tlb;
pub mod walk;
pub mod window;

pub use space::SpaceId;

use crate::cpu::Flush;
use std::collections::VecDeque;

/// Flush requests kept one by one; more than this many become a flush of everything.
const MAX_PENDING: usize = 32;

/// Flushes asked for by compiled code, carried out before translated code runs again.
#[derive(Debug, Default)]
pub struct Mmu {
    pending: VecDeque<Flush>,
}

impl Mmu {
    /// Drop cached translations. Takes effect before the next translated instruction; compiled
    /// code always walks.
    pub fn flush(&mut self, what: Flush) {
        if self.pending.len() >= MAX_PENDING {
            // The last change of the address space counts, whatever is dropped.
            let is_switch = |flush: &Flush| matches!(flush, Flush::Switch(_));
            let switch = self.pending.drain(..).rfind(is_switch);
            self.pending.push_back(Flush::All);
            self.pending.extend(switch);
            self.pending.extend(is_switch(&what).then_some(what));
            return;
        }
        self.pending.push_back(what);
    }

    /// Whether anything is to be flushed.
    pub fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// The next flush to carry out.
    pub fn take_pending(&mut self) -> Option<Flush> {
        self.pending.pop_front()
    }
}

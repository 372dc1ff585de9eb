//! How long the host has kept a thread from its processors.

use crate::Clock;
use std::thread::{self, ThreadId};

/// What a thread has had of the host's processors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ThreadUse {
    /// Nanoseconds on a processor.
    pub processor_ns: u64,
    /// How often it has waited for something of its own accord.
    pub waits: u64,
}

/// Shorter absences are not told from the time that the looking takes.
pub(crate) const LEAST_NS: u64 = 20_000;
/// Readings of both clocks that are closer than this are of one moment.
const CLOSE_NS: u64 = 10_000;
const MOST_TRIES: u32 = 8;

/// A moment of one thread.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment {
    pub(crate) ns: u64,
    thread: ThreadId,
    used: ThreadUse,
}

impl Moment {
    /// The present of the calling thread; `None` where the clock knows nothing of threads, or the host
    /// does not let the thread look in peace.
    pub(crate) fn now(clock: &dyn Clock) -> Option<Self> {
        let thread = thread::current().id();
        for _ in 0..MOST_TRIES {
            let before = clock.now_ns();
            let used = clock.thread_use()?;
            let ns = clock.now_ns();
            if ns - before < CLOSE_NS {
                return Some(Self { ns, thread, used });
            }
        }
        None
    }

    /// Nanoseconds since `earlier` in which the thread wanted a processor and had none; 0 where that is not
    /// known: it is another thread, or has waited for something.
    pub(crate) fn absence_since(&self, earlier: &Self) -> u64 {
        if self.thread != earlier.thread || self.used.waits != earlier.used.waits {
            return 0;
        }
        let passed = self.ns.saturating_sub(earlier.ns);
        let had = self.used.processor_ns.saturating_sub(earlier.used.processor_ns);
        Some(passed.saturating_sub(had)).filter(|absence| *absence >= LEAST_NS).unwrap_or(0)
    }
}

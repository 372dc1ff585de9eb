//! Deadlines of thousands of flows, cheap to move.
//!
//! A flow keeps its deadline itself and has an entry here that is never later. Moving the deadline back costs
//! nothing: when the entry comes due too early, the flow is asked and enters again.

use crate::slab::Id;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Whose deadline it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Timer {
    /// A TCP connection.
    Tcp(Id),
    /// A UDP or ping flow.
    Udp(Id),
    /// A DNS query.
    Dns(Id),
    /// TFTP transfers that wait.
    Tftp,
    /// The next unsolicited router advertisement.
    Advertise,
}

/// A deadline in nanoseconds, with what is known of its entry.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    at: u64,
    entered: u64,
}

impl Default for Deadline {
    fn default() -> Self {
        Self { at: u64::MAX, entered: u64::MAX }
    }
}

/// All entries, earliest first.
#[derive(Debug, Default)]
pub struct Timers {
    heap: BinaryHeap<Reverse<(u64, Timer)>>,
}

impl Timers {
    /// Move a deadline to `at`.
    pub fn set(&mut self, deadline: &mut Deadline, at: u64, timer: Timer) {
        deadline.at = at;
        if at < deadline.entered {
            deadline.entered = at;
            self.heap.push(Reverse((at, timer)));
        }
    }

    /// When to look again; `None`: never.
    pub fn next(&self) -> Option<u64> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    /// An entry that is due.
    pub fn pop(&mut self, now: u64) -> Option<(u64, Timer)> {
        let Reverse((at, _)) = self.heap.peek()?;
        if *at > now {
            return None;
        }
        self.heap.pop().map(|Reverse(entry)| entry)
    }

    /// Whether the deadline behind a popped entry has come; otherwise it is entered again.
    pub fn is_due(&mut self, deadline: &mut Deadline, entry: u64, now: u64, timer: Timer) -> bool {
        if entry != deadline.entered {
            return false;
        }
        deadline.entered = u64::MAX;
        if deadline.at <= now {
            return true;
        }
        if deadline.at != u64::MAX {
            self.set(deadline, deadline.at, timer);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_moved_back_is_asked_once_early() {
        let mut timers = Timers::default();
        let mut deadline = Deadline::default();
        timers.set(&mut deadline, 10, Timer::Advertise);
        timers.set(&mut deadline, 30, Timer::Advertise);
        assert_eq!(timers.pop(9), None);
        let (entry, timer) = timers.pop(10).unwrap();
        assert!(!timers.is_due(&mut deadline, entry, 10, timer));
        assert_eq!(timers.next(), Some(30));
        let (entry, timer) = timers.pop(30).unwrap();
        assert!(timers.is_due(&mut deadline, entry, 30, timer));
        assert_eq!(timers.next(), None);
    }

    #[test]
    fn a_deadline_moved_forward_fires_once() {
        let mut timers = Timers::default();
        let mut deadline = Deadline::default();
        timers.set(&mut deadline, 30, Timer::Advertise);
        timers.set(&mut deadline, 10, Timer::Advertise);
        let (entry, timer) = timers.pop(40).unwrap();
        assert!(timers.is_due(&mut deadline, entry, 40, timer));
        let (entry, timer) = timers.pop(40).unwrap();
        assert!(!timers.is_due(&mut deadline, entry, 40, timer));
    }
}

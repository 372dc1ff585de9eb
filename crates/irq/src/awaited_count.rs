//! A count of channel 2 that the guest waits for, to measure its time-stamp counter.
//!
//! It starts the count, reads its counter, and looks whether the output is high, again and again, with the
//! counter read after each look. Where the host has no processor for the vCPU's thread
//! * between start and first look, the counter's first reading comes too late;
//! * when the count ends, its last reading comes from long before.
//!
//! Linux then finds its counter several times too slow, and keeps time by it (`pit_calibrate_tsc`, which sees
//! any other gap). So a count does not begin before such an absence, and does not end in one: in the first
//! case it has begun that much later, in the second it ends right after the guest's look, and so the guest
//! finds the gap between two of its readings.

use crate::absence::{Moment, LEAST_NS};
use crate::pit::Pit;
use crate::sync::lock;
use crate::Clock;
use std::sync::Mutex;

/// The count that runs, until its end has been seen. Its lock is taken after the 8254's.
#[derive(Default)]
pub(crate) struct AwaitedCount(Mutex<Option<Awaited>>);

struct Awaited {
    begun: Moment,
    /// When the guest last looked.
    seen_ns: Option<u64>,
}

impl AwaitedCount {
    /// Nobody waits.
    pub(crate) fn forget(&self) {
        *lock(&self.0) = None;
    }

    /// Make `change` to the 8254 at the present, which it is given in nanoseconds.
    pub(crate) fn change<R>(
        &self,
        clock: &dyn Clock,
        pit: &mut Pit,
        change: impl FnOnce(&mut Pit, u64) -> R,
    ) -> R {
        let moment = Moment::now(clock);
        let before = pit.single_count();
        let result = change(pit, moment.map_or_else(|| clock.now_ns(), |moment| moment.ns));
        if pit.single_count() != before {
            *lock(&self.0) = moment.map(|begun| Awaited { begun, seen_ns: None });
        }
        result
    }

    /// The present in nanoseconds, at which the guest looks at the channel.
    pub(crate) fn look(&self, clock: &dyn Clock, pit: &mut Pit) -> u64 {
        let mut guard = lock(&self.0);
        let now = clock.now_ns();
        let Some(awaited) = guard.as_mut() else { return now };
        let before = awaited.seen_ns.replace(now);
        let gap = now.saturating_sub(before.unwrap_or(awaited.begun.ns));
        let ended = pit.single_count_ended(now);
        if gap >= LEAST_NS && (ended || before.is_none()) {
            let absence = Moment::now(clock).map_or(0, |moment| moment.absence_since(&awaited.begun));
            match before {
                None => pit.delay_single_count(absence.min(gap)),
                Some(_) if absence > 0 => pit.end_single_count_after(now),
                Some(_) => {}
            }
        }
        if ended && before.is_some() {
            *guard = None;
        }
        now
    }
}

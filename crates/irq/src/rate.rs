//! Exact conversion between nanoseconds and the ticks of a fixed-frequency oscillator.

const NS_PER_S: u128 = 1_000_000_000;

/// Whole ticks of an oscillator of `hz` that have passed at `ns`.
pub(crate) fn ticks_at(ns: u64, hz: u64) -> i64 {
    i64::try_from(u128::from(ns) * u128::from(hz) / NS_PER_S).unwrap_or(i64::MAX)
}

/// The first nanosecond at which `ticks` have passed; 0 for a tick in the past of the clock's zero.
pub(crate) fn ns_of(ticks: i64, hz: u64) -> u64 {
    let ticks = u128::from(ticks.max(0).unsigned_abs());
    u64::try_from((ticks * NS_PER_S).div_ceil(u128::from(hz))).unwrap_or(u64::MAX)
}

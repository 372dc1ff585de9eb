//! Where time comes from: monotonic nanoseconds and the guest's time-stamp counter.

use crate::sync::{read, write};
use crate::ThreadUse;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{OnceLock, RwLock};
use std::thread;
use std::time::{Duration, Instant};

/// The VM's sources of time. A test can stop it.
pub trait Clock: Send + Sync {
    /// Monotonic nanoseconds since an arbitrary point. Never steps back.
    fn now_ns(&self) -> u64;
    /// The guest's time-stamp counter now.
    fn guest_tsc(&self) -> u64;
    /// The `now_ns` at which the guest's TSC reaches `guest_tsc`, rounded up;
    /// a value already passed gives the present, one too far away `u64::MAX`.
    fn tsc_to_ns(&self, guest_tsc: u64) -> u64;
    /// What the calling thread has had of the host's processors; `None` where that is not known.
    fn thread_use(&self) -> Option<ThreadUse> {
        None
    }
}

/// Shortest distance between the two samples that measure the TSC frequency.
const CALIBRATION_NS: u64 = 50_000_000;

/// How old the pair of readings behind `tsc_to_ns` may get, as a fraction of a second.
const ANCHOR_FRACTION: u64 = 8;

/// One simultaneous reading of both clocks.
#[derive(Debug, Clone, Copy)]
struct Sample {
    tsc: u64,
    ns: u64,
}

/// The host's monotonic clock and its invariant TSC, shifted by an offset for the guest.
///
/// Guest TSC = host TSC + offset, modulo 2^64. Conversion from TSC to nanoseconds starts at a pair
/// of readings at most an eighth of a second old, so that an error of the measured frequency
/// (and the host's clock discipline) never accumulates.
pub struct HostClock {
    read_tsc: fn() -> u64,
    thread_use: fn() -> Option<ThreadUse>,
    hz: OnceLock<u64>,
    offset: AtomicU64,
    anchor: RwLock<Sample>,
}

impl HostClock {
    /// A clock whose guest TSC starts at the host's value.
    ///
    /// `read_tsc` reads the host's TSC; `known_hz` is its frequency where CPUID tells
    /// (leaf 0x15, or a hypervisor's 0x40000010). Without it the first use of the frequency in the process
    /// measures once, for 50 ms less what has passed since [`HostClock::prepare`].
    pub fn new(read_tsc: fn() -> u64, known_hz: Option<u64>) -> Self {
        let hz = known_hz.filter(|hz| *hz > 0).map_or_else(OnceLock::new, OnceLock::from);
        let anchor = RwLock::new(sample(read_tsc));
        Self { read_tsc, thread_use: || None, hz, offset: AtomicU64::new(0), anchor }
    }

    /// The same, which also knows by `thread_use` what the calling thread has had of the host's processors.
    pub fn with_thread_use(self, thread_use: fn() -> Option<ThreadUse>) -> Self {
        Self { thread_use, ..self }
    }

    /// Take the first sample of the frequency measurement, early in the process, without waiting.
    pub fn prepare(read_tsc: fn() -> u64) {
        first_sample(read_tsc);
    }

    /// Frequency of the TSC, host's and guest's, in Hz.
    pub fn tsc_hz(&self) -> u64 {
        *self.hz.get_or_init(|| measured_hz(self.read_tsc))
    }

    /// Make the guest's TSC read `value` now. Deadlines armed before keep their moment.
    pub fn set_guest_tsc(&self, value: u64) {
        self.offset.store(value.wrapping_sub((self.read_tsc)()), Ordering::Relaxed);
    }

    /// Guest TSC minus host TSC, modulo 2^64.
    pub fn tsc_offset(&self) -> u64 {
        self.offset.load(Ordering::Relaxed)
    }

    /// Replace the offset between guest and host TSC.
    pub fn set_tsc_offset(&self, offset: u64) {
        self.offset.store(offset, Ordering::Relaxed);
    }

    /// A recent pair of readings, renewed when it is too old.
    fn anchor(&self, host_tsc: u64) -> Sample {
        let known = *read(&self.anchor);
        if host_tsc.wrapping_sub(known.tsc) <= self.tsc_hz() / ANCHOR_FRACTION {
            return known;
        }
        let fresh = sample(self.read_tsc);
        *write(&self.anchor) = fresh;
        fresh
    }
}

impl Clock for HostClock {
    fn now_ns(&self) -> u64 {
        monotonic_ns()
    }

    fn guest_tsc(&self) -> u64 {
        (self.read_tsc)().wrapping_add(self.tsc_offset())
    }

    fn tsc_to_ns(&self, guest_tsc: u64) -> u64 {
        let host_now = (self.read_tsc)();
        let anchor = self.anchor(host_now);
        let ahead = guest_tsc.saturating_sub(host_now.wrapping_add(self.tsc_offset()));
        let since_anchor = u128::from(host_now.saturating_sub(anchor.tsc)) + u128::from(ahead);
        let ns = (since_anchor * 1_000_000_000).div_ceil(u128::from(self.tsc_hz()));
        u64::try_from(ns + u128::from(anchor.ns)).unwrap_or(u64::MAX)
    }

    fn thread_use(&self) -> Option<ThreadUse> {
        (self.thread_use)()
    }
}

/// Nanoseconds of CLOCK_MONOTONIC since the first call in this process.
fn monotonic_ns() -> u64 {
    static EPOCH: OnceLock<Instant> = OnceLock::new();
    let elapsed = EPOCH.get_or_init(Instant::now).elapsed();
    u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX)
}

/// Both clocks at one moment: of several tries the one in which least time passed.
fn sample(read_tsc: fn() -> u64) -> Sample {
    let once = || {
        let before = read_tsc();
        let ns = monotonic_ns();
        let width = read_tsc().wrapping_sub(before);
        (width, Sample { tsc: before.wrapping_add(width / 2), ns })
    };
    let mut best = once();
    for _ in 0..7 {
        let next = once();
        if next.0 < best.0 {
            best = next;
        }
    }
    best.1
}

fn first_sample(read_tsc: fn() -> u64) -> Sample {
    static FIRST: OnceLock<Sample> = OnceLock::new();
    *FIRST.get_or_init(|| sample(read_tsc))
}

/// The host's TSC frequency in Hz, measured once per process.
fn measured_hz(read_tsc: fn() -> u64) -> u64 {
    static HZ: OnceLock<u64> = OnceLock::new();
    *HZ.get_or_init(|| {
        let first = first_sample(read_tsc);
        let passed = monotonic_ns().saturating_sub(first.ns);
        thread::sleep(Duration::from_nanos(CALIBRATION_NS.saturating_sub(passed)));
        let last = sample(read_tsc);
        let ticks = u128::from(last.tsc.saturating_sub(first.tsc)) * 1_000_000_000;
        let hz = ticks / u128::from(last.ns.saturating_sub(first.ns).max(1));
        u64::try_from(hz).unwrap_or(u64::MAX).max(1)
    })
}

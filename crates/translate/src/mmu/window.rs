//! Memory windows: guest pages mapped where translated user code finds them without looking them up.
//!
//! The linear address space is cut into segments of 4 GiB. A segment in use has a *window*: 4 GiB of host address
//! space, with a guard of as much on both sides. The table of segments (see [`MappedState`]) gives for bits 63:32
//! of an address what is to be added to it. Pages come into a window one by one, as accesses fault there: a window
//! is a TLB whose misses the host's MMU finds. What drops TLB entries drops pages here.
//!
//! INVARIANT: everything in the reservation that is not a run of `runs` cannot be accessed. The table leads every
//! user segment to a window that is its own, or to the first one, which stays empty.

use super::SpaceId;
use crate::state::{reserve, MappedState, SEGMENT_BITS, USER_SEGMENTS};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

const PAGE: u64 = 4096;
const SEGMENT: u64 = 1 << SEGMENT_BITS;
/// From one window to the next. The guard between them is more than a displacement and an operand span.
const STRIDE: u64 = 2 * SEGMENT;
/// Windows of a vCPU, with the empty one. Programs have text, heap, libraries and stack in two to six segments.
const WINDOWS: usize = 32;
/// Bytes reserved: a guard before the first window, and one after each.
const RESERVED: usize = (SEGMENT + WINDOWS as u64 * STRIDE) as usize;
/// Runs of pages that all vCPUs of the process may have mapped. A run makes up to two of the host's mappings, of
/// which Linux allows 65530.
const MAX_RUNS: usize = 20_000;
/// Up to this size the host is asked to enter the pages in its tables at once.
const POPULATED: u64 = 64 << 10;

static RUNS: AtomicUsize = AtomicUsize::new(0);

/// Pages one after another, in the guest's address space and in the file behind its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Linear address of the first byte.
    pub la: u64,
    /// Bytes.
    pub size: u64,
    /// Host address of the first byte in the mapping of all memory.
    pub host: u64,
    /// Stores may be made.
    pub writable: bool,
}

/// Where a host address lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Zone {
    /// Elsewhere.
    Outside,
    /// In the window of segments that have none, or its guards.
    Nowhere,
    /// In another window, or a guard.
    Window,
}

/// Counters.
#[derive(Debug, Default, Clone, Copy)]
pub struct WindowStatistics {
    /// Pages mapped.
    pub pages: u64,
    /// System calls that mapped them.
    pub maps: u64,
    /// Times that all pages were dropped.
    pub drops: u64,
}

/// The windows of a vCPU.
#[derive(Debug)]
pub struct Windows {
    /// Whose pages they show. They serve no other address space, and this one only as long as it is the same.
    pub space: SpaceId,
    base: u64,
    /// Segments of the windows after the first.
    segments: Vec<u64>,
    /// Times that all segments lost their windows: distances from before are none of anything.
    pub reassigned: u64,
    /// By linear address; they do not overlap.
    runs: BTreeMap<u64, Run>,
    /// Counters.
    pub statistics: WindowStatistics,
}

/// What leads addresses of a segment to a window at `host`.
fn delta(host: u64, segment: u64) -> u64 {
    host.wrapping_sub(segment << SEGMENT_BITS)
}

impl Windows {
    /// Reserve them; `None` if the host refuses so much address space.
    pub fn new(state: &mut MappedState) -> Option<Self> {
        let table = state.segments()?;
        let base = reserve(RESERVED)?.as_ptr() as u64;
        let windows = Self {
            space: SpaceId::default(),
            base,
            segments: Vec::new(),
            reassigned: 0,
            runs: BTreeMap::new(),
            statistics: Default::default(),
        };
        windows.lead_nowhere(table);
        Some(windows)
    }

    fn lead_nowhere(&self, table: &mut [u64; USER_SEGMENTS]) {
        for (segment, entry) in table.iter_mut().enumerate() {
            *entry = delta(self.window(0), segment as u64);
        }
    }

    /// Host address of window `number`.
    fn window(&self, number: usize) -> u64 {
        self.base + SEGMENT + number as u64 * STRIDE
    }

    /// Where a host address lies.
    pub fn zone(&self, host: u64) -> Zone {
        let inside = host.wrapping_sub(self.base);
        if inside >= RESERVED as u64 {
            Zone::Outside
        } else if inside < SEGMENT + STRIDE - SEGMENT / 2 {
            Zone::Nowhere
        } else {
            Zone::Window
        }
    }

    /// What is added to the addresses of the segment of `la`, if it has a window.
    pub fn delta_of(&self, la: u64) -> Option<u64> {
        let segment = la >> SEGMENT_BITS;
        let number = self.segments.iter().position(|&other| other == segment)?;
        Some(delta(self.window(number + 1), segment))
    }

    /// Give the segment of `la` a window; `None` if it is no user address.
    fn open(&mut self, state: &mut MappedState, la: u64) -> Option<u64> {
        if let Some(delta) = self.delta_of(la) {
            return Some(delta);
        }
        let segment = la >> SEGMENT_BITS;
        let table = state.segments().filter(|table| (segment as usize) < table.len())?;
        if self.segments.len() == WINDOWS - 1 {
            self.drop_all();
            self.segments.clear();
            self.reassigned += 1;
            self.lead_nowhere(table);
        }
        self.segments.push(segment);
        let delta = self.delta_of(la)?;
        table[segment as usize] = delta;
        Some(delta)
    }

    /// The run that holds `la`.
    pub fn find(&self, la: u64) -> Option<&Run> {
        let run = self.runs.range(..=la).next_back()?.1;
        (la - run.la < run.size).then_some(run)
    }

    /// Map a run, which lies in one segment, from `fd` at `offset`. Returns what is to be added to its addresses;
    /// `None` if it cannot be mapped.
    pub fn map(&mut self, state: &mut MappedState, run: Run, fd: i32, offset: u64) -> Option<u64> {
        if RUNS.load(Ordering::Relaxed) >= MAX_RUNS {
            self.drop_all();
        }
        let delta = self.open(state, run.la)?;
        self.forget(run.la..run.la + run.size);
        let write = if run.writable { libc::PROT_WRITE } else { 0 };
        let populate = if run.size <= POPULATED { libc::MAP_POPULATE } else { 0 };
        let flags = libc::MAP_SHARED | libc::MAP_FIXED | populate;
        let host = run.la.wrapping_add(delta) as *mut libc::c_void;
        // SAFETY: the range lies in a window: `run` lies in the segment that `delta` is of.
        let mapped =
            unsafe { libc::mmap(host, run.size as usize, libc::PROT_READ | write, flags, fd, offset as i64) };
        if mapped == libc::MAP_FAILED {
            // What `forget` forgot may be there still.
            self.close_all();
            return None;
        }
        self.insert(run);
        self.statistics.maps += 1;
        self.statistics.pages += run.size / PAGE;
        Some(delta)
    }

    fn insert(&mut self, run: Run) {
        RUNS.fetch_add(1, Ordering::Relaxed);
        self.runs.insert(run.la, run);
    }

    /// Take `range` out of the runs, which are cut where they reach beyond it. Returns whether any was there.
    fn forget(&mut self, range: Range<u64>) -> bool {
        let first = self.find(range.start).map_or(range.start, |run| run.la);
        let hit: Vec<Run> = self.runs.range(first..range.end).map(|(_, run)| *run).collect();
        for run in &hit {
            self.runs.remove(&run.la);
            RUNS.fetch_sub(1, Ordering::Relaxed);
            if run.la < range.start {
                self.insert(Run { size: range.start - run.la, ..*run });
            }
            let beyond = range.end.saturating_sub(run.la);
            if beyond < run.size {
                self.insert(Run { la: range.end, size: run.size - beyond, host: run.host + beyond, ..*run });
            }
        }
        !hit.is_empty()
    }

    fn forget_all(&mut self) {
        RUNS.fetch_sub(self.runs.len(), Ordering::Relaxed);
        self.runs.clear();
    }

    /// Drop what is mapped of `range`, which lies in one segment.
    pub fn drop_range(&mut self, range: Range<u64>) {
        if !self.runs.is_empty() && self.forget(range.clone()) {
            self.close(range);
        }
    }

    /// Drop every page.
    pub fn drop_all(&mut self) {
        if self.runs.is_empty() {
            return;
        }
        self.statistics.drops += 1;
        for segment in self.segments.clone() {
            let first = segment << SEGMENT_BITS;
            let mut runs = self.runs.range(first..=first + (SEGMENT - 1)).map(|(_, run)| run);
            let Some(start) = runs.next().map(|run| run.la) else { continue };
            let end = self
                .runs
                .range(..=first + (SEGMENT - 1))
                .next_back()
                .map_or(start, |(_, run)| run.la + run.size);
            self.close(start..end);
        }
        self.forget_all();
    }

    /// Drop the page of host address `page` wherever it may be stored to.
    pub fn protect(&mut self, page: u64) {
        let hit: Vec<u64> = self
            .runs
            .values()
            .filter(|run| run.writable && page.wrapping_sub(run.host) < run.size)
            .map(|run| run.la + (page - run.host))
            .collect();
        hit.into_iter().for_each(|la| self.drop_range(la..la + PAGE));
    }

    /// Make linear addresses of one segment inaccessible in its window.
    fn close(&mut self, range: Range<u64>) {
        let Some(delta) = self.delta_of(range.start) else { return };
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
        let host = range.start.wrapping_add(delta) as *mut libc::c_void;
        let bytes = (range.end - range.start) as usize;
        // SAFETY: the range lies in a window, which nothing but translated code refers to.
        let closed = unsafe { libc::mmap(host, bytes, libc::PROT_NONE, flags, -1, 0) };
        if closed == libc::MAP_FAILED {
            self.close_all();
        }
    }

    /// Make everything inaccessible, though it may stay mapped. A process that has all the mappings that the host
    /// allows can still do this, since it cuts none of them.
    fn close_all(&mut self) {
        // SAFETY: the reservation, which nothing but translated code refers to.
        let closed = unsafe { libc::mprotect(self.base as *mut libc::c_void, RESERVED, libc::PROT_NONE) };
        assert!(closed == 0, "the host keeps pages accessible that are to go");
        self.forget_all();
    }
}

impl Drop for Windows {
    fn drop(&mut self) {
        RUNS.fetch_sub(self.runs.len(), Ordering::Relaxed);
        // SAFETY: the reservation is owned; translated code of this vCPU runs no more.
        unsafe { libc::munmap(self.base as *mut libc::c_void, RESERVED) };
    }
}

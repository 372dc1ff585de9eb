//! Memory windows: guest pages mapped where translated user code finds them without looking them up.
//!
//! The linear address space is cut into segments of 4 GiB. A segment in use has a *window*: 4 GiB of host address
//! space, with a guard of as much on both sides. The table of segments (see [`MappedState`]) gives for bits 63:32
//! of an address what is to be added to it. Pages come into a window one by one, as accesses fault there: a window
//! is a TLB whose misses the host's MMU finds. What drops TLB entries drops pages here.
//!
//! INVARIANT: everything in the reservation that is not a run of `runs` cannot be accessed. The table leads every
//! user segment to a window that is its own, or to the first one, which stays empty.

use super::paths::Paths;
use super::walk::Trace;
use super::SpaceId;
use crate::state::{reserve, MappedState, Side, SEGMENT_BITS, USER_SEGMENTS};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use sublet_memory::GuestMemory;

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
/// No run is larger, in bytes.
pub const LARGEST_RUN: u64 = 2 << 20;
/// Most entries of the guest's tables that are kept for pages that are not global, as all switches of the address
/// space have to look at them, and for all others.
const MAX_PATHS: [usize; 2] = [512, 16384];

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
    /// Log2 of the size of the guest's pages.
    pub page_bits: u8,
}

/// Which pages in a kernel's windows are to be those of the tables again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confirmed {
    /// Those that are not global.
    Local,
    /// All.
    All,
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
    /// Whose memory they show.
    pub side: Side,
    base: u64,
    /// Segments of the windows after the first.
    segments: Vec<u64>,
    /// Times that all segments lost their windows: distances from before are none of anything.
    pub reassigned: u64,
    /// By linear address; they do not overlap.
    runs: BTreeMap<u64, Run>,
    /// Host and linear address of each run that may be stored to.
    writable: BTreeSet<(u64, u64)>,
    /// Ways to the kernel's pages: to those that are not global, and to those that are.
    paths: [Paths; 2],
    /// Counters.
    pub statistics: WindowStatistics,
}

/// What leads addresses of a segment to a window at `host`.
fn delta(host: u64, segment: u64) -> u64 {
    host.wrapping_sub(segment << SEGMENT_BITS)
}

impl Windows {
    /// Reserve them; `None` if the host refuses so much address space.
    pub fn new(state: &mut MappedState, side: Side) -> Option<Self> {
        let table = state.segments(side)?;
        let base = reserve(RESERVED)?.as_ptr() as u64;
        let windows = Self {
            space: SpaceId::default(),
            side,
            base,
            segments: Vec::new(),
            reassigned: 0,
            runs: BTreeMap::new(),
            writable: BTreeSet::new(),
            paths: Default::default(),
            statistics: Default::default(),
        };
        windows.lead_nowhere(table);
        Some(windows)
    }

    fn lead_nowhere(&self, table: &mut [u64; USER_SEGMENTS]) {
        for (entry, place) in table.iter_mut().enumerate() {
            *place = delta(self.window(0), self.side.segment(entry));
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

    /// Give the segment of `la` a window; `None` if it is not an address of this side.
    fn open(&mut self, state: &mut MappedState, la: u64) -> Option<u64> {
        if let Some(delta) = self.delta_of(la) {
            return Some(delta);
        }
        let segment = la >> SEGMENT_BITS;
        let entry = self.side.entry(la)?;
        let table = state.segments(self.side)?;
        if self.segments.len() == WINDOWS - 1 {
            self.drop_all();
            self.segments.clear();
            self.reassigned += 1;
            self.lead_nowhere(table);
        }
        self.segments.push(segment);
        let delta = self.delta_of(la)?;
        table[entry] = delta;
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
        if run.writable {
            self.writable.insert((run.host, run.la));
        }
    }

    fn remove(&mut self, run: &Run) {
        RUNS.fetch_sub(1, Ordering::Relaxed);
        self.runs.remove(&run.la);
        self.writable.remove(&(run.host, run.la));
    }

    /// Take `range` out of the runs, which are cut where they reach beyond it. Returns whether any was there.
    fn forget(&mut self, range: Range<u64>) -> bool {
        let first = self.find(range.start).map_or(range.start, |run| run.la);
        let hit: Vec<Run> = self.runs.range(first..range.end).map(|(_, run)| *run).collect();
        for run in &hit {
            self.remove(run);
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
        self.writable.clear();
        self.paths.iter_mut().for_each(Paths::clear);
    }

    /// Drop what is mapped of `range`, which lies in one segment.
    pub fn drop_range(&mut self, range: Range<u64>) {
        if !self.runs.is_empty() && self.forget(range.clone()) {
            self.close(range);
        }
    }

    /// Drop the page of `la`, a large one as a whole.
    pub fn drop_page(&mut self, la: u64) {
        let of_larger = |bits: u32| {
            let region = la >> bits << bits..=la | ((1 << bits) - 1);
            self.runs.range(region).any(|(_, run)| u32::from(run.page_bits) >= bits)
        };
        let bits = [30, 21].into_iter().find(|&bits| of_larger(bits)).unwrap_or(12);
        self.drop_around(la, bits);
    }

    /// Drop the naturally aligned `1 << bits` bytes around `la`.
    fn drop_around(&mut self, la: u64, bits: u32) {
        match (la >> bits << bits).checked_add(1 << bits) {
            Some(end) if bits <= SEGMENT_BITS => self.drop_range(end - (1 << bits)..end),
            _ => self.drop_all(),
        }
    }

    /// Note the way to a kernel's page that is to be mapped. Returns whether there is room for it.
    pub fn note_path(&mut self, memory: &GuestMemory, la: u64, trace: &Trace) -> bool {
        let kind = usize::from(trace.walk.global);
        self.paths[kind].note(memory, la, trace) && self.paths[kind].len() <= MAX_PATHS[kind]
    }

    /// Drop the pages that the tables, whose first level is at `root`, no longer map as they did.
    pub fn confirm(&mut self, memory: &GuestMemory, root: u64, what: Confirmed) {
        let kinds = if what == Confirmed::All { 2 } else { 1 };
        for kind in 0..kinds {
            match self.paths[kind].take_changed(memory, root) {
                Some(changed) => changed.into_iter().for_each(|(la, bits)| self.drop_around(la, bits)),
                None => self.drop_all(),
            }
        }
    }

    /// Drop every page.
    pub fn drop_all(&mut self) {
        if self.runs.is_empty() {
            return self.forget_all();
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
        let near = (page.saturating_sub(LARGEST_RUN - PAGE), 0)..=(page, u64::MAX);
        let hit: Vec<u64> = self
            .writable
            .range(near)
            .filter_map(|(host, la)| {
                let (run, offset) = (self.runs.get(la)?, page - host);
                (offset < run.size).then_some(la + offset)
            })
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

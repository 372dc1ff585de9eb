//! Copying what a disk holds into a new image: large pieces, several at once, zeroes left out.
//!
//! The source's pieces say where a range of the disk is stored. Workers take the range window by window,
//! read, look for blocks of zeroes, have the rest placed by the target's format, and write it there.
//! Windows are placed and written in the disk's order, so that the same disk gives the same image every time.

use crate::data_map::DataMap;
use crate::file::{read_at, write_at};
use crate::zeroes::nonzero_runs;
use std::io;
use std::ops::Range;
use std::os::fd::RawFd;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Bytes that a worker reads at once, from a multiple of it: more than this no longer fits into the
/// processor's second cache, and is then fetched twice.
pub const WINDOW: u64 = 1 << 20;
const POLL: Duration = Duration::from_millis(100);

/// A part of a disk and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Descriptor and offset of the host's file; `None` for zeroes, and for what is not to be copied.
    pub place: Option<(RawFd, u64)>,
    /// Bytes.
    pub size: u64,
}

/// Why a copy failed.
#[derive(Debug)]
pub enum CopyError<E> {
    /// The host refused a read or a write.
    Host(io::Error),
    /// The target's format could not place a range.
    Place(E),
    /// The watcher wanted an end.
    Stopped(E),
    /// The target's format placed other bytes than it was asked to.
    Misplaced,
}

impl<E> From<io::Error> for CopyError<E> {
    fn from(error: io::Error) -> Self {
        Self::Host(error)
    }
}

/// What is to be copied, and how.
pub struct Plan<'a> {
    /// Byte of the disk where the first piece begins; with all sizes added, it stays below 2^63.
    pub offset: u64,
    /// The source, in the disk's order.
    pub pieces: &'a [Piece],
    /// Blocks of so many bytes of the disk that are zero are left out; a divisor of [`WINDOW`].
    pub granularity: u64,
    /// Threads.
    pub workers: usize,
}

/// Says where ranges of the disk go, in pieces that cover them exactly and in order.
pub type Place<'a, E> = dyn Fn(&[Range<u64>]) -> Result<Vec<Piece>, E> + Sync + 'a;

/// Copy a range of a disk.
///
/// `place` is called by one worker at a time. `watch` is called now and then by this thread, and ends the
/// copy by an error.
///
/// Precondition: what is placed reads as zeroes where it is not written.
///
/// # Errors
/// The first that occurs; parts may have been written.
pub fn copy<E: Send>(
    plan: &Plan<'_>,
    place: &Place<'_, E>,
    mut watch: impl FnMut() -> Result<(), E>,
) -> Result<(), CopyError<E>> {
    let job = Job {
        plan,
        place,
        source: Mutex::new(Source::new(plan)),
        state: Mutex::new(State { turn: 0, running: plan.workers.max(1), failed: None }),
        changed: Condvar::new(),
        ended: Condvar::new(),
    };
    std::thread::scope(|scope| {
        for _ in 0..plan.workers.max(1) {
            scope.spawn(|| job.work());
        }
        job.wait(&mut watch);
    });
    let failed = lock(&job.state).failed.take();
    failed.map_or(Ok(()), Err)
}

/// What the workers share.
struct Job<'a, E> {
    plan: &'a Plan<'a>,
    place: &'a Place<'a, E>,
    source: Mutex<Source<'a>>,
    state: Mutex<State<E>>,
    /// The turn, or that a worker failed.
    changed: Condvar,
    /// A worker is done.
    ended: Condvar,
}

struct State<E> {
    /// Number of the window that may be written.
    turn: u64,
    running: usize,
    failed: Option<CopyError<E>>,
}

/// Counts a worker out, also when it panics: whoever waits for it must not wait forever.
struct Leaving<'a, 'b, E>(&'a Job<'b, E>);

impl<E> Drop for Leaving<'_, '_, E> {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        state.running -= 1;
        if std::thread::panicking() && state.failed.is_none() {
            state.failed = Some(CopyError::Misplaced);
        }
        drop(state);
        self.0.changed.notify_all();
        self.0.ended.notify_all();
    }
}

impl<E: Send> Job<'_, E> {
    /// Until the workers are done, look after the watcher.
    fn wait(&self, watch: &mut impl FnMut() -> Result<(), E>) {
        let mut state = lock(&self.state);
        while state.running > 0 {
            let (woken, timeout) =
                self.ended.wait_timeout(state, POLL).unwrap_or_else(PoisonError::into_inner);
            state = woken;
            if timeout.timed_out() && state.failed.is_none() {
                drop(state);
                let outcome = watch();
                state = lock(&self.state);
                if let Err(error) = outcome {
                    self.fail(&mut state, CopyError::Stopped(error));
                }
            }
        }
    }

    fn fail(&self, state: &mut State<E>, error: CopyError<E>) {
        state.failed.get_or_insert(error);
        self.changed.notify_all();
    }

    fn work(&self) {
        let _leaving = Leaving(self);
        let mut buffer = vec![0; WINDOW as usize];
        if let Err(error) = self.copy_windows(&mut buffer) {
            self.fail(&mut lock(&self.state), error);
        }
    }

    fn copy_windows(&self, buffer: &mut [u8]) -> Result<(), CopyError<E>> {
        let mut pieces = Vec::new();
        loop {
            let Some((number, offset)) = lock(&self.source).next_window(&mut pieces) else { return Ok(()) };
            let size = read_pieces(&pieces, buffer)?;
            let data = &buffer[..size];
            let runs = nonzero_runs(data, offset, self.plan.granularity);
            if !self.wait_for_turn(number) {
                return Ok(());
            }
            if !runs.is_empty() {
                let placed = (self.place)(&runs).map_err(CopyError::Place)?;
                write_runs(data, offset, &runs, &placed)?;
            }
            self.pass_turn();
        }
    }

    /// Wait until the windows before this one are written; `false` when another worker failed.
    ///
    /// The host lets one thread at a time write to a file, and burns processor time in those that wait.
    fn wait_for_turn(&self, number: u64) -> bool {
        let mut state = lock(&self.state);
        while state.turn != number && state.failed.is_none() {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.failed.is_none()
    }

    fn pass_turn(&self) {
        lock(&self.state).turn += 1;
        self.changed.notify_all();
    }
}

/// The windows of the source that hold data.
struct Source<'a> {
    pieces: &'a [Piece],
    /// Bytes of the first of `pieces` that were taken already.
    taken: u64,
    offset: u64,
    number: u64,
    map: DataMap,
}

impl<'a> Source<'a> {
    fn new(plan: &Plan<'a>) -> Self {
        Self { pieces: plan.pieces, taken: 0, offset: plan.offset, number: 0, map: DataMap::default() }
    }

    /// Number and disk offset of the next window, and what it consists of; `None` at the end.
    fn next_window(&mut self, window: &mut Vec<Piece>) -> Option<(u64, u64)> {
        loop {
            self.skip_zeroes();
            let start = self.offset;
            self.take_window(window)?;
            if window.iter().any(|piece| piece.place.is_some()) {
                self.number += 1;
                return Some((self.number - 1, start));
            }
        }
    }

    /// Leave out zeroes that go on, however long.
    fn skip_zeroes(&mut self) {
        while let Some((Piece { place: None, size }, rest)) = self.pieces.split_first() {
            self.offset += size - self.taken;
            self.taken = 0;
            self.pieces = rest;
        }
    }

    /// Put what is left up to a window's end into `window`, holes of files as zeroes.
    fn take_window(&mut self, window: &mut Vec<Piece>) -> Option<()> {
        window.clear();
        let end = (self.offset / WINDOW + 1) * WINDOW;
        while self.offset < end {
            let Some((piece, rest)) = self.pieces.split_first() else { break };
            let size = (piece.size - self.taken).min(end - self.offset);
            let place = piece.place.map(|(fd, host)| (fd, host + self.taken));
            let place = place.filter(|&(fd, host)| self.map.has_data(fd, host, size));
            window.push(Piece { place, size });
            self.offset += size;
            self.taken += size;
            if self.taken == piece.size {
                self.pieces = rest;
                self.taken = 0;
            }
        }
        (!window.is_empty()).then_some(())
    }
}

/// Read pieces one after the other; returns how many bytes they are.
fn read_pieces(pieces: &[Piece], buffer: &mut [u8]) -> io::Result<usize> {
    let mut at = 0;
    for piece in pieces {
        let part = &mut buffer[at..at + piece.size as usize];
        let found = match piece.place {
            Some((fd, host)) => read_at(fd, part, host)?,
            None => 0,
        };
        part[found..].fill(0);
        at += part.len();
    }
    Ok(at)
}

/// Write the runs of a window that begins at `offset` to where they were placed.
fn write_runs<E>(
    data: &[u8],
    offset: u64,
    runs: &[Range<u64>],
    placed: &[Piece],
) -> Result<(), CopyError<E>> {
    let mut places = placed.iter();
    for run in runs {
        let mut part = &data[(run.start - offset) as usize..(run.end - offset) as usize];
        while !part.is_empty() {
            let piece = places.next().ok_or(CopyError::Misplaced)?;
            let (fd, host) = piece.place.ok_or(CopyError::Misplaced)?;
            if piece.size == 0 || piece.size > part.len() as u64 {
                return Err(CopyError::Misplaced);
            }
            let (here, rest) = part.split_at(piece.size as usize);
            write_at(fd, here, host)?;
            part = rest;
        }
    }
    places.next().map_or(Ok(()), |_| Err(CopyError::Misplaced))
}

/// A lock that a panic elsewhere does not take away.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::{AsRawFd, FromRawFd};
    use std::sync::atomic::{AtomicU64, Ordering};

    const MIB: u64 = 1 << 20;

    fn memory_file() -> File {
        // SAFETY: the name is a C string; a failed call gives -1, which every later call refuses.
        unsafe { File::from_raw_fd(libc::memfd_create(c"test".as_ptr(), libc::MFD_CLOEXEC)) }
    }

    fn patterned(file: &File, offset: u64, size: u64) {
        let data: Vec<u8> = (offset..offset + size).map(|n| (n / 512 % 251 + 1) as u8).collect();
        write_at(file.as_raw_fd(), &data, offset).expect("a memory file takes bytes");
    }

    fn content(file: &File, size: u64) -> Vec<u8> {
        let mut data = vec![0; size as usize];
        read_at(file.as_raw_fd(), &mut data, 0).expect("it is open");
        data
    }

    fn same_place(fd: RawFd) -> impl Fn(&[Range<u64>]) -> Result<Vec<Piece>, ()> + Sync {
        move |runs| {
            let piece = |run: &Range<u64>| Piece { place: Some((fd, run.start)), size: run.end - run.start };
            Ok(runs.iter().map(piece).collect())
        }
    }

    #[test]
    fn copies_data_and_leaves_holes_and_zeroes_out() {
        let (source, target) = (memory_file(), memory_file());
        patterned(&source, 0, MIB + 5 * 512);
        write_at(source.as_raw_fd(), &vec![0; MIB as usize], 4 * MIB).expect("room");
        patterned(&source, 9 * MIB, 3 * MIB);
        let fd = source.as_raw_fd();
        let pieces = [Piece { place: Some((fd, 0)), size: 12 * MIB }];
        let plan = Plan { offset: 0, pieces: &pieces, granularity: 4096, workers: 3 };
        let written = AtomicU64::new(0);
        let place = |runs: &[Range<u64>]| {
            written.fetch_add(runs.iter().map(|run| run.end - run.start).sum(), Ordering::Relaxed);
            same_place(target.as_raw_fd())(runs)
        };
        copy(&plan, &place, || Ok(())).expect("nothing refuses");
        assert!(content(&target, 12 * MIB) == content(&source, 12 * MIB));
        assert_eq!(written.load(Ordering::Relaxed), 4 * MIB + 4096);
    }

    #[test]
    fn pieces_are_put_together_in_the_disks_order() {
        let (source, target) = (memory_file(), memory_file());
        patterned(&source, 0, 2 * MIB);
        let fd = source.as_raw_fd();
        let pieces = [
            Piece { place: Some((fd, MIB)), size: MIB },
            Piece { place: None, size: 512 },
            Piece { place: Some((fd, 0)), size: MIB },
        ];
        let plan = Plan { offset: 512, pieces: &pieces, granularity: 512, workers: 2 };
        copy(&plan, &same_place(target.as_raw_fd()), || Ok(())).expect("nothing refuses");
        let (from, to) = (content(&source, 2 * MIB), content(&target, 2 * MIB + 1024));
        assert!(to[512..][..MIB as usize] == from[MIB as usize..]);
        assert!(to[MIB as usize + 1024..] == from[..MIB as usize]);
        assert!(to[..512].iter().chain(&to[MIB as usize + 512..][..512]).all(|&byte| byte == 0));
    }

    #[test]
    fn windows_are_placed_in_order() {
        let (source, target) = (memory_file(), memory_file());
        patterned(&source, 0, 16 * MIB);
        let pieces = [Piece { place: Some((source.as_raw_fd(), 0)), size: 16 * MIB }];
        let plan = Plan { offset: 0, pieces: &pieces, granularity: 65536, workers: 4 };
        let seen = Mutex::new(Vec::new());
        let place = |runs: &[Range<u64>]| {
            lock(&seen).push(runs[0].start);
            same_place(target.as_raw_fd())(runs)
        };
        copy(&plan, &place, || Ok(())).expect("nothing refuses");
        assert_eq!(*lock(&seen), (0..16).map(|n| n * MIB).collect::<Vec<_>>());
    }

    #[test]
    fn the_first_error_ends_it() {
        let source = memory_file();
        patterned(&source, 0, 8 * MIB);
        let pieces = [Piece { place: Some((source.as_raw_fd(), 0)), size: 8 * MIB }];
        let plan = Plan { offset: 0, pieces: &pieces, granularity: 4096, workers: 2 };
        let refuse = |_: &[Range<u64>]| Err("no room");
        assert!(matches!(copy(&plan, &refuse, || Ok(())), Err(CopyError::Place("no room"))));
        let nowhere = same_place(-1);
        assert!(matches!(copy(&plan, &nowhere, || Ok(())), Err(CopyError::Host(_))));
        let short = |runs: &[Range<u64>]| -> Result<_, ()> {
            Ok(vec![Piece { place: Some((-1, 0)), size: runs[0].end - runs[0].start + 1 }])
        };
        assert!(matches!(copy(&plan, &short, || Ok(())), Err(CopyError::Misplaced)));
    }

    #[test]
    fn the_watcher_can_end_it() {
        let source = memory_file();
        patterned(&source, 0, 8 * MIB);
        let pieces = [Piece { place: Some((source.as_raw_fd(), 0)), size: 8 * MIB }];
        let plan = Plan { offset: 0, pieces: &pieces, granularity: 4096, workers: 2 };
        // Nothing is placed until the watcher has been asked.
        let (stopped, wake) = (Mutex::new(false), Condvar::new());
        let place = |runs: &[Range<u64>]| {
            let mut now = lock(&stopped);
            while !*now {
                now = wake.wait(now).unwrap_or_else(PoisonError::into_inner);
            }
            drop(now);
            same_place(source.as_raw_fd())(runs)
        };
        let watch = || {
            *lock(&stopped) = true;
            wake.notify_all();
            Err(())
        };
        assert!(matches!(copy(&plan, &place, watch), Err(CopyError::Stopped(()))));
    }
}

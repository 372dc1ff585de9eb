//! Copying what a disk holds into a new image: large pieces, zeroes left out.
//!
//! The source's pieces say where a range of the disk is stored. One thread reads window by window and looks
//! for blocks of zeroes, some windows ahead; the caller's thread has the rest placed by the target's format
//! and writes it there, in the disk's order, so that the same disk gives the same image every time. More
//! threads do not help: the host lets one at a time write to a file.

use crate::file::write_at;
use crate::source::Source;
pub use crate::source::{Piece, WINDOW};
use crate::zeroes::nonzero_runs;
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Windows that are read before they are written.
const AHEAD: usize = 8;
/// How often the watcher is asked.
const POLL: Duration = Duration::from_millis(100);

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
}

/// Copy a range of a disk.
///
/// `place` says where ranges of the disk go, in pieces that cover them exactly and in order. `watch` is
/// called now and then, and ends the copy by an error. Both are called by this thread.
///
/// Precondition: what is placed reads as zeroes where it is not written.
///
/// # Errors
/// The first that occurs; parts may have been written.
pub fn copy<E>(
    plan: &Plan<'_>,
    mut place: impl FnMut(&[Range<u64>]) -> Result<Vec<Piece>, E>,
    mut watch: impl FnMut() -> Result<(), E>,
) -> Result<(), CopyError<E>> {
    let queue = Queue::default();
    std::thread::scope(|scope| {
        std::thread::Builder::new().spawn_scoped(scope, || queue.fill(plan))?;
        let _stopping = Stopping(&queue);
        let mut asked = Instant::now();
        loop {
            let next = queue.take();
            if matches!(next, Next::Later) || asked.elapsed() >= POLL {
                watch().map_err(CopyError::Stopped)?;
                asked = Instant::now();
            }
            match next {
                Next::Window(window) => {
                    let window = window?;
                    let placed = place(&window.runs).map_err(CopyError::Place)?;
                    write_runs(&window.data, window.offset, &window.runs, &placed)?;
                    queue.give_back(window.data);
                }
                Next::Later => {}
                Next::End => return Ok(()),
            }
        }
    })
}

/// What was read of the source and has something in it.
struct Window {
    /// Byte of the disk.
    offset: u64,
    data: Vec<u8>,
    /// Ranges of the disk that are to be written.
    runs: Vec<Range<u64>>,
}

/// What the writer finds in the queue.
enum Next {
    Window(io::Result<Window>),
    /// Nothing came for the time of [`POLL`].
    Later,
    /// Nothing will come.
    End,
}

/// Between the thread that reads and the one that writes.
#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    windows: VecDeque<io::Result<Window>>,
    /// Memory of windows that were written.
    empty: Vec<Vec<u8>>,
    /// Nothing more is read.
    ended: bool,
    /// Nothing more is written.
    stopped: bool,
    /// Somebody sleeps.
    waiting: bool,
}

/// Ends the reader, however the writer ends.
struct Stopping<'a>(&'a Queue);

impl Drop for Stopping<'_> {
    fn drop(&mut self) {
        self.0.change(|state| state.stopped = true);
    }
}

/// Lets the writer end, also when the reader panics.
struct Ending<'a>(&'a Queue);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.change(|state| state.ended = true);
    }
}

impl Queue {
    /// The reader's work: read everything, until there is no more, it fails, or nobody wants it.
    fn fill(&self, plan: &Plan<'_>) {
        let _ending = Ending(self);
        let mut source = Source::new(plan.offset, plan.pieces);
        let mut data = Vec::new();
        loop {
            let window = match source.read_window(&mut data) {
                Ok(None) => return,
                Ok(Some(offset)) => {
                    let runs = nonzero_runs(&data, offset, plan.granularity);
                    if runs.is_empty() {
                        continue;
                    }
                    Ok(Window { offset, data, runs })
                }
                Err(error) => Err(error),
            };
            let failed = window.is_err();
            self.change(|state| state.windows.push_back(window));
            match self.take_empty() {
                Some(next) if !failed => data = next,
                _ => return,
            }
        }
    }

    /// Memory for the next window, as soon as the writer is not too far behind; `None` when it has stopped.
    fn take_empty(&self) -> Option<Vec<u8>> {
        let mut state = self.lock();
        if state.windows.len() >= AHEAD {
            // Waking costs more than reading a window, so it is done for several.
            while state.windows.len() > AHEAD / 2 && !state.stopped {
                state.waiting = true;
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
        (!state.stopped).then(|| state.empty.pop().unwrap_or_default())
    }

    /// The next window for the writer.
    fn take(&self) -> Next {
        let mut state = self.lock();
        if state.windows.is_empty() && !state.ended {
            state.waiting = true;
            state = self.changed.wait_timeout(state, POLL).unwrap_or_else(PoisonError::into_inner).0;
        }
        match state.windows.pop_front() {
            Some(window) => {
                if state.windows.len() == AHEAD / 2 {
                    self.wake(&mut state);
                }
                Next::Window(window)
            }
            None if state.ended => Next::End,
            None => Next::Later,
        }
    }

    fn give_back(&self, data: Vec<u8>) {
        self.lock().empty.push(data);
    }

    fn change(&self, how: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        how(&mut state);
        self.wake(&mut state);
    }

    fn wake(&self, state: &mut State) {
        if std::mem::take(&mut state.waiting) {
            self.changed.notify_all();
        }
    }

    /// A panic of the other thread does not take the lock away.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::read_at;
    use std::fs::File;
    use std::os::fd::{AsRawFd, FromRawFd, RawFd};

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

    fn same_place(fd: RawFd) -> impl Fn(&[Range<u64>]) -> Result<Vec<Piece>, ()> {
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
        let plan = Plan { offset: 0, pieces: &pieces, granularity: 4096 };
        let mut written = 0;
        let place = |runs: &[Range<u64>]| {
            written += runs.iter().map(|run| run.end - run.start).sum::<u64>();
            same_place(target.as_raw_fd())(runs)
        };
        copy(&plan, place, || Ok(())).expect("nothing refuses");
        assert!(content(&target, 12 * MIB) == content(&source, 12 * MIB));
        assert_eq!(written, 4 * MIB + 4096);
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
        let plan = Plan { offset: 512, pieces: &pieces, granularity: 512 };
        copy(&plan, same_place(target.as_raw_fd()), || Ok(())).expect("nothing refuses");
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
        let plan = Plan { offset: 0, pieces: &pieces, granularity: 65536 };
        let mut seen = Vec::new();
        let place = |runs: &[Range<u64>]| {
            seen.push(runs[0].start);
            same_place(target.as_raw_fd())(runs)
        };
        copy(&plan, place, || Ok(())).expect("nothing refuses");
        assert_eq!(seen, (0..16).map(|n| n * MIB).collect::<Vec<_>>());
    }

    #[test]
    fn the_first_error_ends_it() {
        let source = memory_file();
        patterned(&source, 0, 8 * MIB);
        let pieces = [Piece { place: Some((source.as_raw_fd(), 0)), size: 8 * MIB }];
        let plan = Plan { offset: 0, pieces: &pieces, granularity: 4096 };
        let refuse = |_: &[Range<u64>]| Err("no room");
        assert!(matches!(copy(&plan, refuse, || Ok(())), Err(CopyError::Place("no room"))));
        let nowhere = same_place(-1);
        assert!(matches!(copy(&plan, nowhere, || Ok(())), Err(CopyError::Host(_))));
        let short = |runs: &[Range<u64>]| -> Result<_, ()> {
            Ok(vec![Piece { place: Some((-1, 0)), size: runs[0].end - runs[0].start + 1 }])
        };
        assert!(matches!(copy(&plan, short, || Ok(())), Err(CopyError::Misplaced)));
    }

    #[test]
    fn the_watcher_can_end_it() {
        let source = memory_file();
        patterned(&source, 0, 8 * MIB);
        let pieces = [Piece { place: Some((source.as_raw_fd(), 0)), size: 8 * MIB }];
        let plan = Plan { offset: 0, pieces: &pieces, granularity: 4096 };
        let mut placed = 0;
        let place = |runs: &[Range<u64>]| {
            placed += 1;
            std::thread::sleep(POLL);
            same_place(source.as_raw_fd())(runs)
        };
        assert!(matches!(copy(&plan, place, || Err(())), Err(CopyError::Stopped(()))));
        assert!(placed <= 1);
    }

    #[test]
    fn a_reader_far_ahead_waits_and_goes_on() {
        let (source, target) = (memory_file(), memory_file());
        let size = 4 * AHEAD as u64 * WINDOW;
        patterned(&source, 0, size);
        let pieces = [Piece { place: Some((source.as_raw_fd(), 0)), size }];
        let plan = Plan { offset: 0, pieces: &pieces, granularity: 65536 };
        let place = |runs: &[Range<u64>]| {
            std::thread::sleep(Duration::from_millis(2));
            same_place(target.as_raw_fd())(runs)
        };
        copy(&plan, place, || Ok(())).expect("nothing refuses");
        assert!(content(&target, size) == content(&source, size));
    }

    #[test]
    fn a_source_that_cannot_be_read_ends_it() {
        let pieces = [Piece { place: Some((-1, 0)), size: 8 * MIB }];
        let plan = Plan { offset: 0, pieces: &pieces, granularity: 4096 };
        let said = copy(&plan, same_place(-1), || Ok(()));
        assert!(matches!(said, Err(CopyError::Host(error)) if error.raw_os_error() == Some(libc::EBADF)));
    }
}

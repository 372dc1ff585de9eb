//! A network on the real kernel: a stack behind a lock, and the caller's thread that sleeps until a socket, a
//! deadline or another thread wants something.
//!
//! Frames are worked on by the thread that brings them, and what sockets have by the thread that takes
//! frames for the guest, so that neither direction costs a thread switch of its own. The lock is held for one
//! batch at a time.

use crate::config::{Config, Forward};
use crate::host::linux::LinuxHost;
use crate::host::poller::{Event, Poller};
use crate::host::Token;
use crate::outbox::Frame;
use crate::stack::Stack;
use crate::tcp::connection::ACK_DELAY;
use std::io::{self, Error};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// No token packs to this.
const WAKE: u64 = 0;
/// Nanoseconds that the taker of a busy network sleeps at most: no longer than a delayed acknowledgment may
/// wait, so that the deadlines of a conversation wake nobody as long as it goes on.
const NAP: u64 = ACK_DELAY;

struct Inner {
    stack: Stack<LinuxHost>,
    /// When the sleeping taker looks again by itself; 0 while it is up, or about to be.
    sleeps_until: u64,
    /// The guest has had room since the taker last waited for it.
    room: bool,
    /// The taker has frames in hand, and wants no more.
    waits_for_room: bool,
    /// Something has happened since the taker last lay down.
    busy: bool,
    closed: bool,
}

/// What the taker sleeps on.
struct Sleeper {
    poller: Poller,
    events: Vec<Event>,
}

/// One network. Lock order: `sleeper`, then `inner`.
pub struct Engine {
    inner: Mutex<Inner>,
    sleeper: Mutex<Sleeper>,
    wake: OwnedFd,
    start: Instant,
}

impl Engine {
    /// Open the forwarded ports and start.
    ///
    /// # Errors
    /// The host's, with the forward that it refused.
    pub fn start(config: Config, forwards: &[Forward]) -> Result<Self, (io::Error, Option<Forward>)> {
        let plain = |error| (error, None);
        let host = LinuxHost::new().map_err(plain)?;
        let poller = host.poller().map_err(plain)?;
        let wake = event_fd().map_err(plain)?;
        poller.add(wake.as_raw_fd(), WAKE).map_err(plain)?;
        let mut stack = Stack::new(host, config);
        for forward in forwards {
            stack.add_forward(*forward).map_err(|error| (error, Some(*forward)))?;
        }
        Ok(Self {
            inner: Mutex::new(Inner {
                stack,
                sleeps_until: 0,
                room: false,
                waits_for_room: false,
                busy: false,
                closed: false,
            }),
            sleeper: Mutex::new(Sleeper { poller, events: Vec::new() }),
            wake,
            start: Instant::now(),
        })
    }

    fn now(&self) -> u64 {
        // The monotonic clock of 500 years fits.
        self.start.elapsed().as_nanos() as u64
    }

    /// A stack in which another thread panicked goes on: its tables are consistent between packets.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        let one = 1u64.to_ne_bytes();
        // Never read: epoll reports every write to an edge-triggered eventfd.
        // SAFETY: pointer and length are of one array.
        let _ = unsafe { libc::write(self.wake.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    /// Let go of the stack, and get the taker up if it sleeps and `wanted` says why it should not.
    fn release(&self, mut inner: MutexGuard<'_, Inner>, wanted: impl FnOnce(&Inner) -> bool) {
        let wake = inner.sleeps_until > 0 && wanted(&inner);
        if wake {
            inner.sleeps_until = 0;
        }
        drop(inner);
        if wake {
            self.wake();
        }
    }

    /// After work on another thread than the taker's: it may have to get up earlier, or has something to take.
    fn finish(&self, mut inner: MutexGuard<'_, Inner>) {
        inner.stack.settle();
        self.release(inner, |inner| {
            let earlier = inner.stack.next_deadline().is_some_and(|at| at < inner.sleeps_until);
            earlier || !(inner.waits_for_room || inner.stack.context.outbox.is_empty())
        });
    }

    /// Take frames of the guest, each behind its offload header.
    pub fn send<'a>(&self, frames: impl Iterator<Item = &'a [u8]>) {
        let now = self.now();
        let mut inner = self.lock();
        if inner.closed {
            return;
        }
        inner.busy = true;
        for frame in frames {
            inner.stack.input(now, frame);
        }
        self.finish(inner);
    }

    /// Frames for the guest, at most `limit`; serves the sockets until there is one, or until `timeout`.
    ///
    /// Nothing comes back at the timeout and once the network is closed. Sockets are served here and in
    /// [`Self::wait_for_room`] alone: one thread is to be in either whenever it has nothing else to do.
    pub fn take(&self, limit: usize, timeout: Option<Duration>) -> Vec<Frame> {
        let end = timeout.map(|timeout| self.now().saturating_add(timeout.as_nanos() as u64));
        self.serve_until(end, |inner| !inner.stack.context.outbox.is_empty());
        let mut inner = self.lock();
        let frames: Vec<Frame> = std::iter::from_fn(|| inner.stack.take()).take(limit).collect();
        inner.stack.context.now = self.now();
        self.finish(inner);
        frames
    }

    /// Serve the sockets until [`Self::has_room`] is called; at once if it was called since the last time.
    pub fn wait_for_room(&self) {
        self.lock().waits_for_room = true;
        self.serve_until(None, |inner| inner.room);
        let mut inner = self.lock();
        (inner.room, inner.waits_for_room) = (false, false);
    }

    /// The guest has room for frames again.
    pub fn has_room(&self) {
        let mut inner = self.lock();
        inner.room = true;
        self.release(inner, |inner| inner.waits_for_room);
    }

    /// Handle what happens, until `done`, the time `end`, or the end of the network.
    fn serve_until(&self, end: Option<u64>, done: impl Fn(&Inner) -> bool) {
        let mut sleeper = self.sleeper.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let timeout = {
                let mut inner = self.lock();
                let now = self.now();
                if done(&inner) || inner.closed || end.is_some_and(|end| end <= now) {
                    return;
                }
                let nap = std::mem::take(&mut inner.busy).then_some(now + NAP);
                let deadline = inner.stack.next_deadline().into_iter().chain(end).chain(nap).min();
                inner.sleeps_until = deadline.unwrap_or(u64::MAX);
                deadline.map(|at| milliseconds_until(at, now))
            };
            let Sleeper { poller, events } = &mut *sleeper;
            let slept = poller.wait(timeout, events);
            self.handle(events);
            if slept.is_err() {
                self.lock().closed = true;
            }
        }
    }

    fn handle(&self, events: &[Event]) {
        let now = self.now();
        let mut inner = self.lock();
        // Whoever works now need not wake the sleeper, who is up.
        inner.sleeps_until = 0;
        inner.busy |= !events.is_empty();
        for event in events {
            if let Some(token) = Token::unpack(event.number) {
                inner.stack.ready(now, token, event.ready);
            }
        }
        inner.stack.expire(now);
        inner.stack.settle();
    }

    /// Whether the network was closed.
    pub fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Look at the stack, at a time.
    pub fn inspect<T>(&self, look: impl FnOnce(&mut Stack<LinuxHost>, u64) -> T) -> T {
        let now = self.now();
        let mut inner = self.lock();
        look(&mut inner.stack, now)
    }

    /// Serve nobody any more: whoever takes or waits comes back. Idempotent.
    pub fn close(&self) {
        self.lock().closed = true;
        self.wake();
    }
}

fn event_fd() -> io::Result<OwnedFd> {
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
    if fd < 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: the descriptor is new and ours.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Rounded up, so that the deadline has come when the sleep ends.
fn milliseconds_until(at: u64, now: u64) -> u32 {
    let left = at.saturating_sub(now).div_ceil(1_000_000);
    u32::try_from(left).unwrap_or(u32::MAX)
}

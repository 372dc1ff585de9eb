//! A network on the real kernel: a stack behind a lock, and a thread that sleeps until a socket, a deadline
//! or another thread wants something.
//!
//! Frames are worked on by the thread that brings them, so that a guest's packet costs no thread switch. The
//! lock is held for one batch at a time.

use crate::config::{Config, Forward};
use crate::host::linux::{Event, LinuxHost, Poller};
use crate::host::Token;
use crate::outbox::Frame;
use crate::stack::Stack;
use std::io::{self, Error};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// No token packs to this.
const WAKE: u64 = 0;

struct Inner {
    stack: Stack<LinuxHost>,
    /// When the thread looks again by itself.
    sleeps_until: u64,
    closed: bool,
}

struct Shared {
    inner: Mutex<Inner>,
    /// Signalled when there are frames for the guest, and at the end.
    filled: Condvar,
    wake: OwnedFd,
    start: Instant,
}

/// One network.
pub struct Engine {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Shared {
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

    /// After work on another thread: the sleeper may have to get up earlier, and the taker has something.
    fn finish(&self, mut inner: MutexGuard<'_, Inner>) {
        inner.stack.settle();
        let filled = !inner.stack.context.outbox.is_empty();
        let earlier = inner.stack.next_deadline().is_some_and(|at| at < inner.sleeps_until);
        if earlier {
            inner.sleeps_until = 0;
        }
        std::mem::drop(inner);
        if earlier {
            self.wake();
        }
        if filled {
            self.filled.notify_all();
        }
    }
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
        let inner = Mutex::new(Inner { stack, sleeps_until: 0, closed: false });
        let shared = Arc::new(Shared { inner, filled: Condvar::new(), wake, start: Instant::now() });
        let runner = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("nat".into())
            .spawn(move || run(&runner, &poller))
            .map_err(plain)?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Take frames of the guest, each behind its offload header.
    pub fn send<'a>(&self, frames: impl Iterator<Item = &'a [u8]>) {
        let now = self.shared.now();
        let mut inner = self.shared.lock();
        if inner.closed {
            return;
        }
        for frame in frames {
            inner.stack.input(now, frame);
        }
        self.shared.finish(inner);
    }

    /// Frames for the guest, at most `limit`; waits for the first until `timeout`, or without limit.
    ///
    /// Nothing comes back at the timeout and once the network is closed.
    pub fn take(&self, limit: usize, timeout: Option<Duration>) -> Vec<Frame> {
        let mut inner = self.shared.lock();
        let end = timeout.map(|timeout| Instant::now() + timeout);
        while inner.stack.context.outbox.is_empty() && !inner.closed {
            inner = match end {
                None => self.shared.filled.wait(inner).unwrap_or_else(PoisonError::into_inner),
                Some(end) => {
                    let left = end.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Vec::new();
                    }
                    let waited = self.shared.filled.wait_timeout(inner, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        let frames: Vec<Frame> = std::iter::from_fn(|| inner.stack.take()).take(limit).collect();
        inner.stack.context.now = self.shared.now();
        self.shared.finish(inner);
        frames
    }

    /// Whether the network was closed.
    pub fn is_closed(&self) -> bool {
        self.shared.lock().closed
    }

    /// Look at the stack, at a time.
    pub fn inspect<T>(&self, look: impl FnOnce(&mut Stack<LinuxHost>, u64) -> T) -> T {
        let now = self.shared.now();
        let mut inner = self.shared.lock();
        look(&mut inner.stack, now)
    }

    /// Stop the thread and close every socket; connections are reset. Idempotent.
    pub fn close(&self) {
        self.shared.lock().closed = true;
        self.shared.wake();
        self.shared.filled.notify_all();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A panic of the thread has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.close();
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

/// Ends the network when its thread ends, by a panic too: nobody waits for it then.
struct EndOfThread<'a>(&'a Shared);

impl Drop for EndOfThread<'_> {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.filled.notify_all();
    }
}

/// The thread: sleep, then handle what happened.
fn run(shared: &Shared, poller: &Poller) {
    let _end = EndOfThread(shared);
    let mut events = Vec::new();
    loop {
        let timeout = {
            let mut inner = shared.lock();
            if inner.closed {
                return;
            }
            let deadline = inner.stack.next_deadline();
            inner.sleeps_until = deadline.unwrap_or(u64::MAX);
            deadline.map(|at| milliseconds_until(at, shared.now()))
        };
        if poller.wait(timeout, &mut events).is_err() {
            return;
        }
        handle(shared, &events);
    }
}

/// Rounded up, so that the deadline has come when the sleep ends.
fn milliseconds_until(at: u64, now: u64) -> u32 {
    let left = at.saturating_sub(now).div_ceil(1_000_000);
    u32::try_from(left).unwrap_or(u32::MAX)
}

fn handle(shared: &Shared, events: &[Event]) {
    let now = shared.now();
    let mut inner = shared.lock();
    // Whoever works now need not wake the sleeper, who is up.
    inner.sleeps_until = 0;
    for event in events {
        if let Some(token) = Token::unpack(event.number) {
            inner.stack.ready(now, token, event.ready);
        }
    }
    inner.stack.expire(now);
    shared.finish(inner);
}

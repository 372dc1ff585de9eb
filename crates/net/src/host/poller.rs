//! One epoll set, edge-triggered.
//!
//! Reference: Linux man-pages 6.03 epoll(7).

use super::address::check;
use super::Ready;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// Of one wait; more than that of one connection is waste with thousands.
const EVENTS_AT_ONCE: usize = 64;

/// What `epoll_wait` reports.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// What was registered, see [`Token::pack`].
    pub number: u64,
    /// What became possible.
    pub ready: Ready,
}

pub(super) fn control(epoll: &OwnedFd, operation: i32, fd: RawFd, number: u64) -> io::Result<()> {
    let interest = libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET;
    let mut event = libc::epoll_event { events: interest as u32, u64: number };
    // SAFETY: `event` lives over the call.
    check(unsafe { libc::epoll_ctl(epoll.as_raw_fd(), operation, fd, &mut event) })?;
    Ok(())
}

/// Waits for readiness.
pub struct Poller {
    pub(super) epoll: OwnedFd,
}

impl Poller {
    /// Register a descriptor that is no socket of the stack under a number of its own.
    ///
    /// # Errors
    /// The system call's.
    pub fn add(&self, fd: RawFd, number: u64) -> io::Result<()> {
        control(&self.epoll, libc::EPOLL_CTL_ADD, fd, number)
    }

    /// Wait for events; without `timeout_ms`, until there is one.
    ///
    /// # Errors
    /// The system call's, but for an interruption, which reports no events.
    pub fn wait(&self, timeout_ms: Option<u32>, events: &mut Vec<Event>) -> io::Result<()> {
        let mut raw = [libc::epoll_event { events: 0, u64: 0 }; EVENTS_AT_ONCE];
        let timeout = timeout_ms.map_or(-1, |ms| i32::try_from(ms).unwrap_or(i32::MAX));
        // SAFETY: `raw` has room for as many events as are asked for.
        let result = check(unsafe {
            libc::epoll_wait(self.epoll.as_raw_fd(), raw.as_mut_ptr(), EVENTS_AT_ONCE as i32, timeout)
        });
        let count = match result {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            other => other? as usize,
        };
        events.clear();
        events.extend(
            raw[..count].iter().map(|event| Event { number: event.u64, ready: readiness(event.events) }),
        );
        Ok(())
    }
}

fn readiness(bits: u32) -> Ready {
    let has = |bit: i32| bits & bit as u32 != 0;
    let error = has(libc::EPOLLERR) || has(libc::EPOLLHUP);
    Ready {
        readable: has(libc::EPOLLIN) || has(libc::EPOLLRDHUP) || error,
        writable: has(libc::EPOLLOUT) || error,
        error,
        ended: has(libc::EPOLLRDHUP) || error,
    }
}

//! Bytes that a device outside has ready behind a port, so that string input needs no exit for each element.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

/// Ports that can be served at a time: an IDE controller has two data ports.
const LANES: usize = 2;
const UNUSED: u32 = u32::MAX;

#[derive(Default)]
struct Bytes {
    data: Vec<u8>,
    next: usize,
}

struct Lane {
    /// The port, or `UNUSED`; read without the lock to turn other ports away quickly.
    port: AtomicU32,
    bytes: Mutex<Bytes>,
}

/// Data ports of devices outside, with what the next reads of them give.
///
/// The device offers a block and hears nothing of the reads until the last of them, which always exits:
/// it then takes back what is left, and knows from that how far the guest has come. Any thread.
pub struct PortReadAhead {
    lanes: [Lane; LANES],
}

impl Default for PortReadAhead {
    fn default() -> Self {
        Self {
            lanes: std::array::from_fn(|_| Lane { port: AtomicU32::new(UNUSED), bytes: Mutex::default() }),
        }
    }
}

fn lock(lane: &Lane) -> std::sync::MutexGuard<'_, Bytes> {
    // A panic elsewhere leaves bytes and index as they were: both are set under the lock.
    lane.bytes.lock().unwrap_or_else(PoisonError::into_inner)
}

impl PortReadAhead {
    /// Let reads of `port` give `data` in turn, all but the last one; in place of what was offered before.
    /// Without effect where other ports have all lanes: then every read exits, as without an offer.
    pub fn offer(&self, port: u16, data: Vec<u8>) {
        let port = u32::from(port);
        let held = |lane: &&Lane| lane.port.load(Ordering::Acquire) == port;
        let free = |lane: &&Lane| lane.port.load(Ordering::Acquire) == UNUSED;
        if let Some(lane) = self.lanes.iter().find(held).or_else(|| self.lanes.iter().find(free)) {
            *lock(lane) = Bytes { data, next: 0 };
            lane.port.store(port, Ordering::Release);
        }
    }

    /// How many bytes of the last offer were not read; they are no longer offered.
    pub fn take_back(&self, port: u16) -> usize {
        let Some(lane) = self.lane(port) else { return 0 };
        let bytes = std::mem::take(&mut *lock(lane));
        bytes.data.len() - bytes.next
    }

    /// Answer a read of `size` (1, 2 or 4) bytes, if more than that are offered.
    #[must_use]
    pub fn read(&self, port: u16, size: u8) -> Option<u64> {
        let mut bytes = lock(self.lane(port)?);
        let end = bytes.next + usize::from(size.min(8));
        if end >= bytes.data.len() {
            return None;
        }
        let mut raw = [0; 8];
        let part = bytes.data.get(bytes.next..end)?;
        raw.get_mut(..part.len())?.copy_from_slice(part);
        bytes.next = end;
        Some(u64::from_le_bytes(raw))
    }

    fn lane(&self, port: u16) -> Option<&Lane> {
        self.lanes.iter().find(|lane| lane.port.load(Ordering::Acquire) == u32::from(port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_but_the_last_read_are_answered() {
        let ahead = PortReadAhead::default();
        ahead.offer(0x1f0, vec![1, 2, 3, 4, 5, 6]);
        assert_eq!(ahead.read(0x1f0, 2), Some(0x0201));
        assert_eq!(ahead.read(0x1f0, 2), Some(0x0403));
        assert_eq!(ahead.read(0x1f0, 2), None);
        assert_eq!(ahead.take_back(0x1f0), 2);
        assert_eq!(ahead.take_back(0x1f0), 0);
        assert_eq!(ahead.read(0x1f0, 1), None);
    }

    #[test]
    fn an_offer_replaces_the_one_before() {
        let ahead = PortReadAhead::default();
        ahead.offer(0x170, vec![1; 8]);
        assert_eq!(ahead.read(0x170, 4), Some(0x0101_0101));
        ahead.offer(0x170, vec![2; 3]);
        assert_eq!(ahead.read(0x170, 1), Some(2));
        assert_eq!(ahead.take_back(0x170), 2);
    }

    #[test]
    fn other_ports_are_not_touched() {
        let ahead = PortReadAhead::default();
        for port in [0x1f0, 0x170, 0x300] {
            ahead.offer(port, vec![7; 4]);
        }
        assert_eq!(ahead.read(0x1f1, 1), None);
        assert_eq!(ahead.read(0x300, 1), None);
        assert_eq!(ahead.take_back(0x300), 0);
    }
}

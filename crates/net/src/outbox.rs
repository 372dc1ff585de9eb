//! Frames for the guest, until its device takes them: bounded, so that a guest that takes none costs little.

use crate::slab::Id;
use std::collections::VecDeque;
use std::sync::Arc;

/// A frame with its offload header; shared with the queue of what may have to be sent again.
pub type Frame = Arc<Vec<u8>>;

const BULK_BYTES: usize = 2 << 20;
const BULK_FRAMES: usize = 256;
const FRAMES_MAXIMUM: usize = 2048;

/// The queue towards the guest.
///
/// Bulk data stops at a soft bound and waits in the host's sockets; short frames (acknowledgments, answers)
/// go on to a hard bound, past which they are lost as on a wire.
#[derive(Debug, Default)]
pub struct Outbox {
    frames: VecDeque<Frame>,
    bytes: usize,
    waiting: VecDeque<Id>,
    /// Frames lost at the hard bound.
    pub dropped: u64,
    /// Frames and bytes handed to the guest.
    pub sent: (u64, u64),
}

impl Outbox {
    /// Whether bulk data has to wait.
    pub fn is_full(&self) -> bool {
        self.bytes >= BULK_BYTES || self.frames.len() >= BULK_FRAMES
    }

    /// Whether there is nothing to take.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Queue a frame.
    pub fn push(&mut self, frame: impl Into<Frame>) {
        if self.frames.len() >= FRAMES_MAXIMUM {
            self.dropped += 1;
            return;
        }
        let frame = frame.into();
        self.bytes += frame.len();
        self.frames.push_back(frame);
    }

    /// Have a connection called when there is room for bulk data again.
    pub fn wait(&mut self, connection: Id) {
        self.waiting.push_back(connection);
    }

    /// A connection that waited, once there is room.
    pub fn next_waiting(&mut self) -> Option<Id> {
        if self.is_full() {
            return None;
        }
        self.waiting.pop_front()
    }

    /// Take the oldest frame.
    pub fn pop(&mut self) -> Option<Frame> {
        let frame = self.frames.pop_front()?;
        self.bytes -= frame.len();
        self.sent.0 += 1;
        self.sent.1 += frame.len() as u64;
        Some(frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bulk_waits_and_short_frames_are_bounded() {
        let mut outbox = Outbox::default();
        let waiting = Id { index: 1, generation: 0 };
        for _ in 0..FRAMES_MAXIMUM + 1 {
            outbox.push(vec![0; 60]);
        }
        outbox.wait(waiting);
        assert_eq!((outbox.is_full(), outbox.dropped, outbox.next_waiting()), (true, 1, None));
        while outbox.pop().is_some() {}
        assert_eq!((outbox.next_waiting(), outbox.next_waiting()), (Some(waiting), None));
    }
}

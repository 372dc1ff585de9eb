//! The device's side of split virtqueues that carry packets, for drivers that may be hostile.
//!
//! A network card moves tens of thousands of buffers a second, so its queues are walked here; the device
//! itself (features, filters, offloads, interrupts) is Python, in `src/sublet/devices/virtio/net`. The rules
//! are those of `devices/virtio/queue.py`, which serves every other queue.
//!
//! Reference: virtio 1.2 §2.7 "Split Virtqueues".

mod chain;
mod packets;
mod ring;

pub use chain::{Chain, Segment};
pub use packets::{gather, Put};
pub use ring::{Fault, Placement, Positions, Ring};

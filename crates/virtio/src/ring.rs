//! A split virtqueue: chains out of the available ring and into the used ring, and who is to be told.

use crate::chain::{on_bus, Chain};
use std::sync::atomic::{fence, Ordering};
use std::sync::Arc;
use sublet_memory::{GuestMemory, MemoryError};

const USED_ELEMENT_SIZE: u64 = 8;
const AVAILABLE_NO_INTERRUPT: u16 = 1;
const USED_NO_NOTIFY: u16 = 1;

/// What the driver did wrong, in a sentence; the device then asks for a reset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault(pub String);

impl From<MemoryError> for Fault {
    fn from(error: MemoryError) -> Self {
        Self(error.to_string())
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Fault {}

/// Where a queue is, and which of its features were negotiated.
#[derive(Debug, Clone, Copy)]
pub struct Placement {
    /// Entries, a power of two.
    pub size: u16,
    /// Guest-physical address of the descriptor table, a multiple of 16.
    pub descriptors: u64,
    /// Of the available ring, even.
    pub available: u64,
    /// Of the used ring, a multiple of 4.
    pub used: u64,
    /// VIRTIO_F_EVENT_IDX.
    pub event_idx: bool,
    /// VIRTIO_F_INDIRECT_DESC.
    pub indirect: bool,
}

/// How far a queue is; all count modulo 2^16.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Positions {
    /// The next chain to take.
    pub available: u16,
    /// The next chain to return.
    pub used: u16,
    /// The used position that the driver was last told of.
    pub signalled: u16,
}

/// One enabled queue.
pub struct Ring {
    pub(crate) memory: Arc<GuestMemory>,
    pub(crate) at: Placement,
    pub(crate) now: Positions,
    /// Heads of the chains taken and not yet given back, in order.
    pub(crate) taken: Vec<u16>,
}

impl Ring {
    /// A queue at a place.
    ///
    /// # Errors
    /// A part is unaligned, or reaches past the address space.
    pub fn new(memory: Arc<GuestMemory>, at: Placement, now: Positions) -> Result<Self, Fault> {
        if !at.size.is_power_of_two() {
            return Err(Fault(format!("a virtqueue of {} entries", at.size)));
        }
        if at.descriptors % 16 != 0 || at.available % 2 != 0 || at.used % 4 != 0 {
            return Err(Fault("a virtqueue part is not aligned to 16, 2 and 4 bytes".into()));
        }
        let last = at.descriptors.max(at.available).max(at.used);
        if !on_bus(last, 16 * u64::from(at.size) + 6) {
            return Err(Fault("a virtqueue part reaches past the address space".into()));
        }
        Ok(Self { memory, at, now, taken: Vec::new() })
    }

    /// How far it is.
    pub fn positions(&self) -> Positions {
        self.now
    }

    fn load(&self, address: u64) -> Result<u16, Fault> {
        self.memory.load_u16(address).ok_or_else(|| Fault(format!("a virtqueue at {address:#x} is not RAM")))
    }

    /// Chains that the driver has made available and that are not taken yet.
    fn waiting(&self) -> Result<u16, Fault> {
        let count = self.load(self.at.available + 2)?.wrapping_sub(self.now.available);
        if count > self.at.size {
            return Err(Fault(format!(
                "{count} chains available in a virtqueue of {} entries",
                self.at.size
            )));
        }
        Ok(count)
    }

    /// Take a chain, if there is one.
    ///
    /// # Errors
    /// The driver broke a rule.
    pub(crate) fn next(&mut self) -> Result<Option<Chain>, Fault> {
        if self.waiting()? == 0 {
            return Ok(None);
        }
        let slot = u64::from(self.now.available % self.at.size);
        let head = self.load(self.at.available + 4 + 2 * slot)?;
        let chain = Chain::read(&self.memory.view(), &self.at, head)?;
        self.now.available = self.now.available.wrapping_add(1);
        Ok(Some(chain))
    }

    /// Return chains, in order: head, and bytes written into the writable part.
    ///
    /// # Errors
    /// The used ring is not in RAM.
    pub(crate) fn push(&mut self, used: &[(u16, u32)]) -> Result<(), Fault> {
        for &(head, written) in used {
            let slot = u64::from(self.now.used % self.at.size);
            let element = u64::from(head) | u64::from(written) << 32;
            self.memory.write(self.at.used + 4 + USED_ELEMENT_SIZE * slot, &element.to_le_bytes())?;
            self.now.used = self.now.used.wrapping_add(1);
        }
        // After the elements: x86 keeps the order of stores, and `write` is no place to move them across.
        fence(Ordering::Release);
        Ok(self.memory.write(self.at.used + 2, &self.now.used.to_le_bytes())?)
    }

    /// Whether the driver wants an interrupt for what was returned since the last call.
    ///
    /// # Errors
    /// The available ring is not in RAM.
    pub(crate) fn needs_interrupt(&mut self) -> Result<bool, Fault> {
        fence(Ordering::SeqCst);
        let (old, new) = (self.now.signalled, self.now.used);
        self.now.signalled = new;
        if old == new {
            return Ok(false);
        }
        if !self.at.event_idx {
            return Ok(self.load(self.at.available)? & AVAILABLE_NO_INTERRUPT == 0);
        }
        let event = self.load(self.at.available + 4 + 2 * u64::from(self.at.size))?;
        Ok(new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old))
    }

    /// Ask to be notified of the next chain. Returns whether chains became available meanwhile: then take
    /// them, a notification may not come.
    ///
    /// # Errors
    /// A ring is not in RAM.
    pub fn enable_notifications(&self) -> Result<bool, Fault> {
        if self.at.event_idx {
            let event = self.at.used + 4 + USED_ELEMENT_SIZE * u64::from(self.at.size);
            self.memory.write(event, &self.now.available.to_le_bytes())?;
        } else {
            self.memory.write(self.at.used, &0u16.to_le_bytes())?;
        }
        fence(Ordering::SeqCst);
        Ok(self.load(self.at.available + 2)? != self.now.available)
    }

    /// Tell the driver not to notify; with EVENT_IDX a stale event index says so already.
    ///
    /// # Errors
    /// The used ring is not in RAM.
    pub fn disable_notifications(&self) -> Result<(), Fault> {
        if !self.at.event_idx {
            self.memory.write(self.at.used, &USED_NO_NOTIFY.to_le_bytes())?;
        }
        Ok(())
    }
}

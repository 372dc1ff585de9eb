//! Descriptor chains.

use crate::ring::{Fault, Placement};
use sublet_memory::{MemoryView, SMM_SPACE};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const DESCRIPTOR_SIZE: u64 = 16;
/// Entries of an indirect table.
///
/// Deviation: §2.7.5.3.1 limits a table to the queue size; Linux exceeds it on short queues.
const INDIRECT_MAXIMUM: u64 = 1024;
const CHAIN_BYTES_MAXIMUM: u64 = 1 << 32;

/// Guest-physical address and length in bytes, at least 1.
pub type Segment = (u64, u32);

/// One buffer: what the device may read, then what it may write, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chain {
    /// Its first descriptor, by which it is returned.
    pub head: u16,
    /// From the driver.
    pub readable: Vec<Segment>,
    /// For the driver.
    pub writable: Vec<Segment>,
}

struct Descriptor {
    address: u64,
    length: u32,
    flags: u16,
    next: u16,
}

/// Whether devices have such addresses: the processors' system-management memory, above, is none of theirs.
pub fn on_bus(address: u64, length: u64) -> bool {
    address.checked_add(length).is_some_and(|end| end <= SMM_SPACE)
}

/// Bytes of some segments.
pub fn size(segments: &[Segment]) -> u64 {
    segments.iter().map(|&(_, length)| u64::from(length)).sum()
}

impl Chain {
    /// Read the chain that begins with descriptor `head`.
    ///
    /// # Errors
    /// The driver broke a rule.
    pub fn read(memory: &MemoryView, at: &Placement, head: u16) -> Result<Self, Fault> {
        let mut chain = Self { head, ..Self::default() };
        let mut index = head;
        for _ in 0..at.size {
            if index >= at.size {
                return Err(Fault(format!("descriptor {index} in a table of {} entries", at.size)));
            }
            let descriptor = Descriptor::read(memory, at.descriptors, u64::from(index))?;
            if descriptor.flags & INDIRECT != 0 {
                chain.read_indirect(memory, at, &descriptor)?;
                return chain.checked();
            }
            chain.add(&descriptor)?;
            if descriptor.flags & NEXT == 0 {
                return chain.checked();
            }
            index = descriptor.next;
        }
        Err(Fault(format!("descriptor chain from {head} loops")))
    }

    fn read_indirect(
        &mut self,
        memory: &MemoryView,
        at: &Placement,
        table: &Descriptor,
    ) -> Result<(), Fault> {
        let length = u64::from(table.length);
        let count = length / DESCRIPTOR_SIZE;
        if !at.indirect || table.flags & NEXT != 0 {
            return Err(Fault("indirect descriptor without the feature, or with NEXT".into()));
        }
        if length % DESCRIPTOR_SIZE != 0 || count == 0 || count > INDIRECT_MAXIMUM {
            return Err(Fault(format!("indirect table of {length} bytes")));
        }
        let mut index = 0;
        for _ in 0..count {
            if index >= count {
                return Err(Fault(format!("indirect descriptor {index} in a table of {count} entries")));
            }
            let descriptor = Descriptor::read(memory, table.address, index)?;
            if descriptor.flags & INDIRECT != 0 {
                return Err(Fault("nested indirect descriptor".into()));
            }
            self.add(&descriptor)?;
            if descriptor.flags & NEXT == 0 {
                return Ok(());
            }
            index = u64::from(descriptor.next);
        }
        Err(Fault("indirect descriptor table loops".into()))
    }

    fn add(&mut self, descriptor: &Descriptor) -> Result<(), Fault> {
        let Descriptor { address, length, flags, .. } = *descriptor;
        if !on_bus(address, u64::from(length)) {
            return Err(Fault("a buffer reaches past the address space".into()));
        }
        let into = if flags & WRITE != 0 {
            &mut self.writable
        } else if self.writable.is_empty() {
            &mut self.readable
        } else {
            return Err(Fault("readable descriptor after a writable one".into()));
        };
        if length > 0 {
            into.push((address, length));
        }
        Ok(())
    }

    fn checked(self) -> Result<Self, Fault> {
        if size(&self.readable) + size(&self.writable) > CHAIN_BYTES_MAXIMUM {
            return Err(Fault("descriptor chain of more than 4 GiB".into()));
        }
        Ok(self)
    }
}

impl Descriptor {
    fn read(memory: &MemoryView, table: u64, index: u64) -> Result<Self, Fault> {
        let at = table.saturating_add(index * DESCRIPTOR_SIZE);
        if !on_bus(at, DESCRIPTOR_SIZE) {
            return Err(Fault("a descriptor past the address space".into()));
        }
        // Copied once: the driver may change it while it is being looked at.
        let mut raw = [0; DESCRIPTOR_SIZE as usize];
        memory.read(at, &mut raw)?;
        let (address, rest) = raw.split_at(8);
        let word = |at: usize| u16::from_le_bytes([rest[at], rest[at + 1]]);
        Ok(Self {
            address: u64::from_le_bytes(address.try_into().unwrap_or_default()),
            length: u32::from(word(0)) | u32::from(word(2)) << 16,
            flags: word(4),
            next: word(6),
        })
    }
}

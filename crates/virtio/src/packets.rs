//! Packets into a receive queue's buffers, and out of a transmit queue's.
//!
//! A packet is `struct virtio_net_hdr_v1` (12 bytes) and an Ethernet frame. Drivers that negotiated neither
//! VIRTIO_F_VERSION_1 nor VIRTIO_NET_F_MRG_RXBUF have a header without its last two bytes.
//!
//! Reference: virtio 1.2 §5.1.6 "Device Operation".

use crate::chain::{size, Chain, Segment};
use crate::ring::{Fault, Ring};
use std::sync::Arc;
use sublet_memory::{GuestMemory, MemoryView};

/// Bytes of the header in a packet, whatever the driver's is.
const HEADER_SIZE: usize = 12;
const BUFFERS_AT: usize = 10;
/// §5.1.6.3.1: without merged buffers and large packets, buffers MUST have this size at least.
const FULL_BUFFER_SIZE: u64 = 1526;
/// How often a driver that adds buffers while it is asked to tell of them is looked at again.
const LOOKS: usize = 8;

/// What became of packets for the guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Put {
    /// Packets done with, from the first on: laid into buffers, or too large for one.
    pub done: usize,
    /// Of those, packets that were too large.
    pub too_large: usize,
    /// Bytes of the frames that were laid.
    pub bytes: u64,
    /// The driver wants an interrupt.
    pub interrupt: bool,
}

enum Laid {
    Whole,
    TooLarge,
    NoRoom,
}

impl Ring {
    /// Lay packets into the driver's buffers, in order, as far as there is room; with fewer than all, the
    /// driver has been asked to tell of more.
    ///
    /// # Errors
    /// The driver broke a rule. Nothing was returned to it.
    pub fn put(&mut self, packets: &[&[u8]], header: usize, merge: bool) -> Result<Put, Fault> {
        let mut used = Vec::new();
        let mut put = Put::default();
        for packet in packets {
            match self.lay(packet, header, merge, &mut used)? {
                Laid::Whole => put.bytes += (packet.len() - HEADER_SIZE) as u64,
                Laid::TooLarge => put.too_large += 1,
                Laid::NoRoom => break,
            }
            put.done += 1;
        }
        if !used.is_empty() {
            self.push(&used)?;
            put.interrupt = self.needs_interrupt()?;
        }
        Ok(put)
    }

    fn lay(
        &mut self,
        packet: &[u8],
        header: usize,
        merge: bool,
        used: &mut Vec<(u16, u32)>,
    ) -> Result<Laid, Fault> {
        let Some(frame) = packet.get(HEADER_SIZE..) else { return Ok(Laid::TooLarge) };
        let wanted = (header + frame.len()) as u64;
        let before = self.now.available;
        let mut chains: Vec<Chain> = Vec::new();
        let mut room = 0;
        while room < wanted {
            let Some(chain) = self.next_or_ask()? else {
                self.now.available = before;
                return Ok(Laid::NoRoom);
            };
            let more = size(&chain.writable);
            if more < header as u64 {
                return Err(Fault(format!("receive buffer of {more} bytes")));
            }
            room += more;
            chains.push(chain);
            if room < wanted && !merge {
                self.now.available = before;
                return refuse(room, wanted);
            }
        }
        let mut head = [0; HEADER_SIZE];
        head.copy_from_slice(&packet[..HEADER_SIZE]);
        head[BUFFERS_AT..].copy_from_slice(&(chains.len() as u16).to_le_bytes());
        let segments = chains.iter().flat_map(|chain| chain.writable.iter().copied());
        scatter(&self.memory, segments, [&head[..header], frame])?;
        let mut rest = wanted;
        for chain in &chains {
            let written = rest.min(size(&chain.writable));
            used.push((chain.head, written as u32));
            rest -= written;
        }
        Ok(Laid::Whole)
    }

    fn next_or_ask(&mut self) -> Result<Option<Chain>, Fault> {
        for _ in 0..LOOKS {
            if let Some(chain) = self.next()? {
                return Ok(Some(chain));
            }
            if !self.enable_notifications()? {
                break;
            }
        }
        Ok(None)
    }

    /// Take at most `limit` buffers with packets of the guest, of at most `budget` bytes together; they stay
    /// the device's until [`Self::give_back`].
    ///
    /// # Errors
    /// The driver broke a rule.
    pub fn take(&mut self, limit: usize, budget: u64) -> Result<Vec<Chain>, Fault> {
        self.taken.clear();
        let mut chains = Vec::new();
        let mut left = budget;
        while chains.len() < limit {
            let Some(chain) = self.next()? else { break };
            let Some(rest) = left.checked_sub(size(&chain.readable)) else {
                self.now.available = self.now.available.wrapping_sub(1);
                break;
            };
            left = rest;
            self.taken.push(chain.head);
            chains.push(chain);
        }
        Ok(chains)
    }

    /// Return the first `done` of the buffers taken last; the rest will be taken again. Whether the driver
    /// wants an interrupt.
    ///
    /// # Errors
    /// A ring is not in RAM.
    pub fn give_back(&mut self, done: usize) -> Result<bool, Fault> {
        let taken = std::mem::take(&mut self.taken);
        let (sent, rest) = taken.split_at(done.min(taken.len()));
        self.now.available = self.now.available.wrapping_sub(rest.len() as u16);
        if sent.is_empty() {
            return Ok(false);
        }
        let used: Vec<_> = sent.iter().map(|&head| (head, 0)).collect();
        self.push(&used)?;
        self.needs_interrupt()
    }

    /// The guest's memory.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }
}

/// A packet larger than the buffers that a driver must supply is lost; otherwise the driver is at fault.
fn refuse(room: u64, wanted: u64) -> Result<Laid, Fault> {
    if room < FULL_BUFFER_SIZE && wanted <= FULL_BUFFER_SIZE {
        return Err(Fault(format!("receive buffer of {room} bytes for a packet of {wanted}")));
    }
    Ok(Laid::TooLarge)
}

/// Copy out of a buffer until it or `into` ends.
///
/// # Errors
/// It is not all RAM.
pub fn gather(memory: &MemoryView, segments: &[Segment], mut into: &mut [u8]) -> Result<(), Fault> {
    for &(address, length) in segments {
        let length = (length as usize).min(into.len());
        let (part, rest) = into.split_at_mut(length);
        memory.read(address, part)?;
        into = rest;
    }
    Ok(())
}

fn scatter(
    memory: &GuestMemory,
    mut segments: impl Iterator<Item = Segment>,
    parts: [&[u8]; 2],
) -> Result<(), Fault> {
    let mut place: Segment = (0, 0);
    for mut part in parts {
        while !part.is_empty() {
            if place.1 == 0 {
                place = segments.next().ok_or_else(|| Fault("a buffer shrank".into()))?;
            }
            let (now, later) = part.split_at(part.len().min(place.1 as usize));
            memory.write(place.0, now)?;
            place = (place.0 + now.len() as u64, place.1 - now.len() as u32);
            part = later;
        }
    }
    Ok(())
}

//! I/O APIC with 24 pins.
//!
//! References: Intel 82093AA I/O Advanced Programmable Interrupt Controller (290566-001) §3;
//! the EOI register is that of the I/O APIC in ICH (version 0x20).

use crate::message::{DeliveryMode, Destination, Message};

/// Number of pins.
pub const IOAPIC_PINS: usize = 24;
/// Guest-physical address of the registers.
pub const IOAPIC_BASE: u64 = 0xfec0_0000;
/// Size of the register window in bytes.
pub const IOAPIC_SIZE: u64 = 0x1000;

const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
const EOI: u64 = 0x40;

/// Version 0x20 (has an EOI register), last pin 23.
const VERSION: u32 = 0x0017_0020;
/// First redirection entry among the indexed registers.
const FIRST_ENTRY: u8 = 0x10;

const MASKED: u64 = 1 << 16;
const LEVEL: u64 = 1 << 15;
const REMOTE_IRR: u64 = 1 << 14;
const LOGICAL: u64 = 1 << 11;
/// All but delivery status, remote IRR and the reserved bits.
const ENTRY_WRITABLE: u64 = 0xff00_0000_0001_afff;

/// Registers and pins; its state as it is saved. Guarded by the lock on the lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IoApic {
    /// Index register.
    pub select: u8,
    /// Identification register, bits 27:24 as a number.
    pub id: u8,
    /// Redirection table.
    pub entries: [u64; IOAPIC_PINS],
    /// Levels of the pins, pin 0 in bit 0. Asserted is 1 whatever the polarity bit says:
    /// the devices' lines are logical.
    pub levels: u32,
}

impl Default for IoApic {
    fn default() -> Self {
        Self { select: 0, id: 0, entries: [MASKED; IOAPIC_PINS], levels: 0 }
    }
}

impl IoApic {
    /// A saved state without bits that no register can hold.
    pub(crate) fn restored(&self) -> Self {
        Self {
            id: self.id & 0xf,
            entries: self.entries.map(|entry| entry & (ENTRY_WRITABLE | REMOTE_IRR)),
            ..*self
        }
    }

    /// RESET; the levels stay: they are wires.
    pub(crate) fn reset(&mut self) {
        *self = Self { levels: self.levels, ..Self::default() };
    }

    /// Change the level of a pin. Returns the message to send, if any.
    ///
    /// A rise on a masked edge-triggered pin is lost (82093AA §3.2.4, bit 16).
    pub(crate) fn set_level(&mut self, pin: usize, level: bool) -> Option<Message> {
        let bit = 1u32.checked_shl(pin as u32)?;
        let rise = level && self.levels & bit == 0;
        if level {
            self.levels |= bit;
        } else {
            self.levels &= !bit;
        }
        let entry = *self.entries.get(pin)?;
        if is_level_triggered(entry) {
            return self.level_message(pin);
        }
        (rise && entry & MASKED == 0).then(|| message(entry)).flatten()
    }

    /// The message that a level-triggered pin has to send: asserted, not masked, not in service.
    pub(crate) fn level_message(&self, pin: usize) -> Option<Message> {
        let entry = *self.entries.get(pin)?;
        let asserted = self.levels >> pin & 1 != 0;
        let ready = is_level_triggered(entry) && entry & (MASKED | REMOTE_IRR) == 0;
        (asserted && ready).then(|| message(entry)).flatten()
    }

    /// A local APIC took a pin's message: a level-triggered one now waits for its EOI.
    pub(crate) fn accepted(&mut self, pin: usize) {
        if let Some(entry) = self.entries.get_mut(pin).filter(|entry| is_level_triggered(**entry)) {
            *entry |= REMOTE_IRR;
        }
    }

    /// EOI of `vector`: clears remote IRR of its pins. Returns them as a bitmap, to be looked at again.
    pub(crate) fn end_of_interrupt(&mut self, vector: u8) -> u32 {
        let mut pins = 0;
        for (pin, entry) in self.entries.iter_mut().enumerate() {
            if *entry as u8 == vector && *entry & REMOTE_IRR != 0 {
                *entry &= !REMOTE_IRR;
                pins |= 1 << pin;
            }
        }
        pins
    }

    /// Read `size` bytes at `offset` of the window; only the low 32 bits of a register exist.
    pub(crate) fn read(&self, offset: u64) -> u32 {
        match offset {
            SELECT => u32::from(self.select),
            WINDOW => self.read_selected(),
            _ => 0,
        }
    }

    fn read_selected(&self) -> u32 {
        match self.select {
            0 | 2 => u32::from(self.id) << 24,
            1 => VERSION,
            _ => self.selected_entry().map_or(0, |(pin, shift)| (self.entries[pin] >> shift) as u32),
        }
    }

    /// The redirection entry that the index register names, and which half of it.
    fn selected_entry(&self) -> Option<(usize, u32)> {
        let index = self.select.checked_sub(FIRST_ENTRY)?;
        let pin = usize::from(index >> 1);
        (pin < IOAPIC_PINS).then_some((pin, u32::from(index & 1) * 32))
    }

    /// Write at `offset` of the window. Returns the pins to be looked at again, as a bitmap.
    pub(crate) fn write(&mut self, offset: u64, value: u32) -> u32 {
        match offset {
            SELECT => self.select = value as u8,
            WINDOW => return self.write_selected(value),
            EOI => return self.end_of_interrupt(value as u8),
            _ => {}
        }
        0
    }

    fn write_selected(&mut self, value: u32) -> u32 {
        if self.select == 0 {
            self.id = (value >> 24) as u8 & 0xf;
        }
        let Some((pin, shift)) = self.selected_entry() else { return 0 };
        let kept = !(0xffff_ffff << shift) | !ENTRY_WRITABLE;
        let old = self.entries[pin];
        let mut entry = old & kept | u64::from(value) << shift & ENTRY_WRITABLE;
        if entry & LEVEL == 0 {
            entry &= !REMOTE_IRR;
        }
        self.entries[pin] = entry;
        1 << pin
    }
}

/// Level-triggered, in a delivery mode that has an EOI.
fn is_level_triggered(entry: u64) -> bool {
    entry & LEVEL != 0 && DeliveryMode::of(entry as u32).is_some_and(DeliveryMode::is_vectored)
}

/// A redirection entry as a message; `None` for modes that an I/O APIC does not send.
fn message(entry: u64) -> Option<Message> {
    let mode = DeliveryMode::of(entry as u32).filter(|mode| *mode != DeliveryMode::StartUp)?;
    Some(Message {
        vector: entry as u8,
        mode,
        level_triggered: is_level_triggered(entry),
        destination: Destination::narrow((entry >> 56) as u8, entry & LOGICAL != 0),
        to_one: false,
        reports_eoi: false,
    })
}

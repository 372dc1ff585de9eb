//! What travels between interrupt controllers: IPIs, MSIs and the I/O APIC's messages.

/// Delivery mode, bits 10:8 of ICR, LVT, redirection entry and MSI data
/// (Intel SDM vol. 3A §11.6.1 "Interrupt Command Register (ICR)").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeliveryMode {
    Fixed,
    LowestPriority,
    Smi,
    Nmi,
    Init,
    StartUp,
    ExtInt,
}

impl DeliveryMode {
    /// Decode bits 10:8 of `register`; encoding 3 is reserved.
    pub(crate) fn of(register: u32) -> Option<Self> {
        Some(match (register >> 8) & 7 {
            0 => Self::Fixed,
            1 => Self::LowestPriority,
            2 => Self::Smi,
            4 => Self::Nmi,
            5 => Self::Init,
            6 => Self::StartUp,
            7 => Self::ExtInt,
            _ => return None,
        })
    }

    /// Whether the vector goes through the IRR.
    pub(crate) fn is_vectored(self) -> bool {
        matches!(self, Self::Fixed | Self::LowestPriority)
    }
}

/// Whom a message is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Destination {
    /// Physical APIC ID or logical set.
    pub(crate) id: u32,
    /// `id` is a logical set.
    pub(crate) logical: bool,
    /// Sent in x2APIC format: `id` has 32 bits and all ones is the broadcast. Otherwise 8 bits.
    pub(crate) wide: bool,
}

impl Destination {
    /// An 8-bit destination, as xAPIC, I/O APIC and MSI have it.
    pub(crate) fn narrow(id: u8, logical: bool) -> Self {
        Self { id: u32::from(id), logical, wide: false }
    }

    /// Whether every local APIC takes the message.
    pub(crate) fn is_broadcast(self) -> bool {
        self.id == if self.wide { u32::MAX } else { 0xff }
    }
}

/// One interrupt message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) vector: u8,
    pub(crate) mode: DeliveryMode,
    pub(crate) level_triggered: bool,
    pub(crate) destination: Destination,
    /// Send to one of the destinations even where the mode is not `LowestPriority` (MSI redirection hint).
    pub(crate) to_one: bool,
    /// The sender wants to know of the EOI although the interrupt is edge-triggered.
    pub(crate) reports_eoi: bool,
}

/// What became of a message, from worst to best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Delivery {
    /// Nobody took it.
    Refused,
    /// It met the same request, not yet taken by the vCPU: the two count as one.
    Merged,
    /// It waits for the vCPU, or has been taken.
    Accepted,
}

impl Message {
    /// Decode a message-signalled interrupt; `None` when the address is not of the APIC range or
    /// the delivery mode is reserved (Intel SDM vol. 3A §11.11 "Message Signalled Interrupts").
    pub(crate) fn from_msi(address: u64, data: u32) -> Option<Self> {
        if address >> 20 != 0xfee {
            return None;
        }
        let logical = address & 4 != 0;
        Some(Self {
            vector: data as u8,
            mode: DeliveryMode::of(data)?,
            level_triggered: data & 0x8000 != 0,
            destination: Destination::narrow((address >> 12) as u8, logical),
            to_one: logical && address & 8 != 0,
            reports_eoi: false,
        })
    }
}

//! Interrupt controllers and timers of a PC, in the core.
//!
//! [`Irqchip`] is everything the vCPUs share: the 8259 pair, the I/O APIC, the 8254 and the routing of
//! MSIs; a [`LocalApic`] belongs to one vCPU. The translate engine uses both. [`PlatformTimers`] (RTC, ACPI
//! PM timer) serve either engine. A [`TimerThread`] fires what is due.
//!
//! # Threads and locks
//! Any thread may call anything. Locks are taken in this order and never held across a call out of the
//! crate, except to the sinks named at the end of a line:
//!
//! ```text
//! PlatformTimers::guarded                        → IrqSink
//! Irqchip::coprocessor         FERR#; then Fabric::lines
//! └─ SystemTimer::pit
//!    └─ SystemTimer::awaited
//!    └─ Fabric::lines          8259s, I/O APIC
//!       └─ Fabric::apics       the list, shared for reading
//!          └─ LocalApic::registers                → Clock
//!             └─ LocalApic::waker                 → Waker
//!             └─ Alarm::rung
//! ```
//! A local APIC that has something for others (an IPI, the EOI of a level-triggered vector) releases its
//! registers first. `Waker::wake` and the `IrqSink` must not call back into the object that calls them.
//!
//! What the vCPU asks all the time — is there anything for me, what is IA32_APIC_BASE — is one atomic
//! load; acknowledge, EOI and a write of the TSC deadline take one lock that is rarely contended, and
//! make no system call unless somebody sleeps who must be woken.
//!
//! # Hostile guests
//! Every register takes every value. Interrupts of one level-triggered line are bounded by the guest's own
//! EOIs, timers by a minimum period of 20 µs: ticks that come faster coalesce. Nothing allocates after setup.
#![forbid(unsafe_code)]

mod absence;
mod awaited_count;
mod clock;
mod coprocessor;
mod fabric;
mod ioapic;
mod irqchip;
mod lapic;
mod message;
mod pic;
mod pit;
mod platform;
mod rate;
mod sync;
mod system_timer;
mod timer;

pub use absence::ThreadUse;
pub use clock::{Clock, HostClock};
pub use coprocessor::CoprocessorError;
pub use ioapic::{IoApic, IOAPIC_BASE, IOAPIC_PINS, IOAPIC_SIZE};
pub use irqchip::{Irqchip, IrqchipState};
pub use lapic::{LocalApic, LocalApicState, APIC_TIMER_HZ};
pub use pic::{Initialisation, Pic, PicPair};
pub use pit::{ByteAccess, Pit, PitChannel, Progress, PIT_HZ};
pub use platform::{
    Fields, IrqSink, PlatformTimers, PlatformTimersState, Rtc, WallClock, CMOS_BYTES, PM_TIMER_HZ,
    PM_TIMER_PORT, RTC_GSI,
};
pub use timer::{Alarm, TimerSource, TimerThread};

/// The access is not allowed: the guest takes #GP(0).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GeneralProtection;

/// Told when a vCPU may have something to take: an interrupt, NMI, INIT, start-up IPI or SMI.
pub trait Waker: Send + Sync {
    /// Make the vCPU look soon, from any thread, even its own. Must be cheap, and must not call back into
    /// this crate's objects.
    fn wake(&self);
}

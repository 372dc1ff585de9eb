//! Rules of the interrupt controllers and timers, one small test each, on a clock that the test moves.

#![allow(clippy::unwrap_used)]

mod coprocessor;
mod fixture;
mod hostile;
mod ioapic;
mod ipi;
mod lapic;
mod lapic_timer;
mod msi;
mod pic;
mod pit;
mod platform;
mod state;
mod timer_thread;

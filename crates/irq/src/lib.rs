//! Interrupt controllers and timers of a PC, in the core.
#![forbid(unsafe_code)]

mod clock;
mod skeleton;
mod timer;

pub use clock::{Clock, HostClock};
pub use skeleton::*;
pub use timer::{Alarm, TimerSource, TimerThread};

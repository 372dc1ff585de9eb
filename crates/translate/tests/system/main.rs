//! Page walks, segments, events and control transfers on a small guest, rule by rule. Section
//! numbers are of Intel SDM vol. 3A (edition 081).

// A fixture that cannot be made fails its test.
#![allow(clippy::unwrap_used)]

mod events;
mod guest;
mod legacy;
mod memory;
mod transfers;
mod walk;

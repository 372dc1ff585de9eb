//! Several vCPUs at once: memory ordering, locked accesses, code that changes under another vCPU, start-up.
//!
//! Guest programs race; what the architecture forbids must never be seen. A run that sees nothing forbidden
//! proves little, so each test makes many tries, and those about code also run with a code cache so small
//! that it is emptied all the time. Arguments: `docs/theory/concurrency.md`.
#![allow(clippy::unwrap_used)]

mod code;
mod locked;
#[path = "../long_mode/mod.rs"]
mod long_mode;
mod machine;
mod ordering;
mod slots;
mod startup;

//! The contract between a machine and what executes it.
//!
//! Shaped like KVM's API: an [`Engine`] makes a [`Vm`], a VM has memslots, an
//! interrupt controller and [`Vcpu`]s, and [`Vcpu::run`] executes the guest
//! until something happens that the machine outside must carry out: an
//! [`Exit`]. Two engines implement it (`sublet-kvm`, `sublet-translate`) and
//! one conformance suite tests both.
#![forbid(unsafe_code)]

mod exit;
mod read_ahead;
mod state;
mod traits;

pub use exit::Exit;
pub use read_ahead::PortReadAhead;
pub use state::{CpuidEntry, DescriptorTable, MsrEntry, Regs, Segment, Sregs, VcpuEvents};
pub use traits::{Engine, EngineError, Kick, MemslotFlags, ProfileSample, Result, Statistics, Vcpu, Vm};

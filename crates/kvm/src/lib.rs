//! The KVM engine: the contract of `sublet-engine` through the kernel's API.
//!
//! What differs from KVM itself, and why, is in `docs/design/engine-contract.md`; in short:
//! bulk and odd-sized I/O leaves element by element, an access is complete as soon as the caller
//! looks at the registers, and the RTC and PM timer are answered inside `run`.
//!
//! `unsafe` is confined to the shared page of a vCPU (`shared_page`), the signal that ends
//! `KVM_RUN` (`kick`), and the ioctls whose arguments the kernel keeps (`memslots`).

mod convert;
mod engine;
mod error;
mod kick;
mod memslots;
mod shared_page;
mod standstill;
mod transfer;
mod vcpu;
mod vm;

pub use engine::KvmEngine;
pub use vcpu::KvmVcpu;
pub use vm::KvmVm;

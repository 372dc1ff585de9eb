//! The binary-translation engine: guest code is decoded a basic block at a time, rewritten to
//! host code that keeps the guest's registers and flags in the host's own, and run from a cache.
//!
//! * `state` — what translated code addresses directly; `cpu` — the rest of a vCPU
//! * `mmu` — page walks and the software TLBs
//! * `system` — instructions and events that change the machine's state: carried out by compiled code
//! * `optimisations` — what can be turned off, one by one
//! * `mode` — what a translation assumes besides the code's bytes
//! * `frontend` → `emit` — from guest bytes to host bytes
//! * `cache` — blocks, links between them, invalidation
//! * `runtime` — entering and leaving the cache, the run loop, the engine contract

pub mod cache;
pub mod cpu;
mod emit;
mod frontend;
pub mod mmu;
pub mod mode;
pub mod optimisations;
mod runtime;
pub mod state;
pub mod system;

pub use runtime::TranslateEngine;

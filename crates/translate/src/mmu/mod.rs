//! Page walks and software TLBs.

pub mod walk;

use crate::cpu::Flush;

/// What a vCPU derives from page tables and control registers.
#[derive(Debug, Default)]
pub struct Mmu;

impl Mmu {
    /// Drop cached translations.
    pub fn flush(&mut self, _what: Flush) {}
}

//! Runs cases on the engine under test.
use crate::case::{Case, Outcome, Target};
use crate::xstate::Layout;

/// A virtual machine with one vCPU whose page tables map the regions.
pub struct TranslatedTarget;

impl TranslatedTarget {
    /// Not there yet.
    pub fn new(_: Layout, _: u8) -> Result<Self, String> {
        Err("the engine is not there yet".to_owned())
    }
}

impl Target for TranslatedTarget {
    fn run(&mut self, _: &Case) -> Result<Outcome, String> {
        Err("the engine is not there yet".to_owned())
    }
}

//! Legacy instructions.
use super::execute::Step;
use crate::cpu::Cpu;
use iced_x86::Instruction;
impl Cpu {
    pub(crate) fn dispatch_legacy(&mut self, _i: &Instruction, _next_rip: u64) -> Option<Step> {
        None
    }
}

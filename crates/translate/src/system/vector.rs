//! Vector instructions with partial memory operands.
use super::execute::Step;
use crate::cpu::Cpu;
use iced_x86::Instruction;
impl Cpu {
    pub(crate) fn dispatch_vector(&mut self, _i: &Instruction) -> Option<Step> {
        None
    }
}

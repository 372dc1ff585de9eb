//! String instructions.
use super::execute::Step;
use crate::cpu::{Cpu, Exception};
use iced_x86::Instruction;
impl Cpu {
    pub(crate) fn string_instruction(&mut self, _i: &Instruction, _next_rip: u64) -> Step {
        Err(Exception::UNDEFINED.into())
    }
}

//! Accesses through memory windows (see `mmu::window`): three instructions find what to add to an address.

use super::access::{Operation, Place};
use super::builder::{hot, Unencodable};
use super::registers::{home, number, Home};
use super::sharing::Part;
use super::{Builder, Host};
use crate::optimisations::Optimisation;
use crate::state::{CpuState, HotState, SEGMENT_BITS, SEGMENT_TABLE};
use iced_x86::{Instruction, Register};
use std::mem::offset_of;

impl Builder {
    /// Whether the block's plain accesses go through windows.
    pub(super) fn has_windows(&self) -> bool {
        self.mode.windowed() && self.optimisations.has(Optimisation::Windows)
    }

    /// R15 = what is to be added to addresses of the segment that `base` points into. Uses RCX.
    pub(super) fn find_window(&mut self, base: Host) {
        self.asm.rorx(Host::RCX, base, SEGMENT_BITS as u8);
        self.asm.mov32(Host::RCX, Host::RCX);
        self.asm.load_indexed(Host::R15, SEGMENT_TABLE as i32, Host::RCX);
    }

    /// Carry out an access at `[base + offset]`. Base and operand may lie in different segments: then the guard
    /// between their windows is hit.
    pub(super) fn window_access(
        &mut self,
        part: Option<Part>,
        base: Host,
        offset: i32,
        operation: &Operation,
    ) -> Result<(), Unencodable> {
        match part {
            Some(Part::Follower { slot }) if self.asm.holds(slot) => {}
            Some(Part::Follower { slot }) => {
                self.asm.load(Host::R15, hot!(shared) + 8 * slot as i32);
                self.asm.hold(slot);
            }
            Some(Part::Leader { slot, .. }) => {
                self.find_window(base);
                self.asm.store(hot!(shared) + 8 * slot as i32, Host::R15);
                self.asm.hold(slot);
            }
            None => self.find_window(base),
        }
        operation(self, Place::Offset(base, offset))
    }

    /// Base register and displacement of a memory operand that has no more than those; the base in a host register.
    pub(super) fn window_base(&mut self, instruction: &Instruction) -> Option<(Host, i32)> {
        let plain = instruction.memory_index() == Register::None
            && !matches!(instruction.memory_segment(), Register::FS | Register::GS);
        let displacement = i32::try_from(instruction.memory_displacement64() as i64).ok()?;
        let base = match instruction.memory_base() {
            Register::RIP if plain => {
                self.asm.load(Host::R14, hot!(rip_page));
                Host::R14
            }
            base if plain && base.is_gpr64() => self.in_host(number(base)?),
            _ => return None,
        };
        Some((base, displacement))
    }

    /// A guest register's own host register, or R14 with its value.
    pub(super) fn in_host(&mut self, guest: usize) -> Host {
        match home(guest) {
            Home::Host(host) => host,
            Home::Memory(slot) => {
                self.asm.load(Host::R14, slot);
                Host::R14
            }
        }
    }
}

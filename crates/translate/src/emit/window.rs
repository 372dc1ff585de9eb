//! Accesses through memory windows (see `mmu::window`): two instructions find what to add to an address.

use super::access::{Descriptor, Operation, Place};
use super::builder::{hot, Unencodable, FIRST_KERNEL_SEGMENT};
use super::registers::{home, number, Home};
use super::sharing::{is_address, Part};
use super::{Builder, Host};
use crate::optimisations::Optimisation;
use crate::state::{CpuState, HotState, SEGMENT_BITS, SEGMENT_TABLE, USER_SEGMENTS};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use std::mem::offset_of;

impl Builder {
    /// Whether the block's plain accesses go through windows.
    pub(super) fn has_windows(&self) -> bool {
        let kernel = self.placed.is_some_and(|page| page >> 63 != 0) && self.mode.kernel_windowed();
        (self.mode.windowed() || kernel) && self.optimisations.has(Optimisation::Windows)
    }

    /// `to` = what is to be added to addresses of the segment that `base` points into. Uses RCX.
    pub(super) fn find_window(&mut self, to: Host, base: Host) {
        let expected = self.expected.take();
        if self.mode.kernel_windowed() {
            let kernel = expected.filter(|&segment| segment >= FIRST_KERNEL_SEGMENT);
            let segment = kernel.unwrap_or_else(|| self.expected_segment(base));
            return self.find_kernel_window(to, base, segment);
        }
        // The host's stack pointer ends in 32, as `entry` has it: the count.
        self.asm.shrx(Host::RCX, base, Host::RSP);
        self.asm.load_indexed(to, SEGMENT_TABLE as i32, Host::RCX);
    }

    /// The same in a kernel: what `segment` has is taken at once, and confirmed out of the access's way.
    fn find_kernel_window(&mut self, to: Host, base: Host, segment: u32) {
        self.asm.shrx(Host::RCX, base, Host::RSP);
        self.asm.lea(false, Host::RCX, Some(Host::RCX), None, segment.wrapping_neg() as i32);
        self.known_kernel_window(to, segment);
        let hit = self.asm.jrcxz();
        let miss = self.asm.jump();
        self.asm.bind_short(hit);
        let resume = self.asm.position();
        self.later(move |builder| {
            builder.asm.bind(miss);
            builder.asm.sarx(Host::RCX, base, Host::RSP);
            builder.asm.load(to, hot!(kernel_segments));
            builder.asm.lea(true, to, Some(to), Some((Host::RCX, 1)), 0);
            builder.asm.load_indexed(to, 0, to);
            let back = builder.asm.jump();
            builder.asm.point(back, resume);
        });
    }

    /// `to` = what is to be added to a kernel's addresses of a segment.
    fn known_kernel_window(&mut self, to: Host, segment: u32) {
        self.asm.load(to, hot!(kernel_segments));
        self.asm.load_indexed(to, 8 * segment as i32, to);
    }

    /// The segment that a host register probably points into.
    fn expected_segment(&self, base: Host) -> u32 {
        let known = (0..16).find(|&guest| home(guest) == Home::Host(base));
        self.hints.segment(known.filter(|&guest| self.is_unchanged(guest)))
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
        let distance = match part {
            Some(Part::Follower { slot }) => self.known_window(slot, base),
            Some(Part::Leader { slot, .. }) => {
                let to = self.window_register(base);
                self.find_window(to, base);
                self.asm.store(hot!(shared) + 8 * slot as i32, to);
                self.asm.hold(to, slot);
                to
            }
            None => {
                self.find_window(Host::R15, base);
                Host::R15
            }
        };
        match distance {
            Host::R14 => operation(self, Place::Away(base, offset)),
            _ => operation(self, Place::Offset(base, offset)),
        }
    }

    /// A program's PREFETCHes are the host's. All other no-operations, and those of code without windows, are nothing.
    pub(super) fn prefetch(&mut self, instruction: &Instruction) -> Result<(), Unencodable> {
        let based = matches!(instruction.memory_segment(), Register::FS | Register::GS);
        let serves = self.mode.windowed() && self.has_windows() && !based;
        if !serves || !is_prefetch(instruction) {
            return Ok(());
        }
        self.effective_address(Host::R14, instruction)?;
        // Addresses that no program has must not lead beyond the table of segments: such a load would fault.
        self.asm.pext(Host::R14, Host::R14, hot!(user_mask));
        self.find_window(Host::R15, Host::R14);
        let mut host = *instruction;
        Self::set_place(&mut host, Place::Direct(Host::R14));
        self.encode(&host)
    }

    /// The register that holds a leader's distance, which is loaded if none does.
    fn known_window(&mut self, slot: usize, base: Host) -> Host {
        if let Some(holder) = self.asm.holder(slot).filter(|&holder| holder != base) {
            return holder;
        }
        let to = self.window_register(base);
        self.asm.load(to, hot!(shared) + 8 * slot as i32);
        self.asm.hold(to, slot);
        to
    }

    /// Where to have the distance to a window: R15, or R14 if that holds another one and the base is not there.
    fn window_register(&self, base: Host) -> Host {
        if base == Host::R14 {
            return Host::R15;
        }
        self.asm.free_holder()
    }

    /// Carry out the access of a memory operand.
    pub(super) fn access_operand(
        &mut self,
        instruction: &Instruction,
        descriptor: Descriptor,
        operation: Operation,
    ) -> Result<(), Unencodable> {
        if self.has_windows() {
            let based = matches!(instruction.memory_segment(), Register::FS | Register::GS);
            if let Some(address) = self.known_address(instruction).filter(|_| !based) {
                return self.known_access(address, &operation);
            }
            let base = self.window_base(instruction).filter(|_| !is_address(instruction));
            if let Some((base, offset)) = base {
                return self.window_access(None, base, offset, &operation);
            }
        }
        if is_address(instruction) && instruction.memory_segment() != Register::GS {
            self.expected = Some((instruction.memory_displacement64() >> SEGMENT_BITS) as u32);
        }
        let address = self.linear_address(instruction)?;
        self.access(address, descriptor, operation)
    }

    /// Carry out an access at an address that the translation knows.
    pub(super) fn known_access(&mut self, address: u64, operation: &Operation) -> Result<(), Unencodable> {
        let segment = (address >> SEGMENT_BITS) as usize;
        if self.mode.kernel_windowed() {
            self.asm.mov_immediate(Host::R14, address);
            self.known_kernel_window(Host::R15, segment as u32);
        } else if segment < USER_SEGMENTS {
            self.asm.load(Host::R15, SEGMENT_TABLE as i32 + 8 * segment as i32);
            if let Ok(address) = i32::try_from(address) {
                return operation(self, Place::Known(address));
            }
            self.asm.mov_immediate(Host::R14, address);
        } else {
            self.asm.mov_immediate(Host::R14, address);
            self.find_window(Host::R15, Host::R14);
        }
        operation(self, Place::Direct(Host::R14))
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

fn is_prefetch(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    let named = matches!(
        instruction.mnemonic(),
        M::Prefetchnta | M::Prefetcht0 | M::Prefetcht1 | M::Prefetcht2 | M::Prefetchw | M::Prefetch
    );
    named && instruction.op0_kind() == OpKind::Memory
}

//! Memory accesses: effective address, the inline software-TLB check, and what happens off it.

use super::builder::{hot, Unencodable};
use super::registers::{home, number, Home};
use super::{Builder, Host};
use crate::mode::Width;
use crate::state::{seg, CpuState, HotState, SegmentRegister};
use iced_x86::{Instruction, Register};
use std::mem::offset_of;
use std::rc::Rc;

/// Where the bytes of a checked access are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// At `[register + r15]`.
    Direct(Host),
    /// At `[register]`.
    At(Host),
    /// In the bounce buffer.
    Bounce,
}

/// What an access does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessKind {
    /// Load.
    Read,
    /// Store, or load and store.
    Write,
}

/// An access, as the slow path is told of it in ECX.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor(pub u32);

impl Descriptor {
    const WRITE: u32 = 1 << 8;
    const STACK: u32 = 1 << 9;
    const STAY: u32 = 1 << 10;
    const ALIGNED: u32 = 1 << 11;
    const LOAD_TOO: u32 = 1 << 12;

    /// Describe an access of `size` bytes.
    pub fn new(size: usize, kind: AccessKind) -> Self {
        let write = if kind == AccessKind::Write { Self::WRITE } else { 0 };
        Self(size as u32 | write)
    }
    /// Through SS: faults are #SS.
    #[must_use]
    pub fn stack(self) -> Self {
        Self(self.0 | Self::STACK)
    }
    /// A branch follows: do not leave the block at the commit.
    #[must_use]
    pub fn stay(self) -> Self {
        Self(self.0 | Self::STAY)
    }
    /// Misaligned accesses are #GP.
    #[must_use]
    pub fn aligned(self) -> Self {
        Self(self.0 | Self::ALIGNED)
    }
    /// A store that also loads.
    #[must_use]
    pub fn load_too(self) -> Self {
        Self(self.0 | Self::LOAD_TOO)
    }
    /// Bytes.
    pub fn size(self) -> u64 {
        u64::from(self.0 & 0xff)
    }
    /// Whether it stores.
    pub fn is_write(self) -> bool {
        self.0 & Self::WRITE != 0
    }
    /// See [`Self::stack`].
    pub fn is_stack(self) -> bool {
        self.0 & Self::STACK != 0
    }
    /// See [`Self::stay`].
    pub fn stays(self) -> bool {
        self.0 & Self::STAY != 0
    }
    /// See [`Self::aligned`].
    pub fn is_aligned(self) -> bool {
        self.0 & Self::ALIGNED != 0
    }
    /// Whether the bytes' present value matters.
    pub fn loads(self) -> bool {
        !self.is_write() || self.0 & Self::LOAD_TOO != 0
    }
}

/// Emits the access proper, once for each place it may be at. May use RCX and R14, and R15 unless the
/// place is `Direct`. Must not change flags except as the guest instruction does.
pub(super) type Operation = Rc<dyn Fn(&mut Builder, Place) -> Result<(), Unencodable>>;

impl Builder {
    /// Check an access at the linear address in `address` and carry it out. Uses RCX, R14, R15.
    pub(super) fn access(
        &mut self,
        address: Host,
        descriptor: Descriptor,
        operation: Operation,
    ) -> Result<(), Unencodable> {
        let (tags, addends) = self.tlb(descriptor.is_write());
        let size = descriptor.size() as i32;
        self.asm.pext(Host::RCX, address, hot!(tlb_mask));
        self.asm.load_indexed(Host::R15, addends, Host::RCX);
        self.asm.load_indexed(Host::RCX, tags, Host::RCX);
        self.asm.lea(true, Host::RCX, Some(Host::RCX), Some((address, 1)), size - 1);
        self.asm.pext(Host::RCX, Host::RCX, hot!(page_mask));
        let hit = self.asm.jrcxz();
        let miss = self.asm.jump();
        self.asm.bind_short(hit);
        let resume = self.asm.position();
        operation(self, Place::Direct(address))?;
        let done = self.asm.position();
        self.later(move |builder| {
            builder.asm.bind(miss);
            builder.slow_access(address, descriptor, resume, done, &operation);
        });
        Ok(())
    }

    fn slow_access(
        &mut self,
        address: Host,
        descriptor: Descriptor,
        resume: usize,
        done: usize,
        operation: &Operation,
    ) {
        if address != Host::R14 {
            self.asm.mov(Host::R14, address);
        }
        self.asm.mov_immediate(Host::RCX, u64::from(descriptor.0));
        self.asm.call_gs(hot!(slow_access));
        let back = self.asm.jump();
        self.asm.point(back, resume);
        if !descriptor.is_write() {
            return;
        }
        // The slow path returns here, past the 5-byte jump, when the store goes through the buffer.
        if operation(self, Place::Bounce).is_err() {
            // The same operation was encoded once already; only the operand's form differs.
            self.asm.bytes(&[0x0f, 0x0b]);
        }
        let after = self.next;
        self.locate(after);
        self.asm.call_gs(hot!(commit));
        let back = self.asm.jump();
        self.asm.point(back, done);
    }

    /// Point the memory operand of `instruction` at `place`.
    pub(super) fn set_place(instruction: &mut Instruction, place: Place) {
        instruction.set_memory_index_scale(1);
        let (base, index) = match place {
            Place::Direct(base) => (super::registers::sized(base, Register::RAX), Register::R15),
            Place::At(base) => (super::registers::sized(base, Register::RAX), Register::None),
            Place::Bounce => (Register::None, Register::None),
        };
        instruction.set_memory_base(base);
        instruction.set_memory_index(index);
        if place == Place::Bounce {
            instruction.set_segment_prefix(Register::GS);
            instruction.set_memory_displacement64(hot!(bounce) as u64);
            instruction.set_memory_displ_size(8);
        } else {
            instruction.set_segment_prefix(Register::None);
            instruction.set_memory_displacement64(0);
            instruction.set_memory_displ_size(0);
        }
    }

    /// Compute the linear address of the memory operand; returns the register that holds it
    /// (R14, or the guest's base register itself). Uses RCX, R14, R15.
    pub(super) fn linear_address(&mut self, instruction: &Instruction) -> Result<Host, Unencodable> {
        let segment = instruction.memory_segment();
        let based = self.segment_base(segment);
        if based.is_none() {
            if let Some(base) = self.plain_base(instruction) {
                return Ok(base);
            }
        }
        self.effective_address(Host::R14, instruction)?;
        if let Some(offset) = based {
            self.asm.load(Host::R15, offset);
            self.asm.lea(self.mode.is64(), Host::R14, Some(Host::R14), Some((Host::R15, 1)), 0);
        }
        Ok(Host::R14)
    }

    /// Offset of the base of `segment` if it has to be added.
    pub(super) fn segment_base(&self, segment: Register) -> Option<i32> {
        let index = match segment {
            Register::ES => seg::ES,
            Register::CS => seg::CS,
            Register::SS => seg::SS,
            Register::FS => seg::FS,
            Register::GS => seg::GS,
            _ => seg::DS,
        };
        let flat = !matches!(index, seg::FS | seg::GS) && self.mode.flat();
        let at = offset_of!(CpuState, segments)
            + index * std::mem::size_of::<SegmentRegister>()
            + offset_of!(SegmentRegister, base);
        (!flat).then_some(at as i32)
    }

    /// The host register that already holds the address, for an operand like `[rax]`.
    fn plain_base(&self, instruction: &Instruction) -> Option<Host> {
        let base = instruction.memory_base();
        let plain = base.is_gpr64()
            && instruction.memory_index() == Register::None
            && instruction.memory_displacement64() == 0;
        if !plain {
            return None;
        }
        match home(number(base)?) {
            Home::Host(host) => Some(host),
            Home::Memory(_) => None,
        }
    }

    /// Compute the operand's offset in its segment into `to`. Uses R15 and `to`.
    pub(super) fn effective_address(
        &mut self,
        to: Host,
        instruction: &Instruction,
    ) -> Result<(), Unencodable> {
        let width = address_width(instruction, self.mode.code());
        let displacement = instruction.memory_displacement64();
        let base = self.address_register(to, instruction.memory_base())?;
        let index = self.address_register(Host::R15, instruction.memory_index())?;
        let index = index.map(|index| (index, instruction.memory_index_scale() as u8));
        if base.is_none() && index.is_none() {
            let absolute = if width == Width::W64 { displacement } else { u64::from(displacement as u32) };
            self.asm.mov_immediate(to, absolute);
        } else {
            self.asm.lea(width == Width::W64, to, base, index, displacement as i32);
        }
        if width == Width::W16 {
            self.asm.movzx16(to, to);
        }
        Ok(())
    }

    fn address_register(&mut self, scratch: Host, register: Register) -> Result<Option<Host>, Unencodable> {
        if register == Register::None {
            return Ok(None);
        }
        if matches!(register, Register::RIP | Register::EIP) {
            self.asm.load(scratch, hot!(rip_page));
            return Ok(Some(scratch));
        }
        match home(number(register).ok_or(Unencodable)?) {
            Home::Host(host) => Ok(Some(host)),
            Home::Memory(slot) => {
                self.asm.load(scratch, slot);
                Ok(Some(scratch))
            }
        }
    }
}

/// Address size of the memory operand.
fn address_width(instruction: &Instruction, code: Width) -> Width {
    let by_size = |size: usize| match size {
        2 => Width::W16,
        4 => Width::W32,
        _ => Width::W64,
    };
    match (instruction.memory_base(), instruction.memory_index()) {
        (Register::None, Register::None) => match instruction.memory_displ_size() {
            0 => code,
            size => by_size(size as usize),
        },
        (Register::None, index) => by_size(index.size()),
        (base, _) => by_size(base.size()),
    }
}

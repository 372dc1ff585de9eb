//! Segment registers: read, and loaded with what kernels load them with.

use super::access::{segment_field, AccessKind, Descriptor};
use super::assembler::Patch;
use super::builder::{hot, Unencodable};
use super::registers::number;
use super::{Builder, Host};
use crate::mode::Width;
use crate::optimisations::Optimisation;
use crate::state::{seg, CpuState, HotState, KnownDescriptor, SegmentRegister, KNOWN_DESCRIPTORS};
use crate::system::known::Use;
use crate::system::operand::segment_index;
use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use std::mem::offset_of;
use std::rc::Rc;

impl Builder {
    /// `to` = the selector in a segment register, zero-extended.
    pub(super) fn read_selector(&mut self, to: Host, segment: Register) {
        let at = segment_field(segment_index(segment), offset_of!(SegmentRegister, selector));
        self.asm.load(to, at);
        self.asm.movzx16(to, to);
    }

    /// MOV from a segment register to a general one, or to memory in code without shared checks. Returns
    /// whether this is one.
    pub(super) fn read_segment_register(&mut self, instruction: &Instruction) -> Result<bool, Unencodable> {
        let segment = instruction.op1_register();
        let reads = instruction.mnemonic() == Mnemonic::Mov
            && instruction.op1_kind() == OpKind::Register
            && segment.is_segment_register();
        if !reads {
            return Ok(false);
        }
        if instruction.op0_kind() == OpKind::Register {
            let to = instruction.op0_register();
            self.read_selector(Host::R14, segment);
            self.write_sized(number(to).ok_or(Unencodable)?, Host::R14, to.size());
            return Ok(true);
        }
        if self.mode.is64() {
            return Ok(false);
        }
        let address = self.linear_address(instruction)?;
        self.access(
            address,
            self.through_segment(Descriptor::new(2, AccessKind::Write), instruction),
            Rc::new(move |builder, place| {
                builder.read_selector(Host::RCX, segment);
                builder.store_place(Host::RCX, place, 2)
            }),
        )?;
        Ok(true)
    }

    /// MOV to, and POP of, ES, DS, FS or GS at level 0, with a descriptor that is known. Returns whether this
    /// is one.
    pub(super) fn load_segment_register(&mut self, instruction: &Instruction) -> Result<bool, Unencodable> {
        let loads = matches!(instruction.mnemonic(), Mnemonic::Mov | Mnemonic::Pop)
            && instruction.op0_kind() == OpKind::Register
            && instruction.op0_register().is_segment_register();
        // Descriptors are read by the access of a kernel whose AC is clear.
        let kernel = self.mode.protected() && self.mode.cpl() == 0 && !self.mode.access_override();
        let wanted = loads && kernel && self.optimisations.has(Optimisation::SegmentLoads);
        let index = segment_index(instruction.op0_register());
        let narrow = self.mode.code() == Width::W32 && self.mode.flat() && self.mode.stack() == Width::W32;
        let held = matches!(index, seg::ES | seg::DS | seg::FS | seg::GS);
        if !wanted || !held || !(narrow || self.mode.is64()) || !self.fetch_selector(instruction)? {
            return Ok(false);
        }
        let based = matches!(index, seg::FS | seg::GS);
        let pops = instruction.stack_pointer_increment();
        self.asm.load(Host::RCX, hot!(temporary));
        self.keep_only(0xfffc);
        let null = self.jump_if_rcx_is_zero();
        let mut slow = self.known_descriptor(if based { Use::Whole } else { Use::Flat })?;
        self.set_known_segment(index);
        self.drop_from_stack(pops);
        let whole = self.mode.is64() || !based || self.mode.whole(index);
        let (to_whole, to_null) = (self.mode.with_whole(index, true), self.mode.with_whole(index, false));
        let resume = self.asm.position();
        if !whole {
            self.target_rip(self.next);
            self.switch_mode(to_whole);
        }
        if based || self.mode.is64() {
            self.later(move |builder| {
                builder.asm.bind(null);
                builder.set_null_segment(index);
                builder.drop_from_stack(pops);
                match whole {
                    _ if builder.mode.is64() => {
                        let back = builder.asm.jump();
                        builder.asm.point(back, resume);
                    }
                    true => {
                        builder.target_rip(builder.next);
                        builder.switch_mode(to_null);
                    }
                    false => builder.exit_to(builder.next),
                }
            });
        } else {
            slow.push(null);
        }
        self.leave_at(slow, instruction);
        Ok(true)
    }

    fn drop_from_stack(&mut self, bytes: i32) {
        if bytes != 0 {
            self.adjust_stack(bytes);
        }
    }

    /// `HotState::temporary` = the selector that a segment register is to be loaded with. Returns whether it
    /// can be had here.
    fn fetch_selector(&mut self, instruction: &Instruction) -> Result<bool, Unencodable> {
        if instruction.mnemonic() == Mnemonic::Pop {
            let size = usize::try_from(instruction.stack_pointer_increment()).map_err(|_| Unencodable)?;
            let address = self.stack_address(0);
            self.access(
                address,
                Descriptor::new(size, AccessKind::Read).stack(),
                Rc::new(move |builder, place| {
                    builder.load_place(Host::RCX, place, size)?;
                    builder.asm.movzx16(Host::RCX, Host::RCX);
                    builder.asm.store(hot!(temporary), Host::RCX);
                    Ok(())
                }),
            )?;
        } else if instruction.op1_kind() == OpKind::Register {
            self.read_guest(Host::RCX, number(instruction.op1_register()).ok_or(Unencodable)?);
            self.asm.movzx16(Host::RCX, Host::RCX);
            self.asm.store(hot!(temporary), Host::RCX);
        } else if !self.mode.is64() {
            self.load_temporary(instruction, 2)?;
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    /// Find the known descriptor of the selector in `HotState::temporary` and make sure that its bytes are still
    /// the same: `HotState::descriptor_index` and R15 then lead to it. Returns the jumps of where not.
    pub(super) fn known_descriptor(&mut self, usage: Use) -> Result<Vec<Patch>, Unencodable> {
        self.asm.load(Host::RCX, hot!(temporary));
        self.asm.mov(Host::R14, Host::RCX);
        self.lead_to_descriptor();
        self.asm.store(hot!(descriptor_index), Host::R15);
        self.asm.load_indexed(Host::RCX, known_field(offset_of!(KnownDescriptor, key)), Host::R15);
        self.asm.lea(true, Host::RCX, Some(Host::RCX), Some((Host::R14, 1)), usage as i32);
        let unknown = self.jump_if_rcx_is_not_zero();
        self.asm.load_indexed(Host::R14, known_field(offset_of!(KnownDescriptor, address)), Host::R15);
        self.access(
            Host::R14,
            Descriptor::new(8, AccessKind::Read),
            Rc::new(|builder, place| builder.load_place(Host::RCX, place, 8)),
        )?;
        self.asm.load(Host::R15, hot!(descriptor_index));
        self.asm.load_indexed(Host::R14, known_field(offset_of!(KnownDescriptor, raw)), Host::R15);
        self.asm.lea(true, Host::RCX, Some(Host::RCX), Some((Host::R14, 1)), 0);
        Ok(vec![unknown, self.jump_if_rcx_is_not_zero()])
    }

    /// R15 = where the descriptor of the selector in RCX is, if it is known. Uses RCX.
    pub(super) fn lead_to_descriptor(&mut self) {
        self.keep_only((KNOWN_DESCRIPTORS as u64 - 1) << 3);
        self.asm.mov(Host::R15, Host::RCX);
    }

    /// Load a segment register from the known descriptor that R15 leads to. Uses RCX.
    pub(super) fn set_known_segment(&mut self, index: usize) {
        for (from, to) in [
            (offset_of!(KnownDescriptor, base), offset_of!(SegmentRegister, base)),
            (offset_of!(KnownDescriptor, image), offset_of!(SegmentRegister, limit)),
        ] {
            self.asm.load_indexed(Host::RCX, known_field(from), Host::R15);
            self.asm.store(segment_field(index, to), Host::RCX);
        }
    }

    /// RDFSBASE, RDGSBASE, WRFSBASE and WRGSBASE while CR4 allows them. Returns whether this is one.
    pub(super) fn segment_base_access(&mut self, instruction: &Instruction) -> Result<bool, Unencodable> {
        const CR4_FSGSBASE: u64 = 1 << 16;
        let (index, writes) = match instruction.mnemonic() {
            Mnemonic::Rdfsbase => (seg::FS, false),
            Mnemonic::Rdgsbase => (seg::GS, false),
            Mnemonic::Wrfsbase => (seg::FS, true),
            Mnemonic::Wrgsbase => (seg::GS, true),
            _ => return Ok(false),
        };
        let operand = instruction.op0_register();
        let guest = number(operand).ok_or(Unencodable)?;
        let base = segment_field(index, offset_of!(SegmentRegister, base));
        self.asm.load(Host::RCX, offset_of!(CpuState, cr4) as i32);
        self.keep_only(CR4_FSGSBASE);
        let mut slow = vec![self.jump_if_rcx_is_zero()];
        match writes {
            true => self.read_guest(Host::R14, guest),
            false => self.asm.load(Host::R14, base),
        }
        if operand.size() == 4 {
            self.asm.mov32(Host::R14, Host::R14);
        }
        if writes {
            slow.push(self.unless_canonical());
            self.asm.store(base, Host::R14);
        } else {
            self.write_guest(guest, Host::R14);
        }
        self.leave_at(slow, instruction);
        Ok(true)
    }

    /// Jump unless bits 63:47 of R14 are all equal. Uses RCX and R15.
    pub(super) fn unless_canonical(&mut self) -> Patch {
        self.asm.mov_immediate(Host::R15, 47);
        self.asm.sarx(Host::RCX, Host::R14, Host::R15);
        // 0 or 1 from bits that are all set or all clear.
        self.asm.lea_base(Host::RCX, Host::RCX, 1);
        self.keep_only(!1);
        self.jump_if_rcx_is_not_zero()
    }

    /// Load a segment register with the null selector in `HotState::temporary`. Uses RCX.
    fn set_null_segment(&mut self, index: usize) {
        self.asm.store_immediate(segment_field(index, offset_of!(SegmentRegister, base)), 0);
        self.asm.load(Host::RCX, hot!(temporary));
        self.asm.rorx(Host::RCX, Host::RCX, 32);
        self.asm.store(segment_field(index, offset_of!(SegmentRegister, limit)), Host::RCX);
    }
}

/// Offset of a field of the first known descriptor in the state.
fn known_field(field: usize) -> i32 {
    hot!(known) + field as i32
}

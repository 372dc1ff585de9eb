//! IRETQ of a 64-bit kernel, to itself and to its 64-bit programs.

use super::access::{segment_field, AccessKind, Descriptor, Place};
use super::assembler::Patch;
use super::builder::{hot, Unencodable};
use super::registers::GUEST_RSP;
use super::{Builder, Host};
use crate::optimisations::Optimisation;
use crate::state::{flag, seg, CpuState, HotState, SegmentRegister};
use crate::system::known::Use;
use iced_x86::{Instruction, Mnemonic};
use std::mem::offset_of;
use std::rc::Rc;

/// Words of the frame: RIP, CS, RFLAGS, RSP, SS.
const WORDS: usize = 5;
const RIP: usize = 0;
const CS: usize = 1;
const FLAGS: usize = 2;
const RSP: usize = 3;
const SS: usize = 4;
/// Flags that have to be clear in what is returned to: they would make it another mode. RF has no effect
/// here, because no breakpoint is set.
const UNUSUAL: u64 =
    flag::TF | flag::DF | flag::IOPL | flag::NT | flag::VM | flag::AC | flag::VIF | flag::VIP;
/// P in a segment register's image.
const PRESENT: u64 = 1 << (48 + 7);

fn frame(word: usize) -> i32 {
    hot!(frame) + 8 * word as i32
}

impl Builder {
    /// IRETQ with descriptors that are known. Returns whether this is one that can be emitted.
    pub(super) fn interrupt_return(&mut self, instruction: &Instruction) -> Result<bool, Unencodable> {
        let kernel = self.mode.cpl() == 0 && !self.mode.access_override() && !self.mode.backwards();
        let wanted = self.optimisations.has(Optimisation::InterruptReturns) && !self.mode.is_alone();
        if instruction.mnemonic() != Mnemonic::Iretq || !kernel || !wanted {
            return Ok(false);
        }
        self.asm.load(Host::RCX, hot!(iret_ready));
        let mut slow = vec![self.jump_if_rcx_is_zero()];
        self.fetch_frame()?;
        slow.extend(self.unless_usual_frame());
        self.asm.load(Host::RCX, frame(CS));
        self.keep_only(3);
        let outward = self.jump_if_rcx_is_not_zero();
        slow.extend(self.return_within_kernel()?);
        self.asm.bind(outward);
        slow.extend(self.return_to_program()?);
        self.leave_at(slow, instruction);
        Ok(true)
    }

    /// `HotState::frame` = the five words at the top of the stack.
    fn fetch_frame(&mut self) -> Result<(), Unencodable> {
        self.access(
            GUEST_RSP,
            Descriptor::new(8 * WORDS, AccessKind::Read).stack(),
            Rc::new(|builder, place| {
                let Place::Direct(address) = place else { return Err(Unencodable) };
                for word in 0..WORDS {
                    builder.load_place(Host::RCX, Place::Offset(address, 8 * word as i32), 8)?;
                    builder.asm.store(frame(word), Host::RCX);
                }
                Ok(())
            }),
        )
    }

    /// Jump unless the flags are the usual ones, no event waits for them, and RIP is canonical.
    fn unless_usual_frame(&mut self) -> [Patch; 3] {
        self.asm.load(Host::RCX, frame(FLAGS));
        self.asm.store(hot!(temporary), Host::RCX);
        self.keep_only(UNUSUAL);
        let unusual = self.jump_if_rcx_is_not_zero();
        let waits = self.unless_interrupts_may_be_on();
        self.asm.load(Host::R14, frame(RIP));
        [unusual, waits, self.unless_canonical()]
    }

    /// Find the descriptor of a selector in the frame. Returns the jumps of where it is not known.
    fn popped_descriptor(&mut self, word: usize, usage: Use) -> Result<Vec<Patch>, Unencodable> {
        self.asm.load(Host::RCX, frame(word));
        self.asm.movzx16(Host::RCX, Host::RCX);
        self.asm.store(hot!(temporary), Host::RCX);
        self.known_descriptor(usage)
    }

    fn return_within_kernel(&mut self) -> Result<Vec<Patch>, Unencodable> {
        let mut slow = self.popped_descriptor(CS, Use::ReturnCode)?;
        // SS is null in a handler that came from a program, and stays so on the way out of one inside it.
        self.asm.load(Host::RCX, frame(SS));
        self.asm.movzx16(Host::RCX, Host::RCX);
        let null = self.asm.jrcxz();
        let some = self.asm.jump();
        self.asm.bind_short(null);
        self.asm.store_immediate(segment_field(seg::SS, offset_of!(SegmentRegister, base)), 0);
        self.asm.store_immediate(segment_field(seg::SS, offset_of!(SegmentRegister, limit)), 0);
        let set = self.asm.jump();
        self.asm.bind(some);
        slow.extend(self.popped_descriptor(SS, Use::ReturnStack)?);
        self.unless_level(0, &mut slow);
        self.set_known_segment(seg::SS);
        self.asm.bind(set);
        self.take_frame();
        self.switch_mode(self.mode);
        Ok(slow)
    }

    fn return_to_program(&mut self) -> Result<Vec<Patch>, Unencodable> {
        let mut slow = Vec::new();
        for index in [seg::ES, seg::DS, seg::FS, seg::GS] {
            // One that holds kernel data would have to be dropped.
            self.asm.load(Host::RCX, segment_field(index, offset_of!(SegmentRegister, limit)));
            self.keep_only(PRESENT);
            slow.push(self.jump_if_rcx_is_not_zero());
        }
        self.asm.load(Host::RCX, frame(CS));
        self.asm.store(hot!(temporary), Host::RCX);
        self.unless_level(3, &mut slow);
        slow.extend(self.popped_descriptor(CS, Use::ReturnCode)?);
        slow.extend(self.popped_descriptor(SS, Use::ReturnStack)?);
        self.unless_level(3, &mut slow);
        self.set_known_segment(seg::SS);
        self.take_frame();
        self.switch_to_user();
        Ok(slow)
    }

    /// Jump unless the selector in `HotState::temporary` has this privilege level. Keeps R15.
    fn unless_level(&mut self, level: i32, slow: &mut Vec<Patch>) {
        self.asm.load(Host::RCX, hot!(temporary));
        self.asm.mov_immediate(Host::R14, 3);
        self.asm.pext_by(Host::RCX, Host::RCX, Host::R14);
        self.asm.lea_base(Host::RCX, Host::RCX, -level);
        slow.push(self.jump_if_rcx_is_not_zero());
    }

    /// CS, whose descriptor was found, RFLAGS and RSP from the frame, and R14 = its RIP.
    fn take_frame(&mut self) {
        self.asm.load(Host::RCX, frame(CS));
        self.lead_to_descriptor();
        self.set_known_segment(seg::CS);
        self.asm.load(Host::RCX, frame(FLAGS));
        self.asm.store(hot!(temporary), Host::RCX);
        self.take_popped_flags(true);
        self.asm.load(GUEST_RSP, frame(RSP));
        self.asm.load(Host::R14, frame(RIP));
    }
}

//! Return stacks: calls note where they return to, and returns look there first.
//!
//! The jump cache of an indirect branch is large, and a compiler's returns miss the processor's caches in it. A call whose
//! block may be linked to the next one of its page therefore pushes the RIP it returns to, and the address of host code
//! that goes on there, on a small ring; RET compares the RIP that it has popped with the newest entry, and takes
//! the entry off if they are the same. If not, the jump cache is asked as by any indirect branch: nothing depends on
//! calls and returns being paired, and the guest's stack alone says where a return goes.
//!
//! An entry holds exactly as long as those of the jump cache that the same code uses, and is cleared with them: as the
//! mappings change, or the mode of that code. The code it leads to is a link within the page of the call, with
//! the RIP in R14, as what a dropped block's entry jumps to wants it.

use super::assembler::Patch;
use super::builder::hot;
use super::{Builder, Host};
use crate::optimisations::Optimisation;
use crate::state::{CpuState, HotState, ReturnEntry, RETURNS, RETURN_STACKS};
use std::mem::{offset_of, size_of};

/// The return stack's index is a multiple of two, since addressing scales by 8.
const STEP: i32 = 2;
const _: () = assert!(size_of::<ReturnEntry>() == 8 * STEP as usize && RETURNS * STEP as usize == 1 << 8);

/// Offset of a field of the first entry of a return stack in the state.
fn field(stack: usize, field: usize) -> i32 {
    hot!(returns) + (stack * RETURNS * size_of::<ReturnEntry>() + field) as i32
}

fn top(stack: usize) -> i32 {
    hot!(return_top) + 8 * stack as i32
}

impl Builder {
    /// The return stack of this block's calls and returns, of 64 bits alone; `size`: the address's, in bytes.
    pub(super) fn return_stack(&self, size: usize) -> Option<usize> {
        let used = [Optimisation::ReturnStack, Optimisation::JumpCache, Optimisation::Links];
        let stack = self.mode.jump_cache().filter(|&cache| cache < RETURN_STACKS)?;
        (size == 8 && used.into_iter().all(|one| self.optimisations.has(one))).then_some(stack)
    }

    /// Note where the call that is being emitted returns to. Uses R15 and RCX. What it gives is for
    /// [`Self::return_here`].
    pub(super) fn foresee_return(&mut self, size: usize) -> Option<Patch> {
        let stack = self.return_stack(size)?;
        let next = i32::try_from(self.next).ok().filter(|_| self.linkable(self.next))?;
        self.asm.load(Host::R15, top(stack));
        self.move_top(stack, STEP);
        match self.placed {
            Some(rip_page) => self.asm.mov_immediate(Host::RCX, !rip_page.wrapping_add_signed(next.into())),
            None => {
                self.load_rip(Host::RCX, next);
                self.asm.not(Host::RCX);
            }
        }
        self.asm.store_indexed(field(stack, offset_of!(ReturnEntry, inverted_rip)), Host::R15, Host::RCX);
        let entry = self.asm.code_address(Host::RCX);
        self.asm.store_indexed(field(stack, offset_of!(ReturnEntry, host)), Host::R15, Host::RCX);
        Some(entry)
    }

    /// Behind the call: the code that a foreseen return goes to, with the RIP in R14.
    pub(super) fn return_here(&mut self, entry: Option<Patch>) {
        let Some(entry) = entry else { return };
        self.asm.bind(entry);
        self.asm.lea(true, Host::RCX, Some(Host::R14), None, -(self.next as i32));
        self.asm.store(hot!(rip_page), Host::RCX);
        let patch = self.asm.jump();
        self.link(patch, self.next);
    }

    /// Leave for the RIP in R14, as the newest entry of a return stack says if it is the one; ends the block.
    pub(super) fn exit_as_foreseen(&mut self, stack: usize) {
        self.ended = true;
        self.asm.load(Host::RCX, hot!(permit));
        let stop = self.asm.jrcxz();
        self.asm.load(Host::R15, top(stack));
        self.asm.load_indexed(Host::RCX, field(stack, offset_of!(ReturnEntry, inverted_rip)), Host::R15);
        self.asm.lea(true, Host::RCX, Some(Host::RCX), Some((Host::R14, 1)), 1);
        let foreseen = self.asm.jrcxz();
        self.asm.bind_short(stop);
        let other = self.asm.jump();
        self.asm.bind_short(foreseen);
        self.asm.load_indexed(Host::RCX, field(stack, offset_of!(ReturnEntry, host)), Host::R15);
        self.move_top(stack, -STEP);
        self.asm.jump_to(Host::RCX);
        self.later(move |builder| {
            builder.asm.bind(other);
            builder.jump_through_cache(stack);
        });
    }

    /// Add to the index in R15, which goes round.
    fn move_top(&mut self, stack: usize, step: i32) {
        self.asm.lea(false, Host::R15, Some(Host::R15), None, step);
        self.asm.movzx8(Host::R15, Host::R15);
        self.asm.store(top(stack), Host::R15);
    }
}

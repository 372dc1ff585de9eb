//! Control transfers: direct links, indirect branches through the jump cache, polls.

use super::access::{AccessKind, Descriptor, Operation};
use super::assembler::ShortPatch;
use super::builder::{hot, Unencodable};
use super::registers::{number, GUEST_RCX};
use super::special::Pushed;
use super::{Builder, Host};
use crate::cache::NewLink;
use crate::mmu::jumps::JUMP_ROTATIONS;
use crate::mode::Width;
use crate::optimisations::Optimisation;
use crate::state::{CpuState, HotState, JumpCache, JumpEntry};
use iced_x86::{ConditionCode, Instruction, Mnemonic, OpKind};
use std::mem::offset_of;
use std::rc::Rc;

impl Builder {
    pub(super) fn branch(&mut self, instruction: &Instruction) -> Result<(), Unencodable> {
        match instruction.mnemonic() {
            Mnemonic::Jmp => self.jump(instruction),
            Mnemonic::Call => self.call(instruction),
            Mnemonic::Ret => self.ret(instruction),
            _ if instruction.is_jcc_short_or_near() => {
                self.conditional(instruction, condition_number(instruction.condition_code()));
                Ok(())
            }
            Mnemonic::Jcxz | Mnemonic::Jecxz | Mnemonic::Jrcxz => self.jump_if_rcx_zero(instruction),
            Mnemonic::Loop | Mnemonic::Loope | Mnemonic::Loopne => self.count_down(instruction),
            _ => Err(Unencodable),
        }
    }

    /// Page offset of a direct branch's target. Blocks are decoded with the page offset as address,
    /// so that a target before the page is negative, wrapped at the width of the instruction pointer.
    fn target(&self, instruction: &Instruction) -> i64 {
        let target = instruction.near_branch_target();
        match instruction.op0_kind() {
            OpKind::NearBranch16 => i64::from(target as i16),
            OpKind::NearBranch32 => i64::from(target as i32),
            _ => target as i64,
        }
    }

    /// Whether a direct link may go to `target`: the same page, so the same mapping.
    pub(super) fn linkable(&self, target: i64) -> bool {
        let checked = self.mode.single_step() || self.mode.is_alone() || self.mode.code_limited();
        let links = self.optimisations.has(Optimisation::Links) && !checked;
        links && (0..4096).contains(&target) && !self.straddles
    }

    /// Leave for the target of a direct branch; ends the block. One with a 16-bit operand clears the upper half of
    /// EIP (Intel SDM vol. 2A "JMP—Jump").
    fn exit_to_target(&mut self, instruction: &Instruction, target: i64) {
        let operand = direct_width(instruction);
        if self.truncates(instruction) || self.may_be_beyond(operand) {
            self.target_rip(target);
            self.check_target(operand);
            return self.exit_indirect(operand);
        }
        self.exit_to(target);
    }

    /// Whether a branch with this operand size can lead beyond the limit of CS.
    fn may_be_beyond(&self, operand: Width) -> bool {
        let code = self.mode.code();
        code != Width::W64 && (self.mode.code_limited() || operand.bits() > code.bits())
    }

    /// #GP here, with nothing done yet, where the target in R14 is beyond the limit of CS (Intel SDM
    /// vol. 2A "CALL", "Jcc", "JMP").
    fn check_target(&mut self, operand: Width) {
        if self.may_be_beyond(operand) {
            self.truncate_target(operand);
            self.asm.mov_immediate(Host::RCX, u64::from(Descriptor::branch_target().0));
            self.asm.call_at(hot!(slow_access));
        }
    }

    fn truncate_target(&mut self, width: Width) {
        match width {
            Width::W64 => {}
            Width::W32 => self.asm.mov32(Host::R14, Host::R14),
            Width::W16 => self.asm.movzx16(Host::R14, Host::R14),
        }
    }

    /// Whether the target may have an upper half to clear, or the way there leads around the 64 KiB.
    fn truncates(&self, instruction: &Instruction) -> bool {
        let narrow = self.mode.code() == Width::W16 && !self.mode.beyond_64k();
        instruction.op0_kind() == OpKind::NearBranch16 && !(narrow && self.linkable(self.target(instruction)))
    }

    /// Leave for `target`; ends the block.
    pub(super) fn exit_to(&mut self, target: i64) {
        self.ended = true;
        if !self.linkable(target) {
            return self.exit_across(target);
        }
        let stop = (target <= self.current).then(|| self.poll());
        let patch = self.asm.jump();
        self.link(patch, target);
        if let Some(stop) = stop {
            self.poll_failed(stop, target);
        }
    }

    /// On a back-edge: branch to the code that [`Self::poll_failed`] emits if something waits.
    fn poll(&mut self) -> ShortPatch {
        self.asm.load(Host::RCX, hot!(permit));
        self.asm.jrcxz()
    }

    /// After the way on: leave for `target` by the run loop.
    fn poll_failed(&mut self, stop: ShortPatch, target: i64) {
        self.asm.bind_short(stop);
        let out = self.asm.jump();
        self.later(move |builder| {
            builder.asm.bind(out);
            builder.target_rip(target);
            builder.leave_indirect();
        });
    }

    /// R14 = RIP at a page offset.
    pub(super) fn target_rip(&mut self, target: i64) {
        match i32::try_from(target) {
            Ok(target) => self.load_rip(Host::R14, target),
            Err(_) => {
                self.load_rip_page(Host::R14);
                self.asm.mov_immediate(Host::RCX, target as u64);
                self.asm.lea(true, Host::R14, Some(Host::R14), Some((Host::RCX, 1)), 0);
            }
        }
    }

    fn exit_across(&mut self, target: i64) {
        let stable = self.optimisations.has(Optimisation::PageLinks) && self.mode.jump_cache().is_some();
        match i32::try_from(target) {
            Ok(near) if stable && !self.straddles => self.guarded_link(near),
            _ => {
                self.target_rip(target);
                self.exit_indirect(Width::W64);
            }
        }
    }

    /// A link to another page: it holds as long as the mappings of its side, kernel or user, do, which
    /// `HotState::negated_generations` stands for.
    ///
    /// It polls also where it leads forward: no way through the code is longer than a page without a poll,
    /// which bounds how long an interrupt waits.
    fn guarded_link(&mut self, target: i32) {
        let stop = self.poll();
        let side = i32::from(self.mode.cpl() == 3);
        self.asm.load(Host::RCX, hot!(negated_generations) + 8 * side);
        // No generation is 0: unlinked.
        let guard = self.asm.lea_base_patchable(Host::RCX, Host::RCX);
        let unlinked = self.jump_unless_rcx_zero();
        let index = self.out.links.len();
        self.later(move |builder| {
            builder.asm.bind(unlinked);
            builder.numbered_exit(index, true);
        });
        self.move_rip_page(target & !0xfff);
        let patch = self.asm.jump();
        self.out.links.push(NewLink {
            patch: patch.0,
            unlinked: 0,
            delta: i64::from(target),
            guard: Some(guard.0),
        });
        self.poll_failed(stop, i64::from(target));
    }

    /// The page to go on in lies `distance` from this one. Uses RCX.
    fn move_rip_page(&mut self, distance: i32) {
        if let Some(rip_page) = self.placed {
            let there = rip_page.wrapping_add_signed(distance.into()) as i64;
            if let Ok(there) = i32::try_from(there) {
                return self.asm.store_immediate(hot!(rip_page), there);
            }
            self.asm.mov_immediate(Host::RCX, there as u64);
        } else {
            self.asm.load(Host::RCX, hot!(rip_page));
            self.asm.lea(self.mode.is64(), Host::RCX, Some(Host::RCX), None, distance);
        }
        self.asm.store(hot!(rip_page), Host::RCX);
    }

    /// Leave for the RIP in R14, truncated to `operand`; ends the block.
    pub(super) fn exit_indirect(&mut self, operand: Width) {
        self.ended = true;
        let widest = if self.mode.is64() { Width::W64 } else { Width::W32 };
        self.truncate_target(narrower(operand, widest));
        let jump_cache = self.mode.jump_cache();
        if let Some(index) = jump_cache.filter(|_| self.optimisations.has(Optimisation::JumpCache)) {
            return self.jump_through_cache(index);
        }
        self.leave_indirect();
    }

    /// Leave for the RIP in R14 by the run loop.
    fn leave_indirect(&mut self) {
        self.asm.store(hot!(target), Host::R14);
        self.asm.jump_at(hot!(exit_indirect));
    }

    /// Go to the block of the RIP in R14, if it is known. Narrow code has its mode in the upper half of R14
    /// from here on; who takes a target masks it off.
    pub(super) fn jump_through_cache(&mut self, index: usize) {
        self.asm.load(Host::RCX, hot!(permit));
        let stop = self.asm.jrcxz();
        if self.mode.jump_tag() != 0 {
            self.asm.mov_immediate(Host::RCX, self.mode.jump_tag());
            self.asm.lea(true, Host::R14, Some(Host::R14), Some((Host::RCX, 1)), 0);
        }
        let hit = self.look_for_jump(index, JUMP_ROTATIONS[0]);
        self.asm.bind_short(stop);
        let miss = self.asm.jump();
        self.asm.bind_short(hit);
        self.jump_to_entry(index);
        self.later(move |builder| {
            builder.asm.bind(miss);
            builder.asm.load(Host::RCX, hot!(permit));
            let stop = builder.asm.jrcxz();
            let hit = builder.look_for_jump(index, JUMP_ROTATIONS[1]);
            builder.asm.bind_short(stop);
            builder.leave_indirect();
            builder.asm.bind_short(hit);
            builder.jump_to_entry(index);
        });
    }

    /// Jump if the entry of jump cache `index` that `rotation` selects is that of R14. Leaves R15 at the entry.
    fn look_for_jump(&mut self, index: usize, rotation: u32) -> ShortPatch {
        self.asm.rorx(Host::R15, Host::R14, rotation as u8);
        self.asm.lea(true, Host::R15, Some(Host::R15), Some((Host::R14, 1)), 0);
        self.asm.pext(Host::R15, Host::R15, hot!(jump_mask));
        // 32 bytes an entry, of which addressing gives 8.
        self.asm.lea(true, Host::R15, None, Some((Host::R15, 4)), 0);
        self.asm.load_indexed(Host::RCX, jump_field(index, offset_of!(JumpEntry, tag)), Host::R15);
        self.asm.lea(true, Host::RCX, Some(Host::RCX), Some((Host::R14, 1)), 0);
        self.asm.jrcxz()
    }

    /// Go where the entry at R15 says.
    fn jump_to_entry(&mut self, index: usize) {
        self.asm.load_indexed(Host::RCX, jump_field(index, offset_of!(JumpEntry, rip_page)), Host::R15);
        self.asm.store(hot!(rip_page), Host::RCX);
        self.asm.jump_indexed(jump_field(index, offset_of!(JumpEntry, host)), Host::R15);
    }

    fn conditional(&mut self, instruction: &Instruction, condition: u8) {
        let (target, next) = (self.target(instruction), self.next);
        if self.followed {
            // A turn of an unrolled loop: the next one follows.
            let patch = self.asm.jump_if(condition ^ 1);
            return self.link(patch, next);
        }
        let plain = !self.truncates(instruction) && !self.may_be_beyond(direct_width(instruction));
        if plain && self.linkable(target) && target > self.current {
            let patch = self.asm.jump_if(condition);
            self.link(patch, target);
            self.exit_to(next);
        } else if self.linkable(next) {
            let patch = self.asm.jump_if(condition ^ 1);
            self.link(patch, next);
            self.exit_to_target(instruction, target);
        } else {
            let skip = self.asm.jump_if(condition ^ 1);
            self.exit_to_target(instruction, target);
            self.asm.bind(skip);
            self.exit_to(next);
        }
    }

    fn jump_if_rcx_zero(&mut self, instruction: &Instruction) -> Result<(), Unencodable> {
        let (target, next) = (self.target(instruction), self.next);
        match instruction.mnemonic() {
            Mnemonic::Jcxz => self.asm.movzx16(Host::RCX, GUEST_RCX),
            Mnemonic::Jecxz => self.asm.mov32(Host::RCX, GUEST_RCX),
            _ => self.asm.mov(Host::RCX, GUEST_RCX),
        }
        let zero = self.asm.jrcxz();
        let not_zero = self.asm.jump();
        self.asm.bind_short(zero);
        self.exit_to_target(instruction, target);
        self.asm.bind(not_zero);
        self.exit_to(next);
        Ok(())
    }

    fn count_down(&mut self, instruction: &Instruction) -> Result<(), Unencodable> {
        let (target, next) = (self.target(instruction), self.next);
        let bits = instruction.op_code().address_size();
        self.asm.lea(bits == 64, Host::RCX, Some(GUEST_RCX), None, -1);
        if bits == 16 {
            self.asm.movzx16(Host::RCX, Host::RCX);
        }
        let flag_fails = match instruction.mnemonic() {
            Mnemonic::Loope => Some(self.asm.jump_if(5)),
            Mnemonic::Loopne => Some(self.asm.jump_if(4)),
            _ => None,
        };
        let zero = self.asm.jrcxz();
        let go_on = self.asm.jump();
        self.asm.bind_short(zero);
        if let Some(fails) = flag_fails {
            self.asm.bind(fails);
        }
        self.decrement_rcx(bits);
        self.exit_to(next);
        self.asm.bind(go_on);
        self.count_and_go(instruction, target, bits);
        Ok(())
    }

    /// The way on of a counted loop: a target beyond the limit of CS is found before the count changes.
    fn count_and_go(&mut self, instruction: &Instruction, target: i64, bits: u32) {
        let operand = direct_width(instruction);
        if self.may_be_beyond(operand) {
            self.target_rip(target);
            self.check_target(operand);
            self.decrement_rcx(bits);
            return self.exit_indirect(operand);
        }
        self.decrement_rcx(bits);
        self.exit_to_target(instruction, target);
    }

    /// One less in the guest's CX, ECX or RCX, without touching flags. Keeps R14.
    fn decrement_rcx(&mut self, bits: u32) {
        if bits == 16 {
            self.asm.lea(false, Host::RCX, Some(GUEST_RCX), None, -1);
            self.asm.mov16(GUEST_RCX, Host::RCX);
        } else {
            self.asm.lea(bits == 64, GUEST_RCX, Some(GUEST_RCX), None, -1);
        }
    }

    fn jump(&mut self, instruction: &Instruction) -> Result<(), Unencodable> {
        match instruction.op0_kind() {
            OpKind::Register | OpKind::Memory => {
                let width = self.branch_operand(instruction)?;
                self.check_target(width);
                self.exit_indirect(width);
            }
            _ => self.exit_to_target(instruction, self.target(instruction)),
        }
        Ok(())
    }

    /// Load the target of an indirect branch into R14; returns its size.
    fn branch_operand(&mut self, instruction: &Instruction) -> Result<Width, Unencodable> {
        if instruction.op0_kind() == OpKind::Register {
            let register = instruction.op0_register();
            self.read_guest(Host::R14, number(register).ok_or(Unencodable)?);
            return Ok(width_of_size(register.size()));
        }
        let size = instruction.memory_size().size();
        let operation: Operation = Rc::new(move |builder, place| builder.load_place(Host::R14, place, size));
        self.load_operand(instruction, size, operation)?;
        Ok(width_of_size(size))
    }

    fn call(&mut self, instruction: &Instruction) -> Result<(), Unencodable> {
        let size = usize::try_from(instruction.stack_pointer_increment().unsigned_abs()).unwrap_or(8);
        let back = Pushed::Rip(self.next);
        if !matches!(instruction.op0_kind(), OpKind::Register | OpKind::Memory) {
            let target = self.target(instruction);
            if self.may_be_beyond(direct_width(instruction)) {
                self.target_rip(target);
                self.check_target(direct_width(instruction));
            }
            self.push_value(back, size, true)?;
            let entry = self.foresee_return(size);
            self.exit_to_target(instruction, target);
            self.return_here(entry);
            return Ok(());
        }
        let width = self.branch_operand(instruction)?;
        self.check_target(width);
        if self.has_windows() {
            // R14 keeps the target: R15 is what has to lead to the stack.
            self.part = None;
            self.push_value(back, size, true)?;
        } else {
            self.asm.store(hot!(temporary), Host::R14);
            self.push_value(back, size, true)?;
            self.asm.load(Host::R14, hot!(temporary));
        }
        let entry = self.foresee_return(size);
        self.exit_indirect(width);
        self.return_here(entry);
        Ok(())
    }

    fn ret(&mut self, instruction: &Instruction) -> Result<(), Unencodable> {
        let extra = if instruction.op_count() == 1 { i32::from(instruction.immediate16()) } else { 0 };
        let size =
            usize::try_from(instruction.stack_pointer_increment().abs() - extra).map_err(|_| Unencodable)?;
        self.stack_access(
            0,
            Descriptor::new(size, AccessKind::Read).stack(),
            Rc::new(move |builder, place| builder.load_place(Host::R14, place, size)),
        )?;
        self.check_target(width_of_size(size));
        self.adjust_stack(size as i32 + extra);
        match self.return_stack(size) {
            Some(stack) => self.exit_as_foreseen(stack),
            None => self.exit_indirect(width_of_size(size)),
        }
        Ok(())
    }
}

/// Offset of a field of the first entry of jump cache `index` in the state.
fn jump_field(index: usize, field: usize) -> i32 {
    hot!(jump) + (std::mem::size_of::<JumpCache>() * index + field) as i32
}

fn narrower(left: Width, right: Width) -> Width {
    if left.bits() < right.bits() {
        left
    } else {
        right
    }
}

/// Operand size of a direct branch.
fn direct_width(instruction: &Instruction) -> Width {
    match instruction.op0_kind() {
        OpKind::NearBranch16 => Width::W16,
        OpKind::NearBranch32 => Width::W32,
        _ => Width::W64,
    }
}

fn width_of_size(size: usize) -> Width {
    match size {
        2 => Width::W16,
        4 => Width::W32,
        _ => Width::W64,
    }
}

/// The condition's number in Jcc opcodes.
fn condition_number(condition: ConditionCode) -> u8 {
    use ConditionCode as C;
    match condition {
        C::o => 0,
        C::no => 1,
        C::b => 2,
        C::ae => 3,
        C::e => 4,
        C::ne => 5,
        C::be => 6,
        C::a => 7,
        C::s => 8,
        C::ns => 9,
        C::p => 10,
        C::np => 11,
        C::l => 12,
        C::ge => 13,
        C::le => 14,
        C::g | C::None => 15,
    }
}

//! Stack frames of events, gates and far returns, on the current stack or one to switch to.

use super::memory::only_exception;
use super::segment::{code_of, null_stack};
use crate::cpu::{Cpu, Exception};
use crate::mmu::walk::Kind;
use crate::state::{gpr, seg, SegmentRegister};
use crate::system::memory::AccessMode;

/// A stack being pushed to or popped from; nothing of it is in the vCPU until committed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stack {
    /// What SS holds or will hold.
    pub segment: SegmentRegister,
    /// What RSP will hold.
    pub pointer: u64,
    /// 64-bit stack: no segmentation.
    flat: bool,
    /// Bits of `pointer` that pushes change.
    mask: u64,
    /// Privilege level of the accesses.
    level: u8,
    /// Raised by a push or pop outside the segment.
    fault: Exception,
}

impl Stack {
    /// The stack of the running program.
    pub fn current(cpu: &Cpu) -> Self {
        let segment = cpu.state.segments[seg::SS];
        let flat = cpu.state.code64();
        let fault = Exception::stack(0);
        let mask = pointer_mask(&segment, flat);
        Self { segment, pointer: cpu.state.gpr[gpr::RSP], flat, mask, level: cpu.state.cpl(), fault }
    }

    /// Another stack: `flat` when 64-bit code will run on it.
    pub fn new(segment: SegmentRegister, pointer: u64, level: u8, flat: bool) -> Self {
        let fault = Exception::stack(code_of(segment.selector));
        Self { segment, pointer, flat, mask: pointer_mask(&segment, flat), level, fault }
    }

    /// The same stack, used by 64-bit code whatever ran before.
    pub fn flatten(self) -> Self {
        Self { flat: true, mask: u64::MAX, ..self }
    }

    /// Add to the pointer.
    pub fn skip(&mut self, bytes: u64) {
        self.pointer = (self.pointer & !self.mask) | (self.pointer.wrapping_add(bytes) & self.mask);
    }

    fn offset(&self) -> u64 {
        self.pointer & self.mask
    }
}

/// The part of RSP that a stack segment uses (Intel SDM vol. 1 §6.2.3 "Address-Size Attributes
/// for Stack Accesses").
pub(crate) fn pointer_mask(segment: &SegmentRegister, flat: bool) -> u64 {
    match (flat, segment.big()) {
        (true, _) => u64::MAX,
        (false, true) => 0xffff_ffff,
        (false, false) => 0xffff,
    }
}

/// Offset of RSP0 in a 64-bit TSS, and of IST1 (Intel SDM vol. 3A §8.7 "Task Management in
/// 64-bit Mode").
const TSS_RSP0: u32 = 4;
const TSS_IST1: u32 = 36;

impl Cpu {
    /// Push `size` (2, 4 or 8) bytes.
    ///
    /// # Errors
    /// #SS with the stack's selector (0 for the current one), page faults.
    pub(crate) fn push(&mut self, stack: &mut Stack, size: u8, value: u64) -> Result<(), Exception> {
        let mut after = *stack;
        after.skip(u64::from(size).wrapping_neg());
        let la = self
            .stack_linear(&stack.segment, stack.flat, after.offset(), u64::from(size), Kind::Write)
            .ok_or(stack.fault)?;
        self.check_stack_alignment(stack, la, size)?;
        only_exception(self.write_linear(la, size, value, AccessMode::Level(stack.level)))?;
        stack.pointer = after.pointer;
        Ok(())
    }

    /// Pop `size` (2, 4 or 8) bytes.
    ///
    /// # Errors
    /// As [`Self::push`].
    pub(crate) fn pop(&mut self, stack: &mut Stack, size: u8) -> Result<u64, Exception> {
        let la = self
            .stack_linear(&stack.segment, stack.flat, stack.offset(), u64::from(size), Kind::Read)
            .ok_or(stack.fault)?;
        self.check_stack_alignment(stack, la, size)?;
        let value = only_exception(self.read_linear(la, size, AccessMode::Level(stack.level)))?;
        stack.skip(u64::from(size));
        Ok(value)
    }

    /// Pop `N` values, the one at the lowest address first.
    ///
    /// # Errors
    /// As [`Self::push`].
    #[inline]
    pub(crate) fn pop_frame<const N: usize>(
        &mut self,
        stack: &mut Stack,
        size: u8,
    ) -> Result<[u64; N], Exception> {
        let mut values = [0; N];
        if stack.flat && size == 8 {
            self.pop_flat(stack, &mut values)?;
        } else {
            for value in &mut values {
                *value = self.pop(stack, size)?;
            }
        }
        Ok(values)
    }

    /// One read for the whole frame: interrupt returns live here. At most 5 values.
    #[inline]
    fn pop_flat(&mut self, stack: &mut Stack, values: &mut [u64]) -> Result<(), Exception> {
        let mut frame = [0; 40];
        let bytes = &mut frame[..8 * values.len()];
        let la = self
            .stack_linear(&stack.segment, true, stack.pointer, bytes.len() as u64, Kind::Read)
            .ok_or(stack.fault)?;
        self.check_stack_alignment(stack, la, 8)?;
        only_exception(self.read_bytes(la, bytes, AccessMode::Level(stack.level)))?;
        for (value, word) in values.iter_mut().zip(bytes.chunks_exact(8)) {
            *value = word.iter().rev().fold(0, |sum, byte| (sum << 8) | u64::from(*byte));
        }
        stack.skip(8 * values.len() as u64);
        Ok(())
    }

    /// Push `values` (at most 6) on a 64-bit stack with one write, the first at the highest address.
    ///
    /// # Errors
    /// As [`Self::push`].
    #[inline]
    pub(crate) fn push_flat(&mut self, stack: &mut Stack, values: &[u64]) -> Result<(), Exception> {
        let mut frame = [0; 48];
        let bytes = &mut frame[..8 * values.len()];
        for (word, value) in bytes.chunks_exact_mut(8).rev().zip(values) {
            word.copy_from_slice(&value.to_le_bytes());
        }
        let bottom = stack.pointer.wrapping_sub(bytes.len() as u64);
        let la = self
            .stack_linear(&stack.segment, true, bottom, bytes.len() as u64, Kind::Write)
            .ok_or(stack.fault)?;
        self.check_stack_alignment(stack, la, 8)?;
        only_exception(self.write_bytes(la, bytes, AccessMode::Level(stack.level)))?;
        stack.pointer = bottom;
        Ok(())
    }

    /// #AC(0) for a misaligned access to the stack of a program at level 3 that asked for it.
    #[inline]
    fn check_stack_alignment(&self, stack: &Stack, la: u64, size: u8) -> Result<(), Exception> {
        let aligned = la & (u64::from(size) - 1) == 0;
        match aligned || stack.level != 3 || !self.alignment_checked() {
            true => Ok(()),
            false => Err(Exception::with_code(17, 0)),
        }
    }

    /// Make a stack the running program's.
    pub(crate) fn commit_stack(&mut self, stack: &Stack) {
        self.state.segments[seg::SS] = stack.segment;
        self.state.gpr[gpr::RSP] = stack.pointer;
    }

    /// Read `size` bytes of the current TSS.
    ///
    /// # Errors
    /// #TS(TR) past its limit, page faults.
    #[inline]
    pub(crate) fn read_tss(&mut self, offset: u32, size: u8) -> Result<u64, Exception> {
        let tr = self.state.tr;
        if u64::from(offset) + u64::from(size) - 1 > u64::from(tr.limit) {
            return Err(Exception::invalid_tss(code_of(tr.selector)));
        }
        self.read_table(tr.base.wrapping_add(u64::from(offset)), size)
    }

    /// The stack that a 64-bit gate switches to when it enters `level` from outside.
    ///
    /// # Errors
    /// #TS(TR), page faults.
    #[inline]
    pub(crate) fn inner_stack_long(&mut self, level: u8) -> Result<Stack, Exception> {
        let pointer = self.read_tss(TSS_RSP0 + 8 * u32::from(level), 8)?;
        Ok(Stack::new(null_stack(level), pointer, level, true))
    }

    /// RSP of an interrupt stack, `index` 1 to 7.
    ///
    /// # Errors
    /// #TS(TR), page faults.
    #[inline]
    pub(crate) fn interrupt_stack(&mut self, index: u8) -> Result<u64, Exception> {
        self.read_tss(TSS_IST1 + 8 * u32::from(index - 1), 8)
    }

    /// The stack that a 16- or 32-bit gate switches to when it enters `level`, from the TSS.
    ///
    /// # Errors
    /// #TS for the TSS or the stack selector, #SS for an absent stack, page faults.
    pub(crate) fn inner_stack(&mut self, level: u8) -> Result<Stack, Exception> {
        let level_offset = u32::from(level);
        let (pointer, selector) = if self.state.tr.kind() & 8 != 0 {
            let at = 4 + 8 * level_offset;
            (self.read_tss(at, 4)?, self.read_tss(at + 4, 2)?)
        } else {
            let at = 2 + 4 * level_offset;
            (self.read_tss(at, 2)?, self.read_tss(at + 2, 2)?)
        };
        let segment = self.stack_segment(selector as u16, level, false).map_err(protection_to_invalid_tss)?;
        Ok(Stack::new(segment, pointer, level, false))
    }
}

/// Selectors that come from a TSS blame the TSS.
pub(crate) fn protection_to_invalid_tss(exception: Exception) -> Exception {
    match exception.vector {
        13 => Exception { vector: 10, ..exception },
        _ => exception,
    }
}

//! Segment descriptors and the loading of segment registers.
//!
//! Section numbers are of Intel SDM vol. 3A (edition 081); the checks of each register follow
//! the pseudo-code of `MOV` and `LLDT`/`LTR` in vol. 2.

use crate::cpu::{Cpu, Exception, Outcome};
use crate::mmu::walk::{is_canonical, Kind};
use crate::state::{seg, SegmentRegister};
use crate::system::memory::AccessMode;

/// Of a code or data descriptor, in the byte of its type.
const ACCESSED: u8 = 1;
/// Of a TSS descriptor, in the byte of its type.
const BUSY: u8 = 2;
/// Where a descriptor has its type, S, DPL and P.
const TYPE_BYTE: u64 = 5;

/// System-descriptor types (§3.5 "System Descriptor Types"); 16-bit ones have no name here but
/// their number: 1 TSS, 3 busy TSS, 4 call gate, 5 task gate, 6 interrupt gate, 7 trap gate.
pub(crate) mod system_type {
    pub const TSS_16: u8 = 1;
    pub const LDT: u8 = 2;
    pub const TSS_16_BUSY: u8 = 3;
    pub const CALL_GATE_16: u8 = 4;
    pub const TASK_GATE: u8 = 5;
    pub const INTERRUPT_GATE_16: u8 = 6;
    pub const TRAP_GATE_16: u8 = 7;
    pub const TSS: u8 = 9;
    pub const TSS_BUSY: u8 = 11;
    pub const CALL_GATE: u8 = 12;
    pub const INTERRUPT_GATE: u8 = 14;
    pub const TRAP_GATE: u8 = 15;
}

/// Where a descriptor lies and what it says: the low 8 bytes, whatever its kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor {
    /// The 8 bytes as in memory.
    pub raw: u64,
    /// Linear address of the descriptor.
    pub address: u64,
}

impl Descriptor {
    /// Type, 4 bits.
    pub fn kind(&self) -> u8 {
        (self.raw >> 40) as u8 & 0xf
    }
    /// Code or data (S).
    pub fn is_code_or_data(&self) -> bool {
        self.raw & (1 << 44) != 0
    }
    /// Code.
    pub fn is_code(&self) -> bool {
        self.is_code_or_data() && self.kind() & 8 != 0
    }
    /// Conforming code.
    pub fn is_conforming(&self) -> bool {
        self.is_code() && self.kind() & 4 != 0
    }
    /// Data that may be written.
    pub fn is_writable_data(&self) -> bool {
        self.is_code_or_data() && self.kind() & 10 == 2
    }
    /// Data, or code that may be read.
    pub fn is_readable(&self) -> bool {
        self.is_code_or_data() && self.kind() & 10 != 8
    }
    /// Descriptor privilege level.
    pub fn dpl(&self) -> u8 {
        (self.raw >> 45) as u8 & 3
    }
    /// Present.
    pub fn present(&self) -> bool {
        self.raw & (1 << 47) != 0
    }
    /// 64-bit code (L).
    pub fn long(&self) -> bool {
        self.raw & (1 << 53) != 0
    }
    /// Default operation size (D/B).
    pub fn big(&self) -> bool {
        self.raw & (1 << 54) != 0
    }
    /// A gate's target selector.
    pub fn gate_selector(&self) -> u16 {
        (self.raw >> 16) as u16
    }
    /// A gate's offset, bits 31:0.
    pub fn gate_offset(&self) -> u64 {
        (self.raw & 0xffff) | ((self.raw >> 32) & 0xffff_0000)
    }
    /// The register contents that loading it under `selector` gives.
    pub fn register(&self, selector: u16) -> SegmentRegister {
        let pages = self.raw & (1 << 55) != 0;
        let limit = (self.raw & 0xffff) as u32 | ((self.raw >> 32) & 0xf_0000) as u32;
        SegmentRegister {
            base: ((self.raw >> 16) & 0xff_ffff) | ((self.raw >> 32) & 0xff00_0000),
            limit: if pages { (limit << 12) | 0xfff } else { limit },
            selector,
            attributes: (self.raw >> 40) as u16 & 0xf0ff,
        }
    }
}

/// A selector that names no descriptor.
pub(crate) fn is_null(selector: u16) -> bool {
    selector & !3 == 0
}

/// Requested privilege level.
pub(crate) fn rpl(selector: u16) -> u8 {
    (selector & 3) as u8
}

/// The error code that names a selector.
pub(crate) fn code_of(selector: u16) -> u32 {
    u32::from(selector & !3)
}

impl Cpu {
    /// The linear address of a selector's descriptor; `None` when `size` bytes of it lie outside
    /// the table's limit or there is no LDT.
    fn descriptor_address(&self, selector: u16, size: u64) -> Option<u64> {
        let index = u64::from(selector & !7);
        let (base, limit) = if selector & 4 == 0 {
            (self.state.gdtr.base, u64::from(self.state.gdtr.limit))
        } else {
            let ldtr = &self.state.ldtr;
            let usable = ldtr.present() && !is_null(ldtr.selector);
            (ldtr.base, u64::from(usable.then_some(ldtr.limit)?))
        };
        (index + size - 1 <= limit).then_some(base.wrapping_add(index))
    }

    /// Fetch the descriptor of a selector; `None` when it lies outside its table.
    ///
    /// # Errors
    /// Page faults.
    #[inline]
    pub fn descriptor(&mut self, selector: u16) -> Result<Option<Descriptor>, Exception> {
        match self.descriptor_address(selector, 8) {
            Some(address) => Ok(Some(Descriptor { raw: self.read_table(address, 8)?, address })),
            None => Ok(None),
        }
    }

    /// As [`Self::descriptor`], with #GP(selector) for one outside its table.
    ///
    /// # Errors
    /// #GP(selector), page faults.
    #[inline]
    pub fn descriptor_or_gp(&mut self, selector: u16) -> Result<Descriptor, Exception> {
        self.descriptor(selector)?.ok_or(Exception::protection(code_of(selector)))
    }

    /// The upper 8 bytes of a 16-byte system descriptor.
    ///
    /// # Errors
    /// #GP(selector) outside the table or when its type bits (44:40 of them) are not zero.
    pub(crate) fn descriptor_high(&mut self, selector: u16) -> Result<u64, Exception> {
        let fault = Exception::protection(code_of(selector));
        let address = self.descriptor_address(selector, 16).ok_or(fault)?;
        let high = self.read_table(address.wrapping_add(8), 8)?;
        if high & (0x1f << 40) != 0 {
            return Err(fault);
        }
        Ok(high)
    }

    /// The physical address of a descriptor's type, for the processor to change.
    ///
    /// # Errors
    /// Page faults.
    fn type_byte(&mut self, descriptor: &Descriptor) -> Result<u64, Exception> {
        let access = self.access(AccessMode::System, Kind::Write);
        Ok(self.translate_linear(descriptor.address.wrapping_add(TYPE_BYTE), access)?.gpa)
    }

    /// Mark a code or data descriptor accessed, by a locked access (§9.1.2.1 "Automatic Locking").
    ///
    /// # Errors
    /// Page faults.
    pub(crate) fn mark_accessed(&mut self, descriptor: &mut Descriptor) -> Result<(), Exception> {
        if descriptor.kind() & ACCESSED == 0 {
            let at = self.type_byte(descriptor)?;
            self.memory.set_bits(at, ACCESSED);
            descriptor.raw |= u64::from(ACCESSED) << 40;
        }
        Ok(())
    }

    /// Mark a TSS descriptor busy. Testing and setting is one locked access, so that two processors do not
    /// switch to one task (§9.1.2.1 "Automatic Locking").
    ///
    /// # Errors
    /// #GP(selector) if another vCPU was quicker, page faults.
    pub(crate) fn mark_busy(&mut self, descriptor: &Descriptor, selector: u16) -> Result<(), Exception> {
        let at = self.type_byte(descriptor)?;
        match self.memory.set_bits(at, BUSY) {
            Some(before) if before & BUSY != 0 => Err(Exception::protection(code_of(selector))),
            _ => Ok(()),
        }
    }

    /// Mark a TSS descriptor available.
    ///
    /// # Errors
    /// Page faults.
    pub(crate) fn clear_busy(&mut self, selector: u16) -> Result<(), Exception> {
        let descriptor = self.descriptor_or_gp(selector)?;
        let at = self.type_byte(&descriptor)?;
        self.memory.clear_bits(at, BUSY);
        Ok(())
    }

    /// Real-address or virtual-8086 mode: selectors are paragraphs.
    pub(crate) fn selectors_are_paragraphs(&self) -> bool {
        !self.state.protected() || self.state.v86()
    }

    /// Load ES, SS, DS, FS or GS as `MOV` and `POP` do. Loading CS is #UD.
    ///
    /// # Errors
    /// #GP, #SS or #NP with the selector, page faults; the register is then unchanged.
    pub fn load_segment(&mut self, segment: usize, selector: u16) -> Outcome {
        if segment == seg::CS || segment > seg::GS {
            return Err(Exception::UNDEFINED.into());
        }
        let register = if self.selectors_are_paragraphs() {
            self.paragraph_segment(segment, selector)
        } else if segment == seg::SS {
            self.stack_segment(selector, self.state.cpl(), self.state.code64())?
        } else {
            self.data_segment(selector)?
        };
        self.state.segments[segment] = register;
        Ok(())
    }

    /// Real-address mode keeps limit and attributes; virtual-8086 mode fixes them (§21.2.1
    /// "Registers Supported", §21.3 "8086 address translation").
    pub(crate) fn paragraph_segment(&self, segment: usize, selector: u16) -> SegmentRegister {
        let base = u64::from(selector) << 4;
        if self.state.v86() {
            return SegmentRegister { base, limit: 0xffff, selector, attributes: 0xf3 };
        }
        let attributes =
            if segment == seg::CS { 0x93 } else { self.state.segments[segment].attributes | 0x93 };
        SegmentRegister { base, selector, attributes, ..self.state.segments[segment] }
    }

    /// What a data-segment register gets in protected mode.
    pub(crate) fn data_segment(&mut self, selector: u16) -> Result<SegmentRegister, Exception> {
        if is_null(selector) {
            return Ok(SegmentRegister { selector, ..SegmentRegister::default() });
        }
        let mut descriptor = self.descriptor_or_gp(selector)?;
        let (cpl, dpl) = (self.state.cpl(), descriptor.dpl());
        let reachable = descriptor.is_conforming() || (rpl(selector) <= dpl && cpl <= dpl);
        if !descriptor.is_readable() || !reachable {
            return Err(Exception::protection(code_of(selector)));
        }
        if !descriptor.present() {
            return Err(Exception::not_present(code_of(selector)));
        }
        self.mark_accessed(&mut descriptor)?;
        Ok(descriptor.register(selector))
    }

    /// What SS gets at privilege `cpl`; a null selector is legal for 64-bit code below level 3.
    pub(crate) fn stack_segment(
        &mut self,
        selector: u16,
        cpl: u8,
        to_code64: bool,
    ) -> Result<SegmentRegister, Exception> {
        if is_null(selector) {
            if to_code64 && cpl != 3 && rpl(selector) == cpl {
                return Ok(null_stack(cpl));
            }
            return Err(Exception::protection(0));
        }
        let mut descriptor = self.descriptor_or_gp(selector)?;
        if rpl(selector) != cpl || !descriptor.is_writable_data() || descriptor.dpl() != cpl {
            return Err(Exception::protection(code_of(selector)));
        }
        if !descriptor.present() {
            return Err(Exception::stack(code_of(selector)));
        }
        self.mark_accessed(&mut descriptor)?;
        Ok(descriptor.register(selector))
    }

    /// What CS gets from a checked code descriptor at privilege `cpl`.
    ///
    /// # Errors
    /// #NP(selector), #GP(selector) for L and D both set in long mode, page faults.
    pub(crate) fn code_segment(
        &mut self,
        mut descriptor: Descriptor,
        selector: u16,
        cpl: u8,
    ) -> Result<SegmentRegister, Exception> {
        if !descriptor.present() {
            return Err(Exception::not_present(code_of(selector)));
        }
        if self.state.long_mode() && descriptor.long() && descriptor.big() {
            return Err(Exception::protection(code_of(selector)));
        }
        self.mark_accessed(&mut descriptor)?;
        Ok(descriptor.register((selector & !3) | u16::from(cpl)))
    }

    /// Check a jump or call straight to a code segment at the current privilege level, and give
    /// what CS gets (§5.8.1 "Direct Calls or Jumps to Code Segments").
    ///
    /// # Errors
    /// #GP or #NP with the selector, page faults.
    pub fn load_code_segment(
        &mut self,
        descriptor: Descriptor,
        selector: u16,
    ) -> Result<SegmentRegister, Exception> {
        let (cpl, dpl) = (self.state.cpl(), descriptor.dpl());
        let reachable =
            if descriptor.is_conforming() { dpl <= cpl } else { rpl(selector) <= cpl && dpl == cpl };
        if !descriptor.is_code() || !reachable {
            return Err(Exception::protection(code_of(selector)));
        }
        self.code_segment(descriptor, selector, cpl)
    }

    /// Whether execution can go on at `offset` in a code segment.
    ///
    /// # Errors
    /// #GP(0) when it is not canonical (64-bit code) or past the limit.
    pub(crate) fn check_target(&self, code: &SegmentRegister, offset: u64) -> Result<(), Exception> {
        let reachable = if self.state.long_mode() && code.long() {
            is_canonical(offset)
        } else {
            offset <= u64::from(code.limit)
        };
        reachable.then_some(()).ok_or(Exception::protection(0))
    }

    /// `LLDT`: privilege and mode were checked by the caller.
    ///
    /// # Errors
    /// #GP or #NP with the selector, page faults.
    pub fn load_ldtr(&mut self, selector: u16) -> Outcome {
        if is_null(selector) {
            self.state.ldtr = SegmentRegister { selector, ..SegmentRegister::default() };
            return Ok(());
        }
        let descriptor = self.gdt_system(selector, &[system_type::LDT])?;
        self.state.ldtr = self.system_register(descriptor, selector)?;
        Ok(())
    }

    /// `LTR`: privilege and mode were checked by the caller. Marks the TSS busy.
    ///
    /// # Errors
    /// #GP or #NP with the selector, page faults.
    pub fn load_tr(&mut self, selector: u16) -> Outcome {
        if is_null(selector) {
            return Err(Exception::protection(0).into());
        }
        let kinds: &[u8] = if self.state.long_mode() {
            &[system_type::TSS]
        } else {
            &[system_type::TSS, system_type::TSS_16]
        };
        let descriptor = self.gdt_system(selector, kinds)?;
        let register = self.system_register(descriptor, selector)?;
        self.mark_busy(&descriptor, selector)?;
        self.state.tr = SegmentRegister { attributes: register.attributes | 2, ..register };
        Ok(())
    }

    /// A present system descriptor in the GDT, of one of `kinds`.
    fn gdt_system(&mut self, selector: u16, kinds: &[u8]) -> Result<Descriptor, Exception> {
        let fault = Exception::protection(code_of(selector));
        if selector & 4 != 0 {
            return Err(fault);
        }
        let descriptor = self.descriptor_or_gp(selector)?;
        if descriptor.is_code_or_data() || !kinds.contains(&descriptor.kind()) {
            return Err(fault);
        }
        if !descriptor.present() {
            return Err(Exception::not_present(code_of(selector)));
        }
        Ok(descriptor)
    }

    /// Register contents of an LDT or TSS descriptor, which is 16 bytes in long mode.
    pub(crate) fn system_register(
        &mut self,
        descriptor: Descriptor,
        selector: u16,
    ) -> Result<SegmentRegister, Exception> {
        let mut register = descriptor.register(selector);
        if self.state.long_mode() {
            register.base |= self.descriptor_high(selector)? << 32;
            if !is_canonical(register.base) {
                return Err(Exception::protection(code_of(selector)));
            }
        }
        Ok(register)
    }

    /// On a return to an outer level, drop data segments that it may not hold (§5.8.6
    /// "Returning from a Called Procedure"). They keep their base, which is that of FS and GS in 64-bit mode.
    pub(crate) fn drop_inner_segments(&mut self, cpl: u8) {
        for segment in [seg::ES, seg::FS, seg::GS, seg::DS] {
            let register = &mut self.state.segments[segment];
            let conforming_code = register.kind() & 12 == 12;
            if register.present() && register.dpl() < cpl && !conforming_code {
                *register = SegmentRegister { base: register.base, ..SegmentRegister::default() };
            }
        }
    }

    /// The linear address of `size` bytes at an offset in a segment that is not (yet) loaded.
    pub(crate) fn stack_linear(
        &self,
        stack: &SegmentRegister,
        flat: bool,
        offset: u64,
        size: u64,
        kind: Kind,
    ) -> Option<u64> {
        if flat {
            let last = offset.wrapping_add(size - 1);
            return (is_canonical(offset) && is_canonical(last)).then_some(offset);
        }
        super::memory::checked_linear(stack, offset, size, kind)
    }
}

/// SS after a null selector was loaded in 64-bit mode: its DPL still tells the privilege level.
pub(crate) fn null_stack(cpl: u8) -> SegmentRegister {
    let attributes = u16::from(cpl) << 5;
    SegmentRegister { base: 0, limit: 0, selector: u16::from(cpl), attributes }
}

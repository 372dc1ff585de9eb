//! Delivery of exceptions and interrupts (Intel SDM vol. 3A, edition 081, chapter 6 "Interrupt
//! and Exception Handling"; `INT n` in vol. 2A has the pseudo-code).

use super::frame::Stack;
use super::segment::{code_of, is_null, system_type, Descriptor};
use super::task::Switch;
use crate::cpu::{Cpu, Exception};
use crate::state::{flag, gpr, seg, SegmentRegister};
use crate::system::memory::AccessMode;

/// Something that goes through the IDT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A fault, trap or abort of the running program. RIP is what the handler is to see: of the
    /// instruction for faults, after it for traps.
    Exception(Exception),
    /// A maskable interrupt.
    External(u8),
    /// `INT n`, `INT3` or `INTO`: the gate's DPL counts, and RIP is that of the instruction.
    Software {
        /// Vector.
        vector: u8,
        /// RIP of the next instruction.
        next_rip: u64,
    },
    /// A non-maskable interrupt.
    Nmi,
}

/// A fault during the delivery of a double fault: the processor shuts down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShutDown;

const PAGE_FAULT: u8 = 14;
const DOUBLE_FAULT: u8 = 8;
const DR7_GD: u64 = 1 << 13;
const DR6_TRAPS: u64 = 0xf;

/// Classes of §6.15 table 6-4 "Interrupt and Exception Classes".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Benign,
    Contributory,
    PageFault,
    DoubleFault,
}

impl Class {
    fn of(event: &Event) -> Self {
        match event {
            Event::Exception(exception) => match exception.vector {
                0 | 10..=13 => Self::Contributory,
                PAGE_FAULT => Self::PageFault,
                DOUBLE_FAULT => Self::DoubleFault,
                _ => Self::Benign,
            },
            _ => Self::Benign,
        }
    }
}

/// What follows when delivering `first` raises `second` (§6.15 table 6-5 "Conditions for
/// Generating a Double Fault").
fn combine(first: &Event, second: Exception) -> Result<Exception, ShutDown> {
    use Class::{Benign, Contributory, DoubleFault, PageFault};
    match (Class::of(first), Class::of(&Event::Exception(second))) {
        (DoubleFault, Contributory | PageFault | DoubleFault) => Err(ShutDown),
        (Contributory, Contributory) | (PageFault, Contributory | PageFault) => {
            Ok(Exception::with_code(DOUBLE_FAULT, 0))
        }
        (Benign | Contributory | PageFault | DoubleFault, _) => Ok(second),
    }
}

/// An event on its way through the IDT.
#[derive(Debug, Clone, Copy)]
struct Vectoring {
    vector: u8,
    error_code: Option<u32>,
    /// RIP to push.
    rip: u64,
    /// RFLAGS to push.
    flags: u64,
    software: bool,
}

impl Vectoring {
    /// Error code that blames the gate.
    fn gate_code(&self) -> u32 {
        u32::from(self.vector) * 8 + 2
    }
}

/// Whether the return image of an exception has RF set (§6.12.1.3 "Flag Usage By Exception- or
/// Interrupt-Handler Procedure", vol. 3B §17.3.1.1): faults, except #DB.
fn is_fault(vector: u8) -> bool {
    matches!(vector, 0 | 5..=7 | 10..=14 | 16 | 17 | 19..=21)
}

impl Cpu {
    /// Take an event: push its frame and go to its handler. Faults on the way are delivered in
    /// its place as the architecture says, so that nothing is left to do for the caller.
    ///
    /// # Errors
    /// [`ShutDown`] after a triple fault.
    #[inline]
    pub fn deliver(&mut self, event: Event) -> Result<(), ShutDown> {
        let mut current = event;
        while let Err(raised) = self.deliver_once(&current) {
            let second = Self::during_delivery(raised, &current);
            current = Event::Exception(combine(&current, second)?);
        }
        self.events.interrupt_shadow = false;
        self.events.halted = false;
        Ok(())
    }

    /// Set EXT in selector error codes, unless the program asked for the interrupt itself (§6.13
    /// "Error Code").
    fn during_delivery(raised: Exception, event: &Event) -> Exception {
        let external = !matches!(event, Event::Software { .. });
        match raised.error_code {
            Some(code) if external && matches!(raised.vector, 10..=13) => {
                Exception { error_code: Some(code | 1), ..raised }
            }
            _ => raised,
        }
    }

    fn deliver_once(&mut self, event: &Event) -> Result<(), Exception> {
        let vectoring = self.vectoring(event);
        if !self.state.protected() {
            self.deliver_real(&vectoring)?;
        } else if self.state.long_mode() {
            self.deliver_long(&vectoring)?;
        } else {
            self.deliver_protected(&vectoring)?;
        }
        if *event == Event::Nmi {
            self.events.nmi_masked = true;
        }
        Ok(())
    }

    /// What goes on the stack, and the registers that an exception sets beforehand.
    #[inline]
    fn vectoring(&mut self, event: &Event) -> Vectoring {
        let (rip, flags) = (self.state.rip, self.state.rflags);
        let hardware = |vector| Vectoring { vector, error_code: None, rip, flags, software: false };
        match *event {
            Event::External(vector) => hardware(vector),
            Event::Nmi => hardware(2),
            Event::Software { vector, next_rip } => {
                Vectoring { rip: next_rip, software: true, ..hardware(vector) }
            }
            Event::Exception(exception) => {
                self.note_exception(&exception);
                let resume = if is_fault(exception.vector) { flag::RF } else { 0 };
                let error_code = exception.error_code;
                Vectoring { error_code, flags: flags | resume, ..hardware(exception.vector) }
            }
        }
    }

    /// #PF sets CR2; #DB sets DR6 and clears DR7.GD (vol. 3B §17.2.3 "Debug Status Register").
    fn note_exception(&mut self, exception: &Exception) {
        match exception.vector {
            PAGE_FAULT => self.state.cr2 = exception.payload,
            1 => {
                self.state.dr[6] = (self.state.dr[6] & !DR6_TRAPS) | exception.payload;
                self.state.dr[7] &= !DR7_GD;
            }
            _ => {}
        }
    }

    /// The gate of a vector, of one of `kinds` (a bit for each type), with the second 8 bytes that
    /// gates have in long mode (else 0).
    #[inline]
    fn idt_gate(&mut self, event: &Vectoring, kinds: u16) -> Result<(Descriptor, u64), Exception> {
        let long = self.state.long_mode();
        let size = if long { 16 } else { 8 };
        let offset = u64::from(event.vector) * size;
        let fault = Exception::protection(event.gate_code());
        if offset + size - 1 > u64::from(self.state.idtr.limit) {
            return Err(fault);
        }
        let address = self.state.idtr.base.wrapping_add(offset);
        let (raw, high) =
            if long { self.read_table_pair(address)? } else { (self.read_table(address, 8)?, 0) };
        let gate = Descriptor { raw, address };
        let legal = !gate.is_code_or_data() && kinds & (1 << gate.kind()) != 0;
        if !legal || (event.software && gate.dpl() < self.state.cpl()) {
            return Err(fault);
        }
        if !gate.present() {
            return Err(Exception::not_present(event.gate_code()));
        }
        Ok((gate, high))
    }

    /// The handler's code descriptor and the privilege level that it runs at.
    #[inline]
    fn handler(&mut self, selector: u16) -> Result<(Descriptor, u8), Exception> {
        if is_null(selector) {
            return Err(Exception::protection(0));
        }
        let target = self.descriptor_or_gp(selector)?;
        let cpl = self.state.cpl();
        if !target.is_code() || target.dpl() > cpl {
            return Err(Exception::protection(code_of(selector)));
        }
        let level = if target.is_conforming() { cpl } else { target.dpl() };
        Ok((target, level))
    }

    /// §6.14 "Exception and Interrupt Handling in 64-bit Mode".
    #[inline]
    fn deliver_long(&mut self, event: &Vectoring) -> Result<(), Exception> {
        const KINDS: u16 = 1 << system_type::INTERRUPT_GATE | 1 << system_type::TRAP_GATE;
        let (gate, high) = self.idt_gate(event, KINDS)?;
        let selector = gate.gate_selector();
        let (target, level) = self.handler(selector)?;
        if target.present() && (!target.long() || target.big()) {
            return Err(Exception::protection(code_of(selector)));
        }
        let code = self.code_segment(target, selector, level)?;
        let rip = gate.gate_offset() | (high << 32);
        let mut stack = self.event_stack_long(level, (gate.raw >> 32) as u8 & 7)?;
        let state = &self.state;
        let frame = [
            u64::from(state.segments[seg::SS].selector),
            state.gpr[gpr::RSP],
            event.flags,
            u64::from(state.segments[seg::CS].selector),
            event.rip,
            u64::from(event.error_code.unwrap_or(0)),
        ];
        let words = if event.error_code.is_some() { 6 } else { 5 };
        self.check_target(&code, rip)?;
        self.push_flat(&mut stack, &frame[..words])?;
        self.commit_stack(&stack);
        self.enter_handler(code, rip, gate.kind());
        Ok(())
    }

    /// §6.14.2 "64-Bit Mode Stack Frame", §6.14.5 "Interrupt Stack Table".
    #[inline]
    fn event_stack_long(&mut self, level: u8, interrupt_stack: u8) -> Result<Stack, Exception> {
        let inward = level < self.state.cpl();
        let mut stack = match (interrupt_stack, inward) {
            (0, false) => Stack::current(self).flatten(),
            (0, true) => self.inner_stack_long(level)?,
            (index, _) => {
                let pointer = self.interrupt_stack(index)?;
                let same = self.state.segments[seg::SS];
                let segment = if inward { super::segment::null_stack(level) } else { same };
                Stack::new(segment, pointer, level, true)
            }
        };
        stack.pointer &= !15;
        Ok(stack)
    }

    /// Flags and CS of a handler (§6.12.1.3). Gate types differ from interrupt to trap in bit 0.
    fn enter_handler(&mut self, code: SegmentRegister, rip: u64, gate_kind: u8) {
        let interrupt = if gate_kind & 1 == 0 { flag::IF } else { 0 };
        self.state.rflags &= !(flag::TF | flag::NT | flag::RF | flag::VM | interrupt);
        self.state.segments[seg::CS] = code;
        self.state.rip = rip;
    }

    /// §6.12 "Exception and Interrupt Handling", and §21.3.1 for events in virtual-8086 mode.
    fn deliver_protected(&mut self, event: &Vectoring) -> Result<(), Exception> {
        const KINDS: u16 = 1 << system_type::TASK_GATE
            | 1 << system_type::INTERRUPT_GATE_16
            | 1 << system_type::TRAP_GATE_16
            | 1 << system_type::INTERRUPT_GATE
            | 1 << system_type::TRAP_GATE;
        let (gate, _) = self.idt_gate(event, KINDS)?;
        if gate.kind() == system_type::TASK_GATE {
            return self.deliver_to_task(event, gate.gate_selector());
        }
        let selector = gate.gate_selector();
        let (target, level) = self.handler(selector)?;
        if self.state.v86() && level != 0 {
            return Err(Exception::protection(code_of(selector)));
        }
        let code = self.code_segment(target, selector, level)?;
        let wide = gate.kind() & 8 != 0;
        let rip = if wide { gate.gate_offset() } else { gate.gate_offset() & 0xffff };
        self.check_target(&code, rip)?;
        let stack = self.push_protected(event, level, if wide { 4 } else { 2 })?;
        self.leave_v86_segments();
        self.commit_stack(&stack);
        self.enter_handler(code, rip, gate.kind());
        Ok(())
    }

    /// Push the frame of a 16- or 32-bit gate.
    fn push_protected(&mut self, event: &Vectoring, level: u8, size: u8) -> Result<Stack, Exception> {
        let selector = |cpu: &Self, segment: usize| u64::from(cpu.state.segments[segment].selector);
        let inward = level < self.state.cpl();
        let mut stack = if inward { self.inner_stack(level)? } else { Stack::current(self) };
        if self.state.v86() {
            for segment in [seg::GS, seg::FS, seg::DS, seg::ES] {
                let value = selector(self, segment);
                self.push(&mut stack, size, value)?;
            }
        }
        if inward {
            let (ss, rsp) = (selector(self, seg::SS), self.state.gpr[gpr::RSP]);
            self.push(&mut stack, size, ss)?;
            self.push(&mut stack, size, rsp)?;
        }
        let cs = selector(self, seg::CS);
        for value in [event.flags, cs, event.rip] {
            self.push(&mut stack, size, value)?;
        }
        if let Some(code) = event.error_code {
            self.push(&mut stack, size, u64::from(code))?;
        }
        Ok(stack)
    }

    /// Handlers of events in virtual-8086 mode start with null data segments.
    fn leave_v86_segments(&mut self) {
        if self.state.v86() {
            for segment in [seg::ES, seg::DS, seg::FS, seg::GS] {
                self.state.segments[segment] = SegmentRegister::default();
            }
        }
    }

    /// §6.12.2 "Interrupt Tasks".
    fn deliver_to_task(&mut self, event: &Vectoring, selector: u16) -> Result<(), Exception> {
        self.switch_task(selector, Switch::Event, event.rip, event.flags)?;
        if let Some(code) = event.error_code {
            let size = if self.state.tr.kind() & 8 != 0 { 4 } else { 2 };
            let mut stack = Stack::current(self);
            self.push(&mut stack, size, u64::from(code))?;
            self.commit_stack(&stack);
        }
        Ok(())
    }

    /// Real-address mode (§20.1.4 "Interrupt and Exception Handling"): no error codes.
    fn deliver_real(&mut self, event: &Vectoring) -> Result<(), Exception> {
        let offset = u64::from(event.vector) * 4;
        if offset + 3 > u64::from(self.state.idtr.limit) {
            return Err(Exception::protection(event.gate_code()));
        }
        let target = self.read_table(self.state.idtr.base.wrapping_add(offset), 4)?;
        self.enter_8086_handler(event.flags, event.rip, target)?;
        self.state.rflags &= !(flag::IF | flag::TF | flag::AC | flag::RF);
        Ok(())
    }

    /// Push FLAGS, CS, IP and go to the segment:offset that a vector-table entry holds.
    fn enter_8086_handler(&mut self, flags: u64, rip: u64, target: u64) -> Result<(), Exception> {
        let mut stack = Stack::current(self);
        let cs = u64::from(self.state.segments[seg::CS].selector);
        for value in [flags, cs, rip] {
            self.push(&mut stack, 2, value)?;
        }
        self.commit_stack(&stack);
        self.state.segments[seg::CS] = self.paragraph_segment(seg::CS, (target >> 16) as u16);
        self.state.rip = target & 0xffff;
        Ok(())
    }

    /// `INT n` in virtual-8086 mode (§21.3.3 "Class 3-Software Interrupt Handling in Virtual-8086
    /// Mode"): whether the 8086 program's own handler took it.
    ///
    /// # Errors
    /// #GP(0) for the monitor, page faults.
    pub(crate) fn redirect_v86_interrupt(&mut self, vector: u8, next_rip: u64) -> Result<bool, Exception> {
        const CR4_VME: u64 = 1;
        let trusted = self.state.rflags & flag::IOPL == flag::IOPL;
        if self.state.cr4 & CR4_VME != 0 && !self.redirection_bit(vector)? {
            let target = super::memory::only_exception(self.read_linear(
                u64::from(vector) * 4,
                4,
                AccessMode::Level(3),
            ))?;
            self.enter_redirected(trusted, next_rip, target)?;
            return Ok(true);
        }
        if trusted {
            Ok(false)
        } else {
            Err(Exception::protection(0))
        }
    }

    /// With IOPL below 3 the program sees VIF as IF and IOPL as 3.
    fn enter_redirected(&mut self, trusted: bool, next_rip: u64, target: u64) -> Result<(), Exception> {
        let flags = self.state.rflags;
        let virtual_if = if flags & flag::VIF != 0 { flag::IF } else { 0 };
        let seen = if trusted { flags } else { (flags & !flag::IF) | flag::IOPL | virtual_if };
        self.enter_8086_handler(seen, next_rip, target)?;
        let enable = if trusted { flag::IF } else { flag::VIF };
        self.state.rflags &= !(enable | flag::TF | flag::NT | flag::RF);
        Ok(())
    }

    /// The bit of a vector in the TSS's redirection map, the 32 bytes below the I/O map.
    fn redirection_bit(&mut self, vector: u8) -> Result<bool, Exception> {
        const IO_MAP_BASE: u32 = 102;
        let map = (self.read_tss(IO_MAP_BASE, 2)? as u32).checked_sub(32);
        let map = map.ok_or(Exception::protection(0))?;
        let byte = self.read_tss(map + u32::from(vector) / 8, 1)?;
        Ok(byte & (1 << (vector % 8)) != 0)
    }
}

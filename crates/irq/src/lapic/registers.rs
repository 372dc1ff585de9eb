//! The register file of a local APIC and the rules that involve nothing else.

use super::timer::{Timer, TimerMode};
use super::vectors::VectorSet;
use crate::message::{Delivery, DeliveryMode};

/// Index of a register: bits 9:4 of its xAPIC offset, and its x2APIC MSR less 0x800.
pub(crate) mod reg {
    pub(crate) const ID: u32 = 0x02;
    pub(crate) const VERSION: u32 = 0x03;
    pub(crate) const TPR: u32 = 0x08;
    pub(crate) const APR: u32 = 0x09;
    pub(crate) const PPR: u32 = 0x0a;
    pub(crate) const EOI: u32 = 0x0b;
    pub(crate) const RRD: u32 = 0x0c;
    pub(crate) const LDR: u32 = 0x0d;
    pub(crate) const DFR: u32 = 0x0e;
    pub(crate) const SVR: u32 = 0x0f;
    pub(crate) const ISR: u32 = 0x10;
    pub(crate) const TMR: u32 = 0x18;
    /// Last word of IRR, which follows TMR.
    pub(crate) const IRR_END: u32 = 0x27;
    pub(crate) const ESR: u32 = 0x28;
    pub(crate) const ICR: u32 = 0x30;
    pub(crate) const ICR_HIGH: u32 = 0x31;
    pub(crate) const LVT_TIMER: u32 = 0x32;
    pub(crate) const LVT_ERROR: u32 = 0x37;
    pub(crate) const INITIAL_COUNT: u32 = 0x38;
    pub(crate) const CURRENT_COUNT: u32 = 0x39;
    pub(crate) const DIVIDE: u32 = 0x3e;
    pub(crate) const SELF_IPI: u32 = 0x3f;
}

/// Position of each LVT register in `Registers::lvt`.
pub(crate) mod lvt {
    pub(crate) const TIMER: usize = 0;
    pub(crate) const LINT0: usize = 3;
    pub(crate) const LINT1: usize = 4;
    pub(crate) const ERROR: usize = 5;
    pub(crate) const MASKED: u32 = 1 << 16;
    pub(crate) const LEVEL: u32 = 1 << 15;
    pub(crate) const REMOTE_IRR: u32 = 1 << 14;
    /// Delivery mode ExtINT, not masked: the virtual wire to the 8259s.
    pub(crate) const VIRTUAL_WIRE: u32 = 7 << 8;
    /// Writable bits: timer, thermal, performance, LINT0, LINT1, error (SDM figure 11-8).
    pub(crate) const WRITABLE: [u32; 6] = [0x7_00ff, 0x1_07ff, 0x1_07ff, 0x1_a7ff, 0x1_a7ff, 0x1_00ff];
}

/// Error status register (Intel SDM vol. 3A §11.5.3 "Error Handling").
pub(crate) mod error {
    pub(crate) const SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
    pub(crate) const RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
    pub(crate) const ILLEGAL_REGISTER: u32 = 1 << 7;
}

/// Version 0x14, LVT entries 0 to 5, no suppression of EOI broadcasts.
pub(crate) const VERSION: u32 = 0x0005_0014;
/// Software enable in SVR.
pub(crate) const SVR_ENABLED: u32 = 1 << 8;
/// Writable bits of SVR.
pub(crate) const SVR_WRITABLE: u32 = 0x3ff;
/// Global enable in IA32_APIC_BASE.
pub(crate) const BASE_ENABLED: u64 = 1 << 11;
/// x2APIC mode in IA32_APIC_BASE.
pub(crate) const BASE_X2APIC: u64 = 1 << 10;
/// Bootstrap processor in IA32_APIC_BASE.
pub(crate) const BASE_BSP: u64 = 1 << 8;
/// Physical address of the registers after RESET.
pub(crate) const DEFAULT_BASE: u64 = 0xfee0_0000;

/// The state of one local APIC. Guarded by the lock in `LocalApic`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Registers {
    pub(crate) apic_base: u64,
    pub(crate) tpr: u8,
    pub(crate) ldr: u32,
    pub(crate) dfr: u32,
    pub(crate) svr: u32,
    /// What a read of ESR shows: the errors before the last write to it.
    pub(crate) esr: u32,
    /// Errors since the last write to ESR.
    pub(crate) errors: u32,
    pub(crate) icr: u64,
    pub(crate) lvt: [u32; 6],
    pub(crate) irr: VectorSet,
    pub(crate) isr: VectorSet,
    pub(crate) tmr: VectorSet,
    pub(crate) timer: Timer,
    /// Level of LINT0: the output of the 8259s.
    pub(crate) lint0: bool,
    /// An ExtINT message arrived and its vector has not been fetched.
    pub(crate) extint_message: bool,
    pub(crate) nmi: bool,
    pub(crate) smi: bool,
    pub(crate) init: bool,
    pub(crate) sipi: Option<u8>,
    /// The edge-triggered vector whose EOI is reported.
    pub(crate) reported_vector: Option<u8>,
    /// A vector has entered the IRR since the last look of `LocalApic::publish`.
    pub(crate) fresh: bool,
}

impl Registers {
    /// State after RESET, except that LINT0 of the BSP is in virtual wire mode as firmware leaves it
    /// (Intel SDM vol. 3A §11.4.7.1; MultiProcessor Specification 1.4 §3.6.2.2 "Virtual Wire Mode").
    pub(crate) fn after_reset(bsp: bool) -> Self {
        let mut lvt = [lvt::MASKED; 6];
        if bsp {
            lvt[lvt::LINT0] = lvt::VIRTUAL_WIRE;
        }
        Self {
            apic_base: DEFAULT_BASE | BASE_ENABLED | if bsp { BASE_BSP } else { 0 },
            tpr: 0,
            ldr: 0,
            dfr: u32::MAX,
            svr: 0xff,
            esr: 0,
            errors: 0,
            icr: 0,
            lvt,
            irr: VectorSet::default(),
            isr: VectorSet::default(),
            tmr: VectorSet::default(),
            timer: Timer::default(),
            lint0: false,
            extint_message: false,
            nmi: false,
            smi: false,
            init: false,
            sipi: None,
            reported_vector: None,
            fresh: false,
        }
    }

    /// INIT and global disable: as after RESET but for IA32_APIC_BASE, the pins, and what waits for
    /// the processor itself (SDM vol. 3A §11.4.7.3 "Local APIC State After an INIT Reset").
    pub(crate) fn reset_keeping_base(&mut self) {
        let fresh = Self::after_reset(self.apic_base & BASE_BSP != 0);
        let kept = (self.apic_base, self.lint0, self.nmi, self.smi, self.init, self.sipi);
        *self = fresh;
        (self.apic_base, self.lint0, self.nmi, self.smi, self.init, self.sipi) = kept;
    }

    pub(crate) fn is_x2apic(&self) -> bool {
        self.apic_base & BASE_X2APIC != 0
    }

    /// Globally enabled, in IA32_APIC_BASE.
    pub(crate) fn is_enabled(&self) -> bool {
        self.apic_base & BASE_ENABLED != 0
    }

    /// Enabled in SVR as well.
    pub(crate) fn takes_vectors(&self) -> bool {
        self.is_enabled() && self.svr & SVR_ENABLED != 0
    }

    pub(crate) fn timer_mode(&self) -> TimerMode {
        TimerMode::of(self.lvt[lvt::TIMER])
    }

    pub(crate) fn timer_masked(&self) -> bool {
        self.lvt[lvt::TIMER] & lvt::MASKED != 0
    }

    /// Processor priority (SDM vol. 3A §11.8.3.1 "Task and Processor Priorities").
    pub(crate) fn ppr(&self) -> u8 {
        let in_service = self.isr.highest().unwrap_or(0);
        if self.tpr >> 4 >= in_service >> 4 {
            self.tpr
        } else {
            in_service & 0xf0
        }
    }

    /// The vector to deliver now: the highest in the IRR, if its class is above the processor priority's.
    pub(crate) fn deliverable(&self) -> Option<u8> {
        let vector = self.irr.highest().filter(|_| self.is_enabled())?;
        (vector >> 4 > self.ppr() >> 4).then_some(vector)
    }

    /// Whether LINT0 carries the 8259s' interrupts to the processor.
    pub(crate) fn passes_extint(&self) -> bool {
        if !self.is_enabled() {
            return self.apic_base & BASE_BSP != 0;
        }
        let entry = self.lvt[lvt::LINT0];
        entry & lvt::MASKED == 0 && DeliveryMode::of(entry) == Some(DeliveryMode::ExtInt)
    }

    /// Whether an interrupt of the 8259s waits for this processor.
    pub(crate) fn extint_pending(&self) -> bool {
        self.lint0 && (self.extint_message || self.passes_extint())
    }

    /// Take a vector into the IRR. Returns false when it is refused.
    pub(crate) fn accept_vector(&mut self, vector: u8, level_triggered: bool) -> Delivery {
        if !self.takes_vectors() {
            return Delivery::Refused;
        }
        if vector < 16 {
            self.record_error(error::RECEIVE_ILLEGAL_VECTOR);
            return Delivery::Refused;
        }
        if level_triggered {
            self.tmr.insert(vector);
        } else {
            self.tmr.remove(vector);
        }
        if !self.irr.insert(vector) {
            return Delivery::Merged;
        }
        self.fresh = true;
        Delivery::Accepted
    }

    /// Note an error and raise the error interrupt. An illegal vector in its LVT entry is itself
    /// only noted, so that errors do not breed errors.
    pub(crate) fn record_error(&mut self, bit: u32) {
        self.errors |= bit;
        let entry = self.lvt[lvt::ERROR];
        if entry & lvt::MASKED != 0 {
            return;
        }
        match entry as u8 {
            0..=15 => self.errors |= error::RECEIVE_ILLEGAL_VECTOR,
            vector => {
                self.accept_vector(vector, false);
            }
        }
    }

    /// Act on an LVT entry whose source is active.
    pub(crate) fn fire_lvt(&mut self, index: usize) {
        let entry = self.lvt[index];
        if entry & lvt::MASKED != 0 || !self.is_enabled() {
            return;
        }
        match DeliveryMode::of(entry) {
            Some(DeliveryMode::Fixed) => self.fire_fixed(index),
            Some(DeliveryMode::Nmi) => self.nmi = true,
            Some(DeliveryMode::Smi) => self.smi = true,
            Some(DeliveryMode::Init) => self.signal_init(),
            _ => {}
        }
    }

    /// Fixed mode: a level-triggered pin delivers once until the EOI of its vector.
    fn fire_fixed(&mut self, index: usize) {
        let entry = self.lvt[index];
        let level = index == lvt::LINT0 && entry & lvt::LEVEL != 0;
        if level && entry & lvt::REMOTE_IRR != 0 {
            return;
        }
        if self.accept_vector(entry as u8, false) != Delivery::Refused && level {
            self.lvt[index] |= lvt::REMOTE_IRR;
        }
    }

    /// An INIT arrived; it cancels a start-up IPI that came before it.
    pub(crate) fn signal_init(&mut self) {
        self.init = true;
        self.sipi = None;
    }

    /// LINT0 changed.
    pub(crate) fn set_lint0(&mut self, level: bool) {
        let rise = level && !self.lint0;
        self.lint0 = level;
        if rise {
            self.fire_lvt(lvt::LINT0);
        }
    }

    /// End of interrupt: returns the vector when it was level-triggered and the I/O APICs must hear
    /// of it (SDM vol. 3A §11.8.5 "Signaling Interrupt Servicing Completion").
    pub(crate) fn end_of_interrupt(&mut self) -> Option<u8> {
        let vector = self.isr.highest()?;
        self.isr.remove(vector);
        let entry = self.lvt[lvt::LINT0];
        if entry & lvt::REMOTE_IRR != 0 && entry as u8 == vector {
            self.lvt[lvt::LINT0] &= !lvt::REMOTE_IRR;
            if self.lint0 {
                self.fire_lvt(lvt::LINT0);
            }
        }
        (self.tmr.contains(vector) || self.reported_vector == Some(vector)).then_some(vector)
    }

    /// Write SVR. Software disable masks every LVT entry (SDM vol. 3A §11.4.7.2).
    pub(crate) fn set_svr(&mut self, value: u32) {
        self.svr = value & SVR_WRITABLE;
        if self.svr & SVR_ENABLED == 0 {
            self.lvt.iter_mut().for_each(|entry| *entry |= lvt::MASKED);
        }
    }

    /// Write an LVT entry other than the timer's.
    pub(crate) fn set_lvt(&mut self, index: usize, value: u32) {
        let kept = self.lvt[index] & lvt::REMOTE_IRR;
        let forced = if self.svr & SVR_ENABLED == 0 { lvt::MASKED } else { 0 };
        self.lvt[index] = (value & lvt::WRITABLE[index]) | kept | forced;
        if self.lvt[index] & lvt::LEVEL == 0 {
            self.lvt[index] &= !lvt::REMOTE_IRR;
        }
        let level_fixed = self.lvt[index] & (lvt::LEVEL | 0x700) == lvt::LEVEL;
        if index == lvt::LINT0 && self.lint0 && level_fixed {
            self.fire_lvt(index);
        }
    }

    /// Take account of the timer's expiry up to `now_ns`; returns whether it raised an interrupt.
    pub(crate) fn run_timer(&mut self, now_ns: u64) -> bool {
        let mode = self.timer_mode();
        if !self.timer.expire(mode, now_ns) || self.timer_masked() {
            return false;
        }
        self.accept_vector(self.lvt[lvt::TIMER] as u8, false);
        true
    }

    /// Write the timer's LVT entry. Entering or leaving TSC-deadline mode disarms
    /// (SDM vol. 3A §11.5.4.1 "TSC-Deadline Mode").
    pub(crate) fn set_lvt_timer(&mut self, value: u32, now_ns: u64) {
        self.run_timer(now_ns);
        let before = self.timer_mode();
        self.set_lvt(lvt::TIMER, value);
        let after = self.timer_mode();
        if (before == TimerMode::TscDeadline) != (after == TimerMode::TscDeadline) {
            self.timer.stop();
        }
    }

    /// When the timer next has an interrupt to raise.
    pub(crate) fn deadline_ns(&self) -> Option<u64> {
        self.timer.expiry_ns.filter(|_| !self.timer_masked())
    }

    /// Whether a destination names the local APIC `id` in its present mode
    /// (SDM vol. 3A §11.6.2 "Determining IPI Destination", §11.12.9 "x2APIC IPI").
    pub(crate) fn matches(&self, id: u32, destination: crate::message::Destination) -> bool {
        if destination.is_broadcast() {
            return true;
        }
        match (destination.logical, self.is_x2apic()) {
            (false, true) => destination.id == id,
            (false, false) => destination.id == id & 0xff,
            (true, true) => logical_x2apic(id, destination.id),
            (true, false) => self.logical_xapic(destination.id),
        }
    }

    /// Flat and cluster models by DFR.
    fn logical_xapic(&self, set: u32) -> bool {
        let own = self.ldr >> 24;
        if self.dfr >> 28 == 0xf {
            return set & own != 0;
        }
        (set >> 4 == own >> 4 || set >> 4 == 0xf) && set & own & 0xf != 0
    }
}

/// Logical ID in x2APIC mode: cluster in bits 31:16, one bit of 15:0 (SDM vol. 3A §11.12.10.2).
pub(crate) fn x2apic_ldr(id: u32) -> u32 {
    (id >> 4) << 16 | 1 << (id & 0xf)
}

fn logical_x2apic(id: u32, set: u32) -> bool {
    let own = x2apic_ldr(id);
    set >> 16 == own >> 16 && set & own & 0xffff != 0
}

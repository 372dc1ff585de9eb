//! A local APIC's state as plain data, for snapshots.

use super::registers::{lvt, Registers, SVR_WRITABLE};
use super::timer::{Timer, TimerMode};
use super::vectors::VectorSet;
use super::LocalApic;
use crate::sync::lock;

/// Everything a local APIC remembers. Registers have their architectural layout.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LocalApicState {
    /// IA32_APIC_BASE.
    pub apic_base: u64,
    /// Task priority.
    pub tpr: u8,
    /// Logical destination (xAPIC).
    pub ldr: u32,
    /// Destination format (xAPIC).
    pub dfr: u32,
    /// Spurious-interrupt vector register.
    pub svr: u32,
    /// Error status, as a read shows it.
    pub esr: u32,
    /// Errors since the last write to ESR.
    pub errors: u32,
    /// Interrupt command, 64 bits.
    pub icr: u64,
    /// LVT: timer, thermal, performance, LINT0, LINT1, error.
    pub lvt: [u32; 6],
    /// Interrupt request register, vector 0 in bit 0 of word 0.
    pub irr: [u32; 8],
    /// In-service register.
    pub isr: [u32; 8],
    /// Trigger mode register.
    pub tmr: [u32; 8],
    /// Timer initial count.
    pub timer_initial: u32,
    /// Timer divide configuration.
    pub timer_divide: u32,
    /// Nanoseconds until the count reaches zero, in one-shot and periodic mode; `None` when stopped.
    pub timer_left_ns: Option<u64>,
    /// IA32_TSC_DEADLINE, 0 when disarmed.
    pub tsc_deadline: u64,
    /// An ExtINT message waits.
    pub extint_message: bool,
    /// An NMI waits.
    pub nmi: bool,
    /// An SMI waits.
    pub smi: bool,
    /// An INIT waits.
    pub init: bool,
    /// A start-up IPI waits, with this vector.
    pub sipi: Option<u8>,
}

impl LocalApic {
    /// Read the whole state.
    pub fn save_state(&self) -> LocalApicState {
        let now = self.clock.now_ns();
        self.update(|registers| self.settle(registers, now));
        let registers = lock(&self.registers);
        LocalApicState {
            apic_base: registers.apic_base,
            tpr: registers.tpr,
            ldr: registers.ldr,
            dfr: registers.dfr,
            svr: registers.svr,
            esr: registers.esr,
            errors: registers.errors,
            icr: registers.icr,
            lvt: registers.lvt,
            irr: registers.irr.0,
            isr: registers.isr.0,
            tmr: registers.tmr.0,
            timer_initial: registers.timer.initial,
            timer_divide: registers.timer.divide,
            timer_left_ns: registers.timer.expiry_ns.map(|expiry| expiry.saturating_sub(now)),
            tsc_deadline: registers.timer.tsc_deadline,
            extint_message: registers.extint_message,
            nmi: registers.nmi,
            smi: registers.smi,
            init: registers.init,
            sipi: registers.sipi,
        }
    }

    /// Replace the whole state, at a moment when the VM's clock has been restored. Bits that no
    /// register can hold are dropped.
    pub fn load_state(&self, state: &LocalApicState) {
        let now = self.clock.now_ns();
        let timer = Timer {
            initial: state.timer_initial,
            divide: state.timer_divide & 0xb,
            tsc_deadline: state.tsc_deadline,
            expiry_ns: self.restored_expiry(state, now),
        };
        self.update(|registers| {
            *registers = Registers {
                apic_base: state.apic_base,
                tpr: state.tpr,
                ldr: state.ldr & 0xff00_0000,
                dfr: state.dfr | 0x0fff_ffff,
                svr: state.svr & SVR_WRITABLE,
                esr: state.esr,
                errors: state.errors,
                icr: state.icr,
                lvt: restored_lvt(&state.lvt),
                irr: VectorSet(state.irr),
                isr: VectorSet(state.isr),
                tmr: VectorSet(state.tmr),
                timer,
                lint0: registers.lint0,
                extint_message: state.extint_message,
                nmi: state.nmi,
                smi: state.smi,
                init: state.init,
                sipi: state.sipi,
                reported_vector: None,
                fresh: true,
            };
        });
    }

    fn restored_expiry(&self, state: &LocalApicState, now_ns: u64) -> Option<u64> {
        match (TimerMode::of(state.lvt[lvt::TIMER]), state.tsc_deadline) {
            (TimerMode::TscDeadline, 0) => None,
            (TimerMode::TscDeadline, deadline) => Some(self.clock.tsc_to_ns(deadline)),
            _ => state.timer_left_ns.map(|left| now_ns.saturating_add(left)),
        }
    }
}

fn restored_lvt(saved: &[u32; 6]) -> [u32; 6] {
    let mut lvt = *saved;
    for (entry, writable) in lvt.iter_mut().zip(lvt::WRITABLE) {
        *entry &= writable | lvt::REMOTE_IRR;
    }
    lvt
}

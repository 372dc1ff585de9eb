//! Signatures, to be filled in.
#![allow(unused_variables, missing_docs)]
use crate::{Alarm, Clock, TimerSource};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The access is not allowed: the guest takes #GP(0).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GeneralProtection;

/// Told when a vCPU may have something to take. Must not call back into this crate.
pub trait Waker: Send + Sync {
    fn wake(&self);
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LocalApicState {}
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IrqchipState {}
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PlatformTimersState {}

pub struct LocalApic {}

impl LocalApic {
    pub fn id(&self) -> u32 {
        0
    }
    pub fn set_waker(&self, waker: Arc<dyn Waker>) {}
    pub fn apic_base(&self) -> u64 {
        0xfee0_0900
    }
    pub fn set_apic_base(&self, value: u64) -> Result<(), GeneralProtection> {
        Ok(())
    }
    pub fn is_x2apic(&self) -> bool {
        false
    }
    pub fn enabled(&self) -> bool {
        true
    }
    pub fn mmio_read(&self, offset: u32) -> u32 {
        0
    }
    pub fn mmio_write(&self, offset: u32, value: u32) {}
    pub fn msr_read(&self, msr: u32) -> Result<u64, GeneralProtection> {
        Err(GeneralProtection)
    }
    pub fn msr_write(&self, msr: u32, value: u64) -> Result<(), GeneralProtection> {
        Err(GeneralProtection)
    }
    pub fn tpr(&self) -> u8 {
        0
    }
    pub fn set_tpr(&self, value: u8) {}
    pub fn tsc_deadline(&self) -> u64 {
        0
    }
    pub fn set_tsc_deadline(&self, value: u64) {}
    pub fn has_interrupt(&self) -> bool {
        false
    }
    /// Any of interrupt, NMI, INIT, SIPI, SMI waits: one atomic load.
    pub fn has_event(&self) -> bool {
        false
    }
    pub fn acknowledge(&self) -> Option<u8> {
        None
    }
    /// Queue an NMI for this vCPU.
    pub fn signal_nmi(&self) {}
    pub fn take_nmi(&self) -> bool {
        false
    }
    pub fn take_init(&self) -> bool {
        false
    }
    pub fn take_sipi(&self) -> Option<u8> {
        None
    }
    pub fn take_smi(&self) -> bool {
        false
    }
    pub fn reset(&self) {}
    pub fn save_state(&self) -> LocalApicState {
        LocalApicState {}
    }
    pub fn load_state(&self, state: &LocalApicState) {}
}

pub struct Irqchip {}

impl Irqchip {
    pub fn new(clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self {})
    }
    pub fn add_lapic(&self, id: u32) -> Arc<LocalApic> {
        Arc::new(LocalApic {})
    }
    pub fn set_line(&self, gsi: u32, level: bool) {}
    pub fn signal_msi(&self, address: u64, data: u32) {}
    pub fn extint_pending(&self, apic_id: u32) -> bool {
        false
    }
    pub fn acknowledge_extint(&self) -> u8 {
        0
    }
    pub fn pio_read(&self, port: u16, size: u8) -> Option<u64> {
        None
    }
    pub fn pio_write(&self, port: u16, size: u8, value: u64) -> bool {
        false
    }
    pub fn mmio_read(&self, gpa: u64, size: u8) -> Option<u64> {
        None
    }
    pub fn mmio_write(&self, gpa: u64, size: u8, value: u64) -> bool {
        false
    }
    pub fn next_deadline_ns(&self) -> Option<u64> {
        None
    }
    pub fn run_timers(&self) {}
    pub fn reset(&self) {}
    pub fn statistics(&self) -> BTreeMap<String, u64> {
        BTreeMap::new()
    }
    pub fn save_state(&self) -> IrqchipState {
        IrqchipState {}
    }
    pub fn load_state(&self, state: &IrqchipState) {}
}

impl TimerSource for Irqchip {
    fn attach(&self, alarm: Arc<Alarm>) {}
    fn next_deadline_ns(&self) -> Option<u64> {
        self.next_deadline_ns()
    }
    fn run_timers(&self) {
        self.run_timers();
    }
}

/// Drives an interrupt line: GSI and level.
pub type IrqSink = Box<dyn Fn(u32, bool) + Send + Sync>;

pub struct PlatformTimers {}

impl PlatformTimers {
    /// `ram_bytes`: guest RAM below and above 4 GiB, for the CMOS memory-size bytes.
    pub fn new(clock: Arc<dyn Clock>, ram_bytes: (u64, u64), irq: IrqSink) -> Arc<Self> {
        Arc::new(Self {})
    }
    /// Ports 0x70, 0x71 and 0x608 to 0x60b; `None` for any other.
    pub fn pio_read(&self, port: u16, size: u8) -> Option<u64> {
        None
    }
    pub fn pio_write(&self, port: u16, size: u8, value: u64) -> bool {
        false
    }
    pub fn reset(&self) {}
    pub fn save_state(&self) -> PlatformTimersState {
        PlatformTimersState {}
    }
    pub fn load_state(&self, state: &PlatformTimersState) {}
}

impl TimerSource for PlatformTimers {
    fn attach(&self, alarm: Arc<Alarm>) {}
    fn next_deadline_ns(&self) -> Option<u64> {
        None
    }
    fn run_timers(&self) {}
}

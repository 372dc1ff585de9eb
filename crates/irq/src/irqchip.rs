//! The chipset: everything of the interrupt system that is not a vCPU's own.

use crate::coprocessor::{CoprocessorError, COPROCESSOR_GSI, COPROCESSOR_PORT};
use crate::fabric::Fabric;
use crate::ioapic::{IoApic, IOAPIC_BASE, IOAPIC_SIZE};
use crate::lapic::LocalApic;
use crate::message::Message;
use crate::pic::PicPair;
use crate::pit::Pit;
use crate::sync::{lock, read, write};
use crate::timer::{Alarm, AlarmSlot, TimerSource, NEVER};
use crate::Clock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use sublet_engine::Statistics;

/// 8259 pair with ELCR, I/O APIC, 8254, MSI routing and all local APICs of one VM.
pub struct Irqchip {
    clock: Arc<dyn Clock>,
    fabric: Arc<Fabric>,
    alarm: Arc<AlarmSlot>,
    extint: AtomicU64,
    coprocessor: Mutex<CoprocessorError>,
    /// `coprocessor.asserted`, to be looked at without the lock.
    math_errors: AtomicU64,
}

/// The chipset's state as plain data; local APICs are saved on their own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IrqchipState {
    /// The 8259 pair.
    pub pics: PicPair,
    /// The I/O APIC.
    pub ioapic: IoApic,
    /// The 8254, its ticks relative to the save.
    pub pit: Pit,
    /// FERR# and IGNNE#.
    pub coprocessor: CoprocessorError,
}

impl Irqchip {
    /// A chipset at reset state, without local APICs.
    pub fn new(clock: Arc<dyn Clock>) -> Arc<Self> {
        let alarm = Arc::new(AlarmSlot::default());
        let fabric = Arc::new(Fabric::new(clock.clone(), alarm.clone()));
        let (extint, math_errors) = (AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Self { clock, fabric, alarm, extint, coprocessor: Mutex::default(), math_errors })
    }

    /// Make the local APIC of a vCPU. The one with ID 0 is the bootstrap processor's.
    /// An ID that exists gives the same local APIC again.
    pub fn add_lapic(&self, id: u32) -> Arc<LocalApic> {
        let lines = lock(&self.fabric.lines);
        if let Some(apic) = self.fabric.apic(id) {
            return apic;
        }
        let apic = Arc::new(LocalApic::new(
            id,
            self.clock.clone(),
            Arc::downgrade(&self.fabric),
            self.alarm.clone(),
        ));
        apic.set_lint0(lines.pics.output());
        write(&self.fabric.apics).push(apic.clone());
        apic
    }

    /// Set the level of GSI 0 to 23; any other is ignored. Edge-triggered pins act on a rise.
    ///
    /// GSI 0 to 15 reach the 8259s and the I/O APIC (GSI 0 at its pin 2; GSI 2 is the cascade and reaches
    /// nothing), GSI 16 to 23 the I/O APIC. Devices that share a GSI combine their levels before.
    pub fn set_line(&self, gsi: u32, level: bool) {
        self.fabric.set_line(gsi, level);
    }

    /// Connect the 8254 to GSI 0, or take it off, as an event timer in legacy replacement mode does.
    pub fn connect_system_timer(&self, connected: bool) {
        self.fabric.system_timer.connect(&self.fabric, connected);
    }

    /// Deliver a message-signalled interrupt. What is not one is ignored.
    pub fn signal_msi(&self, address: u64, data: u32) {
        if let Some(message) = Message::from_msi(address, data) {
            self.fabric.deliver(&message);
        }
    }

    /// The NMI line, connected to LINT1 of every local APIC, rises.
    pub fn signal_nmi(&self) {
        read(&self.fabric.apics).iter().for_each(|apic| apic.pulse_lint1());
    }

    /// Whether an interrupt of the 8259s waits for this vCPU: through LINT0 in ExtINT mode, through an
    /// ExtINT message, or, for the bootstrap processor, past a disabled local APIC.
    pub fn extint_pending(&self, apic_id: u32) -> bool {
        self.fabric.apic(apic_id).is_some_and(|apic| apic.extint_pending())
    }

    /// Fetch the vector from the 8259s. A spurious 7 or 15 of theirs if the request has gone.
    pub fn acknowledge_extint(&self) -> u8 {
        self.extint.fetch_add(1, Ordering::Relaxed);
        let mut lines = lock(&self.fabric.lines);
        let vector = lines.pics.acknowledge();
        read(&self.fabric.apics).iter().for_each(|apic| apic.clear_extint_message());
        self.fabric.spread_pic_output(&mut lines);
        drop(lines);
        self.fabric.system_timer.catch_up(&self.fabric);
        vector
    }

    /// Set FERR# of vCPU `number`, 0 to 63: an x87 error while CR0.NE is clear. Returns whether IGNNE# is
    /// asserted.
    pub fn set_math_error(&self, number: u32, asserted: bool) -> bool {
        self.change_coprocessor(|coprocessor| coprocessor.set(1 << (number & 63), asserted))
    }

    /// Whether vCPU `number` asserts FERR#.
    pub fn math_error(&self, number: u32) -> bool {
        self.math_errors.load(Ordering::Relaxed) >> (number & 63) & 1 != 0
    }

    fn change_coprocessor(&self, change: impl FnOnce(&mut CoprocessorError)) -> bool {
        let mut coprocessor = lock(&self.coprocessor);
        let before = coprocessor.interrupting;
        change(&mut coprocessor);
        self.math_errors.store(coprocessor.asserted, Ordering::Relaxed);
        if coprocessor.interrupting != before {
            self.fabric.set_line(COPROCESSOR_GSI, coprocessor.interrupting);
        }
        coprocessor.ignored
    }

    /// Read a port; `None` when it is not one of ours (0x20, 0x21, 0x40 to 0x43, 0x61, 0xa0, 0xa1, 0x4d0,
    /// 0x4d1). `size` is 1, 2 or 4; bytes beyond our ports read as all ones.
    pub fn pio_read(&self, port: u16, size: u8) -> Option<u64> {
        let first = self.read_byte(port)?;
        let rest = (1..size.min(4)).fold(u64::from(first), |value, byte| {
            let next = self.read_byte(port.wrapping_add(u16::from(byte))).unwrap_or(0xff);
            value | u64::from(next) << (8 * byte)
        });
        Some(rest)
    }

    fn read_byte(&self, port: u16) -> Option<u8> {
        match port {
            0x40..=0x43 | 0x61 => self.fabric.system_timer.read(port),
            0x20 | 0x21 | 0xa0 | 0xa1 | 0x4d0 | 0x4d1 => {
                let mut lines = lock(&self.fabric.lines);
                let value = lines.pics.read(port);
                self.fabric.spread_pic_output(&mut lines);
                value
            }
            _ => None,
        }
    }

    /// Write a port; false when it is not one of ours: those that are read, and 0xf0.
    pub fn pio_write(&self, port: u16, size: u8, value: u64) -> bool {
        if !self.write_byte(port, value as u8) {
            return false;
        }
        for byte in 1..size.min(4) {
            self.write_byte(port.wrapping_add(u16::from(byte)), (value >> (8 * byte)) as u8);
        }
        true
    }

    fn write_byte(&self, port: u16, value: u8) -> bool {
        match port {
            0x40..=0x43 | 0x61 => self.fabric.system_timer.write(&self.fabric, port, value),
            COPROCESSOR_PORT => {
                self.change_coprocessor(CoprocessorError::acknowledge);
                true
            }
            0x20 | 0x21 | 0xa0 | 0xa1 | 0x4d0 | 0x4d1 => {
                let mut lines = lock(&self.fabric.lines);
                let ours = lines.pics.write(port, value);
                self.fabric.spread_pic_output(&mut lines);
                drop(lines);
                self.fabric.system_timer.catch_up(&self.fabric);
                ours
            }
            _ => false,
        }
    }

    /// Read the I/O APIC; `None` outside its window. Bytes beyond a 32-bit register read as 0.
    pub fn mmio_read(&self, gpa: u64, size: u8) -> Option<u64> {
        let offset = ioapic_offset(gpa)?;
        let value = u64::from(lock(&self.fabric.lines).ioapic.read(offset));
        Some(if size < 4 { value & ((1 << (8 * size)) - 1) } else { value })
    }

    /// Write the I/O APIC; false outside its window. The low 32 bits are written whatever the size.
    pub fn mmio_write(&self, gpa: u64, _size: u8, value: u64) -> bool {
        let Some(offset) = ioapic_offset(gpa) else { return false };
        let mut lines = lock(&self.fabric.lines);
        let pins = lines.ioapic.write(offset, value as u32);
        self.fabric.resample(&mut lines, pins);
        true
    }

    /// The earliest deadline of the 8254 and the local APICs' timers, in `Clock::now_ns` time.
    pub fn next_deadline_ns(&self) -> Option<u64> {
        let pit = self.fabric.system_timer.deadline_ns();
        let apics = read(&self.fabric.apics);
        let deadline = apics.iter().map(|apic| apic.deadline_ns()).fold(pit, u64::min);
        (deadline != NEVER).then_some(deadline)
    }

    /// Fire what is due now, if anything is: for a vCPU that watches time pass while the host keeps the timer
    /// thread waiting.
    pub fn run_late_timers(&self) {
        if self.next_deadline_ns().is_some_and(|deadline| deadline <= self.clock.now_ns()) {
            self.run_timers();
        }
    }

    /// Fire every timer that is due.
    pub fn run_timers(&self) {
        let now = self.clock.now_ns();
        self.fabric.system_timer.run(&self.fabric, now);
        for apic in read(&self.fabric.apics).iter().filter(|apic| apic.deadline_ns() <= now) {
            apic.run_timer(now);
        }
    }

    /// RESET of the chipset and every local APIC. Lines keep the level their devices give them.
    pub fn reset(&self) {
        self.fabric.system_timer.reset();
        self.change_coprocessor(|coprocessor| *coprocessor = CoprocessorError::default());
        let mut lines = lock(&self.fabric.lines);
        lines.pics.reset();
        lines.ioapic.reset();
        self.fabric.spread_pic_output(&mut lines);
        drop(lines);
        read(&self.fabric.apics).iter().for_each(|apic| apic.reset());
    }

    /// The chipset's state.
    pub fn save_state(&self) -> IrqchipState {
        let pit = self.fabric.system_timer.save_state();
        let coprocessor = lock(&self.coprocessor).clone();
        let lines = lock(&self.fabric.lines);
        IrqchipState { pics: lines.pics.clone(), ioapic: lines.ioapic.clone(), pit, coprocessor }
    }

    /// Replace the chipset's state. Interrupts that the state has pending are presented again.
    pub fn load_state(&self, state: &IrqchipState) {
        self.fabric.system_timer.load_state(&state.pit);
        self.change_coprocessor(|coprocessor| coprocessor.clone_from(&state.coprocessor));
        let mut lines = lock(&self.fabric.lines);
        lines.pics = state.pics.restored();
        lines.ioapic = state.ioapic.restored();
        self.fabric.spread_pic_output(&mut lines);
        self.fabric.resample(&mut lines, u32::MAX);
    }

    /// Counters of the whole interrupt system.
    pub fn statistics(&self) -> Statistics {
        let apics = read(&self.fabric.apics);
        let [acknowledged, sent, fired] = apics
            .iter()
            .map(|apic| apic.counters())
            .fold([0; 3], |sum, next| [sum[0] + next[0], sum[1] + next[1], sum[2] + next[2]]);
        let [rises, reinjected] = self.fabric.system_timer.counters();
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Statistics::from([
            ("irq.apic_interrupts".into(), acknowledged),
            ("irq.pic_interrupts".into(), load(&self.extint)),
            ("irq.ipis".into(), sent),
            ("irq.messages".into(), load(&self.fabric.messages)),
            ("irq.messages_undelivered".into(), load(&self.fabric.undelivered)),
            ("irq.apic_timer".into(), fired),
            ("irq.pit_timer".into(), rises),
            ("irq.pit_reinjected".into(), reinjected),
        ])
    }
}

impl TimerSource for Irqchip {
    fn attach(&self, alarm: Arc<Alarm>) {
        self.alarm.attach(alarm);
    }

    fn next_deadline_ns(&self) -> Option<u64> {
        self.next_deadline_ns()
    }

    fn run_timers(&self) {
        self.run_timers();
    }
}

fn ioapic_offset(gpa: u64) -> Option<u64> {
    gpa.checked_sub(IOAPIC_BASE).filter(|offset| *offset < IOAPIC_SIZE)
}

//! A stopped clock, a counting waker and a chipset with shorthands for what guests do.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::Arc;
use sublet_irq::{Clock, Irqchip, LocalApic, ThreadUse, Waker, IOAPIC_BASE};

/// Guest TSC ticks per nanosecond.
pub const TSC_PER_NS: u64 = 3;

/// Stands still until the test moves it.
#[derive(Default)]
pub struct FakeClock {
    ns: AtomicU64,
    absence_ns: AtomicU64,
    waits: AtomicU64,
}

impl FakeClock {
    pub fn advance(&self, ns: u64) {
        self.ns.fetch_add(ns, Ordering::SeqCst);
    }

    /// Let time pass in which the host has no processor for any thread.
    pub fn advance_without_processor(&self, ns: u64) {
        self.absence_ns.fetch_add(ns, Ordering::SeqCst);
        self.advance(ns);
    }

    /// The same, of the threads' own accord.
    pub fn wait(&self, ns: u64) {
        self.waits.fetch_add(1, Ordering::SeqCst);
        self.advance_without_processor(ns);
    }
}

impl Clock for FakeClock {
    fn now_ns(&self) -> u64 {
        self.ns.load(Ordering::SeqCst)
    }
    fn guest_tsc(&self) -> u64 {
        self.now_ns().wrapping_mul(TSC_PER_NS)
    }
    fn tsc_to_ns(&self, guest_tsc: u64) -> u64 {
        guest_tsc.div_ceil(TSC_PER_NS)
    }
    fn thread_use(&self) -> Option<ThreadUse> {
        let processor_ns = self.now_ns() - self.absence_ns.load(Ordering::SeqCst);
        Some(ThreadUse { processor_ns, waits: self.waits.load(Ordering::SeqCst) })
    }
}

/// Counts the times it is asked to wake its vCPU.
#[derive(Default)]
pub struct CountingWaker(AtomicUsize);

impl CountingWaker {
    pub fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Waker for CountingWaker {
    fn wake(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// xAPIC register offsets.
pub mod offset {
    pub const ID: u32 = 0x20;
    pub const TPR: u32 = 0x80;
    pub const PPR: u32 = 0xa0;
    pub const EOI: u32 = 0xb0;
    pub const LDR: u32 = 0xd0;
    pub const DFR: u32 = 0xe0;
    pub const SVR: u32 = 0xf0;
    pub const ISR: u32 = 0x100;
    pub const TMR: u32 = 0x180;
    pub const IRR: u32 = 0x200;
    pub const ESR: u32 = 0x280;
    pub const ICR: u32 = 0x300;
    pub const ICR_HIGH: u32 = 0x310;
    pub const LVT_TIMER: u32 = 0x320;
    pub const LVT_LINT0: u32 = 0x350;
    pub const LVT_LINT1: u32 = 0x360;
    pub const LVT_ERROR: u32 = 0x370;
    pub const INITIAL_COUNT: u32 = 0x380;
    pub const CURRENT_COUNT: u32 = 0x390;
    pub const DIVIDE: u32 = 0x3e0;
}

pub struct Machine {
    pub clock: Arc<FakeClock>,
    pub chip: Arc<Irqchip>,
    pub apics: Vec<Arc<LocalApic>>,
    pub wakers: Vec<Arc<CountingWaker>>,
}

impl Machine {
    /// `cpus` vCPUs whose local APICs are software-enabled.
    pub fn new(cpus: u32) -> Self {
        let machine = Self::after_reset(cpus);
        machine.apics.iter().for_each(|apic| apic.mmio_write(offset::SVR, 0x1ff));
        machine
    }

    /// `cpus` vCPUs as RESET leaves them.
    pub fn after_reset(cpus: u32) -> Self {
        let clock = Arc::new(FakeClock::default());
        let chip = Irqchip::new(clock.clone());
        let apics: Vec<_> = (0..cpus).map(|id| chip.add_lapic(id)).collect();
        let wakers: Vec<_> = apics.iter().map(|_| Arc::new(CountingWaker::default())).collect();
        apics.iter().zip(&wakers).for_each(|(apic, waker)| apic.set_waker(waker.clone()));
        Self { clock, chip, apics, wakers }
    }

    /// `cpus` vCPUs in x2APIC mode.
    pub fn x2apic(cpus: u32) -> Self {
        let machine = Self::new(cpus);
        for apic in &machine.apics {
            apic.set_apic_base(apic.apic_base() | 1 << 10).unwrap();
        }
        machine
    }

    pub fn bsp(&self) -> &LocalApic {
        &self.apics[0]
    }

    /// Let time pass and fire what is due, at every deadline on the way.
    pub fn run(&self, ns: u64) {
        let end = self.now() + ns;
        while let Some(deadline) = self.chip.next_deadline_ns().filter(|deadline| *deadline <= end) {
            self.clock.advance(deadline.saturating_sub(self.now()));
            self.chip.run_timers();
        }
        self.clock.advance(end - self.now());
    }

    pub fn now(&self) -> u64 {
        self.clock.now_ns()
    }

    pub fn write_entry(&self, pin: u8, entry: u64) {
        self.select(0x11 + 2 * pin, (entry >> 32) as u32);
        self.select(0x10 + 2 * pin, entry as u32);
    }

    pub fn read_entry(&self, pin: u8) -> u64 {
        self.selected(0x11 + 2 * pin) << 32 | self.selected(0x10 + 2 * pin)
    }

    fn select(&self, index: u8, value: u32) {
        assert!(self.chip.mmio_write(IOAPIC_BASE, 4, u64::from(index)));
        assert!(self.chip.mmio_write(IOAPIC_BASE + 0x10, 4, u64::from(value)));
    }

    fn selected(&self, index: u8) -> u64 {
        self.chip.mmio_write(IOAPIC_BASE, 4, u64::from(index));
        self.chip.mmio_read(IOAPIC_BASE + 0x10, 4).unwrap()
    }

    pub fn out(&self, port: u16, value: u8) {
        assert!(self.chip.pio_write(port, 1, u64::from(value)));
    }

    pub fn inb(&self, port: u16) -> u8 {
        self.chip.pio_read(port, 1).unwrap() as u8
    }

    /// Initialise both 8259s as a PC does: vectors 0x20 and 0x28, nothing masked.
    pub fn initialise_pics(&self) {
        for (port, base, cascade) in [(0x20, 0x20, 4), (0xa0, 0x28, 2)] {
            self.out(port, 0x11);
            self.out(port + 1, base);
            self.out(port + 1, cascade);
            self.out(port + 1, 1);
            self.out(port + 1, 0);
        }
    }

    /// Acknowledge the 8259s if they ask.
    pub fn extint(&self) -> Option<u8> {
        self.chip.extint_pending(0).then(|| self.chip.acknowledge_extint())
    }
}

/// An MSI to the local APIC `id`.
pub fn msi_address(id: u8) -> u64 {
    0xfee0_0000 | u64::from(id) << 12
}

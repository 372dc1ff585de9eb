//! Every register takes every value in every order, and nothing panics, spins or grows.

use crate::fixture::Machine;
use std::sync::Arc;
use sublet_irq::{PlatformTimers, TimerSource, IOAPIC_BASE};

/// A small generator with a fixed seed: xorshift64 (Marsaglia 2003).
struct Random(u64);

impl Random {
    fn seeded(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// Mostly small, sometimes extreme.
    fn value(&mut self) -> u64 {
        match self.below(4) {
            0 => self.next(),
            1 => self.below(0x100),
            2 => self.next() & 0xffff_ffff,
            _ => u64::MAX << self.below(64),
        }
    }
}

const PORTS: [u16; 11] = [0x20, 0x21, 0xa0, 0xa1, 0x40, 0x41, 0x42, 0x43, 0x61, 0x4d0, 0x4d1];

fn step(machine: &Machine, platform: &PlatformTimers, random: &mut Random) {
    let apic = &machine.apics[random.below(machine.apics.len() as u64) as usize];
    let (value, size) = (random.value(), 1 << random.below(4));
    match random.below(16) {
        0 => drop(machine.chip.pio_read(PORTS[random.below(11) as usize], size)),
        1..=3 => drop(machine.chip.pio_write(PORTS[random.below(11) as usize], size, value)),
        4 => drop(machine.chip.mmio_read(IOAPIC_BASE + random.below(0x60), size)),
        5 => drop(machine.chip.mmio_write(IOAPIC_BASE + random.below(6) * 0x10, size, value)),
        6 => drop(apic.mmio_read(random.below(0x1000) as u32)),
        7 => apic.mmio_write(random.below(0x40) as u32 * 0x10, value as u32),
        8 => drop(apic.msr_write(0x800 + random.below(0x40) as u32, value)),
        9 => drop(apic.msr_read(random.value() as u32)),
        10 => drop(apic.set_apic_base(0xfee0_0000 | random.below(0x1000))),
        11 => machine.chip.set_line(random.below(32) as u32, value & 1 != 0),
        12 => machine.chip.signal_msi(0xfee0_0000 | random.below(1 << 20), value as u32),
        13 => apic.set_tsc_deadline(value),
        14 => take_everything(machine, random),
        _ => touch_platform(platform, random),
    }
}

fn take_everything(machine: &Machine, random: &mut Random) {
    for apic in &machine.apics {
        let _ = (apic.acknowledge(), apic.take_sipi());
        let _ = (apic.take_init(), apic.take_nmi(), apic.take_smi());
    }
    machine.extint();
    machine.clock.advance(random.value() >> random.below(40).max(12));
    machine.chip.run_timers();
}

fn touch_platform(platform: &PlatformTimers, random: &mut Random) {
    platform.pio_write(0x70, 1, random.below(0x40));
    platform.pio_write(0x71, 1, random.value());
    platform.pio_read(0x70 + random.below(2) as u16, 1 << random.below(3));
    platform.run_timers();
}

#[test]
fn random_accesses() {
    for seed in 1..=20 {
        let mut random = Random::seeded(seed);
        let machine = Machine::new(3);
        let platform = PlatformTimers::new(machine.clock.clone(), (1 << 30, 0), Box::new(|_, _| {}));
        for _ in 0..20_000 {
            step(&machine, &platform, &mut random);
        }
        let state = machine.chip.save_state();
        machine.chip.load_state(&state);
        platform.load_state(&platform.save_state());
        machine.chip.reset();
    }
}

/// Threads that meet on every lock, in every order, come to an end.
#[test]
fn random_accesses_from_several_threads() {
    let machine = Arc::new(Machine::new(3));
    let chip = machine.chip.clone();
    let sink = Box::new(move |gsi, level| chip.set_line(gsi, level));
    let platform = PlatformTimers::new(machine.clock.clone(), (1 << 30, 0), sink);
    let workers: Vec<_> = (1..=4)
        .map(|seed| {
            let (machine, platform) = (machine.clone(), platform.clone());
            std::thread::spawn(move || {
                let mut random = Random::seeded(seed);
                (0..20_000).for_each(|_| step(&machine, &platform, &mut random));
            })
        })
        .collect();
    for worker in workers {
        worker.join().unwrap();
    }
}

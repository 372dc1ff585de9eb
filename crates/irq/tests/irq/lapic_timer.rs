//! Intel SDM vol. 3A §11.5.4 "APIC Timer".

use crate::fixture::{offset, Machine, TSC_PER_NS};

const ONE_SHOT: u32 = 0;
const PERIODIC: u32 = 1 << 17;
const TSC_DEADLINE: u32 = 2 << 17;
const MASKED: u32 = 1 << 16;
const DIVIDE_BY_1: u32 = 0xb;
const DIVIDE_BY_2: u32 = 0;

fn machine(mode: u32, divide: u32, initial: u32) -> Machine {
    let machine = Machine::new(1);
    machine.bsp().mmio_write(offset::LVT_TIMER, mode | 0xec);
    machine.bsp().mmio_write(offset::DIVIDE, divide);
    machine.bsp().mmio_write(offset::INITIAL_COUNT, initial);
    machine
}

fn take(machine: &Machine) -> bool {
    let taken = machine.bsp().acknowledge().is_some();
    machine.bsp().mmio_write(offset::EOI, 0);
    taken
}

#[test]
fn one_shot_counts_down_once() {
    let machine = machine(ONE_SHOT, DIVIDE_BY_1, 1000);
    assert_eq!(machine.bsp().mmio_read(offset::CURRENT_COUNT), 1000);
    machine.run(400);
    assert_eq!(machine.bsp().mmio_read(offset::CURRENT_COUNT), 600);
    assert!(!take(&machine));
    machine.run(600);
    assert!(take(&machine));
    machine.run(100_000);
    assert_eq!(machine.bsp().mmio_read(offset::CURRENT_COUNT), 0);
    assert!(!take(&machine));
    assert_eq!(machine.chip.next_deadline_ns(), None);
}

#[test]
fn divisors() {
    let encodings = [
        (0b0000, 2),
        (0b0001, 4),
        (0b0010, 8),
        (0b0011, 16),
        (0b1000, 32),
        (0b1001, 64),
        (0b1010, 128),
        (0b1011, 1),
    ];
    for (encoding, divisor) in encodings {
        let machine = machine(ONE_SHOT, encoding, 1000);
        assert_eq!(machine.chip.next_deadline_ns(), Some(1000 * divisor), "{encoding:#b}");
    }
}

#[test]
fn periodic_does_not_drift() {
    let machine = machine(PERIODIC, DIVIDE_BY_1, 1_000_000);
    machine.clock.advance(1_300_000);
    machine.chip.run_timers();
    assert!(take(&machine));
    assert_eq!(machine.chip.next_deadline_ns(), Some(2_000_000));
    machine.clock.advance(5_000_000);
    machine.chip.run_timers();
    assert!(take(&machine) && !take(&machine));
    assert_eq!(machine.chip.next_deadline_ns(), Some(7_000_000));
    assert_eq!(machine.bsp().mmio_read(offset::CURRENT_COUNT), 700_000);
}

#[test]
fn fast_periods_coalesce() {
    let machine = machine(PERIODIC, DIVIDE_BY_1, 1);
    let mut wakeups = 0;
    while machine.chip.next_deadline_ns().unwrap() <= 1_000_000 {
        machine.clock.advance(machine.chip.next_deadline_ns().unwrap() - machine.now());
        machine.chip.run_timers();
        wakeups += 1;
    }
    assert!(wakeups <= 51, "{wakeups} wake-ups in a millisecond");
}

#[test]
fn an_initial_count_of_zero_stops() {
    let machine = machine(PERIODIC, DIVIDE_BY_1, 1000);
    machine.bsp().mmio_write(offset::INITIAL_COUNT, 0);
    assert_eq!(machine.chip.next_deadline_ns(), None);
}

#[test]
fn a_new_divisor_continues_the_count() {
    let machine = machine(ONE_SHOT, DIVIDE_BY_1, 1000);
    machine.run(400);
    machine.bsp().mmio_write(offset::DIVIDE, DIVIDE_BY_2);
    assert_eq!(machine.bsp().mmio_read(offset::CURRENT_COUNT), 600);
    assert_eq!(machine.chip.next_deadline_ns(), Some(400 + 1200));
}

#[test]
fn a_masked_timer_counts_but_wakes_nobody() {
    let machine = machine(PERIODIC | MASKED, DIVIDE_BY_1, 100_000);
    assert_eq!(machine.chip.next_deadline_ns(), None);
    machine.clock.advance(250_000);
    assert_eq!(machine.bsp().mmio_read(offset::CURRENT_COUNT), 50_000);
    machine.bsp().mmio_write(offset::LVT_TIMER, PERIODIC | 0xec);
    assert!(!take(&machine));
    assert_eq!(machine.chip.next_deadline_ns(), Some(300_000));
}

/// §11.5.4.1 "TSC-Deadline Mode".
#[test]
fn tsc_deadline_fires_once_and_clears() {
    let machine = machine(TSC_DEADLINE, DIVIDE_BY_1, 0);
    machine.bsp().set_tsc_deadline(5000 * TSC_PER_NS);
    assert_eq!(machine.bsp().tsc_deadline(), 5000 * TSC_PER_NS);
    machine.run(4999);
    assert!(!take(&machine));
    machine.run(1);
    assert!(take(&machine));
    assert_eq!(machine.bsp().tsc_deadline(), 0);
    assert_eq!(machine.chip.next_deadline_ns(), None);
}

#[test]
fn a_passed_deadline_fires_at_once() {
    let machine = machine(TSC_DEADLINE, DIVIDE_BY_1, 0);
    machine.clock.advance(100);
    machine.bsp().set_tsc_deadline(1);
    assert!(take(&machine));
    assert_eq!(machine.bsp().tsc_deadline(), 0);
}

#[test]
fn zero_disarms_the_deadline() {
    let machine = machine(TSC_DEADLINE, DIVIDE_BY_1, 0);
    machine.bsp().set_tsc_deadline(5000);
    machine.bsp().set_tsc_deadline(0);
    machine.run(10_000);
    assert!(!take(&machine));
}

#[test]
fn a_rewritten_deadline_that_had_passed_is_not_lost() {
    let machine = machine(TSC_DEADLINE, DIVIDE_BY_1, 0);
    machine.bsp().set_tsc_deadline(1000 * TSC_PER_NS);
    machine.clock.advance(2000);
    machine.bsp().set_tsc_deadline(9000 * TSC_PER_NS);
    assert!(take(&machine));
    assert_eq!(machine.chip.next_deadline_ns(), Some(9000));
}

#[test]
fn modes_ignore_each_others_registers() {
    let deadline_mode = machine(TSC_DEADLINE, DIVIDE_BY_1, 1000);
    assert_eq!(deadline_mode.bsp().mmio_read(offset::INITIAL_COUNT), 0);
    assert_eq!(deadline_mode.bsp().mmio_read(offset::CURRENT_COUNT), 0);
    let count_mode = machine(ONE_SHOT, DIVIDE_BY_1, 0);
    count_mode.bsp().set_tsc_deadline(1000);
    assert_eq!(count_mode.bsp().tsc_deadline(), 0);
    assert_eq!(count_mode.chip.next_deadline_ns(), None);
}

#[test]
fn changing_to_another_mode_disarms() {
    let machine = machine(TSC_DEADLINE, DIVIDE_BY_1, 0);
    machine.bsp().set_tsc_deadline(5000);
    machine.bsp().mmio_write(offset::LVT_TIMER, ONE_SHOT | 0xec);
    assert_eq!(machine.chip.next_deadline_ns(), None);
    machine.bsp().mmio_write(offset::LVT_TIMER, TSC_DEADLINE | 0xec);
    assert_eq!(machine.bsp().tsc_deadline(), 0);
}

#[test]
fn a_late_fire_wakes_the_vcpu() {
    let machine = machine(ONE_SHOT, DIVIDE_BY_1, 1000);
    machine.run(1000);
    assert_eq!(machine.wakers[0].count(), 1);
}

/// Whoever sees time pass may fire what is due; what is not stays.
#[test]
fn late_timers_fire_when_looked_at() {
    let machine = Machine::new(1);
    machine.bsp().mmio_write(offset::LVT_TIMER, 0x40);
    machine.bsp().mmio_write(offset::DIVIDE, 0xb);
    machine.bsp().mmio_write(offset::INITIAL_COUNT, 1000);
    machine.clock.advance(999);
    machine.chip.run_late_timers();
    assert_eq!(machine.bsp().acknowledge(), None);
    machine.clock.advance(1);
    machine.chip.run_late_timers();
    assert_eq!(machine.bsp().acknowledge(), Some(0x40));
}

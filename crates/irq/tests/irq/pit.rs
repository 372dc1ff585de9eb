//! Intel 8254 (231164-005): modes, latches, read-back; port 0x61.

use crate::fixture::{offset, FakeClock, Machine, TSC_PER_NS};
use sublet_irq::{Clock, PIT_HZ};

/// The first nanosecond of a PIT tick.
fn ns(ticks: u64) -> u64 {
    (ticks * 1_000_000_000).div_ceil(PIT_HZ)
}

fn at_tick(machine: &Machine, tick: u64) {
    machine.run(ns(tick) - machine.now());
}

fn program(machine: &Machine, channel: u8, mode: u8, count: u16) {
    machine.out(0x43, channel << 6 | 0x30 | mode << 1);
    let [low, high] = count.to_le_bytes();
    machine.out(0x40 + u16::from(channel), low);
    machine.out(0x40 + u16::from(channel), high);
}

fn count(machine: &Machine, channel: u8) -> u16 {
    let port = 0x40 + u16::from(channel);
    u16::from_le_bytes([machine.inb(port), machine.inb(port)])
}

/// Output and null-count of a channel, from the read-back status.
fn status(machine: &Machine, channel: u8) -> u8 {
    machine.out(0x43, 0xe0 | 2 << channel);
    machine.inb(0x40 + u16::from(channel))
}

fn out_high(machine: &Machine, channel: u8) -> bool {
    status(machine, channel) & 0x80 != 0
}

fn interrupts(machine: &Machine) -> u64 {
    machine.chip.statistics()["irq.pit_timer"]
}

#[test]
fn mode_0_interrupts_on_terminal_count() {
    let machine = Machine::new(1);
    machine.initialise_pics();
    machine.write_entry(2, 0x42);
    program(&machine, 0, 0, 1000);
    at_tick(&machine, 1000);
    assert!(!out_high(&machine, 0));
    at_tick(&machine, 1001);
    assert!(out_high(&machine, 0));
    assert_eq!(machine.bsp().acknowledge(), Some(0x42));
    assert_eq!(machine.extint(), Some(0x20));
    at_tick(&machine, 500_000);
    assert_eq!(interrupts(&machine), 1);
}

#[test]
fn mode_0_first_byte_stops_the_count() {
    let machine = Machine::new(1);
    program(&machine, 0, 0, 1000);
    machine.out(0x40, 0x10);
    assert_eq!(machine.chip.next_deadline_ns(), None);
}

#[test]
fn mode_2_divides_without_drift() {
    let machine = Machine::new(1);
    program(&machine, 0, 2, 11932);
    at_tick(&machine, 1 + 11932 * 1000);
    assert_eq!(interrupts(&machine), 1000);
    assert_eq!(count(&machine, 0), 11932);
    at_tick(&machine, 1 + 11932 * 1001 - 1);
    assert_eq!(count(&machine, 0), 1);
    assert!(!out_high(&machine, 0));
}

#[test]
fn mode_2_takes_a_new_count_after_the_period() {
    let machine = Machine::new(1);
    program(&machine, 0, 2, 10_000);
    at_tick(&machine, 4001);
    machine.out(0x40, 0x88);
    machine.out(0x40, 0x13);
    assert_eq!(count(&machine, 0), 6000);
    at_tick(&machine, 10_001 + 5000);
    assert_eq!(interrupts(&machine), 2);
}

#[test]
fn mode_3_is_a_square_wave() {
    let machine = Machine::new(1);
    program(&machine, 0, 3, 1001);
    at_tick(&machine, 501);
    assert!(out_high(&machine, 0));
    at_tick(&machine, 502);
    assert!(!out_high(&machine, 0));
    at_tick(&machine, 1002);
    assert!(out_high(&machine, 0));
    assert_eq!(interrupts(&machine), 1);
}

#[test]
fn mode_3_counts_by_two() {
    let machine = Machine::new(1);
    program(&machine, 0, 3, 1000);
    at_tick(&machine, 101);
    assert_eq!(count(&machine, 0), 800);
    at_tick(&machine, 601);
    assert_eq!(count(&machine, 0), 800);
}

#[test]
fn mode_4_strobes_once() {
    let machine = Machine::new(1);
    program(&machine, 0, 4, 100);
    at_tick(&machine, 101);
    assert!(!out_high(&machine, 0));
    at_tick(&machine, 102);
    assert!(out_high(&machine, 0));
    at_tick(&machine, 200_000);
    assert_eq!(interrupts(&machine), 1);
}

#[test]
fn modes_1_and_5_wait_for_the_gate() {
    for (mode, low_at) in [(1, 50), (5, 101)] {
        let machine = Machine::new(1);
        program(&machine, 2, mode, 100);
        assert!(out_high(&machine, 2));
        at_tick(&machine, 1000);
        machine.out(0x61, 1);
        at_tick(&machine, 1000 + low_at);
        assert!(!out_high(&machine, 2), "mode {mode}");
        at_tick(&machine, 1000 + 102);
        assert!(out_high(&machine, 2), "mode {mode}");
        machine.out(0x61, 0);
        machine.out(0x61, 1);
        at_tick(&machine, 1102 + low_at);
        assert!(!out_high(&machine, 2), "mode {mode}");
    }
}

/// How kernels measure the TSC: channel 2 in mode 0, gate and output through port 0x61.
#[test]
fn channel_2_through_port_61() {
    let machine = Machine::new(1);
    machine.out(0x61, 0);
    program(&machine, 2, 0, 0xffff);
    at_tick(&machine, 5000);
    assert_eq!(count(&machine, 2), 0xffff, "the gate is low");
    machine.out(0x61, 1);
    at_tick(&machine, 5000 + 0xfffe);
    assert_eq!(machine.inb(0x61) & 0x21, 0x01);
    at_tick(&machine, 5000 + 0x10000);
    assert_eq!(machine.inb(0x61) & 0x21, 0x21);
}

/// What Linux's `pit_calibrate_tsc` finds: the TSC's frequency in MHz, and its longest step from look to look in ns.
struct Calibration {
    mhz: u64,
    longest_ns: u64,
}

/// Start a count of 10 ms, read the TSC, look until the output is high, with the TSC after each look.
/// `between` happens between the start and the TSC's first reading, `late` once before the look after 4 ms.
fn calibrate(
    machine: &Machine,
    between: impl FnOnce(&FakeClock),
    late: impl FnOnce(&FakeClock),
) -> Calibration {
    machine.out(0x61, 1);
    program(machine, 2, 0, 11_932);
    between(&machine.clock);
    let (mut late, mut longest) = (Some(late), 0);
    let first = machine.clock.guest_tsc();
    let mut last = first;
    while machine.inb(0x61) & 0x20 == 0 {
        let now = machine.clock.guest_tsc();
        longest = longest.max(now - last);
        last = now;
        machine.clock.advance(2_000);
        if last - first > 4_000_000 * TSC_PER_NS {
            late.take().into_iter().for_each(|late| late(&machine.clock));
        }
    }
    Calibration { mhz: (last - first) / 10_000, longest_ns: longest / TSC_PER_NS }
}

#[test]
fn a_count_does_not_begin_before_its_guest_has_a_processor() {
    let machine = Machine::new(1);
    for away_ns in [0, 1_000_000, 5_700_000, 60_000_000] {
        let found = calibrate(&machine, |clock| clock.advance_without_processor(away_ns), |_| {});
        assert!(found.mhz.abs_diff(3_000) < 3, "{} MHz after {away_ns} ns", found.mhz);
    }
}

/// Otherwise the last reading of the TSC would be one from before, and nothing would show that.
#[test]
fn a_count_does_not_end_while_its_guest_has_no_processor() {
    let machine = Machine::new(1);
    for away_ns in [0, 1_000_000, 5_999_000, 20_000_000] {
        let found = calibrate(&machine, |_| {}, |clock| clock.advance_without_processor(away_ns));
        assert!(found.mhz >= 2_997 && found.longest_ns >= away_ns, "{} MHz after {away_ns} ns", found.mhz);
    }
}

/// Only the host's taking a processor away is made good: a guest that waits or computes finds its time gone.
#[test]
fn a_count_goes_on_while_its_guest_waits_or_computes() {
    let machine = Machine::new(1);
    let halted = |clock: &FakeClock| clock.wait(5_000_000);
    let computing = |clock: &FakeClock| clock.advance(5_000_000);
    let between: [&dyn Fn(&FakeClock); 2] = [&halted, &computing];
    for pause in between {
        assert!(calibrate(&machine, pause, |_| {}).mhz.abs_diff(1_500) < 3);
        assert!(calibrate(&machine, |_| {}, |clock| (0..2).for_each(|_| pause(clock))).mhz < 1_300);
    }
}

#[test]
fn port_61_toggles_with_refresh() {
    let machine = Machine::new(1);
    machine.out(0x61, 0xfe);
    let before = machine.inb(0x61);
    machine.run(15_085);
    assert_eq!(before ^ machine.inb(0x61), 0x10);
    assert_eq!(before & 0xcf, 0x0e);
}

#[test]
fn a_latched_count_holds_until_read() {
    let machine = Machine::new(1);
    program(&machine, 0, 2, 10_000);
    at_tick(&machine, 101);
    machine.out(0x43, 0x00);
    at_tick(&machine, 2001);
    machine.out(0x43, 0x00);
    assert_eq!(count(&machine, 0), 9900);
    assert_eq!(count(&machine, 0), 8000);
}

#[test]
fn read_back_latches_status_before_count() {
    let machine = Machine::new(1);
    program(&machine, 0, 2, 10_000);
    machine.out(0x43, 0xc2);
    assert_eq!(machine.inb(0x40), 0xf4, "output high, count not loaded, both bytes, mode 2");
    assert_eq!(count(&machine, 0), 10_000);
    at_tick(&machine, 1);
    assert_eq!(status(&machine, 0), 0xb4);
}

#[test]
fn single_byte_access() {
    let machine = Machine::new(1);
    machine.out(0x43, 0x14);
    machine.out(0x40, 100);
    at_tick(&machine, 11);
    assert_eq!((machine.inb(0x40), machine.inb(0x40)), (90, 90));
    machine.out(0x43, 0x24);
    machine.out(0x40, 2);
    at_tick(&machine, 12);
    assert_eq!(machine.inb(0x40), 2);
}

#[test]
fn bcd() {
    let machine = Machine::new(1);
    machine.out(0x43, 0x35);
    machine.out(0x40, 0x34);
    machine.out(0x40, 0x12);
    at_tick(&machine, 11);
    assert_eq!(count(&machine, 0), 0x1224);
    at_tick(&machine, 1 + 1234);
    assert_eq!(interrupts(&machine), 1);
}

#[test]
fn zero_is_the_longest_count() {
    let machine = Machine::new(1);
    program(&machine, 0, 2, 0);
    assert_eq!(machine.chip.next_deadline_ns(), Some(ns(65537)));
}

#[test]
fn fast_rates_coalesce() {
    let machine = Machine::new(1);
    program(&machine, 0, 2, 2);
    machine.run(1_000_000);
    assert!((40..=55).contains(&interrupts(&machine)), "{}", interrupts(&machine));
    program(&machine, 0, 0, 5);
    machine.run(100_000);
    assert_eq!(machine.chip.next_deadline_ns(), None, "and the one-shot after it still fires");
}

/// Ticks of channel 0 that a guest takes through the local APIC, one EOI after the other, at one moment.
fn take_ticks(machine: &Machine, vector: u8) -> u32 {
    let mut taken = 0;
    while machine.bsp().acknowledge() == Some(vector) {
        taken += 1;
        machine.bsp().mmio_write(offset::EOI, 0);
    }
    taken
}

/// A machine whose system timer ticks every millisecond into vector 0x42.
fn ticking_machine() -> Machine {
    let machine = Machine::new(1);
    machine.write_entry(2, 0x42);
    machine.out(0x21, 0xff);
    program(&machine, 0, 2, 1193);
    machine
}

#[test]
fn a_late_guest_gets_every_tick() {
    let machine = ticking_machine();
    at_tick(&machine, 1 + 1193 * 10);
    assert_eq!(take_ticks(&machine, 0x42), 10);
    at_tick(&machine, 1 + 1193 * 11);
    assert_eq!(take_ticks(&machine, 0x42), 1);
    assert_eq!(machine.chip.statistics()["irq.pit_reinjected"], 9);
}

#[test]
fn ticks_are_counted_although_the_timer_thread_is_late() {
    let machine = ticking_machine();
    at_tick(&machine, 1 + 1193);
    machine.clock.advance(ns(1193 * 4));
    assert_eq!(take_ticks(&machine, 0x42), 5);
}

#[test]
fn a_late_guest_gets_every_tick_through_the_8259() {
    for automatic in [false, true] {
        let machine = Machine::new(1);
        machine.initialise_pics();
        if automatic {
            machine.out(0x20, 0x11);
            [0x20, 4, 3].into_iter().for_each(|word| machine.out(0x21, word));
        }
        program(&machine, 0, 2, 1193);
        at_tick(&machine, 1 + 1193 * 10);
        let mut ticks = 0;
        while machine.extint() == Some(0x20) {
            ticks += 1;
            machine.out(0x20, 0x20);
        }
        assert_eq!(ticks, 10, "automatic EOI {automatic}");
    }
}

#[test]
fn a_masked_timer_owes_nothing() {
    let machine = ticking_machine();
    machine.write_entry(2, 1 << 16 | 0x42);
    at_tick(&machine, 1 + 1193 * 10);
    machine.write_entry(2, 0x42);
    assert_eq!(take_ticks(&machine, 0x42), 0);
    at_tick(&machine, 1 + 1193 * 11);
    assert_eq!(take_ticks(&machine, 0x42), 1);
}

#[test]
fn a_new_rate_forgets_the_old_ticks() {
    let machine = ticking_machine();
    at_tick(&machine, 1 + 1193 * 10);
    program(&machine, 0, 2, 1193);
    assert_eq!(take_ticks(&machine, 0x42), 1);
}

#[test]
fn owed_ticks_are_bounded_and_saved() {
    let machine = ticking_machine();
    machine.clock.advance(3_600_000_000_000);
    machine.chip.run_timers();
    let state = machine.chip.save_state();
    assert_eq!(state.pit.owed_ticks, 999);
    assert_eq!(take_ticks(&machine, 0x42), 1000);
    let other = ticking_machine();
    other.chip.load_state(&state);
    at_tick(&other, 2 + 1193);
    assert_eq!(take_ticks(&other, 0x42), 1000);
}

#[test]
fn a_timer_that_is_taken_off_its_line_counts_on() {
    let machine = ticking_machine();
    at_tick(&machine, 1 + 1193 * 2);
    machine.chip.connect_system_timer(false);
    assert_eq!(machine.chip.next_deadline_ns(), None, "it wakes nobody");
    assert_eq!(take_ticks(&machine, 0x42), 1, "what was delivered stays so, what was owed is lost");
    at_tick(&machine, 1 + 1193 * 10 + 500);
    assert_eq!(take_ticks(&machine, 0x42), 0);
    assert_eq!(count(&machine, 0), 1193 - 500);
    machine.chip.connect_system_timer(true);
    assert_eq!(take_ticks(&machine, 0x42), 0, "nothing is made up for");
    at_tick(&machine, 1 + 1193 * 12);
    assert_eq!(take_ticks(&machine, 0x42), 2);
}

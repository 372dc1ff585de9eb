//! MC146818A (1984) and ACPI 6.5 §4.8.2.1 "Power Management Timer".

use crate::fixture::FakeClock;
use std::sync::{Arc, Mutex};
use sublet_irq::{Clock, PlatformTimers, TimerSource};

/// 2024-02-29T23:59:58Z, a Thursday.
const LEAP_EVENING_S: u64 = 1_709_251_198;

struct Platform {
    clock: Arc<FakeClock>,
    timers: Arc<PlatformTimers>,
    lines: Arc<Mutex<Vec<(u32, bool)>>>,
}

impl Platform {
    fn new() -> Self {
        let clock = Arc::new(FakeClock::default());
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (wall, sink) = (clock.clone(), lines.clone());
        let timers = PlatformTimers::with_wall_clock(
            clock.clone(),
            (3 << 30, 1 << 30),
            Box::new(move |gsi, level| sink.lock().unwrap().push((gsi, level))),
            Box::new(move || LEAP_EVENING_S * 1_000_000_000 + wall.now_ns()),
        );
        Self { clock, timers, lines }
    }

    fn read(&self, index: u8) -> u8 {
        assert!(self.timers.pio_write(0x70, 1, u64::from(index)));
        self.timers.pio_read(0x71, 1).unwrap() as u8
    }

    fn write(&self, index: u8, value: u8) {
        self.timers.pio_write(0x70, 1, u64::from(index));
        assert!(self.timers.pio_write(0x71, 1, u64::from(value)));
    }

    /// Century, year, month, day, hour, minute, second.
    fn time(&self) -> [u8; 7] {
        [0x32, 9, 8, 7, 4, 2, 0].map(|index| self.read(index))
    }

    fn run(&self, ns: u64) {
        let end = self.clock.now_ns() + ns;
        while let Some(deadline) = self.timers.next_deadline_ns().filter(|deadline| *deadline <= end) {
            self.clock.advance(deadline.saturating_sub(self.clock.now_ns()));
            self.timers.run_timers();
        }
        self.clock.advance(end - self.clock.now_ns());
    }

    fn take_lines(&self) -> Vec<(u32, bool)> {
        std::mem::take(&mut self.lines.lock().unwrap())
    }
}

#[test]
fn time_is_bcd_utc() {
    let platform = Platform::new();
    assert_eq!(platform.time(), [0x20, 0x24, 0x02, 0x29, 0x23, 0x59, 0x58]);
    assert_eq!(platform.read(6), 5);
    platform.clock.advance(2_000_000_000);
    assert_eq!(platform.time(), [0x20, 0x24, 0x03, 0x01, 0x00, 0x00, 0x00]);
    assert_eq!(platform.read(6), 6);
}

#[test]
fn binary_and_twelve_hours() {
    let platform = Platform::new();
    platform.write(0xb, 0x04);
    assert_eq!((platform.read(4), platform.read(2)), (0x80 | 11, 59));
    platform.clock.advance(2_000_000_000);
    assert_eq!(platform.read(4), 12);
    platform.write(4, 0x80 | 12);
    platform.write(0xb, 0x06);
    assert_eq!(platform.read(4), 12);
}

#[test]
fn set_holds_the_time_until_it_is_whole() {
    let platform = Platform::new();
    platform.write(0xb, 0x82);
    platform.write(8, 0x02);
    platform.write(7, 0x31);
    platform.write(7, 0x15);
    platform.write(9, 0x30);
    platform.clock.advance(5_000_000_000);
    assert_eq!(platform.time(), [0x20, 0x30, 0x02, 0x15, 0x23, 0x59, 0x58]);
    platform.write(0xb, 0x02);
    platform.clock.advance(3_000_000_000);
    assert_eq!(platform.time(), [0x20, 0x30, 0x02, 0x16, 0x00, 0x00, 0x01]);
}

#[test]
fn update_in_progress_precedes_the_second() {
    let platform = Platform::new();
    assert_eq!(platform.read(0xa), 0x26);
    platform.clock.advance(999_800_000);
    assert_eq!(platform.read(0xa), 0xa6);
    platform.clock.advance(200_000);
    assert_eq!(platform.read(0xa), 0x26);
}

#[test]
fn update_interrupt() {
    let platform = Platform::new();
    platform.write(1, 0x99);
    platform.read(0xc);
    platform.write(0xb, 0x12);
    platform.run(1_000_000_000);
    assert_eq!(platform.take_lines(), [(8, true)]);
    assert_eq!(platform.timers.next_deadline_ns(), None, "nothing to do until register C is read");
    platform.run(3_000_000_000);
    assert_eq!(platform.read(0xc), 0x80 | 0x40 | 0x10);
    assert_eq!(platform.take_lines(), [(8, false)]);
    assert_eq!(platform.read(0xc), 0);
    assert_eq!(platform.timers.next_deadline_ns(), Some(5_000_000_000));
}

#[test]
fn periodic_interrupt() {
    let platform = Platform::new();
    platform.write(0xb, 0x42);
    let mut ticks = 0;
    for _ in 0..1024 {
        platform.run(platform.timers.next_deadline_ns().unwrap() - platform.clock.now_ns());
        ticks += u32::from(platform.read(0xc) & 0xc0 == 0xc0);
    }
    assert_eq!((ticks, platform.clock.now_ns()), (1024, 1_000_000_000));
}

#[test]
fn periodic_rates() {
    for (rate, period_ns) in [(1, 3_906_250), (2, 7_812_500), (3, 122_071), (15, 500_000_000)] {
        let platform = Platform::new();
        platform.write(0xa, 0x20 | rate);
        platform.write(0xb, 0x42);
        assert_eq!(platform.timers.next_deadline_ns(), Some(period_ns), "rate {rate}");
    }
    let platform = Platform::new();
    platform.write(0xa, 0x20);
    platform.write(0xb, 0x42);
    assert_eq!(platform.timers.next_deadline_ns(), None);
}

#[test]
fn alarm_with_wildcards() {
    let platform = Platform::new();
    platform.write(1, 0x30);
    platform.write(3, 0x05);
    platform.write(5, 0xff);
    platform.write(0xb, 0x22);
    let seconds = 2 + 5 * 60 + 30;
    assert_eq!(platform.timers.next_deadline_ns(), Some(seconds * 1_000_000_000));
    platform.run(seconds * 1_000_000_000);
    assert_eq!(platform.take_lines(), [(8, true)]);
    assert_eq!(platform.read(0xc) & 0xa0, 0xa0);
}

#[test]
fn an_impossible_alarm_never_rings() {
    let platform = Platform::new();
    platform.write(1, 0x99);
    platform.write(0xb, 0x22);
    assert_eq!(platform.timers.next_deadline_ns(), None);
}

#[test]
fn ram_and_memory_size() {
    let platform = Platform::new();
    platform.write(0x70, 0xab);
    assert_eq!(platform.read(0x70), 0xab);
    assert_eq!((platform.read(0x15), platform.read(0x16)), (0x80, 0x02));
    assert_eq!((platform.read(0x34), platform.read(0x35)), (0x00, 0xbf));
    assert_eq!((platform.read(0x5b), platform.read(0x5c), platform.read(0x5d)), (0x00, 0x40, 0x00));
    assert_eq!(platform.read(0xd), 0x80);
}

#[test]
fn reset_keeps_time_and_ram() {
    let platform = Platform::new();
    platform.write(0x40, 7);
    platform.write(9, 0x30);
    platform.write(0xb, 0x72);
    platform.timers.reset();
    assert_eq!((platform.read(0x40), platform.read(9), platform.read(0xb)), (7, 0x30, 0x02));
}

#[test]
fn pm_timer_counts_32_bits() {
    let platform = Platform::new();
    assert_eq!(platform.timers.pio_read(0x608, 4), Some(0));
    platform.clock.advance(1_000_000_000);
    assert_eq!(platform.timers.pio_read(0x608, 4), Some(3_579_545));
    assert_eq!(platform.timers.pio_read(0x609, 1), Some(3_579_545 >> 8 & 0xff));
    platform.clock.advance(1_200_000_000_000);
    assert_eq!(platform.timers.pio_read(0x608, 4), Some(1201 * 3_579_545 - (1 << 32)));
    assert!(platform.timers.pio_write(0x608, 4, 0));
    assert_eq!(platform.timers.pio_read(0x60c, 4), None);
}

#[test]
fn state_moves_to_another_machine() {
    let platform = Platform::new();
    platform.write(9, 0x30);
    platform.write(0x50, 0x77);
    platform.clock.advance(123_456_789);
    let state = platform.timers.save_state();
    let other = Platform::new();
    other.timers.load_state(&state);
    assert_eq!((other.read(9), other.read(0x50)), (0x30, 0x77));
    assert_eq!(other.timers.pio_read(0x608, 4), platform.timers.pio_read(0x608, 4));
    assert_eq!(other.timers.save_state(), state);
}

#[test]
fn a_late_guest_gets_every_period() {
    let platform = Platform::new();
    platform.write(0xb, 0x42);
    platform.run(10 * 976_563);
    let mut periods = 0;
    while platform.clock.now_ns() < 40 * 976_563 {
        if platform.read(0xc) & 0xc0 == 0xc0 {
            periods += 1;
            assert_eq!(platform.read(0xc), 0, "a second read finds nothing");
        }
        let next = platform.timers.next_deadline_ns().unwrap();
        platform.run(next - platform.clock.now_ns());
    }
    assert_eq!(periods, 40);
    let rises = platform.take_lines().iter().filter(|(_, level)| *level).count();
    assert_eq!(rises, 41, "the last one has not been read");
}

#[test]
fn owed_periods_are_bounded_and_end_with_the_interrupt() {
    let platform = Platform::new();
    platform.write(0xb, 0x42);
    platform.run(100_000_000_000);
    assert_eq!(platform.timers.save_state().rtc.owed_periods, 1000);
    platform.write(0xb, 0x02);
    assert_eq!(platform.timers.save_state().rtc.owed_periods, 0);
}

#[test]
fn the_machine_sets_cmos_bytes_but_not_the_clocks() {
    let platform = Platform::new();
    platform.timers.write_cmos(&[(0x38, 0x30), (0x3d, 0x12)]).unwrap();
    assert_eq!((platform.read(0x38), platform.read(0x3d)), (0x30, 0x12));
    assert_eq!(platform.timers.write_cmos(&[(0x38, 1), (0x0d, 0)]), Err(0x0d));
    assert_eq!(platform.timers.write_cmos(&[(0x80, 0)]), Err(0x80));
    assert_eq!(platform.read(0x38), 0x30);
}

#[test]
fn a_clock_that_is_taken_off_its_line_keeps_its_flags() {
    let platform = Platform::new();
    platform.write(0xb, 0x12);
    platform.timers.connect_rtc(false);
    platform.run(2_000_000_000);
    assert!(platform.lines.lock().unwrap().is_empty());
    platform.timers.connect_rtc(true);
    assert_eq!(*platform.lines.lock().unwrap(), [(8, true)]);
    assert_eq!(platform.read(0xc) & 0x90, 0x90);
}

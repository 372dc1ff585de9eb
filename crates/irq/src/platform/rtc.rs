//! MC146818 real-time clock with CMOS RAM.
//!
//! Reference: Motorola MC146818A (1984) "Real-Time Clock plus RAM". The update cycle and the flags of
//! register C are computed when somebody looks; a timer is armed only for an interrupt that is enabled
//! and not yet pending.
//!
//! Deviation: time goes on while the divider is held in reset.

use super::calendar::{weekday, Fields, DAY_S};
use crate::rate::{ns_of, ticks_at};

/// Bytes of CMOS, clock registers included.
pub const CMOS_BYTES: usize = 128;

const CRYSTAL_HZ: u64 = 32_768;
const SECOND_NS: u64 = 1_000_000_000;
/// Update-in-progress is set this long before a second begins.
const UPDATE_WARNING_NS: u64 = 244_000;

mod reg {
    pub(super) const SECOND: u8 = 0x00;
    pub(super) const SECOND_ALARM: u8 = 0x01;
    pub(super) const MINUTE: u8 = 0x02;
    pub(super) const MINUTE_ALARM: u8 = 0x03;
    pub(super) const HOUR: u8 = 0x04;
    pub(super) const HOUR_ALARM: u8 = 0x05;
    pub(super) const WEEKDAY: u8 = 0x06;
    pub(super) const DAY: u8 = 0x07;
    pub(super) const MONTH: u8 = 0x08;
    pub(super) const YEAR: u8 = 0x09;
    pub(super) const A: u8 = 0x0a;
    pub(super) const B: u8 = 0x0b;
    pub(super) const C: u8 = 0x0c;
    pub(super) const D: u8 = 0x0d;
    pub(super) const CENTURY: u8 = 0x32;
}

/// Register B.
const SET: u8 = 0x80;
const UPDATE_ENABLE: u8 = 0x10;
const BINARY: u8 = 0x04;
const HOURS_24: u8 = 0x02;
/// Flags in register C, and their enables in register B.
const PERIODIC: u8 = 0x40;
const ALARM: u8 = 0x20;
const UPDATE: u8 = 0x10;
const FLAGS: u8 = PERIODIC | ALARM | UPDATE;
const IRQ: u8 = 0x80;
/// Register D: RAM and time are valid.
const VALID: u8 = 0x80;
/// Register A after power-up: 32768 Hz crystal, periodic rate 1024 Hz.
const DEFAULT_A: u8 = 0x26;

/// Most periodic interrupts that are owed to a guest.
const MAX_OWED_PERIODS: u32 = 1000;

/// Both clocks at one moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    /// `Clock::now_ns`.
    pub(super) now_ns: u64,
    /// Host's UTC, nanoseconds since 1970.
    pub(super) wall_ns: u64,
}

/// The clock and its RAM; its state as it is saved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rtc {
    /// Index register, 0 to 127.
    pub index: u8,
    /// CMOS RAM; the bytes of time and of registers C and D are not used.
    pub ram: Vec<u8>,
    /// Register C without the interrupt bit.
    pub flags: u8,
    /// Guest's time minus the host's UTC, seconds.
    pub offset_s: i64,
    /// What the guest added to the day of the week, 0 to 6.
    pub weekday_offset: u8,
    /// Time while register B holds it.
    pub held: Option<Fields>,
    /// Flags are accounted for up to this crystal tick. 0 in saved state.
    pub seen_tick: i64,
    /// Periods that ended while the interrupt of the one before waited, 0 to 1000.
    pub owed_periods: u32,
    /// The crystal tick from which one of them may be delivered. 0 in saved state.
    pub owed_from_tick: i64,
    /// Flags are accounted for up to this second of the guest's time.
    pub seen_second: i64,
}

impl Rtc {
    /// A clock that shows the host's UTC, with the memory-size bytes of a PC.
    pub(super) fn new(ram_below_4g: u64, ram_above_4g: u64) -> Self {
        let mut rtc = Self {
            index: 0,
            ram: vec![0; CMOS_BYTES],
            flags: 0,
            offset_s: 0,
            weekday_offset: 0,
            held: None,
            seen_tick: 0,
            owed_periods: 0,
            owed_from_tick: 0,
            seen_second: 0,
        };
        rtc.ram[usize::from(reg::A)] = DEFAULT_A;
        rtc.ram[usize::from(reg::B)] = HOURS_24;
        rtc.describe_memory(ram_below_4g, ram_above_4g);
        rtc
    }

    /// Equipment (an FPU), base and extended memory in KiB, memory above 16 MiB and above 4 GiB in units of
    /// 64 KiB, and the checksum over 0x10 to 0x2d.
    fn describe_memory(&mut self, below_4g: u64, above_4g: u64) {
        let above_1m = (below_4g.saturating_sub(1 << 20) >> 10).min(0xffff);
        let above_16m = (below_4g.saturating_sub(16 << 20) >> 16).min(0xffff);
        self.ram[0x14] = 0x02;
        self.store(0x15, 640, 2);
        self.store(0x17, above_1m, 2);
        self.store(0x30, above_1m, 2);
        self.store(0x34, above_16m, 2);
        self.store(0x5b, (above_4g >> 16).min(0xff_ffff), 3);
        let sum: u16 = self.ram[0x10..0x2e].iter().map(|byte| u16::from(*byte)).sum();
        (self.ram[0x2e], self.ram[0x2f]) = ((sum >> 8) as u8, sum as u8);
    }

    fn store(&mut self, index: usize, value: u64, bytes: usize) {
        self.ram[index..index + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
    }

    fn register(&self, index: u8) -> u8 {
        self.ram[usize::from(index) % CMOS_BYTES]
    }

    /// RESET: interrupts off, flags clear; time and RAM stay (MC146818A "RESET").
    pub(super) fn reset(&mut self, moment: Moment) {
        self.settle(moment);
        self.index = 0;
        self.flags = 0;
        self.owed_periods = 0;
        self.ram[usize::from(reg::B)] &= !(FLAGS | 0x08);
    }

    /// Continue a saved state at `moment`. What no register can hold is brought into range.
    pub(super) fn restore(&mut self, moment: Moment) {
        self.ram.resize(CMOS_BYTES, 0);
        self.index &= 0x7f;
        self.flags &= FLAGS;
        self.weekday_offset %= 7;
        self.seen_tick = ticks_at(moment.now_ns, CRYSTAL_HZ);
        self.owed_from_tick = self.seen_tick;
        self.owed_periods = self.owed_periods.min(MAX_OWED_PERIODS);
        if (self.register(reg::B) & SET != 0) != self.held.is_some() {
            self.held = (self.held.is_none()).then(|| self.fields(moment));
        }
        self.settle(moment);
    }

    /// The interrupt output.
    pub(super) fn output(&self) -> bool {
        self.flags & self.register(reg::B) & FLAGS != 0
    }

    /// Write the index port. Bit 7, the NMI mask, has no effect.
    pub(super) fn select(&mut self, value: u8) {
        self.index = value & 0x7f;
    }

    /// Read the data port.
    pub(super) fn read(&mut self, moment: Moment) -> u8 {
        self.settle(moment);
        match self.index {
            reg::WEEKDAY => self.encode((self.weekday(moment) + self.weekday_offset - 1) % 7 + 1),
            reg::A => self.register(reg::A) & 0x7f | u8::from(self.is_updating(moment)) << 7,
            reg::C => self.take_flags(),
            reg::D => VALID,
            index => match field(&mut self.fields(moment), index) {
                Some(value) if index == reg::HOUR => self.encode_hour(*value),
                Some(value) => self.encode(*value),
                None => self.register(index),
            },
        }
    }

    /// Read register C. A period that is owed follows half a period later: sooner than the next one,
    /// and late enough for a guest that reads until the flag is clear.
    fn take_flags(&mut self) -> u8 {
        self.owed_from_tick = self.seen_tick + self.period().unwrap_or(0) / 2;
        let irq = if self.output() { IRQ } else { 0 };
        std::mem::take(&mut self.flags) | irq
    }

    /// Write the data port.
    pub(super) fn write(&mut self, value: u8, moment: Moment) {
        self.settle(moment);
        match self.index {
            reg::C | reg::D => {}
            reg::A => {
                self.ram[usize::from(reg::A)] = value & 0x7f;
                self.owed_periods = 0;
            }
            reg::B => self.write_b(value, moment),
            reg::WEEKDAY => {
                let shown = i64::from(self.decode(value)) - i64::from(self.weekday(moment));
                self.weekday_offset = shown.rem_euclid(7) as u8;
            }
            index => self.write_field(index, value, moment),
        }
    }

    fn write_b(&mut self, value: u8, moment: Moment) {
        let held = value & SET != 0;
        // SET clears the update interrupt's enable (MC146818A "Register B").
        let value = if held { value & !UPDATE_ENABLE } else { value };
        self.ram[usize::from(reg::B)] = value;
        if value & PERIODIC == 0 {
            self.owed_periods = 0;
        }
        match (held, self.held) {
            (true, None) => self.held = Some(self.fields(moment)),
            (false, Some(fields)) => {
                self.held = None;
                self.set_time(fields, moment);
            }
            _ => {}
        }
    }

    /// Set one field of the time, or store a byte of RAM.
    fn write_field(&mut self, index: u8, value: u8, moment: Moment) {
        let mut fields = self.fields(moment);
        let decoded = if index == reg::HOUR { self.decode_hour(value) } else { self.decode(value) };
        match field(&mut fields, index) {
            Some(place) => *place = decoded,
            None => {
                self.ram[usize::from(index) % CMOS_BYTES] = value;
                return;
            }
        }
        if self.held.is_some() {
            self.held = Some(fields);
        } else {
            self.set_time(fields, moment);
        }
    }

    fn set_time(&mut self, fields: Fields, moment: Moment) {
        self.offset_s = fields.to_seconds().saturating_sub(host_second(moment));
        self.seen_second = self.second(moment);
    }

    /// The guest's time in seconds since 1970.
    fn second(&self, moment: Moment) -> i64 {
        host_second(moment).saturating_add(self.offset_s)
    }

    fn fields(&self, moment: Moment) -> Fields {
        self.held.unwrap_or_else(|| Fields::from_seconds(self.second(moment)))
    }

    fn weekday(&self, moment: Moment) -> u8 {
        weekday(self.held.map_or_else(|| self.second(moment), Fields::to_seconds))
    }

    fn is_updating(&self, moment: Moment) -> bool {
        self.held.is_none() && moment.wall_ns % SECOND_NS >= SECOND_NS - UPDATE_WARNING_NS
    }

    fn encode(&self, value: u8) -> u8 {
        if self.register(reg::B) & BINARY != 0 {
            value
        } else {
            ((value / 10 % 10) << 4) | (value % 10)
        }
    }

    fn decode(&self, value: u8) -> u8 {
        if self.register(reg::B) & BINARY != 0 {
            value
        } else {
            (value >> 4) * 10 + (value & 0xf)
        }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.register(reg::B) & HOURS_24 != 0 {
            return self.encode(hour);
        }
        let pm = if hour >= 12 { 0x80 } else { 0 };
        self.encode((hour % 12 + 11) % 12 + 1) | pm
    }

    fn decode_hour(&self, value: u8) -> u8 {
        if self.register(reg::B) & HOURS_24 != 0 {
            return self.decode(value);
        }
        let pm = if value & 0x80 != 0 { 12 } else { 0 };
        self.decode(value & 0x7f) % 12 + pm
    }

    /// Ticks of the crystal between periodic interrupts, `None` when off (MC146818A table 5).
    fn period(&self) -> Option<i64> {
        let a = self.register(reg::A);
        let rate = match a & 0xf {
            0 => return None,
            // The first two rates repeat the eighth and ninth with this crystal.
            rate @ 1..=2 => rate + 7,
            rate => rate,
        };
        (a & 0x70 == 0x20).then_some(1 << (rate - 1))
    }

    /// Set the flags for what has happened since the last look.
    pub(super) fn settle(&mut self, moment: Moment) {
        let tick = ticks_at(moment.now_ns, CRYSTAL_HZ);
        if let Some(period) = self.period() {
            self.settle_periods(tick / period - self.seen_tick / period, tick);
        }
        self.seen_tick = tick;
        let second = self.second(moment);
        if self.held.is_none() && second != self.seen_second {
            self.flags |= UPDATE;
            if self.next_alarm(self.seen_second).is_some_and(|alarm| alarm <= second) {
                self.flags |= ALARM;
            }
        }
        self.seen_second = second;
    }

    /// Set the flag of the periodic interrupt for periods that have ended, or for one that is owed.
    /// Periods that find the flag set are owed while the interrupt is enabled.
    fn settle_periods(&mut self, ended: i64, tick: i64) {
        let clear = self.flags & PERIODIC == 0;
        if ended > 0 {
            self.flags |= PERIODIC;
            let missed = if self.register(reg::B) & PERIODIC == 0 { 0 } else { ended - i64::from(clear) };
            let missed = u32::try_from(missed).unwrap_or(0);
            self.owed_periods = self.owed_periods.saturating_add(missed).min(MAX_OWED_PERIODS);
        } else if clear && self.owed_periods > 0 && tick >= self.owed_from_tick {
            self.flags |= PERIODIC;
            self.owed_periods -= 1;
        }
    }

    /// The moment, in `Clock::now_ns` time, of the next interrupt; `None` while one is pending.
    /// Precondition: settled at `moment`.
    pub(super) fn deadline_ns(&self, moment: Moment) -> Option<u64> {
        let enabled = self.register(reg::B);
        if self.output() || enabled & FLAGS == 0 {
            return None;
        }
        let periodic = self.next_period().filter(|_| enabled & PERIODIC != 0);
        let ticking = self.held.is_none();
        let update = (ticking && enabled & UPDATE != 0).then(|| self.ns_until(1, moment));
        let alarm = if ticking && enabled & ALARM != 0 {
            let seconds = self.next_alarm(self.seen_second).map(|alarm| alarm - self.seen_second);
            seconds.map(|seconds| self.ns_until(seconds, moment))
        } else {
            None
        };
        [periodic, update, alarm].into_iter().flatten().min()
    }

    fn next_period(&self) -> Option<u64> {
        let period = self.period()?;
        let next = (self.seen_tick / period + 1).saturating_mul(period);
        let tick = if self.owed_periods > 0 { next.min(self.owed_from_tick) } else { next };
        Some(ns_of(tick, CRYSTAL_HZ))
    }

    /// When the `seconds`-th second from the present one begins.
    fn ns_until(&self, seconds: i64, moment: Moment) -> u64 {
        let whole = u64::try_from(seconds).unwrap_or(1).saturating_mul(SECOND_NS);
        moment.now_ns.saturating_add(whole - moment.wall_ns % SECOND_NS)
    }

    /// The first second after `from` that matches the alarm; `None` when no second does.
    fn next_alarm(&self, from: i64) -> Option<i64> {
        let wanted = |index: u8, decoded: u8| {
            // The two top bits set: any value.
            (self.register(index) & 0xc0 != 0xc0).then_some(i64::from(decoded))
        };
        let hour = wanted(reg::HOUR_ALARM, self.decode_hour(self.register(reg::HOUR_ALARM)));
        let minute = wanted(reg::MINUTE_ALARM, self.decode(self.register(reg::MINUTE_ALARM)));
        let second = wanted(reg::SECOND_ALARM, self.decode(self.register(reg::SECOND_ALARM)));
        let possible = |field: Option<i64>, count: i64| field.is_none_or(|value| value < count);
        if !possible(hour, 24) || !possible(minute, 60) || !possible(second, 60) {
            return None;
        }
        let differs = |field: Option<i64>, value: i64| field.is_some_and(|wanted| wanted != value);
        let mut at = from.saturating_add(1);
        let end = at.saturating_add(DAY_S);
        while at < end {
            let time = at.rem_euclid(DAY_S);
            let to_next = if differs(hour, time / 3600) {
                3600 - time % 3600
            } else if differs(minute, time / 60 % 60) {
                60 - time % 60
            } else if differs(second, time % 60) {
                1
            } else {
                return Some(at);
            };
            at += to_next;
        }
        None
    }
}

fn host_second(moment: Moment) -> i64 {
    (moment.wall_ns / SECOND_NS) as i64
}

/// The field of the time that a register shows.
fn field(fields: &mut Fields, index: u8) -> Option<&mut u8> {
    Some(match index {
        reg::SECOND => &mut fields.second,
        reg::MINUTE => &mut fields.minute,
        reg::HOUR => &mut fields.hour,
        reg::DAY => &mut fields.day,
        reg::MONTH => &mut fields.month,
        reg::YEAR => &mut fields.year,
        reg::CENTURY => &mut fields.century,
        _ => return None,
    })
}

//! 8254 programmable interval timer and port 0x61.
//!
//! Reference: Intel 8254 Programmable Interval Timer (231164-005). All positions are computed from the
//! tick at which a count was loaded, in ticks of the PIT's own clock, so that nothing drifts.
//!
//! Deviations: a mode's control word by itself makes no edge on channel 0, and channel 0's output is
//! presented to IRQ 0 as a pulse at each of its rises.

use crate::lapic::MIN_PERIOD_NS;
use crate::message::Delivery;
use crate::rate::{ns_of, ticks_at};

/// Input clock in Hz.
pub const PIT_HZ: u64 = 1_193_182;
/// Half a period of the refresh request that port 0x61 bit 4 follows, in ns.
const REFRESH_TOGGLE_NS: u64 = 15_085;
/// Shortest time between two interrupts of channel 0, in ticks.
const MIN_PERIOD: i64 = (MIN_PERIOD_NS * PIT_HZ / 1_000_000_000) as i64;

/// Most ticks that are owed to a guest: one second at the rate of the fastest usual kernels.
const MAX_OWED_TICKS: u32 = 1000;

/// How a channel's bytes are read and written: control word bits 5:4.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ByteAccess {
    /// Least significant byte only.
    Low,
    /// Most significant byte only.
    High,
    /// Least, then most significant.
    #[default]
    Both,
}

/// Where a channel's count is. Ticks count from an arbitrary zero; saved state has its zero at the save.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Progress {
    /// No count written since the control word, or waiting for the gate's trigger.
    #[default]
    Idle,
    /// Loaded at this tick, or about to be.
    Since(i64),
    /// The gate holds the count this many ticks after the load.
    Held(i64),
}

/// One channel; its state as it is saved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PitChannel {
    /// Mode 0 to 5.
    pub mode: u8,
    /// Counts in binary-coded decimal.
    pub bcd: bool,
    /// Byte access.
    pub access: ByteAccess,
    /// Count, 1 to 65536 (10000 in BCD).
    pub count: u32,
    /// Count of the period that runs until the load, when a new count awaits the period's end.
    pub previous_count: Option<u32>,
    /// Position.
    pub progress: Progress,
    /// Gate input.
    pub gate: bool,
    /// The low byte of a count, written and waiting for the high one.
    pub written_low: Option<u8>,
    /// The next read gives the high byte.
    pub read_high: bool,
    /// Latched count.
    pub latched_count: Option<u16>,
    /// Latched status.
    pub latched_status: Option<u8>,
}

impl PitChannel {
    fn new(gate: bool) -> Self {
        Self {
            mode: 0,
            bcd: false,
            access: ByteAccess::Both,
            count: 0x1_0000,
            previous_count: None,
            progress: Progress::Idle,
            gate,
            written_low: None,
            read_high: false,
            latched_count: None,
            latched_status: None,
        }
    }

    fn is_periodic(&self) -> bool {
        matches!(self.mode, 2 | 3)
    }

    /// Started by a rise of the gate rather than by the count.
    fn is_triggered(&self) -> bool {
        matches!(self.mode, 1 | 5)
    }

    /// The count after which the counter wraps.
    fn modulus(&self) -> u32 {
        if self.bcd {
            10_000
        } else {
            0x1_0000
        }
    }

    /// Ticks since the load, and the count then loaded; `None` while idle.
    fn position(&self, now: i64) -> Option<(i64, u32)> {
        let elapsed = match self.progress {
            Progress::Idle => return None,
            Progress::Held(elapsed) => elapsed,
            Progress::Since(start) => now.saturating_sub(start),
        };
        match self.previous_count {
            Some(previous) if elapsed < 0 => {
                let period = i64::from(previous);
                Some((elapsed.rem_euclid(period.max(1)), previous))
            }
            _ => Some((elapsed.max(0), self.count)),
        }
    }

    /// Position within a period of the periodic modes.
    fn phase(elapsed: i64, count: u32) -> i64 {
        elapsed % i64::from(count.max(1))
    }

    /// The output pin.
    fn output(&self, now: i64) -> bool {
        let Some((elapsed, count)) = self.position(now) else { return self.mode != 0 };
        let (count_ticks, phase) = (i64::from(count), Self::phase(elapsed, count));
        match self.mode {
            0 => elapsed >= count_ticks,
            1 => elapsed >= count_ticks,
            2 => !self.gate || phase != count_ticks - 1,
            3 => !self.gate || phase < (count_ticks + 1) / 2,
            _ => elapsed != count_ticks,
        }
    }

    /// The counting element, in binary.
    fn counter(&self, now: i64) -> u32 {
        let Some((elapsed, count)) = self.position(now) else { return self.count % self.modulus() };
        let phase = Self::phase(elapsed, count);
        let modulus = i64::from(self.modulus());
        let value = match self.mode {
            2 => i64::from(count) - phase,
            3 => i64::from(count & !1) - 2 * (phase % ((i64::from(count) + 1) / 2).max(1)),
            _ => (i64::from(count) - elapsed % modulus + modulus) % modulus,
        };
        value.rem_euclid(modulus) as u32
    }

    /// The counting element as the bus shows it.
    fn visible_count(&self, now: i64) -> u16 {
        let value = self.counter(now);
        if !self.bcd {
            return value as u16;
        }
        let digit = |power: u32| (value / 10u32.pow(power) % 10) << (4 * power);
        (digit(0) | digit(1) | digit(2) | digit(3)) as u16
    }

    /// Control word for this channel (8254 "Control Word Format").
    fn set_control(&mut self, word: u8) {
        let mode = (word >> 1) & 7;
        self.access = match (word >> 4) & 3 {
            1 => ByteAccess::Low,
            2 => ByteAccess::High,
            _ => ByteAccess::Both,
        };
        self.mode = if mode > 5 { mode - 4 } else { mode };
        self.bcd = word & 1 != 0;
        self.progress = Progress::Idle;
        self.previous_count = None;
        self.written_low = None;
        self.read_high = false;
        self.latched_count = None;
        self.latched_status = None;
    }

    fn latch_count(&mut self, now: i64) {
        if self.latched_count.is_none() {
            self.latched_count = Some(self.visible_count(now));
        }
    }

    /// Read-back status byte (8254 "Read-Back Command").
    fn latch_status(&mut self, now: i64) {
        if self.latched_status.is_some() {
            return;
        }
        let access = match self.access {
            ByteAccess::Low => 1,
            ByteAccess::High => 2,
            ByteAccess::Both => 3,
        };
        let loaded = match self.progress {
            Progress::Idle => false,
            Progress::Since(start) => now >= start,
            Progress::Held(_) => true,
        };
        let bit = |set: bool, position: u8| u8::from(set) << position;
        self.latched_status = Some(
            bit(self.output(now), 7) | bit(!loaded, 6) | access << 4 | self.mode << 1 | u8::from(self.bcd),
        );
    }

    fn read(&mut self, now: i64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let [low, high] = self.latched_count.unwrap_or_else(|| self.visible_count(now)).to_le_bytes();
        let (byte, more) = match self.access {
            ByteAccess::Low => (low, false),
            ByteAccess::High => (high, false),
            ByteAccess::Both if self.read_high => (high, false),
            ByteAccess::Both => (low, true),
        };
        self.read_high = more;
        if !more {
            self.latched_count = None;
        }
        byte
    }

    fn write(&mut self, byte: u8, now: i64) {
        match (self.access, self.written_low.take()) {
            (ByteAccess::Low, _) => self.load(u16::from(byte), now),
            (ByteAccess::High, _) => self.load(u16::from(byte) << 8, now),
            (ByteAccess::Both, Some(low)) => self.load(u16::from_le_bytes([low, byte]), now),
            (ByteAccess::Both, None) => {
                self.written_low = Some(byte);
                if self.mode == 0 {
                    // The first byte stops the count and takes the output low.
                    self.progress = Progress::Idle;
                }
            }
        }
    }

    /// A count was written: it is loaded at the next tick, at the end of the period, or by the trigger.
    fn load(&mut self, raw: u16, now: i64) {
        let count = self.decode(raw);
        match (self.is_periodic(), self.progress) {
            (true, Progress::Since(start)) => self.load_after_period(count, start, now),
            (false, Progress::Since(_) | Progress::Held(_)) if self.is_triggered() => self.count = count,
            _ => {
                self.count = count;
                self.previous_count = None;
                self.progress = match (self.is_triggered(), self.gate) {
                    (true, _) => Progress::Idle,
                    (false, true) => Progress::Since(now + 1),
                    (false, false) => Progress::Held(0),
                };
            }
        }
    }

    fn load_after_period(&mut self, count: u32, start: i64, now: i64) {
        if now >= start {
            let period = i64::from(self.count.max(1));
            let periods = (now - start) / period + 1;
            self.progress = Progress::Since(start.saturating_add(periods.saturating_mul(period)));
            self.previous_count = Some(self.count);
        }
        self.count = count;
    }

    /// A written count as a number of ticks. 0 stands for the maximum; 1 is illegal in the
    /// periodic modes and counts as 2.
    fn decode(&self, raw: u16) -> u32 {
        let value = if self.bcd {
            (0..4).rev().fold(0, |value, digit| value * 10 + u32::from(raw >> (4 * digit) & 0xf))
        } else {
            u32::from(raw)
        };
        match value {
            0 => self.modulus(),
            1 if self.is_periodic() => 2,
            _ => value,
        }
    }

    /// The gate changed (8254 "Gate Pin Operations Summary").
    fn set_gate(&mut self, gate: bool, now: i64) {
        if gate == self.gate {
            return;
        }
        self.gate = gate;
        let loaded = self.progress != Progress::Idle || self.is_triggered();
        self.progress = match (gate, self.progress) {
            _ if !loaded => Progress::Idle,
            (true, _) if self.is_triggered() || self.is_periodic() => Progress::Since(now + 1),
            (true, Progress::Held(elapsed)) => Progress::Since(now.saturating_sub(elapsed)),
            (false, Progress::Since(start)) if !self.is_triggered() => {
                Progress::Held(now.saturating_sub(start).max(0))
            }
            (_, progress) => progress,
        };
        if gate {
            self.previous_count = None;
        }
    }

    /// The first rise of the output at or after tick `from`, `None` when there will be none.
    fn next_rise(&self, from: i64) -> Option<i64> {
        let Progress::Since(start) = self.progress else { return None };
        let count = i64::from(self.count);
        match self.mode {
            0 | 1 => Some(start.saturating_add(count)).filter(|rise| *rise >= from),
            2 | 3 => {
                let first = if self.previous_count.is_some() { 0 } else { 1 };
                let behind = from.saturating_sub(start).max(0);
                let periods = behind.saturating_add(count - 1) / count.max(1);
                Some(start.saturating_add(periods.max(first).saturating_mul(count)))
            }
            _ => Some(start.saturating_add(count + 1)).filter(|rise| *rise >= from),
        }
    }
}

/// Three channels and port 0x61; its state as it is saved (ticks relative to the save).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pit {
    /// System timer, refresh, speaker.
    pub channels: [PitChannel; 3],
    /// The tick from which rises of channel 0 have not been delivered yet.
    pub delivered_until: i64,
    /// Rises of channel 0 that the guest has not had an interrupt for, 0 to 1000.
    pub owed_ticks: u32,
    /// Port 0x61 bits 3:1: speaker data, and the check enables, which are only stored.
    pub port_61: u8,
}

impl Default for Pit {
    fn default() -> Self {
        Self {
            channels: [PitChannel::new(true), PitChannel::new(true), PitChannel::new(false)],
            delivered_until: 0,
            owed_ticks: 0,
            port_61: 0,
        }
    }
}

impl Pit {
    /// Read one byte; `None` for another port.
    pub(crate) fn read(&mut self, port: u16, now_ns: u64) -> Option<u8> {
        let now = ticks_at(now_ns, PIT_HZ);
        match port {
            0x40..=0x42 => Some(self.channels[usize::from(port & 3)].read(now)),
            // Write-only; the bus floats.
            0x43 => Some(0xff),
            0x61 => Some(self.read_port_61(now_ns)),
            _ => None,
        }
    }

    fn read_port_61(&self, now_ns: u64) -> u8 {
        let speaker = &self.channels[2];
        let refresh = (now_ns / REFRESH_TOGGLE_NS) & 1 != 0;
        u8::from(speaker.gate)
            | self.port_61
            | u8::from(refresh) << 4
            | u8::from(speaker.output(ticks_at(now_ns, PIT_HZ))) << 5
    }

    /// Write one byte; false for another port.
    pub(crate) fn write(&mut self, port: u16, value: u8, now_ns: u64) -> bool {
        let now = ticks_at(now_ns, PIT_HZ);
        match port {
            0x40 => {
                self.channels[0].write(value, now);
                // The caller has delivered what rose until now.
                self.delivered_until = now + 1;
                self.owed_ticks = 0;
            }
            0x41 | 0x42 => self.channels[usize::from(port & 3)].write(value, now),
            0x43 => self.write_control(value, now),
            0x61 => {
                self.port_61 = value & 0xe;
                self.channels[2].set_gate(value & 1 != 0, now);
            }
            _ => return false,
        }
        true
    }

    /// When channel 2 began to count down once (mode 0), in ticks; `None` while it does not.
    pub(crate) fn single_count(&self) -> Option<i64> {
        match (self.channels[2].mode, self.channels[2].progress) {
            (0, Progress::Since(start)) => Some(start),
            _ => None,
        }
    }

    /// Let that count have begun later.
    pub(crate) fn delay_single_count(&mut self, delay_ns: u64) {
        if let Some(start) = self.single_count() {
            self.channels[2].progress = Progress::Since(start.saturating_add(ticks_at(delay_ns, PIT_HZ)));
        }
    }

    /// Whether that count has ended.
    pub(crate) fn single_count_ended(&self, now_ns: u64) -> bool {
        self.single_count().is_some() && self.channels[2].output(ticks_at(now_ns, PIT_HZ))
    }

    /// Let it end with the next tick.
    pub(crate) fn end_single_count_after(&mut self, now_ns: u64) {
        let next = ticks_at(now_ns, PIT_HZ) + 1;
        if self.single_count().is_some() {
            self.channels[2].progress = Progress::Since(next - i64::from(self.channels[2].count));
        }
    }

    fn write_control(&mut self, word: u8, now: i64) {
        let channel = usize::from(word >> 6);
        match self.channels.get_mut(channel) {
            None => self.read_back(word, now),
            Some(selected) if word & 0x30 == 0 => selected.latch_count(now),
            Some(selected) => {
                selected.set_control(word);
                if channel == 0 {
                    self.owed_ticks = 0;
                }
            }
        }
    }

    fn read_back(&mut self, word: u8, now: i64) {
        for (index, channel) in self.channels.iter_mut().enumerate() {
            if word & (2 << index) == 0 {
                continue;
            }
            if word & 0x20 == 0 {
                channel.latch_count(now);
            }
            if word & 0x10 == 0 {
                channel.latch_status(now);
            }
        }
    }

    /// When channel 0's output next rises.
    pub(crate) fn deadline_ns(&self) -> Option<u64> {
        self.channels[0].next_rise(self.delivered_until).map(|tick| ns_of(tick, PIT_HZ))
    }

    /// Whether channel 0 gives ticks that are not lost when the guest is late: periodic, no faster than
    /// `MIN_PERIOD`.
    fn keeps_ticks(&self) -> bool {
        self.channels[0].is_periodic() && i64::from(self.channels[0].count) >= MIN_PERIOD
    }

    /// Count channel 0's rises since the last call, and owe their ticks. Rises of a rate too fast to keep
    /// count as one, and the next is at least `MIN_PERIOD` away.
    pub(crate) fn take_rises(&mut self, now_ns: u64) -> u32 {
        let now = ticks_at(now_ns, PIT_HZ);
        let channel = &self.channels[0];
        let Some(first) = channel.next_rise(self.delivered_until).filter(|rise| *rise <= now) else {
            return 0;
        };
        let keeps = self.keeps_ticks();
        let rises = if keeps { (now - first) / i64::from(channel.count.max(1)) + 1 } else { 1 };
        let fast = channel.is_periodic() && !keeps;
        self.delivered_until = now + if fast { MIN_PERIOD } else { 1 };
        let rises = u32::try_from(rises).unwrap_or(u32::MAX);
        self.owed_ticks = self.owed_ticks.saturating_add(rises).min(MAX_OWED_TICKS);
        rises
    }

    /// Account for a tick that was presented to the interrupt controllers. A masked one takes with it
    /// those before it; one that was merged stays owed where ticks are kept.
    pub(crate) fn settle_tick(&mut self, delivery: Delivery) {
        self.owed_ticks = match delivery {
            Delivery::Accepted => self.owed_ticks.saturating_sub(1),
            Delivery::Merged if self.keeps_ticks() => self.owed_ticks,
            _ => 0,
        };
    }

    /// The state with ticks moved by `delta`.
    fn shifted(&self, delta: i64) -> Self {
        let mut moved = self.clone();
        moved.delivered_until = moved.delivered_until.saturating_add(delta);
        for channel in &mut moved.channels {
            if let Progress::Since(start) = channel.progress {
                channel.progress = Progress::Since(start.saturating_add(delta));
            }
        }
        moved
    }

    /// The state relative to now.
    pub(crate) fn saved(&self, now_ns: u64) -> Self {
        self.shifted(-ticks_at(now_ns, PIT_HZ))
    }

    /// A saved state continued from now. What no register can hold is brought into range.
    pub(crate) fn restored(&self, now_ns: u64) -> Self {
        let now = ticks_at(now_ns, PIT_HZ);
        let mut pit = self.shifted(now);
        pit.delivered_until = pit.delivered_until.clamp(now.saturating_sub(PIT_HZ as i64), now + MIN_PERIOD);
        for channel in &mut pit.channels {
            if let Progress::Since(start) = channel.progress {
                // No period is longer than 65536 ticks.
                channel.progress = Progress::Since(start.min(now + 0x1_0000));
            }
            channel.mode = channel.mode.min(5);
            let least = if channel.is_periodic() { 2 } else { 1 };
            channel.count = channel.count.clamp(least, channel.modulus());
            channel.previous_count = channel.previous_count.map(|count| count.clamp(2, 0x1_0000));
        }
        pit.port_61 &= 0xe;
        pit.owed_ticks = pit.owed_ticks.min(MAX_OWED_TICKS);
        pit
    }
}

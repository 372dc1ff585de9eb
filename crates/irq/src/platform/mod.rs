//! Timers of the platform that either engine can use: the RTC with its CMOS RAM, and the ACPI PM timer.

mod calendar;
mod rtc;

pub use calendar::Fields;
pub use rtc::{Rtc, CMOS_BYTES};

use crate::rate::ticks_at;
use crate::sync::lock;
use crate::timer::{Alarm, AlarmSlot, TimerSource, NEVER};
use crate::Clock;
use rtc::Moment;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

/// Drives an interrupt line: GSI and level.
pub type IrqSink = Box<dyn Fn(u32, bool) + Send + Sync>;
/// The host's UTC in nanoseconds since 1970.
pub type WallClock = Box<dyn Fn() -> u64 + Send + Sync>;

/// The RTC's GSI.
pub const RTC_GSI: u32 = 8;
/// Rate of the ACPI PM timer in Hz (ACPI 6.5 §4.8.2.1 "Power Management Timer").
pub const PM_TIMER_HZ: u64 = 3_579_545;
/// Port of the ACPI PM timer: 4 bytes, a 32-bit counter (FADT flag `TMR_VAL_EXT`).
pub const PM_TIMER_PORT: u16 = 0x608;

/// The bytes before it are the clock's registers.
const FIRST_CMOS_BYTE: u8 = 0x0e;
const RTC_INDEX: u16 = 0x70;
const RTC_DATA: u16 = 0x71;

/// RTC and ACPI PM timer of one VM.
pub struct PlatformTimers {
    clock: Arc<dyn Clock>,
    wall: WallClock,
    irq: IrqSink,
    alarm: AlarmSlot,
    guarded: Mutex<Guarded>,
    /// The RTC's deadline, written with `guarded` locked.
    deadline: AtomicU64,
}

struct Guarded {
    rtc: Rtc,
    /// The level that the interrupt line was last given.
    line: bool,
    /// Whether the RTC drives the interrupt line.
    connected: bool,
    /// What the PM timer adds to the clock's ticks, modulo 2^32.
    pm_offset: u32,
}

/// The state as plain data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlatformTimersState {
    /// RTC and CMOS RAM.
    pub rtc: Rtc,
    /// Value of the PM timer.
    pub pm_timer: u32,
}

impl PlatformTimers {
    /// An RTC that shows the host's UTC, and a PM timer that starts at 0.
    ///
    /// `ram_bytes` is the guest's RAM below and above 4 GiB, for the CMOS bytes that tell; `irq` is called
    /// with this object locked, and must not call back into it.
    pub fn new(clock: Arc<dyn Clock>, ram_bytes: (u64, u64), irq: IrqSink) -> Arc<Self> {
        Self::with_wall_clock(clock, ram_bytes, irq, Box::new(host_utc_ns))
    }

    /// The same with another source of the time of day.
    pub fn with_wall_clock(
        clock: Arc<dyn Clock>,
        ram_bytes: (u64, u64),
        irq: IrqSink,
        wall: WallClock,
    ) -> Arc<Self> {
        let mut rtc = Rtc::new(ram_bytes.0, ram_bytes.1);
        let moment = Moment { now_ns: clock.now_ns(), wall_ns: wall() };
        rtc.settle(moment);
        rtc.flags = 0;
        let pm_offset = 0u32.wrapping_sub(pm_ticks(moment.now_ns));
        Arc::new(Self {
            clock,
            wall,
            irq,
            alarm: AlarmSlot::default(),
            guarded: Mutex::new(Guarded { rtc, line: false, connected: true, pm_offset }),
            deadline: AtomicU64::new(NEVER),
        })
    }

    /// Read a port; `None` when it is not one of ours (0x70, 0x71, 0x608 to 0x60b). `size` is 1, 2 or 4.
    pub fn pio_read(&self, port: u16, size: u8) -> Option<u64> {
        let mask = (1u64 << (8 * size.clamp(1, 4))) - 1;
        match port {
            // Write-only; the bus floats.
            RTC_INDEX => Some(if size < 2 { 0xff } else { self.read_rtc() << 8 | 0xff | mask & !0xffff }),
            RTC_DATA => Some(self.read_rtc() | mask & !0xff),
            PM_TIMER_PORT..=0x60b => {
                Some(u64::from(self.pm_timer()) >> (8 * u32::from(port - PM_TIMER_PORT)) & mask)
            }
            _ => None,
        }
    }

    /// Write a port; false when it is not one of ours. The PM timer ignores writes; a 16-bit write to
    /// 0x70 writes index and data.
    pub fn pio_write(&self, port: u16, size: u8, value: u64) -> bool {
        match port {
            RTC_INDEX => {
                self.update(|guarded, _| guarded.rtc.select(value as u8));
                if size >= 2 {
                    self.write_rtc((value >> 8) as u8);
                }
                true
            }
            RTC_DATA => {
                self.write_rtc(value as u8);
                true
            }
            PM_TIMER_PORT..=0x60b => true,
            _ => false,
        }
    }

    fn read_rtc(&self) -> u64 {
        u64::from(self.update(|guarded, moment| guarded.rtc.read(moment)))
    }

    fn write_rtc(&self, value: u8) {
        self.update(|guarded, moment| guarded.rtc.write(value, moment));
    }

    /// The PM timer's value.
    fn pm_timer(&self) -> u32 {
        let offset = lock(&self.guarded).pm_offset;
        pm_ticks(self.clock.now_ns()).wrapping_add(offset)
    }

    /// Set bytes of the CMOS RAM, given as (index, value).
    ///
    /// # Errors
    /// The first index that is a register of the clock's (below 0x0e) or past the RAM; nothing is written then.
    pub fn write_cmos(&self, bytes: &[(u8, u8)]) -> Result<(), u8> {
        let allowed = FIRST_CMOS_BYTE..CMOS_BYTES as u8;
        if let Some((index, _)) = bytes.iter().find(|(index, _)| !allowed.contains(index)) {
            return Err(*index);
        }
        let mut guarded = lock(&self.guarded);
        for (index, value) in bytes {
            guarded.rtc.ram[usize::from(*index)] = *value;
        }
        Ok(())
    }

    /// Connect the RTC to GSI 8, or take it off, as an event timer in legacy replacement mode does.
    pub fn connect_rtc(&self, connected: bool) {
        self.update(|guarded, _| guarded.connected = connected);
    }

    /// RESET. The time of day and the PM timer go on.
    pub fn reset(&self) {
        self.update(|guarded, moment| guarded.rtc.reset(moment));
    }

    /// The whole state.
    pub fn save_state(&self) -> PlatformTimersState {
        let rtc = self.update(|guarded, moment| {
            guarded.rtc.settle(moment);
            // The clock's zero means nothing elsewhere.
            Rtc { seen_tick: 0, owed_from_tick: 0, ..guarded.rtc.clone() }
        });
        PlatformTimersState { rtc, pm_timer: self.pm_timer() }
    }

    /// Replace the whole state. The RTC shows the host's time, with the guest's own offset, as it is now.
    pub fn load_state(&self, state: &PlatformTimersState) {
        self.update(|guarded, moment| {
            guarded.pm_offset = state.pm_timer.wrapping_sub(pm_ticks(moment.now_ns));
            guarded.rtc = state.rtc.clone();
            guarded.rtc.restore(moment);
        });
    }

    /// Change the RTC under the lock, then set the interrupt line and the deadline.
    fn update<R>(&self, change: impl FnOnce(&mut Guarded, Moment) -> R) -> R {
        let mut guarded = lock(&self.guarded);
        let moment = Moment { now_ns: self.clock.now_ns(), wall_ns: (self.wall)() };
        let result = change(&mut guarded, moment);
        let output = guarded.rtc.output() && guarded.connected;
        if output != guarded.line {
            guarded.line = output;
            (self.irq)(RTC_GSI, output);
        }
        self.publish_deadline(guarded.rtc.deadline_ns(moment).unwrap_or(NEVER));
        result
    }

    fn publish_deadline(&self, deadline: u64) {
        if self.deadline.swap(deadline, Ordering::SeqCst) != deadline && deadline != NEVER {
            self.alarm.request(deadline);
        }
    }
}

impl TimerSource for PlatformTimers {
    fn attach(&self, alarm: Arc<Alarm>) {
        self.alarm.attach(alarm);
    }

    fn next_deadline_ns(&self) -> Option<u64> {
        let deadline = self.deadline.load(Ordering::SeqCst);
        (deadline != NEVER).then_some(deadline)
    }

    fn run_timers(&self) {
        if self.deadline.load(Ordering::SeqCst) <= self.clock.now_ns() {
            self.update(|guarded, moment| guarded.rtc.settle(moment));
        }
    }
}

/// Ticks of a PM timer that started with the clock.
fn pm_ticks(now_ns: u64) -> u32 {
    ticks_at(now_ns, PM_TIMER_HZ) as u32
}

fn host_utc_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

//! The local APIC's timer (Intel SDM vol. 3A §11.5.4 "APIC Timer").

/// Rate at which the timer counts when it divides by 1, in Hz. CPUID leaf 0x15 and the
/// hypervisor's timing leaf must report the same crystal.
pub const APIC_TIMER_HZ: u64 = 1_000_000_000;

/// Shortest time between two interrupts of one periodic timer. Ticks in between coalesce, so that
/// a guest cannot make the host spin.
pub(crate) const MIN_PERIOD_NS: u64 = 20_000;

/// Bits 18:17 of the LVT timer register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TimerMode {
    OneShot,
    Periodic,
    TscDeadline,
}

impl TimerMode {
    /// Decode an LVT timer register. The reserved encoding 3 behaves as one-shot.
    pub(crate) fn of(lvt: u32) -> Self {
        match (lvt >> 17) & 3 {
            1 => Self::Periodic,
            2 => Self::TscDeadline,
            _ => Self::OneShot,
        }
    }
}

/// Everything but the LVT register. All that moves is `expiry_ns`: counts are computed from it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Timer {
    /// Initial count register.
    pub(crate) initial: u32,
    /// Divide configuration register.
    pub(crate) divide: u32,
    /// IA32_TSC_DEADLINE; 0 when disarmed.
    pub(crate) tsc_deadline: u64,
    /// When the count next reaches zero, `None` when the timer does not run.
    pub(crate) expiry_ns: Option<u64>,
}

impl Timer {
    /// log2 of the divisor: bits 3, 1 and 0 of the register, where 0b111 divides by 1.
    fn divide_shift(&self) -> u32 {
        (((self.divide & 3) | ((self.divide >> 1) & 4)) + 1) & 7
    }

    /// Time from initial count to zero.
    fn period_ns(&self) -> u64 {
        u64::from(self.initial) << self.divide_shift()
    }

    /// Write the initial count: starts the timer, or stops it when 0.
    pub(crate) fn start(&mut self, initial: u32, now_ns: u64) {
        self.initial = initial;
        self.expiry_ns = (initial != 0).then(|| now_ns.saturating_add(self.period_ns()));
    }

    /// Disarm; the initial count stays readable.
    pub(crate) fn stop(&mut self) {
        self.expiry_ns = None;
        self.tsc_deadline = 0;
    }

    /// The current count register.
    pub(crate) fn current(&self, mode: TimerMode, now_ns: u64) -> u32 {
        let left_ns = match (mode, self.expiry_ns) {
            (TimerMode::TscDeadline, _) | (_, None) => return 0,
            (TimerMode::OneShot, Some(expiry)) => expiry.saturating_sub(now_ns),
            (TimerMode::Periodic, Some(expiry)) => self.left_in_period(expiry, now_ns),
        };
        left_ns.div_ceil(1 << self.divide_shift()).min(u64::from(self.initial)) as u32
    }

    /// Time to the next zero of a periodic count, whichever zero `expiry` is.
    fn left_in_period(&self, expiry: u64, now_ns: u64) -> u64 {
        let period = self.period_ns().max(1);
        match expiry.checked_sub(now_ns) {
            Some(0) | None => period - (now_ns - expiry) % period,
            Some(left) => (left - 1) % period + 1,
        }
    }

    /// Change the divisor: the count goes on from where it is.
    pub(crate) fn set_divide(&mut self, divide: u32, mode: TimerMode, now_ns: u64) {
        let left = self.current(mode, now_ns);
        self.divide = divide;
        if mode != TimerMode::TscDeadline && self.expiry_ns.is_some() {
            self.expiry_ns = Some(now_ns.saturating_add(u64::from(left) << self.divide_shift()));
        }
    }

    /// Account for a count that has reached zero; returns whether it has.
    ///
    /// The next expiry of a periodic timer is a whole number of periods after this one, never
    /// computed from `now_ns`, so that it does not drift.
    pub(crate) fn expire(&mut self, mode: TimerMode, now_ns: u64) -> bool {
        let Some(expiry) = self.expiry_ns.filter(|expiry| *expiry <= now_ns) else { return false };
        if mode == TimerMode::Periodic {
            let period = self.period_ns().max(1);
            let late = now_ns - expiry;
            let periods = if period < MIN_PERIOD_NS {
                (late + MIN_PERIOD_NS).div_ceil(period)
            } else {
                late / period + 1
            };
            self.expiry_ns = Some(expiry.saturating_add(periods.saturating_mul(period)));
        } else {
            self.stop();
        }
        true
    }
}

//! The 8254 as the source of IRQ 0, with the ticks that the guest has yet to be given.
//!
//! A guest that keeps time by counting ticks of channel 0 loses time when two of them meet in an interrupt
//! controller before the vCPU takes the first. So a tick that was merged with the one before it is owed,
//! and delivered once the guest has acknowledged that one. What is due by then is found from the clock, not
//! from the timer thread, which on a busy host may not have run. A masked tick is lost, as on hardware.

use crate::awaited_count::AwaitedCount;
use crate::fabric::Fabric;
use crate::message::Delivery;
use crate::pit::Pit;
use crate::sync::lock;
use crate::timer::{AlarmSlot, NEVER};
use crate::Clock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Channel 2's port.
const CHANNEL_2: u16 = 0x42;
/// Gate and output of channel 2.
const CONTROL_PORT_B: u16 = 0x61;

/// The 8254 and its interrupt. Its lock is taken before that of the lines.
pub(crate) struct SystemTimer {
    clock: Arc<dyn Clock>,
    alarm: Arc<AlarmSlot>,
    pit: Mutex<Pit>,
    awaited: AwaitedCount,
    /// When channel 0 next rises, written with `pit` locked.
    deadline: AtomicU64,
    /// Whether channel 0 drives its interrupt, written with `pit` locked.
    connected: AtomicBool,
    rises: AtomicU64,
    reinjected: AtomicU64,
}

impl SystemTimer {
    /// An 8254 at reset state.
    pub(crate) fn new(clock: Arc<dyn Clock>, alarm: Arc<AlarmSlot>) -> Self {
        Self {
            clock,
            alarm,
            pit: Mutex::new(Pit::default()),
            awaited: AwaitedCount::default(),
            deadline: AtomicU64::new(NEVER),
            connected: AtomicBool::new(true),
            rises: AtomicU64::new(0),
            reinjected: AtomicU64::new(0),
        }
    }

    /// Read one byte of a port; `None` for another port.
    pub(crate) fn read(&self, port: u16) -> Option<u8> {
        let mut pit = lock(&self.pit);
        let now = match port {
            CHANNEL_2 | CONTROL_PORT_B => self.awaited.look(self.clock.as_ref(), &mut pit),
            _ => self.clock.now_ns(),
        };
        pit.read(port, now)
    }

    /// Write one byte of a port; false for another port.
    pub(crate) fn write(&self, fabric: &Fabric, port: u16, value: u8) -> bool {
        let mut pit = lock(&self.pit);
        let write = |pit: &mut Pit, now_ns| {
            self.tick(fabric, pit, now_ns);
            pit.write(port, value, now_ns)
        };
        let ours = match port {
            CHANNEL_2 | CONTROL_PORT_B => self.awaited.change(self.clock.as_ref(), &mut pit, write),
            _ => write(&mut pit, self.clock.now_ns()),
        };
        self.publish(&pit);
        ours
    }

    /// Connect channel 0's output to its interrupt, or take it off: what is due until it is back is lost.
    pub(crate) fn connect(&self, fabric: &Fabric, connected: bool) {
        let mut pit = lock(&self.pit);
        self.tick(fabric, &mut pit, self.clock.now_ns());
        pit.owed_ticks = 0;
        self.connected.store(connected, Ordering::SeqCst);
        self.publish(&pit);
    }

    /// When `run` has something to do; `NEVER` if at no time.
    pub(crate) fn deadline_ns(&self) -> u64 {
        self.deadline.load(Ordering::SeqCst)
    }

    /// Deliver a tick if one is due.
    pub(crate) fn run(&self, fabric: &Fabric, now_ns: u64) {
        if self.deadline_ns() <= now_ns {
            let mut pit = lock(&self.pit);
            self.tick(fabric, &mut pit, now_ns);
            self.publish(&pit);
        }
    }

    /// The guest has acknowledged an interrupt, which may have been a tick: deliver the next one owed.
    /// One atomic load while channel 0 does not count. Precondition: no lock of the crate is held.
    pub(crate) fn catch_up(&self, fabric: &Fabric) {
        if self.deadline_ns() == NEVER {
            return;
        }
        let now = self.clock.now_ns();
        let mut pit = lock(&self.pit);
        if pit.owed_ticks > 0 || self.deadline_ns() <= now {
            if self.tick(fabric, &mut pit, now) == Delivery::Accepted {
                self.reinjected.fetch_add(1, Ordering::Relaxed);
            }
            self.publish(&pit);
        }
    }

    /// Account for channel 0's rises and deliver one of the ticks owed.
    fn tick(&self, fabric: &Fabric, pit: &mut Pit, now_ns: u64) -> Delivery {
        self.rises.fetch_add(u64::from(pit.take_rises(now_ns)), Ordering::Relaxed);
        if !self.connected.load(Ordering::SeqCst) {
            pit.owed_ticks = 0;
        }
        if pit.owed_ticks == 0 {
            return Delivery::Refused;
        }
        let delivery = fabric.pulse_timer();
        pit.settle_tick(delivery);
        delivery
    }

    fn publish(&self, pit: &Pit) {
        let connected = self.connected.load(Ordering::SeqCst);
        let deadline = pit.deadline_ns().filter(|_| connected).unwrap_or(NEVER);
        if self.deadline.swap(deadline, Ordering::SeqCst) != deadline && deadline != NEVER {
            self.alarm.request(deadline);
        }
    }

    /// RESET.
    pub(crate) fn reset(&self) {
        self.replace(Pit::default());
    }

    /// The state, relative to now.
    pub(crate) fn save_state(&self) -> Pit {
        lock(&self.pit).saved(self.clock.now_ns())
    }

    /// Continue a saved state from now.
    pub(crate) fn load_state(&self, state: &Pit) {
        self.replace(state.restored(self.clock.now_ns()));
    }

    fn replace(&self, state: Pit) {
        let mut pit = lock(&self.pit);
        self.awaited.forget();
        *pit = state;
        self.publish(&pit);
    }

    /// Rises of channel 0's output, and ticks delivered at the acknowledgement of another.
    pub(crate) fn counters(&self) -> [u64; 2] {
        [&self.rises, &self.reinjected].map(|counter| counter.load(Ordering::Relaxed))
    }
}

//! PAUSE: what a vCPU does while it waits for another one.
//!
//! On a host with a processor for each vCPU it is the processor's own PAUSE. Where vCPUs share processors, the
//! one that is waited for may not be running: the spinning one then gives its processor away.

use super::vcpu::VcpuCore;
use std::sync::atomic::Ordering;
use std::sync::{OnceLock, PoisonError};

/// PAUSE instructions between two times that the processor is given away, where vCPUs share processors.
const IMPATIENCE: u32 = 8;
/// The same on a host with a processor for each vCPU, which may have other work.
const PATIENCE: u32 = 64;
/// PAUSE instructions between two looks at the timers, a power of two.
const TIMER_LOOKS: u64 = 16;

/// How long a vCPU has been spinning.
#[derive(Debug, Default)]
pub(super) struct Spin {
    /// PAUSE instructions since the processor was given away.
    pauses: u32,
}

impl VcpuCore {
    /// Carry out a PAUSE.
    pub(super) fn pause(&mut self) {
        self.counters.pauses += 1;
        self.spin.pauses += 1;
        if self.counters.pauses % TIMER_LOOKS == 0 {
            self.run_late_timers();
        }
        let looks = self.spin.pauses % IMPATIENCE == 0;
        if !looks || (self.spin.pauses < PATIENCE && !self.vcpus_share_processors()) {
            std::hint::spin_loop();
            return;
        }
        self.spin.pauses = 0;
        self.counters.yields += 1;
        std::thread::yield_now();
    }

    /// A delay loop may pass a timer's deadline while the host keeps the timer thread from its processor.
    fn run_late_timers(&self) {
        if let Some(irqchip) = &self.cpu.irqchip {
            irqchip.run_late_timers();
        }
    }

    /// Whether more vCPUs of this VM run guest code than the host has processors for this process.
    fn vcpus_share_processors(&self) -> bool {
        let vcpus = self.shared.vcpus.read().unwrap_or_else(PoisonError::into_inner);
        let active = vcpus.iter().filter(|vcpu| vcpu.active.load(Ordering::Relaxed)).count();
        active > host_processors()
    }
}

/// Processors that this process may use, as of the first call.
fn host_processors() -> usize {
    static COUNT: OnceLock<usize> = OnceLock::new();
    *COUNT.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from))
}

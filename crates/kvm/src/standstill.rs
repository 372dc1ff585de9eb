//! Changes that KVM makes in steps, while no vCPU is between two of them.

use crate::kick::Kicker;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, Weak};
use std::time::Duration;

/// How long a vCPU waits before it looks again whether a change is done.
const PATIENCE: Duration = Duration::from_micros(50);

/// Lets a VM's vCPUs run, or one thread change something while none does.
#[derive(Debug, Default)]
pub struct Standstill {
    /// Read while inside `KVM_RUN`.
    running: RwLock<()>,
    /// No vCPU is to enter.
    wanted: AtomicBool,
    vcpus: Mutex<Vec<Weak<Kicker>>>,
}

impl Standstill {
    /// One more vCPU.
    pub fn add(&self, vcpu: &Arc<Kicker>) {
        let mut vcpus = self.vcpus.lock().unwrap_or_else(PoisonError::into_inner);
        vcpus.retain(|vcpu| vcpu.strong_count() > 0);
        vcpus.push(Arc::downgrade(vcpu));
    }

    /// A vCPU may enter the guest until the guard goes; waits for a change to be done.
    ///
    /// Called after `Kicker::take`: a nudge before that came after `wanted`, one after that ends `KVM_RUN`.
    pub fn run(&self) -> RwLockReadGuard<'_, ()> {
        while self.wanted.load(Ordering::SeqCst) {
            std::thread::sleep(PATIENCE);
        }
        self.running.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Make a change while no vCPU runs. One thread at a time, and not from inside a vCPU's `run`.
    pub fn during<T>(&self, change: impl FnOnce() -> T) -> T {
        self.wanted.store(true, Ordering::SeqCst);
        self.nudge();
        let still = self.running.write().unwrap_or_else(PoisonError::into_inner);
        let result = change();
        self.wanted.store(false, Ordering::SeqCst);
        drop(still);
        result
    }

    fn nudge(&self) {
        let vcpus = self.vcpus.lock().unwrap_or_else(PoisonError::into_inner);
        vcpus.iter().filter_map(Weak::upgrade).for_each(|vcpu| vcpu.nudge());
    }
}

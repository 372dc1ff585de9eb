//! Running one vCPU while all others stand still.
//!
//! A locked access that crosses two pages of guest memory has no host instruction: the pages need not lie
//! side by side. It is carried out in parts while no other vCPU runs guest code.

use super::requests::Requests;
use super::shared::lock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Whose turn it is.
#[derive(Debug, Default)]
pub struct Exclusive {
    /// A vCPU runs alone, or waits for the others to stop. Written with `turn` held.
    wanted: AtomicBool,
    turn: Mutex<()>,
    over: Condvar,
}

impl Exclusive {
    /// Whether another vCPU wants this one to stop.
    pub fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::SeqCst)
    }

    /// Wait until no vCPU wants to be alone. The caller's vCPU is not active.
    pub fn wait_until_over(&self) {
        let mut turn = lock(&self.turn);
        while self.is_wanted() {
            turn = self.over.wait(turn).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Stop all vCPUs but `mine` until [`Self::end`]. That one is not active while it waits for its turn (so
    /// that two who want to be alone do not wait for each other), and active on return.
    pub fn begin(&self, mine: &Requests, vcpus: &[Arc<Requests>]) {
        mine.active.store(false, Ordering::SeqCst);
        let mut turn = lock(&self.turn);
        while self.is_wanted() {
            turn = self.over.wait(turn).unwrap_or_else(PoisonError::into_inner);
        }
        self.wanted.store(true, Ordering::SeqCst);
        drop(turn);
        for other in vcpus.iter().filter(|other| !std::ptr::eq(other.as_ref(), mine)) {
            other.interrupt();
            while other.active.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_micros(10));
            }
        }
        mine.active.store(true, Ordering::SeqCst);
    }

    /// Let the others go on.
    pub fn end(&self) {
        let _turn = lock(&self.turn);
        self.wanted.store(false, Ordering::SeqCst);
        self.over.notify_all();
    }
}

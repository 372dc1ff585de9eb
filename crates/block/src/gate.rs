//! Letting accesses through until somebody wants to be alone.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

/// Counts who is inside. Whoever shuts it waits until nobody is, and nobody gets in until it is opened as
/// often as it was shut.
///
/// An access counts itself in *before* it looks whether the gate is shut, and the other way round: so one
/// of the two sees the other.
#[derive(Debug, Default)]
pub struct Gate {
    inside: AtomicU32,
    shut: AtomicU32,
    lock: Mutex<()>,
    left: Condvar,
}

/// Somebody is inside, until this is dropped.
#[derive(Debug)]
pub struct Pass<'a>(&'a Gate);

impl Gate {
    /// Go in, unless the gate is shut.
    pub fn enter(&self) -> Option<Pass<'_>> {
        let pass = self.enter_anyway();
        (self.shut.load(Ordering::SeqCst) == 0).then_some(pass)
    }

    /// Go in although the gate may be shut: for who knows by a lock that nobody is alone, or who is.
    pub fn enter_anyway(&self) -> Pass<'_> {
        self.inside.fetch_add(1, Ordering::SeqCst);
        Pass(self)
    }

    /// Let nobody in from now on, and wait until all are out. Never with a pass in hand.
    pub fn shut(&self) {
        self.shut.fetch_add(1, Ordering::SeqCst);
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        while !self.is_empty() {
            guard = self.left.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Undo one [`Self::shut`].
    pub fn open(&self) {
        self.shut.fetch_sub(1, Ordering::SeqCst);
    }

    /// Count out somebody whose pass was forgotten: a pass cannot be handed through another language.
    pub fn leave(&self) {
        let last = self.inside.fetch_sub(1, Ordering::SeqCst) == 1;
        if last && self.shut.load(Ordering::SeqCst) != 0 {
            let _guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
            self.left.notify_all();
        }
    }

    /// Whether nobody is inside at this moment.
    pub fn is_empty(&self) -> bool {
        self.inside.load(Ordering::SeqCst) == 0
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_gets_in_while_it_is_shut() {
        let gate = Gate::default();
        gate.shut();
        gate.shut();
        gate.open();
        assert!(gate.enter().is_none());
        assert!(gate.is_empty());
        gate.open();
        assert!(gate.enter().is_some());
    }

    #[test]
    fn shutting_waits_for_those_inside() {
        let gate = Gate::default();
        let left = AtomicU32::new(0);
        let pass = gate.enter().expect("it is open");
        std::thread::scope(|scope| {
            let shutter = scope.spawn(|| {
                gate.shut();
                left.load(Ordering::SeqCst)
            });
            while gate.shut.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            left.store(1, Ordering::SeqCst);
            drop(pass);
            assert_eq!(shutter.join().expect("it ends"), 1);
        });
    }
}

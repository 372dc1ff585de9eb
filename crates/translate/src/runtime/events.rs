//! Requests of other threads, interrupts, and HLT.

use super::vcpu::{Next, VcpuCore, PANIC_CODE};
use crate::cpu::Exception;
use crate::state::flag;
use crate::system::interrupt::Event;
use std::sync::atomic::Ordering;
use std::sync::PoisonError;
use std::time::Duration;
use sublet_engine::Exit;

impl VcpuCore {
    /// Take requests and events; `Some` to leave.
    pub(super) fn events(&mut self) -> Option<Exit> {
        // Whoever wants something zeroes the permit; what had to wait is noted here.
        let quiet = self.cpu.state.hot.permit.load(Ordering::Relaxed) != 0;
        if quiet && !self.event_waits && !self.rests() && self.cpu.posted_writes.is_empty() && !self.panicked
        {
            return None;
        }
        self.take_requests().or_else(|| self.take_events())
    }

    fn take_requests(&mut self) -> Option<Exit> {
        self.cpu.state.hot.permit.store(1, Ordering::SeqCst);
        self.count_notes();
        if let Some(exit) = self.cpu.posted_writes.pop_front() {
            return Some(exit);
        }
        if self.panicked {
            return Some(Exit::InternalError { code: PANIC_CODE });
        }
        if self.requests.kicked.swap(false, Ordering::SeqCst) {
            return Some(Exit::Interrupted);
        }
        if self.shared.exclusive.is_wanted() {
            self.requests.active.store(false, Ordering::SeqCst);
            self.activate();
        } else {
            self.catch_up();
        }
        None
    }

    /// The vCPU may run guest code from now on, unless another one has to be alone.
    pub(super) fn activate(&mut self) {
        loop {
            self.requests.active.store(true, Ordering::SeqCst);
            if !self.shared.exclusive.is_wanted() {
                return self.catch_up();
            }
            self.requests.active.store(false, Ordering::SeqCst);
            self.shared.exclusive.wait_until_over();
        }
    }

    /// Bring up to date what is derived from memory. Between two blocks.
    fn catch_up(&mut self) {
        self.take_flush();
        self.take_protections();
        self.confirm_code();
        self.take_stores();
    }

    /// Make all other vCPUs stand still until [`Self::end_exclusive`].
    pub(super) fn begin_exclusive(&mut self) {
        self.counters.exclusive += 1;
        let shared = self.shared.clone();
        let vcpus = shared.vcpus.read().unwrap_or_else(PoisonError::into_inner);
        shared.exclusive.begin(&self.requests, &vcpus);
        self.exclusive = true;
        self.catch_up();
    }

    /// Let the others go on.
    pub(super) fn end_exclusive(&mut self) {
        if std::mem::take(&mut self.exclusive) {
            self.shared.exclusive.end();
        }
    }

    /// In HLT, or waiting for a start-up IPI.
    fn rests(&self) -> bool {
        self.cpu.events.halted || self.cpu.events.waiting_for_startup
    }

    /// Memslots changed: forget host addresses, and code of pages that may be others now.
    fn take_flush(&mut self) {
        if !self.requests.flush.load(Ordering::SeqCst) {
            return;
        }
        self.cpu.mmu.flush(crate::cpu::Flush::All);
        self.apply_flushes();
        if self.requests.remapped.swap(false, Ordering::SeqCst) {
            self.follow_memslots();
        }
        self.mode_stale = true;
        self.requests.flush.store(false, Ordering::SeqCst);
    }

    fn take_events(&mut self) -> Option<Exit> {
        loop {
            if let Some(exit) = self.take_event() {
                self.set_event_waits(true);
                return Some(exit);
            }
            if !self.rests() {
                self.note_waiting();
                return None;
            }
            if let Some(exit) = self.wait_in_halt() {
                return Some(exit);
            }
        }
    }

    /// Remember whether an event is held off, so that what enables it looks again.
    fn note_waiting(&mut self) {
        let chip = self.cpu.apic.as_ref().is_some_and(|apic| apic.has_event());
        let events = &self.cpu.events;
        let waits = chip
            || self.cpu.smm.pending
            || events.nmi_pending
            || events.injected.is_some()
            || self.window_wanted;
        self.set_event_waits(waits);
    }

    pub(super) fn set_event_waits(&mut self, waits: bool) {
        self.event_waits = waits;
        self.cpu.state.hot.nothing_waits = u64::from(!waits);
    }

    fn take_event(&mut self) -> Option<Exit> {
        if let Some(apic) = self.cpu.apic.clone() {
            if apic.has_event() {
                self.cpu.events.nmi_pending |= apic.take_nmi();
                self.cpu.smm.pending |= apic.take_smi();
                // In system-management mode an INIT stays where it waits.
                let init = !self.cpu.smm.active && apic.take_init();
                let startup = apic.take_sipi();
                if init {
                    self.initialise();
                }
                if let Some(vector) = startup {
                    self.start_up(vector);
                }
            }
        }
        if self.cpu.events.waiting_for_startup {
            return None;
        }
        let shadow = self.cpu.events.interrupt_shadow;
        if self.cpu.smm.pending && !self.cpu.smm.active && !shadow {
            self.counters.smis += 1;
            self.cpu.enter_smm();
            self.mode_stale = true;
        }
        if self.cpu.events.nmi_pending && !self.cpu.events.nmi_masked && !shadow {
            self.cpu.events.nmi_pending = false;
            return self.deliver(Event::Nmi);
        }
        if shadow || self.cpu.state.rflags & flag::IF == 0 {
            return None;
        }
        if let Some(vector) = self.pending_interrupt() {
            self.counters.interrupts += 1;
            self.consider_windows();
            return self.deliver(Event::External(vector));
        }
        if self.window_wanted {
            return Some(Exit::InterruptWindow);
        }
        None
    }

    fn pending_interrupt(&mut self) -> Option<u8> {
        if let Some(vector) = self.cpu.events.injected.take() {
            return Some(vector);
        }
        let apic = self.cpu.apic.as_ref()?;
        if apic.has_interrupt() {
            if let Some(vector) = apic.acknowledge() {
                return Some(vector);
            }
        }
        let irqchip = self.cpu.irqchip.as_ref()?;
        irqchip.extint_pending(apic.id()).then(|| irqchip.acknowledge_extint())
    }

    /// Sleep in HLT until something may have happened.
    fn wait_in_halt(&mut self) -> Option<Exit> {
        if self.cpu.apic.is_none() {
            self.cpu.events.halted = false;
            return Some(Exit::Hlt);
        }
        if self.requests.kicked.swap(false, Ordering::SeqCst) {
            return Some(Exit::Interrupted);
        }
        self.counters.halts += 1;
        self.requests.active.store(false, Ordering::SeqCst);
        self.requests.sleep(Some(Duration::from_secs(1)));
        self.activate();
        None
    }

    /// INIT: the state of Intel SDM vol. 3A §10.1.1 table 10-1, column "INIT". The bootstrap processor starts
    /// at its reset vector, the others wait for a start-up IPI (§9.4.3 "MP Initialization Protocol Algorithm").
    fn initialise(&mut self) {
        let bootstrap = self.cpu.apic.as_ref().is_some_and(|apic| apic.is_bootstrap());
        self.cpu.initialise();
        self.cpu.events.waiting_for_startup = !bootstrap;
        self.mode_stale = true;
    }

    /// A start-up IPI: go on at `vector << 12` in real mode. Ignored unless waited for.
    fn start_up(&mut self, vector: u8) {
        if std::mem::take(&mut self.cpu.events.waiting_for_startup) {
            self.cpu.start_at(vector);
            self.mode_stale = true;
        }
    }

    fn deliver(&mut self, event: Event) -> Option<Exit> {
        self.mode_stale = true;
        match self.cpu.deliver(event) {
            Ok(()) => None,
            Err(_) => Some(Exit::Shutdown),
        }
    }

    pub(super) fn deliver_exception(&mut self, exception: Exception) -> Next {
        self.counters.exceptions += 1;
        self.counters.page_faults += u64::from(exception.vector == 14);
        self.after_event(Event::Exception(exception))
    }

    fn after_event(&mut self, event: Event) -> Next {
        match self.deliver(event) {
            Some(exit) => Next::Leave(exit),
            None => Next::Continue,
        }
    }
}

//! Local APIC: one per vCPU, shared by every thread that sends to it.
//!
//! Reference: Intel SDM vol. 3A (325462-083) chapter 11 "Advanced Programmable Interrupt Controller (APIC)".

mod access;
mod registers;
mod state;
mod timer;
mod vectors;

pub use state::LocalApicState;
pub use timer::APIC_TIMER_HZ;
pub(crate) use timer::MIN_PERIOD_NS;

use crate::fabric::Fabric;
use crate::message::{Delivery, DeliveryMode, Destination, Message};
use crate::sync::{lock, read, write};
use crate::timer::{AlarmSlot, NEVER};
use crate::{Clock, GeneralProtection, Waker};
use registers::{Registers, BASE_BSP, BASE_ENABLED, BASE_X2APIC};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock, Weak};
use timer::TimerMode;

/// What waits for a vCPU, in `LocalApic::events`.
mod event {
    pub(super) const INTERRUPT: u32 = 1 << 0;
    pub(super) const EXTINT: u32 = 1 << 1;
    pub(super) const NMI: u32 = 1 << 2;
    pub(super) const INIT: u32 = 1 << 3;
    pub(super) const SIPI: u32 = 1 << 4;
    pub(super) const SMI: u32 = 1 << 5;
}

/// The local APIC of one vCPU.
///
/// `registers` holds the truth; `events`, `base` and `deadline` repeat parts of it for readers that
/// must not lock, and are written only with the lock held.
pub struct LocalApic {
    id: u32,
    clock: Arc<dyn Clock>,
    fabric: Weak<Fabric>,
    alarm: Arc<AlarmSlot>,
    registers: Mutex<Registers>,
    waker: RwLock<Option<Arc<dyn Waker>>>,
    events: AtomicU32,
    base: AtomicU64,
    deadline: AtomicU64,
    acknowledged: AtomicU64,
    sent: AtomicU64,
    timer_fired: AtomicU64,
}

/// What to do once the register lock is released.
struct Followup {
    wake: bool,
    deadline: Option<u64>,
}

impl LocalApic {
    pub(crate) fn new(id: u32, clock: Arc<dyn Clock>, fabric: Weak<Fabric>, alarm: Arc<AlarmSlot>) -> Self {
        let registers = Registers::after_reset(id == 0);
        Self {
            id,
            clock,
            fabric,
            alarm,
            base: AtomicU64::new(registers.apic_base),
            registers: Mutex::new(registers),
            waker: RwLock::new(None),
            events: AtomicU32::new(0),
            deadline: AtomicU64::new(NEVER),
            acknowledged: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            timer_fired: AtomicU64::new(0),
        }
    }

    /// The APIC ID.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Of the bootstrap processor (IA32_APIC_BASE bit 8).
    pub fn is_bootstrap(&self) -> bool {
        self.apic_base() & BASE_BSP != 0
    }

    /// Whom to tell when this vCPU may have something to take.
    pub fn set_waker(&self, waker: Arc<dyn Waker>) {
        *write(&self.waker) = Some(waker);
    }

    /// IA32_APIC_BASE.
    pub fn apic_base(&self) -> u64 {
        self.base.load(Ordering::Acquire)
    }

    /// Write IA32_APIC_BASE. Disabling resets the registers.
    ///
    /// # Errors
    /// Reserved bits, and transitions that SDM vol. 3A §11.12.5 "x2APIC State Transitions" forbids.
    pub fn set_apic_base(&self, value: u64) -> Result<(), GeneralProtection> {
        self.update(|registers| {
            check_base(registers.apic_base, value)?;
            let disable = registers.is_enabled() && value & BASE_ENABLED == 0;
            registers.apic_base = value;
            if disable {
                registers.reset_keeping_base();
            }
            Ok(())
        })
    }

    /// In x2APIC mode: MSRs instead of the page.
    pub fn is_x2apic(&self) -> bool {
        self.apic_base() & BASE_X2APIC != 0
    }

    /// Globally enabled (IA32_APIC_BASE bit 11).
    pub fn enabled(&self) -> bool {
        self.apic_base() & BASE_ENABLED != 0
    }

    /// Task priority register; CR8 is its upper half.
    pub fn tpr(&self) -> u8 {
        lock(&self.registers).tpr
    }

    /// Write the task priority register, as MOV to CR8 does with `cr8 << 4`.
    pub fn set_tpr(&self, value: u8) {
        self.update(|registers| registers.tpr = value);
    }

    /// IA32_TSC_DEADLINE: 0 when not in that mode, or once it has passed.
    pub fn tsc_deadline(&self) -> u64 {
        let now = self.clock.now_ns();
        self.update(|registers| {
            self.settle(registers, now);
            registers.timer.tsc_deadline
        })
    }

    /// Write IA32_TSC_DEADLINE, in terms of the VM's TSC (`Clock::guest_tsc`). 0 disarms, a value that has
    /// passed fires at once, any value is ignored outside TSC-deadline mode
    /// (SDM vol. 3A §11.5.4.1 "TSC-Deadline Mode").
    pub fn set_tsc_deadline(&self, value: u64) {
        self.update(|registers| {
            if registers.timer_mode() != TimerMode::TscDeadline {
                return;
            }
            let tsc = self.clock.guest_tsc();
            let old = registers.timer.tsc_deadline;
            if old != 0 && old <= tsc {
                self.settle(registers, NEVER);
            }
            registers.timer.tsc_deadline = value;
            registers.timer.expiry_ns = match value {
                0 => None,
                _ if value <= tsc => Some(0),
                _ => Some(self.clock.tsc_to_ns(value)),
            };
            if value != 0 && value <= tsc {
                self.settle(registers, NEVER);
            }
        });
    }

    /// Whether `acknowledge` would give a vector. One atomic load.
    pub fn has_interrupt(&self) -> bool {
        self.pending(event::INTERRUPT)
    }

    /// Whether an interrupt of the 8259s waits for this vCPU. One atomic load.
    pub fn extint_pending(&self) -> bool {
        self.pending(event::EXTINT)
    }

    /// Whether an interrupt of either kind, an NMI, an INIT, a SIPI or an SMI waits. One atomic load.
    pub fn has_event(&self) -> bool {
        self.pending(u32::MAX)
    }

    /// Take the highest deliverable vector from IRR to ISR.
    pub fn acknowledge(&self) -> Option<u8> {
        if !self.has_interrupt() {
            return None;
        }
        let vector = self.update(|registers| {
            let vector = registers.deliverable()?;
            registers.irr.remove(vector);
            registers.isr.insert(vector);
            Some(vector)
        })?;
        count(&self.acknowledged);
        Some(vector)
    }

    /// Queue an NMI from outside the APIC.
    pub fn signal_nmi(&self) {
        self.update(|registers| registers.nmi = true);
    }

    /// Take the waiting NMI.
    pub fn take_nmi(&self) -> bool {
        self.pending(event::NMI) && self.update(|registers| std::mem::take(&mut registers.nmi))
    }

    /// Take the waiting INIT. The registers go to their state after INIT; the vCPU does the rest and
    /// then waits for a start-up IPI unless it is the bootstrap processor.
    pub fn take_init(&self) -> bool {
        self.pending(event::INIT)
            && self.update(|registers| {
                let taken = std::mem::take(&mut registers.init);
                if taken {
                    registers.reset_keeping_base();
                }
                taken
            })
    }

    /// Take the waiting start-up IPI: the vCPU starts at `vector << 12`, or ignores it when it does not wait.
    pub fn take_sipi(&self) -> Option<u8> {
        if !self.pending(event::SIPI) {
            return None;
        }
        self.update(|registers| registers.sipi.take())
    }

    /// Take the waiting SMI.
    pub fn take_smi(&self) -> bool {
        self.pending(event::SMI) && self.update(|registers| std::mem::take(&mut registers.smi))
    }

    /// RESET. The level of LINT0 stays: it is a wire.
    pub fn reset(&self) {
        self.update(|registers| {
            let lint0 = registers.lint0;
            *registers = Registers { lint0, ..Registers::after_reset(self.id == 0) };
        });
    }

    fn pending(&self, events: u32) -> bool {
        self.events.load(Ordering::Acquire) & events != 0
    }

    /// Change registers under the lock, publish what others may look at, then wake whom it concerns.
    fn update<R>(&self, change: impl FnOnce(&mut Registers) -> R) -> R {
        let mut registers = lock(&self.registers);
        let result = change(&mut registers);
        let followup = self.publish(&mut registers);
        drop(registers);
        self.follow_up(&followup);
        result
    }

    /// Repeat the registers in the atomics.
    fn publish(&self, registers: &mut Registers) -> Followup {
        let events = events_of(registers);
        let before = self.events.load(Ordering::Relaxed);
        if events != before {
            self.events.store(events, Ordering::Release);
        }
        if registers.apic_base != self.base.load(Ordering::Relaxed) {
            self.base.store(registers.apic_base, Ordering::Release);
        }
        let fresh = std::mem::take(&mut registers.fresh) && events & event::INTERRUPT != 0;
        Followup { wake: fresh || events & !before != 0, deadline: self.publish_deadline(registers) }
    }

    /// Returns the deadline when it is a new one.
    fn publish_deadline(&self, registers: &Registers) -> Option<u64> {
        let deadline = registers.deadline_ns().unwrap_or(NEVER);
        if deadline == self.deadline.load(Ordering::Relaxed) {
            return None;
        }
        self.deadline.store(deadline, Ordering::SeqCst);
        (deadline != NEVER).then_some(deadline)
    }

    fn follow_up(&self, followup: &Followup) {
        if let Some(deadline) = followup.deadline {
            self.alarm.request(deadline);
        }
        if followup.wake {
            if let Some(waker) = read(&self.waker).as_ref() {
                waker.wake();
            }
        }
    }

    /// When `run_timer` has something to do; `NEVER` if at no time.
    pub(crate) fn deadline_ns(&self) -> u64 {
        self.deadline.load(Ordering::SeqCst)
    }

    /// Fire the timer if it is due.
    pub(crate) fn run_timer(&self, now_ns: u64) {
        self.update(|registers| self.settle(registers, now_ns));
    }

    /// Account for the timer up to `now_ns`.
    fn settle(&self, registers: &mut Registers, now_ns: u64) {
        if registers.run_timer(now_ns) {
            count(&self.timer_fired);
        }
    }

    /// The output of the 8259s changed.
    pub(crate) fn set_lint0(&self, level: bool) {
        self.update(|registers| registers.set_lint0(level));
    }

    /// The NMI line, on LINT1, rose.
    pub(crate) fn pulse_lint1(&self) {
        self.update(|registers| registers.fire_lvt(registers::lvt::LINT1));
    }

    /// The vector of the 8259s has been fetched.
    pub(crate) fn clear_extint_message(&self) {
        self.update(|registers| registers.extint_message = false);
    }

    /// Whether a message is for this local APIC.
    pub(crate) fn matches(&self, destination: Destination) -> bool {
        let registers = lock(&self.registers);
        registers.is_enabled() && registers.matches(self.id, destination)
    }

    /// Whether it takes vectors, and the processor priority: lower takes a lowest-priority message.
    pub(crate) fn arbitration(&self) -> Option<u8> {
        let registers = lock(&self.registers);
        registers.takes_vectors().then(|| registers.ppr())
    }

    /// Take a message that is for this local APIC.
    pub(crate) fn accept(&self, message: &Message) -> Delivery {
        self.update(|registers| {
            if !registers.is_enabled() {
                return Delivery::Refused;
            }
            match message.mode {
                DeliveryMode::Fixed | DeliveryMode::LowestPriority => {
                    if message.reports_eoi {
                        registers.reported_vector = Some(message.vector);
                    }
                    return registers.accept_vector(message.vector, message.level_triggered);
                }
                DeliveryMode::Nmi => registers.nmi = true,
                DeliveryMode::Smi => registers.smi = true,
                DeliveryMode::Init => registers.signal_init(),
                DeliveryMode::StartUp => registers.sipi = Some(message.vector),
                DeliveryMode::ExtInt => registers.extint_message = true,
            }
            Delivery::Accepted
        })
    }

    /// Interrupts acknowledged, IPIs sent, timer interrupts.
    pub(crate) fn counters(&self) -> [u64; 3] {
        [&self.acknowledged, &self.sent, &self.timer_fired].map(|counter| counter.load(Ordering::Relaxed))
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

fn events_of(registers: &Registers) -> u32 {
    let flag = |set: bool, bit: u32| if set { bit } else { 0 };
    flag(registers.deliverable().is_some(), event::INTERRUPT)
        | flag(registers.extint_pending(), event::EXTINT)
        | flag(registers.nmi, event::NMI)
        | flag(registers.init, event::INIT)
        | flag(registers.sipi.is_some(), event::SIPI)
        | flag(registers.smi, event::SMI)
}

/// Bits of IA32_APIC_BASE that are reserved whatever MAXPHYADDR is.
const BASE_RESERVED: u64 = !((1 << 52) - 1) | 0x2ff;

fn check_base(old: u64, new: u64) -> Result<(), GeneralProtection> {
    let mode = |base: u64| (base & BASE_ENABLED != 0, base & BASE_X2APIC != 0);
    let forbidden = matches!(
        (mode(old), mode(new)),
        (_, (false, true)) | ((true, true), (true, false)) | ((false, _), (true, true))
    );
    if forbidden || new & BASE_RESERVED != 0 {
        return Err(GeneralProtection);
    }
    Ok(())
}

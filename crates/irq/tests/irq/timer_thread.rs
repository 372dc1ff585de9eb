//! The timer thread, on the real clock: what happens, not how fast.

use crate::fixture::offset;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{channel, Receiver, Sender};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;
use sublet_irq::{Alarm, Clock, HostClock, Irqchip, LocalApic, TimerSource, TimerThread, Waker};

/// A stand-in for the TSC, of 1 GHz: the crate cannot execute RDTSC itself.
fn nanosecond_counter() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_nanos() as u64
}

struct Signal(Mutex<Sender<()>>);

impl Waker for Signal {
    fn wake(&self) {
        let _ = self.0.lock().unwrap().send(());
    }
}

/// A chipset with one local APIC in TSC-deadline mode, and where its wake-ups arrive.
fn deadline_machine(clock: Arc<HostClock>) -> (Arc<Irqchip>, Arc<LocalApic>, Receiver<()>) {
    let chip = Irqchip::new(clock);
    let apic = chip.add_lapic(0);
    let (sender, woken) = channel();
    apic.set_waker(Arc::new(Signal(Mutex::new(sender))));
    apic.mmio_write(offset::SVR, 0x1ff);
    apic.mmio_write(offset::LVT_TIMER, 2 << 17 | 0xec);
    (chip, apic, woken)
}

/// One that takes over from another is told of deadlines as well.
#[test]
fn a_second_thread_takes_over() {
    let clock = Arc::new(HostClock::new(nanosecond_counter, Some(1_000_000_000)));
    let (chip, apic, woken) = deadline_machine(clock.clone());
    drop(TimerThread::start(clock.clone(), vec![chip.clone()]).unwrap());
    let _thread = TimerThread::start(clock.clone(), vec![chip]).unwrap();
    for _ in 0..5 {
        apic.set_tsc_deadline(clock.guest_tsc() + 1_000_000);
        woken.recv().unwrap();
        assert_eq!(apic.acknowledge(), Some(0xec));
        apic.mmio_write(offset::EOI, 0);
    }
}

#[test]
fn fires_deadlines_set_while_it_sleeps() {
    let clock = Arc::new(HostClock::new(nanosecond_counter, Some(1_000_000_000)));
    let (chip, apic, woken) = deadline_machine(clock.clone());
    let _thread = TimerThread::start(clock.clone(), vec![chip]).unwrap();
    for _ in 0..20 {
        let deadline = clock.guest_tsc() + 1_000_000;
        apic.set_tsc_deadline(clock.guest_tsc() + 3_600_000_000_000);
        apic.set_tsc_deadline(deadline);
        woken.recv().unwrap();
        assert!(clock.guest_tsc() >= deadline);
        assert_eq!(apic.acknowledge(), Some(0xec));
        apic.mmio_write(offset::EOI, 0);
    }
}

/// Never due; counts how often the thread looks.
#[derive(Default)]
struct Idle {
    alarm: OnceLock<Arc<Alarm>>,
    deadline: AtomicU64,
    looks: AtomicUsize,
}

impl TimerSource for Idle {
    fn attach(&self, alarm: Arc<Alarm>) {
        self.alarm.set(alarm).unwrap();
    }
    fn next_deadline_ns(&self) -> Option<u64> {
        Some(self.deadline.load(Ordering::SeqCst))
    }
    fn run_timers(&self) {
        self.looks.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn later_deadlines_do_not_wake_it() {
    let clock = Arc::new(HostClock::new(nanosecond_counter, Some(1_000_000_000)));
    let source = Arc::new(Idle::default());
    let hour = 3_600_000_000_000;
    source.deadline.store(hour, Ordering::SeqCst);
    let thread = TimerThread::start(clock, vec![source.clone()]).unwrap();
    for later in 1..=1000 {
        source.deadline.store(hour + later, Ordering::SeqCst);
        source.alarm.get().unwrap().request(hour + later);
    }
    drop(thread);
    // The start, perhaps a deadline that moved while it looked, and requests before it slept.
    assert!(source.looks.load(Ordering::SeqCst) < 1000);
}

#[test]
fn stops_when_nothing_is_armed() {
    let clock = Arc::new(HostClock::new(nanosecond_counter, Some(1_000_000_000)));
    let chip = Irqchip::new(clock.clone());
    drop(TimerThread::start(clock, vec![chip]).unwrap());
}

#[test]
fn host_clock_measures_and_shifts() {
    HostClock::prepare(nanosecond_counter);
    let clock = HostClock::new(nanosecond_counter, None);
    let error = clock.tsc_hz().abs_diff(1_000_000_000);
    assert!(error < 10_000_000, "{} Hz", clock.tsc_hz());
    clock.set_guest_tsc(1 << 40);
    assert!(clock.guest_tsc() >= 1 << 40);
    let (now, tsc) = (clock.now_ns(), clock.guest_tsc());
    assert!(clock.tsc_to_ns(tsc + 1_000_000_000) > now);
    assert!(clock.tsc_to_ns(u64::MAX) > now);
}

//! One thread per VM that fires timers: it sleeps until the earliest deadline and wakes for nothing else.

use crate::sync::{lock, read, write};
use crate::Clock;
use std::fs;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// "No deadline" in an atomic that holds one.
pub(crate) const NEVER: u64 = u64::MAX;

/// Something with deadlines that a [`TimerThread`] serves.
pub trait TimerSource: Send + Sync {
    /// Remember whom to tell about deadlines, in place of a former one. Called before the thread looks
    /// at the deadlines for the first time.
    fn attach(&self, alarm: Arc<Alarm>);
    /// The earliest moment, in `Clock::now_ns` time, at which `run_timers` has something to do.
    fn next_deadline_ns(&self) -> Option<u64>;
    /// Fire everything that is due, and compute the next deadline.
    fn run_timers(&self);
}

/// Wakes the timer thread when a deadline comes earlier than the one it sleeps for.
///
/// Protocol (both sides sequentially consistent): a source publishes its deadline, then reads
/// `sleeping_until`; the thread publishes `sleeping_until`, then reads the deadlines again. One of
/// them sees the other, so that no deadline is missed and a later one costs two memory accesses.
#[derive(Debug)]
pub struct Alarm {
    sleeping_until: AtomicU64,
    stop: AtomicBool,
    rung: Mutex<bool>,
    bell: Condvar,
}

impl Alarm {
    /// An alarm whose thread is awake.
    fn new() -> Self {
        Self {
            sleeping_until: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            rung: Mutex::new(false),
            bell: Condvar::new(),
        }
    }

    /// Tell the thread of a deadline that has been published already. No system call unless
    /// the deadline is earlier than the one the thread sleeps for.
    pub fn request(&self, deadline_ns: u64) {
        if deadline_ns < self.sleeping_until.load(Ordering::SeqCst) {
            // Further requests find the thread "awake" until it looks at the deadlines again.
            self.sleeping_until.store(0, Ordering::SeqCst);
            self.ring();
        }
    }

    fn ring(&self) {
        *lock(&self.rung) = true;
        self.bell.notify_one();
    }

    /// Sleep until rung or for `timeout`, without limit when `None`.
    fn sleep(&self, timeout: Option<Duration>) {
        let mut rung = lock(&self.rung);
        if !*rung {
            rung = match timeout {
                None => self.bell.wait(rung).unwrap_or_else(PoisonError::into_inner),
                Some(limit) => self.bell.wait_timeout(rung, limit).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
        *rung = false;
    }
}

/// The thread. Stops and joins on drop. To serve other sources, drop it and start another.
pub struct TimerThread {
    alarm: Arc<Alarm>,
    thread: Option<JoinHandle<()>>,
}

impl TimerThread {
    /// Serve `sources` with deadlines of `clock`.
    ///
    /// # Errors
    /// The host refused another thread.
    pub fn start(clock: Arc<dyn Clock>, sources: Vec<Arc<dyn TimerSource>>) -> io::Result<Self> {
        let alarm = Arc::new(Alarm::new());
        for source in &sources {
            source.attach(alarm.clone());
        }
        let shared = alarm.clone();
        let thread =
            thread::Builder::new().name("timers".into()).spawn(move || serve(&*clock, &sources, &shared))?;
        Ok(Self { alarm, thread: Some(thread) })
    }
}

impl Drop for TimerThread {
    fn drop(&mut self) {
        self.alarm.stop.store(true, Ordering::SeqCst);
        self.alarm.ring();
        if let Some(thread) = self.thread.take() {
            // The last owner may be the thread itself; it cannot wait for its own end.
            if thread.thread().id() != thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}

/// The thread's loop.
fn serve(clock: &dyn Clock, sources: &[Arc<dyn TimerSource>], alarm: &Alarm) {
    let _ = ask_for_exact_timers();
    while !alarm.stop.load(Ordering::SeqCst) {
        for source in sources {
            source.run_timers();
        }
        let deadline = earliest(sources);
        alarm.sleeping_until.store(deadline, Ordering::SeqCst);
        if earliest(sources) >= deadline {
            sleep_until(clock, alarm, deadline);
        }
        alarm.sleeping_until.store(0, Ordering::SeqCst);
    }
}

fn earliest(sources: &[Arc<dyn TimerSource>]) -> u64 {
    sources.iter().filter_map(|source| source.next_deadline_ns()).min().unwrap_or(NEVER)
}

fn sleep_until(clock: &dyn Clock, alarm: &Alarm, deadline_ns: u64) {
    if deadline_ns == NEVER {
        return alarm.sleep(None);
    }
    let left = deadline_ns.saturating_sub(clock.now_ns());
    if left > 0 {
        alarm.sleep(Some(Duration::from_nanos(left)));
    }
}

/// Ask the kernel not to add its usual 50 us of slack to this thread's sleeps (proc(5), `timerslack_ns`).
fn ask_for_exact_timers() -> io::Result<()> {
    let task = fs::read_link("/proc/thread-self")?;
    match task.file_name() {
        Some(tid) => fs::write(std::path::Path::new("/proc").join(tid).join("timerslack_ns"), "1"),
        None => Ok(()),
    }
}

/// Where a source keeps the alarm of the thread that serves it; without one, deadlines wait for
/// somebody to call `run_timers`.
#[derive(Debug, Default)]
pub(crate) struct AlarmSlot(RwLock<Option<Arc<Alarm>>>);

impl AlarmSlot {
    pub(crate) fn attach(&self, alarm: Arc<Alarm>) {
        *write(&self.0) = Some(alarm);
    }

    pub(crate) fn request(&self, deadline_ns: u64) {
        if let Some(alarm) = read(&self.0).as_ref() {
            alarm.request(deadline_ns);
        }
    }
}

//! Ending `KVM_RUN` from another thread.
//!
//! Two things together leave no gap: `immediate_exit` in the vCPU's shared page makes the next
//! `KVM_RUN` return at once, a signal makes the current one return with `EINTR`. The signal is the
//! first real-time signal, from `SIGRTMIN` + 6 up, that nobody in the process handles; its handler
//! does nothing, and system calls that it interrupts elsewhere are restarted (`SA_RESTART`).

use crate::shared_page::SharedPage;
use std::cell::Cell;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use sublet_engine::{EngineError, Kick, Result};

/// The signals below are left to language runtimes and libraries, which take the lowest first.
const SKIPPED_REALTIME_SIGNALS: i32 = 6;

static SIGNAL: OnceLock<Option<i32>> = OnceLock::new();

thread_local! {
    /// Whether this thread lets the signal through.
    static UNBLOCKED: Cell<bool> = const { Cell::new(false) };
}

extern "C" fn do_nothing(_signal: i32) {}

/// Choose the signal and install its handler, once per process.
///
/// # Errors
/// `Unsupported` when every real-time signal is in use.
pub fn install() -> Result<()> {
    match SIGNAL.get_or_init(claim_signal) {
        Some(_) => Ok(()),
        None => Err(EngineError::Unsupported("every real-time signal of this process is in use".into())),
    }
}

fn claim_signal() -> Option<i32> {
    (libc::SIGRTMIN() + SKIPPED_REALTIME_SIGNALS..=libc::SIGRTMAX()).find(|signal| claim(*signal))
}

/// Install the empty handler for `signal` unless somebody handles it.
fn claim(signal: i32) -> bool {
    // SAFETY: zero bytes are a value of `sigaction`; both pointers are to live locals; the handler
    // is async-signal-safe, because it does nothing.
    unsafe {
        let mut current: libc::sigaction = std::mem::zeroed();
        if libc::sigaction(signal, std::ptr::null(), &mut current) != 0
            || current.sa_sigaction != libc::SIG_DFL
        {
            return false;
        }
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = do_nothing as extern "C" fn(i32) as usize;
        action.sa_flags = libc::SA_RESTART;
        libc::sigaction(signal, &action, std::ptr::null_mut()) == 0
    }
}

/// Let the signal through on this thread.
fn unblock() {
    if UNBLOCKED.replace(true) {
        return;
    }
    if let Some(Some(signal)) = SIGNAL.get() {
        // SAFETY: the set is a live local that `sigemptyset` initialises.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            libc::sigaddset(&mut set, *signal);
            libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut());
        }
    }
}

/// What a kick acts on; the vCPU and its kickers share it.
#[derive(Debug)]
pub struct Kicker(Mutex<Target>);

#[derive(Debug)]
struct Target {
    /// A kick waits to be answered.
    kicked: bool,
    /// The vCPU's shared page; `None` once the vCPU is gone.
    page: Option<SharedPage>,
    /// The thread inside `KVM_RUN`.
    thread: Option<libc::pthread_t>,
}

impl Kicker {
    /// A kicker of the vCPU with this shared page.
    pub fn new(page: SharedPage) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Target { kicked: false, page: Some(page), thread: None })))
    }

    fn target(&self) -> MutexGuard<'_, Target> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a kick came since the last call; answers it.
    pub fn take(&self) -> bool {
        let mut target = self.target();
        target.set_immediate_exit(false);
        std::mem::take(&mut target.kicked)
    }

    /// Run `enter`, which calls `KVM_RUN`, so that kicks reach this thread.
    pub fn interruptible<T>(&self, enter: impl FnOnce() -> T) -> T {
        unblock();
        // SAFETY: always succeeds.
        self.target().thread = Some(unsafe { libc::pthread_self() });
        let result = enter();
        self.target().thread = None;
        result
    }

    /// Run `enter`, which calls `KVM_RUN`, so that no guest code executes.
    pub fn without_guest_code<T>(&self, enter: impl FnOnce() -> T) -> T {
        self.target().set_immediate_exit(true);
        let result = enter();
        let target = self.target();
        target.set_immediate_exit(target.kicked);
        result
    }

    /// Make the current `KVM_RUN` return, or the next one; nobody outside the engine hears of it.
    pub fn nudge(&self) {
        self.target().interrupt();
    }

    /// The vCPU and its shared page go away.
    pub fn detach(&self) {
        self.target().page = None;
    }
}

impl Target {
    fn set_immediate_exit(&self, on: bool) {
        if let Some(page) = &self.page {
            page.set_immediate_exit(on);
        }
    }

    fn interrupt(&self) {
        self.set_immediate_exit(true);
        if let (Some(thread), Some(Some(signal))) = (self.thread, SIGNAL.get()) {
            // SAFETY: the thread is alive: it must take the lock, which we hold, to leave
            // `interruptible`.
            unsafe { libc::pthread_kill(thread, *signal) };
        }
    }
}

impl Kick for Kicker {
    fn kick(&self) {
        let mut target = self.target();
        target.kicked = true;
        target.interrupt();
    }
}

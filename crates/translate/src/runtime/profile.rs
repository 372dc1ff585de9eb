//! Where a guest spends its time: a timer on the vCPU's own processor time interrupts it, and what it was
//! in is counted by the guest address of the block.
//!
//! The signal handler only notes the host address and the page of the running block, and makes the vCPU
//! leave the cache at its next poll; there the note becomes a guest address, while the block that the
//! host address lies in still exists.

use super::vcpu::VcpuCore;
use crate::mode::Mode;
use crate::state::CpuState;
use std::cell::{Cell, UnsafeCell};
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Once;
use sublet_engine::{EngineError, ProfileSample, Result};

/// Notes between two polls, at most; the others are lost.
const MOST_NOTES: usize = 64;
/// Different places that are counted, at most: a guest decides how many there are.
const MOST_PLACES: usize = 1 << 18;
/// Fastest sampling.
const MOST_HERTZ: u32 = 10_000;

#[derive(Debug, Clone, Copy, Default)]
struct Note {
    pc: u64,
    rip_page: u64,
    rip: u64,
    cr3: u64,
    mode: u32,
}

/// What the handler writes and the vCPU, on the same thread, reads.
struct Notes {
    state: *const CpuState,
    cache: (u64, u64),
    count: AtomicUsize,
    notes: UnsafeCell<[Note; MOST_NOTES]>,
}

thread_local! {
    /// The notes of the vCPU that this thread runs.
    static CURRENT: Cell<*const Notes> = const { Cell::new(std::ptr::null()) };
}
static INSTALL: Once = Once::new();

/// A vCPU's profile while it is being taken.
pub struct Profile {
    hertz: u32,
    notes: Box<Notes>,
    timer: Option<ThreadTimer>,
    places: HashMap<(u64, u64, u8, bool), u64>,
}

// SAFETY: the pointers are to the vCPU that owns this; the notes are used by the thread that runs it.
unsafe impl Send for Profile {}

/// A timer that signals one thread, by that thread's processor time.
struct ThreadTimer {
    timer: libc::timer_t,
    thread: libc::pid_t,
}

impl Drop for ThreadTimer {
    fn drop(&mut self) {
        // SAFETY: the timer was made by `timer_create` and is deleted once.
        unsafe { libc::timer_delete(self.timer) };
    }
}

fn signal_number() -> i32 {
    libc::SIGRTMIN() + 7
}

extern "C" fn take_note(_signal: i32, _info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let notes = CURRENT.get();
    if notes.is_null() {
        return;
    }
    // SAFETY: the kernel passes a valid context; the notes live while they are this thread's current
    // ones, and are used by this thread alone, which stands in this handler; the state is that of the
    // vCPU which this thread runs, read without a reference to it.
    unsafe {
        let notes = &*notes;
        let count = notes.count.load(Ordering::Relaxed);
        let pc = (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs[libc::REG_RIP as usize] as u64;
        if count == MOST_NOTES {
            return;
        }
        let state = notes.state;
        (*notes.notes.get())[count] = Note {
            pc: if pc >= notes.cache.0 && pc < notes.cache.1 { pc } else { 0 },
            rip_page: std::ptr::addr_of!((*state).hot.rip_page).read_volatile(),
            rip: std::ptr::addr_of!((*state).rip).read_volatile(),
            cr3: std::ptr::addr_of!((*state).cr3).read_volatile(),
            mode: std::ptr::addr_of!((*state).hot.mode).read_volatile() as u32,
        };
        notes.count.store(count + 1, Ordering::Relaxed);
        (*state).hot.permit.store(0, Ordering::Relaxed);
    }
}

fn install() {
    // SAFETY: zero bytes are a value of `sigaction`; the handler has the signature that SA_SIGINFO asks for.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = take_note as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART | libc::SA_ONSTACK;
        libc::sigaction(signal_number(), &action, std::ptr::null_mut());
    }
}

impl ThreadTimer {
    /// A timer for the calling thread.
    fn start(hertz: u32) -> Option<Self> {
        let period = libc::timespec { tv_sec: 0, tv_nsec: i64::from(1_000_000_000 / hertz.max(2)) };
        let interval = libc::itimerspec { it_interval: period, it_value: period };
        // SAFETY: zero bytes are a value of `sigevent`; all pointers are to locals; results are checked.
        unsafe {
            let thread = libc::gettid();
            let mut event: libc::sigevent = std::mem::zeroed();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = signal_number();
            event.sigev_notify_thread_id = thread;
            let mut timer: libc::timer_t = std::mem::zeroed();
            if libc::timer_create(libc::CLOCK_THREAD_CPUTIME_ID, &mut event, &mut timer) != 0 {
                return None;
            }
            let made = Self { timer, thread };
            (libc::timer_settime(timer, 0, &interval, std::ptr::null_mut()) == 0).then_some(made)
        }
    }
}

/// The thread takes notes for this vCPU until dropped.
pub(super) struct TakingNotes;

impl Drop for TakingNotes {
    fn drop(&mut self) {
        CURRENT.set(std::ptr::null());
    }
}

impl VcpuCore {
    /// Sample `hertz` times a second of the vCPU's processor time, from the next `run` on.
    ///
    /// # Errors
    /// `Invalid` outside 1 to 10,000.
    pub(super) fn start_profile(&mut self, hertz: u32) -> Result<()> {
        if !(1..=MOST_HERTZ).contains(&hertz) {
            return Err(EngineError::Invalid(format!(
                "{hertz} samples a second: 1 to {MOST_HERTZ} can be had"
            )));
        }
        INSTALL.call_once(install);
        let notes = Box::new(Notes {
            state: &*self.cpu.state,
            cache: self.cache.host_range(),
            count: AtomicUsize::new(0),
            notes: UnsafeCell::new([Note::default(); MOST_NOTES]),
        });
        self.profile = Some(Profile { hertz, notes, timer: None, places: HashMap::new() });
        Ok(())
    }

    /// What was counted since the last call.
    pub(super) fn take_profile(&mut self) -> Vec<ProfileSample> {
        let places = self.profile.as_mut().map(|profile| std::mem::take(&mut profile.places));
        let sample =
            |((rip, cr3, cpl, translated), count)| ProfileSample { rip, cr3, cpl, translated, count };
        places.unwrap_or_default().into_iter().map(sample).collect()
    }

    /// Let this thread take notes, if a profile is wanted.
    pub(super) fn take_notes(&mut self) -> Option<TakingNotes> {
        let profile = self.profile.as_mut()?;
        // SAFETY: a system call without arguments.
        let thread = unsafe { libc::gettid() };
        if profile.timer.as_ref().map(|timer| timer.thread) != Some(thread) {
            profile.timer = ThreadTimer::start(profile.hertz);
        }
        CURRENT.set(&*profile.notes);
        Some(TakingNotes)
    }

    /// Count what was noted. Before translated code is dropped.
    pub(super) fn count_notes(&mut self) {
        let Some(profile) = self.profile.as_mut() else { return };
        let count = profile.notes.count.load(Ordering::Relaxed);
        if count == 0 {
            return;
        }
        // SAFETY: the handler runs on this thread only, and adds behind the count, where nothing is used
        // of this copy: a note taken before the count is set back is lost.
        let notes = unsafe { *profile.notes.notes.get() };
        profile.notes.count.store(0, Ordering::Relaxed);
        for note in &notes[..count] {
            let block = self.cache.locate(note.pc).map(|(id, _)| self.cache.block(id).gpa & 0xfff);
            let rip = block.map_or(note.rip, |offset| note.rip_page.wrapping_add(offset));
            let cpl = Mode(note.mode).cpl();
            let cr3 = if cpl == 3 { note.cr3 & !0xfff } else { 0 };
            let place = (rip, cr3, cpl, block.is_some());
            if profile.places.len() < MOST_PLACES || profile.places.contains_key(&place) {
                *profile.places.entry(place).or_default() += 1;
            }
        }
    }
}

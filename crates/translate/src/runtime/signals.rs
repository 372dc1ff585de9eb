//! Host signals raised by translated code: guest exceptions that the hardware found.
//!
//! Only instructions that the host executes on the guest's behalf can raise them here: a division
//! (SIGFPE, #DE), unmasked x87 and SIMD exceptions (SIGFPE, #MF and #XM), a misaligned SSE operand
//! (SIGSEGV from #GP), and an instruction that this host lacks (SIGILL, #UD). Anything outside the
//! code cache goes to whoever handled the signal before.

use super::entry;
use crate::state::{CpuState, STACK_TOP};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Once;

const SIGNALS: [i32; 4] = [libc::SIGSEGV, libc::SIGFPE, libc::SIGILL, libc::SIGBUS];
/// One for each vCPU of the process.
const MAX_CACHES: usize = 1024;

/// First and last address of every live code cache; 0 is a free slot.
static RANGES: [(AtomicU64, AtomicU64); MAX_CACHES] =
    [const { (AtomicU64::new(0), AtomicU64::new(0)) }; MAX_CACHES];
static INSTALL: Once = Once::new();
/// Handlers that were there before, by position in `SIGNALS`.
static PREVIOUS: [std::sync::OnceLock<libc::sigaction>; 4] = [const { std::sync::OnceLock::new() }; 4];

/// A code cache that the signal handlers know of; unknown again when dropped.
#[derive(Debug)]
pub struct Registration(usize);

/// Announce the code cache at `start .. end`; installs the handlers at the first call.
/// `None` when there are too many.
pub fn register(start: u64, end: u64) -> Option<Registration> {
    INSTALL.call_once(install);
    for (index, range) in RANGES.iter().enumerate() {
        if range.0.compare_exchange(0, start, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
            range.1.store(end, Ordering::SeqCst);
            return Some(Registration(index));
        }
    }
    None
}

impl Drop for Registration {
    fn drop(&mut self) {
        RANGES[self.0].1.store(0, Ordering::SeqCst);
        RANGES[self.0].0.store(0, Ordering::SeqCst);
    }
}

fn in_cache(pc: u64) -> bool {
    RANGES.iter().any(|(start, end)| {
        let start = start.load(Ordering::Relaxed);
        start != 0 && pc >= start && pc < end.load(Ordering::Relaxed)
    })
}

fn install() {
    for (index, &signal) in SIGNALS.iter().enumerate() {
        // SAFETY: zero bytes are a value of `sigaction`; the handler has the signature that
        // SA_SIGINFO asks for; results are checked.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            let mut previous: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
            if libc::sigaction(signal, &action, &mut previous) == 0 {
                let _ = PREVIOUS[index].set(previous);
            }
        }
    }
}

extern "C" fn handler(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid context for the duration of the handler.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let pc = registers[libc::REG_RIP as usize] as u64;
    if !in_cache(pc) {
        return chain(signal, info, context);
    }
    let register = |index: i32| registers[index as usize] as u64;
    let trap = register(libc::REG_TRAPNO);
    let is_page_fault = signal == libc::SIGSEGV && trap == PAGE_FAULT;
    let state = (register(libc::REG_RSP) - STACK_TOP as u64) as *mut CpuState;
    // SAFETY: `pc` is in a code cache, so that RSP is the running vCPU's (`runtime/entry.rs`).
    let hot = unsafe { std::ptr::addr_of_mut!((*state).hot) };
    // SAFETY: as above; translated code, which this handler interrupts, is what uses the state now.
    unsafe {
        (*hot).fault_pc = pc;
        (*hot).fault_vector = vector(trap);
        (*hot).fault_address = register(libc::REG_CR2);
        (*hot).fault_code = register(libc::REG_ERR);
    }
    let way_out = if is_page_fault { entry::page_fault() } else { entry::fault_exit() };
    registers[libc::REG_RIP as usize] = way_out as i64;
}

/// The trap number of a page fault, whose address and error code the kernel tells as well.
const PAGE_FAULT: u64 = 14;

/// `fault_vector` of a fault that no guest instruction can cause: the host lost a page that the
/// software TLBs hold (its memory ran out, or a bug of ours).
pub const HOST_FAULT: u64 = 0x100;

/// The guest's exception for a trap number, which the kernel takes from the processor's: #DE, #UD,
/// #GP (misaligned SSE operands), #MF and #XM stay what they are; #AC is the host's word on a split lock. A page
/// fault is never the guest's.
fn vector(trap: u64) -> u64 {
    match trap {
        0 | 6 | 13 | 16 | 17 | 19 => trap,
        _ => HOST_FAULT,
    }
}

fn chain(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let previous = SIGNALS.iter().position(|&other| other == signal).and_then(|index| PREVIOUS[index].get());
    let handler = previous.map_or(libc::SIG_DFL, |previous| previous.sa_sigaction);
    if handler == libc::SIG_DFL || handler == libc::SIG_IGN {
        // SAFETY: restores the default, under which the instruction faults again and ends the process.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    }
    // SAFETY: the address was registered by `sigaction` for this signal; SA_SIGINFO handlers take
    // three arguments and others ignore the two that follow the first.
    unsafe {
        let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) =
            std::mem::transmute(handler);
        handler(signal, info, context);
    }
}

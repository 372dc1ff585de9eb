//! What the vCPUs of a VM share, and how other threads reach a vCPU.

use super::signals;
use crate::cache::{CodeCache, CodeMemory};
use crate::emit::{Assembler, Host};
use crate::state::{CpuState, HotState};
use std::mem::offset_of;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;
use sublet_engine::{EngineError, Result};
use sublet_irq::Waker;
use sublet_memory::{CodeWatcher, GuestMemory};

/// Bytes of translated code a VM may have.
const CACHE_BYTES: usize = 128 << 20;

/// Lock, also after a panic elsewhere: the data is counters and caches that stay consistent.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a vCPU can be asked for from other threads.
#[derive(Debug, Default)]
pub struct Requests {
    /// Points at `HotState::permit` while the vCPU exists.
    permit: Mutex<Option<PermitPointer>>,
    /// `run` is to return `Exit::Interrupted`.
    pub kicked: AtomicBool,
    /// Memslots or the dirty log changed: nothing cached holds.
    pub flush: AtomicBool,
    /// Blocks were dropped by another thread.
    pub jumps: AtomicBool,
    rest: Mutex<Rest>,
    bell: Condvar,
}

/// Between a vCPU that sleeps and those who wake it.
#[derive(Debug, Default)]
struct Rest {
    woken: bool,
    sleeping: bool,
}

#[derive(Debug)]
struct PermitPointer(*const AtomicU64);
// SAFETY: the pointee is atomic, and `Requests::detach` removes the pointer before it goes.
unsafe impl Send for PermitPointer {}

impl Requests {
    /// Say where the permit is. It must stay there until [`Self::detach`].
    pub fn attach(&self, permit: *const AtomicU64) {
        *lock(&self.permit) = Some(PermitPointer(permit));
    }

    /// The permit is about to go.
    pub fn detach(&self) {
        *lock(&self.permit) = None;
    }

    /// Make the vCPU look at its requests and interrupts soon.
    pub fn attention(&self) {
        if let Some(permit) = lock(&self.permit).as_ref() {
            // SAFETY: `attach` promised that the permit is there until `detach`, which waits for
            // the lock held here.
            unsafe { &*permit.0 }.store(0, Ordering::SeqCst);
        }
        let mut rest = lock(&self.rest);
        rest.woken = true;
        // A notification is a system call; a vCPU that is awake looks at `woken` before it sleeps.
        if rest.sleeping {
            self.bell.notify_one();
        }
    }

    /// Sleep until [`Self::attention`], or for `limit`.
    pub fn sleep(&self, limit: Option<Duration>) {
        let mut rest = lock(&self.rest);
        rest.sleeping = true;
        while !rest.woken {
            match limit {
                None => rest = self.bell.wait(rest).unwrap_or_else(PoisonError::into_inner),
                Some(limit) => {
                    rest = self.bell.wait_timeout(rest, limit).unwrap_or_else(PoisonError::into_inner).0;
                    break;
                }
            }
        }
        *rest = Rest::default();
    }
}

impl Waker for Requests {
    fn wake(&self) {
        self.attention();
    }
}

impl sublet_engine::Kick for Requests {
    fn kick(&self) {
        self.kicked.store(true, Ordering::SeqCst);
        self.attention();
    }
}

/// Translated code and the vCPUs that run it.
pub struct Shared {
    /// Guest memory.
    pub memory: Arc<GuestMemory>,
    /// All translated code.
    pub cache: Mutex<CodeCache>,
    /// The vCPUs, by index.
    pub vcpus: RwLock<Vec<Arc<Requests>>>,
    _registration: signals::Registration,
}

impl Shared {
    /// An empty VM's shared part.
    ///
    /// # Errors
    /// The host refuses executable memory, or too many VMs live in this process.
    pub fn new(memory: Arc<GuestMemory>) -> Result<Arc<Self>> {
        let code = CodeMemory::new(CACHE_BYTES).map_err(|error| EngineError::Host {
            what: "mapping the code cache".into(),
            errno: error.raw_os_error().unwrap_or(libc::ENOMEM),
        })?;
        let cache = CodeCache::new(code, &dead_stub());
        let host_range = cache.host_range();
        let registration = signals::register(host_range.0, host_range.1)
            .ok_or_else(|| EngineError::Invalid("too many virtual machines in one process".into()))?;
        let shared = Arc::new(Self {
            memory: memory.clone(),
            cache: Mutex::new(cache),
            vcpus: RwLock::new(Vec::new()),
            _registration: registration,
        });
        memory.set_code_watcher(Arc::new(Watcher(Arc::downgrade(&shared))));
        Ok(shared)
    }

    /// Make every vCPU drop what it cached of memslots and page tables.
    pub fn flush_all_vcpus(&self) {
        for vcpu in self.vcpus.read().unwrap_or_else(PoisonError::into_inner).iter() {
            vcpu.flush.store(true, Ordering::SeqCst);
            vcpu.attention();
        }
    }

    /// Drop blocks that cover bytes about to change.
    pub fn code_written(&self, gpa: u64, size: u64) {
        let mut cache = lock(&self.cache);
        cache.invalidate(gpa, size);
        if !cache.page_has_code(gpa & !0xfff) {
            self.memory.mark_code_page(gpa, false);
        }
    }
}

struct Watcher(std::sync::Weak<Shared>);

impl CodeWatcher for Watcher {
    fn code_written(&self, gpa: u64, size: u64) {
        if let Some(shared) = self.0.upgrade() {
            shared.code_written(gpa, size);
        }
    }
}

/// What a dropped block's entry jumps to: an indirect exit. Only jump caches still lead there, and
/// a jump through them has the target in R14.
fn dead_stub() -> Vec<u8> {
    let hot = |field: usize| (offset_of!(CpuState, hot) + field) as i32;
    let mut asm = Assembler::default();
    asm.store(hot(offset_of!(HotState, target)), Host::R14);
    asm.store_immediate(hot(offset_of!(HotState, dead_entry)), 1);
    asm.jump_gs(hot(offset_of!(HotState, exit_indirect)));
    asm.code
}

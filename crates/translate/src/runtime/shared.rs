//! What the vCPUs of a VM share, and how other threads reach a vCPU.

use super::signals;
use crate::cache::{CodeCache, CodeMemory};
use crate::emit::{Assembler, Host};
use crate::state::{CpuState, HotState};
use std::cell::Cell;
use std::mem::offset_of;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;
use sublet_engine::{EngineError, Result};
use sublet_irq::Waker;
use sublet_memory::{CodeWatcher, GuestMemory, Memslot};

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
    /// Memslots or the dirty log changed: no host address holds.
    pub flush: AtomicBool,
    /// With `flush`: guest-physical addresses may hold other code now.
    pub remapped: AtomicBool,
    /// Devices stored into pages with code: `Shared::take_stores` has where.
    pub stores: AtomicBool,
    /// `run` is active.
    pub running: AtomicBool,
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

/// Guest-physical runs of bytes: address and size.
type Runs = Vec<(u64, u64)>;
/// More device stores into code than this are taken as one of everything.
const MAX_STORES: usize = 1024;

thread_local! {
    /// The VM whose vCPU this thread runs: its stores take effect at once.
    static RUNNING_VM: Cell<*const Shared> = const { Cell::new(std::ptr::null()) };
}

/// Marks this thread as running a vCPU until dropped.
pub struct OnThread(*const Shared);

impl OnThread {
    /// This thread runs a vCPU of `shared` from now on.
    pub fn enter(shared: &Shared) -> Self {
        Self(RUNNING_VM.replace(shared))
    }
}

impl Drop for OnThread {
    fn drop(&mut self) {
        RUNNING_VM.set(self.0);
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
    /// Stores by devices into pages with code, for the vCPU to act on.
    stores: Mutex<Runs>,
    /// The memslots that vCPUs may hold addresses of: their RAM stays mapped while listed here.
    held: Mutex<Vec<Arc<Vec<Arc<Memslot>>>>>,
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
            stores: Mutex::new(Vec::new()),
            held: Mutex::new(Vec::new()),
            _registration: registration,
        });
        memory.set_code_watcher(Arc::new(Watcher(Arc::downgrade(&shared))));
        Ok(shared)
    }

    /// Make every vCPU drop what it cached of memslots and page tables (and code, if
    /// memory was `remapped`), and wait until those
    /// that run have done so. Only then is the RAM of slots that are gone unmapped.
    pub fn flush_all_vcpus(&self, remapped: bool) {
        lock(&self.held).push(self.memory.slots());
        let vcpus = self.vcpus.read().unwrap_or_else(PoisonError::into_inner);
        for vcpu in vcpus.iter() {
            vcpu.remapped.fetch_or(remapped, Ordering::SeqCst);
            vcpu.flush.store(true, Ordering::SeqCst);
            vcpu.attention();
        }
        let mine = RUNNING_VM.get() == std::ptr::from_ref(self);
        for vcpu in vcpus.iter().filter(|_| !mine) {
            while vcpu.running.load(Ordering::SeqCst) && vcpu.flush.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_micros(20));
            }
        }
        let idle = vcpus.iter().all(|vcpu| !vcpu.running.load(Ordering::SeqCst));
        if idle || vcpus.iter().all(|vcpu| !vcpu.flush.load(Ordering::SeqCst)) {
            // A vCPU that does not run flushes before it does.
            self.release_old_slots();
        }
    }

    /// No vCPU holds addresses of slots that are gone.
    pub fn release_old_slots(&self) {
        let mut held = lock(&self.held);
        let keep = held.len().saturating_sub(1);
        held.drain(..keep);
    }

    /// Bytes have changed: drop the blocks made of them. Stores by other threads are left to the
    /// vCPU, which may be inside such a block; it looks before it takes an interrupt, at every
    /// back-edge and at every branch to another page.
    pub fn code_written(&self, gpa: u64, size: u64) {
        if RUNNING_VM.get() == std::ptr::from_ref(self) {
            return self.drop_code(gpa, size);
        }
        let mut stores = lock(&self.stores);
        if stores.len() >= MAX_STORES {
            stores.clear();
            stores.push((0, u64::MAX));
        } else {
            stores.push((gpa, size));
        }
        drop(stores);
        for vcpu in self.vcpus.read().unwrap_or_else(PoisonError::into_inner).iter() {
            vcpu.stores.store(true, Ordering::SeqCst);
            vcpu.attention();
        }
    }

    /// Act on the stores that devices made. Returns whether all code has to go.
    pub fn take_stores(&self) -> bool {
        let stores = std::mem::take(&mut *lock(&self.stores));
        for &(gpa, size) in stores.iter().filter(|store| store.1 != u64::MAX) {
            self.drop_code(gpa, size);
        }
        stores.iter().any(|store| store.1 == u64::MAX)
    }

    fn drop_code(&self, gpa: u64, size: u64) {
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

//! What the vCPUs of a VM share.
//!
//! Translated code is not among it: each vCPU has its own cache, which no other thread touches. What
//! they share is guest memory and the marks of its pages that hold code (see
//! `docs/theory/concurrency.md`).

use super::exclusive::Exclusive;
use super::requests::Requests;
use crate::cache::Store;
use crate::optimisations::{Optimisation, Optimisations};
use std::cell::Cell;
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};
use sublet_engine::{EngineError, Result};
use sublet_memory::{CodeMark, CodeWatcher, GuestMemory, Memslot};

/// Most vCPUs of a VM: a page's marks have a bit for each.
pub const MAX_VCPUS: usize = 64;
/// Bytes of translated code that the vCPUs of a VM may have together.
const CACHE_BYTES: usize = 512 << 20;
/// Bytes of translated code that a vCPU may have: at most, and at least.
pub const CACHE_SHARE: (usize, usize) = (16 << 20, 128 << 20);

/// How long a running vCPU may take to answer. It answers between two blocks: after microseconds, unless the
/// host keeps its thread from a processor, or it hangs by a bug of ours.
const FLUSH_LIMIT: Duration = Duration::from_secs(10);

/// Lock, also after a panic elsewhere: the data is counters and caches that stay consistent.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

thread_local! {
    /// The VM and the number of the vCPU that this thread runs.
    static RUNNING: Cell<(*const Shared, u32)> = const { Cell::new((std::ptr::null(), 0)) };
}

/// Marks this thread as running a vCPU until dropped.
pub struct OnThread((*const Shared, u32));

impl OnThread {
    /// This thread runs vCPU `number` of `shared` from now on.
    pub fn enter(shared: &Shared, number: u32) -> Self {
        Self(RUNNING.replace((shared, number)))
    }
}

impl Drop for OnThread {
    fn drop(&mut self) {
        RUNNING.set(self.0);
    }
}

/// Pages that have become code and may still be stored to unseen.
#[derive(Debug, Default)]
struct Protections {
    /// Number of the last one.
    last: u64,
    /// The protection of each such page, by host address.
    pages: HashMap<u64, u64>,
}

/// What the vCPUs of a VM share.
pub struct Shared {
    /// Guest memory.
    pub memory: Arc<GuestMemory>,
    /// The vCPUs, by number: the order in which they were made.
    pub vcpus: RwLock<Vec<Arc<Requests>>>,
    /// For a vCPU that has to run alone for a moment.
    pub exclusive: Exclusive,
    /// Held while a page's first mark is set and the other vCPUs are told.
    protections: Mutex<Protections>,
    /// The memslots that vCPUs may hold addresses of: their RAM stays mapped while listed here.
    held: Mutex<Vec<Arc<Vec<Arc<Memslot>>>>>,
    /// Bytes of translated code that a vCPU may have in any case.
    cache_limit: usize,
    /// What translation does for speed.
    pub optimisations: Optimisations,
    /// Translations that vCPUs take from each other.
    store: Store,
}

impl Shared {
    /// An empty VM's shared part. No vCPU may have more than `cache_limit` bytes of translated code.
    pub fn new(memory: Arc<GuestMemory>, cache_limit: usize, optimisations: Optimisations) -> Arc<Self> {
        let shared = Arc::new(Self {
            memory: memory.clone(),
            vcpus: RwLock::new(Vec::new()),
            exclusive: Exclusive::default(),
            protections: Mutex::default(),
            held: Mutex::new(Vec::new()),
            cache_limit,
            optimisations,
            store: Store::default(),
        });
        memory.set_code_watcher(Arc::new(Watcher(Arc::downgrade(&shared))));
        shared
    }

    /// Add a vCPU; returns its number.
    ///
    /// # Errors
    /// There are [`MAX_VCPUS`] already.
    pub fn add_vcpu(&self, requests: Arc<Requests>) -> Result<u32> {
        let protections = lock(&self.protections);
        let mut vcpus = self.vcpus.write().unwrap_or_else(PoisonError::into_inner);
        if vcpus.len() == MAX_VCPUS {
            return Err(EngineError::Invalid(format!("a machine has at most {MAX_VCPUS} vCPUs")));
        }
        // It holds no address yet.
        requests.protected.store(protections.last, Ordering::SeqCst);
        vcpus.push(requests);
        Ok(vcpus.len() as u32 - 1)
    }

    /// The store of translations, unless nobody would take from it.
    pub fn store(&self) -> Option<&Store> {
        let wanted = self.optimisations.has(Optimisation::SharedTranslations);
        let vcpus = self.vcpus.read().unwrap_or_else(PoisonError::into_inner).len();
        (wanted && vcpus > 1).then_some(&self.store)
    }

    /// Bytes of translated code that each vCPU may have.
    pub fn cache_share(&self) -> usize {
        let vcpus = self.vcpus.read().unwrap_or_else(PoisonError::into_inner).len();
        (CACHE_BYTES / vcpus.max(1)).clamp(CACHE_SHARE.0, CACHE_SHARE.1).min(self.cache_limit)
    }

    /// Make every vCPU drop what it cached of memslots and page tables (and code, if
    /// memory was `remapped`), and wait until those
    /// that run have done so. Only then is the RAM of slots that are gone unmapped.
    ///
    /// # Errors
    /// `Internal` when one has not within [`FLUSH_LIMIT`]: it hangs. Everything stays mapped then, and its
    /// flush stays asked for.
    pub fn flush_all_vcpus(&self, remapped: bool) -> Result<()> {
        self.flush_within(remapped, FLUSH_LIMIT)
    }

    fn flush_within(&self, remapped: bool, limit: Duration) -> Result<()> {
        lock(&self.held).push(self.memory.slots());
        let vcpus = self.vcpus.read().unwrap_or_else(PoisonError::into_inner);
        for vcpu in vcpus.iter() {
            vcpu.remapped.fetch_or(remapped, Ordering::SeqCst);
            vcpu.flush.store(true, Ordering::SeqCst);
            vcpu.interrupt();
        }
        let mine = RUNNING.get().0 == std::ptr::from_ref(self);
        let started = Instant::now();
        for (number, vcpu) in vcpus.iter().enumerate().filter(|_| !mine) {
            while vcpu.active.load(Ordering::SeqCst) && vcpu.flush.load(Ordering::SeqCst) {
                if started.elapsed() > limit {
                    return Err(EngineError::Internal(format!("virtual CPU {number} does not answer")));
                }
                std::thread::sleep(Duration::from_micros(20));
            }
        }
        // A vCPU that is not active flushes before it is.
        if vcpus.iter().all(|vcpu| !vcpu.active.load(Ordering::SeqCst) || !vcpu.flush.load(Ordering::SeqCst))
        {
            self.release_old_slots();
        }
        Ok(())
    }

    /// No vCPU holds addresses of slots that are gone.
    fn release_old_slots(&self) {
        let mut held = lock(&self.held);
        let keep = held.len().saturating_sub(1);
        held.drain(..keep);
    }

    /// vCPU `number` is about to translate code of the page of `gpa`: while it keeps the mark it hears of
    /// stores there. Also returns the protection to wait for: until then stores may go unheard.
    /// `None` where there is no RAM.
    pub fn mark_code(&self, number: u32, gpa: u64) -> Option<(CodeMark, u64)> {
        let mut protections = lock(&self.protections);
        let (mark, before) = self.memory.mark_code_page(gpa, number)?;
        if before != 0 {
            let ticket = protections.pages.get(&mark.host_page()).copied().unwrap_or(0);
            return Some((mark, ticket));
        }
        let vcpus = self.vcpus.read().unwrap_or_else(PoisonError::into_inner);
        protections.last += 1;
        let ticket = protections.last;
        protections.pages.retain(|_, ticket| !all_protected(&vcpus, *ticket));
        protections.pages.insert(mark.host_page(), ticket);
        for (other, vcpu) in vcpus.iter().enumerate() {
            vcpu.post_protection(mark.host_page(), ticket);
            if other != number as usize {
                vcpu.interrupt();
            }
        }
        Some((mark, ticket))
    }

    /// Whether no store by a vCPU to the page of protection `ticket` goes unheard any more.
    pub fn is_protected(&self, ticket: u64) -> bool {
        all_protected(&self.vcpus.read().unwrap_or_else(PoisonError::into_inner), ticket)
    }

    /// Bytes have changed that the vCPUs in `marks` have code of. The vCPU that this thread runs looks
    /// before it goes on; the others, which may be inside such a block, before they take an interrupt,
    /// at every back-edge and at every branch to another page.
    fn code_written(&self, gpa: u64, size: u64, marks: u64) {
        let (vm, mine) = RUNNING.get();
        let vcpus = self.vcpus.read().unwrap_or_else(PoisonError::into_inner);
        for (number, vcpu) in vcpus.iter().enumerate().filter(|(number, _)| marks >> number & 1 != 0) {
            vcpu.post_store(gpa, size);
            if vm != std::ptr::from_ref(self) || number != mine as usize {
                vcpu.interrupt();
            }
        }
    }
}

fn all_protected(vcpus: &[Arc<Requests>], ticket: u64) -> bool {
    vcpus.iter().all(|vcpu| vcpu.has_protected(ticket))
}

struct Watcher(std::sync::Weak<Shared>);

impl CodeWatcher for Watcher {
    fn code_written(&self, gpa: u64, size: u64, vcpus: u64) {
        if let Some(shared) = self.0.upgrade() {
            shared.code_written(gpa, size, vcpus);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{Ordering, Requests, Shared};
    use crate::optimisations::Optimisations;
    use std::sync::Arc;
    use std::time::Duration;
    use sublet_engine::EngineError;
    use sublet_memory::GuestMemory;

    #[test]
    fn a_vcpu_that_hangs_is_not_waited_for_without_end() {
        let shared = Shared::new(Arc::new(GuestMemory::new()), 1 << 20, Optimisations::ALL);
        let hung = Arc::new(Requests::default());
        shared.add_vcpu(Arc::default()).unwrap();
        shared.add_vcpu(hung.clone()).unwrap();
        assert!(shared.flush_within(true, Duration::ZERO).is_ok());
        hung.active.store(true, Ordering::SeqCst);
        let answer = shared.flush_within(true, Duration::ZERO);
        assert!(matches!(answer, Err(EngineError::Internal(text)) if text.contains("virtual CPU 1")));
    }
}

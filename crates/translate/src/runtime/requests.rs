//! What a vCPU is asked for by other threads.
//!
//! Whoever asks first leaves word here, then zeroes the vCPU's permit; the vCPU first sets its
//! permit, then looks here. Both in sequentially consistent order, so that nothing is overlooked.

use super::shared::lock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;
use sublet_irq::Waker;

/// More stores into code than this are taken as one of everything.
const MAX_STORES: usize = 1024;
/// More pages than this are taken as all pages.
const MAX_PAGES: usize = 256;

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
    /// There are stores to take.
    pub stores_wait: AtomicBool,
    /// There are protections to take.
    pub protections_wait: AtomicBool,
    /// The vCPU may be running guest code. While clear (outside `run`, in HLT, waiting for a start-up
    /// IPI) it holds no address in use, and takes all requests before it runs guest code.
    pub active: AtomicBool,
    /// The last protection that has taken effect.
    pub protected: AtomicU64,
    inbox: Mutex<Inbox>,
    rest: Mutex<Rest>,
    bell: Condvar,
}

/// Word left for the vCPU.
#[derive(Debug, Default)]
struct Inbox {
    stores: Stores,
    protections: Protections,
}

/// Stores into pages that the vCPU has code of.
#[derive(Debug, Default)]
pub struct Stores {
    /// Guest-physical address and size, each within one page.
    pub runs: Vec<(u64, u64)>,
    /// There were too many to list: any byte may have changed.
    pub everywhere: bool,
}

/// Pages that stores must no longer reach unseen.
#[derive(Debug, Default)]
pub struct Protections {
    /// Host addresses.
    pub pages: Vec<u64>,
    /// There were too many to list.
    pub all: bool,
    /// The number of the last one.
    pub ticket: u64,
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

    /// Make the vCPU look at its requests before it runs much more guest code. One that sleeps goes on sleeping.
    pub fn interrupt(&self) {
        if let Some(permit) = lock(&self.permit).as_ref() {
            // SAFETY: `attach` promised that the permit is there until `detach`, which waits for
            // the lock held here.
            unsafe { &*permit.0 }.store(0, Ordering::SeqCst);
        }
    }

    /// Make the vCPU look at its requests and interrupts soon, also in its sleep.
    pub fn attention(&self) {
        self.interrupt();
        let sleeping = {
            let mut rest = lock(&self.rest);
            rest.woken = true;
            rest.sleeping
        };
        // A notification is a system call; a vCPU that is awake looks at `woken` before it sleeps. The lock
        // is let go of first: who wakes with it held finds it taken, and sleeps again.
        if sleeping {
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

    /// Bytes that the vCPU has code of have changed. The vCPU is to be interrupted unless it is the
    /// caller's own.
    pub fn post_store(&self, gpa: u64, size: u64) {
        let mut inbox = lock(&self.inbox);
        if inbox.stores.runs.len() >= MAX_STORES {
            inbox.stores.everywhere = true;
        } else {
            inbox.stores.runs.push((gpa, size));
        }
        self.stores_wait.store(true, Ordering::SeqCst);
    }

    /// Any byte may have changed.
    pub fn post_everywhere(&self) {
        let mut inbox = lock(&self.inbox);
        inbox.stores.everywhere = true;
        self.stores_wait.store(true, Ordering::SeqCst);
    }

    /// What has been posted by [`Self::post_store`] since the last call.
    pub fn take_stores(&self) -> Stores {
        let mut inbox = lock(&self.inbox);
        self.stores_wait.store(false, Ordering::SeqCst);
        std::mem::take(&mut inbox.stores)
    }

    /// The vCPU is to store to the page at host address `page` where that is seen, from protection
    /// `ticket` on; `protected` says when it does.
    pub fn post_protection(&self, page: u64, ticket: u64) {
        let mut inbox = lock(&self.inbox);
        let protections = &mut inbox.protections;
        if protections.pages.len() >= MAX_PAGES {
            protections.all = true;
        } else {
            protections.pages.push(page);
        }
        protections.ticket = ticket;
        self.protections_wait.store(true, Ordering::SeqCst);
    }

    /// What has been posted by [`Self::post_protection`] since the last call.
    pub fn take_protections(&self) -> Protections {
        let mut inbox = lock(&self.inbox);
        self.protections_wait.store(false, Ordering::SeqCst);
        std::mem::take(&mut inbox.protections)
    }

    /// Whether no store of this vCPU reaches the page of protection `ticket` unseen any more.
    pub fn has_protected(&self, ticket: u64) -> bool {
        !self.active.load(Ordering::SeqCst) || self.protected.load(Ordering::SeqCst) >= ticket
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

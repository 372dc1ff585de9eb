//! Keeping translated code like the bytes it was made of (see `docs/theory/concurrency.md`).
//!
//! A store to a page that this vCPU has code of is posted to it, once every vCPU knows that the page is
//! code. Until then it may happen unheard, so that the page is *unconfirmed*: its bytes are kept as they
//! were read, and compared wherever the architecture lets a program see what another processor has
//! stored into code.

use super::blocks::PAGE;
use super::requests::Stores;
use super::vcpu::VcpuCore;
use crate::cache::Home;
use std::sync::atomic::Ordering;
use std::time::Instant;
use sublet_memory::CodeMark;

/// More unconfirmed pages than this are not kept: all code goes.
const MAX_UNCONFIRMED: usize = 256;

/// A page that this vCPU hears of stores to.
pub(super) struct Marked {
    _mark: CodeMark,
    /// The guest-physical addresses at which code of it was read.
    pages: Vec<u64>,
}

/// A page that stores may reach unheard.
pub(super) struct Unconfirmed {
    /// Guest-physical address; the page may have others.
    page: u64,
    /// Host address.
    host: u64,
    /// What to wait for, see `Shared::is_protected`.
    ticket: u64,
    /// The bytes that blocks were made of.
    bytes: Box<[u8; PAGE]>,
}

impl VcpuCore {
    /// Read up to `size` bytes of the code at `gpa`, to the end of the page at most, into the buffer `which`
    /// at their offset in the page. Stores there are heard of from now on.
    pub(super) fn fetch_code(&mut self, gpa: u64, size: usize, which: usize) {
        let start = (gpa & 0xfff) as usize;
        let range = start..(start + size).min(PAGE);
        let page = gpa & !0xfff;
        let home = self.home_now(page);
        self.cache.read_from(page, home);
        let Some(Home { host, .. }) = home else {
            // No memory answers: the bus floats.
            return self.fetched[which][range].fill(0xff);
        };
        match self.marks.get_mut(&host) {
            Some(marked) if marked.pages.contains(&page) => {}
            Some(marked) => marked.pages.push(page),
            None => self.mark_page(page, host),
        }
        if let Some(place) = self.unconfirmed.iter().position(|other| other.host == host) {
            self.compare(place);
            let bytes = &self.unconfirmed[place].bytes;
            return self.fetched[which][range.clone()].copy_from_slice(&bytes[range]);
        }
        // The page is RAM: it has just been found.
        let _ = self.cpu.memory.read(gpa, &mut self.fetched[which][range]);
    }

    /// What is at a guest page's address.
    fn home_now(&self, page: u64) -> Option<Home> {
        self.cpu.memory.host_page(page).map(|page| Home { slot: page.slot, host: page.host as u64 })
    }

    /// Memslots have changed: drop the code of pages that are others now.
    pub(super) fn follow_memslots(&mut self) {
        if !self.unconfirmed.is_empty() {
            // They are compared by their addresses.
            return self.clear_code();
        }
        let memory = &self.cpu.memory;
        self.cache.follow(|page| {
            memory.host_page(page).map(|page| Home { slot: page.slot, host: page.host as u64 })
        });
        let cache = &self.cache;
        self.marks.retain(|_, marked| marked.pages.iter().any(|&page| cache.page_has_code(page)));
    }

    /// From now on hear of stores to a page.
    fn mark_page(&mut self, page: u64, host: u64) {
        let Some((mark, ticket)) = self.shared.mark_code(self.number, page) else { return };
        self.marks.insert(host, Marked { _mark: mark, pages: vec![page] });
        self.tlb.protect_host_page(&mut self.cpu.state.hot, host);
        // No host address is in use here, between two blocks.
        self.take_protections();
        if self.shared.is_protected(ticket) {
            return;
        }
        let mut bytes = Box::new([0xff; PAGE]);
        if self.cpu.memory.read(page, &mut bytes[..]).is_ok() {
            self.counters.unconfirmed += 1;
            self.unconfirmed.push(Unconfirmed { page, host, ticket, bytes });
        }
    }

    /// Drop the code of unconfirmed pages that is no longer like its bytes, and confirm those that can be.
    pub(super) fn confirm_code(&mut self) {
        let mut place = 0;
        while place < self.unconfirmed.len() {
            // Asked before the comparison, which then sees every store that went unheard.
            let protected = self.shared.is_protected(self.unconfirmed[place].ticket);
            self.compare(place);
            if protected {
                let page = self.unconfirmed.swap_remove(place).page;
                self.release_page(page);
            } else {
                place += 1;
            }
        }
    }

    /// Compare an unconfirmed page with memory: blocks of bytes that differ go.
    fn compare(&mut self, place: usize) {
        let mut now = [0; PAGE];
        let page = self.unconfirmed[place].page;
        if self.cpu.memory.read(page, &mut now).is_err() {
            return;
        }
        let then = &mut self.unconfirmed[place].bytes;
        let differs = |at: &usize| now[*at] != then[*at];
        let Some(first) = (0..PAGE).find(differs).filter(|_| now != **then) else { return };
        let last = (0..PAGE).rfind(differs).unwrap_or(first);
        **then = now;
        self.counters.unheard += 1;
        for alias in self.cpu.memory.aliases(page + first as u64) {
            self.cache.invalidate(alias, (last - first) as u64 + 1);
        }
    }

    /// Drop the blocks that cover bytes of `gpa .. gpa + size` (within one page). Returns whether there were any.
    pub(super) fn drop_code(&mut self, gpa: u64, size: u64) -> bool {
        let dropped = self.cache.invalidate(gpa, size);
        if dropped {
            self.release_page(gpa & !0xfff);
        }
        dropped
    }

    /// Stop hearing of stores to a page that holds no more code.
    pub(super) fn release_page(&mut self, page: u64) {
        let Some(Home { host, .. }) = self.cache.home(page) else { return };
        let Some(marked) = self.marks.get(&host) else { return };
        if !marked.pages.iter().any(|&page| self.cache.page_has_code(page)) {
            self.unconfirmed.retain(|other| other.host != host);
            self.marks.remove(&host);
        }
    }

    /// Drop all translated code.
    pub(super) fn clear_code(&mut self) {
        let started = Instant::now();
        self.count_notes();
        self.cache.clear();
        self.unconfirmed.clear();
        self.marks.clear();
        self.tlb.clear_jumps(&mut self.cpu.state.hot);
        let took = started.elapsed().as_micros() as u64;
        self.counters.longest_clear_us = self.counters.longest_clear_us.max(took);
    }

    /// Act on stores into this vCPU's code. Between two blocks.
    pub(super) fn take_stores(&mut self) {
        if self.requests.stores_wait.load(Ordering::SeqCst) {
            let stores = self.requests.take_stores();
            self.drop_stored(&stores);
            if stores.everywhere {
                self.clear_code();
            }
        }
        if self.unconfirmed.len() > MAX_UNCONFIRMED || self.tlb.generations_over {
            self.tlb.generations_over = false;
            self.clear_code();
        }
    }

    /// The same inside a block, whose host code must stay. Returns whether it may be one of those to drop.
    pub(super) fn take_stores_inside(&mut self, pc: u64) -> bool {
        if !self.requests.stores_wait.load(Ordering::SeqCst) {
            return false;
        }
        let stores = self.requests.take_stores();
        let dropped = self.drop_stored(&stores);
        if stores.everywhere {
            self.requests.post_everywhere();
        }
        stores.everywhere || (dropped && self.running_block_is_dead(pc))
    }

    /// Returns whether any block was among what was stored to.
    fn drop_stored(&mut self, stores: &Stores) -> bool {
        stores.runs.iter().fold(false, |dropped, &(gpa, size)| self.drop_code(gpa, size) || dropped)
    }

    fn running_block_is_dead(&self, pc: u64) -> bool {
        self.cache.locate(pc - 1).is_none_or(|(id, _)| !self.cache.block(id).alive)
    }

    /// Make stores to pages that have become code take the slow path. Only where no host address is in use:
    /// between two blocks.
    pub(super) fn take_protections(&mut self) {
        if !self.requests.protections_wait.load(Ordering::SeqCst) {
            return;
        }
        let protections = self.requests.take_protections();
        let hot = &mut self.cpu.state.hot;
        if protections.all {
            self.tlb.protect_all(hot);
        } else {
            protections.pages.iter().for_each(|&page| self.tlb.protect_host_page(hot, page));
        }
        self.requests.protected.store(protections.ticket, Ordering::SeqCst);
    }
}

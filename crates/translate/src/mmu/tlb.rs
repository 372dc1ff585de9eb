//! The software TLBs that translated code looks into, and those for code itself.

use super::filled::{tlb_of, FilledEntries};
use super::jumps::Jumps;
use super::large_pages::LargePages;
use super::space::{
    AddressSpace, CodePages, CodeTlb, SpaceId, CODE_ENTRIES, CODE_PAGE_WORDS, MAX_ENTRIES, MAX_KEPT, NO_CODE,
    USER_JUMPS,
};
use super::walk::Walk;
use super::window::{Confirmed, Windows};
use crate::cpu::Flush;
use crate::mode::Mode;
use crate::state::{HotState, Side, Tlb, JUMP_CACHES, TLB_ENTRIES};
use sublet_memory::GuestMemory;

const PAGE_BITS: u32 = 12;
/// A page address that no canonical access has; its index is 0.
pub(super) const NOWHERE: u64 = 1 << 63;

fn index(la: u64) -> usize {
    (la >> PAGE_BITS) as usize & (TLB_ENTRIES - 1)
}

/// The tag of an empty entry: negated address of a page that no lookup of this index asks for. It is 0
/// where it can be, so that memory that was never touched holds empty entries.
pub(super) fn empty_tag(entry: usize) -> u64 {
    match entry {
        // Page 0 is looked for here, or reached into from the last page of the address space.
        0 | LAST_ENTRY => (NOWHERE + (2 << PAGE_BITS)).wrapping_neg(),
        _ => 0,
    }
}

pub(super) const LAST_ENTRY: usize = TLB_ENTRIES - 1;

impl Tlb {
    fn clear(&mut self) {
        self.tag.fill(0);
        for entry in [0, LAST_ENTRY] {
            self.tag[entry] = empty_tag(entry);
        }
    }

    fn clear_page(&mut self, la: u64) {
        let entry = index(la);
        if self.tag[entry] == (la & !0xfff).wrapping_neg() {
            self.tag[entry] = empty_tag(entry);
        }
    }

    fn fill(&mut self, la: u64, host_page: u64) {
        let page = la & !0xfff;
        let entry = index(la);
        self.tag[entry] = page.wrapping_neg();
        self.addend[entry] = host_page.wrapping_sub(page);
    }

    /// Drop entries for the naturally aligned `1 << bits` bytes around `la`.
    fn clear_region(&mut self, la: u64, bits: u32) {
        for (entry, tag) in self.tag.iter_mut().enumerate() {
            if tag.wrapping_neg() >> bits == la >> bits {
                *tag = empty_tag(entry);
            }
        }
    }

    /// Drop entries that map this host page.
    fn clear_host_page(&mut self, host_page: u64) {
        for entry in 0..TLB_ENTRIES {
            if self.addend[entry].wrapping_sub(self.tag[entry]) == host_page {
                self.tag[entry] = empty_tag(entry);
            }
        }
    }
}

/// Generations are positive 32-bit displacements. Before one returns all links have to go.
const MAX_GENERATION: u32 = i32::MAX as u32;
/// Everything cached of the guest's page tables, outside `HotState`'s arrays.
#[derive(Debug)]
pub struct TlbDirectory {
    /// Entries of the data TLBs filled since they were cleared, with mappings that are not global.
    local: FilledEntries,
    /// The same, with global mappings.
    global: FilledEntries,
    /// The current address space.
    space: AddressSpace,
    /// Others, the one that was current last at the end.
    kept: Vec<AddressSpace>,
    /// Whether others are kept.
    keeps: bool,
    /// The newest name of an address space.
    newest_space: SpaceId,
    /// Kernel code: linear page and guest-physical page.
    kernel_code: Box<CodeTlb>,
    /// Hashes of pages that kernel code was fetched from since the jump caches were cleared.
    kernel_code_pages: Box<CodePages>,
    /// Kernel code was fetched from a page that is not global, or lies at a user address.
    local_kernel_code: bool,
    /// Kernel code of 32 or 16 bits was fetched: it lies anywhere.
    narrow_kernel_code: bool,
    /// Large pages that global entries of the data TLBs were filled from.
    large_global_data: LargePages,
    /// Large pages that code was fetched from since the jump caches were cleared.
    large_code: LargePages,
    /// What the jump caches hold.
    pub jumps: Jumps,
    /// Hashes of host pages that write TLB entries were filled from since all were cleared.
    written_pages: Box<[u64; WRITTEN_WORDS]>,
    /// The number of the present generation of kernel mappings, see `cache::Link::guard`.
    kernel_generation: u32,
    /// The newest number of a generation.
    newest_generation: u32,
    /// All numbers have been used once: links of the first would seem to hold. Cleared by who drops them.
    pub generations_over: bool,
    /// Flushes of everything, of non-global entries, of single pages, of all jump caches.
    pub flushes: [u64; 4],
    /// Changes of the address space, and those that brought a kept one back.
    pub switches: [u64; 2],
    /// The memory windows, once they are in use.
    pub windows: Option<Windows>,
    /// The same of the kernel, for all address spaces.
    pub kernel_windows: Option<Windows>,
    /// What is to be confirmed there before translated code runs again.
    unconfirmed: Option<Confirmed>,
}

/// Words of the set of written pages.
const WRITTEN_WORDS: usize = 2048;

fn written_hash(host_page: u64) -> (usize, u64) {
    let hash = (host_page >> PAGE_BITS).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 47;
    ((hash / 64) as usize, 1 << (hash % 64))
}

impl Default for TlbDirectory {
    fn default() -> Self {
        Self::new(true)
    }
}

fn page_hash(la: u64) -> (usize, u64) {
    let hash = (la >> PAGE_BITS).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 47;
    ((hash / 64) as usize, 1 << (hash % 64))
}

impl TlbDirectory {
    /// Nothing cached; `keeps`: address spaces are kept while others are current.
    pub fn new(keeps: bool) -> Self {
        Self {
            local: Default::default(),
            global: Default::default(),
            space: AddressSpace { generation: 1, ..AddressSpace::new(0, SpaceId(1)) },
            kept: Vec::with_capacity(MAX_KEPT),
            keeps,
            newest_space: SpaceId(1),
            kernel_code: Box::new([NO_CODE; CODE_ENTRIES]),
            kernel_code_pages: Box::new([0; CODE_PAGE_WORDS]),
            local_kernel_code: false,
            narrow_kernel_code: false,
            large_global_data: LargePages::default(),
            large_code: LargePages::default(),
            jumps: Jumps::default(),
            written_pages: Box::new([0; WRITTEN_WORDS]),
            kernel_generation: 1,
            newest_generation: 1,
            generations_over: false,
            flushes: [0; 4],
            switches: [0; 2],
            windows: None,
            kernel_windows: None,
            unconfirmed: None,
        }
    }

    /// Which mappings that are not global are cached at present.
    pub fn space(&self) -> SpaceId {
        self.space.id
    }

    /// Whether code of the kernel lies in pages that are not global.
    pub fn has_local_kernel_code(&self) -> bool {
        self.local_kernel_code
    }

    fn next_space(&mut self) -> SpaceId {
        self.newest_space = SpaceId(self.newest_space.0 + 1);
        self.newest_space
    }

    /// Let translated code reach a page directly.
    pub fn fill_data(
        &mut self,
        hot: &mut HotState,
        mmu: usize,
        write: bool,
        la: u64,
        host_page: u64,
        walk: &Walk,
    ) {
        let tlb = if write { &mut hot.write_tlb[mmu] } else { &mut hot.read_tlb[mmu] };
        tlb.fill(la, host_page);
        self.note_reached(la, host_page, write, walk);
        let entry = index(la);
        let (filled, other) = if walk.global {
            (&mut self.global, &mut self.local)
        } else {
            (&mut self.local, &mut self.global)
        };
        filled.mark(mmu, write, entry);
        other.unmark(mmu, write, entry);
    }

    /// Note what a page that can be reached directly goes by, stores being among the accesses or not.
    pub fn note_reached(&mut self, la: u64, host_page: u64, write: bool, walk: &Walk) {
        if write {
            let (word, bit) = written_hash(host_page);
            self.written_pages[word] |= bit;
        }
        let large = if walk.global { &mut self.large_global_data } else { &mut self.space.large_data };
        large.note(la, walk);
    }

    /// The host page that translated code reaches at a linear address.
    pub fn find_data(&self, hot: &HotState, mmu: usize, write: bool, la: u64) -> Option<u64> {
        let tlb = if write { &hot.write_tlb[mmu] } else { &hot.read_tlb[mmu] };
        let (page, entry) = (la & !0xfff, index(la));
        (tlb.tag[entry] == page.wrapping_neg() && page != 0).then(|| tlb.addend[entry].wrapping_add(page))
    }

    /// The guest-physical page that code at a linear address was last fetched from.
    pub fn find_code(&self, la: u64, user: bool) -> Option<u64> {
        let key = (la & !0xfff) | u64::from(user);
        let code = if user { &self.space.code } else { &self.kernel_code };
        let (tag, page) = code[(la >> PAGE_BITS) as usize & (CODE_ENTRIES - 1)];
        (tag == key).then_some(page)
    }

    /// Remember where code at a linear address is; `wide`: of 64 bits.
    pub fn fill_code(&mut self, la: u64, user: bool, wide: bool, walk: &Walk) {
        let key = (la & !0xfff) | u64::from(user);
        let (code, pages) = match user {
            true => (&mut self.space.code, &mut self.space.code_pages),
            false => (&mut self.kernel_code, &mut self.kernel_code_pages),
        };
        code[(la >> PAGE_BITS) as usize & (CODE_ENTRIES - 1)] = (key, walk.gpa & !0xfff);
        let (word, bit) = page_hash(la);
        pages[word] |= bit;
        self.large_code.note(la, walk);
        self.local_kernel_code |= !user && (!walk.global || (wide && la >> 63 == 0));
        self.narrow_kernel_code |= !user && !wide;
    }

    /// Forget all blocks.
    pub fn clear_jumps(&mut self, hot: &mut HotState) {
        self.flushes[3] += 1;
        for cache in 0..JUMP_CACHES {
            self.jumps.clear(hot, cache);
        }
        self.kernel_code.fill(NO_CODE);
        self.kernel_code_pages.fill(0);
        self.local_kernel_code = false;
        self.narrow_kernel_code = false;
        self.large_code.clear();
        self.kept.iter_mut().for_each(AddressSpace::forget_code);
        self.space.forget_code();
        self.kernel_generation = self.next_generation();
        self.set_generations(hot);
    }

    /// Make stores to a host page take the slow path: it now holds code.
    pub fn protect_host_page(&mut self, hot: &mut HotState, host_page: u64) {
        if let Some(windows) = &mut self.kernel_windows {
            windows.protect(host_page);
        }
        let (word, bit) = written_hash(host_page);
        if self.written_pages[word] & bit == 0 {
            return;
        }
        for tlb in &mut hot.write_tlb {
            tlb.clear_host_page(host_page);
        }
        self.kept.iter_mut().for_each(|space| space.protect_host_page(host_page));
        if let Some(windows) = &mut self.windows {
            windows.protect(host_page);
        }
    }

    /// As [`Self::protect_host_page`], for all pages.
    pub fn protect_all(&mut self, hot: &mut HotState) {
        hot.write_tlb.iter_mut().for_each(Tlb::clear);
        self.kept.iter_mut().for_each(AddressSpace::protect_all);
        self.drop_windows(Side::User);
        self.drop_windows(Side::Kernel);
    }

    /// Let no page be reached through the memory windows.
    /// The memory windows of one side, once they are in use.
    pub fn windows_of(&mut self, side: Side) -> Option<&mut Windows> {
        match side {
            Side::User => self.windows.as_mut(),
            Side::Kernel => self.kernel_windows.as_mut(),
        }
    }

    fn drop_windows(&mut self, side: Side) {
        if let Some(windows) = self.windows_of(side) {
            windows.drop_all();
        }
    }

    /// Carry out a flush. What it leaves in the kernel's windows is to be confirmed (see [`Self::confirm_windows`]).
    pub fn flush(&mut self, hot: &mut HotState, what: Flush) {
        match what {
            Flush::All => {
                self.drop_windows(Side::Kernel);
                self.flush_all(hot);
            }
            Flush::AllMappings => {
                self.flush_all(hot);
                self.unconfirmed = Some(Confirmed::All);
            }
            Flush::NonGlobal => self.flush_local(hot),
            Flush::Pcid(pcid) if pcid == self.space.pcid => self.flush_space(hot),
            Flush::PcidPage(pcid, la) if pcid == self.space.pcid => self.flush_page(hot, la),
            Flush::Pcid(pcid) | Flush::PcidPage(pcid, _) => self.forget_kept(pcid),
            Flush::Page(la) => self.flush_page(hot, la),
            Flush::Switch(pcid) => self.switch(hot, pcid),
        }
    }

    fn flush_all(&mut self, hot: &mut HotState) {
        self.flushes[0] += 1;
        self.local.clear_entries(hot);
        self.global.clear_entries(hot);
        self.written_pages.fill(0);
        self.large_global_data.clear();
        self.kept.clear();
        self.drop_windows(Side::User);
        let id = self.next_space();
        self.space.forget(id);
        self.clear_jumps(hot);
    }

    /// Everything but what is global, of all address spaces.
    fn flush_local(&mut self, hot: &mut HotState) {
        for kept in 0..self.kept.len() {
            let id = self.next_space();
            self.kept[kept].forget(id);
        }
        self.flush_space(hot);
    }

    /// Everything but what is global, of the current address space.
    fn flush_space(&mut self, hot: &mut HotState) {
        self.flushes[1] += 1;
        self.local_windows_end();
        self.local.clear_entries(hot);
        self.space.large_data.clear();
        self.space.id = self.next_space();
        if self.local_kernel_code {
            return self.clear_jumps(hot);
        }
        self.clear_user_jumps(hot);
    }

    /// Mappings of the kernel's that are not global have ended.
    fn local_windows_end(&mut self) {
        self.unconfirmed = self.unconfirmed.or(Some(Confirmed::Local));
    }

    /// Drop what the flushes carried out have ended in the kernel's windows, given where the tables are.
    pub fn confirm_windows(&mut self, memory: &GuestMemory, root: u64) {
        let Some(what) = self.unconfirmed.take() else { return };
        if let Some(windows) = &mut self.kernel_windows {
            windows.confirm(memory, root, what);
        }
    }

    /// The current PCID is this one. If it came to be by other means than [`Flush::Switch`], nothing is kept.
    pub fn agree(&mut self, hot: &mut HotState, pcid: u16) {
        if pcid != self.space.pcid {
            self.flush_local(hot);
            self.kept.clear();
            self.space.pcid = pcid;
        }
    }

    fn forget_kept(&mut self, pcid: u16) {
        let id = self.next_space();
        self.kept.iter_mut().filter(|space| space.pcid == pcid).for_each(|space| space.forget(id));
    }

    /// Make another address space the current one.
    fn switch(&mut self, hot: &mut HotState, pcid: u16) {
        if !self.keeps || self.local_kernel_code {
            self.flush_local(hot);
            self.agree(hot, pcid);
        }
        if pcid == self.space.pcid {
            return;
        }
        self.switches[0] += 1;
        self.local_windows_end();
        let next = self.take_kept(pcid);
        let mut last = std::mem::replace(&mut self.space, next);
        self.put_away(hot, &mut last);
        self.kept.push(last);
        self.bring_back(hot);
        self.set_generations(hot);
    }

    /// The kept address space of a PCID, or one of which nothing is known, made of the oldest if there are many.
    fn take_kept(&mut self, pcid: u16) -> AddressSpace {
        if let Some(place) = self.kept.iter().position(|space| space.pcid == pcid) {
            self.switches[1] += 1;
            return self.kept.remove(place);
        }
        let id = self.next_space();
        if self.kept.len() < MAX_KEPT {
            return AddressSpace::new(pcid, id);
        }
        let mut oldest = self.kept.remove(0);
        oldest.forget(id);
        oldest.pcid = pcid;
        oldest
    }

    /// Take the entries of what was the current address space out of the TLBs and jump caches.
    fn put_away(&mut self, hot: &mut HotState, space: &mut AddressSpace) {
        self.local.take_entries(hot, |entry| {
            if space.entries.len() < MAX_ENTRIES {
                space.entries.push(entry);
            }
        });
        space.jump_mode = self.jumps.mode(USER_JUMPS[0]);
        for (cache, jumps) in USER_JUMPS.into_iter().zip(&mut space.jumps) {
            self.jumps.take(hot, cache, jumps);
        }
    }

    /// Fill TLBs and jump caches with what was kept of the current address space.
    fn bring_back(&mut self, hot: &mut HotState) {
        for kept in self.space.entries.drain(..) {
            let (mmu, entry) = (usize::from(kept.tlb / 2), usize::from(kept.entry));
            // What every address space has in common goes first.
            if !self.global.is_marked(mmu, kept.writes(), entry) {
                let tlb = tlb_of(hot, kept.tlb.into());
                (tlb.tag[entry], tlb.addend[entry]) = (kept.tag, kept.addend);
                self.local.mark(mmu, kept.writes(), entry);
            }
        }
        let modes = [self.space.jump_mode.take(), None];
        for ((cache, mode), jumps) in USER_JUMPS.into_iter().zip(modes).zip(&mut self.space.jumps) {
            self.jumps.put_back(hot, cache, mode, jumps);
        }
    }

    /// A number that no link across pages has.
    fn next_generation(&mut self) -> u32 {
        if self.newest_generation == MAX_GENERATION {
            self.generations_over = true;
            self.kept.iter_mut().for_each(|space| space.generation = 0);
        }
        self.newest_generation = self.newest_generation % MAX_GENERATION + 1;
        self.newest_generation
    }

    /// Let the links across pages hold that were made under the present mappings, and no others.
    fn set_generations(&mut self, hot: &mut HotState) {
        if self.space.generation == 0 {
            self.space.generation = self.next_generation();
        }
        hot.negated_generations =
            [self.kernel_generation, self.space.generation].map(|number| u64::from(number).wrapping_neg());
    }

    /// The number of the present mappings, which links across pages from code of `mode` hold for.
    pub fn generation(&self, mode: Mode) -> u32 {
        match mode.cpl() {
            3 => self.space.generation,
            _ => self.kernel_generation,
        }
    }

    fn clear_user_jumps(&mut self, hot: &mut HotState) {
        for cache in USER_JUMPS {
            self.jumps.clear(hot, cache);
        }
        self.space.forget_code();
        self.set_generations(hot);
    }

    fn flush_page(&mut self, hot: &mut HotState, la: u64) {
        self.flushes[2] += 1;
        for tlb in hot.read_tlb.iter_mut().chain(&mut hot.write_tlb) {
            tlb.clear_page(la);
        }
        let large = [&self.large_global_data, &self.space.large_data];
        let large = large.into_iter().filter_map(|pages| pages.find(la)).max();
        if let Some(windows) = self.kernel_windows.as_mut().filter(|_| la >> 63 != 0) {
            windows.drop_page(la);
        }
        if let Some(windows) = &mut self.windows {
            let size = 1 << large.unwrap_or(PAGE_BITS);
            let start = la & !(size - 1);
            windows.drop_range(start..start.saturating_add(size));
        }
        if let Some(bits) = large {
            for tlb in hot.read_tlb.iter_mut().chain(&mut hot.write_tlb) {
                tlb.clear_region(la, bits);
            }
        }
        if self.large_code.find(la).is_some() {
            return self.clear_jumps(hot);
        }
        let (word, bit) = page_hash(la);
        let maybe_kernel = la >> 63 != 0 || self.local_kernel_code || self.narrow_kernel_code;
        if maybe_kernel && self.kernel_code_pages[word] & bit != 0 {
            self.clear_jumps(hot);
        } else if self.space.code_pages[word] & bit != 0 {
            self.clear_user_jumps(hot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{empty_tag, index, TLB_ENTRIES};

    /// What the inline check computes: zero on a hit.
    fn misses(tag: u64, la: u64, size: u64) -> bool {
        la.wrapping_add(tag).wrapping_add(size - 1) >> 12 != 0
    }

    #[test]
    fn an_empty_entry_never_hits() {
        for entry in 0..TLB_ENTRIES {
            let tag = empty_tag(entry);
            for high in [0u64, 0xffff << 48, 1 << 63] {
                let la = high | (entry as u64) << 12;
                assert_eq!(index(la), entry);
                assert!(misses(tag, la, 1) && misses(tag, la | 0xfff, 8));
            }
        }
    }

    #[test]
    fn generations_end() {
        let mut cpu = crate::cpu::Cpu::new(std::sync::Arc::new(sublet_memory::GuestMemory::new()));
        let mut tlb = super::TlbDirectory {
            newest_generation: super::MAX_GENERATION - 2,
            ..super::TlbDirectory::default()
        };
        tlb.clear_jumps(&mut cpu.state.hot);
        assert!(!tlb.generations_over);
        tlb.clear_jumps(&mut cpu.state.hot);
        assert!(tlb.generations_over);
        assert_eq!([tlb.kernel_generation, tlb.space.generation], [1, 2]);
    }

    #[test]
    fn an_access_that_leaves_the_page_misses() {
        let tag = 0x5000u64.wrapping_neg();
        assert!(!misses(tag, 0x5ff8, 8));
        assert!(misses(tag, 0x5ff9, 8));
        assert!(misses(tag, 0x4fff, 1));
        assert!(misses(tag, 0x6000, 1));
    }
}

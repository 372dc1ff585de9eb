//! The software TLBs that translated code looks into, and those for code itself.

use super::walk::Walk;
use crate::cpu::Flush;
use crate::mode::Mode;
use crate::state::{
    HotState, JumpCache, JumpEntry, Tlb, JUMP_CACHES, JUMP_ENTRIES, MMU_INDICES, TLB_ENTRIES,
};

const PAGE_BITS: u32 = 12;
/// A page address that no canonical access has; its index is 0.
const NOWHERE: u64 = 1 << 63;

fn index(la: u64) -> usize {
    (la >> PAGE_BITS) as usize & (TLB_ENTRIES - 1)
}

/// The tag of an empty entry: negated address of a page that no lookup of this index asks for. It is 0
/// where it can be, so that memory that was never touched holds empty entries.
fn empty_tag(entry: usize) -> u64 {
    match entry {
        // Page 0 is looked for here, or reached into from the last page of the address space.
        0 | LAST_ENTRY => (NOWHERE + (2 << PAGE_BITS)).wrapping_neg(),
        _ => 0,
    }
}

const LAST_ENTRY: usize = TLB_ENTRIES - 1;

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

/// How far a RIP (with its mode, see [`jump_key`]) is rotated to the right before it is added to itself, to select
/// each of the two jump-cache entries where its block may be.
pub const JUMP_ROTATIONS: [u32; 2] = [15, 21];
/// The bits of that sum which select the entry.
pub const JUMP_MASK: u64 = JUMP_ENTRIES as u64 - 1;

fn jump_index(key: u64, rotation: u32) -> usize {
    (key.wrapping_add(key.rotate_right(rotation)) & JUMP_MASK) as usize
}

/// What the entries for `rip` are found by. Narrow code changes its mode often (a kernel loads FS as it is entered),
/// so that its mode is part of it and one cache holds blocks of several; 64-bit addresses leave no
/// room for it.
fn jump_key(mode: Mode, rip: u64) -> u64 {
    rip.wrapping_add(mode.jump_tag())
}

impl JumpEntry {
    /// Only entry 0 is looked into for RIP 0, which is what untouched memory would stand for.
    fn empty(entry: usize) -> Self {
        let rip: u64 = if entry == 0 { NOWHERE } else { 0 };
        Self { tag: rip.wrapping_neg(), host: 0, rip_page: 0 }
    }
}

fn clear_jump_entries(cache: &mut JumpCache) {
    cache.fill(JumpEntry::empty(1));
    cache[0] = JumpEntry::empty(0);
}

/// Up to this many filled entries a jump cache is cleared one by one.
const FEW_JUMPS: usize = JUMP_ENTRIES / 8;
/// Generations are positive 32-bit displacements. Before one returns all links have to go.
const MAX_GENERATION: u32 = i32::MAX as u32;
/// Entries of the instruction TLB.
const CODE_ENTRIES: usize = 256;

/// Log2 of the sizes that large pages have.
const LARGE_PAGE_BITS: [u32; 3] = [21, 22, 30];
/// Words of a set of large pages.
const LARGE_WORDS: usize = 1024;

/// Hashes of large pages. An entry here stands for 4 KiB only, but INVLPG for any address in a
/// large page ends all that was cached of it (Intel SDM vol. 3A §4.10.4.1).
#[derive(Debug)]
struct LargePages {
    words: Box<[u64; LARGE_WORDS]>,
    empty: bool,
}

impl Default for LargePages {
    fn default() -> Self {
        Self { words: Box::new([0; LARGE_WORDS]), empty: true }
    }
}

impl LargePages {
    fn place(la: u64, bits: u32) -> (usize, u64) {
        let key = (la >> bits) << 6 | u64::from(bits);
        let hash = key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48;
        ((hash / 64) as usize, 1 << (hash % 64))
    }

    /// Note the page of a walk, if it is large.
    fn note(&mut self, la: u64, walk: &Walk) {
        let bits = u32::from(walk.page_bits);
        if bits > PAGE_BITS {
            let (word, bit) = Self::place(la, bits);
            self.words[word] |= bit;
            self.empty = false;
        }
    }

    /// Log2 of the size of the largest page around `la` that may have been noted.
    fn find(&self, la: u64) -> Option<u32> {
        let noted = |bits: u32| {
            let (word, bit) = Self::place(la, bits);
            self.words[word] & bit != 0
        };
        LARGE_PAGE_BITS.into_iter().rev().find(|&bits| !self.empty && noted(bits))
    }

    fn clear(&mut self) {
        if !self.empty {
            *self = Self::default();
        }
    }
}

/// Marked entries of the data TLBs, so that clearing them costs what filling them did.
#[derive(Debug)]
struct FilledEntries {
    /// A bit an entry: by MMU index, then read and write.
    marks: Box<[[[u64; TLB_ENTRIES / 64]; 2]; MMU_INDICES]>,
}

impl Default for FilledEntries {
    /// The first and the last entry are marked: memory that was never touched does not hold their empty tags,
    /// so the first flush has to write them.
    fn default() -> Self {
        let mut marks = Box::new([[[0; TLB_ENTRIES / 64]; 2]; MMU_INDICES]);
        for words in marks.iter_mut().flatten() {
            words[0] = 1;
            words[LAST_ENTRY / 64] |= 1 << (LAST_ENTRY % 64);
        }
        Self { marks }
    }
}

impl FilledEntries {
    fn mark(&mut self, mmu: usize, write: bool, entry: usize) {
        self.marks[mmu][usize::from(write)][entry / 64] |= 1 << (entry % 64);
    }

    fn unmark(&mut self, mmu: usize, write: bool, entry: usize) {
        self.marks[mmu][usize::from(write)][entry / 64] &= !(1 << (entry % 64));
    }

    /// Empty the marked entries, and forget the marks.
    fn clear_entries(&mut self, hot: &mut HotState) {
        for (mmu, [reads, writes]) in self.marks.iter_mut().enumerate() {
            clear_marked(&mut hot.read_tlb[mmu], reads);
            clear_marked(&mut hot.write_tlb[mmu], writes);
        }
    }
}

fn clear_marked(tlb: &mut Tlb, marks: &mut [u64; TLB_ENTRIES / 64]) {
    for (word, bits) in marks.iter_mut().enumerate() {
        let mut left = std::mem::take(bits);
        while left != 0 {
            let entry = word * 64 + left.trailing_zeros() as usize;
            tlb.tag[entry] = empty_tag(entry);
            left &= left - 1;
        }
    }
}

/// Everything cached of the guest's page tables, outside `HotState`'s arrays.
#[derive(Debug)]
pub struct TlbDirectory {
    /// Entries of the data TLBs filled since they were cleared, with mappings that are not global.
    local: FilledEntries,
    /// The same, with global mappings.
    global: FilledEntries,
    /// Linear page (with the privilege in bit 0) and guest-physical page of recent code.
    code: Box<[(u64, u64); CODE_ENTRIES]>,
    /// Hashes of pages that kernel and user code was fetched from since the jump caches were cleared.
    code_pages: Box<[[u64; CODE_PAGE_WORDS]; 2]>,
    /// Kernel code was fetched from a page that is not global, or lies at a user address.
    local_kernel_code: bool,
    /// Kernel code of 32 or 16 bits was fetched: it lies anywhere.
    narrow_kernel_code: bool,
    /// Large pages that data TLB entries were filled from: not global, global.
    large_data: [LargePages; 2],
    /// Large pages that code was fetched from since the jump caches were cleared.
    large_code: LargePages,
    /// The mode whose blocks each jump cache of 64-bit code holds.
    jump_modes: [Option<Mode>; JUMP_CACHES],
    /// Entries filled since each jump cache was cleared, while there are few.
    jump_filled: [Vec<u16>; JUMP_CACHES],
    /// Hashes of host pages that write TLB entries were filled from since all were cleared.
    written_pages: Box<[u64; WRITTEN_WORDS]>,
    /// Numbers of the present generations of kernel and user mappings, see `cache::Link::guard`.
    generations: [u32; 2],
    /// All numbers have been used once: links of the first would seem to hold. Cleared by who drops them.
    pub generations_over: bool,
    /// Flushes of everything, of non-global entries, of single pages, of all jump caches.
    pub flushes: [u64; 4],
}

/// Words of the set of written pages.
const WRITTEN_WORDS: usize = 2048;

fn written_hash(host_page: u64) -> (usize, u64) {
    let hash = (host_page >> PAGE_BITS).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 47;
    ((hash / 64) as usize, 1 << (hash % 64))
}

const NO_CODE: (u64, u64) = (u64::MAX, 0);

impl Default for TlbDirectory {
    fn default() -> Self {
        Self {
            local: Default::default(),
            global: Default::default(),
            code: Box::new([NO_CODE; CODE_ENTRIES]),
            code_pages: Box::new([[0; CODE_PAGE_WORDS]; 2]),
            local_kernel_code: false,
            narrow_kernel_code: false,
            large_data: Default::default(),
            large_code: LargePages::default(),
            jump_modes: [None; JUMP_CACHES],
            jump_filled: std::array::from_fn(|_| vec![0]),
            written_pages: Box::new([0; WRITTEN_WORDS]),
            generations: [1; 2],
            generations_over: false,
            flushes: [0; 4],
        }
    }
}

/// Words of the set of code pages: 131072 hashes, so that a large program's thousands leave most of them clear.
const CODE_PAGE_WORDS: usize = 2048;

fn page_hash(la: u64) -> (usize, u64) {
    let hash = (la >> PAGE_BITS).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 47;
    ((hash / 64) as usize, 1 << (hash % 64))
}

impl TlbDirectory {
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
        if write {
            let (word, bit) = written_hash(host_page);
            self.written_pages[word] |= bit;
        }
        let entry = index(la);
        self.large_data[usize::from(walk.global)].note(la, walk);
        let (filled, other) = if walk.global {
            (&mut self.global, &mut self.local)
        } else {
            (&mut self.local, &mut self.global)
        };
        filled.mark(mmu, write, entry);
        other.unmark(mmu, write, entry);
    }

    /// The guest-physical page that code at a linear address was last fetched from.
    pub fn find_code(&self, la: u64, user: bool) -> Option<u64> {
        let key = (la & !0xfff) | u64::from(user);
        let (tag, page) = self.code[(la >> PAGE_BITS) as usize & (CODE_ENTRIES - 1)];
        (tag == key).then_some(page)
    }

    /// Remember where code at a linear address is; `wide`: of 64 bits.
    pub fn fill_code(&mut self, la: u64, user: bool, wide: bool, walk: &Walk) {
        let key = (la & !0xfff) | u64::from(user);
        self.code[(la >> PAGE_BITS) as usize & (CODE_ENTRIES - 1)] = (key, walk.gpa & !0xfff);
        let (word, bit) = page_hash(la);
        self.code_pages[usize::from(user)][word] |= bit;
        self.large_code.note(la, walk);
        self.local_kernel_code |= !user && (!walk.global || (wide && la >> 63 == 0));
        self.narrow_kernel_code |= !user && !wide;
    }

    /// Remember the block for an indirect branch to `rip`.
    pub fn fill_jump(&mut self, hot: &mut HotState, mode: Mode, rip: u64, host: u64, rip_page: u64) {
        let Some(cache) = mode.jump_cache() else { return };
        self.keep_jumps_of(hot, mode);
        let key = jump_key(mode, rip);
        let first = jump_index(key, JUMP_ROTATIONS[0]);
        let before = hot.jump[cache][first];
        self.put_jump(hot, cache, first, JumpEntry { tag: key.wrapping_neg(), host, rip_page });
        let old_key = before.tag.wrapping_neg();
        if before.host != 0 && old_key != key && jump_index(old_key, JUMP_ROTATIONS[0]) == first {
            self.put_jump(hot, cache, jump_index(old_key, JUMP_ROTATIONS[1]), before);
        }
    }

    fn put_jump(&mut self, hot: &mut HotState, cache: usize, entry: usize, what: JumpEntry) {
        if self.jump_filled[cache].len() <= FEW_JUMPS {
            self.jump_filled[cache].push(entry as u16);
        }
        hot.jump[cache][entry] = what;
    }

    /// The block remembered for an indirect branch to `rip`: its host address and RIP page.
    pub fn find_jump(&self, hot: &HotState, mode: Mode, rip: u64) -> Option<(u64, u64)> {
        let right_mode = |&cache: &usize| !mode.is64() || self.jump_modes[cache] == Some(mode);
        let cache = mode.jump_cache().filter(right_mode)?;
        let key = jump_key(mode, rip);
        let entries = JUMP_ROTATIONS.map(|rotation| &hot.jump[cache][jump_index(key, rotation)]);
        let found = entries.into_iter().find(|entry| entry.tag == key.wrapping_neg())?;
        Some((found.host, found.rip_page))
    }

    /// Forget the block remembered for `rip`.
    pub fn forget_jump(&mut self, hot: &mut HotState, mode: Mode, rip: u64) {
        if let Some(cache) = mode.jump_cache() {
            let key = jump_key(mode, rip);
            for entry in JUMP_ROTATIONS.map(|rotation| jump_index(key, rotation)) {
                if hot.jump[cache][entry].tag == key.wrapping_neg() {
                    hot.jump[cache][entry] = JumpEntry::empty(entry);
                }
            }
        }
    }

    /// The jump caches that translated 64-bit code of `mode` will look into must hold blocks of that mode:
    /// STAC, CLAC, SYSCALL and SYSRET change the mode without the run loop.
    pub fn enter_mode(&mut self, hot: &mut HotState, mode: Mode) {
        self.keep_jumps_of(hot, mode);
        if mode.is64() && !mode.single_step() {
            let kernel = if mode.cpl() == 0 { mode } else { mode.kernel_side() };
            self.keep_jumps_of(hot, kernel.with_access_override(true));
            self.keep_jumps_of(hot, kernel.with_access_override(false));
            if mode.cpl() == 0 {
                self.keep_jumps_of(hot, mode.user_side());
            }
        }
    }

    fn keep_jumps_of(&mut self, hot: &mut HotState, mode: Mode) {
        if let Some(cache) = mode.jump_cache().filter(|_| mode.is64()) {
            if self.jump_modes[cache] != Some(mode) {
                self.clear_jump_cache(hot, cache);
                self.jump_modes[cache] = Some(mode);
            }
        }
    }

    /// Empty one jump cache, at a cost that goes with its use.
    fn clear_jump_cache(&mut self, hot: &mut HotState, cache: usize) {
        let filled = &mut self.jump_filled[cache];
        if filled.len() > FEW_JUMPS {
            clear_jump_entries(&mut hot.jump[cache]);
        } else {
            for &entry in filled.iter() {
                hot.jump[cache][usize::from(entry)] = JumpEntry::empty(usize::from(entry));
            }
        }
        filled.clear();
    }

    /// Forget all blocks.
    pub fn clear_jumps(&mut self, hot: &mut HotState) {
        self.flushes[3] += 1;
        self.next_generation(hot, false);
        self.next_generation(hot, true);
        for cache in 0..JUMP_CACHES {
            self.clear_jump_cache(hot, cache);
            self.jump_modes[cache] = None;
        }
        *self.code_pages = [[0; CODE_PAGE_WORDS]; 2];
        self.local_kernel_code = false;
        self.narrow_kernel_code = false;
        self.large_code.clear();
        self.code.fill(NO_CODE);
    }

    /// Make stores to a host page take the slow path: it now holds code.
    pub fn protect_host_page(&mut self, hot: &mut HotState, host_page: u64) {
        let (word, bit) = written_hash(host_page);
        if self.written_pages[word] & bit == 0 {
            return;
        }
        for tlb in &mut hot.write_tlb {
            tlb.clear_host_page(host_page);
        }
    }

    /// As [`Self::protect_host_page`], for all pages.
    pub fn protect_all(&mut self, hot: &mut HotState) {
        hot.write_tlb.iter_mut().for_each(Tlb::clear);
    }

    /// Carry out a flush.
    pub fn flush(&mut self, hot: &mut HotState, what: Flush) {
        match what {
            Flush::All => self.flush_all(hot),
            Flush::NonGlobal | Flush::SwitchPcid | Flush::Pcid(_) => self.flush_local(hot),
            Flush::Page(la) | Flush::PcidPage(_, la) => self.flush_page(hot, la),
        }
    }

    fn flush_all(&mut self, hot: &mut HotState) {
        self.flushes[0] += 1;
        self.local.clear_entries(hot);
        self.global.clear_entries(hot);
        self.written_pages.fill(0);
        self.large_data.iter_mut().for_each(LargePages::clear);
        self.clear_jumps(hot);
    }

    fn flush_local(&mut self, hot: &mut HotState) {
        self.flushes[1] += 1;
        self.local.clear_entries(hot);
        self.large_data[0].clear();
        if self.local_kernel_code {
            return self.clear_jumps(hot);
        }
        self.clear_user_jumps(hot);
    }

    /// End all links across pages of user or kernel code.
    fn next_generation(&mut self, hot: &mut HotState, user: bool) {
        let generation = &mut self.generations[usize::from(user)];
        self.generations_over |= *generation == MAX_GENERATION;
        *generation = *generation % MAX_GENERATION + 1;
        hot.negated_generations[usize::from(user)] = u64::from(*generation).wrapping_neg();
    }

    /// The number of the present mappings, which links across pages from code of `mode` hold for.
    pub fn generation(&self, mode: Mode) -> u32 {
        self.generations[usize::from(mode.cpl() == 3)]
    }

    fn clear_user_jumps(&mut self, hot: &mut HotState) {
        self.next_generation(hot, true);
        for cache in [0, 3] {
            self.clear_jump_cache(hot, cache);
            self.jump_modes[cache] = None;
        }
        for entry in self.code.iter_mut().filter(|entry| entry.0 & 1 == 1) {
            *entry = NO_CODE;
        }
        self.code_pages[1] = [0; CODE_PAGE_WORDS];
    }

    fn flush_page(&mut self, hot: &mut HotState, la: u64) {
        self.flushes[2] += 1;
        for tlb in hot.read_tlb.iter_mut().chain(&mut hot.write_tlb) {
            tlb.clear_page(la);
        }
        if let Some(bits) = self.large_data.iter().filter_map(|pages| pages.find(la)).max() {
            for tlb in hot.read_tlb.iter_mut().chain(&mut hot.write_tlb) {
                tlb.clear_region(la, bits);
            }
        }
        if self.large_code.find(la).is_some() {
            return self.clear_jumps(hot);
        }
        let (word, bit) = page_hash(la);
        let maybe_kernel = la >> 63 != 0 || self.local_kernel_code || self.narrow_kernel_code;
        if maybe_kernel && self.code_pages[0][word] & bit != 0 {
            self.clear_jumps(hot);
        } else if self.code_pages[1][word] & bit != 0 {
            self.clear_user_jumps(hot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{empty_tag, index, JUMP_ROTATIONS, TLB_ENTRIES};
    use crate::mode::Mode;

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
    fn jumps_that_share_an_entry_are_both_found() {
        let mut cpu = crate::cpu::Cpu::new(std::sync::Arc::new(sublet_memory::GuestMemory::new()));
        // 64-bit code of a user program.
        let (mut tlb, hot, mode) = (super::TlbDirectory::default(), &mut cpu.state.hot, Mode(0x3a));
        let (first, second) = (0x1_0100, 0x2_00fe);
        assert_eq!(super::jump_index(first, JUMP_ROTATIONS[0]), super::jump_index(second, JUMP_ROTATIONS[0]));
        tlb.fill_jump(hot, mode, first, 1, 0x1_0000);
        tlb.fill_jump(hot, mode, second, 2, 0x2_0000);
        assert_eq!(tlb.find_jump(hot, mode, first), Some((1, 0x1_0000)));
        assert_eq!(tlb.find_jump(hot, mode, second), Some((2, 0x2_0000)));
        tlb.forget_jump(hot, mode, first);
        assert_eq!(tlb.find_jump(hot, mode, first), None);
        tlb.fill_jump(hot, mode, first, 3, 0x1_0000);
        tlb.clear_jumps(hot);
        assert!([first, second].iter().all(|&rip| tlb.find_jump(hot, mode, rip).is_none()));
    }

    #[test]
    fn generations_end() {
        let mut cpu = crate::cpu::Cpu::new(std::sync::Arc::new(sublet_memory::GuestMemory::new()));
        let mut tlb =
            super::TlbDirectory { generations: [5, super::MAX_GENERATION - 1], ..Default::default() };
        tlb.clear_jumps(&mut cpu.state.hot);
        assert!(!tlb.generations_over);
        tlb.clear_jumps(&mut cpu.state.hot);
        assert!(tlb.generations_over && tlb.generations == [7, 1]);
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

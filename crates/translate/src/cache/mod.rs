//! Translated blocks: where they are, what links them, and what makes them go.

mod block;
mod discarded;
mod index;
mod memory;
mod pages;
mod perf_map;
mod start;
mod store;
mod translation;

pub use block::{Block, BlockId, Link};
pub use index::Known;
pub use memory::{CodeMemory, BLOCK_ALIGN};
pub use pages::Home;
pub use start::{Start, ANYWHERE};
pub use store::{Finished, Key, Store};
pub use translation::{Location, NewLink, Translation};

use crate::frontend::MAX_INSTRUCTION_BYTES;
use crate::mode::Mode;
use block::{PackedLocation, MAX_HOST_LENGTH, NONE};
use discarded::Discarded;
use iced_x86::{Decoder, DecoderOptions, Instruction};
use index::BlockIndex;
use pages::CodePages;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// Most blocks in a cache.
const MAX_BLOCKS: usize = 1 << 20;

/// Counters.
#[derive(Debug, Default, Clone, Copy)]
pub struct CacheStatistics {
    /// Blocks translated.
    pub blocks: u64,
    /// Guest instructions translated.
    pub instructions: u64,
    /// Guest bytes translated.
    pub guest_bytes: u64,
    /// Host bytes made of them.
    pub host_bytes: u64,
    /// Blocks dropped because their code was written to.
    pub invalidated: u64,
    /// Times the whole cache was emptied.
    pub flushes: u64,
    /// Branches linked.
    pub links: u64,
}

/// Multiplicative hashing: keys are addresses, not chosen by an adversary to any profit.
#[derive(Default)]
pub struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 29)
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }
    fn write_u32(&mut self, value: u32) {
        self.write_u64(u64::from(value));
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(5) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

type AddressMap<K, V> = HashMap<K, V, BuildHasherDefault<AddressHasher>>;

/// All translated code of a virtual machine.
#[derive(Debug)]
pub struct CodeCache {
    memory: CodeMemory,
    /// Host code that a dead block's entry jumps to.
    dead_stub: usize,
    preamble: usize,
    blocks: Vec<Block>,
    /// Those of one block after those of another, each in the order of host offsets.
    locations: Vec<PackedLocation>,
    links: Vec<Link>,
    system: Vec<Instruction>,
    by_address: BlockIndex,
    pages: CodePages,
    discarded: Discarded,
    /// Blocks that are translated without shared checks.
    unshared: AddressMap<(u64, u32), ()>,
    /// Changes when all block numbers and host addresses become invalid.
    pub epoch: u64,
    /// Counters.
    pub statistics: CacheStatistics,
}

impl CodeCache {
    /// A cache in `memory`; `dead_stub` is host code for blocks that have been dropped but are
    /// still pointed at.
    pub fn new(mut memory: CodeMemory, dead_stub: &[u8]) -> Self {
        let stub = memory.place(dead_stub.len(), 0).map_or(0, |(stub, _)| stub);
        memory.write(stub, dead_stub);
        Self {
            memory,
            dead_stub: stub,
            preamble: stub + dead_stub.len(),
            blocks: Vec::new(),
            locations: Vec::new(),
            links: Vec::new(),
            system: Vec::new(),
            by_address: BlockIndex::default(),
            pages: CodePages::default(),
            discarded: Discarded::default(),
            unshared: AddressMap::default(),
            epoch: 0,
            statistics: CacheStatistics::default(),
        }
    }

    /// Host addresses of the cache: first, and one past the last.
    pub fn host_range(&self) -> (u64, u64) {
        (self.memory.base(), self.memory.base() + self.memory.size() as u64)
    }

    /// Host address of the code that a dropped block's entry jumps to.
    pub fn dead_stub(&self) -> u64 {
        self.memory.base() + self.dead_stub as u64
    }

    /// Bytes in use.
    pub fn used(&self) -> usize {
        self.memory.used()
    }

    /// Whether a block of `code_bytes` can be added to a cache of `limit` bytes: there is space for its code, and there are not as
    /// many blocks as may be (what is kept of each takes memory beside its code).
    pub fn has_room_for(&self, code_bytes: usize, limit: usize) -> bool {
        let left = self.memory.size().min(limit).saturating_sub(self.memory.used());
        left >= code_bytes + CodeMemory::ROOM && self.blocks.len() < MAX_BLOCKS
    }

    /// The live block at `start`.
    pub fn find(&self, start: Start) -> Option<Known> {
        self.by_address.find(start)
    }

    /// A block by number.
    pub fn block(&self, id: BlockId) -> &Block {
        &self.blocks[id as usize]
    }

    /// Host address of a block's entry.
    pub fn host_address(&self, known: Known) -> u64 {
        self.memory.base() + u64::from(known.host_offset)
    }

    /// A system instruction by number.
    pub fn system_instruction(&self, number: u64) -> Instruction {
        self.system[number as usize]
    }

    /// A link by number.
    pub fn link(&self, number: u64) -> Link {
        self.links[number as usize]
    }

    /// Whether the page at `page` (aligned) holds live blocks.
    pub fn page_has_code(&self, page: u64) -> bool {
        self.pages.has_code(page)
    }

    /// Where the code at `page` was read, see [`Self::read_from`].
    pub fn home(&self, page: u64) -> Option<Home> {
        self.pages.home(page)
    }

    /// The code at `page` is being read from `home`; `None`: no memory answers. Blocks read from elsewhere go.
    pub fn read_from(&mut self, page: u64, home: Option<Home>) {
        for id in self.pages.read_from(page, home) {
            self.kill_live(id);
        }
    }

    /// Drop the blocks of pages whose home is no longer what `home` says.
    pub fn follow(&mut self, home: impl Fn(u64) -> Option<Home>) {
        for id in self.pages.strayed(home) {
            self.kill_live(id);
        }
    }

    /// A block on two pages may have been dropped for the other one.
    fn kill_live(&mut self, id: BlockId) {
        if self.blocks[id as usize].alive {
            self.kill(id);
        }
    }

    /// Add a block; `None` when the cache is full and must be cleared first.
    pub fn insert(
        &mut self,
        start: Start,
        second_page: Option<u64>,
        translation: &mut Translation,
    ) -> Option<Known> {
        let Start { gpa, mode, .. } = start;
        self.discarded.free_some();
        let id = self.blocks.len() as BlockId;
        let (host_length, cold_length) = (translation.code.len(), translation.cold.len());
        if host_length + cold_length >= MAX_HOST_LENGTH {
            return None;
        }
        let (host_offset, cold_offset) = self.memory.place(host_length, cold_length)?;
        self.number(translation);
        translation.separate(cold_offset as i64 - (host_offset + host_length) as i64);
        self.memory.write(host_offset, &translation.code);
        self.memory.write(cold_offset, &translation.cold);
        let place = |offset: usize| match offset.checked_sub(host_length) {
            None => (host_offset + offset) as u32,
            Some(beyond) => (cold_offset + beyond) as u32,
        };
        self.links.extend(translation.links.iter().map(|link| Link {
            from: id,
            to: NONE,
            patch: place(link.patch),
            unlinked: place(link.unlinked),
            guard: link.guard.map_or(NONE, place),
            next_incoming: NONE,
            delta: link.delta,
        }));
        self.system.append(&mut translation.system);
        perf_map::name(self.memory.base() + host_offset as u64, host_length, gpa, mode);
        perf_map::name(self.memory.base() + cold_offset as u64, cold_length, gpa, mode);
        self.count(translation);
        self.blocks.push(Block {
            guest_length: translation.guest_length,
            host_offset: host_offset as u32,
            host_length: host_length as u32,
            cold_offset: cold_offset as u32,
            first_location: self.locations.len() as u32,
            link_entry: translation.link_entry as u16,
            ..Block::new(start, second_page)
        });
        self.locations.extend(translation.locations.iter().copied().map(PackedLocation::new));
        let known = Known { block: id, host_offset: host_offset as u32, straddles: second_page.is_some() };
        self.by_address.insert(start, known);
        self.note_pages(id);
        Some(known)
    }

    fn number(&self, translation: &mut Translation) {
        for place in 0..translation.numbers.len() {
            let (offset, index, is_link) = translation.numbers[place];
            let base = if is_link { self.links.len() } else { self.system.len() };
            *translation.field(offset) = ((base + index) as u32).to_le_bytes();
        }
    }

    fn count(&mut self, translation: &Translation) {
        self.statistics.blocks += 1;
        self.statistics.instructions += u64::from(translation.instructions);
        self.statistics.guest_bytes += u64::from(translation.guest_length);
        self.statistics.host_bytes += (translation.code.len() + translation.cold.len()) as u64;
    }

    /// The host instruction at an address in the code.
    pub fn host_instruction(&self, pc: u64) -> Instruction {
        let offset = pc.wrapping_sub(self.memory.base());
        let code = self.memory.read(usize::try_from(offset).unwrap_or(usize::MAX), MAX_INSTRUCTION_BYTES);
        Decoder::new(64, code, DecoderOptions::NONE).decode()
    }

    /// A shared check of the block at host address `pc` failed. After a few times the block goes, and
    /// is to be translated without sharing.
    pub fn blame(&mut self, pc: u64) {
        const PATIENCE: u8 = 8;
        let Some((id, _)) = self.locate(pc) else { return };
        let block = &mut self.blocks[id as usize];
        block.blamed = block.blamed.saturating_add(1);
        if block.blamed == PATIENCE && block.alive {
            let key = (block.gpa, block.mode.0);
            self.unshared.insert(key, ());
            self.kill(id);
        }
    }

    /// Whether blocks at `gpa` may share checks.
    pub fn may_share(&self, gpa: u64, mode: Mode) -> bool {
        !self.unshared.contains_key(&(gpa, mode.0))
    }

    /// Make link `number` go straight to block `to`; a guarded one for as long as `generation` lasts.
    pub fn connect(&mut self, number: u64, to: BlockId, generation: u32) {
        let (link, block) = (self.link(number), self.block(to));
        let source = self.block(link.from);
        let guarded = link.guard != NONE;
        let linked = link.to != NONE && !guarded;
        // Without a guard only the page itself makes the link hold, whatever is mapped where.
        let holds = guarded || source.start().shares_page_with(block.start());
        if linked || !source.alive || !block.alive || !holds {
            return;
        }
        let target = i64::from(block.host_offset + u32::from(block.link_entry));
        self.memory.patch32(link.patch as usize, (target - (i64::from(link.patch) + 4)) as i32);
        if guarded {
            self.memory.patch32(link.guard as usize, generation as i32);
        }
        if link.to != to {
            self.leave_list(number as u32);
            self.enter_list(number as u32, to);
        }
        self.statistics.links += 1;
    }

    /// Note that link `number` leads to block `to`.
    fn enter_list(&mut self, number: u32, to: BlockId) {
        let first = &mut self.blocks[to as usize].first_incoming;
        let link = &mut self.links[number as usize];
        (link.to, link.next_incoming) = (to, std::mem::replace(first, number));
    }

    /// Take link `number` out of the list of those that lead where it leads.
    fn leave_list(&mut self, number: u32) {
        let Link { to, next_incoming, .. } = self.links[number as usize];
        if to == NONE {
            return;
        }
        let first = self.blocks[to as usize].first_incoming;
        if first == number {
            self.blocks[to as usize].first_incoming = next_incoming;
            return;
        }
        let next = |&other: &u32| Some(self.links[other as usize].next_incoming).filter(|&next| next != NONE);
        let before = std::iter::successors(Some(first), next).find(|other| next(other) == Some(number));
        if let Some(before) = before {
            self.links[before as usize].next_incoming = next_incoming;
        }
    }

    /// Drop every block that covers a byte of `gpa .. gpa + size` (within one page).
    /// Returns whether any was dropped.
    pub fn invalidate(&mut self, gpa: u64, size: u64) -> bool {
        let (page, from) = (gpa & !0xfff, (gpa & 0xfff) as usize);
        let to = from + size as usize;
        let near = self.pages.blocks_at(page, from, to);
        if near.is_empty() {
            return false;
        }
        let overlaps = |range: (usize, usize)| range.0 < to && from < range.1;
        let hits = |&id: &BlockId| self.block(id).ranges_in(page).into_iter().any(overlaps);
        let hit: Vec<BlockId> = near.iter().copied().filter(hits).collect();
        for &id in &hit {
            self.kill_live(id);
        }
        let blocks = &self.blocks;
        self.pages.cover_only(page, |id| blocks[id as usize].ranges_in(page));
        !hit.is_empty()
    }

    fn note_pages(&mut self, id: BlockId) {
        let block = &self.blocks[id as usize];
        let first = block.gpa & !0xfff;
        for page in [Some(first), block.second_page().filter(|&page| page != first)].into_iter().flatten() {
            self.pages.add(page, id, block.ranges_in(page));
        }
    }

    fn kill(&mut self, id: BlockId) {
        self.undo_links_to(id);
        let block = &mut self.blocks[id as usize];
        block.alive = false;
        let (start, second, host) = (block.start(), block.second_page(), block.host_offset as usize);
        let distance = (self.dead_stub as i64 - (host as i64 + 5)) as i32;
        let mut jump = [0xe9, 0, 0, 0, 0, 0x90, 0x90, 0x90];
        jump[1..5].copy_from_slice(&distance.to_le_bytes());
        self.memory.patch_start(host, jump);
        self.by_address.remove(start);
        for page in [Some(start.gpa & !0xfff), second].into_iter().flatten() {
            self.pages.remove(page, id);
        }
        self.statistics.invalidated += 1;
    }

    fn undo_links_to(&mut self, id: BlockId) {
        let mut number = std::mem::replace(&mut self.blocks[id as usize].first_incoming, NONE);
        while number != NONE {
            let link = &mut self.links[number as usize];
            link.to = NONE;
            number = std::mem::replace(&mut link.next_incoming, NONE);
            // A dead block's links are no more: its first bytes, where one may have been, lead away.
            if !self.blocks[link.from as usize].alive {
                continue;
            }
            if link.guard == NONE {
                let distance = i64::from(link.unlinked) - (i64::from(link.patch) + 4);
                self.memory.patch32(link.patch as usize, distance as i32);
            } else {
                self.memory.patch32(link.guard as usize, 0);
            }
        }
    }

    /// The live or dead block whose host code holds `pc`, and the guest page offset there.
    pub fn locate(&self, pc: u64) -> Option<(BlockId, u16)> {
        let offset = u32::try_from(pc.checked_sub(self.memory.base())?).ok()?;
        let (id, inside) = match (offset as usize) < self.memory.cold_start() {
            true => self.locate_usual(offset)?,
            false => self.locate_cold(offset)?,
        };
        let locations = self.locations_of(id);
        let after = locations.partition_point(|location| location.host_offset() <= inside);
        let location = locations.get(after.checked_sub(1)?)?;
        Some((id as BlockId, location.page_offset()))
    }

    fn locations_of(&self, id: usize) -> &[PackedLocation] {
        let end = self.blocks.get(id + 1).map_or(self.locations.len(), |next| next.first_location as usize);
        &self.locations[self.blocks[id].first_location as usize..end]
    }

    /// The block whose usual part holds `offset`, and the offset in its code. Such parts lie one after another.
    fn locate_usual(&self, offset: u32) -> Option<(usize, u32)> {
        let after = self.blocks.partition_point(|block| block.host_offset <= offset);
        let id = after.checked_sub(1)?;
        Some((id, offset - self.blocks[id].host_offset))
    }

    /// The same of the parts that seldom run: each lies before that of the block before.
    fn locate_cold(&self, offset: u32) -> Option<(usize, u32)> {
        let id = self.blocks.partition_point(|block| block.cold_offset > offset);
        let block = self.blocks.get(id)?;
        Some((id, block.host_length + offset - block.cold_offset))
    }

    /// Forget everything.
    pub fn clear(&mut self) {
        self.memory.truncate(self.preamble);
        self.discarded.add(self.pages.take());
        self.blocks.clear();
        self.locations.clear();
        self.links.clear();
        self.system.clear();
        self.by_address.clear();
        self.unshared.clear();
        self.epoch += 1;
        self.statistics.flushes += 1;
    }
}

#[cfg(test)]
mod tests;

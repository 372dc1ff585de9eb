//! The block at RIP: found, or translated.

use super::vcpu::VcpuCore;
use crate::cache::{BlockId, Key, Known, Start, Translation, ANYWHERE};
use crate::cpu::{Exception, Stop};
use crate::emit::Hints;
use crate::frontend::{self, Fetched};
use crate::mmu::walk::{is_canonical, Kind};
use crate::mode::Width;
use crate::optimisations::{Optimisation, Optimisations};
use crate::state::seg;
use crate::system::memory::AccessMode;
use sublet_engine::Exit;

/// Bytes of a guest page.
pub(super) const PAGE: usize = 4096;
/// Bytes that one block's instructions can have at most: 64 of 15.
const BLOCK_BYTES: usize = 64 * frontend::MAX_INSTRUCTION_BYTES;
/// More code than one block becomes.
const BLOCK_ROOM: usize = 256 << 10;
/// `Exit::InternalError`: a block is larger than the room kept for one.
const NO_ROOM_CODE: u32 = 2;

/// A block to enter.
pub(super) struct Found {
    pub(super) host: u64,
    /// Its number; it may have been dropped.
    pub(super) block: BlockId,
}

impl VcpuCore {
    /// The block for RIP; sets `rip_page`.
    pub(super) fn block_at_rip(&mut self) -> Result<Found, Stop> {
        self.take_stores();
        let rip = self.cpu.state.rip;
        if let Some((block, host, rip_page)) = self.tlb.jumps.find(&self.cpu.state.hot, self.mode(), rip) {
            self.cpu.state.hot.rip_page = rip_page;
            return Ok(Found { host, block });
        }
        self.counters.lookups += 1;
        let la = self.linear_rip();
        self.check_rip()?;
        let gpa = self.fetch_address(la)?;
        let rip_page = rip.wrapping_sub(la & 0xfff);
        self.cpu.state.hot.rip_page = rip_page;
        let start = self.start_at(gpa);
        let known = match self.cache.find(start) {
            Some(known) if !known.straddles || self.second_page_holds(known.block, la)? => known,
            _ => self.translate(la, start)?,
        };
        if self.mode().code_limited() && self.is_beyond_limit(known.block) {
            return self.alone_within_limit();
        }
        let host = self.cache.host_address(known);
        let mode = self.mode();
        self.tlb.jumps.fill(&mut self.cpu.state.hot, mode, rip, (known.block, host, rip_page));
        Ok(Found { host, block: known.block })
    }

    /// What the block at `gpa`, which lies in the page of `rip_page`, is found by.
    fn start_at(&self, gpa: u64) -> Start {
        let mode = self.mode();
        let placed = mode.stays() && self.shared.optimisations.has(Optimisation::PlacedCode);
        Start { gpa, rip_page: if placed { self.cpu.state.hot.rip_page } else { ANYWHERE }, mode }
    }

    /// Whether part of the block lies beyond the limit of CS.
    fn is_beyond_limit(&self, block: BlockId) -> bool {
        let last = self.cpu.state.rip + u64::from(self.cache.block(block).guest_length).saturating_sub(1);
        last > u64::from(self.cpu.state.segments[seg::CS].limit)
    }

    /// The first instruction of a block that reaches beyond the limit, on its own.
    fn alone_within_limit(&mut self) -> Result<Found, Stop> {
        if self.mode().is_alone() {
            return Err(Exception::protection(0).into());
        }
        self.cpu.state.hot.mode = u64::from(self.mode().alone().0);
        self.mode_stale = true;
        self.block_at_rip()
    }

    pub(super) fn linear_rip(&self) -> u64 {
        let state = &self.cpu.state;
        if self.mode().is64() {
            state.rip
        } else {
            state.rip.wrapping_add(state.segments[seg::CS].base) & 0xffff_ffff
        }
    }

    fn check_rip(&self) -> Result<(), Exception> {
        let state = &self.cpu.state;
        let ok = if self.mode().code() == Width::W64 {
            is_canonical(state.rip)
        } else {
            state.rip <= u64::from(state.segments[seg::CS].limit)
        };
        if ok {
            Ok(())
        } else {
            Err(Exception::protection(0))
        }
    }

    /// Translate the address of code.
    fn fetch_address(&mut self, la: u64) -> Result<u64, Exception> {
        let user = self.mode().cpl() == 3;
        if let Some(page) = self.tlb.find_code(la, user) {
            return Ok(page | (la & 0xfff));
        }
        let access = self.cpu.access(AccessMode::Current, Kind::Execute);
        let walk = self.cpu.translate_linear(la, access)?;
        self.tlb.fill_code(la, user, self.mode().is64(), &walk);
        Ok(walk.gpa)
    }

    /// A straddling block stands for two pages: the second must still be where it was.
    fn second_page_holds(&mut self, block: BlockId, la: u64) -> Result<bool, Stop> {
        let Some(second) = self.cache.block(block).second_page() else { return Ok(true) };
        let next = self.fetch_address((la | 0xfff).wrapping_add(1))?;
        if next & !0xfff == second {
            return Ok(true);
        }
        let gpa = self.cache.block(block).gpa;
        self.drop_code(gpa, 1);
        Ok(false)
    }

    fn translate(&mut self, la: u64, start: Start) -> Result<Known, Stop> {
        let gpa = start.gpa;
        if !self.cache.has_room_for(BLOCK_ROOM, self.shared.cache_share()) {
            self.clear_code();
        }
        let optimisations = self.optimisations_at(gpa);
        self.fetch_code(gpa, BLOCK_BYTES, 0);
        let key = Key { start, optimisations };
        let made = match self.take_finished(key) {
            Some(translation) => Ok((translation, None)),
            None => self.make(la, key),
        };
        let inserted = made.and_then(|(translation, second)| self.insert(start, second, translation));
        if inserted.is_err() {
            self.release_page(gpa & !0xfff);
        }
        inserted
    }

    /// The translation of the code that has been fetched, if another vCPU has made it.
    fn take_finished(&mut self, key: Key) -> Option<Translation> {
        let bytes = &self.fetched[0][key.start.page_offset()..];
        let finished = self.shared.store()?.find(key, bytes)?;
        self.counters.copied += 1;
        Some(self.translator.copy_of(&finished))
    }

    /// Translate the code that has been fetched; also returns the second page.
    fn make(&mut self, la: u64, key: Key) -> Result<(Translation, Option<u64>), Stop> {
        let page = &self.fetched[0][..];
        if self.mode().kernel_windowed() {
            let state = &self.cpu.state;
            self.translator.expect(Hints::new(&state.gpr, state.segments[seg::GS].base));
        }
        match self.translator.translate(key.start, page, None, key.optimisations) {
            Fetched::Block(translation) => {
                if let Some(store) = self.shared.store() {
                    let from = key.start.page_offset();
                    let end = from + usize::from(translation.guest_length);
                    store.add(key, &page[from..end], &translation);
                }
                Ok((translation, None))
            }
            Fetched::NeedsNextPage => self.translate_straddling(la, key),
        }
    }

    fn optimisations_at(&self, gpa: u64) -> Optimisations {
        let all = self.shared.optimisations;
        if self.cache.may_share(gpa, self.mode()) {
            all
        } else if self.mode().windowed() || self.mode().kernel_windowed() {
            all.without(Optimisation::Windows).without(Optimisation::SharedChecks)
        } else {
            all.without(Optimisation::SharedChecks)
        }
    }

    /// The instruction at the end of a page that goes on in the next one.
    fn translate_straddling(&mut self, la: u64, key: Key) -> Result<(Translation, Option<u64>), Stop> {
        let next = self.fetch_address((la | 0xfff).wrapping_add(1))?;
        self.fetch_code(next & !0xfff, frontend::MAX_INSTRUCTION_BYTES, 1);
        let (first, second) = (&self.fetched[0][..], &self.fetched[1][..]);
        match self.translator.translate(key.start, first, Some(second), key.optimisations) {
            Fetched::Block(translation) => Ok((translation, Some(next & !0xfff))),
            Fetched::NeedsNextPage => {
                self.release_page(next & !0xfff);
                Err(Exception::UNDEFINED.into())
            }
        }
    }

    fn insert(
        &mut self,
        start: Start,
        second: Option<u64>,
        mut translation: Translation,
    ) -> Result<Known, Stop> {
        let inserted = self.cache.insert(start, second, &mut translation);
        self.translator.reuse(translation);
        inserted.ok_or(Stop::Exit(Exit::InternalError { code: NO_ROOM_CODE }))
    }
}

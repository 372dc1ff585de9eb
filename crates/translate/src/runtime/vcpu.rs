//! A vCPU's run loop.

use super::entry::{self, exit};
use super::shared::{lock, OnThread, Requests, Shared};
use super::signals::HOST_FAULT;
use crate::cache::BlockId;
use crate::cpu::{Cpu, Exception, Stop};
use crate::frontend::{self, Fetched};
use crate::mmu::tlb::TlbDirectory;
use crate::mmu::walk::{is_canonical, Kind};
use crate::mode::{Mode, Width};
use crate::state::{flag, seg, SegmentRegister, XSAVE_AREA_BYTES};
use crate::system::interrupt::Event;
use crate::system::memory::AccessMode;
use iced_x86::{Decoder, DecoderOptions, Mnemonic};
use std::collections::VecDeque;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Duration;
use sublet_engine::Exit;

const PAGE: usize = 4096;
const PANIC_CODE: u32 = 1;
const HOST_FAULT_CODE: u32 = 4;
const RESUME_FLAG: u64 = flag::RF;

/// Counters of one vCPU.
#[derive(Debug, Default, Clone, Copy)]
pub struct Counters {
    /// Times the cache was entered from the run loop.
    pub entries: u64,
    /// Blocks found in the run loop, and those that had to be translated.
    pub lookups: u64,
    /// Accesses off the inline path.
    pub slow_accesses: u64,
    /// Page walks for them.
    pub walks: u64,
    /// Accesses that crossed pages.
    pub crossings: u64,
    /// Instructions that compiled code carried out.
    pub system: u64,
    /// External interrupts taken.
    pub interrupts: u64,
    /// Exceptions delivered.
    pub exceptions: u64,
    /// Page faults among them.
    pub page_faults: u64,
    /// Times in HLT.
    pub halts: u64,
    /// Indirect branches resolved in the run loop.
    pub indirect: u64,
    /// Unlinked direct branches resolved in the run loop.
    pub links: u64,
    /// Leaders whose range was not one page of plain RAM.
    pub unshared: u64,
}

/// A block to enter.
struct Found {
    host: u64,
    /// Its number, unless it was found in a jump cache.
    block: Option<BlockId>,
}

/// What the run loop does next.
enum Next {
    /// Look for events, then for the block at RIP.
    Continue,
    /// Enter the block at this host address straight away: nothing it depends on has changed.
    Enter(u64),
    /// Leave `run`.
    Leave(Exit),
}

/// One vCPU of the translation engine.
pub struct VcpuCore {
    /// Architectural state and compiled semantics.
    pub cpu: Cpu,
    /// What the VM's vCPUs share.
    pub shared: Arc<Shared>,
    /// How other threads reach this one.
    pub requests: Arc<Requests>,
    pub(super) tlb: TlbDirectory,
    pub(super) counters: Counters,
    pub(super) stopped: Option<Stop>,
    pub(super) store: super::access::PendingStore,
    pub(super) mmio_reads: Vec<u64>,
    pub(super) mmio_writes: VecDeque<Exit>,
    /// Data breakpoints are armed.
    pub(super) watching: bool,
    /// DR6 bits of data breakpoints that the current instruction hit.
    pub(super) debug_hits: u64,
    /// `Exit::InterruptWindow` was asked for.
    pub window_wanted: bool,
    /// A read exit was left whose data the caller gives before the next run.
    pub(super) awaiting: Option<(bool, u64, u8)>,
    /// The next instruction is to run on its own: without shared checks, and back here after it.
    pub(super) alone: bool,
    /// The last exit from the cache delivered an exception: no debug trap follows.
    event_was_exception: bool,
    panicked: bool,
    /// An event is pending that the guest does not take yet.
    event_waits: bool,
    /// Control registers, segments, flags or TLBs may have changed since `mode` was computed.
    mode_stale: bool,
    /// `state.vector` holds the vectors and x87 state; otherwise `hot` and the processor do.
    vectors_in_area: bool,
    xcr0_host: u64,
    watch_key: u64,
}

impl VcpuCore {
    /// A vCPU at reset state. It must not move while `run` is active.
    pub fn new(cpu: Cpu, shared: Arc<Shared>) -> Box<Self> {
        let requests = Arc::new(Requests::default());
        let mut core = Box::new(Self {
            cpu,
            shared,
            requests,
            tlb: TlbDirectory::default(),
            counters: Counters::default(),
            stopped: None,
            store: super::access::PendingStore::default(),
            mmio_reads: Vec::new(),
            mmio_writes: VecDeque::new(),
            watching: false,
            debug_hits: 0,
            window_wanted: false,
            awaiting: None,
            alone: false,
            event_was_exception: false,
            panicked: false,
            event_waits: true,
            mode_stale: true,
            vectors_in_area: true,
            xcr0_host: host_xcr0(),
            watch_key: 0,
        });
        entry::prepare(&mut core.cpu.state.hot);
        let runtime: *mut Self = &mut *core;
        core.cpu.state.hot.runtime = runtime as u64;
        core.requests.attach(&core.cpu.state.hot.permit);
        core.cpu.mmu.flush(crate::cpu::Flush::All);
        core
    }

    /// The mode that translated code runs in.
    pub(super) fn mode(&self) -> Mode {
        Mode(self.cpu.state.hot.mode as u32)
    }

    /// Counters so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Flushes so far: all of the TLBs, non-global entries, single pages; all jump caches.
    pub fn flushes(&self) -> [u64; 4] {
        self.tlb.flushes
    }

    /// Make `state.vector` loadable, whatever its header and MXCSR were.
    pub fn tidy_vectors(&mut self) {
        const MXCSR: std::ops::Range<usize> = 24..28;
        const HEADER: std::ops::Range<usize> = 512..576;
        let area = &mut self.cpu.state.vector.0;
        let mut word = [0; 8];
        word.copy_from_slice(&area[512..520]);
        let components = u64::from_le_bytes(word) & self.xcr0_host;
        area[HEADER].fill(0);
        area[512..520].copy_from_slice(&components.to_le_bytes());
        let mut mxcsr = [0; 4];
        mxcsr.copy_from_slice(&area[MXCSR]);
        area[MXCSR].copy_from_slice(&(u32::from_le_bytes(mxcsr) & 0xffff).to_le_bytes());
    }

    /// Run guest code until an exit.
    pub fn run(&mut self) -> Exit {
        if let Some(exit) = self.mmio_writes.pop_front() {
            return exit;
        }
        if let Some((port, address, size)) = self.awaiting.take() {
            // The caller gave nothing: the bus floats.
            self.cpu.completed_read = Some((port, address, size, u64::MAX));
        }
        let _here = OnThread::enter(&self.shared);
        let requests = self.requests.clone();
        requests.running.store(true, Ordering::SeqCst);
        let gs = GsBase::set(std::ptr::from_ref(&*self.cpu.state) as u64);
        let result = catch_unwind(AssertUnwindSafe(|| self.run_loop()));
        self.store_vectors();
        drop(gs);
        requests.running.store(false, Ordering::SeqCst);
        let exit = result.unwrap_or(Exit::InternalError { code: PANIC_CODE });
        self.note_read(&exit);
        exit
    }

    fn note_read(&mut self, exit: &Exit) {
        self.awaiting = match *exit {
            Exit::PioIn { port, size } => Some((true, u64::from(port), size)),
            Exit::MmioRead { gpa, size } => Some((false, gpa, size)),
            _ => None,
        };
    }

    /// Give the result of the last read exit.
    pub fn complete_read(&mut self, data: u64) {
        if let Some((port, address, size)) = self.awaiting.take() {
            self.cpu.completed_read = Some((port, address, size, data));
        }
    }

    /// Run compiled code called from the cache; a panic leaves with an internal error.
    pub(super) fn guarded(&mut self, work: impl FnOnce(&mut Self) -> u64) -> u64 {
        match catch_unwind(AssertUnwindSafe(|| work(self))) {
            Ok(action) => action,
            Err(_) => {
                self.panicked = true;
                self.stopped = None;
                self.cpu.state.hot.exit_reason = exit::ACCESS;
                entry::resume::LEAVE
            }
        }
    }

    fn run_loop(&mut self) -> Exit {
        self.load_vectors();
        self.mode_stale = true;
        self.set_event_waits(true);
        // Memslots may have gone since; nothing runs before their addresses are forgotten.
        self.take_flush();
        // Events wait for the instruction whose read has been answered: the data would be lost.
        self.alone = self.cpu.has_answered_read();
        let mut next = if self.alone { self.enter_current() } else { Next::Continue };
        loop {
            next = match next {
                Next::Leave(exit) => return exit,
                Next::Enter(host) => self.enter(host),
                Next::Continue => match self.events() {
                    Some(exit) => Next::Leave(exit),
                    None => self.enter_current(),
                },
            };
        }
    }

    /// Take requests and events; `Some` to leave.
    fn events(&mut self) -> Option<Exit> {
        // Whoever wants something zeroes the permit; what had to wait is noted here.
        let quiet = self.cpu.state.hot.permit.load(Ordering::Relaxed) != 0;
        if quiet
            && !self.event_waits
            && !self.cpu.events.halted
            && self.mmio_writes.is_empty()
            && !self.panicked
        {
            return None;
        }
        self.take_requests().or_else(|| self.take_events())
    }

    fn take_requests(&mut self) -> Option<Exit> {
        self.cpu.state.hot.permit.store(1, Ordering::SeqCst);
        if let Some(exit) = self.mmio_writes.pop_front() {
            return Some(exit);
        }
        if self.panicked {
            return Some(Exit::InternalError { code: PANIC_CODE });
        }
        if self.requests.kicked.swap(false, Ordering::SeqCst) {
            return Some(Exit::Interrupted);
        }
        self.take_flush();
        if self.requests.stores.swap(false, Ordering::SeqCst) && self.shared.take_stores() {
            self.clear_code();
        }
        None
    }

    /// Memslots changed: forget host addresses, and code of pages that may be others now.
    fn take_flush(&mut self) {
        if !self.requests.flush.load(Ordering::SeqCst) {
            return;
        }
        self.cpu.mmu.flush(crate::cpu::Flush::All);
        self.apply_flushes();
        if self.requests.remapped.swap(false, Ordering::SeqCst) {
            self.clear_code();
        }
        self.mode_stale = true;
        self.requests.flush.store(false, Ordering::SeqCst);
        self.shared.release_old_slots();
    }

    /// Drop all translated code.
    fn clear_code(&mut self) {
        for page in lock(&self.shared.cache).clear() {
            self.cpu.memory.mark_code_page(page, false);
        }
        self.tlb.clear_jumps(&mut self.cpu.state.hot);
    }

    fn take_events(&mut self) -> Option<Exit> {
        loop {
            if let Some(exit) = self.take_event() {
                self.set_event_waits(true);
                return Some(exit);
            }
            if !self.cpu.events.halted {
                self.note_waiting();
                return None;
            }
            if let Some(exit) = self.wait_in_halt() {
                return Some(exit);
            }
        }
    }

    /// Remember whether an event is held off, so that what enables it looks again.
    fn note_waiting(&mut self) {
        let chip = self.cpu.apic.as_ref().is_some_and(|apic| apic.has_event());
        let events = &self.cpu.events;
        let waits = chip || events.nmi_pending || events.injected.is_some() || self.window_wanted;
        self.set_event_waits(waits);
    }

    fn set_event_waits(&mut self, waits: bool) {
        self.event_waits = waits;
        self.cpu.state.hot.nothing_waits = u64::from(!waits);
    }

    fn take_event(&mut self) -> Option<Exit> {
        if let Some(apic) = &self.cpu.apic {
            if apic.has_event() {
                self.cpu.events.nmi_pending |= apic.take_nmi();
                if apic.take_init() {
                    return Some(Exit::SystemReset);
                }
                let _ = apic.take_sipi();
                let _ = apic.take_smi();
            }
        }
        let shadow = self.cpu.events.interrupt_shadow;
        if self.cpu.events.nmi_pending && !self.cpu.events.nmi_masked && !shadow {
            self.cpu.events.nmi_pending = false;
            return self.deliver(Event::Nmi);
        }
        if shadow || self.cpu.state.rflags & flag::IF == 0 {
            return None;
        }
        if let Some(vector) = self.pending_interrupt() {
            self.counters.interrupts += 1;
            return self.deliver(Event::External(vector));
        }
        if self.window_wanted {
            return Some(Exit::InterruptWindow);
        }
        None
    }

    fn pending_interrupt(&mut self) -> Option<u8> {
        if let Some(vector) = self.cpu.events.injected.take() {
            return Some(vector);
        }
        let apic = self.cpu.apic.as_ref()?;
        if apic.has_interrupt() {
            if let Some(vector) = apic.acknowledge() {
                return Some(vector);
            }
        }
        let irqchip = self.cpu.irqchip.as_ref()?;
        irqchip.extint_pending(apic.id()).then(|| irqchip.acknowledge_extint())
    }

    /// Sleep in HLT until something may have happened.
    fn wait_in_halt(&mut self) -> Option<Exit> {
        if self.cpu.apic.is_none() {
            self.cpu.events.halted = false;
            return Some(Exit::Hlt);
        }
        if self.requests.kicked.swap(false, Ordering::SeqCst) {
            return Some(Exit::Interrupted);
        }
        self.counters.halts += 1;
        self.requests.sleep(Some(Duration::from_secs(1)));
        self.take_flush();
        None
    }

    fn deliver(&mut self, event: Event) -> Option<Exit> {
        self.mode_stale = true;
        match self.cpu.deliver(event) {
            Ok(()) => None,
            Err(_) => Some(Exit::Shutdown),
        }
    }

    fn deliver_exception(&mut self, exception: Exception) -> Next {
        self.counters.exceptions += 1;
        self.counters.page_faults += u64::from(exception.vector == 14);
        self.after_event(Event::Exception(exception))
    }

    fn after_event(&mut self, event: Event) -> Next {
        match self.deliver(event) {
            Some(exit) => Next::Leave(exit),
            None => Next::Continue,
        }
    }

    /// Find or make the block at RIP and enter it.
    fn enter_current(&mut self) -> Next {
        self.prepare_mode();
        let alone = std::mem::take(&mut self.alone);
        let shadow = std::mem::take(&mut self.cpu.events.interrupt_shadow);
        if alone || (shadow && self.event_waits) {
            // One instruction on its own; what waits is looked at after it.
            self.cpu.state.hot.mode = u64::from(self.mode().alone().0);
            self.mode_stale = true;
        }
        if self.mode().single_step() {
            if let Some(next) = self.code_breakpoint() {
                return next;
            }
        }
        match self.block_at_rip() {
            Ok(found) => Next::Enter(found.host),
            Err(Stop::Exception(exception)) => self.deliver_exception(exception),
            Err(Stop::Exit(exit)) => Next::Leave(exit),
        }
    }

    /// Bring mode and TLBs up to date with the architectural state.
    fn prepare_mode(&mut self) {
        if !self.mode_stale {
            return;
        }
        self.mode_stale = false;
        let mode = Mode::of(&self.cpu.state);
        self.cpu.state.hot.mode = u64::from(mode.0);
        let watch_key = self.cpu.state.dr[7] & 0xff;
        if watch_key != self.watch_key {
            self.watch_key = watch_key;
            self.watching = self.cpu.any_breakpoint_enabled();
            self.cpu.mmu.flush(crate::cpu::Flush::All);
        }
        self.apply_flushes();
        self.prepare_system_calls();
        self.tlb.enter_mode(&mut self.cpu.state.hot, mode);
    }

    /// Say whether SYSCALL and SYSRETQ can stay in the cache, and what they load.
    fn prepare_system_calls(&mut self) {
        const ALL_FLAGS: u64 =
            flag::ARITHMETIC | flag::TF | flag::IF | flag::DF | flag::IOPL | flag::NT | flag::AC | flag::ID;
        let state = &self.cpu.state;
        let enabled = state.efer & 1 != 0 && state.long_mode();
        let masked = state.sfmask & ALL_FLAGS == ALL_FLAGS && is_canonical(state.lstar);
        let segments = self.cpu.system_call_segments();
        let hot = &mut self.cpu.state.hot;
        hot.syscall_ready = u64::from(enabled && masked);
        hot.sysret_ready = u64::from(enabled);
        hot.syscall_segments = segments[0].each_ref().map(SegmentRegister::image);
        hot.sysret_segments = segments[1].each_ref().map(SegmentRegister::image);
    }

    fn apply_flushes(&mut self) {
        while let Some(flush) = self.cpu.mmu.take_pending() {
            self.tlb.flush(&mut self.cpu.state.hot, flush);
        }
    }

    fn code_breakpoint(&mut self) -> Option<Next> {
        if self.cpu.state.rflags & RESUME_FLAG != 0 {
            return None;
        }
        let hits = self.cpu.code_breakpoint_hit(self.linear_rip());
        (hits != 0).then(|| self.deliver_exception(Exception::debug(hits)))
    }

    fn linear_rip(&self) -> u64 {
        let state = &self.cpu.state;
        if self.mode().is64() {
            state.rip
        } else {
            state.rip.wrapping_add(state.segments[seg::CS].base) & 0xffff_ffff
        }
    }

    /// The block for RIP; sets `rip_page`.
    fn block_at_rip(&mut self) -> Result<Found, Stop> {
        let rip = self.cpu.state.rip;
        if let Some((host, rip_page)) = self.tlb.find_jump(&self.cpu.state.hot, self.mode(), rip) {
            self.cpu.state.hot.rip_page = rip_page;
            return Ok(Found { host, block: None });
        }
        self.counters.lookups += 1;
        let la = self.linear_rip();
        self.check_rip()?;
        let gpa = self.fetch_address(la)?;
        let rip_page = rip.wrapping_sub(la & 0xfff);
        self.cpu.state.hot.rip_page = rip_page;
        let found = lock(&self.shared.cache).find(gpa, self.mode());
        let block = match found {
            Some(block) if self.second_page_holds(block, la)? => block,
            _ => self.translate(la, gpa)?,
        };
        let host = lock(&self.shared.cache).host_address(block);
        let mode = self.mode();
        self.tlb.fill_jump(&mut self.cpu.state.hot, mode, rip, host, rip_page);
        Ok(Found { host, block: Some(block) })
    }

    fn check_rip(&self) -> Result<(), Exception> {
        let state = &self.cpu.state;
        let ok = if self.mode().is64() {
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
        self.tlb.fill_code(la, user, &walk);
        Ok(walk.gpa)
    }

    /// A straddling block stands for two pages: the second must still be where it was.
    fn second_page_holds(&mut self, block: BlockId, la: u64) -> Result<bool, Stop> {
        let Some(second) = lock(&self.shared.cache).block(block).second_page else { return Ok(true) };
        let next = self.fetch_address((la | 0xfff).wrapping_add(1))?;
        if next & !0xfff == second {
            return Ok(true);
        }
        let gpa = lock(&self.shared.cache).block(block).gpa;
        lock(&self.shared.cache).invalidate(gpa, 1);
        Ok(false)
    }

    fn translate(&mut self, la: u64, gpa: u64) -> Result<BlockId, Stop> {
        let offset = (gpa & 0xfff) as usize;
        let page = self.code_page(gpa);
        let share = lock(&self.shared.cache).may_share(gpa, self.mode());
        let (translation, second) = match frontend::translate(self.mode(), &page[..], offset, None, share) {
            Fetched::Block(translation) => (translation, None),
            Fetched::NeedsNextPage => {
                let next_gpa = self.fetch_address((la | 0xfff).wrapping_add(1))?;
                let next = self.code_page(next_gpa);
                match frontend::translate(self.mode(), &page[..], offset, Some(&next[..]), share) {
                    Fetched::Block(translation) => (translation, Some(next_gpa & !0xfff)),
                    Fetched::NeedsNextPage => return Err(Exception::UNDEFINED.into()),
                }
            }
        };
        self.insert(gpa, second, translation)
    }

    fn insert(
        &mut self,
        gpa: u64,
        second: Option<u64>,
        translation: crate::cache::Translation,
    ) -> Result<BlockId, Stop> {
        if !lock(&self.shared.cache).has_room_for(translation.code.len()) {
            self.clear_code();
            for page in [Some(gpa), second].into_iter().flatten() {
                self.cpu.memory.mark_code_page(page, true);
            }
        }
        let inserted = lock(&self.shared.cache).insert(gpa, self.mode(), second, translation);
        inserted.ok_or(Stop::Exit(Exit::InternalError { code: 2 }))
    }

    /// A copy of the page of code at `gpa`, from now on protected against unseen stores.
    fn code_page(&mut self, gpa: u64) -> Box<[u8; PAGE]> {
        let mut bytes = Box::new([0xff; PAGE]);
        let page = gpa & !0xfff;
        if let Some(host) = self.cpu.memory.host_page(page) {
            if !host.code {
                self.cpu.memory.mark_code_page(page, true);
                self.tlb.protect_host_page(&mut self.cpu.state.hot, host.host as u64);
            }
            // A page of RAM is always readable whole.
            let _ = self.cpu.memory.read(page, &mut bytes[..]);
        }
        bytes
    }

    /// Enter a block, and deal with what made translated code leave.
    fn enter(&mut self, host: u64) -> Next {
        self.counters.entries += 1;
        let stepping = self.cpu.state.rflags & flag::TF != 0;
        self.cpu.state.rflags &= !RESUME_FLAG;
        // Should the block be dead by now, its stub takes the target from there.
        self.cpu.state.hot.target = self.cpu.state.rip;
        self.load_vectors();
        // SAFETY: GS points at this vCPU's state (see `run`), `host` is the entry of a live block,
        // and no reference into `self` is used by the calls that translated code makes but the
        // pointer in `hot.runtime`, which is this core.
        unsafe { entry::sublet_enter_cache(host) };
        let next = self.after_exit();
        self.after_step(stepping, next)
    }

    /// Debug traps of the instruction just run: single step and data breakpoints.
    fn after_step(&mut self, stepping: bool, next: Next) -> Next {
        let hits = std::mem::take(&mut self.debug_hits);
        let trap = u64::from(stepping) << 14 | hits;
        if trap == 0 || !matches!(next, Next::Continue | Next::Enter(_)) || self.event_was_exception {
            return next;
        }
        self.deliver_exception(Exception::debug(trap))
    }

    fn after_exit(&mut self) -> Next {
        self.event_was_exception = false;
        let hot = &mut self.cpu.state.hot;
        match hot.exit_reason {
            exit::LINK => {
                let number = hot.exit_argument;
                self.follow_link(number)
            }
            exit::INDIRECT => {
                self.counters.indirect += 1;
                self.cpu.state.rip = hot.target;
                if std::mem::take(&mut hot.dead_entry) != 0 {
                    let (mode, rip) = (Mode(hot.mode as u32), hot.target);
                    self.tlb.forget_jump(hot, mode, rip);
                }
                Next::Continue
            }
            exit::SYSTEM => {
                let number = hot.exit_argument;
                self.carry_out(number)
            }
            exit::FAULT => self.host_fault(),
            _ => match self.stopped.take() {
                Some(Stop::Exception(exception)) => self.raise(exception),
                Some(Stop::Exit(Exit::Interrupted)) | None => Next::Continue,
                Some(Stop::Exit(exit)) => Next::Leave(exit),
            },
        }
    }

    fn raise(&mut self, exception: Exception) -> Next {
        self.event_was_exception = true;
        self.deliver_exception(exception)
    }

    /// RIP = that of the running block's page plus an offset, at the width of the mode.
    pub(super) fn set_rip_in_page(&mut self, page_offset: i64) {
        let rip = self.cpu.state.hot.rip_page.wrapping_add(page_offset as u64);
        self.cpu.state.rip = match self.mode().code() {
            Width::W64 => rip,
            Width::W32 => rip & 0xffff_ffff,
            Width::W16 => rip & 0xffff,
        };
    }

    fn follow_link(&mut self, number: u64) -> Next {
        self.counters.links += 1;
        let link = lock(&self.shared.cache).link(number);
        self.set_rip_in_page(link.delta);
        let alone = self.mode().single_step() || self.mode().is_alone();
        if alone || self.cpu.state.hot.permit.load(Ordering::SeqCst) == 0 {
            return Next::Continue;
        }
        let epoch = lock(&self.shared.cache).epoch;
        let found = match self.block_at_rip() {
            Ok(found) => found,
            Err(Stop::Exception(exception)) => return self.raise(exception),
            Err(Stop::Exit(exit)) => return Next::Leave(exit),
        };
        let mut cache = lock(&self.shared.cache);
        let block = found.block.or_else(|| cache.find_by_host(found.host));
        if let Some(block) =
            block.filter(|&block| cache.epoch == epoch && cache.block(block).second_page.is_none())
        {
            cache.connect(number, block, self.tlb.generation);
        }
        Next::Enter(found.host)
    }

    /// Have compiled code carry out the instruction that ended the block.
    fn carry_out(&mut self, number: u64) -> Next {
        self.counters.system += 1;
        self.mode_stale = true;
        let instruction = lock(&self.shared.cache).system_instruction(number);
        self.set_rip_in_page(instruction.ip() as i64);
        match frontend::classify(&instruction, self.mode()) {
            frontend::Kind::Undefined => {
                let exception = self.undefined_or_too_long(&instruction);
                return self.raise(exception);
            }
            frontend::Kind::DeviceNotAvailable => return self.raise(Exception::DEVICE_NOT_AVAILABLE),
            _ => {}
        }
        if uses_vectors(&instruction) {
            self.store_vectors();
        }
        // A software interrupt clears TF; no single-step trap follows in its handler.
        self.event_was_exception =
            matches!(instruction.mnemonic(), Mnemonic::Int | Mnemonic::Int3 | Mnemonic::Into);
        match self.cpu.execute(&instruction) {
            Ok(()) => Next::Continue,
            Err(Stop::Exception(exception)) => self.raise(exception),
            Err(Stop::Exit(exit)) => Next::Leave(exit),
        }
    }

    /// #UD, or #GP(0) for an instruction of more than 15 bytes.
    fn undefined_or_too_long(&mut self, instruction: &iced_x86::Instruction) -> Exception {
        if !instruction.is_invalid() || instruction.len() < frontend::MAX_INSTRUCTION_BYTES {
            return Exception::UNDEFINED;
        }
        // It would be valid with fewer prefixes.
        let mut bytes = [0; 2 * frontend::MAX_INSTRUCTION_BYTES];
        let la = self.linear_rip();
        if self.cpu.read_bytes(la, &mut bytes, AccessMode::System).is_err() {
            return Exception::UNDEFINED;
        }
        let bits = self.mode().code().bits();
        let too_long = (1..frontend::MAX_INSTRUCTION_BYTES)
            .take_while(|&skipped| is_legacy_prefix(bytes[skipped - 1]))
            .any(|skipped| {
                let rest = Decoder::new(bits, &bytes[skipped..], DecoderOptions::NONE).decode();
                !rest.is_invalid() && rest.len() + skipped > frontend::MAX_INSTRUCTION_BYTES
            });
        if too_long {
            Exception::protection(0)
        } else {
            Exception::UNDEFINED
        }
    }

    fn host_fault(&mut self) -> Next {
        let (pc, vector) = (self.cpu.state.hot.fault_pc, self.cpu.state.hot.fault_vector);
        if vector == HOST_FAULT {
            // Registers may hold host addresses (a string instruction's): nothing goes back to the guest.
            return Next::Leave(Exit::InternalError { code: HOST_FAULT_CODE });
        }
        let located = lock(&self.shared.cache).locate(pc);
        let Some((_, page_offset)) = located else { return Next::Leave(Exit::InternalError { code: 3 }) };
        self.set_rip_in_page(i64::from(page_offset));
        let exception = match vector {
            13 => Exception::protection(0),
            vector => Exception::new(vector as u8),
        };
        self.raise(exception)
    }

    /// Bring `state.vector` up to date; the processor's x87 unit is left at the host's defaults.
    pub fn store_vectors(&mut self) {
        if self.vectors_in_area {
            return;
        }
        // SAFETY: GS points at this vCPU's state: called inside `run` only while the vectors are
        // not in the area; the area is aligned and of 4 KiB, and `xcr0_host` within what the host enables.
        unsafe { entry::save_x87(self.cpu.state.vector.0.as_mut_ptr(), self.xcr0_host) };
        self.vectors_in_area = true;
    }

    fn load_vectors(&mut self) {
        if !self.vectors_in_area {
            return;
        }
        // SAFETY: as in `store_vectors`; every writer of the area keeps its header valid.
        unsafe { entry::load_x87(self.cpu.state.vector.0.as_ptr(), self.xcr0_host) };
        self.vectors_in_area = false;
    }
}

impl Drop for VcpuCore {
    fn drop(&mut self) {
        self.requests.detach();
    }
}

fn is_legacy_prefix(byte: u8) -> bool {
    matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3)
}

/// Instructions whose compiled form reads or writes `state.vector`.
fn uses_vectors(instruction: &iced_x86::Instruction) -> bool {
    use Mnemonic as M;
    let named = matches!(
        instruction.mnemonic(),
        M::Fxsave
            | M::Fxsave64
            | M::Fxrstor
            | M::Fxrstor64
            | M::Xsave
            | M::Xsave64
            | M::Xsaveopt
            | M::Xsaveopt64
            | M::Xsavec
            | M::Xsavec64
            | M::Xsaves
            | M::Xsaves64
            | M::Xrstor
            | M::Xrstor64
            | M::Xrstors
            | M::Xrstors64
            | M::Fnstenv
            | M::Fstenv
            | M::Fnsave
            | M::Fsave
            | M::Maskmovq
            | M::Xgetbv
    );
    named
        || (0..instruction.op_count()).any(|index| {
            let register = instruction.op_register(index);
            register.is_xmm() || register.is_ymm() || register.is_zmm() || register.is_k() || register.is_mm()
        })
}

/// State components that vCPUs may use: x87, SSE, AVX, AVX-512, as far as the host enables them.
fn host_xcr0() -> u64 {
    const MINE: u64 = 0xe7;
    // SAFETY: the engine refuses hosts without XSAVE (see `vm.rs`).
    let host = unsafe { std::arch::x86_64::_xgetbv(0) };
    const { assert!(XSAVE_AREA_BYTES >= 2696) };
    if host & 0xe0 == 0xe0 {
        host & MINE
    } else {
        host & 7
    }
}

/// The GS base of this thread, put back when dropped.
struct GsBase(u64);

impl GsBase {
    fn set(base: u64) -> Self {
        let old = arch_prctl_get();
        arch_prctl_set(base);
        Self(old)
    }
}

impl Drop for GsBase {
    fn drop(&mut self) {
        arch_prctl_set(self.0);
    }
}

fn has_fsgsbase() -> bool {
    const HWCAP2_FSGSBASE: u64 = 1 << 1;
    static KNOWN: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    // SAFETY: getauxval has no preconditions.
    *KNOWN.get_or_init(|| unsafe { libc::getauxval(libc::AT_HWCAP2) } & HWCAP2_FSGSBASE != 0)
}

fn arch_prctl_get() -> u64 {
    if has_fsgsbase() {
        let base: u64;
        // SAFETY: the kernel enables RDGSBASE for programs (checked above).
        unsafe { std::arch::asm!("rdgsbase {0}", out(reg) base, options(nomem, nostack)) };
        return base;
    }
    const ARCH_GET_GS: i32 = 0x1004;
    let mut base = 0u64;
    // SAFETY: writes one u64 to the address given.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_GET_GS, &mut base) };
    base
}

fn arch_prctl_set(base: u64) {
    if has_fsgsbase() {
        // SAFETY: as above; user space on x86-64 Linux does not use GS otherwise.
        unsafe { std::arch::asm!("wrgsbase {0}", in(reg) base, options(nomem, nostack)) };
        return;
    }
    const ARCH_SET_GS: i32 = 0x1001;
    // SAFETY: changes the GS base of this thread only.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, base) };
}

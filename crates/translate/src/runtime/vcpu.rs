//! A vCPU's run loop.

use super::blocks::PAGE;
use super::coherence::{Marked, Unconfirmed};
use super::entry::{self, exit};
use super::requests::Requests;
use super::shared::{OnThread, Shared, CACHE_SHARE};
use super::signals;
use super::vectors::host_xcr0;
use crate::cache::{CacheStatistics, CodeCache, CodeMemory};
use crate::cpu::{Cpu, Exception, Flush, Stop};
use crate::emit::{Assembler, Host};
use crate::frontend::Translator;
use crate::mmu::tlb::TlbDirectory;
use crate::mmu::walk::is_canonical;
use crate::mode::Mode;
use crate::optimisations::Optimisation;
use crate::state::{flag, CpuState, HotState, SegmentRegister, RETURN_STACKS};
use std::collections::HashMap;
use std::mem::offset_of;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::Ordering;
use std::sync::Arc;
use sublet_engine::{EngineError, Exit, Result};

pub(super) const PANIC_CODE: u32 = 1;
const RESUME_FLAG: u64 = flag::RF;

/// Counters of one vCPU.
#[derive(Debug, Default, Clone, Copy)]
pub struct Counters {
    /// Times the cache was entered from the run loop.
    pub entries: u64,
    /// Blocks found in the run loop, and those that had to be translated.
    pub lookups: u64,
    /// Translations taken from other vCPUs.
    pub copied: u64,
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
    /// SMIs taken.
    pub smis: u64,
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
    /// Pages of code that stores of other vCPUs could reach unheard for a moment.
    pub unconfirmed: u64,
    /// Stores found there by comparison.
    pub unheard: u64,
    /// Instructions run while all other vCPUs stood still.
    pub exclusive: u64,
    /// PAUSE instructions.
    pub pauses: u64,
    /// Microseconds that the guest stood still for the slowest emptying of the code cache.
    pub longest_clear_us: u64,
    /// Accesses that faulted in a memory window.
    pub window_faults: u64,
    /// Those of them that were left to a translation without windows.
    pub window_declined: u64,
    /// Times that PAUSE gave the host's processor away.
    pub yields: u64,
}

/// What the run loop does next.
pub(super) enum Next {
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
    /// Its number among the VM's vCPUs, 0 to 63: its bit in a page's marks.
    pub(super) number: u32,
    _registration: signals::Registration,
    /// All code translated by this vCPU; no other thread touches it.
    pub(super) cache: CodeCache,
    /// Marks of the pages that `cache` holds code of, by host address.
    pub(super) marks: HashMap<u64, Marked>,
    pub(super) unconfirmed: Vec<Unconfirmed>,
    /// Where code is read to be translated: of a block's page, and of the one after it.
    pub(super) fetched: Box<[[u8; PAGE]; 2]>,
    pub(super) translator: Translator,
    pub(super) tlb: TlbDirectory,
    pub(super) counters: Counters,
    /// Instructions that compiled code carried out, by mnemonic.
    pub(super) carried_out: super::tally::Tally,
    pub(super) stopped: Option<Stop>,
    pub(super) store: super::access::PendingStore,
    pub(super) mmio_reads: Vec<u64>,
    /// A debug trap that was due when `run` left with the instruction's data.
    pub(super) late_trap: u64,
    /// What `Cpu::debug_hits` was after a load of SS: reported after the next instruction.
    pub(super) held_hits: u64,
    /// `Exit::InterruptWindow` was asked for.
    pub window_wanted: bool,
    /// A read exit was left whose data the caller gives before the next run.
    pub(super) awaiting: Option<(bool, u64, u8)>,
    /// The next instruction is to run on its own: without shared checks, and back here after it.
    pub(super) alone: bool,
    /// With `alone`: while all other vCPUs stand still.
    pub(super) exclusive_wanted: bool,
    /// All other vCPUs stand still.
    pub(super) exclusive: bool,
    pub(super) spin: super::spin::Spin,
    /// The next instruction runs although an x87 exception is pending.
    pub(super) ignored_error: Option<super::math_error::IgnoredError>,
    pub(super) kernel_account: super::kernel_windows::Account,
    pub(super) window_policy: super::windows::Policy,
    /// A single-step trap follows the current instruction.
    pub(super) stepping: bool,
    /// The last exit from the cache delivered an exception: no debug trap follows.
    pub(super) faulted: bool,
    pub(super) panicked: bool,
    /// An event is pending that the guest does not take yet.
    pub(super) event_waits: bool,
    /// Control registers, segments, flags or TLBs may have changed since `mode` was computed.
    pub(super) mode_stale: bool,
    /// `state.vector` holds the vectors and x87 state; otherwise `hot` and the processor do.
    pub(super) vectors_in_area: bool,
    pub(super) xcr0_host: u64,
    /// The image that XSAVEC or XRSTOR is at work on.
    pub(super) image: Box<crate::state::XsaveArea>,
    watch_key: u64,
    /// What the known descriptors hold for.
    tables: crate::system::known::Tables,
    pub(super) profile: Option<super::profile::Profile>,
}

impl VcpuCore {
    /// A vCPU at reset state, of those of `shared`. It must not move while `run` is active.
    ///
    /// # Errors
    /// The host refuses executable memory, or there are too many vCPUs in the VM or the process.
    pub fn new(cpu: Cpu, shared: Arc<Shared>) -> Result<Box<Self>> {
        let (cache, registration) = code_cache()?;
        let requests = Arc::new(Requests::default());
        let number = shared.add_vcpu(requests.clone())?;
        let keeps_spaces = shared.optimisations.has(Optimisation::AddressSpaces);
        let mut core = Box::new(Self {
            cpu,
            shared,
            requests,
            number,
            _registration: registration,
            cache,
            marks: HashMap::new(),
            unconfirmed: Vec::new(),
            fetched: Box::new([[0xff; PAGE]; 2]),
            translator: Translator::default(),
            tlb: TlbDirectory::new(keeps_spaces),
            counters: Counters::default(),
            carried_out: super::tally::Tally::default(),
            stopped: None,
            store: super::access::PendingStore::default(),
            mmio_reads: Vec::new(),
            late_trap: 0,
            held_hits: 0,
            window_wanted: false,
            awaiting: None,
            alone: false,
            exclusive_wanted: false,
            exclusive: false,
            spin: super::spin::Spin::default(),
            ignored_error: None,
            kernel_account: super::kernel_windows::Account::default(),
            window_policy: super::windows::Policy::default(),
            stepping: false,
            faulted: false,
            panicked: false,
            event_waits: true,
            mode_stale: true,
            vectors_in_area: true,
            xcr0_host: host_xcr0(),
            image: Box::new(crate::state::XsaveArea([0; crate::state::XSAVE_AREA_BYTES])),
            watch_key: 0,
            tables: crate::system::known::Tables::default(),
            profile: None,
        });
        entry::prepare(&mut core.cpu.state.hot);
        let runtime: *mut Self = &mut *core;
        core.cpu.state.hot.runtime = runtime as u64;
        core.cpu.state.hot.unforeseen = core.cache.dead_stub();
        (0..RETURN_STACKS).for_each(|stack| core.cpu.state.hot.forget_returns(stack));
        core.requests.attach(&core.cpu.state.hot.permit);
        core.cpu.mmu.flush(Flush::All);
        Ok(core)
    }

    /// The mode that translated code runs in.
    pub(super) fn mode(&self) -> Mode {
        Mode(self.cpu.state.hot.mode as u32)
    }

    /// Counters so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// How often compiled code carried out which instruction.
    pub fn carried_out(&self) -> impl Iterator<Item = (String, u64)> + '_ {
        self.carried_out.counted()
    }

    /// Counters of the code cache.
    pub fn cache_statistics(&self) -> CacheStatistics {
        self.cache.statistics
    }

    /// Bytes of translated code.
    pub fn cache_used(&self) -> usize {
        self.cache.used()
    }

    /// Flushes so far: all of the TLBs, non-global entries, single pages; all jump caches.
    pub fn flushes(&self) -> [u64; 4] {
        self.tlb.flushes
    }

    /// Run guest code until an exit.
    pub fn run(&mut self) -> Exit {
        if let Some(exit) = self.cpu.posted_writes.pop_front() {
            return exit;
        }
        if let Some((port, address, size)) = self.awaiting.take() {
            // The caller gave nothing: the bus floats.
            self.cpu.completed_read = Some((port, address, size, u64::MAX));
        }
        let _here = OnThread::enter(&self.shared, self.number);
        let _notes = self.take_notes();
        self.activate();
        let result = catch_unwind(AssertUnwindSafe(|| self.run_loop()));
        self.store_vectors();
        self.count_notes();
        self.end_exclusive();
        self.requests.active.store(false, Ordering::SeqCst);
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
        // Events wait for the instruction whose read has been answered: the data would be lost.
        self.alone = self.cpu.has_answered_read();
        let mut next = match std::mem::take(&mut self.late_trap) {
            0 if self.alone => self.enter_current(),
            0 => Next::Continue,
            trap => self.deliver_exception(Exception::debug(trap)),
        };
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

    /// Find or make the block at RIP and enter it.
    pub(super) fn enter_current(&mut self) -> Next {
        self.prepare_mode();
        let alone = std::mem::take(&mut self.alone);
        if alone && std::mem::take(&mut self.exclusive_wanted) {
            self.begin_exclusive();
        }
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
    pub(super) fn prepare_mode(&mut self) {
        if !self.mode_stale {
            return;
        }
        self.mode_stale = false;
        let watch_key = self.cpu.state.dr[7] & 0xff;
        if watch_key != self.watch_key {
            self.watch_key = watch_key;
            self.cpu.watching = self.cpu.any_breakpoint_enabled();
            self.cpu.mmu.flush(Flush::All);
        }
        self.apply_flushes();
        let mode = self.choose_windows(Mode::of(&self.cpu.state));
        self.cpu.state.hot.mode = u64::from(mode.0);
        self.prepare_system_calls();
        self.prepare_descriptors();
        self.tlb.jumps.enter_mode(&mut self.cpu.state.hot, mode);
    }

    /// Say whether SYSCALL, SYSRETQ, SYSENTER and SYSEXIT can stay in the cache, and what they load.
    fn prepare_system_calls(&mut self) {
        const ALL_FLAGS: u64 =
            flag::ARITHMETIC | flag::TF | flag::IF | flag::DF | flag::IOPL | flag::NT | flag::AC | flag::ID;
        let state = &self.cpu.state;
        let enabled = state.efer & 1 != 0 && state.long_mode();
        let masked = state.sfmask & ALL_FLAGS == ALL_FLAGS && is_canonical(state.lstar);
        let segments = self.cpu.system_call_segments();
        let narrow = self.cpu.narrow_call_segments();
        let hot = &mut self.cpu.state.hot;
        hot.syscall_ready = u64::from(enabled && masked);
        hot.sysret_ready = u64::from(enabled);
        hot.syscall_segments = segments[0].each_ref().map(SegmentRegister::image);
        hot.sysret_segments = segments[1].each_ref().map(SegmentRegister::image);
        hot.iret_ready = u64::from(!self.cpu.events.nmi_masked);
        hot.sysenter_ready = u64::from(narrow.is_some());
        if let Some([enter, exit]) = narrow {
            hot.sysenter_segments = enter.each_ref().map(SegmentRegister::image);
            hot.sysexit_segments = exit.each_ref().map(SegmentRegister::image);
        }
    }

    /// Known descriptors lie where they were.
    fn prepare_descriptors(&mut self) {
        let tables = self.cpu.tables();
        if tables != self.tables {
            self.tables = tables;
            self.cpu.forget_descriptors();
        }
    }

    pub(super) fn apply_flushes(&mut self) {
        while let Some(flush) = self.cpu.mmu.take_pending() {
            self.tlb.flush(&mut self.cpu.state.hot, flush);
        }
        let pcid = self.cpu.pcid();
        self.tlb.agree(&mut self.cpu.state.hot, pcid);
        self.confirm_windows();
    }

    fn code_breakpoint(&mut self) -> Option<Next> {
        if self.cpu.state.rflags & RESUME_FLAG != 0 {
            return None;
        }
        let hits = self.cpu.code_breakpoint_hit(self.linear_rip());
        (hits != 0).then(|| self.deliver_exception(Exception::debug(hits)))
    }

    /// Enter a block, and deal with what made translated code leave.
    fn enter(&mut self, host: u64) -> Next {
        self.counters.entries += 1;
        self.stepping = self.cpu.state.rflags & flag::TF != 0;
        self.cpu.state.rflags &= !RESUME_FLAG;
        // Should the block be dead by now, its stub takes the target from there.
        self.cpu.state.hot.target = self.cpu.state.rip;
        self.load_vectors();
        let hidden = self.hide_math_error();
        // SAFETY: the state is this vCPU's, `host` is the entry of a live block,
        // and no reference into `self` is used by the calls that translated code makes but the
        // pointer in `hot.runtime`, which is this core.
        unsafe { entry::sublet_enter_cache(host, self.cpu.state.as_mut_ptr()) };
        self.end_exclusive();
        let next = self.after_exit();
        self.settle_math_error(hidden);
        self.after_step(next)
    }
}

impl Drop for VcpuCore {
    fn drop(&mut self) {
        self.requests.detach();
        self.requests.active.store(false, Ordering::SeqCst);
    }
}

/// An empty cache of the largest size, known to the signal handlers.
fn code_cache() -> Result<(CodeCache, signals::Registration)> {
    let code = CodeMemory::new(CACHE_SHARE.1).map_err(|error| EngineError::Host {
        what: "mapping the code cache".into(),
        errno: error.raw_os_error().unwrap_or(libc::ENOMEM),
    })?;
    let cache = CodeCache::new(code, &dead_stub());
    let (start, end) = cache.host_range();
    let registration = signals::register(start, end)
        .ok_or_else(|| EngineError::Invalid("too many virtual CPUs in one process".into()))?;
    Ok((cache, registration))
}

/// What a dropped block's entry jumps to: an indirect exit. Only jump caches still lead there, and
/// a jump through them has the target in R14.
fn dead_stub() -> Vec<u8> {
    let hot = |field: usize| (offset_of!(CpuState, hot) + field) as i32;
    let mut asm = Assembler::default();
    asm.store(hot(offset_of!(HotState, target)), Host::R14);
    asm.store_immediate(hot(offset_of!(HotState, dead_entry)), 1);
    asm.jump_at(hot(offset_of!(HotState, exit_indirect)));
    asm.code().to_vec()
}

//! Accesses of user code through memory windows: what fills them, and when they are used.

use super::entry::{exit, resume};
use super::vcpu::VcpuCore;
use crate::cpu::{Exception, Stop};
use crate::mmu::walk::{peek, Kind, Rights, Walk};
use crate::mmu::window::{Run, WindowStatistics, Windows, Zone};
use crate::mmu::SpaceId;
use crate::mode::Mode;
use crate::optimisations::Optimisation;
use crate::state::Side;
use crate::system::memory::AccessMode;
use iced_x86::{Instruction, Register};
use std::time::Duration;
use sublet_engine::Exit;
use sublet_memory::HostPage;

/// `Exit::InternalError`: a fault that no guest instruction can cause.
pub(super) const HOST_FAULT_CODE: u32 = 4;
const PAGE: u64 = 4096;
/// Log2 of the bytes around a fault that are mapped with it: of small pages, and of a large one.
const AROUND_BITS: [u32; 2] = [16, 21];
/// The last 2 MiB of the address space are served by other means: what ends there has no end.
const LAST_LARGE_PAGE: u64 = (2 << 20) * u64::MAX.div_euclid(2 << 20);
/// Bit of a page fault's error code: a store.
const WRITE: u64 = 2;
/// How often the same fault is served before it is left to a translation without windows.
const PATIENCE: u32 = 4;

/// How long a program runs in one address space before it gets windows.
const SETTLED: Duration = Duration::from_micros(1500);
/// What serving a fault costs, about; and one that the guest's kernel serves first, after which the access faults
/// again.
const FAULT_COST: Duration = Duration::from_micros(10);
const GUEST_FAULT_COST: Duration = Duration::from_micros(30);
/// Most time for faults that can be saved up. A quarter of it has to be there to begin.
const MOST_CREDIT: Duration = Duration::from_millis(8);
/// Log2 of the share of time that faults may take: at first, and at least, if that was too much.
const SHARES: [u32; 2] = [2, 8];
/// Windows that served for so many times what their faults took have paid: code with them takes half to two thirds
/// of its time without.
const PAID: u32 = 3;

/// The processor time that this thread has had.
pub(super) fn thread_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one `timespec`; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// When windows are used: by a program that has run for a while in one address space, as a timer's interrupt finds
/// it, for as long as faults take only a small share of the time.
#[derive(Debug)]
pub(super) struct Policy {
    /// The windows' address space gets them.
    on: bool,
    /// The host refused them.
    refused: bool,
    /// The current address space, and since when, by [`thread_time`].
    space: (SpaceId, Duration),
    /// When `on` was last set, by [`thread_time`], and what faults have taken since.
    started: Duration,
    spent: Duration,
    /// Time for faults that is left, and when that was so.
    credit: (Duration, Duration),
    /// The present one of [`SHARES`].
    share: u32,
    /// Host address of the last fault's instruction, the address, and how often they came in a row.
    last: (u64, u64, u32),
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            on: false,
            refused: false,
            space: (SpaceId::default(), Duration::ZERO),
            started: Duration::ZERO,
            spent: Duration::ZERO,
            credit: (MOST_CREDIT, Duration::ZERO),
            share: SHARES[0],
            last: (0, 0, 0),
        }
    }
}

impl Policy {
    fn note_space(&mut self, space: SpaceId) {
        if self.space.0 != space {
            self.space = (space, thread_time());
        }
    }

    /// An interrupt finds a program running that has no windows. Returns whether it is to have them from now on.
    fn consider(&mut self, now: Duration) -> bool {
        if now.saturating_sub(self.space.1) < SETTLED {
            return false;
        }
        self.earn(now);
        if self.credit.0 < MOST_CREDIT / 4 {
            return false;
        }
        (self.on, self.started, self.spent) = (true, now, Duration::ZERO);
        true
    }

    fn earn(&mut self, now: Duration) {
        // Another thread may run the vCPU from now on, whose time is less.
        let earned = now.saturating_sub(self.credit.1) / (1 << self.share);
        self.credit = ((self.credit.0 + earned).min(MOST_CREDIT), now);
    }

    /// Account for a fault at `now`. Returns whether it was one too many.
    fn charge(&mut self, cost: Duration, now: Duration) -> bool {
        self.earn(now);
        self.spent += cost;
        if self.on && self.credit.0 < cost {
            let paid = now.saturating_sub(self.started) >= PAID * self.spent;
            self.share = if paid { SHARES[0] } else { SHARES[1].min(self.share + 1) };
            self.on = false;
            return true;
        }
        self.credit.0 = self.credit.0.saturating_sub(cost);
        false
    }
}

/// Entry from `sublet_window_fault`.
///
/// # Safety
/// Called only from there: `core` is the vCPU whose translated code faulted.
pub(super) unsafe extern "sysv64" fn window_fault(core: *mut VcpuCore) -> u64 {
    // SAFETY: as the caller promises; the run loop holds no reference while translated code runs.
    let core = unsafe { &mut *core };
    core.guarded(VcpuCore::serve_fault)
}

impl VcpuCore {
    /// What the windows of programs and of the kernel have been used for.
    pub fn window_statistics(&self) -> [WindowStatistics; 2] {
        [&self.tlb.windows, &self.tlb.kernel_windows]
            .map(|windows| windows.as_ref().map(|windows| windows.statistics).unwrap_or_default())
    }

    /// `mode`, with windows if they are to be used; also settles the mode of the user code that a kernel of this
    /// mode returns to.
    pub(super) fn choose_windows(&mut self, mode: Mode) -> Mode {
        let mode = self.choose_kernel_windows(mode);
        if !mode.is64() || !self.wants_windows() {
            self.cpu.state.hot.user_mode = u64::from(mode.user_side().0);
            return mode;
        }
        self.cpu.state.hot.user_mode = u64::from(mode.user_side().with_windows().0);
        mode.with_windows()
    }

    /// Whose windows the code that runs uses.
    fn side(&self) -> Side {
        if self.mode().kernel_windowed() {
            Side::Kernel
        } else {
            Side::User
        }
    }

    fn wants_windows(&mut self) -> bool {
        let (optimisations, space) = (self.shared.optimisations, self.tlb.space());
        self.window_policy.note_space(space);
        if !optimisations.has(Optimisation::Windows) {
            return false;
        }
        if !optimisations.has(Optimisation::WindowPolicy) {
            return self.give_windows(space);
        }
        self.window_policy.on && self.tlb.windows.as_ref().is_some_and(|windows| windows.space == space)
    }

    /// Let the windows be those of an address space. Returns whether there are any.
    fn give_windows(&mut self, space: SpaceId) -> bool {
        let given = self.have_windows();
        if let Some(windows) = self.tlb.windows.as_mut().filter(|windows| windows.space != space) {
            windows.drop_all();
            windows.space = space;
        }
        given
    }

    /// An interrupt is about to be taken.
    pub(super) fn consider_windows(&mut self) {
        let mode = self.mode();
        let program = mode.is64() && mode.cpl() == 3 && !mode.windowed();
        let wanted = program && self.shared.optimisations.has(Optimisation::Windows);
        if wanted && self.window_policy.consider(thread_time()) {
            self.window_policy.on = self.give_windows(self.tlb.space());
            self.mode_stale = true;
        }
    }

    fn have_windows(&mut self) -> bool {
        if self.tlb.windows.is_none() && !self.window_policy.refused {
            self.tlb.windows = Windows::new(&mut self.cpu.state, Side::User);
            self.window_policy.refused = self.tlb.windows.is_none();
        }
        self.tlb.windows.is_some()
    }

    /// Deal with a page fault of translated code.
    fn serve_fault(&mut self) -> u64 {
        let hot = &self.cpu.state.hot;
        let (pc, address, store) = (hot.fault_pc, hot.fault_address, hot.fault_code & WRITE != 0);
        let distance = kept_index(&self.cache.host_instruction(pc));
        let la = address.wrapping_sub(hot.kept[distance]);
        let side = self.side();
        let zone = self.tlb.windows_of(side).map_or(Zone::Outside, |windows| windows.zone(address));
        self.counters.window_faults += 1;
        if self.cpu.state.table_holds(address) || (zone != Zone::Outside && self.is_stuck(pc, address)) {
            return self.decline(pc);
        }
        if zone == Zone::Outside {
            // Registers may hold host addresses: nothing goes back to the guest.
            self.stopped = Some(Stop::Exit(Exit::InternalError { code: HOST_FAULT_CODE }));
            self.cpu.state.hot.exit_reason = exit::ACCESS;
            return resume::LEAVE;
        }
        let reassigned = |core: &mut Self| core.tlb.windows_of(side).map(|windows| windows.reassigned);
        let before = reassigned(self);
        match self.fill_window(la, store) {
            Err(exception) => {
                self.mode_stale |= self.charge(GUEST_FAULT_COST);
                self.stop_at(pc + 1, exception.into());
                resume::LEAVE
            }
            // Registers and slots hold distances that no longer lead to their segments: the block begins anew.
            Ok(_) if reassigned(self) != before => self.decline(pc),
            // In the guard of another segment's window the access goes on, if it is all in this one.
            Ok(Some(delta)) if zone == Zone::Nowhere || delta == self.cpu.state.hot.kept[distance] => {
                self.mode_stale |= self.charge(FAULT_COST);
                self.cpu.state.hot.kept[distance] = delta;
                resume::DIRECT
            }
            Ok(_) => self.decline(pc),
        }
    }

    /// Account for a fault. Returns whether windows are to be used no more.
    fn charge(&mut self, cost: Duration) -> bool {
        match self.side() {
            Side::User => self.window_policy.charge(cost, thread_time()),
            Side::Kernel => self.charge_kernel(cost),
        }
    }

    /// Whether serving this fault has not helped.
    fn is_stuck(&mut self, pc: u64, address: u64) -> bool {
        let last = &mut self.window_policy.last;
        let times = if (last.0, last.1) == (pc, address) { last.2 + 1 } else { 0 };
        *last = (pc, address, times);
        times >= PATIENCE
    }

    /// Leave, to run this instruction in a translation without windows. Nothing has happened yet. A block that
    /// does this again and again is translated anew without them.
    pub(super) fn decline(&mut self, pc: u64) -> u64 {
        self.counters.window_declined += 1;
        self.mode_stale |= self.charge(FAULT_COST);
        self.cache.blame(pc);
        self.alone = true;
        self.stop_at(pc + 1, Stop::Exit(Exit::Interrupted));
        resume::LEAVE
    }

    /// Map the page of `la`, and what lies beside it alike. Returns what is to be added to its addresses; `None` if
    /// the access is not one to plain RAM.
    ///
    /// # Errors
    /// The guest's page fault.
    fn fill_window(&mut self, la: u64, store: bool) -> Result<Option<u64>, Exception> {
        let side = self.side();
        if side.entry(la).is_none() || la >= LAST_LARGE_PAGE || self.cpu.smm.active {
            return Ok(None);
        }
        let walk = self.walk_for(la, store)?;
        // A user's global mapping may end while another address space is current.
        let page = self.cpu.memory.host_page(walk.gpa).filter(|_| !walk.global || side == Side::Kernel);
        let Some(page) = page else { return Ok(None) };
        if store && !page.takes_stores() {
            return Ok(None);
        }
        if store && page.log_dirty {
            self.cpu.memory.mark_dirty(walk.gpa);
        }
        let writable = store || takes_stores(side, &walk, page);
        let run = self.run_around(la & !0xfff, &walk, page, writable);
        let gpa = (walk.gpa & !0xfff) - (page.host as u64 - run.host);
        match side {
            Side::User => (0..run.size).step_by(PAGE as usize).for_each(|offset| {
                self.tlb.note_reached(run.la + offset, run.host + offset, writable, &walk);
            }),
            Side::Kernel if self.note_paths(&run, gpa, walk.global) => {}
            Side::Kernel => return Ok(None),
        }
        let view = self.cpu.memory.view();
        let Some(part) = view.file_part(gpa).filter(|part| part.size >= run.size) else { return Ok(None) };
        let Some(windows) = self.tlb.windows_of(side) else { return Ok(None) };
        Ok(windows.map(&mut self.cpu.state, run, part.fd, part.offset))
    }

    /// The pages around that of `la` that lie beside it in memory as well, and may be accessed so.
    fn run_around(&self, la: u64, walk: &Walk, page: HostPage, writable: bool) -> Run {
        let large = walk.page_bits >= 21;
        let block = 1u64 << AROUND_BITS[usize::from(large)];
        let start = la & !(block - 1);
        let alike =
            |offset: i64| self.is_alike(la.wrapping_add_signed(offset), offset, walk, page, writable, large);
        let (mut below, mut above) = (0, PAGE as i64);
        while la.wrapping_add_signed(below) > start && alike(below - PAGE as i64) {
            below -= PAGE as i64;
        }
        while la.wrapping_add_signed(above) < start + block && alike(above) {
            above += PAGE as i64;
        }
        let host = (page.host as u64).wrapping_add_signed(below);
        let (la, size) = (la.wrapping_add_signed(below), (above - below) as u64);
        Run { la, size, host, writable, page_bits: walk.page_bits }
    }

    /// Whether the page at `la`, `offset` bytes from that of `walk`, belongs in one run with it.
    fn is_alike(
        &self,
        la: u64,
        offset: i64,
        walk: &Walk,
        page: HostPage,
        writable: bool,
        large: bool,
    ) -> bool {
        let gpa = (walk.gpa & !0xfff).wrapping_add_signed(offset);
        if self.cpu.bus_address(gpa) != gpa {
            return false;
        }
        let other = if large { Some(*walk) } else { self.beside(la, gpa) };
        let host = (page.host as u64).wrapping_add_signed(offset);
        let found = self.cpu.memory.host_page(gpa).filter(|found| found.host as u64 == host);
        match (other, found) {
            (Some(other), Some(found)) => {
                other.global == walk.global && takes_stores(self.side(), &other, found) == writable
            }
            _ => false,
        }
    }

    /// The walk for reading at `la`, if it has been read before and leads to `gpa`.
    fn beside(&self, la: u64, gpa: u64) -> Option<Walk> {
        let access = self.cpu.access(AccessMode::Current, Kind::Read);
        let walk = peek(&self.cpu.memory, &self.cpu.paging_regs(), la, access).ok()?;
        (walk.accessed && self.cpu.bus_address(walk.gpa) == gpa).then_some(walk)
    }
}

/// Which of `HotState::kept` is the distance to the window in an instruction's address.
fn kept_index(instruction: &Instruction) -> usize {
    match instruction.memory_index() {
        Register::R14 => 1,
        _ => 2,
    }
}

/// Whether code of one side may store to the page without anything having to be noted.
fn takes_stores(side: Side, walk: &Walk, page: HostPage) -> bool {
    let rights = match side {
        Side::User => walk.rights.user,
        Side::Kernel => walk.rights.supervisor,
    };
    let allowed = walk.dirty && rights & Rights::WRITE != 0;
    allowed && page.takes_stores() && !page.log_dirty
}

#[cfg(test)]
mod tests {
    use super::{Policy, FAULT_COST, SETTLED, SHARES};
    use std::time::Duration;

    /// Windows from `from` on that meet a fault every `interval`, until they have met too many; returns when that was.
    fn use_up(policy: &mut Policy, from: Duration, interval: Duration) -> Option<Duration> {
        let mut now = from + SETTLED;
        while !policy.consider(now) {
            now += Duration::from_millis(1);
        }
        (0..100_000).find_map(|_| {
            now += interval;
            policy.charge(FAULT_COST, now).then_some(now)
        })
    }

    #[test]
    fn faults_that_take_a_quarter_of_the_time_go_on() {
        let mut policy = Policy::default();
        assert_eq!(use_up(&mut policy, Duration::ZERO, 5 * FAULT_COST), None);
    }

    #[test]
    fn windows_that_cost_more_than_they_save_get_ever_rarer() {
        let (mut policy, mut now) = (Policy::default(), Duration::ZERO);
        for share in SHARES[0] + 1..=SHARES[1] {
            now = use_up(&mut policy, now, 2 * FAULT_COST).unwrap_or_default();
            assert_eq!((policy.on, policy.share), (false, share));
        }
        let before = now;
        now = use_up(&mut policy, now, 2 * FAULT_COST).unwrap_or_default();
        assert!(now - before > Duration::from_millis(500));
    }

    #[test]
    fn windows_that_have_paid_come_back_at_once() {
        let mut policy = Policy { share: SHARES[1], ..Policy::default() };
        assert!(use_up(&mut policy, Duration::ZERO, 10 * FAULT_COST).is_some());
        assert_eq!(policy.share, SHARES[0]);
    }
}

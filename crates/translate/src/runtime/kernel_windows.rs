//! When a 64-bit kernel's own code has memory windows, and for how long what they show holds.

use super::vcpu::VcpuCore;
use super::windows::thread_time;
use crate::mmu::walk::trace;
use crate::mmu::window::{Run, Windows};
use crate::mode::Mode;
use crate::optimisations::Optimisation;
use crate::state::Side;
use std::time::Duration;

/// Where CR3 says that the first level of the tables is.
const ROOT: u64 = 0x000f_ffff_ffff_f000;
const PAGE: usize = 4096;
/// Most time for faults that can be saved up; it is there at first.
const MOST_CREDIT: Duration = Duration::from_millis(200);
/// Log2 of the share of time that faults may take.
const SHARE: u32 = 3;

/// Whether the kernel's code has windows: from its first program on, until faults cost too much.
#[derive(Debug)]
pub(super) struct Account {
    on: bool,
    /// They are not to be had, or did not pay.
    refused: bool,
    /// Time for faults that is left, and when that was so, by [`thread_time`].
    credit: (Duration, Duration),
}

impl Default for Account {
    fn default() -> Self {
        Self { on: false, refused: false, credit: (MOST_CREDIT, Duration::ZERO) }
    }
}

impl Account {
    /// Account for a fault, now by [`thread_time`].
    fn charge(&mut self, cost: Duration, now: Duration) {
        let earned = now.saturating_sub(self.credit.1) / (1 << SHARE);
        let credit = (self.credit.0 + earned).min(MOST_CREDIT);
        self.refused |= credit < cost;
        self.credit = (credit.saturating_sub(cost), now);
    }
}

impl VcpuCore {
    /// `mode`, of a kernel with windows or its programs if the kernel is to have them: from the first program on.
    pub(super) fn choose_kernel_windows(&mut self, mode: Mode) -> Mode {
        let account = &self.kernel_account;
        if !account.on && !account.refused && self.is_in_kernel_half(mode) {
            self.begin_kernel_windows();
        }
        match self.kernel_account.on && !self.kernel_account.refused {
            true => mode.with_kernel_windows(),
            false => mode,
        }
    }

    /// Whether 64-bit code of a kernel runs where its addresses are; firmware's and loaders' are among programs'.
    fn is_in_kernel_half(&self, mode: Mode) -> bool {
        mode.is64() && mode.cpl() == 0 && self.cpu.state.rip >> 63 != 0
    }

    fn begin_kernel_windows(&mut self) {
        let wanted = [Optimisation::Windows, Optimisation::KernelWindows];
        let wanted = wanted.into_iter().all(|one| self.shared.optimisations.has(one));
        if wanted && self.tlb.kernel_windows.is_none() {
            self.tlb.kernel_windows = Windows::new(&mut self.cpu.state, Side::Kernel);
        }
        self.kernel_account.on = self.tlb.kernel_windows.is_some();
        self.kernel_account.refused = !self.kernel_account.on;
    }

    /// Account for a fault of kernel code. Returns whether its windows are to be used no more.
    pub(super) fn charge_kernel(&mut self, cost: Duration) -> bool {
        if self.shared.optimisations.has(Optimisation::WindowPolicy) {
            self.kernel_account.charge(cost, thread_time());
        }
        self.kernel_account.refused
    }

    /// Drop what flushes have ended of the kernel's windows.
    pub(super) fn confirm_windows(&mut self) {
        self.tlb.confirm_windows(&self.cpu.memory, self.cpu.state.cr3 & ROOT);
    }

    /// Note the entries by which the kernel's pages of a run, which leads to `gpa`, are mapped. Returns whether they are
    /// still what the run was made from.
    pub(super) fn note_paths(&mut self, run: &Run, gpa: u64, global: bool) -> bool {
        let (regs, view) = (self.cpu.paging_regs(), self.cpu.memory.view());
        let Some(windows) = &mut self.tlb.kernel_windows else { return false };
        let step = if run.page_bits > 12 { run.size as usize } else { PAGE };
        for offset in (0..run.size).step_by(step) {
            let la = run.la + offset;
            let same = |walk: &crate::mmu::walk::Walk| {
                let stores = walk.dirty && walk.writable;
                walk.gpa == gpa + offset
                    && walk.global == global
                    && walk.accessed
                    && (stores || !run.writable)
            };
            let Some(trace) = trace(&view, &regs, la).filter(|trace| same(&trace.walk)) else { return false };
            if !windows.note_path(&self.cpu.memory, la, &trace) {
                windows.drop_all();
                // A kernel most of whose memory is not global would have all of it looked at again and again.
                self.kernel_account.refused |= !global;
                return false;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::{Account, Duration};

    const COST: Duration = Duration::from_micros(10);

    /// Whether windows are left after a second in which faults take one part in `share` of the time.
    fn lasts(share: u32) -> bool {
        let mut account = Account::default();
        (1..=100_000 / share).for_each(|fault| account.charge(COST, COST * share * fault));
        !account.refused
    }

    #[test]
    fn faults_may_take_an_eighth_of_the_time() {
        assert!(lasts(8));
        assert!(!lasts(2));
    }

    #[test]
    fn many_faults_at_first_are_no_reason() {
        let mut account = Account::default();
        (0..10_000).for_each(|_| account.charge(COST, Duration::ZERO));
        assert!(!account.refused);
        (0..20_000).for_each(|_| account.charge(COST, Duration::ZERO));
        assert!(account.refused);
    }
}

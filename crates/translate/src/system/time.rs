//! The time-stamp counter and the processor's number.

use crate::cpu::{Cpu, Exception, Outcome};
use crate::state::gpr;
use iced_x86::Instruction;
use sublet_irq::ThreadUse;

const CR4_TSD: u64 = 1 << 2;

/// The host's time-stamp counter.
pub fn host_tsc() -> u64 {
    // SAFETY: RDTSC is part of every x86-64 processor and reads only a counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// What the calling thread has had of the host's processors; `None` where the host does not say.
pub fn thread_use() -> Option<ThreadUse> {
    // SAFETY: zero bytes are a value of both structures; the calls write to live locals.
    unsafe {
        let mut time: libc::timespec = std::mem::zeroed();
        let mut usage: libc::rusage = std::mem::zeroed();
        if libc::getrusage(libc::RUSAGE_THREAD, &mut usage) != 0
            || libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) != 0
        {
            return None;
        }
        let processor_ns = time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64;
        Some(ThreadUse { processor_ns, waits: usage.ru_nvcsw as u64 })
    }
}

impl Cpu {
    /// The guest's time-stamp counter now.
    pub fn guest_tsc(&self) -> u64 {
        host_tsc().wrapping_add(self.state.tsc_offset)
    }

    /// CR4.TSD makes RDTSC and RDTSCP privileged.
    fn require_tsc_access(&self) -> Result<(), Exception> {
        match self.state.cpl() != 0 && self.state.cr4 & CR4_TSD != 0 {
            true => Err(Exception::protection(0)),
            false => Ok(()),
        }
    }

    pub(crate) fn rdtsc(&mut self) -> Outcome {
        self.require_tsc_access()?;
        self.set_edx_eax(self.guest_tsc());
        Ok(())
    }

    pub(crate) fn rdtscp(&mut self) -> Outcome {
        self.rdtsc()?;
        self.state.gpr[gpr::RCX] = self.state.tsc_aux & 0xffff_ffff;
        Ok(())
    }

    pub(crate) fn rdpid(&mut self, i: &Instruction) -> Outcome {
        self.gpr_write(i.op0_register(), self.state.tsc_aux & 0xffff_ffff);
        Ok(())
    }

    /// No performance counter exists (CPUID leaf 0xA is zero), so each index is out of range.
    pub(crate) fn rdpmc(&mut self) -> Outcome {
        Err(Exception::protection(0).into())
    }
}

//! A vCPU as compiled code sees it: architectural state, its memory, its interrupt controller.

use crate::state::CpuState;
use std::sync::Arc;
use sublet_engine::{CpuidEntry, Exit};
use sublet_irq::LocalApic;
use sublet_memory::GuestMemory;

/// An exception that the guest will see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exception {
    /// Vector, 0 to 31.
    pub vector: u8,
    /// Error code pushed, for the vectors that have one.
    pub error_code: Option<u32>,
    /// For #PF: goes to CR2 when the exception is delivered. For #DB: bits to set in DR6.
    pub payload: u64,
}

impl Exception {
    /// An exception without an error code.
    pub const fn new(vector: u8) -> Self {
        Self { vector, error_code: None, payload: 0 }
    }
    /// An exception with an error code.
    pub const fn with_code(vector: u8, code: u32) -> Self {
        Self { vector, error_code: Some(code), payload: 0 }
    }
    /// #DE.
    pub const DIVIDE: Self = Self::new(0);
    /// #UD.
    pub const UNDEFINED: Self = Self::new(6);
    /// #NM.
    pub const DEVICE_NOT_AVAILABLE: Self = Self::new(7);
    /// #DB with bits for DR6.
    pub const fn debug(dr6: u64) -> Self {
        Self { vector: 1, error_code: None, payload: dr6 }
    }
    /// #GP(code).
    pub const fn protection(code: u32) -> Self {
        Self::with_code(13, code)
    }
    /// #SS(code).
    pub const fn stack(code: u32) -> Self {
        Self::with_code(12, code)
    }
    /// #NP(code).
    pub const fn not_present(code: u32) -> Self {
        Self::with_code(11, code)
    }
    /// #TS(code).
    pub const fn invalid_tss(code: u32) -> Self {
        Self::with_code(10, code)
    }
    /// #PF with its error code and linear address.
    pub const fn page_fault(code: u32, address: u64) -> Self {
        Self { vector: 14, error_code: Some(code), payload: address }
    }
}

/// Why compiled code could not simply go on to the next instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Deliver this to the guest. RIP and all registers are those before the instruction.
    Exception(Exception),
    /// Leave `run`. For reads the state is that before the instruction, which restarts and finds
    /// its data with [`Cpu::take_completed_read`]; for all others the instruction has retired
    /// (or, in a repeated string instruction, an iteration has).
    Exit(Exit),
}

impl From<Exception> for Stop {
    fn from(exception: Exception) -> Self {
        Self::Exception(exception)
    }
}

/// Result of carrying out an instruction.
pub type Outcome<T = ()> = Result<T, Stop>;

/// Which software-TLB entries an instruction drops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flush {
    /// Everything, global pages too.
    All,
    /// Everything but global pages, of every PCID.
    NonGlobal,
    /// One page of the current PCID (and global ones): INVLPG.
    Page(u64),
    /// One PCID, without global pages.
    Pcid(u16),
    /// One page of one PCID, without global pages.
    PcidPage(u16, u64),
    /// CR3 was loaded with the flag that keeps entries (or another PCID became current).
    SwitchPcid,
}

/// What an event in flight waits for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Events {
    /// Interrupts held off until the next instruction has run (STI, MOV SS, POP SS).
    pub interrupt_shadow: bool,
    /// An NMI waits.
    pub nmi_pending: bool,
    /// NMIs are blocked until IRET.
    pub nmi_masked: bool,
    /// In HLT.
    pub halted: bool,
    /// A vector injected from outside.
    pub injected: Option<u8>,
}

/// One virtual CPU, outside the code cache.
pub struct Cpu {
    /// Architectural state.
    pub state: Box<CpuState>,
    /// Guest memory.
    pub memory: Arc<GuestMemory>,
    /// Local APIC, when the VM has an in-core interrupt controller.
    pub apic: Option<Arc<LocalApic>>,
    /// Events in flight.
    pub events: Events,
    /// What CPUID answers, sorted by leaf and sub-leaf.
    pub cpuid: Vec<CpuidEntry>,
    /// The TLBs and everything derived from page tables.
    pub mmu: crate::mmu::Mmu,
    /// MSRs that are stored and returned but change nothing here (see `system/msr.rs`).
    pub plain_msrs: std::collections::BTreeMap<u32, u64>,
    /// The bus access whose result `complete_read` gave: (is_port, address, size, data).
    pub completed_read: Option<(bool, u64, u8, u64)>,
}

impl Cpu {
    /// The data of a restarted bus read, once; `None` when it has yet to be asked for.
    pub fn take_completed_read(&mut self, is_port: bool, address: u64, size: u8) -> Option<u64> {
        match self.completed_read.take() {
            Some((port, at, bytes, data)) if (port, at, bytes) == (is_port, address, size) => Some(data),
            _ => None,
        }
    }
}

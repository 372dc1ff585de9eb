//! A vCPU as compiled code sees it: architectural state, its memory, its interrupt controller.

use crate::state::{flag, gpr, seg, CpuState, MappedState, SegmentRegister, TableRegister};
use std::collections::VecDeque;
use std::sync::Arc;
use sublet_engine::{CpuidEntry, Exit};
use sublet_irq::{Irqchip, LocalApic};
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
    /// The same, by an instruction that changes nothing else: what entries of the tables mean is as it was.
    AllMappings,
    /// Everything but global pages, of every PCID.
    NonGlobal,
    /// One page of the current PCID (and global ones): INVLPG.
    Page(u64),
    /// One PCID, without global pages.
    Pcid(u16),
    /// One page of one PCID, without global pages.
    PcidPage(u16, u64),
    /// Nothing: from now on this PCID is the current one.
    Switch(u16),
}

/// What an event in flight waits for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Events {
    /// Interrupts held off until the next instruction has run (STI, MOV SS, POP SS).
    pub interrupt_shadow: bool,
    /// The shadow is that of a load of SS, which holds off debug traps too.
    pub debug_shadow: bool,
    /// An NMI waits.
    pub nmi_pending: bool,
    /// NMIs are blocked until IRET.
    pub nmi_masked: bool,
    /// In HLT.
    pub halted: bool,
    /// Not started yet, or stopped by INIT: a start-up IPI is waited for.
    pub waiting_for_startup: bool,
    /// A vector injected from outside.
    pub injected: Option<u8>,
}

/// Data of the bus reads that an instruction has already been given. It restarts for each one it
/// makes (REP CMPS between two devices, a masked load), and finds those before it here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BusReads {
    answered: Vec<u64>,
    used: usize,
}

impl BusReads {
    /// The instruction starts over.
    pub fn restart(&mut self) {
        self.used = 0;
    }
    /// The instruction, or an element of it, is done.
    pub fn forget(&mut self) {
        self.answered.clear();
        self.used = 0;
    }
}

/// One virtual CPU, outside the code cache.
pub struct Cpu {
    /// Architectural state.
    pub state: MappedState,
    /// Guest memory.
    pub memory: Arc<GuestMemory>,
    /// Local APIC, when the VM has an in-core interrupt controller.
    pub apic: Option<Arc<LocalApic>>,
    /// The VM's in-core interrupt controllers, when it has them.
    pub irqchip: Option<Arc<Irqchip>>,
    /// Events in flight.
    pub events: Events,
    /// System-management mode.
    pub smm: crate::system::smm::Smm,
    /// What CPUID answers, sorted by leaf and sub-leaf.
    pub cpuid: Vec<CpuidEntry>,
    /// Bits of a guest-physical address (MAXPHYADDR), 36 to 52: from `cpuid`.
    pub physical_bits: u8,
    /// The vendor in `cpuid` is AMD (or Hygon): decides where the vendors' rules differ.
    pub amd: bool,
    /// The TLBs and everything derived from page tables.
    pub mmu: crate::mmu::Mmu,
    /// MSRs that are stored and returned but change nothing here (see `system/msr.rs`).
    pub plain_msrs: std::collections::BTreeMap<u32, u64>,
    /// The bus access whose result `complete_read` gave: (is_port, address, size, data).
    pub completed_read: Option<(bool, u64, u8, u64)>,
    /// Exits that carry the stores of the last instruction to devices, in order.
    pub posted_writes: VecDeque<Exit>,
    /// Bus reads of the instruction that restarts for them.
    pub bus_reads: BusReads,
    /// Devices in the core that answer ports after `irqchip` (see `system/io.rs`).
    pub in_core_ports: Vec<Arc<dyn crate::system::io::InCorePorts>>,
    /// Breakpoints are armed: accesses are compared with them.
    pub watching: bool,
    /// DR6 bits of the data and port breakpoints that the current instruction hit.
    pub debug_hits: u64,
    /// CR8 when there is no in-core APIC, 0 to 15.
    pub cr8: u64,
}

impl CpuState {
    /// State after RESET (Intel SDM vol. 3A §10.1.1 "Processor State After Reset", table 10-1).
    pub fn reset() -> MappedState {
        let mut state = MappedState::zeroed();
        let data = SegmentRegister { base: 0, limit: 0xffff, selector: 0, attributes: 0x93 };
        state.segments = [data; 6];
        state.segments[seg::CS] = SegmentRegister { base: 0xffff_0000, selector: 0xf000, ..data };
        state.ldtr = SegmentRegister { attributes: 0x82, ..data };
        state.tr = SegmentRegister { attributes: 0x8b, ..data };
        state.gdtr = TableRegister { base: 0, limit: 0xffff };
        state.idtr = state.gdtr;
        state.gpr[gpr::RDX] = 0x600;
        state.rip = 0xfff0;
        state.rflags = flag::FIXED;
        state.cr0 = 0x6000_0010;
        state.xcr0 = 1;
        (state.dr[6], state.dr[7]) = (0xffff_0ff0, 0x400);
        state.pat = 0x0007_0406_0007_0406;
        state.vector.0[0..2].copy_from_slice(&0x0040u16.to_le_bytes());
        state.vector.0[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
        state
    }
}

impl Cpu {
    /// A vCPU at reset state, without interrupt controllers and with an empty CPUID.
    pub fn new(memory: Arc<GuestMemory>) -> Self {
        Self {
            state: CpuState::reset(),
            memory,
            apic: None,
            irqchip: None,
            events: Events::default(),
            smm: crate::system::smm::Smm::default(),
            cpuid: Vec::new(),
            physical_bits: 40,
            amd: false,
            mmu: crate::mmu::Mmu::default(),
            plain_msrs: std::collections::BTreeMap::new(),
            completed_read: None,
            posted_writes: VecDeque::new(),
            bus_reads: BusReads::default(),
            in_core_ports: Vec::new(),
            watching: false,
            debug_hits: 0,
            cr8: 0,
        }
    }

    /// The state after INIT (Intel SDM vol. 3A §10.1.1 table 10-1): as after RESET, but x87 and vector state,
    /// the time-stamp counter and all MSRs but IA32_EFER stay, and so do CR0.CD and CR0.NW.
    pub fn initialise(&mut self) {
        const CACHE_CONTROL: u64 = 0x6000_0000;
        let fresh = CpuState::reset();
        let state = &mut self.state;
        (state.gpr, state.rip, state.rflags) = (fresh.gpr, fresh.rip, fresh.rflags);
        (state.segments, state.ldtr, state.tr) = (fresh.segments, fresh.ldtr, fresh.tr);
        (state.gdtr, state.idtr, state.dr) = (fresh.gdtr, fresh.idtr, fresh.dr);
        state.cr0 = (state.cr0 & CACHE_CONTROL) | (fresh.cr0 & !CACHE_CONTROL);
        (state.cr2, state.cr3, state.cr4, state.efer) = (0, 0, 0, 0);
        state.pdptes = [0; 4];
        self.events = Events::default();
        self.cr8 = 0;
        self.completed_read = None;
        self.bus_reads.forget();
        self.mmu.flush(Flush::All);
    }

    /// Where a start-up IPI sends the processor: `vector << 12`, in real mode.
    pub fn start_at(&mut self, vector: u8) {
        let code = &mut self.state.segments[seg::CS];
        (code.base, code.selector) = (u64::from(vector) << 12, u16::from(vector) << 8);
        self.state.rip = 0;
    }

    /// Replace what CPUID answers, and what is derived from it.
    pub fn set_cpuid(&mut self, mut entries: Vec<CpuidEntry>) {
        entries.sort_by_key(|entry| (entry.leaf, entry.subleaf));
        let find = |leaf| entries.iter().find(|entry| entry.leaf == leaf).map(|entry| entry.regs);
        self.physical_bits = find(0x8000_0008).map_or(36, |regs| (regs[0] as u8).clamp(36, 52));
        // "Auth"enticAMD, "Hygo"nGenuine.
        self.amd = find(0).is_some_and(|regs| matches!(regs[1], 0x6874_7541 | 0x6f67_7948));
        self.cpuid = entries;
    }

    /// The data of the restarted instruction's next bus read; `None` when it has yet to be asked for.
    pub fn take_completed_read(&mut self, is_port: bool, address: u64, size: u8) -> Option<u64> {
        let reads = &mut self.bus_reads;
        if reads.used == reads.answered.len() {
            match self.completed_read.take() {
                Some((port, at, bytes, data)) if (port, at, bytes) == (is_port, address, size) => {
                    reads.answered.push(data);
                }
                _ => return None,
            }
        }
        reads.used += 1;
        reads.answered.get(reads.used - 1).copied()
    }

    /// A bus read has been answered whose instruction has not restarted yet.
    pub fn has_answered_read(&self) -> bool {
        self.completed_read.is_some()
    }
}

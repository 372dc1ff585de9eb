//! `Engine`, `Vm`, `Vcpu`: what each engine implements.

use crate::{CpuidEntry, Exit, MsrEntry, PortReadAhead, Regs, Sregs, VcpuEvents};
use std::collections::BTreeMap;
use std::sync::Arc;
use sublet_memory::GuestMemory;

/// Counters by name, for `--stats`; names are `group.counter`.
pub type Statistics = BTreeMap<String, u64>;

/// What an operation on an engine can fail with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineError {
    /// The caller asked for something impossible; the text names the value.
    Invalid(String),
    /// The host refused; the text names the operation, `errno` the reason.
    Host {
        /// What was tried.
        what: String,
        /// The host's error number.
        errno: i32,
    },
    /// This engine, or this host, cannot do it.
    Unsupported(String),
    /// A bug of ours.
    Internal(String),
}

impl std::fmt::Display for EngineError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Invalid(text) | Self::Unsupported(text) | Self::Internal(text) => f.write_str(text),
            Self::Host { what, errno } => {
                write!(f, "{what}: {}", std::io::Error::from_raw_os_error(*errno))
            }
        }
    }
}

impl std::error::Error for EngineError {}

/// Result of an engine operation.
pub type Result<T> = std::result::Result<T, EngineError>;

/// How a memslot behaves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemslotFlags {
    /// Stores leave as `Exit::MmioWrite` and do not change the memory.
    pub readonly: bool,
    /// Record which 4 KiB pages the guest and its devices write.
    pub log_dirty: bool,
}

/// How often a vCPU was found at one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProfileSample {
    /// Address of the block's first instruction; without `translated`, of the instruction.
    pub rip: u64,
    /// Page-table base, for CPL 3; 0 otherwise.
    pub cr3: u64,
    /// Privilege level.
    pub cpl: u8,
    /// In translated code; otherwise in code of ours on behalf of the guest.
    pub translated: bool,
    /// Times.
    pub count: u64,
}

/// A way to execute guests on this host.
pub trait Engine: Send + Sync {
    /// `"kvm"` or `"translate"`.
    fn name(&self) -> &'static str;
    /// Make an empty virtual machine.
    fn create_vm(&self) -> Result<Arc<dyn Vm>>;
    /// The CPUID results this engine can honour on this host.
    fn supported_cpuid(&self) -> Result<Vec<CpuidEntry>>;
}

/// One virtual machine.
pub trait Vm: Send + Sync {
    /// All RAM of the VM. After a change to its slots, call [`Vm::memslots_changed`].
    fn memory(&self) -> &Arc<GuestMemory>;
    /// Make an in-core interrupt controller: 8259 pair, I/O APIC (GSI 0 to 23), 8254, and a
    /// local APIC for each vCPU created later. GSI 0 to 15 reach both the 8259s and the I/O APIC
    /// (GSI 0 at I/O APIC pin 2), GSI 16 to 23 the I/O APIC only.
    fn create_irqchip(&self) -> Result<()>;
    /// Answer RTC/CMOS (ports 0x70 and 0x71, GSI 8) and the ACPI PM timer (port 0x608) in the core.
    /// After `create_irqchip`, before the first vCPU.
    fn add_platform_timers(&self) -> Result<()>;
    /// Connect the 8254 to GSI 0 and the RTC to GSI 8, as they are at first, or take both off: an event timer in
    /// legacy replacement mode drives these lines in their place. They count on. After `add_platform_timers`.
    fn connect_legacy_timers(&self, connected: bool) -> Result<()>;
    /// Set bytes of the CMOS RAM, given as (index, value); those of the clock and its registers, 0 to 0x0d,
    /// are the guest's alone. Fails with `Invalid` for these, for an index past 127, and without platform timers.
    fn write_cmos(&self, bytes: &[(u8, u8)]) -> Result<()>;
    /// All 128 bytes of the CMOS RAM; those of the clock are stale.
    fn read_cmos(&self) -> Result<Vec<u8>>;
    /// What devices outside offer behind their data ports.
    fn read_ahead(&self) -> &Arc<PortReadAhead>;
    /// Set the level of an interrupt line. Edge-triggered lines act on a rise.
    fn set_irq_line(&self, gsi: u32, level: bool) -> Result<()>;
    /// Deliver a message-signalled interrupt (PCI 3.0 §6.8 layout).
    fn signal_msi(&self, address: u64, data: u32) -> Result<()>;
    /// Make vCPU `index` (its APIC ID), at reset state.
    fn create_vcpu(&self, index: u32) -> Result<Box<dyn Vcpu>>;
    /// Whether vCPUs take SMIs, and find the memory of `sublet_memory::SMM_SPACE` in system-management mode.
    fn has_smm(&self) -> bool {
        false
    }
    /// Let all vCPUs find the memory of system-management mode, or those in the mode alone. Closed at first.
    ///
    /// # Errors
    /// `Unsupported` where the engine has no such mode.
    fn set_smm_open(&self, _open: bool) -> Result<()> {
        Err(EngineError::Unsupported("this engine has no system-management mode".into()))
    }
    /// Tell the engine that memslots changed (the slots live in `sublet-memory`).
    fn memslots_changed(&self) -> Result<()>;
    /// Open or close the A20 gate: closed, the vCPUs' address bit 20 is zero. Open at first.
    ///
    /// # Errors
    /// `Unsupported` for closing it where the engine has no gate.
    fn set_a20(&self, open: bool) -> Result<()>;
    /// Bitmap of pages written since the last call, bit 0 first, and clear it.
    fn take_dirty_log(&self, slot: u32) -> Result<Vec<u64>>;
    /// Counters of the VM (blocks, bytes, interrupts, ...).
    fn statistics(&self) -> Statistics;
}

/// Stops a vCPU's `run` from any thread.
pub trait Kick: Send + Sync {
    /// Make the current `run`, or the next one, return `Exit::Interrupted` soon. Idempotent until it has.
    fn kick(&self);
}

/// One virtual CPU. Runs on the thread that calls `run`; not shared.
pub trait Vcpu: Send {
    /// Execute guest code until an exit. The guest sees its effects in order.
    fn run(&mut self) -> Result<Exit>;
    /// Give the result of the last `PioIn` or `MmioRead`.
    fn complete_read(&mut self, data: u64);
    /// A handle that interrupts `run` from another thread.
    fn kicker(&self) -> Arc<dyn Kick>;
    /// General registers.
    fn regs(&mut self) -> Result<Regs>;
    /// Replace the general registers.
    fn set_regs(&mut self, regs: &Regs) -> Result<()>;
    /// Special registers.
    fn sregs(&mut self) -> Result<Sregs>;
    /// Replace the special registers. TLBs are flushed.
    fn set_sregs(&mut self, sregs: &Sregs) -> Result<()>;
    /// FPU and vector state as an XSAVE area in standard format, `XCR0` at bytes 464..472.
    fn xsave(&mut self) -> Result<Vec<u8>>;
    /// Replace the FPU and vector state.
    fn set_xsave(&mut self, area: &[u8]) -> Result<()>;
    /// Read MSRs; fails with `Invalid` naming the first unknown one.
    fn msrs(&mut self, indices: &[u32]) -> Result<Vec<MsrEntry>>;
    /// Write MSRs; fails with `Invalid` naming the first refused one.
    fn set_msrs(&mut self, entries: &[MsrEntry]) -> Result<()>;
    /// DR0 to DR3, DR6, DR7.
    fn debug_regs(&mut self) -> Result<[u64; 6]>;
    /// Replace the debug registers.
    fn set_debug_regs(&mut self, regs: &[u64; 6]) -> Result<()>;
    /// Set what CPUID answers. Before the first `run`.
    fn set_cpuid(&mut self, entries: &[CpuidEntry]) -> Result<()>;
    /// Events in flight.
    fn events(&mut self) -> Result<VcpuEvents>;
    /// Replace the events in flight.
    fn set_events(&mut self, events: &VcpuEvents) -> Result<()>;
    /// Inject an external interrupt (no in-core interrupt controller): taken at the start of the
    /// next `run`. Fails with `Invalid` when `ready_for_interrupt` is false.
    fn inject_interrupt(&mut self, vector: u8) -> Result<()>;
    /// Whether the guest would take an external interrupt now.
    fn ready_for_interrupt(&mut self) -> Result<bool>;
    /// Leave with `Exit::InterruptWindow` as soon as `ready_for_interrupt` holds.
    fn request_interrupt_window(&mut self, on: bool) -> Result<()>;
    /// Queue a non-maskable interrupt.
    fn inject_nmi(&mut self) -> Result<()>;
    /// Count where the guest is `hertz` times a second of the vCPU's processor time, from the next `run` on.
    ///
    /// # Errors
    /// `Unsupported` where the engine cannot see it.
    fn start_profile(&mut self, _hertz: u32) -> Result<()> {
        Err(EngineError::Unsupported("this engine takes no profiles of guests".into()))
    }
    /// What was counted since the last call; empty without `start_profile`.
    fn take_profile(&mut self) -> Result<Vec<ProfileSample>> {
        Ok(Vec::new())
    }
    /// Counters of this vCPU (exits by reason, TLB misses, ...).
    fn statistics(&self) -> Statistics;
}

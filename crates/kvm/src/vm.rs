//! `KvmVm`: memslots, interrupt controllers and platform timers of one VM.

use crate::convert::{cpuid_from_kvm, SUPPORTED_CPUID_ENTRIES};
use crate::error::{host, refused};
use crate::memslots::KernelMemslots;
use crate::standstill::Standstill;
use crate::vcpu::KvmVcpu;
use kvm_bindings::{
    kvm_irq_routing_entry, kvm_irq_routing_irqchip, kvm_msi, kvm_pit_config, KvmIrqRouting,
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQ_ROUTING_IRQCHIP,
    KVM_PIT_FLAGS_HPET_LEGACY, KVM_PIT_SPEAKER_DUMMY,
};
use kvm_ioctls::{Kvm, VmFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use sublet_engine::{CpuidEntry, EngineError, PortReadAhead, Result, Statistics, Vcpu, Vm};
use sublet_irq::{Clock, HostClock, PlatformTimers, TimerSource, TimerThread};
use sublet_memory::GuestMemory;

/// Three pages that KVM may need on Intel processors, below the firmware; guests see nothing there.
const IDENTITY_MAP_GPA: u64 = 0xfffb_c000;
const TSS_GPA: usize = 0xfffb_d000;

const IOAPIC_PINS: u32 = 24;

/// What a vCPU needs of its VM, and what must live as long as one of them does.
pub struct SharedVm {
    pub fd: VmFd,
    pub memory: Arc<GuestMemory>,
    slots: Mutex<KernelMemslots>,
    pub standstill: Standstill,
    irqchip: AtomicBool,
    pub timers: OnceLock<Arc<PlatformTimers>>,
    pub read_ahead: Arc<PortReadAhead>,
}

impl SharedVm {
    /// Whether the VM has an in-kernel interrupt controller.
    pub fn has_irqchip(&self) -> bool {
        self.irqchip.load(Ordering::Acquire)
    }

    fn require_irqchip(&self) -> Result<()> {
        match self.has_irqchip() {
            true => Ok(()),
            false => Err(EngineError::Invalid("the VM has no in-core interrupt controller".into())),
        }
    }
}

/// One VM of the kernel's.
pub struct KvmVm {
    shared: Arc<SharedVm>,
    timer_thread: Mutex<Option<TimerThread>>,
    cpuid: Vec<CpuidEntry>,
    /// Bytes of the memory that a vCPU shares with the kernel.
    shared_page_size: usize,
}

/// The host's time-stamp counter.
pub fn read_tsc() -> u64 {
    // SAFETY: RDTSC is always available to user programs on x86-64 Linux.
    unsafe { std::arch::x86_64::_rdtsc() }
}

impl KvmVm {
    /// An empty VM.
    ///
    /// # Errors
    /// The host refuses.
    pub fn new(kvm: &Kvm) -> Result<Self> {
        let fd = kvm.create_vm().map_err(host("KVM_CREATE_VM"))?;
        fd.set_identity_map_address(IDENTITY_MAP_GPA).map_err(host("KVM_SET_IDENTITY_MAP_ADDR"))?;
        fd.set_tss_address(TSS_GPA).map_err(host("KVM_SET_TSS_ADDR"))?;
        let cpuid =
            kvm.get_supported_cpuid(SUPPORTED_CPUID_ENTRIES).map_err(host("KVM_GET_SUPPORTED_CPUID"))?;
        Ok(Self {
            shared: Arc::new(SharedVm {
                fd,
                memory: Arc::new(GuestMemory::new()),
                slots: Mutex::default(),
                standstill: Standstill::default(),
                irqchip: AtomicBool::new(false),
                timers: OnceLock::new(),
                read_ahead: Arc::default(),
            }),
            timer_thread: Mutex::new(None),
            cpuid: cpuid.as_slice().iter().map(cpuid_from_kvm).collect(),
            shared_page_size: kvm.get_vcpu_mmap_size().map_err(host("KVM_GET_VCPU_MMAP_SIZE"))?,
        })
    }

    /// RAM below and above 4 GiB, for the CMOS.
    fn ram_bytes(&self) -> (u64, u64) {
        const FOUR_GIB: u64 = 1 << 32;
        let slots = self.shared.memory.slots();
        let ram = slots.iter().filter(|slot| !slot.readonly);
        let (low, high): (Vec<_>, Vec<_>) = ram.partition(|slot| slot.gpa < FOUR_GIB);
        let sum =
            |slots: Vec<&Arc<_>>| slots.iter().map(|slot: &&Arc<sublet_memory::Memslot>| slot.size).sum();
        (sum(low), sum(high))
    }
}

/// One input of one interrupt controller for a GSI.
fn route(gsi: u32, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    let mut entry =
        kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_IRQCHIP, ..kvm_irq_routing_entry::default() };
    entry.u.irqchip = kvm_irq_routing_irqchip { irqchip, pin };
    entry
}

/// The contract's wiring, which is a PC's: unlike KVM's own, GSI 0 is I/O APIC pin 2.
fn routes() -> Vec<kvm_irq_routing_entry> {
    let master = (0..8).filter(|gsi| *gsi != 2).map(|gsi| route(gsi, KVM_IRQCHIP_PIC_MASTER, gsi));
    let slave = (8..16).map(|gsi| route(gsi, KVM_IRQCHIP_PIC_SLAVE, gsi - 8));
    let ioapic = (0..IOAPIC_PINS)
        .filter(|gsi| *gsi != 2)
        .map(|gsi| route(gsi, KVM_IRQCHIP_IOAPIC, if gsi == 0 { 2 } else { gsi }));
    master.chain(slave).chain(ioapic).collect()
}

/// The platform timers, if they were added.
fn platform_timers(timers: &OnceLock<Arc<PlatformTimers>>) -> Result<&Arc<PlatformTimers>> {
    timers.get().ok_or_else(|| EngineError::Invalid("the VM has no platform timers".into()))
}

impl Vm for KvmVm {
    fn memory(&self) -> &Arc<GuestMemory> {
        &self.shared.memory
    }

    fn read_ahead(&self) -> &Arc<PortReadAhead> {
        &self.shared.read_ahead
    }

    fn create_irqchip(&self) -> Result<()> {
        if self.shared.has_irqchip() {
            return Err(EngineError::Invalid("the VM has an interrupt controller already".into()));
        }
        let fd = &self.shared.fd;
        fd.create_irq_chip().map_err(host("KVM_CREATE_IRQCHIP"))?;
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        fd.create_pit2(pit).map_err(host("KVM_CREATE_PIT2"))?;
        let routing = KvmIrqRouting::from_entries(&routes())
            .map_err(|_| EngineError::Internal("the interrupt routes do not fit".into()))?;
        fd.set_gsi_routing(&routing).map_err(host("KVM_SET_GSI_ROUTING"))?;
        self.shared.irqchip.store(true, Ordering::Release);
        Ok(())
    }

    fn add_platform_timers(&self) -> Result<()> {
        self.shared.require_irqchip()?;
        let clock: Arc<dyn Clock> = Arc::new(HostClock::new(read_tsc, None));
        // Weak: the VM owns the timers.
        let vm = Arc::downgrade(&self.shared);
        let sink = Box::new(move |gsi, level| {
            if let Some(vm) = vm.upgrade() {
                // A refused line is one without a route; the RTC's has one.
                let _ = vm.fd.set_irq_line(gsi, level);
            }
        });
        let timers = PlatformTimers::new(clock.clone(), self.ram_bytes(), sink);
        let source: Arc<dyn TimerSource> = timers.clone();
        self.shared
            .timers
            .set(timers)
            .map_err(|_| EngineError::Invalid("the VM has platform timers already".into()))?;
        let thread = TimerThread::start(clock, vec![source]).map_err(|error| EngineError::Host {
            what: "starting the timer thread".into(),
            errno: error.raw_os_error().unwrap_or(libc::EAGAIN),
        })?;
        *self.timer_thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(())
    }

    fn connect_legacy_timers(&self, connected: bool) -> Result<()> {
        platform_timers(&self.shared.timers)?.connect_rtc(connected);
        let fd = &self.shared.fd;
        let mut pit = fd.get_pit2().map_err(host("KVM_GET_PIT2"))?;
        pit.flags = if connected { 0 } else { KVM_PIT_FLAGS_HPET_LEGACY };
        fd.set_pit2(&pit).map_err(host("KVM_SET_PIT2"))
    }

    fn write_cmos(&self, bytes: &[(u8, u8)]) -> Result<()> {
        platform_timers(&self.shared.timers)?
            .write_cmos(bytes)
            .map_err(|index| EngineError::Invalid(format!("CMOS byte {index:#x} is not one of 0x0e to 0x7f")))
    }

    fn read_cmos(&self) -> Result<Vec<u8>> {
        Ok(platform_timers(&self.shared.timers)?.save_state().rtc.ram)
    }

    fn set_irq_line(&self, gsi: u32, level: bool) -> Result<()> {
        self.shared.require_irqchip()?;
        self.shared.fd.set_irq_line(gsi, level).map_err(refused("KVM_IRQ_LINE"))
    }

    fn signal_msi(&self, address: u64, data: u32) -> Result<()> {
        self.shared.require_irqchip()?;
        let msi = kvm_msi {
            address_lo: address as u32,
            address_hi: (address >> 32) as u32,
            data,
            ..Default::default()
        };
        // The result says whether some APIC took it, which a device cannot know.
        self.shared.fd.signal_msi(msi).map(|_delivered| ()).or_else(|error| match error.errno() {
            libc::EPERM => Ok(()),
            _ => Err(refused("KVM_SIGNAL_MSI")(error)),
        })
    }

    fn create_vcpu(&self, index: u32) -> Result<Box<dyn Vcpu>> {
        let mut vcpu = KvmVcpu::new(self.shared.clone(), index, self.shared_page_size)?;
        vcpu.set_cpuid(&self.cpuid)?;
        Ok(Box::new(vcpu))
    }

    fn memslots_changed(&self) -> Result<()> {
        let mut slots = self.shared.slots.lock().unwrap_or_else(PoisonError::into_inner);
        // KVM takes slots away one by one: a vCPU that ran meanwhile would find a hole.
        self.shared.standstill.during(|| slots.update(&self.shared.fd, &self.shared.memory))
    }

    fn set_a20(&self, open: bool) -> Result<()> {
        match open {
            true => Ok(()),
            false => Err(EngineError::Unsupported("KVM has no A20 gate".into())),
        }
    }

    fn take_dirty_log(&self, slot: u32) -> Result<Vec<u64>> {
        let mut log = self
            .shared
            .memory
            .take_dirty(slot)
            .ok_or_else(|| EngineError::Invalid(format!("no memslot {slot}")))?;
        let slots = self.shared.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let guest = slots.take_dirty(&self.shared.fd, slot)?;
        log.iter_mut().zip(guest).for_each(|(word, written)| *word |= written);
        Ok(log)
    }

    fn statistics(&self) -> Statistics {
        Statistics::new()
    }
}

//! The engine contract on top of the translator.

use super::shared::{lock, Shared, MAX_VCPUS};
use super::vcpu::VcpuCore;
use crate::cpu::{Cpu, Flush};
use crate::optimisations::{Optimisation, Optimisations};
use crate::state::{flag, seg, SegmentRegister, TableRegister, XSAVE_AREA_BYTES};
use crate::system::cpuid;
use crate::system::io::InCorePorts;
use std::sync::{Arc, Mutex, OnceLock};
use sublet_engine::{
    CpuidEntry, DescriptorTable, Engine, EngineError, Exit, Kick, MsrEntry, PortReadAhead, ProfileSample,
    Regs, Result, Segment, Sregs, Statistics, Vcpu, VcpuEvents, Vm,
};
use sublet_irq::{Clock, HostClock, Irqchip, PlatformTimers, TimerSource, TimerThread};
use sublet_memory::GuestMemory;

/// The binary-translation engine.
#[derive(Debug)]
pub struct TranslateEngine {
    cache_limit: usize,
    optimisations: Optimisations,
}

fn read_tsc() -> u64 {
    // SAFETY: RDTSC is always available to user programs on x86-64 Linux.
    unsafe { std::arch::x86_64::_rdtsc() }
}

impl TranslateEngine {
    /// The engine, if this host can run it.
    ///
    /// # Errors
    /// `Unsupported` names the processor features that are missing; `Invalid` what is wrong with
    /// [`Optimisations::WITHOUT`].
    pub fn new() -> Result<Self> {
        let missing: Vec<&str> = [
            ("bmi2", std::is_x86_feature_detected!("bmi2")),
            ("avx2", std::is_x86_feature_detected!("avx2")),
            ("xsave", std::is_x86_feature_detected!("xsave")),
        ]
        .into_iter()
        .filter_map(|(name, present)| (!present).then_some(name))
        .collect();
        if !missing.is_empty() {
            return Err(EngineError::Unsupported(format!(
                "the translator needs x86-64-v3; this processor lacks {}",
                missing.join(", ")
            )));
        }
        HostClock::prepare(read_tsc);
        Ok(Self { cache_limit: usize::MAX, optimisations: Optimisations::from_environment()? })
    }

    /// Let no vCPU have more than `bytes` of translated code, so that eviction can be tested. Below 512 KiB
    /// hardly a block stays.
    #[must_use]
    pub fn with_cache_limit(self, bytes: usize) -> Self {
        Self { cache_limit: bytes, ..self }
    }

    /// Leave an optimisation out, see [`Optimisations::WITHOUT`].
    #[must_use]
    pub fn without(self, one: Optimisation) -> Self {
        Self { optimisations: self.optimisations.without(one), ..self }
    }
}

/// What the engine can honour, with the TSC frequency that `clock` measures.
fn offered_cpuid(clock: &HostClock) -> Vec<CpuidEntry> {
    let mut entries = cpuid::supported_cpuid();
    cpuid::set_tsc_khz(&mut entries, u32::try_from(clock.tsc_hz() / 1000).unwrap_or(0));
    entries
}

impl Engine for TranslateEngine {
    fn name(&self) -> &'static str {
        "translate"
    }

    fn create_vm(&self) -> Result<Arc<dyn Vm>> {
        let memory = Arc::new(GuestMemory::new());
        let shared = Shared::new(memory.clone(), self.cache_limit, self.optimisations);
        Ok(Arc::new(TranslateVm {
            clock: Arc::new(HostClock::new(read_tsc, None).with_thread_use(crate::system::time::thread_use)),
            memory,
            shared,
            irqchip: OnceLock::new(),
            timers: OnceLock::new(),
            timer_thread: Mutex::new(None),
            read_ahead: Arc::default(),
        }))
    }

    fn supported_cpuid(&self) -> Result<Vec<CpuidEntry>> {
        Ok(offered_cpuid(&HostClock::new(read_tsc, None)))
    }
}

/// Where XSAVE images carry XCR0: in bytes that the format leaves to software.
const XCR0: std::ops::Range<usize> = 464..472;

struct TranslateVm {
    memory: Arc<GuestMemory>,
    shared: Arc<Shared>,
    clock: Arc<HostClock>,
    irqchip: OnceLock<Arc<Irqchip>>,
    timers: OnceLock<Arc<PlatformTimers>>,
    timer_thread: Mutex<Option<TimerThread>>,
    read_ahead: Arc<PortReadAhead>,
}

impl TranslateVm {
    fn irqchip(&self) -> Result<&Arc<Irqchip>> {
        self.irqchip
            .get()
            .ok_or_else(|| EngineError::Invalid("the VM has no in-core interrupt controller".into()))
    }

    /// (Re)start the timer thread for all that has deadlines.
    fn start_timers(&self) -> Result<()> {
        let mut sources: Vec<Arc<dyn TimerSource>> = Vec::new();
        if let Some(irqchip) = self.irqchip.get() {
            sources.push(irqchip.clone());
        }
        if let Some(timers) = self.timers.get() {
            sources.push(timers.clone());
        }
        let mut thread = lock(&self.timer_thread);
        *thread = None;
        let clock: Arc<dyn Clock> = self.clock.clone();
        *thread = Some(TimerThread::start(clock, sources).map_err(|error| EngineError::Host {
            what: "starting the timer thread".into(),
            errno: error.raw_os_error().unwrap_or(libc::EAGAIN),
        })?);
        Ok(())
    }

    /// RAM below and above 4 GiB, for the CMOS.
    fn ram_bytes(&self) -> (u64, u64) {
        const FOUR_GIB: u64 = 1 << 32;
        let slots = self.memory.slots();
        let sum = |high: bool| {
            slots
                .iter()
                .filter(|slot| !slot.readonly && (slot.gpa >= FOUR_GIB) == high)
                .map(|slot| slot.size)
                .sum()
        };
        (sum(false), sum(true))
    }
}

/// The platform timers, if they were added.
fn platform_timers(timers: &OnceLock<Arc<PlatformTimers>>) -> Result<&Arc<PlatformTimers>> {
    timers.get().ok_or_else(|| EngineError::Invalid("the VM has no platform timers".into()))
}

impl Vm for TranslateVm {
    fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    fn read_ahead(&self) -> &Arc<PortReadAhead> {
        &self.read_ahead
    }

    fn create_irqchip(&self) -> Result<()> {
        let irqchip = Irqchip::new(self.clock.clone());
        self.irqchip
            .set(irqchip)
            .map_err(|_| EngineError::Invalid("the VM has an interrupt controller already".into()))?;
        self.start_timers()
    }

    fn add_platform_timers(&self) -> Result<()> {
        let irqchip = self.irqchip()?.clone();
        let sink = Box::new(move |gsi, level| irqchip.set_line(gsi, level));
        let timers = PlatformTimers::new(self.clock.clone(), self.ram_bytes(), sink);
        self.timers
            .set(timers)
            .map_err(|_| EngineError::Invalid("the VM has platform timers already".into()))?;
        self.start_timers()
    }

    fn connect_legacy_timers(&self, connected: bool) -> Result<()> {
        platform_timers(&self.timers)?.connect_rtc(connected);
        self.irqchip()?.connect_system_timer(connected);
        Ok(())
    }

    fn write_cmos(&self, bytes: &[(u8, u8)]) -> Result<()> {
        platform_timers(&self.timers)?
            .write_cmos(bytes)
            .map_err(|index| EngineError::Invalid(format!("CMOS byte {index:#x} is not one of 0x0e to 0x7f")))
    }

    fn read_cmos(&self) -> Result<Vec<u8>> {
        Ok(platform_timers(&self.timers)?.save_state().rtc.ram)
    }

    fn set_irq_line(&self, gsi: u32, level: bool) -> Result<()> {
        self.irqchip()?.set_line(gsi, level);
        Ok(())
    }

    fn signal_msi(&self, address: u64, data: u32) -> Result<()> {
        self.irqchip()?.signal_msi(address, data);
        Ok(())
    }

    fn create_vcpu(&self, index: u32) -> Result<Box<dyn Vcpu>> {
        if index as usize >= MAX_VCPUS {
            return Err(EngineError::Invalid(format!(
                "vCPU {index}: the translator runs 0 to {}",
                MAX_VCPUS - 1
            )));
        }
        let mut cpu = Cpu::new(self.memory.clone());
        cpu.state.tsc_offset = self.clock.tsc_offset();
        if let Some(irqchip) = self.irqchip.get() {
            let apic = irqchip.add_lapic(index);
            cpu.events.waiting_for_startup = !apic.is_bootstrap();
            cpu.apic = Some(apic);
            cpu.irqchip = Some(irqchip.clone());
        }
        if let Some(timers) = self.timers.get() {
            let ports: Arc<dyn InCorePorts> = timers.clone();
            cpu.in_core_ports.push(ports);
        }
        let offered: Arc<dyn InCorePorts> = self.read_ahead.clone();
        cpu.in_core_ports.push(offered);
        cpu.set_cpuid(offered_cpuid(&self.clock));
        let core = VcpuCore::new(cpu, self.shared.clone())?;
        if let Some(apic) = &core.cpu.apic {
            apic.set_waker(core.requests.clone());
        }
        Ok(Box::new(TranslateVcpu { core }))
    }

    fn has_smm(&self) -> bool {
        true
    }

    fn set_smm_open(&self, open: bool) -> Result<()> {
        self.memory.set_smm_open(open);
        self.shared.flush_all_vcpus(true)
    }

    fn memslots_changed(&self) -> Result<()> {
        self.shared.flush_all_vcpus(true)
    }

    fn set_a20(&self, open: bool) -> Result<()> {
        self.memory.set_a20(open);
        self.shared.flush_all_vcpus(true)
    }

    fn take_dirty_log(&self, slot: u32) -> Result<Vec<u64>> {
        let log =
            self.memory.take_dirty(slot).ok_or_else(|| EngineError::Invalid(format!("no memslot {slot}")))?;
        // Pages whose bits were cleared must be seen at their next store.
        self.shared.flush_all_vcpus(false)?;
        Ok(log)
    }

    fn statistics(&self) -> Statistics {
        self.irqchip.get().map(|irqchip| irqchip.statistics().into_iter().collect()).unwrap_or_default()
    }
}

struct TranslateVcpu {
    core: Box<VcpuCore>,
}

impl TranslateVcpu {
    fn changed(&mut self) {
        self.core.cpu.mmu.flush(Flush::All);
    }
}

fn to_segment(register: &SegmentRegister) -> Segment {
    let attributes = register.attributes;
    Segment {
        base: register.base,
        limit: register.limit,
        selector: register.selector,
        kind: register.kind(),
        present: register.present(),
        dpl: register.dpl(),
        db: register.big(),
        s: register.is_code_or_data(),
        l: register.long(),
        g: attributes & 0x8000 != 0,
        avl: attributes & 0x1000 != 0,
        unusable: !register.present(),
    }
}

fn from_segment(segment: &Segment) -> SegmentRegister {
    let bit = |on: bool, mask: u16| if on { mask } else { 0 };
    let present = segment.present && !segment.unusable;
    let attributes = u16::from(segment.kind & 0xf)
        | bit(segment.s, 0x10)
        | (u16::from(segment.dpl & 3) << 5)
        | bit(present, 0x80)
        | bit(segment.avl, 0x1000)
        | bit(segment.l, 0x2000)
        | bit(segment.db, 0x4000)
        | bit(segment.g, 0x8000);
    SegmentRegister { base: segment.base, limit: segment.limit, selector: segment.selector, attributes }
}

impl Vcpu for TranslateVcpu {
    fn run(&mut self) -> Result<Exit> {
        Ok(self.core.run())
    }

    fn complete_read(&mut self, data: u64) {
        self.core.complete_read(data);
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        self.core.requests.clone()
    }

    fn regs(&mut self) -> Result<Regs> {
        let state = &self.core.cpu.state;
        Ok(Regs { gpr: state.gpr, rip: state.rip, rflags: state.rflags | flag::FIXED })
    }

    fn set_regs(&mut self, regs: &Regs) -> Result<()> {
        let state = &mut self.core.cpu.state;
        state.gpr = regs.gpr;
        state.rip = regs.rip;
        state.rflags = (regs.rflags & 0x003f_7fd5) | flag::FIXED;
        Ok(())
    }

    fn sregs(&mut self) -> Result<Sregs> {
        let cpu = &self.core.cpu;
        let state = &cpu.state;
        Ok(Sregs {
            segments: std::array::from_fn(|index| to_segment(&state.segments[index])),
            ldtr: to_segment(&state.ldtr),
            tr: to_segment(&state.tr),
            gdt: DescriptorTable { base: state.gdtr.base, limit: state.gdtr.limit },
            idt: DescriptorTable { base: state.idtr.base, limit: state.idtr.limit },
            cr0: state.cr0,
            cr2: state.cr2,
            cr3: state.cr3,
            cr4: state.cr4,
            cr8: cpu.task_priority(),
            efer: state.efer,
            apic_base: cpu.apic.as_ref().map_or(0xfee0_0900, |apic| apic.apic_base()),
        })
    }

    fn set_sregs(&mut self, sregs: &Sregs) -> Result<()> {
        let cpu = &mut self.core.cpu;
        for (register, segment) in cpu.state.segments.iter_mut().zip(&sregs.segments) {
            *register = from_segment(segment);
        }
        // The privilege level is that of SS.
        let cs_dpl = cpu.state.segments[seg::CS].attributes & 0x60;
        if sregs.segments[seg::SS].unusable {
            cpu.state.segments[seg::SS].attributes |= cs_dpl;
        }
        cpu.state.ldtr = from_segment(&sregs.ldtr);
        cpu.state.tr = from_segment(&sregs.tr);
        cpu.state.gdtr = TableRegister { base: sregs.gdt.base, limit: sregs.gdt.limit };
        cpu.state.idtr = TableRegister { base: sregs.idt.base, limit: sregs.idt.limit };
        (cpu.state.cr0, cpu.state.cr2, cpu.state.cr3) = (sregs.cr0, sregs.cr2, sregs.cr3);
        (cpu.state.cr4, cpu.state.efer) = (sregs.cr4, sregs.efer);
        if cpu.set_task_priority(sregs.cr8).is_err() {
            return Err(EngineError::Invalid(format!("CR8 = {:#x}: above 15", sregs.cr8)));
        }
        if let Some(apic) = &cpu.apic {
            if sregs.apic_base != 0
                && apic.apic_base() != sregs.apic_base
                && apic.set_apic_base(sregs.apic_base).is_err()
            {
                return Err(EngineError::Invalid(format!("APIC base {:#x} cannot be set", sregs.apic_base)));
            }
        }
        self.changed();
        Ok(())
    }

    fn xsave(&mut self) -> Result<Vec<u8>> {
        let mut area = self.core.cpu.state.vector.0.to_vec();
        area[XCR0].copy_from_slice(&self.core.cpu.state.xcr0.to_le_bytes());
        Ok(area)
    }

    fn set_xsave(&mut self, area: &[u8]) -> Result<()> {
        if area.len() < 576 || area.len() > XSAVE_AREA_BYTES {
            return Err(EngineError::Invalid(format!("an XSAVE area of {} bytes", area.len())));
        }
        let mut xcr0 = [0; 8];
        xcr0.copy_from_slice(&area[XCR0]);
        let target = &mut self.core.cpu.state.vector.0;
        target.fill(0);
        target[..area.len()].copy_from_slice(area);
        self.core.tidy_vectors();
        // Zero stands for "not given": XCR0 always has bit 0.
        let xcr0 = u64::from_le_bytes(xcr0);
        if xcr0 != 0 && self.core.cpu.set_xcr0(xcr0).is_err() {
            return Err(EngineError::Invalid(format!("XCR0 {xcr0:#x} is not one that the guest could set")));
        }
        Ok(())
    }

    fn msrs(&mut self, indices: &[u32]) -> Result<Vec<MsrEntry>> {
        indices
            .iter()
            .map(|&index| match self.core.cpu.msr_read_by_host(index) {
                Some(value) => Ok(MsrEntry { index, value }),
                None => Err(EngineError::Invalid(format!("MSR {index:#x} is unknown"))),
            })
            .collect()
    }

    fn set_msrs(&mut self, entries: &[MsrEntry]) -> Result<()> {
        for entry in entries {
            let set = self.core.cpu.msr_write(entry.index, entry.value, true);
            set.ok_or_else(|| {
                EngineError::Invalid(format!("MSR {:#x} does not take {:#x}", entry.index, entry.value))
            })?;
        }
        Ok(())
    }

    fn debug_regs(&mut self) -> Result<[u64; 6]> {
        let dr = &self.core.cpu.state.dr;
        Ok([dr[0], dr[1], dr[2], dr[3], dr[6], dr[7]])
    }

    fn set_debug_regs(&mut self, regs: &[u64; 6]) -> Result<()> {
        for (number, value) in [0, 1, 2, 3, 6, 7].into_iter().zip(regs) {
            self.core.cpu.set_debug_register(number, *value);
        }
        self.changed();
        Ok(())
    }

    fn set_cpuid(&mut self, entries: &[CpuidEntry]) -> Result<()> {
        self.core.cpu.set_cpuid(entries.to_vec());
        Ok(())
    }

    fn events(&mut self) -> Result<VcpuEvents> {
        let (events, smm) = (&self.core.cpu.events, &self.core.cpu.smm);
        Ok(VcpuEvents {
            interrupt_shadow: events.interrupt_shadow,
            nmi_pending: events.nmi_pending,
            nmi_masked: events.nmi_masked,
            halted: events.halted,
            waiting_for_startup: events.waiting_for_startup,
            smm: smm.active,
            smi_pending: smm.pending,
            smm_inside_nmi: smm.inside_nmi,
        })
    }

    fn set_events(&mut self, events: &VcpuEvents) -> Result<()> {
        let own = &mut self.core.cpu.events;
        own.interrupt_shadow = events.interrupt_shadow;
        own.nmi_pending = events.nmi_pending;
        own.nmi_masked = events.nmi_masked;
        own.halted = events.halted;
        own.waiting_for_startup = events.waiting_for_startup;
        let smm = &mut self.core.cpu.smm;
        (smm.active, smm.pending, smm.inside_nmi) = (events.smm, events.smi_pending, events.smm_inside_nmi);
        // What an address leads to goes by the mode.
        self.changed();
        Ok(())
    }

    fn inject_interrupt(&mut self, vector: u8) -> Result<()> {
        if self.core.cpu.apic.is_some() {
            return Err(EngineError::Invalid(
                "interrupts go through the in-core interrupt controller".into(),
            ));
        }
        if !self.ready_for_interrupt()? {
            return Err(EngineError::Invalid("the guest takes no interrupt now".into()));
        }
        self.core.cpu.events.injected = Some(vector);
        self.core.cpu.events.halted = false;
        Ok(())
    }

    fn ready_for_interrupt(&mut self) -> Result<bool> {
        let cpu = &self.core.cpu;
        Ok(cpu.state.rflags & flag::IF != 0 && !cpu.events.interrupt_shadow && cpu.events.injected.is_none())
    }

    fn request_interrupt_window(&mut self, on: bool) -> Result<()> {
        self.core.window_wanted = on;
        Ok(())
    }

    fn start_profile(&mut self, hertz: u32) -> Result<()> {
        self.core.start_profile(hertz)
    }

    fn take_profile(&mut self) -> Result<Vec<ProfileSample>> {
        Ok(self.core.take_profile())
    }

    fn inject_nmi(&mut self) -> Result<()> {
        self.core.cpu.events.nmi_pending = true;
        Ok(())
    }

    fn statistics(&self) -> Statistics {
        let counted = self.core.counters();
        let flushes = self.core.flushes();
        let cache = self.core.cache_statistics();
        let [windows, kernel_windows] = self.core.window_statistics();
        [
            ("translate.blocks", cache.blocks),
            ("translate.copied_blocks", counted.copied),
            ("translate.instructions", cache.instructions),
            ("translate.guest_bytes", cache.guest_bytes),
            ("translate.host_bytes", cache.host_bytes),
            ("translate.links", cache.links),
            ("translate.smc_invalidations", cache.invalidated),
            ("translate.cache_flushes", cache.flushes),
            ("translate.longest_flush_us", counted.longest_clear_us),
            ("translate.cache_used_bytes", self.core.cache_used() as u64),
            ("vcpu.cache_entries", counted.entries),
            ("vcpu.block_lookups", counted.lookups),
            ("vcpu.links_followed", counted.links),
            ("vcpu.indirect_misses", counted.indirect),
            ("vcpu.slow_accesses", counted.slow_accesses),
            ("vcpu.tlb_misses", counted.walks),
            ("vcpu.page_crossings", counted.crossings),
            ("vcpu.unshared_checks", counted.unshared),
            ("vcpu.system_instructions", counted.system),
            ("vcpu.interrupts", counted.interrupts),
            ("vcpu.smis", counted.smis),
            ("vcpu.exceptions", counted.exceptions),
            ("vcpu.page_faults", counted.page_faults),
            ("vcpu.halts", counted.halts),
            ("vcpu.unconfirmed_pages", counted.unconfirmed),
            ("vcpu.unheard_stores", counted.unheard),
            ("vcpu.exclusive_sections", counted.exclusive),
            ("vcpu.pauses", counted.pauses),
            ("vcpu.pause_yields", counted.yields),
            ("vcpu.window_faults", counted.window_faults),
            ("vcpu.window_declined", counted.window_declined),
            ("vcpu.window_maps", windows.maps),
            ("vcpu.window_pages", windows.pages),
            ("vcpu.window_drops", windows.drops),
            ("vcpu.kernel_window_maps", kernel_windows.maps),
            ("vcpu.kernel_window_pages", kernel_windows.pages),
            ("vcpu.kernel_window_drops", kernel_windows.drops),
            ("vcpu.tlb_flushes_all", flushes[0]),
            ("vcpu.tlb_flushes_local", flushes[1]),
            ("vcpu.tlb_flushes_page", flushes[2]),
            ("vcpu.jump_cache_flushes", flushes[3]),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .chain(self.core.carried_out().map(|(name, count)| (format!("vcpu.system.{name}"), count)))
        .collect()
    }
}

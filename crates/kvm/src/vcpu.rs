//! `KvmVcpu`: one vCPU of the kernel's.

use crate::convert::{
    cpuid_to_kvm, msr_from_kvm, msr_to_kvm, regs_from_kvm, regs_to_kvm, sregs_from_kvm, sregs_to_kvm,
    SUPPORTED_CPUID_ENTRIES,
};
use crate::error::{host, refused};
use crate::kick::Kicker;
use crate::shared_page::SharedPage;
use crate::transfer::{Element, Transfer};
use crate::vm::SharedVm;
use kvm_bindings::{
    kvm_debugregs, kvm_interrupt, kvm_mp_state, kvm_xsave, CpuId, Msrs, KVM_EXIT_HLT, KVM_EXIT_HYPERCALL,
    KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_INTR, KVM_EXIT_IO, KVM_EXIT_IRQ_WINDOW_OPEN, KVM_EXIT_MMIO,
    KVM_EXIT_SET_TPR, KVM_EXIT_SHUTDOWN, KVM_EXIT_SYSTEM_EVENT, KVM_MP_STATE_HALTED,
    KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED, KVM_SYSTEM_EVENT_RESET,
    KVM_SYSTEM_EVENT_SHUTDOWN, KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SHADOW,
};
use kvm_ioctls::VcpuFd;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use sublet_engine::{
    CpuidEntry, EngineError, Exit, Kick, MsrEntry, Regs, Result, Sregs, Statistics, Vcpu, VcpuEvents,
};

/// `_IOW(KVMIO, 0x86, struct kvm_interrupt)`, which `kvm-ioctls` does not wrap.
const KVM_INTERRUPT: libc::c_ulong = 0x4004_ae86;

/// Added to the `KVM_EXIT_*` number in `Exit::InternalError` where KVM gives no code of its own.
const UNEXPECTED_EXIT: u32 = 0x8000_0000;

/// Most fragments that one instruction's I/O can leave in (64 bytes, page-crossing, both ways, and
/// the 1024 elements of a string instruction).
const MAX_FRAGMENTS: usize = 1024;

/// Where XCR0 lies in an XSAVE area of the contract (bytes of the software's, SDM vol. 1 §13.4.1).
const XCR0: std::ops::Range<usize> = 464..472;

const XSAVE_BYTES: usize = 4096;

#[derive(Debug, Default)]
struct Counters {
    entries: u64,
    in_core: u64,
    exits: u64,
}

/// One vCPU. Runs on the thread that calls `run`.
pub struct KvmVcpu {
    fd: VcpuFd,
    vm: Arc<SharedVm>,
    page: SharedPage,
    kicker: Arc<Kicker>,
    /// I/O that the guest waits for.
    transfer: Option<Transfer>,
    /// Where `complete_read` puts its answer.
    reading: Option<Element>,
    /// An exit that came while an access was completed ahead of time.
    held: Option<Exit>,
    /// The guest's last access is answered, but its instruction not finished.
    unfinished: bool,
    window: bool,
    counters: Counters,
}

impl Drop for KvmVcpu {
    fn drop(&mut self) {
        // Before `fd`, which unmaps the page, goes.
        self.kicker.detach();
    }
}

impl KvmVcpu {
    /// vCPU `index` at reset state; `page_size` bytes of memory are shared with the kernel.
    pub(crate) fn new(vm: Arc<SharedVm>, index: u32, page_size: usize) -> Result<Self> {
        let mut fd = vm.fd.create_vcpu(index.into()).map_err(refused("KVM_CREATE_VCPU"))?;
        let page = SharedPage::new(&mut fd, page_size);
        let kicker = Kicker::new(page);
        vm.standstill.add(&kicker);
        Ok(Self {
            fd,
            vm,
            page,
            kicker,
            transfer: None,
            reading: None,
            held: None,
            unfinished: false,
            window: false,
            counters: Counters::default(),
        })
    }

    /// The next thing the guest did; `None` when nothing is known yet.
    fn step(&mut self) -> Result<Option<Exit>> {
        if let Some(exit) = self.held.take() {
            return Ok(Some(exit));
        }
        if let Some(exit) = self.next_element() {
            return Ok(Some(exit));
        }
        if self.window && self.ready_for_interrupt()? {
            return Ok(Some(Exit::InterruptWindow));
        }
        self.enter()
    }

    /// The next element of a transfer that is still to be handed out, and not answered in the core.
    fn next_element(&mut self) -> Option<Exit> {
        loop {
            let (exit, reading) = self.transfer.as_mut()?.next(&self.page)?;
            if self.transfer.is_some_and(|transfer| transfer.is_done()) {
                self.transfer = None;
                self.unfinished = true;
            }
            if !answer_in_core(&self.vm, &self.page, exit, reading) {
                self.reading = reading;
                return Some(exit);
            }
            self.counters.in_core += 1;
        }
    }

    /// Execute guest code until KVM returns.
    fn enter(&mut self) -> Result<Option<Exit>> {
        self.counters.entries += 1;
        self.unfinished = false;
        let running = self.vm.standstill.run();
        let fd = &mut self.fd;
        let result = self.kicker.interruptible(|| fd.run().map(drop));
        drop(running);
        self.after_run(result)
    }

    /// What a `KVM_RUN` that ended with `result` says.
    fn after_run(&mut self, result: std::result::Result<(), kvm_ioctls::Error>) -> Result<Option<Exit>> {
        match result.map_err(|error| error.errno()) {
            Ok(()) => Ok(self.decode()),
            Err(libc::EINTR | libc::EAGAIN) => Ok(None),
            Err(errno) => Err(EngineError::Host { what: "KVM_RUN".into(), errno }),
        }
    }

    fn decode(&mut self) -> Option<Exit> {
        match self.page.exit_reason() {
            KVM_EXIT_IO => self.begin(Transfer::pio(&self.page.pio(), &self.page)),
            KVM_EXIT_MMIO => self.begin(Transfer::mmio(&self.page.mmio(), &self.page)),
            KVM_EXIT_HLT => Some(Exit::Hlt),
            KVM_EXIT_SHUTDOWN => Some(Exit::Shutdown),
            KVM_EXIT_IRQ_WINDOW_OPEN => self.window.then_some(Exit::InterruptWindow),
            KVM_EXIT_HYPERCALL => {
                let (number, args) = self.page.hypercall();
                Some(Exit::Hypercall { number, args })
            }
            KVM_EXIT_INTR | KVM_EXIT_SET_TPR => None,
            KVM_EXIT_SYSTEM_EVENT => Some(system_event(self.page.system_event())),
            KVM_EXIT_INTERNAL_ERROR => Some(Exit::InternalError { code: self.page.suberror() }),
            reason => Some(Exit::InternalError { code: UNEXPECTED_EXIT | reason }),
        }
    }

    /// Keep a transfer; `step` hands it out.
    fn begin(&mut self, transfer: Transfer) -> Option<Exit> {
        self.transfer = Some(transfer);
        None
    }

    /// Let KVM finish the instruction whose access was answered, without executing another one.
    fn finish_instruction(&mut self) -> Result<()> {
        self.reading = None;
        self.unfinished = false;
        let fd = &mut self.fd;
        let result = self.kicker.without_guest_code(|| fd.run().map(drop));
        self.held = self.after_run(result)?;
        Ok(())
    }

    /// Before state is read: an instruction whose accesses are all answered counts as executed.
    fn settle(&mut self) -> Result<()> {
        match self.unfinished && self.reading.is_none() {
            true => self.finish_instruction(),
            false => Ok(()),
        }
    }

    /// Before state is replaced: no instruction may be half done. Reads that nobody answered
    /// give all ones.
    fn abandon(&mut self) -> Result<()> {
        for _ in 0..MAX_FRAGMENTS {
            if self.transfer.take().is_none() && !self.unfinished {
                break;
            }
            self.finish_instruction()?;
        }
        Ok(())
    }

    fn msr_result(&self, what: &str, asked: impl Fn(usize) -> Option<u32>, done: usize) -> Result<()> {
        match asked(done) {
            None => Ok(()),
            Some(index) => Err(EngineError::Invalid(format!("MSR {index:#x}: KVM refuses to {what} it"))),
        }
    }
}

/// Answer an access to the platform timers, or from what a device has offered; false when it is neither's.
fn answer_in_core(vm: &SharedVm, page: &SharedPage, exit: Exit, reading: Option<Element>) -> bool {
    let timers = vm.timers.get();
    match (exit, reading) {
        (Exit::PioIn { port, size }, Some(element)) => {
            let offered = vm.read_ahead.read(port, size);
            match offered.or_else(|| timers?.pio_read(port, size)) {
                Some(value) => {
                    page.store(element.offset, element.size, value);
                    true
                }
                None => false,
            }
        }
        (Exit::PioOut { port, size, data }, _) => {
            timers.is_some_and(|timers| timers.pio_write(port, size, data))
        }
        _ => false,
    }
}

fn system_event(kind: u32) -> Exit {
    match kind {
        KVM_SYSTEM_EVENT_RESET => Exit::SystemReset,
        KVM_SYSTEM_EVENT_SHUTDOWN => Exit::Shutdown,
        _ => Exit::InternalError { code: UNEXPECTED_EXIT | KVM_EXIT_SYSTEM_EVENT },
    }
}

impl Vcpu for KvmVcpu {
    fn run(&mut self) -> Result<Exit> {
        self.reading = None;
        loop {
            if self.kicker.take() {
                return Ok(Exit::Interrupted);
            }
            if let Some(exit) = self.step()? {
                self.counters.exits += 1;
                return Ok(exit);
            }
        }
    }

    fn complete_read(&mut self, data: u64) {
        if let Some(Element { offset, size }) = self.reading.take() {
            self.page.store(offset, size, data);
        }
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        self.kicker.clone()
    }

    fn regs(&mut self) -> Result<Regs> {
        self.settle()?;
        self.fd.get_regs().map(|regs| regs_from_kvm(&regs)).map_err(host("KVM_GET_REGS"))
    }

    fn set_regs(&mut self, regs: &Regs) -> Result<()> {
        self.abandon()?;
        self.fd.set_regs(&regs_to_kvm(regs)).map_err(refused("KVM_SET_REGS"))
    }

    fn sregs(&mut self) -> Result<Sregs> {
        self.settle()?;
        self.fd.get_sregs().map(|sregs| sregs_from_kvm(&sregs)).map_err(host("KVM_GET_SREGS"))
    }

    fn set_sregs(&mut self, sregs: &Sregs) -> Result<()> {
        self.abandon()?;
        let old = self.fd.get_sregs().map_err(host("KVM_GET_SREGS"))?;
        self.fd.set_sregs(&sregs_to_kvm(sregs, &old)).map_err(refused("KVM_SET_SREGS"))
    }

    fn xsave(&mut self) -> Result<Vec<u8>> {
        self.settle()?;
        let xsave = self.fd.get_xsave().map_err(host("KVM_GET_XSAVE"))?;
        let xcrs = self.fd.get_xcrs().map_err(host("KVM_GET_XCRS"))?;
        let xcr0 = xcrs.xcrs.iter().find(|xcr| xcr.xcr == 0).map_or(1, |xcr| xcr.value);
        let mut area: Vec<u8> = xsave.region.iter().flat_map(|word| word.to_le_bytes()).collect();
        area[XCR0].copy_from_slice(&xcr0.to_le_bytes());
        Ok(area)
    }

    fn set_xsave(&mut self, area: &[u8]) -> Result<()> {
        if !(512 + 64..=XSAVE_BYTES).contains(&area.len()) {
            return Err(EngineError::Invalid(format!("an XSAVE area of {} bytes", area.len())));
        }
        self.abandon()?;
        self.set_xcr0(&area[XCR0])?;
        let mut bytes = [0; XSAVE_BYTES];
        bytes[..area.len()].copy_from_slice(area);
        let mut xsave = kvm_xsave::default();
        for (word, four) in xsave.region.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = four.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte));
        }
        // SAFETY: the kernel reads 4096 bytes only, because the process never asks for the
        // permission to use larger state (arch_prctl ARCH_REQ_XCOMP_GUEST_PERM).
        unsafe { self.fd.set_xsave(&xsave) }.map_err(refused("KVM_SET_XSAVE"))
    }

    fn msrs(&mut self, indices: &[u32]) -> Result<Vec<MsrEntry>> {
        self.settle()?;
        let entries: Vec<_> =
            indices.iter().map(|index| msr_to_kvm(&MsrEntry { index: *index, value: 0 })).collect();
        let mut msrs =
            Msrs::from_entries(&entries).map_err(|_| EngineError::Invalid("too many MSRs".into()))?;
        let done = self.fd.get_msrs(&mut msrs).map_err(host("KVM_GET_MSRS"))?;
        self.msr_result("read", |at| indices.get(at).copied(), done)?;
        Ok(msrs.as_slice().iter().map(msr_from_kvm).collect())
    }

    fn set_msrs(&mut self, entries: &[MsrEntry]) -> Result<()> {
        self.abandon()?;
        let kvm: Vec<_> = entries.iter().map(msr_to_kvm).collect();
        let msrs = Msrs::from_entries(&kvm).map_err(|_| EngineError::Invalid("too many MSRs".into()))?;
        let done = self.fd.set_msrs(&msrs).map_err(host("KVM_SET_MSRS"))?;
        self.msr_result("write", |at| entries.get(at).map(|entry| entry.index), done)
    }

    fn debug_regs(&mut self) -> Result<[u64; 6]> {
        self.settle()?;
        let regs = self.fd.get_debug_regs().map_err(host("KVM_GET_DEBUGREGS"))?;
        let [dr0, dr1, dr2, dr3] = regs.db;
        Ok([dr0, dr1, dr2, dr3, regs.dr6, regs.dr7])
    }

    fn set_debug_regs(&mut self, regs: &[u64; 6]) -> Result<()> {
        self.abandon()?;
        let [dr0, dr1, dr2, dr3, dr6, dr7] = *regs;
        let regs = kvm_debugregs { db: [dr0, dr1, dr2, dr3], dr6, dr7, ..Default::default() };
        self.fd.set_debug_regs(&regs).map_err(refused("KVM_SET_DEBUGREGS"))
    }

    fn set_cpuid(&mut self, entries: &[CpuidEntry]) -> Result<()> {
        let too_many = || EngineError::Invalid(format!("{} CPUID entries", entries.len()));
        if entries.len() > SUPPORTED_CPUID_ENTRIES {
            return Err(too_many());
        }
        let entries: Vec<_> = entries.iter().map(cpuid_to_kvm).collect();
        let cpuid = CpuId::from_entries(&entries).map_err(|_| too_many())?;
        self.fd.set_cpuid2(&cpuid).map_err(refused("KVM_SET_CPUID2"))
    }

    fn events(&mut self) -> Result<VcpuEvents> {
        self.settle()?;
        let events = self.fd.get_vcpu_events().map_err(host("KVM_GET_VCPU_EVENTS"))?;
        let mp_state = self.mp_state()?;
        Ok(VcpuEvents {
            interrupt_shadow: events.interrupt.shadow != 0,
            nmi_pending: events.nmi.pending != 0 || events.nmi.injected != 0,
            nmi_masked: events.nmi.masked != 0,
            halted: mp_state == KVM_MP_STATE_HALTED,
            waiting_for_startup: waits_for_startup(mp_state),
            ..VcpuEvents::default()
        })
    }

    fn set_events(&mut self, events: &VcpuEvents) -> Result<()> {
        self.abandon()?;
        let mut kvm = self.fd.get_vcpu_events().map_err(host("KVM_GET_VCPU_EVENTS"))?;
        kvm.interrupt.shadow = events.interrupt_shadow.into();
        kvm.nmi.pending = events.nmi_pending.into();
        kvm.nmi.masked = events.nmi_masked.into();
        kvm.flags = KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_NMI_PENDING;
        self.fd.set_vcpu_events(&kvm).map_err(refused("KVM_SET_VCPU_EVENTS"))?;
        self.set_rest(events)
    }

    fn inject_interrupt(&mut self, vector: u8) -> Result<()> {
        if !self.ready_for_interrupt()? {
            return Err(EngineError::Invalid("the guest cannot take an interrupt now".into()));
        }
        let interrupt = kvm_interrupt { irq: vector.into() };
        // SAFETY: the descriptor is a vCPU's, and the argument a live `kvm_interrupt`.
        let result = unsafe { libc::ioctl(self.fd.as_raw_fd(), KVM_INTERRUPT, &interrupt) };
        match result {
            0 => Ok(()),
            _ => Err(refused("KVM_INTERRUPT")(kvm_ioctls::Error::last())),
        }
    }

    fn ready_for_interrupt(&mut self) -> Result<bool> {
        if self.vm.has_irqchip() || self.transfer.is_some() || self.reading.is_some() || self.held.is_some() {
            return Ok(false);
        }
        // KVM says so at the end of a KVM_RUN only.
        self.finish_instruction()?;
        Ok(self.held.is_none() && self.transfer.is_none() && self.page.ready_for_interrupt())
    }

    fn request_interrupt_window(&mut self, on: bool) -> Result<()> {
        self.window = on;
        self.page.set_request_interrupt_window(on);
        Ok(())
    }

    fn inject_nmi(&mut self) -> Result<()> {
        self.fd.nmi().map_err(host("KVM_NMI"))
    }

    fn statistics(&self) -> Statistics {
        [
            ("vcpu.kvm_entries", self.counters.entries),
            ("vcpu.answered_in_core", self.counters.in_core),
            ("vcpu.exits", self.counters.exits),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
    }
}

impl KvmVcpu {
    fn set_xcr0(&self, bytes: &[u8]) -> Result<()> {
        let value = bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
        if value == 0 {
            return Ok(());
        }
        let mut xcrs = kvm_bindings::kvm_xcrs { nr_xcrs: 1, ..Default::default() };
        xcrs.xcrs[0].value = value;
        self.fd.set_xcrs(&xcrs).map_err(refused("KVM_SET_XCRS"))
    }

    fn mp_state(&self) -> Result<u32> {
        Ok(self.fd.get_mp_state().map_err(host("KVM_GET_MP_STATE"))?.mp_state)
    }

    /// Let the vCPU run, be in HLT, or wait for a start-up IPI.
    fn set_rest(&self, events: &VcpuEvents) -> Result<()> {
        let now = self.mp_state()?;
        if (now == KVM_MP_STATE_HALTED, waits_for_startup(now)) == (events.halted, events.waiting_for_startup)
        {
            return Ok(());
        }
        let mp_state = match (events.waiting_for_startup, events.halted) {
            (true, _) => KVM_MP_STATE_UNINITIALIZED,
            (false, true) => KVM_MP_STATE_HALTED,
            (false, false) => KVM_MP_STATE_RUNNABLE,
        };
        self.fd.set_mp_state(kvm_mp_state { mp_state }).map_err(refused("KVM_SET_MP_STATE"))
    }
}

fn waits_for_startup(mp_state: u32) -> bool {
    matches!(mp_state, KVM_MP_STATE_UNINITIALIZED | KVM_MP_STATE_INIT_RECEIVED)
}

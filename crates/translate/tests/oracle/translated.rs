//! Runs cases on the engine under test.

use crate::case::{Case, CpuImage, Fault, Outcome, Pristine, Target};
use crate::machine;
use crate::segments;
use crate::xstate::Layout;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Weak};
use std::time::Duration;
use sublet_engine::{Engine, Exit, Kick, Regs, Vcpu, Vm};
use sublet_memory::RamBlock;

/// When a run is kicked: after `ticks` looks, `tick` apart, that found the same run going on.
#[derive(Debug, Clone, Copy)]
pub struct Limit {
    /// Time between looks.
    pub tick: Duration,
    /// Looks.
    pub ticks: u32,
}

/// Every case ends by itself; one that runs for two seconds has failed.
const PATIENT: Limit = Limit { tick: Duration::from_millis(100), ticks: 20 };
/// Exits that one fuzzing input may cause.
const MOST_EXITS: u32 = 16;
/// Guest-physical memory that fuzzing puts back after each input: all that is mapped but for the
/// empty rest.
const RESTORED_BYTES: usize = 0x4_0000;

/// A virtual machine with one vCPU whose page tables map the regions.
pub struct TranslatedTarget {
    vm: Arc<dyn Vm>,
    vcpu: Box<dyn Vcpu>,
    layout: Layout,
    privilege: u8,
    original: Pristine,
    expected: Pristine,
    image: Vec<u8>,
    /// Odd while the vCPU runs; counts up.
    runs: Arc<AtomicU64>,
}

impl TranslatedTarget {
    /// Make the machine on `engine`; cases run at `privilege` 3 or 0.
    ///
    /// # Errors
    /// A sentence that says what the engine refused.
    pub fn new(engine: &dyn Engine, layout: Layout, privilege: u8) -> Result<Self, String> {
        Self::with_limit(engine, layout, privilege, PATIENT)
    }

    /// As [`Self::new`], with another time limit.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_limit(
        engine: &dyn Engine,
        layout: Layout,
        privilege: u8,
        limit: Limit,
    ) -> Result<Self, String> {
        let original = Pristine::new();
        let image = machine::image(&original, privilege);
        let vm = engine.create_vm().map_err(refused("create_vm"))?;
        fill_memory(vm.as_ref(), &image)?;
        let mut vcpu = vm.create_vcpu(0).map_err(refused("create_vcpu"))?;
        let cpuid = engine.supported_cpuid().map_err(refused("supported_cpuid"))?;
        vcpu.set_cpuid(&cpuid).map_err(refused("set_cpuid"))?;
        let runs = Arc::new(AtomicU64::new(0));
        watch(Arc::downgrade(&runs), vcpu.kicker(), limit);
        let expected = Pristine::new();
        let mut target = Self { vm, vcpu, layout, privilege, original, expected, image, runs };
        target.enable_vectors()?;
        Ok(target)
    }

    /// Let the guest set XCR0, as its kernel would.
    fn enable_vectors(&mut self) -> Result<(), String> {
        let sregs = machine::system_registers(64, 0, 0, 0);
        self.vcpu.set_sregs(&sregs).map_err(refused("set_sregs"))?;
        let mut regs = Regs { rip: machine::START_ADDRESS, rflags: 2, ..Regs::default() };
        regs.gpr[0] = self.layout.components();
        self.vcpu.set_regs(&regs).map_err(refused("set_regs"))?;
        self.go().map_err(|why| format!("setting XCR0: {why}"))?;
        let regs = self.vcpu.regs().map_err(refused("regs"))?;
        match machine::halted_vector(regs.rip) {
            Some(vector) => Err(format!("setting XCR0 to {:#x} raised vector {vector}", regs.gpr[0])),
            None => Ok(()),
        }
    }

    /// Run an input of the fuzzer and put memory back.
    ///
    /// # Errors
    /// A sentence, when the engine failed in a way that no guest may cause.
    pub fn feed(&mut self, case: &Case) -> Result<(), String> {
        for (address, bytes) in &case.memory {
            self.write(*address, bytes);
        }
        self.load(case)?;
        let fed = self.exits();
        self.vcpu.regs().map_err(refused("regs"))?;
        self.vcpu.sregs().map_err(refused("sregs"))?;
        self.put_back();
        fed
    }

    fn exits(&mut self) -> Result<(), String> {
        for _ in 0..MOST_EXITS {
            match self.run_once() {
                Ok(Exit::PioIn { .. } | Exit::MmioRead { .. }) => self.vcpu.complete_read(u64::MAX),
                Ok(Exit::PioOut { .. } | Exit::MmioWrite { .. } | Exit::Hypercall { .. }) => {}
                Ok(Exit::InternalError { code }) => return Err(format!("internal error {code}")),
                Ok(_) => break,
                Err(error) => return Err(format!("run failed: {error}")),
            }
        }
        Ok(())
    }

    fn put_back(&self) {
        let mut now = vec![0; RESTORED_BYTES];
        if self.vm.memory().read(0, &mut now).is_err() {
            return;
        }
        for (index, (before, now)) in self.image.chunks(512).zip(now.chunks(512)).enumerate() {
            if before != now {
                // All of the image is guest memory.
                let _ = self.vm.memory().write(512 * index as u64, before);
            }
        }
    }

    fn run_once(&mut self) -> sublet_engine::Result<Exit> {
        self.runs.fetch_add(1, SeqCst);
        let exit = self.vcpu.run();
        self.runs.fetch_add(1, SeqCst);
        exit
    }

    fn write(&self, address: u64, bytes: &[u8]) {
        // The generator keeps a case's bytes inside the regions, all of which are guest memory.
        let _ = self.vm.memory().write(machine::gpa_of(address), bytes);
    }

    fn load(&mut self, case: &Case) -> Result<(), String> {
        let cpu = &case.cpu;
        let sregs = machine::case_registers(case, self.privilege);
        self.vcpu.set_sregs(&sregs).map_err(refused("set_sregs"))?;
        let regs = Regs { gpr: cpu.gpr, rip: cpu.rip, rflags: cpu.rflags };
        self.vcpu.set_regs(&regs).map_err(refused("set_regs"))?;
        let mut area = vec![0; self.layout.size];
        area[464..472].copy_from_slice(&self.layout.components().to_le_bytes());
        area[28..32].copy_from_slice(&0xffff_u32.to_le_bytes());
        self.layout.store(cpu, &mut area);
        self.vcpu.set_xsave(&area).map_err(refused("set_xsave"))
    }

    /// Run until a handler halts.
    fn go(&mut self) -> Result<(), String> {
        match self.run_once() {
            Ok(Exit::Hlt) => Ok(()),
            Ok(Exit::Interrupted) => Err("did not end in time".to_owned()),
            Ok(other) => Err(format!("left with {other:x?}")),
            Err(error) => Err(format!("run failed: {error}")),
        }
    }

    /// State at the exception: what the handler's stack frame and the halted vCPU hold.
    fn collect(&mut self, case: &Case) -> Result<Outcome, String> {
        let regs = self.vcpu.regs().map_err(refused("regs"))?;
        let sregs = self.vcpu.sregs().map_err(refused("sregs"))?;
        let area = self.vcpu.xsave().map_err(refused("xsave"))?;
        let vector = machine::halted_vector(regs.rip)
            .ok_or_else(|| format!("halted outside the handlers, at {:#x}", regs.rip))?;
        let has_code = matches!(vector, 8 | 10..=14 | 17 | 21);
        let frame = self.frame(regs.gpr[4])?;
        let (error_code, frame) = if has_code { (frame[0] as u32, &frame[1..]) } else { (0, &frame[..5]) };
        let mut cpu = CpuImage { gpr: regs.gpr, rip: frame[0], rflags: frame[2], ..CpuImage::default() };
        cpu.gpr[4] = frame[3];
        cpu.fs_base = sregs.segments[4].base;
        cpu.gs_base = sregs.segments[5].base;
        self.layout.load(&area, &mut cpu);
        if case.bits != 64 {
            cpu.gpr[8..].fill(0);
        }
        let address = if vector == 14 { sregs.cr2 } else { 0 };
        let mut selectors = case.selectors;
        if let Some(selectors) = &mut selectors {
            *selectors = sregs.segments.map(|segment| segment.selector);
            selectors[segments::CS] = frame[1] as u16;
            selectors[segments::SS] = frame[4] as u16;
        }
        Ok(Outcome { fault: Fault { vector, error_code, address }, cpu, selectors, memory: BTreeMap::new() })
    }

    /// Six words from the handler's stack pointer: error code (if any), RIP, CS, RFLAGS, RSP, SS.
    fn frame(&self, rsp: u64) -> Result<[u64; 6], String> {
        let mut bytes = [0; 48];
        let gpa = rsp.wrapping_sub(machine::SYSTEM);
        self.vm.memory().read(gpa, &mut bytes).map_err(|_| format!("the handler's stack is at {rsp:#x}"))?;
        let mut words = [0; 6];
        for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes([
                chunk[0], chunk[1], chunk[2], chunk[3], chunk[4], chunk[5], chunk[6], chunk[7],
            ]);
        }
        Ok(words)
    }

    fn changes(&self) -> BTreeMap<u64, u8> {
        let mut changed = BTreeMap::new();
        for (region, contents) in self.expected.regions() {
            let mut now = vec![0; contents.len()];
            if self.vm.memory().read(machine::region_gpa(region.base), &mut now).is_ok() {
                self.expected.changes(region.base, &now, &mut changed);
            }
        }
        changed
    }

    fn undo(&self, case: &Case, changed: &BTreeMap<u64, u8>) {
        for (address, bytes) in &case.memory {
            if let Some(original) = self.original.at(*address, bytes.len()) {
                self.write(*address, original);
            }
        }
        for address in changed.keys() {
            if let Some(original) = self.original.at(*address, 1) {
                self.write(*address, original);
            }
        }
    }
}

impl Target for TranslatedTarget {
    fn run(&mut self, case: &Case) -> Result<Outcome, String> {
        self.expected.apply(case);
        for (address, bytes) in &case.memory {
            self.write(*address, bytes);
        }
        let ran = self.load(case).and_then(|()| self.go());
        let outcome = ran.and_then(|()| self.collect(case));
        let memory = self.changes();
        self.expected.restore(case, &self.original);
        self.undo(case, &memory);
        outcome.map(|outcome| Outcome { memory, ..outcome })
    }
}

fn refused<E: std::fmt::Display>(what: &'static str) -> impl Fn(E) -> String {
    move |error| format!("{what} failed: {error}")
}

fn fill_memory(vm: &dyn Vm, image: &[u8]) -> Result<(), String> {
    let ram = RamBlock::new(machine::MEMORY_BYTES).map_err(refused("guest memory"))?;
    let memory = vm.memory();
    memory
        .set_memslot(0, 0, machine::MEMORY_BYTES, Arc::new(ram), 0, false, false)
        .map_err(refused("set_memslot"))?;
    memory.write(0, image).map_err(refused("filling guest memory"))?;
    vm.memslots_changed().map_err(refused("memslots_changed"))
}

/// Kick the vCPU out of a case that does not end. Ends itself when the target is gone.
fn watch(runs: Weak<AtomicU64>, kick: Arc<dyn Kick>, limit: Limit) {
    std::thread::spawn(move || {
        let (mut seen, mut ticks) = (0, 0);
        while let Some(now) = runs.upgrade().map(|runs| runs.load(SeqCst)) {
            ticks = if now == seen && now % 2 == 1 { ticks + 1 } else { 0 };
            seen = now;
            if ticks >= limit.ticks {
                kick.kick();
            }
            std::thread::sleep(limit.tick);
        }
    });
}

//! A machine of several vCPUs in 64-bit mode at privilege 0, without interrupt controllers: each runs a
//! program on a thread of its own until it halts.

use iced_x86::code_asm::*;
use std::sync::Arc;
use sublet_engine::{Engine, Exit, Regs, Sregs, Vcpu, Vm};
use sublet_memory::RamBlock;
use sublet_translate::TranslateEngine;

/// Bytes of RAM, mapped to themselves by large pages.
pub const RAM_BYTES: u64 = 16 << 20;
const TABLES: u64 = 0x1000;
const STACKS: u64 = 0x2_0000;
const STACK_BYTES: u64 = 0x1000;
/// Where programs start, [`PROGRAM_BYTES`] each.
pub const PROGRAMS: u64 = 0x10_0000;
/// Room for a program.
const PROGRAM_BYTES: u64 = 0x8000;
/// Where tests keep what the vCPUs share.
pub const SHARED: u64 = 0x20_0000;
/// A counter for [`meet`].
const MEETING: u64 = SHARED - 64;
/// A code cache in which little more than one block fits.
pub const SMALL_CACHE: usize = 600 << 10;

/// What a guest program does, as assembler.
pub type Program<'a> = &'a dyn Fn(&mut CodeAssembler);

/// See the module.
pub struct Machine {
    pub vm: Arc<dyn Vm>,
    vcpus: Vec<Box<dyn Vcpu>>,
}

/// 64-bit mode, on the page tables at `TABLES`.
pub fn long_mode() -> Sregs {
    crate::long_mode::sregs(TABLES, 0)
}

/// RAM, and tables that map the first GiB and the fourth (with the local APICs) to themselves.
pub fn fill(vm: &dyn Vm) {
    let ram = Arc::new(RamBlock::new(RAM_BYTES).unwrap());
    vm.memory().set_memslot(0, 0, RAM_BYTES, ram, 0, false, false).unwrap();
    vm.memslots_changed().unwrap();
    let store = |at: u64, value: u64| vm.memory().write(at, &value.to_le_bytes()).unwrap();
    store(TABLES, (TABLES + 0x1000) | 3);
    store(TABLES + 0x1000, (TABLES + 0x2000) | 3);
    store(TABLES + 0x1000 + 8 * 3, (TABLES + 0x3000) | 3);
    for page in 0..512 {
        store(TABLES + 0x2000 + 8 * page, page << 21 | 0x83);
        store(TABLES + 0x3000 + 8 * page, (3 << 30) | page << 21 | 0x83);
    }
}

/// The machine code of a program at an address.
pub fn assemble(at: u64, program: Program) -> Vec<u8> {
    let mut asm = CodeAssembler::new(64).unwrap();
    program(&mut asm);
    asm.assemble(at).unwrap()
}

impl Machine {
    /// A machine with `cpus` vCPUs, each with at most `cache` bytes of translated code.
    pub fn new(cpus: u32, cache: usize) -> Self {
        let vm = TranslateEngine::new().unwrap().with_cache_limit(cache).create_vm().unwrap();
        fill(vm.as_ref());
        let vcpus = (0..cpus).map(|index| vm.create_vcpu(index).unwrap()).collect();
        Self { vm, vcpus }
    }

    /// Put a program at an address.
    pub fn place(&self, at: u64, program: Program) {
        self.vm.memory().write(at, &assemble(at, program)).unwrap();
    }

    pub fn load(&self, at: u64) -> u64 {
        self.vm.memory().load_u64(at).unwrap()
    }

    pub fn store(&self, at: u64, value: u64) {
        assert!(self.vm.memory().store(at, &value.to_le_bytes()));
    }

    /// Run a program on each vCPU, and `host` on this thread, until all are done. Programs start with
    /// their vCPU's number in RDI.
    pub fn run(&mut self, programs: &[Program], host: impl FnOnce(&dyn Vm)) {
        assert_eq!(programs.len(), self.vcpus.len());
        for (index, (vcpu, program)) in self.vcpus.iter_mut().zip(programs).enumerate() {
            let start = PROGRAMS + PROGRAM_BYTES * index as u64;
            self.vm.memory().write(start, &assemble(start, program)).unwrap();
            vcpu.set_sregs(&long_mode()).unwrap();
            let mut regs = Regs { rip: start, rflags: 2, ..Regs::default() };
            regs.gpr[4] = STACKS + STACK_BYTES * (index as u64 + 1);
            regs.gpr[7] = index as u64;
            vcpu.set_regs(&regs).unwrap();
        }
        std::thread::scope(|scope| {
            for vcpu in &mut self.vcpus {
                scope.spawn(move || assert_eq!(vcpu.run().unwrap(), Exit::Hlt));
            }
            host(self.vm.as_ref());
        });
    }

    /// The same program on every vCPU.
    pub fn run_all(&mut self, program: Program) {
        self.run(&vec![program; self.vcpus.len()], |_| {});
    }

    /// The sum of a counter over all vCPUs.
    pub fn statistic(&self, name: &str) -> u64 {
        self.vcpus.iter().map(|vcpu| vcpu.statistics()[name]).sum()
    }
}

/// Wait until all of `cpus` vCPUs have come here as often as this one: R15 counts the visits. Changes RAX.
pub fn meet(asm: &mut CodeAssembler, cpus: u32) {
    let mut wait = asm.create_label();
    asm.add(r15, cpus as i32).unwrap();
    asm.lock().inc(qword_ptr(MEETING)).unwrap();
    asm.set_label(&mut wait).unwrap();
    asm.pause().unwrap();
    asm.mov(rax, qword_ptr(MEETING)).unwrap();
    asm.cmp(rax, r15).unwrap();
    asm.jb(wait).unwrap();
}

/// `body` `count` times, with the number of rounds left in R14.
pub fn repeat(asm: &mut CodeAssembler, count: u32, body: impl FnOnce(&mut CodeAssembler)) {
    let mut again = asm.create_label();
    asm.mov(r14, u64::from(count)).unwrap();
    asm.set_label(&mut again).unwrap();
    // The body may begin with a label of its own.
    asm.nop().unwrap();
    body(asm);
    asm.dec(r14).unwrap();
    asm.jnz(again).unwrap();
}

/// Make the processor forget what it fetched before (Intel SDM vol. 3A §8.3 "Serializing Instructions").
/// Changes RAX to RDX.
pub fn serialise(asm: &mut CodeAssembler) {
    asm.xor(eax, eax).unwrap();
    asm.cpuid().unwrap();
}

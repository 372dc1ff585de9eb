//! System-management mode of a whole vCPU: SMIs by message, SMRAM hidden from all other code, what waits
//! meanwhile (Intel SDM vol. 3C chapter 32 "System Management Mode").

#![allow(clippy::unwrap_used)]

use iced_x86::code_asm::*;
use std::sync::Arc;
use sublet_engine::{Engine, Exit, MsrEntry, Regs, Sregs, Vcpu, Vm};
use sublet_memory::{RamBlock, SMM_SPACE};
use sublet_translate::TranslateEngine;

const CODE: u64 = 0x7c00;
const SMBASE: u64 = 0xa_0000;
const HANDLER: u64 = SMBASE + 0x8000;
/// A word of SMRAM, and another of RAM at the same address.
const WORD: u16 = 0x9000;
const IA32_SMBASE: u32 = 0x9e;
const SMI: u32 = 2 << 8;
const INIT: u32 = 5 << 8;
const NMI: u32 = 4 << 8;

struct Machine {
    vm: Arc<dyn Vm>,
    vcpu: Box<dyn Vcpu>,
}

type Program<'a> = &'a dyn Fn(&mut CodeAssembler) -> Result<(), IcedError>;

fn assemble(bits: u32, at: u64, program: Program) -> Vec<u8> {
    let mut asm = CodeAssembler::new(bits).unwrap();
    program(&mut asm).unwrap();
    asm.assemble(at).unwrap()
}

impl Machine {
    /// Real mode at `program`, with ES at SMRAM's segment; SMBASE is there, and its handler is `handler`.
    fn new(program: Program, handler: Program) -> Self {
        let vm = TranslateEngine::new().unwrap().create_vm().unwrap();
        let ram = Arc::new(RamBlock::new(2 << 20).unwrap());
        let smram = Arc::new(RamBlock::new(0x1_0000).unwrap());
        vm.memory().set_memslot(0, 0, 2 << 20, ram, 0, false, false).unwrap();
        vm.memory().set_memslot(1, SMM_SPACE | SMBASE, 0x1_0000, smram, 0, false, false).unwrap();
        vm.memslots_changed().unwrap();
        vm.create_irqchip().unwrap();
        vm.memory().write(CODE, &assemble(16, CODE, program)).unwrap();
        vm.memory().write(SMM_SPACE | HANDLER, &assemble(16, 0x8000, handler)).unwrap();
        let mut vcpu = vm.create_vcpu(0).unwrap();
        vcpu.set_msrs(&[MsrEntry { index: IA32_SMBASE, value: SMBASE }]).unwrap();
        let mut sregs: Sregs = vcpu.sregs().unwrap();
        for (index, base) in [(0, SMBASE), (1, 0)] {
            sregs.segments[index].base = base;
            sregs.segments[index].selector = (base >> 4) as u16;
        }
        vcpu.set_sregs(&sregs).unwrap();
        let mut regs = Regs { rip: CODE, rflags: 2, ..Regs::default() };
        regs.gpr[4] = 0x7000;
        vcpu.set_regs(&regs).unwrap();
        Self { vm, vcpu }
    }

    fn send(&self, delivery: u32) {
        self.vm.signal_msi(0xfee0_0000, delivery).unwrap();
    }

    /// What the guest writes to port 0x80 next.
    fn next(&mut self) -> u64 {
        match self.vcpu.run().unwrap() {
            Exit::PioOut { port: 0x80, data, .. } => data,
            other => panic!("{other:?}"),
        }
    }
}

/// Report `value`.
fn report(asm: &mut CodeAssembler, value: u32) -> Result<(), IcedError> {
    asm.mov(al, value)?;
    asm.out(0x80, al)
}

/// RSM, which the assembler has no name for.
fn rsm(asm: &mut CodeAssembler) -> Result<(), IcedError> {
    asm.db(&[0x0f, 0xaa])
}

/// Reports 0, then calls what lies at the handler's address, then reports the word there, for ever.
fn visitor(asm: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = asm.create_label();
    asm.set_label(&mut again)?;
    report(asm, 0)?;
    asm.db(&[0x9a, 0x00, 0x80, 0x00, 0xa0])?; // call 0xa000:0x8000
    asm.mov(al, byte_ptr(WORD).es())?;
    asm.out(0x80, al)?;
    asm.jmp(again)
}

/// Neither translated code nor cached addresses of the one side reach the other.
#[test]
fn smram_and_what_lies_beneath_are_apart() {
    let mut machine = Machine::new(&visitor, &|asm| {
        report(asm, 0x22)?;
        asm.mov(al, byte_ptr(WORD).cs())?;
        asm.out(0x80, al)?;
        rsm(asm)
    });
    let visible = assemble(16, 0x8000, &|asm| {
        report(asm, 0x11)?;
        asm.retf()
    });
    let memory = machine.vm.memory().clone();
    memory.write(HANDLER, &visible).unwrap();
    memory.write(SMBASE + u64::from(WORD), &[0x33]).unwrap();
    memory.write(SMM_SPACE | (SMBASE + u64::from(WORD)), &[0x44]).unwrap();
    for _ in 0..3 {
        assert_eq!([(); 3].map(|()| machine.next()), [0, 0x11, 0x33]);
        machine.send(SMI);
        assert_eq!([(); 2].map(|()| machine.next()), [0x22, 0x44]);
    }
}

/// What firmware does to put its handler there: the chipset opens SMRAM for a while.
#[test]
fn open_smram_answers_everybody() {
    let word: Program = &|asm| {
        let mut again = asm.create_label();
        asm.set_label(&mut again)?;
        asm.mov(al, byte_ptr(WORD).es())?;
        asm.out(0x80, al)?;
        asm.jmp(again)
    };
    let mut machine = Machine::new(word, &rsm);
    machine.vm.memory().write(SMBASE + u64::from(WORD), &[1]).unwrap();
    machine.vm.memory().write(SMM_SPACE | (SMBASE + u64::from(WORD)), &[2]).unwrap();
    for (open, found) in [(false, 1), (true, 2), (false, 1)] {
        machine.vm.set_smm_open(open).unwrap();
        assert_eq!(machine.next(), found);
    }
}

/// The handler's segments have 4 GiB: a branch of 32 bits leads 16-bit code beyond the first 64 KiB, as in OVMF's
/// handler; one of 16 bits leads back (SDM vol. 2A "JMP—Jump").
#[test]
fn a_handler_runs_beyond_64_kib() {
    let mut machine = Machine::new(&|asm| report(asm, 1), &|asm| {
        asm.mov(ebp, 0x1_2000)?;
        asm.jmp(ebp)
    });
    let far = assemble(16, 0x2000, &|asm| {
        let mut on = asm.create_label();
        asm.test(bp, bp)?;
        asm.nop()?;
        report(asm, 7)?;
        asm.cmp(bp, 0)?;
        asm.je(on)?;
        asm.set_label(&mut on)?;
        report(asm, 8)?;
        asm.db(&[0xe9])?; // jmp rel16 to 0x9000
        asm.dw(&[0x9000u16.wrapping_sub(0x2000 + 19)])
    });
    assert_eq!(far.len(), 19);
    machine.vm.memory().write(SMBASE + 0x1_2000, &far).unwrap();
    let near = assemble(16, 0x9000, &|asm| {
        report(asm, 9)?;
        rsm(asm)
    });
    machine.vm.memory().write(SMM_SPACE | (SMBASE + 0x9000), &near).unwrap();
    machine.send(SMI);
    assert_eq!([(); 4].map(|()| machine.next()), [7, 8, 9, 1]);
}

/// §32.3.1: in the mode another SMI waits for RSM, one at most; INIT waits too.
#[test]
fn smis_and_inits_wait_for_rsm() {
    let mut machine = Machine::new(&|asm| report(asm, 1), &|asm| {
        report(asm, 2)?;
        report(asm, 3)?;
        rsm(asm)
    });
    machine.send(SMI);
    assert_eq!(machine.next(), 2);
    assert!(machine.vcpu.events().unwrap().smm);
    machine.send(SMI);
    machine.send(SMI);
    machine.send(INIT);
    assert_eq!([(); 2].map(|()| machine.next()), [3, 2], "the second SMI follows RSM at once");
    assert_eq!(machine.next(), 3);
    // The bootstrap processor goes on at its reset vector after INIT: all ones there, and no IDT that works.
    machine.vm.memory().write(0xf_fff0, &assemble(16, 0xfff0, &|asm| report(asm, 4))).unwrap();
    let rom = Arc::new(RamBlock::new(0x1000).unwrap());
    machine.vm.memory().set_memslot(2, 0xffff_f000, 0x1000, rom, 0, false, false).unwrap();
    machine.vm.memslots_changed().unwrap();
    machine.vm.memory().write(0xffff_fff0, &assemble(16, 0xfff0, &|asm| report(asm, 5))).unwrap();
    assert_eq!(machine.next(), 5);
}

/// §32.8: an NMI waits for RSM.
#[test]
fn nmis_wait_for_rsm() {
    let mut machine = Machine::new(&|asm| report(asm, 1), &|asm| {
        report(asm, 2)?;
        report(asm, 3)?;
        rsm(asm)
    });
    let memory = machine.vm.memory().clone();
    memory.write(2 * 4, &[0x00, 0x60, 0, 0]).unwrap();
    memory.write(0x6000, &assemble(16, 0x6000, &|asm| report(asm, 4))).unwrap();
    machine.send(SMI);
    assert_eq!(machine.next(), 2);
    machine.send(NMI);
    assert_eq!([(); 2].map(|()| machine.next()), [3, 4]);
}

/// §32.10 "Auto HALT Restart": the handler runs, and the processor halts again until something else comes.
#[test]
fn an_smi_wakes_a_halted_processor_for_its_handler_alone() {
    let mut machine = Machine::new(
        &|asm| {
            asm.hlt()?;
            report(asm, 1)
        },
        &|asm| {
            report(asm, 2)?;
            rsm(asm)
        },
    );
    machine.send(SMI);
    assert_eq!(machine.next(), 2);
    machine.vcpu.kicker().kick();
    assert_eq!(machine.vcpu.run().unwrap(), Exit::Interrupted);
    machine.send(SMI);
    assert_eq!(machine.next(), 2);
}

/// All of the mode's state crosses the contract: a copy of the vCPU goes on in the handler.
#[test]
fn a_vcpu_in_the_mode_is_saved_and_restored() {
    let handler: Program = &|asm| {
        report(asm, 2)?;
        report(asm, 3)?;
        rsm(asm)
    };
    let program: Program = &|asm| {
        report(asm, 1)?;
        report(asm, 5)
    };
    let mut first = Machine::new(program, handler);
    assert_eq!(first.next(), 1);
    first.send(SMI);
    assert_eq!(first.next(), 2);
    let mut second = Machine::new(program, handler);
    let mut area = [0; 0x200];
    first.vm.memory().read(SMM_SPACE | (SMBASE + 0xfe00), &mut area).unwrap();
    second.vm.memory().write(SMM_SPACE | (SMBASE + 0xfe00), &area).unwrap();
    second.vcpu.set_sregs(&first.vcpu.sregs().unwrap()).unwrap();
    second.vcpu.set_regs(&first.vcpu.regs().unwrap()).unwrap();
    second.vcpu.set_msrs(&first.vcpu.msrs(&[IA32_SMBASE]).unwrap()).unwrap();
    second.vcpu.set_events(&first.vcpu.events().unwrap()).unwrap();
    assert_eq!([(); 2].map(|()| second.next()), [3, 5]);
}

/// A processor that waits for its start-up IPI is saved and restored as such.
#[test]
fn waiting_for_a_startup_ipi_crosses_the_contract() {
    let vm = TranslateEngine::new().unwrap().create_vm().unwrap();
    vm.create_irqchip().unwrap();
    let mut vcpus = [vm.create_vcpu(0).unwrap(), vm.create_vcpu(1).unwrap()];
    let waits = |vcpu: &mut Box<dyn Vcpu>| vcpu.events().unwrap().waiting_for_startup;
    assert_eq!(vcpus.each_mut().map(waits), [false, true]);
    let (first, second) = vcpus.split_at_mut(1);
    let events = first[0].events().unwrap();
    second[0].set_events(&events).unwrap();
    assert!(!waits(&mut second[0]));
}

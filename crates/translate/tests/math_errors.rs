//! x87 errors while CR0.NE is clear: FERR#, IRQ 13, port F0h and IGNNE# (Intel SDM vol. 1 §D.2 "MS-DOS
//! Compatibility Sub-Mode").

#![allow(clippy::unwrap_used)]

use iced_x86::code_asm::*;
use std::sync::Arc;
use sublet_engine::{Engine, Exit, Regs, Sregs, Vcpu, Vm};
use sublet_memory::RamBlock;
use sublet_translate::TranslateEngine;

const CODE: u64 = 0x1000;
const HANDLER: u64 = 0x3000;
const FAULT_HANDLER: u64 = 0x3800;
/// A word of data: the control word that unmasks division by zero.
const CONTROL: u16 = 0x4000;
const RESULT: u16 = 0x4010;
const ENVIRONMENT: u16 = 0x4040;
/// Status word: ES and ZE, seen as B in its upper byte too.
const DIVIDED_BY_ZERO: u64 = 0x84;
const NUMERIC_ERROR: u64 = 1 << 5;
const DONE: u64 = 0xdd;

type Program<'a> = &'a dyn Fn(&mut CodeAssembler) -> Result<(), IcedError>;

struct Machine {
    _vm: Arc<dyn Vm>,
    vcpu: Box<dyn Vcpu>,
}

fn assemble(at: u64, program: Program) -> Vec<u8> {
    let mut asm = CodeAssembler::new(16).unwrap();
    program(&mut asm).unwrap();
    asm.assemble(at).unwrap()
}

fn out(asm: &mut CodeAssembler, port: u32, value: u32) -> Result<(), IcedError> {
    asm.mov(al, value)?;
    asm.out(port, al)
}

/// Say `al`.
fn report(asm: &mut CodeAssembler) -> Result<(), IcedError> {
    asm.out(0x80u32, al)
}

/// The 8259s with vectors 8 and 70h, IRQ 13 and the cascade unmasked; interrupts on.
fn set_up(asm: &mut CodeAssembler) -> Result<(), IcedError> {
    for (port, base, cascade, mask) in [(0x20, 8, 4, 0xfb), (0xa0, 0x70, 2, 0xdf)] {
        out(asm, port, 0x11)?;
        for value in [base, cascade, 1, mask] {
            out(asm, port + 1, value)?;
        }
    }
    asm.fninit()?;
    asm.fldcw(word_ptr(CONTROL))?;
    asm.sti()
}

fn divide_by_zero(asm: &mut CodeAssembler) -> Result<(), IcedError> {
    asm.fld1()?;
    asm.fldz()?;
    asm.fdivp(st1, st0)
}

fn end_of_interrupt(asm: &mut CodeAssembler) -> Result<(), IcedError> {
    out(asm, 0xa0, 0x20)?;
    out(asm, 0x20, 0x20)
}

/// Say the status, clear the exceptions and end the interrupt.
fn clear(asm: &mut CodeAssembler) -> Result<(), IcedError> {
    asm.fnstsw(ax)?;
    report(asm)?;
    asm.fnclex()?;
    end_of_interrupt(asm)?;
    asm.iret()
}

impl Machine {
    /// Real mode at `program`; `handler` is that of IRQ 13, that of #MF says 16.
    fn new(program: Program, handler: Program) -> Self {
        let vm = TranslateEngine::new().unwrap().create_vm().unwrap();
        let ram = Arc::new(RamBlock::new(2 << 20).unwrap());
        vm.memory().set_memslot(0, 0, 2 << 20, ram, 0, false, false).unwrap();
        vm.memslots_changed().unwrap();
        vm.create_irqchip().unwrap();
        let put = |gpa: u64, bytes: &[u8]| vm.memory().write(gpa, bytes).unwrap();
        put(CODE, &assemble(CODE, program));
        put(HANDLER, &assemble(HANDLER, handler));
        put(FAULT_HANDLER, &assemble(FAULT_HANDLER, &|asm| out(asm, 0x80, 16)));
        put(4 * 16, &(FAULT_HANDLER as u32).to_le_bytes());
        put(4 * 0x75, &(HANDLER as u32).to_le_bytes());
        put(u64::from(CONTROL), &0x037bu16.to_le_bytes());
        let mut vcpu = vm.create_vcpu(0).unwrap();
        let mut sregs: Sregs = vcpu.sregs().unwrap();
        (sregs.segments[1].base, sregs.segments[1].selector) = (0, 0);
        vcpu.set_sregs(&sregs).unwrap();
        let mut regs = Regs { rip: CODE, rflags: 2, ..Regs::default() };
        regs.gpr[4] = 0x7000;
        vcpu.set_regs(&regs).unwrap();
        Self { _vm: vm, vcpu }
    }

    fn reported(&mut self) -> u64 {
        match self.vcpu.run().unwrap() {
            Exit::PioOut { port: 0x80, data, .. } => data,
            other => panic!("{other:?}"),
        }
    }
}

/// `errors` divisions by zero, each found by FWAIT, then DONE.
fn divisions(errors: usize) -> impl Fn(&mut CodeAssembler) -> Result<(), IcedError> {
    move |asm| {
        set_up(asm)?;
        for _ in 0..errors {
            divide_by_zero(asm)?;
            asm.wait()?;
            asm.fninit()?;
            asm.fldcw(word_ptr(CONTROL))?;
        }
        out(asm, 0x80, DONE as u32)
    }
}

#[test]
fn an_error_interrupts_the_instruction_that_waits_for_it() {
    let mut machine = Machine::new(&divisions(1), &|asm| {
        out(asm, 0xf0, 0)?;
        clear(asm)
    });
    assert_eq!(machine.reported(), DIVIDED_BY_ZERO);
    assert_eq!(machine.reported(), DONE);
}

#[test]
fn each_error_interrupts_again() {
    let mut machine = Machine::new(&divisions(2), &|asm| {
        out(asm, 0xf0, 0)?;
        clear(asm)
    });
    let reported = [(); 3].map(|()| machine.reported());
    assert_eq!(reported, [DIVIDED_BY_ZERO, DIVIDED_BY_ZERO, DONE]);
}

#[test]
fn with_ne_set_an_error_is_an_exception() {
    let mut machine = Machine::new(
        &|asm| {
            asm.mov(eax, cr0)?;
            asm.or(eax, NUMERIC_ERROR as u32)?;
            asm.mov(cr0, eax)?;
            divisions(1)(asm)
        },
        &clear,
    );
    assert_eq!(machine.reported(), 16);
}

/// What a handler does between port F0h and FNCLEX: instructions wait for nothing, and do not lose the error.
#[test]
fn ignored_errors_let_instructions_run() {
    let mut machine = Machine::new(&divisions(1), &|asm| {
        out(asm, 0xf0, 0)?;
        asm.wait()?;
        asm.fld1()?;
        asm.fstp(dword_ptr(RESULT))?;
        asm.mov(al, byte_ptr(RESULT + 3))?;
        report(asm)?;
        asm.fnstcw(word_ptr(RESULT))?;
        asm.mov(al, byte_ptr(RESULT))?;
        report(asm)?;
        clear(asm)
    });
    assert_eq!(machine.reported(), 0x3f, "1.0");
    assert_eq!(machine.reported(), 0x7b, "the control word is the program's");
    assert_eq!(machine.reported(), DIVIDED_BY_ZERO);
    assert_eq!(machine.reported(), DONE);
}

/// FLDENV runs with the error ignored, and ends it: IGNNE# falls, and the next error interrupts.
#[test]
fn a_loaded_status_word_ends_the_error() {
    let mut machine = Machine::new(&divisions(2), &|asm| {
        asm.fnstenv(ptr(ENVIRONMENT))?;
        out(asm, 0xf0, 0)?;
        asm.and(word_ptr(ENVIRONMENT + 2), 0x7f00)?;
        asm.fldenv(ptr(ENVIRONMENT))?;
        asm.fld1()?;
        clear(asm)
    });
    let reported = [(); 3].map(|()| machine.reported());
    assert_eq!(reported, [0, 0, DONE]);
}

/// An error that ended before port F0h was written is not ignored: the next one interrupts.
#[test]
fn port_f0h_after_the_end_of_the_error_ignores_nothing() {
    let mut machine = Machine::new(&divisions(2), &|asm| {
        asm.fnclex()?;
        out(asm, 0xf0, 0)?;
        clear(asm)
    });
    let reported = [(); 3].map(|()| machine.reported());
    assert_eq!(reported, [0, 0, DONE]);
}

/// MMX instructions wait, too, and so does one that compiled code carries out.
#[test]
fn mmx_instructions_wait() {
    let program = |mmx: fn(&mut CodeAssembler) -> Result<(), IcedError>| {
        move |asm: &mut CodeAssembler| {
            set_up(asm)?;
            divide_by_zero(asm)?;
            mmx(asm)?;
            out(asm, 0x80, DONE as u32)
        }
    };
    let unmask_and_clear = |asm: &mut CodeAssembler| {
        out(asm, 0xf0, 0)?;
        clear(asm)
    };
    for mmx in [|asm: &mut CodeAssembler| asm.emms(), |asm: &mut CodeAssembler| asm.maskmovq(mm0, mm1)] {
        let mut machine = Machine::new(&program(mmx), &unmask_and_clear);
        assert_eq!(machine.reported(), DIVIDED_BY_ZERO);
        assert_eq!(machine.reported(), DONE);
    }
}

/// MASKMOVQ in a handler that has written port F0h.
#[test]
fn compiled_code_ignores_errors_too() {
    let mut machine = Machine::new(&divisions(1), &|asm| {
        out(asm, 0xf0, 0)?;
        asm.mov(di, u32::from(RESULT))?;
        asm.maskmovq(mm0, mm0)?;
        clear(asm)
    });
    assert_eq!(machine.reported(), DIVIDED_BY_ZERO);
    assert_eq!(machine.reported(), DONE);
}

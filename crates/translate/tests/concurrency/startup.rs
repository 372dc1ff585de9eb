//! INIT, start-up IPIs and other interrupts between vCPUs
//! (Intel SDM vol. 3A §9.4 "Multiple-Processor (MP) Initialization").

use crate::machine::{assemble, fill, long_mode, PROGRAMS, SHARED};
use iced_x86::code_asm::*;
use iced_x86::code_asm::{CodeAssembler, IcedError};
use sublet_engine::{Engine, Exit, Regs};
use sublet_translate::TranslateEngine;

const ICR: u64 = 0xfee0_0300;
const ICR_HIGH: u64 = 0xfee0_0310;
const INIT: i32 = 0x4500;
const STARTUP: i32 = 0x4600;

/// Send an interrupt command to APIC ID 1.
fn send(asm: &mut CodeAssembler, command: i32) -> Result<(), IcedError> {
    asm.mov(eax, ICR_HIGH as i32)?;
    asm.mov(dword_ptr(rax), 1 << 24)?;
    asm.mov(eax, ICR as i32)?;
    asm.mov(dword_ptr(rax), command)
}

fn wait_for(asm: &mut CodeAssembler, at: u64, value: i32) -> Result<(), IcedError> {
    let mut wait = asm.create_label();
    asm.set_label(&mut wait)?;
    asm.pause()?;
    asm.cmp(dword_ptr(at), value)?;
    asm.jne(wait)
}

/// What the second vCPU runs at `vector << 12` in real mode: notes CS and a number, then spins or halts.
fn trampoline(number: u8, halts: bool) -> Vec<u8> {
    let mut asm = CodeAssembler::new(16).unwrap();
    let mut ever = asm.create_label();
    asm.mov(ax, cs).unwrap();
    asm.mov(word_ptr(0x6004), ax).unwrap();
    asm.mov(word_ptr(0x6000), i32::from(number)).unwrap();
    asm.set_label(&mut ever).unwrap();
    if halts {
        asm.hlt().unwrap();
    }
    asm.jmp(ever).unwrap();
    asm.assemble(0).unwrap()
}

#[test]
fn application_processors_start_where_they_are_told() {
    let vm = TranslateEngine::new().unwrap().create_vm().unwrap();
    fill(vm.as_ref());
    vm.create_irqchip().unwrap();
    let mut vcpus = [vm.create_vcpu(0).unwrap(), vm.create_vcpu(1).unwrap()];
    vm.memory().write(0x8000, &trampoline(1, false)).unwrap();
    vm.memory().write(0x9000, &trampoline(2, true)).unwrap();
    let program = assemble(PROGRAMS, &|asm| {
        boot_second(asm).unwrap();
    });
    vm.memory().write(PROGRAMS, &program).unwrap();
    vcpus[0].set_sregs(&long_mode()).unwrap();
    let mut regs = Regs { rip: PROGRAMS, rflags: 2, ..Regs::default() };
    regs.gpr[4] = SHARED;
    vcpus[0].set_regs(&regs).unwrap();
    let [first, second] = &mut vcpus;
    let kicker = second.kicker();
    std::thread::scope(|scope| {
        let other = scope.spawn(move || second.run().unwrap());
        assert_eq!(first.run().unwrap(), Exit::PioOut { port: 0x80, size: 4, data: 0x0900_0800 });
        kicker.kick();
        assert_eq!(other.join().unwrap(), Exit::Interrupted);
    });
}

/// Start the second vCPU at 0x8000, again (which it ignores) at 0x9000, then stop it and start it there.
/// Both code segments go out at port 0x80.
fn boot_second(asm: &mut CodeAssembler) -> Result<(), IcedError> {
    send(asm, INIT)?;
    send(asm, STARTUP | 8)?;
    wait_for(asm, 0x6000, 1)?;
    asm.movzx(ebx, word_ptr(0x6004))?;
    send(asm, STARTUP | 9)?;
    send(asm, INIT)?;
    send(asm, STARTUP | 9)?;
    wait_for(asm, 0x6000, 2)?;
    asm.movzx(eax, word_ptr(0x6004))?;
    asm.shl(eax, 16)?;
    asm.or(eax, ebx)?;
    asm.out(0x80, eax)?;
    asm.hlt()
}

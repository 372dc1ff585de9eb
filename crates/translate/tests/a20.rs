//! The A20 gate: closed, the first megabyte wraps as on an 8086.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use sublet_engine::{Engine, Exit, Regs, Sregs, Vcpu, Vm};
use sublet_memory::RamBlock;
use sublet_translate::TranslateEngine;

const CODE: u64 = 0x7c00;

/// Real mode with ES = 0xffff, at code that reports the byte at ES:0x10 again and again.
fn machine() -> (Arc<dyn Vm>, Box<dyn Vcpu>) {
    let vm = TranslateEngine::new().unwrap().create_vm().unwrap();
    let ram = Arc::new(RamBlock::new(4 << 20).unwrap());
    vm.memory().set_memslot(0, 0, 4 << 20, ram, 0, false, false).unwrap();
    vm.memslots_changed().unwrap();
    // mov al, es:[0x10]; out 0x80, al; jmp -8
    vm.memory().write(CODE, &[0x26, 0xa0, 0x10, 0x00, 0xe6, 0x80, 0xeb, 0xf8]).unwrap();
    vm.memory().write(0, &[1]).unwrap();
    vm.memory().write(0x10_0000, &[2]).unwrap();
    let mut vcpu = vm.create_vcpu(0).unwrap();
    let mut sregs: Sregs = vcpu.sregs().unwrap();
    for (index, base) in [(0, 0xffff0), (1, 0)] {
        sregs.segments[index].base = base;
        sregs.segments[index].selector = (base >> 4) as u16;
    }
    vcpu.set_sregs(&sregs).unwrap();
    vcpu.set_regs(&Regs { rip: CODE, rflags: 2, ..Regs::default() }).unwrap();
    (vm, vcpu)
}

fn reported(vcpu: &mut dyn Vcpu) -> u64 {
    match vcpu.run().unwrap() {
        Exit::PioOut { port: 0x80, data, .. } => data,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_gate_decides_whether_the_first_megabyte_wraps() {
    let (vm, mut vcpu) = machine();
    assert_eq!(reported(vcpu.as_mut()), 2, "open at first");
    vm.set_a20(false).unwrap();
    assert_eq!(reported(vcpu.as_mut()), 1);
    assert_eq!(reported(vcpu.as_mut()), 1);
    vm.set_a20(true).unwrap();
    assert_eq!(reported(vcpu.as_mut()), 2);
}

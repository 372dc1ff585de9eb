//! Memslots that change, and that show the same RAM twice.

use crate::machine::{assemble, Machine, RAM_BYTES, SHARED};
use iced_x86::code_asm::*;
use std::sync::Arc;
use sublet_memory::RamBlock;

const PAGE: u64 = 4096;
/// Above RAM, in the mapped first GiB.
const WINDOW: u64 = RAM_BYTES;
const SEQUENCE: u64 = SHARED;
const EXPECTED: u64 = SHARED + 64;
const FAILURES: u64 = SHARED + 128;
const DONE: u64 = SHARED + 192;
const CALLS: u64 = SHARED + 256;

fn block_that_returns(value: u32) -> Arc<RamBlock> {
    let code = assemble(WINDOW, &|asm| {
        asm.mov(eax, value).unwrap();
        asm.ret().unwrap();
    });
    let block = Arc::new(RamBlock::new(PAGE).unwrap());
    // SAFETY: the block is a page, and nobody else knows of it yet.
    unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), block.base(), code.len()) };
    block
}

/// Two vCPUs call code while the RAM that it lies in is exchanged. Between two changes (the sequence number is
/// even and stays) they must find what the present one returns.
#[test]
fn code_follows_the_slot() {
    let mut machine = Machine::new(2, usize::MAX);
    let blocks = [block_that_returns(1), block_that_returns(2)];
    let show = |vm: &dyn sublet_engine::Vm, block: usize| {
        vm.memory().set_memslot(1, WINDOW, PAGE, blocks[block].clone(), 0, false, false).unwrap();
        vm.memslots_changed().unwrap();
    };
    show(machine.vm.as_ref(), 0);
    machine.store(EXPECTED, 1);
    let caller = |asm: &mut CodeAssembler| {
        let (mut again, mut right) = (asm.create_label(), asm.create_label());
        asm.set_label(&mut again).unwrap();
        asm.mov(rbx, qword_ptr(SEQUENCE)).unwrap();
        asm.mov(rbp, qword_ptr(EXPECTED)).unwrap();
        asm.call(WINDOW).unwrap();
        asm.lock().inc(qword_ptr(CALLS)).unwrap();
        asm.test(ebx, 1).unwrap();
        asm.jnz(right).unwrap();
        asm.cmp(rax, rbp).unwrap();
        asm.je(right).unwrap();
        asm.cmp(rbx, qword_ptr(SEQUENCE)).unwrap();
        asm.jne(right).unwrap();
        asm.lock().inc(qword_ptr(FAILURES)).unwrap();
        asm.set_label(&mut right).unwrap();
        asm.cmp(dword_ptr(DONE), 0).unwrap();
        asm.je(again).unwrap();
        asm.hlt().unwrap();
    };
    machine.run(&[&caller, &caller], |vm| {
        let store = |at: u64, value: u64| assert!(vm.memory().store(at, &value.to_le_bytes()));
        for round in 1..300_u64 {
            store(SEQUENCE, 2 * round - 1);
            show(vm, (round % 2) as usize);
            store(EXPECTED, round % 2 + 1);
            store(SEQUENCE, 2 * round);
            let calls = || vm.memory().load_u64(CALLS).unwrap();
            let enough = calls() + 4;
            while calls() < enough {
                std::thread::yield_now();
            }
        }
        store(DONE, 1);
    });
    assert_eq!(machine.load(FAILURES), 0);
}

/// A store through one address of a page changes the code at its other one.
#[test]
fn stores_through_an_alias_change_code() {
    let mut machine = Machine::new(1, usize::MAX);
    let alias = WINDOW + PAGE;
    for (slot, at) in [(1, WINDOW), (2, alias)] {
        let block = block_that_returns(1);
        if slot == 1 {
            machine.vm.memory().set_memslot(1, WINDOW, PAGE, block.clone(), 0, false, false).unwrap();
            machine.vm.memory().set_memslot(2, alias, PAGE, block, 0, false, false).unwrap();
        }
        assert_eq!(machine.vm.memory().load_u64(at).unwrap() & 0xff, 0xb8);
    }
    machine.vm.memslots_changed().unwrap();
    machine.run_all(&|asm| {
        asm.call(WINDOW).unwrap();
        asm.mov(qword_ptr(SHARED), rax).unwrap();
        asm.mov(dword_ptr(alias + 1), 7).unwrap();
        asm.call(WINDOW).unwrap();
        asm.mov(qword_ptr(SHARED + 8), rax).unwrap();
        asm.hlt().unwrap();
    });
    assert_eq!((machine.load(SHARED), machine.load(SHARED + 8)), (1, 7));
}

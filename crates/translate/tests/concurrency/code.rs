//! Code that one vCPU, or a device, changes while another one runs it.

use crate::machine::{meet, repeat, serialise, Machine, SHARED, SMALL_CACHE};
use iced_x86::code_asm::*;

/// A function that returns a number: `mov eax, number; ret`, the number 4-byte aligned.
const FUNCTION: u64 = 0x30_0003;
const NUMBER: u64 = FUNCTION + 1;
const PUBLISHED: u64 = SHARED;
const ANSWERED: u64 = SHARED + 64;
const FAILURES: u64 = SHARED + 128;
const DONE: u64 = SHARED + 192;

fn number(value: u32) -> impl Fn(&mut CodeAssembler) {
    move |asm| {
        asm.mov(eax, value).unwrap();
        asm.ret().unwrap();
    }
}

fn with_both_caches(test: impl Fn(usize)) {
    test(usize::MAX);
    test(SMALL_CACHE);
}

fn machine(cpus: u32, cache: usize) -> Machine {
    let machine = Machine::new(cpus, cache);
    machine.place(FUNCTION, &number(0));
    machine
}

/// Count a failure unless EAX >= `least`.
fn expect(asm: &mut CodeAssembler, least: AsmRegister32) {
    let mut right = asm.create_label();
    asm.cmp(eax, least).unwrap();
    asm.jae(right).unwrap();
    asm.lock().inc(qword_ptr(FAILURES)).unwrap();
    asm.set_label(&mut right).unwrap();
    asm.nop().unwrap();
}

/// Until `DONE`: what has been published, then (having serialised) the function, which must be as new.
fn reader(asm: &mut CodeAssembler) {
    let mut again = asm.create_label();
    asm.set_label(&mut again).unwrap();
    asm.mov(ebp, dword_ptr(PUBLISHED)).unwrap();
    serialise(asm);
    asm.call(FUNCTION).unwrap();
    expect(asm, ebp);
    asm.lock().inc(qword_ptr(ANSWERED)).unwrap();
    asm.cmp(dword_ptr(DONE), 0).unwrap();
    asm.je(again).unwrap();
    asm.hlt().unwrap();
}

/// Store numbers into the function and publish each, hundreds between two polls: some meet a page that has
/// just become code, before this vCPU knows.
fn writer(rounds: u32) -> impl Fn(&mut CodeAssembler) {
    const BETWEEN_POLLS: u32 = 300;
    move |asm| {
        asm.xor(ebx, ebx).unwrap();
        repeat(asm, rounds, |asm| {
            asm.mov(rsi, SHARED + 256).unwrap();
            asm.mov(rdi, SHARED + 256).unwrap();
            for _ in 0..BETWEEN_POLLS {
                asm.inc(ebx).unwrap();
                asm.mov(dword_ptr(NUMBER), ebx).unwrap();
                asm.mov(dword_ptr(PUBLISHED), ebx).unwrap();
                // Some time, and no end of a block.
                for _ in 0..4 {
                    asm.imul_2(rsi, rdi).unwrap();
                }
            }
        });
        asm.mov(dword_ptr(DONE), 1).unwrap();
        asm.hlt().unwrap();
    }
}

/// With one reader the page is code and is not in turns.
#[test]
fn a_serialised_reader_sees_what_was_published() {
    with_both_caches(|cache| {
        let mut machine = machine(2, cache);
        machine.run(&[&writer(2000), &reader], |_| {});
        assert_eq!(machine.load(FAILURES), 0);
    });
}

#[test]
fn serialised_readers_see_what_was_published() {
    with_both_caches(|cache| {
        let mut machine = machine(3, cache);
        machine.run(&[&writer(2000), &reader, &reader], |_| {});
        assert_eq!(machine.load(FAILURES), 0);
    });
}

/// As above, but writer and reader take turns: the reader has long run the old code.
#[test]
fn hot_code_changes_when_asked() {
    const ROUNDS: u32 = 2000;
    let writer = |asm: &mut CodeAssembler| {
        asm.xor(ebx, ebx).unwrap();
        repeat(asm, ROUNDS, |asm| {
            let mut wait = asm.create_label();
            asm.inc(ebx).unwrap();
            asm.mov(dword_ptr(NUMBER), ebx).unwrap();
            asm.mov(dword_ptr(PUBLISHED), ebx).unwrap();
            asm.set_label(&mut wait).unwrap();
            asm.pause().unwrap();
            asm.cmp(dword_ptr(ANSWERED), ebx).unwrap();
            asm.jne(wait).unwrap();
        });
        asm.hlt().unwrap();
    };
    let reader = |asm: &mut CodeAssembler| {
        asm.xor(ebp, ebp).unwrap();
        repeat(asm, ROUNDS, |asm| {
            let mut wait = asm.create_label();
            asm.inc(ebp).unwrap();
            asm.set_label(&mut wait).unwrap();
            asm.call(FUNCTION).unwrap();
            asm.cmp(dword_ptr(PUBLISHED), ebp).unwrap();
            asm.jne(wait).unwrap();
            serialise(asm);
            asm.call(FUNCTION).unwrap();
            expect(asm, ebp);
            asm.mov(dword_ptr(ANSWERED), ebp).unwrap();
        });
        asm.hlt().unwrap();
    };
    with_both_caches(|cache| {
        let mut machine = machine(2, cache);
        machine.run(&[&writer, &reader], |_| {});
        assert_eq!(machine.load(FAILURES), 0);
    });
}

/// A compiler's way: new code where none was, then a pointer to it. No serialising instruction.
#[test]
fn new_code_is_called_through_a_published_pointer() {
    const FUNCTIONS: u32 = 4000;
    const AREA: i32 = 0x40_0000;
    let compiler = |asm: &mut CodeAssembler| {
        asm.mov(ebx, AREA).unwrap();
        repeat(asm, FUNCTIONS, |asm| {
            // mov eax, ebx's value; ret
            asm.mov(byte_ptr(rbx), 0xb8).unwrap();
            asm.mov(dword_ptr(rbx + 1), ebx).unwrap();
            asm.mov(byte_ptr(rbx + 5), 0xc3).unwrap();
            asm.mov(qword_ptr(PUBLISHED), rbx).unwrap();
            asm.add(rbx, 48).unwrap();
        });
        asm.mov(dword_ptr(DONE), 1).unwrap();
        asm.hlt().unwrap();
    };
    let caller = |asm: &mut CodeAssembler| {
        let (mut again, mut none) = (asm.create_label(), asm.create_label());
        asm.set_label(&mut again).unwrap();
        asm.mov(rbp, qword_ptr(PUBLISHED)).unwrap();
        asm.test(rbp, rbp).unwrap();
        asm.jz(none).unwrap();
        asm.call(rbp).unwrap();
        expect(asm, ebp);
        asm.set_label(&mut none).unwrap();
        asm.cmp(dword_ptr(DONE), 0).unwrap();
        asm.je(again).unwrap();
        asm.hlt().unwrap();
    };
    with_both_caches(|cache| {
        let mut machine = machine(3, cache);
        machine.run(&[&compiler, &caller, &caller], |_| {});
        assert_eq!(machine.load(FAILURES), 0);
    });
}

/// Stores of a device, and of the vCPUs into data beside the function.
#[test]
fn a_device_rewrites_code() {
    let busy = |asm: &mut CodeAssembler| {
        let mut again = asm.create_label();
        asm.set_label(&mut again).unwrap();
        asm.inc(qword_ptr(FUNCTION + 0x105)).unwrap();
        asm.pause().unwrap();
        asm.cmp(dword_ptr(DONE), 0).unwrap();
        asm.je(again).unwrap();
        asm.hlt().unwrap();
    };
    with_both_caches(|cache| {
        let mut machine = machine(3, cache);
        machine.run(&[&reader, &reader, &busy], |vm| {
            for value in 1..3000_u32 {
                vm.memory().write(NUMBER, &value.to_le_bytes()).unwrap();
                vm.memory().store(PUBLISHED, &value.to_le_bytes());
            }
            vm.memory().store(DONE, &1_u32.to_le_bytes());
        });
        assert_eq!(machine.load(FAILURES), 0);
    });
}

/// More code than the cache holds, run by all vCPUs at once, each call checked.
#[test]
fn every_vcpu_evicts_its_own_code() {
    const FUNCTIONS: u32 = 3000;
    const AREA: u64 = 0x40_0000;
    let mut machine = machine(3, SMALL_CACHE);
    for index in 0..FUNCTIONS {
        machine.place(AREA + 64 * u64::from(index), &number(index));
    }
    machine.run_all(&|asm| {
        repeat(asm, 4, |asm| {
            let mut again = asm.create_label();
            asm.xor(ebp, ebp).unwrap();
            asm.mov(rbx, AREA).unwrap();
            asm.set_label(&mut again).unwrap();
            asm.call(rbx).unwrap();
            expect(asm, ebp);
            asm.add(rbx, 64).unwrap();
            asm.inc(ebp).unwrap();
            asm.cmp(ebp, FUNCTIONS as i32).unwrap();
            asm.jb(again).unwrap();
        });
        asm.hlt().unwrap();
    });
    assert_eq!(machine.load(FAILURES), 0);
    assert!(machine.statistic("translate.cache_flushes") > 0);
}

/// The second vCPU finds the function translated. What it takes is of the present bytes: another vCPU's translation of
/// the bytes before is not taken.
#[test]
fn a_translation_is_taken_only_for_its_bytes() {
    let mut machine = machine(2, usize::MAX);
    let first = |asm: &mut CodeAssembler| {
        asm.call(FUNCTION).unwrap();
        meet(asm, 2);
        meet(asm, 2);
        asm.mov(dword_ptr(NUMBER), 2).unwrap();
        meet(asm, 2);
        asm.call(FUNCTION).unwrap();
        asm.mov(dword_ptr(NUMBER), 3).unwrap();
        meet(asm, 2);
        asm.hlt().unwrap();
    };
    let second = |asm: &mut CodeAssembler| {
        meet(asm, 2);
        asm.call(FUNCTION).unwrap();
        asm.mov(dword_ptr(ANSWERED), eax).unwrap();
        meet(asm, 2);
        meet(asm, 2);
        meet(asm, 2);
        asm.call(FUNCTION).unwrap();
        asm.mov(dword_ptr(PUBLISHED), eax).unwrap();
        asm.hlt().unwrap();
    };
    machine.store(ANSWERED, 7);
    machine.run(&[&first, &second], |_| {});
    assert_eq!((machine.load(ANSWERED), machine.load(PUBLISHED)), (0, 3));
    assert!(machine.statistic("translate.copied_blocks") > 0);
}

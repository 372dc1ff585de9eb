//! Litmus tests of Intel SDM vol. 3A §8.2.3 "Examples Illustrating the Memory-Ordering Principles".

use crate::machine::{meet, repeat, Machine, SHARED};
use iced_x86::code_asm::*;

const ROUNDS: u32 = 4000;
/// Two variables a round, in cache lines of their own.
const X: u64 = SHARED;
const Y: u64 = SHARED + 64;
const STRIDE: u64 = 128;
/// What each vCPU read, 8 bytes a round.
const READ: [u64; 2] = [0x40_0000, 0x48_0000];

/// What one vCPU does in a round.
#[derive(Clone, Copy)]
enum Step {
    Store(u64),
    Load(u64),
    Fence,
    Locked,
}

/// The rounds of one vCPU: loads are kept, two bits each, in the order they come.
fn rounds(asm: &mut CodeAssembler, who: usize, steps: &[Step]) {
    asm.xor(ebp, ebp).unwrap();
    asm.xor(r13d, r13d).unwrap();
    repeat(asm, ROUNDS, |asm| {
        meet(asm, 2);
        asm.xor(ebx, ebx).unwrap();
        for step in steps {
            match *step {
                Step::Store(at) => asm.mov(dword_ptr(rbp + at as i32), 1).unwrap(),
                Step::Load(at) => {
                    asm.mov(ecx, dword_ptr(rbp + at as i32)).unwrap();
                    asm.lea(rbx, qword_ptr(rcx + rbx * 2)).unwrap();
                }
                Step::Fence => asm.mfence().unwrap(),
                Step::Locked => asm.lock().add(qword_ptr(rsp - 8), 0).unwrap(),
            }
        }
        asm.mov(qword_ptr(r13 + READ[who] as i32), rbx).unwrap();
        asm.add(r13, 8).unwrap();
        asm.add(rbp, STRIDE as i32).unwrap();
    });
    asm.hlt().unwrap();
}

/// The outcomes of all rounds: what the first and the second vCPU read.
fn outcomes(first: &[Step], second: &[Step]) -> Vec<(u64, u64)> {
    let mut machine = Machine::new(2, usize::MAX);
    machine.run(&[&|asm| rounds(asm, 0, first), &|asm| rounds(asm, 1, second)], |_| {});
    let read = |who: usize, round: u64| machine.load(READ[who] + 8 * round);
    (0..u64::from(ROUNDS)).map(|round| (read(0, round), read(1, round))).collect()
}

fn never(first: &[Step], second: &[Step], forbidden: (u64, u64)) {
    let seen = outcomes(first, second);
    assert_eq!(seen.iter().position(|outcome| *outcome == forbidden), None);
}

use Step::{Fence, Load, Locked, Store};

/// §8.2.3.2: loads are not reordered with loads, nor stores with stores.
#[test]
fn a_message_arrives_before_its_flag() {
    never(&[Store(X), Store(Y)], &[Load(Y), Load(X)], (0, 0b10));
}

/// §8.2.3.3: stores are not reordered with earlier loads.
#[test]
fn nothing_is_read_before_it_is_written() {
    never(&[Load(X), Store(Y)], &[Load(Y), Store(X)], (1, 1));
}

/// §8.2.3.4 lets a load pass an earlier store; §8.2.5: not past MFENCE.
#[test]
fn a_fence_keeps_a_load_behind_a_store() {
    never(&[Store(X), Fence, Load(Y)], &[Store(Y), Fence, Load(X)], (0, 0));
}

/// §8.2.3.9: loads and stores are not reordered with locked instructions.
#[test]
fn a_locked_instruction_keeps_a_load_behind_a_store() {
    never(&[Store(X), Locked, Load(Y)], &[Store(Y), Locked, Load(X)], (0, 0));
}

/// §8.2.3.5: a processor sees its own stores at once.
#[test]
fn own_stores_are_seen_at_once() {
    let seen = outcomes(&[Store(X), Load(X), Load(Y)], &[Store(Y), Load(Y), Load(X)]);
    assert!(seen.iter().all(|(first, second)| first & 0b10 != 0 && second & 0b10 != 0));
}

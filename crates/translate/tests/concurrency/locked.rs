//! Locked accesses of several vCPUs to the same bytes.

use crate::machine::{repeat, Machine, Program, PROGRAMS, SHARED};
use iced_x86::code_asm::*;

const CPUS: u32 = 4;
const ROUNDS: u32 = 5000;
/// Accesses that make all other vCPUs stand still.
const FEW: u32 = 100;

fn program(count: u32, body: impl Fn(&mut CodeAssembler)) -> impl Fn(&mut CodeAssembler) {
    move |asm| {
        repeat(asm, count, &body);
        asm.hlt().unwrap();
    }
}

/// A counter that all vCPUs have added 1 to.
fn counted(at: u64, count: u32, body: impl Fn(&mut CodeAssembler)) {
    let mut machine = Machine::new(CPUS, usize::MAX);
    machine.run_all(&program(count, body));
    let mut bytes = [0; 8];
    machine.vm.memory().read(at, &mut bytes).unwrap();
    assert_eq!(u64::from_le_bytes(bytes), u64::from(CPUS * count));
}

#[test]
fn increments() {
    counted(SHARED, ROUNDS, |asm| asm.lock().inc(qword_ptr(SHARED)).unwrap());
}

#[test]
fn exchange_and_add() {
    counted(SHARED, ROUNDS, |asm| {
        asm.mov(eax, 1).unwrap();
        asm.lock().xadd(qword_ptr(SHARED), rax).unwrap();
    });
}

#[test]
fn compare_and_exchange() {
    counted(SHARED, ROUNDS, |asm| {
        let mut again = asm.create_label();
        asm.mov(rax, qword_ptr(SHARED)).unwrap();
        asm.set_label(&mut again).unwrap();
        asm.lea(rbx, qword_ptr(rax + 1)).unwrap();
        asm.lock().cmpxchg(qword_ptr(SHARED), rbx).unwrap();
        asm.jne(again).unwrap();
    });
}

/// Both halves count.
#[test]
fn compare_and_exchange_16_bytes() {
    let mut machine = Machine::new(CPUS, usize::MAX);
    machine.run_all(&program(ROUNDS, |asm| {
        let mut again = asm.create_label();
        asm.xor(eax, eax).unwrap();
        asm.xor(edx, edx).unwrap();
        asm.set_label(&mut again).unwrap();
        asm.lea(rbx, qword_ptr(rax + 1)).unwrap();
        asm.lea(rcx, qword_ptr(rdx + 3)).unwrap();
        asm.lock().cmpxchg16b(xmmword_ptr(SHARED)).unwrap();
        asm.jne(again).unwrap();
    }));
    let all = u64::from(CPUS * ROUNDS);
    assert_eq!((machine.load(SHARED), machine.load(SHARED + 8)), (all, 3 * all));
}

/// XCHG locks without a prefix: a spin lock round a counter that is not.
#[test]
fn a_spin_lock() {
    counted(SHARED + 64, 1000, |asm| {
        let (mut take, mut taken) = (asm.create_label(), asm.create_label());
        asm.set_label(&mut take).unwrap();
        asm.mov(eax, 1).unwrap();
        asm.xchg(dword_ptr(SHARED), eax).unwrap();
        asm.test(eax, eax).unwrap();
        asm.jz(taken).unwrap();
        asm.pause().unwrap();
        asm.jmp(take).unwrap();
        asm.set_label(&mut taken).unwrap();
        asm.inc(qword_ptr(SHARED + 64)).unwrap();
        asm.mov(dword_ptr(SHARED), 0).unwrap();
    });
}

/// A page of code takes stores off the inline path.
#[test]
fn increments_beside_code() {
    let counter = PROGRAMS + 0x800;
    counted(counter, ROUNDS, |asm| asm.lock().inc(qword_ptr(counter)).unwrap());
}

#[test]
fn increments_across_pages() {
    let counter = SHARED + 0xffc;
    counted(counter, FEW, |asm| asm.lock().inc(qword_ptr(counter)).unwrap());
}

/// The upper half of a counter across pages, and the same bytes by themselves.
#[test]
fn increments_across_pages_and_beside_them() {
    let across = |asm: &mut CodeAssembler| {
        asm.mov(rax, 1u64 << 32).unwrap();
        asm.lock().add(qword_ptr(SHARED + 0xffc), rax).unwrap();
    };
    let beside = |asm: &mut CodeAssembler| asm.lock().inc(dword_ptr(SHARED + 0x1000)).unwrap();
    let (across, beside) = (program(FEW, across), program(1000 * FEW, beside));
    let programs: [Program; 4] = [&across, &beside, &across, &beside];
    let mut machine = Machine::new(4, usize::MAX);
    machine.run(&programs, |_| {});
    assert_eq!(machine.load(SHARED + 0x1000), u64::from(2 * FEW + 2000 * FEW));
    assert_eq!(machine.statistic("vcpu.exclusive_sections"), u64::from(2 * FEW));
}

/// A vCPU that loads a segment marks its descriptor accessed, while another changes another bit of that byte.
#[test]
fn descriptors_are_marked_accessed_without_loss() {
    const DESCRIPTOR: u64 = SHARED + 8;
    const TYPE: u64 = DESCRIPTOR + 5;
    const TABLE_REGISTER: u64 = SHARED + 0x100;
    const LOST: u64 = SHARED + 0x200;
    const ACCESSED: i32 = 1;
    // Of the upper half of the descriptor.
    const DPL_BIT: u32 = 13;
    let load = program(20_000, |asm| {
        asm.lock().and(byte_ptr(TYPE), !ACCESSED).unwrap();
        asm.mov(eax, 8).unwrap();
        asm.mov(ds, ax).unwrap();
    });
    let load = |asm: &mut CodeAssembler| {
        asm.lgdt(ptr(TABLE_REGISTER)).unwrap();
        load(asm);
    };
    // It finds its bit as it left it: not as it was the time before (BL).
    let toggle = program(1_000_000, |asm| {
        asm.lock().btc(dword_ptr(DESCRIPTOR + 4), DPL_BIT).unwrap();
        asm.setc(al).unwrap();
        asm.cmp(al, bl).unwrap();
        asm.sete(cl).unwrap();
        asm.add(byte_ptr(LOST), cl).unwrap();
        asm.mov(bl, al).unwrap();
    });
    let toggle = |asm: &mut CodeAssembler| {
        asm.mov(bl, 1).unwrap();
        toggle(asm);
    };
    let mut machine = Machine::new(2, usize::MAX);
    machine.store(DESCRIPTOR, 0x00cf_9200_0000_ffff);
    machine.store(TABLE_REGISTER, 15 | SHARED << 16);
    machine.run(&[&load, &toggle], |_| {});
    assert_eq!((machine.load(LOST), machine.load(DESCRIPTOR)), (0, 0x00cf_9300_0000_ffff));
}

//! Two address spaces with PCIDs, each with a program at the same address: what is kept of one while the other
//! runs holds, and ends where the architecture ends it (Intel SDM vol. 3A §4.10.4 "Invalidation of TLBs and
//! Paging-Structure Caches").
#![allow(clippy::unwrap_used)]

mod long_mode;

use std::sync::Arc;
use sublet_engine::{Engine, Exit, MsrEntry, Regs, Sregs, Vcpu, Vm};
use sublet_memory::RamBlock;
use sublet_translate::TranslateEngine;

/// The kernel's code, in a global page of the upper half.
const KERNEL: u64 = 0xffff_ff80_0000_1000;
const KERNEL_FRAME: u64 = 0x1000;
/// Where a descriptor of INVPCID lies: PCID 2, and `DATA`.
const INVPCID_DESCRIPTOR: u64 = 0x1800;
/// The top tables of the two.
const TABLES: [u64; 2] = [0x8_0000, 0x9_0000];
/// A program, then a page of code that it calls, then a page of data.
const USER: u64 = 0x40_0000;
const DATA: u64 = USER + 0x2000;
const PCIDE: u64 = 1 << 17;
const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;
const USER_PAGE: u64 = 7;

/// The frame of page `page` (0 to 2) of address space `space`, and a fourth that is mapped nowhere.
fn frame(space: usize, page: u64) -> u64 {
    0x10_0000 + 0x1_0000 * space as u64 + 0x1000 * page
}

/// Where address space 1 has the entry of its data page.
const DATA_ENTRY: u32 = 0x9_3010;

/// `mov ebp,50; l: mov eax,[DATA]; call USER+0x1000; dec ebp; jnz l; out 0x80,eax; syscall; jmp start`
fn program() -> Vec<u8> {
    let mut code = vec![0xbd, 50, 0, 0, 0, 0x8b, 0x04, 0x25];
    code.extend((DATA as u32).to_le_bytes());
    code.push(0xe8);
    code.extend((0x1000 - 17u32).to_le_bytes());
    code.extend([0xff, 0xcd, 0x75, 0xf0, 0xe7, 0x80, 0x0f, 0x05, 0xeb, 0xe5]);
    code
}

/// `add eax,value; ret`
fn callee(value: u8) -> Vec<u8> {
    vec![0x83, 0xc0, value, 0xc3]
}

struct Machine {
    vm: Arc<dyn Vm>,
    vcpu: Box<dyn Vcpu>,
}

impl Machine {
    /// Each system call has the other CR3 in RAX, runs `kernel` (R8: the entry of a page of data; RDI: 0 at
    /// first), loads CR3 and returns.
    fn new(kernel: &[u8], programs: [Vec<u8>; 2]) -> Self {
        let vm = TranslateEngine::new().unwrap().create_vm().unwrap();
        let ram = Arc::new(RamBlock::new(2 << 20).unwrap());
        vm.memory().set_memslot(0, 0, 2 << 20, ram, 0, false, false).unwrap();
        vm.memslots_changed().unwrap();
        let put = |gpa: u64, bytes: &[u8]| vm.memory().write(gpa, bytes).unwrap();
        for (space, program) in programs.iter().enumerate() {
            let top = TABLES[space];
            for (entry, value) in [
                (top, (top + 0x1000) | USER_PAGE),
                (top + 0x1000, (top + 0x2000) | USER_PAGE),
                (top + 0xff8, (top + 0x1000) | USER_PAGE),
                // The kernel's part: 2 MiB, global.
                (top + 0x2000, 0x183),
                (top + 0x2010, (top + 0x3000) | USER_PAGE),
                (top + 0x3000, frame(space, 0) | USER_PAGE),
                (top + 0x3008, frame(space, 1) | USER_PAGE),
                (top + 0x3010, frame(space, 2) | USER_PAGE),
            ] {
                put(entry, &value.to_le_bytes());
            }
            put(frame(space, 0), program);
            put(frame(space, 1), &callee(1 + space as u8));
            put(frame(space, 2), &[0x10 * (1 + space as u8)]);
        }
        put(frame(1, 3), &[0x70]);
        put(INVPCID_DESCRIPTOR, &[2u64.to_le_bytes(), DATA.to_le_bytes()].concat());
        // mov rax,cr3; xor rax,rbx; <kernel>; mov cr3,rax; sysretq
        put(
            KERNEL_FRAME,
            &[&[0x0f, 0x20, 0xd8, 0x48, 0x31, 0xd8], kernel, &[0x0f, 0x22, 0xd8, 0x48, 0x0f, 0x07]].concat(),
        );
        let vcpu = user_mode(&*vm);
        Self { vm, vcpu }
    }

    fn outputs(&mut self, count: usize) -> Vec<u64> {
        (0..count)
            .map(|_| match self.vcpu.run().unwrap() {
                Exit::PioOut { port: 0x80, data, .. } => data,
                other => panic!("{other:?}"),
            })
            .collect()
    }
}

fn user_mode(vm: &dyn Vm) -> Box<dyn Vcpu> {
    let mut vcpu = vm.create_vcpu(0).unwrap();
    let sregs = long_mode::sregs(TABLES[0] | 1, 3);
    vcpu.set_sregs(&Sregs { efer: 0x501, cr4: sregs.cr4 | PCIDE, ..sregs }).unwrap();
    let msrs = [MsrEntry { index: STAR, value: 0x10_0008 << 32 }, MsrEntry { index: LSTAR, value: KERNEL }];
    vcpu.set_msrs(&msrs).unwrap();
    let mut regs = Regs { rip: USER, rflags: 0x3002, ..Regs::default() };
    regs.gpr[3] = (TABLES[0] | 1) ^ (TABLES[1] | 2);
    regs.gpr[4] = DATA + 0xff0;
    regs.gpr[8] = frame(1, 3) | USER_PAGE;
    vcpu.set_regs(&regs).unwrap();
    vcpu
}

/// `bts rax,63`: keep what is cached.
const KEEP: [u8; 5] = [0x48, 0x0f, 0xba, 0xe8, 63];

/// `mov [DATA_ENTRY],r8`: another frame for the data of address space 1; in the kernel's mapping of it.
fn map_anew() -> Vec<u8> {
    let high = 0xffff_ff80_0000_0000u64 + u64::from(DATA_ENTRY);
    // mov rdx,imm64; mov [rdx],r8
    [&[0x48, 0xba][..], &high.to_le_bytes(), &[0x4c, 0x89, 0x02]].concat()
}

#[test]
fn each_sees_its_own_code_and_data() {
    let mut machine = Machine::new(&KEEP, [program(), program()]);
    assert_eq!(machine.outputs(6), [0x11, 0x22, 0x11, 0x22, 0x11, 0x22]);
}

#[test]
fn a_load_of_cr3_drops_what_was_kept_of_that_pcid() {
    // The entry changes when the first has run once more than the second.
    let mut machine = Machine::new(&map_anew_after(2, &[]), [program(), program()]);
    assert_eq!(machine.outputs(4), [0x11, 0x22, 0x11, 0x72]);
}

#[test]
fn invpcid_drops_what_is_kept_of_another_pcid() {
    for kind in [0u8, 1] {
        let descriptor = 0xffff_ff80_0000_0000u64 + INVPCID_DESCRIPTOR;
        // mov edx,kind; mov rsi,imm64; invpcid rdx,[rsi]
        let invpcid = [
            &[0xba, kind, 0, 0, 0, 0x48, 0xbe][..],
            &descriptor.to_le_bytes(),
            &[0x66, 0x0f, 0x38, 0x82, 0x16],
        ]
        .concat();
        let mut machine =
            Machine::new(&map_anew_after(2, &[&invpcid[..], &KEEP].concat()), [program(), program()]);
        assert_eq!(machine.outputs(4), [0x11, 0x22, 0x11, 0x72], "kind {kind}");
    }
}

#[test]
fn invlpg_drops_what_is_cached_of_the_current_one() {
    // The second program's call, still in its address space: invlpg [DATA].
    let invlpg = [&[0x0f, 0x01, 0x3c, 0x25][..], &(DATA as u32).to_le_bytes()].concat();
    let kernel = map_anew_after(1, &[&invlpg[..], &KEEP].concat());
    let mut machine = Machine::new(&kernel, [program(), program()]);
    assert_eq!(machine.outputs(4), [0x11, 0x22, 0x11, 0x72]);
}

/// Count the calls in RDI; from `calls` on, map the data anew and run `then`; before, keep what is cached.
fn map_anew_after(calls: u8, then: &[u8]) -> Vec<u8> {
    let change = [&map_anew()[..], then].concat();
    // inc edi; cmp edi,calls+1; jae change; <keep>; jmp over; change: ..
    let mut code = vec![0xff, 0xc7, 0x83, 0xff, calls + 1, 0x73, KEEP.len() as u8 + 2];
    code.extend(KEEP);
    code.extend([0xeb, change.len() as u8]);
    code.extend(change);
    code
}

#[test]
fn a_store_by_one_reaches_the_code_of_the_other() {
    // The second maps the first's page of code as data, and stores to it: at the start, before it is known as
    // code, to a byte that will be none; after the first has run, to the value that is added.
    // mov ebp,50; l: mov byte [DATA+edi*8+2-24],0x44; dec ebp; jnz l; 4 nop; out 0x80,eax; syscall; jmp start,
    // with SYSCALL where the other program has it.
    let mut store = vec![0xbd, 50, 0, 0, 0, 0xc6, 0x04, 0xfd];
    store.extend((DATA as u32 + 2 - 24).to_le_bytes());
    store.extend([0x44, 0xff, 0xcd, 0x75, 0xf4, 0x90, 0x90, 0x90, 0x90, 0xe7, 0x80, 0x0f, 0x05, 0xeb, 0xe5]);
    // dec edi
    let kernel = [&[0xff, 0xcf][..], &KEEP].concat();
    let mut machine = Machine::new(&kernel, [program(), store]);
    let entry = frame(0, 1) | USER_PAGE;
    machine.vm.memory().write(u64::from(DATA_ENTRY), &entry.to_le_bytes()).unwrap();
    let sregs = machine.vcpu.sregs().unwrap();
    machine.vcpu.set_sregs(&Sregs { cr3: TABLES[1] | 2, ..sregs }).unwrap();
    let mut regs = machine.vcpu.regs().unwrap();
    regs.gpr[7] = 5;
    machine.vcpu.set_regs(&regs).unwrap();
    // With EDI 5 the stores go 16 bytes beyond the value, with EDI 3 to it.
    let outputs = machine.outputs(4);
    assert_eq!([outputs[1], outputs[3]], [0x11, 0x54]);
}

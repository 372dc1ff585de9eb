//! User code whose accesses go through memory windows sees the memory that its kernel has mapped at that moment.
//!
//! Each machine has windows from its first instruction on, or none, and has to put out the same. User code calls
//! the kernel, which changes a mapping as the test says. A fault puts out its vector and CR2 and ends.
#![allow(clippy::unwrap_used)]

mod long_mode;
mod outputs;

use outputs::{handler, shown};
use std::sync::Arc;
use sublet_engine::{DescriptorTable, Engine, Exit, MsrEntry, Regs, Segment, Sregs, Vcpu, Vm};
use sublet_memory::RamBlock;
use sublet_translate::optimisations::Optimisation;
use sublet_translate::TranslateEngine;

const RAM: u64 = 4 << 20;
/// The kernel's code, in a global page of the upper half.
const KERNEL: u64 = 0xffff_ff80_0000_1000;
const GDT: u64 = 0x8000;
const IDT: u64 = 0x9000;
const TSS: u64 = 0xa000;
const HANDLERS: u64 = 0xb000;
const TABLES: u64 = 0x8_0000;
const OTHER_TABLES: u64 = 0x9_0000;
/// Where user code and data are.
const USER: u64 = 0x40_0000;
const DATA: u64 = 0x41_0000;
/// Frames of data pages: each holds its number times 0x11 in every byte.
const FRAMES: u64 = 0x10_0000;
const ALL: u64 = 7;
const DEVICE: u64 = 0x4000_0000;
/// Segments of 4 GiB that have a page: more than there are windows.
const SEGMENTS: u64 = 100;

const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;
const FMASK: u32 = 0xc000_0084;

/// `mov [TABLES+0x3080],rbx`: the entry that maps `DATA`
const MAP: [u8; 8] = [0x48, 0x89, 0x1c, 0x25, 0x80, 0x30, 0x08, 0];
const SYSRETQ: [u8; 3] = [0x48, 0x0f, 0x07];
/// `mov rax,cr3; mov cr3,rax`
const RELOAD: [u8; 6] = [0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8];
/// `invlpg [DATA]`
const INVLPG: [u8; 8] = [0x0f, 0x01, 0x3c, 0x25, 0, 0, 0x41, 0];
/// `mov eax,[DATA]; out 0x80,eax`
const SHOW: [u8; 9] = [0x8b, 0x04, 0x25, 0, 0, 0x41, 0, 0xe7, 0x80];
const SYSCALL: [u8; 2] = [0x0f, 0x05];
/// `mov byte [DATA],0x77`
const STORE: [u8; 8] = [0xc6, 0x04, 0x25, 0, 0, 0x41, 0, 0x77];
/// `hlt`, which user code may not.
const END: [u8; 1] = [0xf4];

fn fill_tables(put: &dyn Fn(u64, u64), tables: u64, first_frame: u64) {
    for (place, entry) in [
        (0, (tables + 0x1000) | ALL),
        (0xff8, (TABLES + 0x1000) | ALL),
        (0x1000, (tables + 0x2000) | ALL),
        (0x1018, (tables + 0x6000) | ALL),
        (0x2000, 0x183),
        (0x2010, (tables + 0x3000) | ALL),
        (0x2008, DEVICE | 0x87),
        (0x3000, 0x4_0000 | ALL),
        (0x4000, (tables + 0x5000) | ALL),
        (0x5000, (FRAMES + 0x3000) | ALL),
        (0x6ff8, (tables + 0x7000) | ALL),
        (0x7ff8, (FRAMES + 0x7000) | ALL),
    ] {
        put(tables + place, entry);
    }
    // A page at the start of each of many segments.
    (1..SEGMENTS).for_each(|segment| put(tables + 0x1000 + 32 * segment, (tables + 0x4000) | ALL));
    for page in 0..4 {
        put(tables + 0x3000 + 8 * (0x10 + page), (first_frame + 0x2000 * page) | ALL);
    }
}

fn machine(engine: &TranslateEngine, kernel: &[u8], user: &[u8]) -> (Arc<dyn Vm>, Box<dyn Vcpu>) {
    let vm = engine.create_vm().unwrap();
    let ram = Arc::new(RamBlock::new(RAM).unwrap());
    vm.memory().set_memslot(0, 0, RAM, ram, 0, false, false).unwrap();
    vm.memslots_changed().unwrap();
    let put = |gpa: u64, value: u64| vm.memory().write(gpa, &value.to_le_bytes()).unwrap();
    fill_tables(&put, TABLES, FRAMES);
    fill_tables(&put, OTHER_TABLES, FRAMES + 0x1000);
    for frame in 0..16u8 {
        vm.memory().write(FRAMES + 0x1000 * u64::from(frame), &[frame * 0x11; 0x1000]).unwrap();
    }
    let descriptors = [0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x8b00_0000_0067 | TSS << 16, 0];
    (GDT + 8..).step_by(8).zip(descriptors).for_each(|(place, raw)| put(place, raw));
    put(TSS + 4, 0x7000);
    for vector in 0..32u8 {
        let at = HANDLERS + 32 * u64::from(vector);
        put(IDT + 16 * u64::from(vector), at & 0xffff | 8 << 16 | 0x8e00 << 32 | (at >> 16) << 48);
        vm.memory().write(at, &handler(vector)).unwrap();
    }
    vm.memory().write(KERNEL & 0xffff, &[kernel, &SYSRETQ].concat()).unwrap();
    vm.memory().write(0x4_0000, user).unwrap();
    let vcpu = user_mode(&*vm);
    (vm, vcpu)
}

fn user_mode(vm: &dyn Vm) -> Box<dyn Vcpu> {
    let mut vcpu = vm.create_vcpu(0).unwrap();
    let tr = Segment { base: TSS, limit: 0x67, selector: 24, kind: 11, present: true, ..Segment::default() };
    let sregs = Sregs {
        efer: 0x501,
        tr,
        gdt: DescriptorTable { base: GDT, limit: 0x27 },
        idt: DescriptorTable { base: IDT, limit: 0xfff },
        ..long_mode::sregs(TABLES, 3)
    };
    vcpu.set_sregs(&sregs).unwrap();
    let msr = |index, value| MsrEntry { index, value };
    vcpu.set_msrs(&[msr(STAR, 0x10_0008 << 32), msr(LSTAR, KERNEL), msr(FMASK, 0x4_7700)]).unwrap();
    let mut regs = Regs { rip: USER, rflags: 0x3002, ..Regs::default() };
    regs.gpr[3] = (FRAMES + 0x5000) | ALL;
    regs.gpr[4] = DATA + 0x800;
    vcpu.set_regs(&regs).unwrap();
    vcpu
}

/// What comes out of a machine until it halts, by port and data; and how many accesses faulted in a window.
fn outputs(engine: TranslateEngine, kernel: &[u8], user: &[u8]) -> (Vec<(u64, u64)>, u64) {
    let (_vm, mut vcpu) = machine(&engine, kernel, user);
    (outputs::outputs(&mut *vcpu), vcpu.statistics()["vcpu.window_faults"])
}

/// The outputs, the same with windows and without.
fn both(kernel: &[&[u8]], user: &[&[u8]]) -> Vec<(u64, u64)> {
    let (kernel, user) = (kernel.concat(), [user, &[&END]].concat().concat());
    let engine = || TranslateEngine::new().unwrap();
    let (with, faults) = outputs(engine().without(Optimisation::WindowPolicy), &kernel, &user);
    let (without, none) = outputs(engine().without(Optimisation::Windows), &kernel, &user);
    assert_eq!(with.iter().collect::<Vec<_>>(), without.iter().collect::<Vec<_>>());
    assert!(faults > 0 && none == 0, "{faults} {none}");
    with
}

/// What the fault of [`END`] puts out at last.
const ENDED: (u64, u64) = (0x80, 13);

#[test]
fn another_frame_is_seen_after_a_flush() {
    for flush in [&RELOAD[..], &INVLPG] {
        let out = both(&[&MAP, flush], &[&SHOW, &SYSCALL, &SHOW, &STORE, &SHOW]);
        assert_eq!(out[..3], shown(&[0, 0x5555_5555, 0x5555_5577]));
        assert_eq!(out[3], ENDED);
    }
}

#[test]
fn a_page_that_becomes_read_only_takes_no_more_stores() {
    // and bl,0xfd: not writable
    let protect: &[u8] = &[0x80, 0xe3, 0xfd];
    let out = both(&[protect, &MAP, &INVLPG], &[&STORE, &SHOW, &SYSCALL, &SHOW, &STORE]);
    assert_eq!(out, [shown(&[0x77, 0x5555_5555, 14]), vec![(0x81, DATA)]].concat());
}

#[test]
fn a_page_that_goes_faults() {
    let out = both(&[&[0x31, 0xdb], &MAP, &INVLPG], &[&STORE, &SYSCALL, &SHOW]);
    assert_eq!(out, [(0x80, 14), (0x81, DATA)]);
}

#[test]
fn each_address_space_has_its_own_pages() {
    // mov eax,OTHER_TABLES; mov cr3,rax
    let switch: &[u8] = &[0xb8, 0, 0, 9, 0, 0x0f, 0x22, 0xd8];
    let out = both(&[switch], &[&SHOW, &SYSCALL, &SHOW]);
    assert_eq!(out[..2], shown(&[0, 0x1111_1111]));
}

#[test]
fn an_access_across_pages_reaches_both_frames() {
    // mov eax,[DATA+0xffe]; out 0x80,eax; add dword [DATA+0xffe],0x10001; mov eax,[DATA+0xffe]; out 0x80,eax
    let load: &[u8] = &[0x8b, 0x04, 0x25, 0xfe, 0x0f, 0x41, 0, 0xe7, 0x80];
    let add: &[u8] = &[0x81, 0x04, 0x25, 0xfe, 0x0f, 0x41, 0, 1, 0, 1, 0];
    assert_eq!(both(&[], &[load, add, load])[..2], shown(&[0x2222_0000, 0x2223_0001]));
}

#[test]
fn an_access_across_segments_reaches_both() {
    let code: &[u8] = &[
        0xbb, 0xfe, 0xff, 0xff, 0xff, // mov ebx,0xfffffffe
        0x8b, 0x43, 2, 0xe7, 0x80, // mov eax,[rbx+2]; out
        0x83, 0x03, 1, // add dword [rbx],1
        0x8b, 0x03, 0xe7, 0x80, // mov eax,[rbx]; out
        0x8b, 0x43, 2, 0xe7, 0x80, // mov eax,[rbx+2]; out
    ];
    assert_eq!(both(&[], &[code])[..3], shown(&[0x3333_3333, 0x3333_7778, 0x3333_3333]));
}

#[test]
fn there_may_be_more_segments_than_windows() {
    let code: &[u8] = &[
        0x48, 0xba, 0, 0, 0, 0, 1, 0, 0, 0, // mov rdx,1<<32
        0xbd, 90, 0, 0, 0, // mov ebp,90
        0x48, 0x89, 0xd3, 0x31, 0xc0, // mov rbx,rdx; xor eax,eax
        0x03, 0x03, 0xff, 0x03, 0x48, 0x01, 0xd3, // l: add eax,[rbx]; inc dword [rbx]; add rbx,rdx
        0xff, 0xcd, 0x75, 0xf5, 0xe7, 0x80, // dec ebp; jnz l; out
    ];
    let sum = 90u32.wrapping_mul(0x3333_3333).wrapping_add(89 * 90 / 2);
    assert_eq!(both(&[], &[code])[0], (0x80, u64::from(sum)));
}

/// Have the process make mappings until the host allows no more, but for `spare` of them.
fn use_up_mappings(spare: usize) {
    const PAGE: usize = 4096;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping, of which nothing is read or written; and protections within it.
    unsafe {
        let base = libc::mmap(std::ptr::null_mut(), PAGE << 21, libc::PROT_NONE, flags, -1, 0);
        assert_ne!(base, libc::MAP_FAILED);
        let page = |n: usize| base.cast::<u8>().add(2 * n * PAGE).cast();
        let made = (0..1 << 20).take_while(|&n| libc::mprotect(page(n), PAGE, libc::PROT_READ) == 0).count();
        assert!(made < 1 << 20, "the host has no limit");
        // Each takes back two: itself, and what lay between it and the next.
        (made - spare.div_ceil(2)..made)
            .for_each(|n| assert_eq!(libc::mprotect(page(n), PAGE, libc::PROT_NONE), 0));
    }
}

const SPARE: &str = "SUBLET_TEST_SPARE_MAPPINGS";

/// Run by the test below in processes of its own.
#[test]
#[ignore = "takes all of the process's mappings"]
fn with_few_mappings_left() {
    let spare = std::env::var(SPARE).unwrap().parse().unwrap();
    let engine = TranslateEngine::new().unwrap().without(Optimisation::WindowPolicy);
    let user = [&SHOW[..], &SYSCALL, &SHOW, &STORE, &SHOW, &END].concat();
    let (vm, mut vcpu) = machine(&engine, &[MAP, INVLPG].concat(), &user);
    // Pages and frames in a row, accessed and dirty, become one run, which has to be cut for the kernel's change.
    for page in 0..8 {
        let entry = (FRAMES + 0x1000 * page) | 0x60 | ALL;
        vm.memory().write(TABLES + 0x3080 + 8 * page, &entry.to_le_bytes()).unwrap();
    }
    let mut out = Vec::new();
    let mut exit = vcpu.run().unwrap();
    use_up_mappings(spare);
    while let Exit::PioOut { data, .. } = exit {
        out.push(data);
        exit = vcpu.run().unwrap();
    }
    assert_eq!(out[..4], [0, 0x5555_5555, 0x5555_5577, 13], "{out:x?}");
}

#[test]
fn a_host_that_maps_no_more_changes_nothing() {
    for spare in [0, 4, 64] {
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "with_few_mappings_left", "--ignored", "--test-threads=1"])
            .env(SPARE, spare.to_string())
            .output()
            .unwrap();
        assert!(child.status.success(), "{spare} left: {}", String::from_utf8_lossy(&child.stdout));
    }
}

/// `mov ecx,turns; xor eax,eax; mov esi,from; l: add eax,[rsi]; add rsi,4; dec ecx; jnz l; out 0x80,eax`
fn sum(turns: u8, from: u64) -> Vec<u8> {
    let from = (from as u32).to_le_bytes();
    let begin = [0xb9, turns, 0, 0, 0, 0x31, 0xc0, 0xbe, from[0], from[1], from[2], from[3]];
    [&begin[..], &[0x03, 0x06, 0x48, 0x83, 0xc6, 4, 0xff, 0xc9, 0x75, 0xf6, 0xe7, 0x80]].concat()
}

#[test]
fn a_loop_takes_as_many_turns_as_it_should() {
    for turns in 1..=34 {
        let out = both(&[], &[&sum(turns, DATA + 0x1000)]);
        assert_eq!(out[0], (0x80, u64::from(u32::from(turns).wrapping_mul(0x2222_2222))), "{turns} turns");
    }
}

#[test]
fn a_fault_in_any_turn_is_precise() {
    /// What the processor pushes for the handler: RIP, CS, RFLAGS, RSP, SS.
    const FRAME: u64 = 0x7000 - 40;
    let after = |engine: TranslateEngine, turns: u8| {
        let user = sum(100, DATA + 0x4000 - 4 * u64::from(turns));
        let (vm, mut vcpu) = machine(&engine, &[], &user);
        while vcpu.run().unwrap() != Exit::Hlt {}
        let mut frame = [0; 40];
        vm.memory().read(FRAME, &mut frame).unwrap();
        (frame, vcpu.regs().unwrap().gpr)
    };
    let engine = || TranslateEngine::new().unwrap();
    for turns in 0..20 {
        let (frame, gpr) = after(engine().without(Optimisation::WindowPolicy), turns);
        assert_eq!((frame, gpr), after(engine().without(Optimisation::Windows), turns));
        assert_eq!(frame[..8], (USER + 12).to_le_bytes(), "{turns} turns");
        assert_eq!((gpr[1], gpr[6]), (100 - u64::from(turns), DATA + 0x4000));
    }
}

#[test]
fn accesses_to_three_segments_in_turns_find_their_own() {
    let code: &[u8] = &[
        0xb9, 9, 0, 0, 0, 0xbe, 0, 0x10, 0x41, 0, // mov ecx,9; mov esi,DATA+0x1000
        0x48, 0xbf, 0, 0, 0, 0, 1, 0, 0, 0, 0x31, 0xed, // mov rdi,1<<32; xor ebp,ebp
        0x8b, 6, 0x89, 7, 3, 4, 0x24, // l: mov eax,[rsi]; mov [rdi],eax; add eax,[rsp]
        0x56, 0x89, 0x47, 4, 0x5b, // push rsi; mov [rdi+4],eax; pop rbx
        0x49, 0x89, 0xfe, 0x41, 1, 0x46, 0x10, // mov r14,rdi; add [r14+16],eax
        3, 0x6e, 8, 3, 0x6f, 4, // add ebp,[rsi+8]; add ebp,[rdi+4]
        0x48, 0x83, 0xc6, 4, 0x48, 0x83, 0xc7, 8, // add rsi,4; add rdi,8
        0xff, 0xc9, 0x75, 0xdb, // dec ecx; jnz l
        0x89, 0xe8, 0xe7, 0x80, 0x8b, 7, 0xe7, 0x80, // mov eax,ebp; out; mov eax,[rdi]; out
        0x8b, 0x47, 0xfc, 0xe7, 0x80, // mov eax,[rdi-4]; out
    ];
    let (own, other) = (0x2222_2222u32, 0x3333_3333u32);
    let sum = 18u32.wrapping_mul(own);
    let seen = [sum, other.wrapping_add(own), own].map(u64::from);
    assert_eq!(both(&[], &[&SHOW, code])[1..4], shown(&seen));
}

#[test]
fn an_address_relative_to_rip_has_the_base_of_its_segment() {
    // mov eax,fs:[DATA-1], relative to RIP; nop; out 0x80,eax; hlt
    let distance = ((DATA - USER - 8) as u32).to_le_bytes();
    let code = [&[0x64, 0x8b, 0x05][..], &distance, &[0x90, 0xe7, 0x80, 0xf4]].concat();
    for base in [0x1001, 0x1_0000_0001 - DATA] {
        let engine = TranslateEngine::new().unwrap().without(Optimisation::WindowPolicy);
        let (_vm, mut vcpu) = machine(&engine, &[], &code);
        let mut sregs = vcpu.sregs().unwrap();
        sregs.segments[4].base = base;
        vcpu.set_sregs(&sregs).unwrap();
        let data = if base == 0x1001 { 0x2222_2222 } else { 0x3333_3333 };
        assert_eq!(vcpu.run().unwrap(), Exit::PioOut { port: 0x80, size: 4, data });
    }
}

#[test]
fn a_window_that_another_segment_takes_over_is_looked_for_again() {
    const OWN_TABLES: u64 = 0xa_0000;
    // mov esi,1; shl rsi,32; mov rbp,rsi; mov rdx,rsi; mov eax,[rsi]; jmp to the next instruction: a block begins
    let mut code = vec![0xbe, 1, 0, 0, 0, 0x48, 0xc1, 0xe6, 32, 0x48, 0x89, 0xf5, 0x48, 0x89, 0xf2];
    code.extend([0x8b, 0x06, 0xeb, 0]);
    code.extend([0x8b, 0x06]); // mov eax,[rsi]
    for _ in 0..31 {
        code.extend([0x48, 0x01, 0xea, 0x03, 0x02]); // add rdx,rbp; add eax,[rdx]
    }
    code.extend([0x8b, 0x46, 4, 0xe7, 0x80, 0xf4]); // mov eax,[rsi+4]; out 0x80,eax; hlt
    let engine = TranslateEngine::new().unwrap().without(Optimisation::WindowPolicy);
    let (vm, mut vcpu) = machine(&engine, &[], &code);
    // Segment 32, for which there is no window left, has a page of its own where segment 1 has another.
    let put = |gpa: u64, value: u64| vm.memory().write(gpa, &value.to_le_bytes()).unwrap();
    put(TABLES + 0x1000 + 32 * 32, OWN_TABLES | ALL);
    put(OWN_TABLES, (OWN_TABLES + 0x1000) | ALL);
    put(OWN_TABLES + 0x1000, (FRAMES + 0x5000) | ALL);
    assert_eq!(vcpu.run().unwrap(), Exit::PioOut { port: 0x80, size: 4, data: 0x3333_3333 });
}

#[test]
fn a_list_may_lead_from_segment_to_segment() {
    // Nodes of 16 bytes at DATA, 1<<32, DATA+32 and (5<<32)+16, each with the next one's address and a place to store to.
    let code: &[u8] = &[
        0x48, 0xbb, 0, 0, 0, 0, 1, 0, 0, 0, // mov rbx,1<<32
        0x48, 0x89, 0x1c, 0x25, 0, 0, 0x41, 0, // mov [DATA],rbx
        0x48, 0xc7, 0x03, 0x20, 0, 0x41, 0, // mov qword [rbx],DATA+32
        0x48, 0xbb, 0x10, 0, 0, 0, 5, 0, 0, 0, // mov rbx,(5<<32)+16
        0x48, 0x89, 0x1c, 0x25, 0x20, 0, 0x41, 0, // mov [DATA+32],rbx
        0x48, 0xc7, 0x03, 0, 0, 0, 0, // mov qword [rbx],0
        0xb8, 0, 0, 0x41, 0, 0x31, 0xed, // mov eax,DATA; xor ebp,ebp
        0x81, 0x48, 8, 0x80, 0, 0, 0, // l: or dword [rax+8],0x80
        0x03, 0x68, 8, // add ebp,[rax+8]
        0x48, 0x8b, 0, 0x48, 0x85, 0xc0, // mov rax,[rax]; test rax,rax
        0x75, 0xee, 0x89, 0xe8, 0xe7, 0x80, // jnz l; mov eax,ebp; out
    ];
    let sum = 2 * 0x80 + 2 * 0x3333_33b3u64;
    assert_eq!(both(&[], &[&SHOW, code])[1], (0x80, sum));
    // No distance is used for another segment than its own: the guards would be hit.
    let engine = TranslateEngine::new().unwrap().without(Optimisation::WindowPolicy);
    let (_vm, mut vcpu) = machine(&engine, &[], &[code, &END].concat());
    while vcpu.run().unwrap() != Exit::Hlt {}
    assert_eq!(vcpu.statistics()["vcpu.window_declined"], 0);
}

#[test]
fn a_loop_that_changes_itself_runs_as_changed() {
    // mov ecx,9; xor eax,eax; l: add eax,1; mov [l+2],cl; dec ecx; jnz l; out 0x80,eax
    let code: &[u8] = &[
        0xb9, 9, 0, 0, 0, 0x31, 0xc0, 0x83, 0xc0, 1, 0x88, 0x0c, 0x25, 9, 0, 0x40, 0, 0xff, 0xc9, 0x75, 0xf2,
        0xe7, 0x80,
    ];
    assert_eq!(both(&[], &[code])[0], (0x80, 1 + (2..=9).sum::<u64>()));
}

#[test]
fn a_loop_without_end_can_be_interrupted() {
    // mov ebx,DATA; l: inc dword [rbx]; jnz l (again after it wraps); jmp l
    let code = [0xbb, 0, 0, 0x41, 0, 0xff, 0x03, 0x75, 0xfc, 0xeb, 0xfa];
    let engine = TranslateEngine::new().unwrap().without(Optimisation::WindowPolicy);
    let (vm, mut vcpu) = machine(&engine, &[], &code);
    let kicker = vcpu.kicker();
    std::thread::spawn(move || {
        let mut count = [0; 4];
        while u32::from_le_bytes(count) < 1000 {
            vm.memory().read(FRAMES, &mut count).unwrap();
        }
        kicker.kick();
    });
    assert_eq!(vcpu.run().unwrap(), Exit::Interrupted);
}

#[test]
fn stores_to_the_running_code_are_seen() {
    // l: mov eax,1; out 0x80,eax; inc byte [l+1]; cmp byte [l+1],4; jne l
    let code: &[u8] = &[
        0xb8, 1, 0, 0, 0, 0xe7, 0x80, // l: mov eax,1; out
        0xfe, 0x04, 0x25, 1, 0, 0x40, 0, // inc byte [USER+1]
        0x80, 0x3c, 0x25, 1, 0, 0x40, 0, 4, // cmp byte [USER+1],4
        0x75, 0xe8, // jne l
    ];
    assert_eq!(both(&[], &[code])[..3], shown(&[1, 2, 3]));
}

#[test]
fn a_page_becomes_code_after_it_was_stored_to() {
    // Twice: store `mov eax,imm; ret` at DATA and call it.
    let mut code = vec![];
    for value in [5u8, 6] {
        for (offset, byte) in [0xb8, value, 0, 0, 0, 0xc3].into_iter().enumerate() {
            code.extend([0xc6, 0x04, 0x25, offset as u8, 0, 0x41, 0, byte]);
        }
        // mov ecx,DATA; call rcx; out 0x80,eax
        code.extend([0xb9, 0, 0, 0x41, 0, 0xff, 0xd1, 0xe7, 0x80]);
    }
    assert_eq!(both(&[], &[&code])[..2], shown(&[5, 6]));
}

#[test]
fn a_device_is_accessed_once_each_time() {
    // mov ebx,0x200000; add dword [rbx],1
    let code: &[u8] = &[0xbb, 0, 0, 0x20, 0, 0x83, 0x03, 1];
    let out = both(&[], &[&SHOW, code]);
    assert_eq!(out[1..3], [(DEVICE, 0), (DEVICE, 0x1234_5679)]);
}

#[test]
fn addresses_that_are_not_the_program_s_fault() {
    let load_rbx: &[u8] = &[0x8b, 0x03];
    let through_rbp: &[u8] = &[0x48, 0x89, 0xdd, 0x8b, 0x45, 0];
    let kernel: &[u8] = &[0x48, 0xbb, 0, 0x10, 0, 0, 0x80, 0xff, 0xff, 0xff];
    assert_eq!(both(&[], &[&SHOW, kernel, load_rbx])[1..], [(0x80, 14), (0x81, 0x1000)]);
    let beyond: &[u8] = &[0x48, 0xbb, 0, 0, 0, 0, 0, 0x80, 0, 0];
    assert_eq!(both(&[], &[&SHOW, beyond, load_rbx])[1], (0x80, 13));
    assert_eq!(both(&[], &[&SHOW, beyond, through_rbp])[1], (0x80, 12));
    // The last user page reaches beyond.
    let last: &[u8] = &[0x48, 0xbb, 0xf0, 0xff, 0xff, 0xff, 0xff, 0x7f, 0, 0, 0x8b, 0x43, 0x10];
    assert_eq!(both(&[], &[&SHOW, last])[1], (0x80, 13));
    // mov ebx,0x7fffffff; mov eax,[rbx+rbx*8+0x7fffffff]: in a segment without a window
    let far: &[u8] = &[0xbb, 0xff, 0xff, 0xff, 0x7f, 0x8b, 0x84, 0xdb, 0xff, 0xff, 0xff, 0x7f];
    assert_eq!(both(&[], &[&SHOW, far])[1], (0x80, 14));
}

#[test]
fn a_prefetch_changes_nothing_wherever_it_points() {
    // stc; <prefetches>; setc al; movzx eax,al; out 0x80,eax
    let prefetches = [
        &[0x0f, 0x18, 0x0c, 0x25, 0, 0, 0x41, 0][..], // prefetcht0 [DATA]
        &[0x0f, 0x18, 0x04, 0x25, 0, 0, 0, 0x70],     // prefetchnta [unmapped]
        &[0x0f, 0x0d, 0x0c, 0x25, 0xf0, 0xff, 0xff, 0xff], // prefetchw [kernel's]
        &[0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0x34, 0x12],  // mov rax,0x1234 << 48
        &[0x0f, 0x18, 0x48, 0x08],                    // prefetcht0 [rax+8]
        &[0x42, 0x0f, 0x18, 0x54, 0x78, 0x08],        // prefetcht1 [rax+r15*2+8]
    ]
    .concat();
    let user =
        [&[0xf9], &prefetches[..], &[0x0f, 0x92, 0xc0, 0x0f, 0xb6, 0xc0, 0xe7, 0x80], &SHOW, &END].concat();
    let (out, faults) =
        outputs(TranslateEngine::new().unwrap().without(Optimisation::WindowPolicy), &[], &user);
    assert_eq!(out[..2], shown(&[1, 0]));
    // That of the load alone.
    assert_eq!(faults, 1);
}

#[test]
fn code_that_windows_do_not_serve_is_translated_without() {
    // mov ecx,1000; l: mov [USER+0x800],cl, in the page of the code; dec ecx; jnz l
    let stores = [0xb9, 0xe8, 3, 0, 0, 0x88, 0x0c, 0x25, 0, 8, 0x40, 0, 0xff, 0xc9, 0x75, 0xf5];
    let user = [&stores[..], &SHOW, &END].concat();
    let (out, faults) =
        outputs(TranslateEngine::new().unwrap().without(Optimisation::WindowPolicy), &[], &user);
    assert_eq!(out[..1], shown(&[0]));
    assert!(faults < 100, "{faults}");
}

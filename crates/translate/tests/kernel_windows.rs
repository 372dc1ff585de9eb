//! A 64-bit kernel whose accesses go through memory windows sees the memory that its page tables map at that moment.
//!
//! Each program runs with such windows and without, and has to put out the same. A fault puts out its vector and CR2 and
//! ends. The kernel is in force of SMAP and WP.
#![allow(clippy::unwrap_used)]

mod long_mode;
mod outputs;

use outputs::{handler, outputs, shown};
use std::sync::Arc;
use sublet_engine::{DescriptorTable, Engine, Exit, Regs, Segment, Sregs, Vcpu, Vm};
use sublet_memory::RamBlock;
use sublet_translate::optimisations::Optimisation;
use sublet_translate::TranslateEngine;

const RAM: u64 = 4 << 20;
/// The first 2 MiB of memory, in a global large page; the same at each of [`SEGMENTS`] addresses 4 GiB apart.
const DIRECT: u64 = 0xffff_ff80_0000_0000;
const OTHER: u64 = DIRECT + (1 << 32);
const SEGMENTS: u64 = 120;
/// Four small pages of memory at [`FRAMES`]; the last one is the stack.
const DATA: u64 = DIRECT + 0x20_0000;
const DEVICE: u64 = DIRECT + 0x60_0000;
const DEVICE_GPA: u64 = 0x4000_0000;
/// A program's page, at frame 4.
const USER: u64 = 0x40_0000;
const CODE: u64 = 0x1000;
/// Code of a function, in a page of its own.
const FUNCTION: u64 = 0x2000;
const GDT: u64 = 0x8000;
const IDT: u64 = 0x9000;
const TSS: u64 = 0xa000;
const HANDLERS: u64 = 0xb000;
const ZERO: u32 = 0xf000;
const TABLES: u64 = 0x8_0000;
/// Each holds its number times 0x11 in every byte. Frames that follow one another in linear addresses do not here.
const FRAMES: u64 = 0x10_0000;
const GLOBAL: u64 = 0x163;
const LOCAL: u64 = 0x63;

/// `mov eax,[rbx]; out 0x80,eax`, with RBX at [`DATA`]
const SHOW: [u8; 4] = [0x8b, 0x03, 0xe7, 0x80];
/// `mov byte [rbx],0x77`
const STORE: [u8; 3] = [0xc6, 0x03, 0x77];
/// `mov [rdi],rsi`: frame 5 in place of frame 0
const MAP: [u8; 3] = [0x48, 0x89, 0x37];
const INVLPG: [u8; 3] = [0x0f, 0x01, 0x3b];
/// `mov rax,cr4; xor al,0x80; mov cr4,rax; xor al,0x80; mov cr4,rax`
const TOGGLE_GLOBAL: [u8; 13] =
    [0x0f, 0x20, 0xe0, 0x34, 0x80, 0x0f, 0x22, 0xe0, 0x34, 0x80, 0x0f, 0x22, 0xe0];
/// `mov eax,2; invpcid rax,[rbp+ZERO]`
const INVPCID_ALL: [u8; 14] = [0xb8, 2, 0, 0, 0, 0x66, 0x0f, 0x38, 0x82, 0x85, 0, 0xf0, 0, 0];
/// `mov rax,cr3; mov cr3,rax`
const RELOAD: [u8; 6] = [0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8];
const END: [u8; 1] = [0xf4];

/// Frame of page `page` from [`DATA`] on.
fn frame(page: u64) -> u64 {
    FRAMES + 0x2000 * page
}

fn fill_tables(put: &dyn Fn(u64, u64), kind: u64) {
    const TABLE: u64 = 7;
    const LARGE_GLOBAL: u64 = 0x1e3;
    for (place, entry) in [
        (0xff8, (TABLES + 0x1000) | TABLE),
        (0x2000, LARGE_GLOBAL),
        (0x2008, (TABLES + 0x3000) | TABLE),
        (0x2010, 0x20_0000 | LARGE_GLOBAL),
        (0x2018, DEVICE_GPA | LARGE_GLOBAL),
        (0, (TABLES + 0x4000) | TABLE),
        (0x4000, (TABLES + 0x5000) | TABLE),
        (0x5010, (TABLES + 0x6000) | TABLE),
        (0x6000, (FRAMES + 0x4000) | 0x67),
        // The last 2 MiB of the first segment, so that one access may reach into the second.
        (0x1018, (TABLES + 0x7000) | TABLE),
        (0x7ff8, LARGE_GLOBAL),
    ] {
        put(TABLES + place, entry);
    }
    (0..SEGMENTS).for_each(|segment| put(TABLES + 0x1000 + 32 * segment, (TABLES + 0x2000) | TABLE));
    (0..4).for_each(|page| put(TABLES + 0x3000 + 8 * page, frame(page) | kind));
}

/// A machine whose pages at [`DATA`] are of a kind, [`GLOBAL`] or [`LOCAL`].
fn machine(engine: &TranslateEngine, kind: u64, code: &[u8]) -> (Arc<dyn Vm>, Box<dyn Vcpu>) {
    let vm = engine.create_vm().unwrap();
    let ram = Arc::new(RamBlock::new(RAM).unwrap());
    vm.memory().set_memslot(0, 0, RAM, ram, 0, false, false).unwrap();
    vm.memslots_changed().unwrap();
    fill(&*vm, kind, code);
    let vcpu = kernel_mode(&*vm);
    (vm, vcpu)
}

fn fill(vm: &dyn Vm, kind: u64, code: &[u8]) {
    let put = |gpa: u64, value: u64| vm.memory().write(gpa, &value.to_le_bytes()).unwrap();
    fill_tables(&put, kind);
    for number in 0..16u8 {
        vm.memory().write(FRAMES + 0x1000 * u64::from(number), &[number * 0x11; 0x1000]).unwrap();
    }
    vm.memory().write(0x20_0000, &[0xee; 0x20_0000]).unwrap();
    let kernel = [0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
    let user = [0x00cf_f300_0000_ffff, 0x00af_fb00_0000_ffff];
    (GDT + 8..).step_by(8).zip([kernel, user].concat()).for_each(|(place, raw)| put(place, raw));
    put(TSS + 4, DATA + 0x3800);
    for vector in 0..32u8 {
        let at = DIRECT + HANDLERS + 32 * u64::from(vector);
        let gate = IDT + 16 * u64::from(vector);
        put(gate, at & 0xffff | 8 << 16 | 0x8e00 << 32 | (at >> 16 & 0xffff) << 48);
        put(gate + 8, at >> 32);
        vm.memory().write(at & 0xffff, &handler(vector)).unwrap();
    }
    vm.memory().write(CODE, &[code, &END].concat()).unwrap();
}

fn kernel_mode(vm: &dyn Vm) -> Box<dyn Vcpu> {
    let mut vcpu = vm.create_vcpu(0).unwrap();
    let tr = Segment {
        base: DIRECT + TSS,
        limit: 0x67,
        selector: 0x28,
        kind: 11,
        present: true,
        ..Segment::default()
    };
    let plain = long_mode::sregs(TABLES, 0);
    let sregs = Sregs {
        cr0: plain.cr0 | 1 << 16,
        cr4: plain.cr4 | 1 << 21,
        tr,
        gdt: DescriptorTable { base: DIRECT + GDT, limit: 0x27 },
        idt: DescriptorTable { base: DIRECT + IDT, limit: 0xfff },
        ..plain
    };
    vcpu.set_sregs(&sregs).unwrap();
    let mut regs = Regs { rip: DIRECT + CODE, rflags: 2, ..Regs::default() };
    regs.gpr[3] = DATA;
    regs.gpr[4] = DATA + 0x3800;
    regs.gpr[5] = DIRECT;
    regs.gpr[6] = (FRAMES + 0x5000) | GLOBAL;
    regs.gpr[7] = DIRECT + TABLES + 0x3000;
    regs.gpr[12] = OTHER;
    regs.gpr[13] = USER;
    vcpu.set_regs(&regs).unwrap();
    vcpu
}

/// The outputs, the same with windows and without.
fn both_of(kind: u64, code: &[&[u8]]) -> Vec<(u64, u64)> {
    let engine = || TranslateEngine::new().unwrap().without(Optimisation::WindowPolicy);
    let run = |engine: TranslateEngine| {
        let (_vm, mut vcpu) = machine(&engine, kind, &code.concat());
        (outputs(&mut *vcpu), vcpu.statistics()["vcpu.window_faults"])
    };
    let (with, faults) = run(engine());
    let (without, none) = run(engine().without(Optimisation::KernelWindows));
    assert_eq!(with, without);
    assert!(faults > none, "{faults} {none}");
    with
}

fn both(code: &[&[u8]]) -> Vec<(u64, u64)> {
    both_of(GLOBAL, code)
}

/// What a fault puts out.
fn fault(vector: u64, address: u64) -> Vec<(u64, u64)> {
    vec![(0x80, vector), (0x81, address & 0xffff_ffff)]
}

#[test]
fn another_frame_is_seen_after_a_flush() {
    for flush in [&INVLPG[..], &TOGGLE_GLOBAL, &INVPCID_ALL] {
        let out = both(&[&SHOW, &STORE, &SHOW, &MAP, flush, &SHOW, &STORE, &SHOW]);
        assert_eq!(out, shown(&[0, 0x77, 0x5555_5555, 0x5555_5577]));
    }
}

#[test]
fn another_frame_of_a_page_that_is_not_global_is_seen_after_a_load_of_cr3() {
    let out = both_of(LOCAL, &[&SHOW, &STORE, &MAP, &RELOAD, &SHOW, &STORE, &SHOW]);
    assert_eq!(out, shown(&[0, 0x5555_5555, 0x5555_5577]));
}

#[test]
fn what_flushes_leave_as_it_was_stays() {
    let faults = |flush: &[u8]| {
        let engine = TranslateEngine::new().unwrap();
        let code = [&SHOW[..], &STORE, flush, &SHOW, &STORE, flush, &SHOW].concat();
        let (_vm, mut vcpu) = machine(&engine, LOCAL, &code);
        assert_eq!(outputs(&mut *vcpu), shown(&[0, 0x77, 0x77]));
        vcpu.statistics()["vcpu.window_faults"]
    };
    let unflushed = faults(&[0x90]);
    assert!(unflushed > 0);
    assert_eq!([faults(&RELOAD), faults(&INVPCID_ALL)], [unflushed; 2]);
    assert!(faults(&TOGGLE_GLOBAL) > unflushed);
}

#[test]
fn any_address_in_a_large_page_drops_all_of_it() {
    // mov eax,[rbx+0x200000]: LARGE; out; mov eax,[rbx+0x3ff000]; out
    let show: &[u8] = &[0x8b, 0x83, 0, 0, 0x20, 0, 0xe7, 0x80, 0x8b, 0x83, 0, 0xf0, 0x3f, 0, 0xe7, 0x80];
    // mov dword [rbp+TABLES+0x2010],0x1e3; invlpg [rbx+0x245678]
    let map: &[u8] = &[0xc7, 0x85, 0x10, 0x20, 8, 0, 0xe3, 1, 0, 0];
    let invlpg: &[u8] = &[0x0f, 0x01, 0xbb, 0x78, 0x56, 0x24, 0];
    let out = both(&[show, map, invlpg, show]);
    assert_eq!(out, shown(&[0xeeee_eeee, 0xeeee_eeee, 0, 0]));
}

#[test]
fn a_page_that_becomes_read_only_takes_stores_only_without_write_protection() {
    // and dword [rdi],-3
    let protect: &[u8] = &[0x83, 0x27, 0xfd];
    let out = both(&[&STORE, protect, &INVLPG, &SHOW, &STORE]);
    assert_eq!(out, [shown(&[0x77]), fault(14, DATA)].concat());
    // mov rax,cr0; btr eax,16; mov cr0,rax; mov dword [rbx],5
    let permit: &[u8] = &[0x0f, 0x20, 0xc0, 0x0f, 0xba, 0xf0, 16, 0x0f, 0x22, 0xc0, 0xc7, 3, 5, 0, 0, 0];
    assert_eq!(both(&[protect, &INVLPG, &SHOW, permit, &SHOW]), shown(&[0, 5]));
    // bts eax,16; mov cr0,rax
    let forbid: &[u8] = &[0x0f, 0x20, 0xc0, 0x0f, 0xba, 0xe8, 16, 0x0f, 0x22, 0xc0];
    let out = both(&[protect, &INVLPG, permit, &SHOW, forbid, &SHOW, &STORE]);
    assert_eq!(out, [shown(&[5, 5]), fault(14, DATA)].concat());
}

#[test]
fn a_page_that_goes_faults() {
    let out = both(&[&SHOW, &[0x31, 0xf6], &MAP, &INVLPG, &SHOW]);
    assert_eq!(out, [shown(&[0]), fault(14, DATA)].concat());
}

#[test]
fn stores_to_code_by_another_address_are_heard_of() {
    // FUNCTION: mov eax,1; ret. call it; out
    let write: &[u8] = &[0xc7, 0x85, 0, 0x20, 0, 0, 0xb8, 1, 0, 0, 0xc7, 0x85, 4, 0x20, 0, 0, 0, 0xc3, 0, 0];
    let call = |at: u64| {
        let distance = (FUNCTION as i64 - at as i64 - 5) as i32;
        [&[0xe8][..], &distance.to_le_bytes(), &[0xe7, 0x80]].concat()
    };
    // mov byte [r12+FUNCTION+1],n: by another segment; mov byte [rbp+FUNCTION+1],n: where it runs
    let far = |n: u8| [0x41, 0xc6, 0x84, 0x24, 1, 0x20, 0, 0, n];
    let near = |n: u8| [0xc6, 0x85, 1, 0x20, 0, 0, n];
    let mut code = [write, &far(2), &near(3)].concat();
    for change in [&[0x90][..], &far(4), &near(5), &far(6)] {
        code.extend(change);
        let at = CODE + code.len() as u64;
        code.extend(call(at));
    }
    assert_eq!(both(&[&code]), shown(&[3, 4, 5, 6]));
}

#[test]
fn a_program_memory_is_out_of_reach_without_override() {
    // mov eax,[r13]; out
    let show: &[u8] = &[0x41, 0x8b, 0x45, 0, 0xe7, 0x80];
    assert_eq!(both(&[&SHOW, show]), [shown(&[0]), fault(14, USER)].concat());
    let (stac, clac): (&[u8], &[u8]) = (&[0x0f, 0x01, 0xcb], &[0x0f, 0x01, 0xca]);
    let out = both(&[&SHOW, stac, show, &SHOW, clac, &SHOW, show]);
    assert_eq!(out, [shown(&[0, 0x4444_4444, 0, 0]), fault(14, USER)].concat());
}

#[test]
fn a_kernel_without_smap_reads_a_programs_memory_all_the_same() {
    // Twenty times: mov eax,[r13]; out; inc byte [r13]; mov eax,[rbx]; out
    let turn: &[u8] = &[0x41, 0x8b, 0x45, 0, 0xe7, 0x80, 0x41, 0xfe, 0x45, 0];
    let code = [&[0xb9, 20, 0, 0, 0][..], turn, &SHOW, &[0xff, 0xc9, 0x75, 0xee]].concat();
    let run = |engine: TranslateEngine| {
        let (_vm, mut vcpu) = machine(&engine, GLOBAL, &code);
        let sregs = vcpu.sregs().unwrap();
        vcpu.set_sregs(&Sregs { cr4: sregs.cr4 & !(1 << 21), ..sregs }).unwrap();
        (outputs(&mut *vcpu), vcpu.statistics()["vcpu.window_declined"])
    };
    let (out, declined) = run(TranslateEngine::new().unwrap());
    let expected: Vec<u64> = (0..20).flat_map(|turn| [0x4444_4444 + turn, 0]).collect();
    assert_eq!(out, shown(&expected));
    // The block does without windows after a few.
    assert!((1..20).contains(&declined), "{declined}");
    assert_eq!(run(TranslateEngine::new().unwrap().without(Optimisation::KernelWindows)).0, out);
}

#[test]
fn addresses_that_are_not_canonical_are_refused() {
    for address in
        [0x7fff_ff80_0020_0000u64, 0x0000_ff80_0020_0000, 0xff7f_ff80_0020_0000, 0xffff_0000_0000_0000]
    {
        // mov rdx,address; mov eax,[rdx]
        let code = [&[0x48, 0xba][..], &address.to_le_bytes(), &[0x8b, 0x02]].concat();
        assert_eq!(both(&[&SHOW, &code]), [shown(&[0]), fault(13, 0)].concat(), "{address:#x}");
    }
}

#[test]
fn a_program_cannot_use_the_kernels_windows() {
    for address in [DATA, 0x7fff_ff80_0020_0000u64, 0xffff_0000_0020_0000] {
        let vector = if address == DATA { 14 } else { 13 };
        // In the program's page: mov eax,[rdx]
        let put: &[u8] = &[0x0f, 0x01, 0xcb, 0x66, 0x41, 0xc7, 0x45, 0, 0x8b, 0x02, 0x0f, 0x01, 0xca];
        // mov rdx,address; push 0x1b; push 0; push 2; push 0x23; push r13; iretq
        let load = [&[0x48, 0xba][..], &address.to_le_bytes()].concat();
        let go: &[u8] = &[0x6a, 0x1b, 0x6a, 0, 0x6a, 2, 0x6a, 0x23, 0x41, 0x55, 0x48, 0xcf];
        let out = both(&[&SHOW, put, &load, go]);
        let cr2 = if vector == 14 { DATA } else { 0 };
        assert_eq!(out, [shown(&[0]), fault(vector, cr2)].concat());
    }
}

#[test]
fn accesses_reach_all_pages_and_segments_they_lie_in() {
    // mov eax,[rbx+0xffe]; out; add dword [rbx+0xffe],0x10001; mov eax,[rbx+0xffe]; out
    let load: &[u8] = &[0x8b, 0x83, 0xfe, 0x0f, 0, 0, 0xe7, 0x80];
    let add: &[u8] = &[0x81, 0x83, 0xfe, 0x0f, 0, 0, 1, 0, 1, 0];
    assert_eq!(both(&[load, add, load]), shown(&[0x2222_0000, 0x2223_0001]));
    // lea rdx,[r12-2]; mov word [rdx],0x1234; mov word [rdx+2],0x5678; mov eax,[rdx]; out; mov eax,[rdx+0x100002]; out
    let across: &[u8] = &[
        0x49, 0x8d, 0x54, 0x24, 0xfe, 0x66, 0xc7, 2, 0x34, 0x12, 0x66, 0xc7, 0x42, 2, 0x78, 0x56, 0x8b, 2,
        0xe7, 0x80, 0x8b, 0x82, 2, 0, 0x10, 0, 0xe7, 0x80,
    ];
    assert_eq!(both(&[across]), shown(&[0x5678_1234, 0]));
}

#[test]
fn an_operand_may_have_its_address_in_the_displacement() {
    // mov eax,[rip to DATA+0x1000]; out
    let distance = (DATA + 0x1000 - (DIRECT + CODE + 6)) as u32;
    let relative = [&[0x8b, 0x05][..], &distance.to_le_bytes(), &[0xe7, 0x80]].concat();
    // The address as a base and an index: mov rdx,DATA>>3; mov eax,[rdx*8+0x1000]; out
    let index =
        [&[0x48, 0xba][..], &(DATA >> 3).to_le_bytes(), &[0x8b, 0x04, 0xd5, 0, 0x10, 0, 0, 0xe7, 0x80]]
            .concat();
    // lea rdx,[rbx+0x40000000]; mov eax,[rdx-0x3ffff000]; out
    let far: &[u8] = &[0x48, 0x8d, 0x93, 0, 0, 0, 0x40, 0x8b, 0x82, 0, 0x10, 0, 0xc0, 0xe7, 0x80];
    assert_eq!(both(&[&relative, &index, far]), shown(&[0x2222_2222; 3]));
}

#[test]
fn a_device_is_asked_each_time() {
    // mov eax,[rbx+0x400000]; out; mov [rbx+0x400004],eax: ten times
    let once: &[u8] = &[0x8b, 0x83, 0, 0, 0x40, 0, 0xe7, 0x80, 0x89, 0x83, 4, 0, 0x40, 0];
    let out = both(&[&SHOW, &once.repeat(10)]);
    let expected = [(DEVICE_GPA, 0), (0x80, 0x1234_5678), (DEVICE_GPA + 4, 0x1234_5678)].repeat(10);
    assert_eq!(out[1..], expected);
    assert_eq!(DEVICE, DATA + 0x40_0000);
}

#[test]
fn there_may_be_more_segments_than_windows() {
    // mov rdx,rbp; mov rsi,1<<32; mov ecx,100; xor eax,eax
    let begin: &[u8] =
        &[0x48, 0x89, 0xea, 0x48, 0xbe, 0, 0, 0, 0, 1, 0, 0, 0, 0xb9, 100, 0, 0, 0, 0x31, 0xc0];
    // l: inc dword [rdx+0xf000]; add eax,[rdx+0xf000]; add rdx,rsi; dec ecx; jnz l; out
    let turn: &[u8] = &[
        0xff, 0x82, 0, 0xf0, 0, 0, 3, 0x82, 0, 0xf0, 0, 0, 0x48, 1, 0xf2, 0xff, 0xc9, 0x75, 0xed, 0xe7, 0x80,
    ];
    assert_eq!(both(&[begin, turn]), shown(&[5050]));
    assert_eq!(ZERO, 0xf000);
}

#[test]
fn other_memory_in_a_slot_is_seen() {
    let engine = TranslateEngine::new().unwrap();
    let (vm, mut vcpu) = machine(&engine, GLOBAL, &[&SHOW[..], &STORE, &SHOW, &SHOW].concat());
    let shows = |vcpu: &mut dyn Vcpu| vcpu.run().unwrap();
    let out = |data: u64| Exit::PioOut { port: 0x80, size: 4, data };
    assert_eq!([shows(&mut *vcpu), shows(&mut *vcpu)], [out(0), out(0x77)]);
    let ram = Arc::new(RamBlock::new(RAM).unwrap());
    vm.memory().set_memslot(0, 0, RAM, ram, 0, false, false).unwrap();
    vm.memslots_changed().unwrap();
    fill(&*vm, GLOBAL, &[&SHOW[..], &STORE, &SHOW, &SHOW].concat());
    assert_eq!(shows(&mut *vcpu), out(0));
}

#[test]
fn a_kernel_whose_memory_is_not_global_has_no_windows_for_long() {
    // Each of 600 pages is read, and CR3 loaded: mov eax,[rdx]; mov rax,cr3; mov cr3,rax; add rdx,0x1000
    const PAGES: u64 = 600;
    let code: &[u8] = &[
        0xb9, 0x58, 2, 0, 0, 0x48, 0x8d, 0x93, 0, 0, 0x20, 0, // mov ecx,600; lea rdx,[rbx+0x200000]
        0x8b, 2, 0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8, // l: mov eax,[rdx]; mov rax,cr3; mov cr3,rax
        0x48, 0x81, 0xc2, 0, 0x10, 0, 0, 0xff, 0xc9, 0x75, 0xed, // add rdx,0x1000; dec ecx; jnz l
    ];
    let engine = TranslateEngine::new().unwrap();
    let (vm, mut vcpu) = machine(&engine, LOCAL, &[code, &SHOW].concat());
    let put = |gpa: u64, value: u64| vm.memory().write(gpa, &value.to_le_bytes()).unwrap();
    (0..2).for_each(|table| put(TABLES + 0x2010 + 8 * table, (TABLES + 0x1_0000 + 0x1000 * table) | 7));
    // Pages in a row lie in frames apart, so that each is a run.
    (0..PAGES).for_each(|page| put(TABLES + 0x1_0000 + 8 * page, (0x10_0000 + 0x3000 * (page % 80)) | LOCAL));
    assert_eq!(outputs(&mut *vcpu), shown(&[0]));
    let faults = vcpu.statistics()["vcpu.window_faults"];
    assert!((100..PAGES + 20).contains(&faults), "{faults}");
}

//! What 64-bit kernels do at each entry: the same with the forms that stay in the cache and without them. As
//! `entries.rs`, in long mode.
#![allow(clippy::unwrap_used)]

#[path = "long_mode/faults.rs"]
mod faults;
mod long_mode;

use std::sync::Arc;
use sublet_engine::{DescriptorTable, Engine, Exit, MsrEntry, Regs, Segment, Sregs, Vcpu, Vm};
use sublet_memory::RamBlock;
use sublet_translate::optimisations::Optimisation;
use sublet_translate::TranslateEngine;

const RAM: u64 = 4 << 20;
const GDT: u64 = 0x8000;
const IDT: u64 = 0x9000;
const TSS: u64 = 0xa000;
const CODE: u64 = 0x1_0000;
const HANDLERS: u64 = 0x1_8000;
const STACK: u64 = 0x3_0000;
const ENTRY: u64 = 0x1_4000;
const FAULTS: faults::Places = faults::Places { idt: IDT, handlers: HANDLERS, stack: STACK, code: CODE };
const INPUTS: u64 = 0x10_0000;
const TABLES: u64 = 0x20_0000;
const CR4_FSGSBASE: u64 = 1 << 16;

/// The descriptors of the GDT from selector 8 on: kernel code, kernel data, user code, user data, and the
/// 16 bytes of the TSS.
const DESCRIPTORS: [u64; 5] = [
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x00af_fb00_0000_ffff,
    0x00cf_f300_0000_ffff,
    0x0000_8b00_0000_0067 | TSS << 16,
];

/// The kernel's SYSCALL entry: `out 0x80,eax; mov esp,STACK; jmp CODE`.
fn entry() -> Vec<u8> {
    let mut code = vec![0xe7, 0x80, 0xbc];
    code.extend((STACK as u32).to_le_bytes());
    code.push(0xe9);
    code.extend((CODE.wrapping_sub(ENTRY + 12) as u32).to_le_bytes());
    code
}

fn machine(engine: &TranslateEngine, code: &[u8], inputs: &[u64]) -> (Arc<dyn Vm>, Box<dyn Vcpu>) {
    let vm = engine.create_vm().unwrap();
    let ram = Arc::new(RamBlock::new(RAM).unwrap());
    vm.memory().set_memslot(0, 0, RAM, ram, 0, false, false).unwrap();
    vm.memslots_changed().unwrap();
    let put = |gpa: u64, value: u64| vm.memory().write(gpa, &value.to_le_bytes()).unwrap();
    put(TABLES, (TABLES + 0x1000) | 7);
    put(TABLES + 0x1000, (TABLES + 0x2000) | 7);
    put(TABLES + 0x2000, 0x87);
    put(TABLES + 0x2008, 0x20_0087);
    (GDT + 8..).step_by(8).zip(DESCRIPTORS).for_each(|(place, raw)| put(place, raw));
    put(TSS + 4, STACK);
    faults::put(vm.memory(), &FAULTS);
    let mut program = code.to_vec();
    program.push(0xe9);
    program.extend((-(program.len() as i32 + 4)).to_le_bytes());
    vm.memory().write(CODE, &program).unwrap();
    vm.memory().write(USER, &PROGRAM).unwrap();
    vm.memory().write(ENTRY, &entry()).unwrap();
    (INPUTS..).step_by(8).zip(inputs).for_each(|(place, &input)| put(place, input));
    let mut vcpu = vm.create_vcpu(0).unwrap();
    start(vcpu.as_mut());
    (vm, vcpu)
}

fn start(vcpu: &mut dyn Vcpu) {
    let flat = long_mode::sregs(TABLES, 0);
    let sregs = Sregs {
        gdt: DescriptorTable { base: GDT, limit: 0x37 },
        idt: DescriptorTable { base: IDT, limit: 0x1ff },
        tr: Segment { base: TSS, kind: 11, limit: 0x67, selector: 0x28, present: true, ..Segment::default() },
        cr4: flat.cr4 | CR4_FSGSBASE,
        efer: flat.efer | 1,
        ..flat
    };
    vcpu.set_sregs(&sregs).unwrap();
    // STAR, LSTAR; SFMASK stays 0: SYSCALL keeps the flags to be compared.
    let calls = [(0xc000_0081, 0x10_0008 << 32), (0xc000_0082, ENTRY)];
    vcpu.set_msrs(&calls.map(|(index, value)| MsrEntry { index, value })).unwrap();
    let mut regs = Regs { rip: CODE, rflags: 2, ..Regs::default() };
    regs.gpr[4] = STACK;
    regs.gpr[6] = INPUTS;
    vcpu.set_regs(&regs).unwrap();
}

/// The registers after each of `steps` inputs, and how many instructions compiled code carried out.
fn trace(engine: &TranslateEngine, code: &[u8], inputs: &[u64], steps: usize) -> (Vec<String>, u64) {
    let (_vm, mut vcpu) = machine(engine, code, inputs);
    let seen = (0..steps).map(|step| {
        let exit = vcpu.run().unwrap();
        assert!(matches!(exit, Exit::PioOut { port: 0x80, .. }), "step {step}: {exit:?}");
        format!("{exit:x?} {:x?} {:x?}", vcpu.regs().unwrap(), vcpu.sregs().unwrap().segments)
    });
    let seen = seen.collect();
    (seen, vcpu.statistics().get("vcpu.system_instructions").copied().unwrap_or(0))
}

/// Both ways are the same at each step; the first one leaves the cache less often.
fn compare(code: &[u8], inputs: &[u64], steps: usize) {
    let without = TranslateEngine::new().unwrap().without(Optimisation::SystemInstructions);
    let (expected, all) = trace(&without, code, inputs, steps);
    let (seen, left) = trace(&TranslateEngine::new().unwrap(), code, inputs, steps);
    for (step, (seen, expected)) in seen.iter().zip(&expected).enumerate() {
        assert_eq!(seen, expected, "step {step}");
    }
    assert!(left < all, "{left} of {all}");
}

#[test]
fn segment_bases_are_read_and_written() {
    // mov rax,[rsi]; add rsi,8; rdfsbase ebx; wrfsbase rax; rdfsbase r11; wrgsbase eax; rdgsbase r8
    let access = [
        0x48, 0x8b, 0x06, 0x48, 0x83, 0xc6, 0x08, 0xf3, 0x0f, 0xae, 0xc3, 0xf3, 0x48, 0x0f, 0xae, 0xd0, 0xf3,
        0x49, 0x0f, 0xae, 0xc3, 0xf3, 0x0f, 0xae, 0xd8, 0xf3, 0x49, 0x0f, 0xae, 0xc8, 0xe7, 0x80,
    ];
    let edges: [u64; 8] =
        [0, 1, 0x7fff_ffff_ffff, 0x8000_0000_0000, !0, !0 << 47, !0 << 47 ^ 1 << 47, 0xffff_ffff_8000_0000];
    compare(&access, &edges, edges.len());
    let without = TranslateEngine::new().unwrap().without(Optimisation::SystemInstructions);
    let faults = trace(&without, &access, &edges, edges.len()).0;
    assert_eq!(faults.iter().filter(|step| step.contains("100d")).count(), 2);
}

#[test]
fn segment_registers_are_read_and_loaded() {
    // mov rax,[rsi]; add rsi,8; mov fs,eax; mov ebx,fs; mov es,ax; mov cx,es; push rax; pop gs; mov rdx,gs
    let access = [
        0x48, 0x8b, 0x06, 0x48, 0x83, 0xc6, 0x08, 0x8e, 0xe0, 0x8c, 0xe3, 0x8e, 0xc0, 0x66, 0x8c, 0xc1, 0x50,
        0x0f, 0xa9, 0x48, 0x8c, 0xea, 0xe7, 0x80,
    ];
    let selectors = [0x10, 0x10, 0x23, 0x23, 0, 3, 0x10, 0x23, 0x13, 0x08, 0x28, 0x38, 0x10, 0];
    compare(&access, &selectors, selectors.len());
}

#[test]
fn flags_are_popped() {
    // push qword [rsi]; add rsi,8; popfq; pushfq; pop rbx; out 0x80,eax
    let code = [0xff, 0x36, 0x48, 0x83, 0xc6, 0x08, 0x9d, 0x9c, 0x5b, 0xe7, 0x80];
    let images = (0..22).map(|bit| 1 << bit).chain([0x8d5, 0x202, 0x20_0000, 0xad7, 0, !0, 2, 0x246]);
    let images: Vec<u64> = images.collect();
    compare(&code, &images, images.len());
}

const USER: u64 = 0x2_0000;
/// What a program does to tell what it was returned to: `mov eax,0x55; syscall`.
const PROGRAM: [u8; 7] = [0xb8, 0x55, 0, 0, 0, 0x0f, 0x05];

/// RIP, CS, RFLAGS, RSP and SS to return to: mostly what kernels return to, each also with something else.
fn frames(steps: usize) -> Vec<u64> {
    const USUAL: [[u64; 5]; 5] = [
        [USER, 0x1b, 0x202, 0x3_8000, 0x23],
        [USER, 0x1b, 0x246, 0x3_8008, 0x23],
        [USER, 0x08, 0x2, 0x3_8010, 0x10],
        [USER, 0x08, 0x1_0097, 0x3_8000, 0],
        [USER, 0x1b, 0x1_0293, 0x3_8000, 0x23],
    ];
    const OTHER: [(usize, &[u64]); 4] = [
        (0, &[0x8000_0000_0000, USER, !0 << 47]),
        (1, &[0x0b, 0x18, 0x10, 0x23, 0, 3, 0x3b, 0x1_001b]),
        (2, &[0x40202, 0x3202, 0x4202, 0x602, 0x20_0202, 0x8_0202, 0x2_0202, 0]),
        (4, &[0x10, 0x13, 0, 3, 0x1b, 0x20, 0x3b, 0x7_0023]),
    ];
    let mut random = 1u64;
    let mut below = move |bound: usize| {
        random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (random >> 33) as usize % bound
    };
    let mut inputs = Vec::new();
    for _ in 0..steps {
        let mut frame = USUAL[below(USUAL.len())];
        if below(3) == 0 {
            let (word, values) = OTHER[below(OTHER.len())];
            frame[word] = values[below(values.len())];
        }
        inputs.extend(frame);
    }
    inputs
}

/// ES and DS are null, as a 64-bit kernel has them; or hold the kernel's data, which a return drops.
fn returning(data: u8) -> Vec<u8> {
    // mov ax,data; mov es,eax; mov ds,eax; mov fs,eax; mov gs,eax
    let mut code = vec![0x66, 0xb8, data, 0, 0x8e, 0xc0, 0x8e, 0xd8, 0x8e, 0xe0, 0x8e, 0xe8];
    // push qword [rsi+32], +24, +16, +8, 0; add rsi,40; iretq
    code.extend([0xff, 0x76, 0x20, 0xff, 0x76, 0x18, 0xff, 0x76, 0x10, 0xff, 0x76, 0x08, 0xff, 0x36]);
    code.extend([0x48, 0x83, 0xc6, 0x28, 0x48, 0xcf]);
    code
}

#[test]
fn interrupts_return_to_what_the_frame_says() {
    const STEPS: usize = 1200;
    for data in [0, 0x10, 0x23] {
        compare(&returning(data), &frames(STEPS), STEPS);
    }
    let without = TranslateEngine::new().unwrap().without(Optimisation::InterruptReturns);
    let (expected, all) = trace(&without, &returning(0), &frames(STEPS), STEPS);
    let (seen, left) = trace(&TranslateEngine::new().unwrap(), &returning(0), &frames(STEPS), STEPS);
    assert!(seen == expected && left + STEPS as u64 / 2 < all, "{left} of {all}");
}

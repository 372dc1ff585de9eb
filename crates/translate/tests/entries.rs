//! What 32-bit kernels do at each entry: the same with the forms that stay in the cache and without them.
//!
//! A guest program works through a table of inputs and leaves for the test after each; its registers are then
//! compared with those of the same program whose system instructions compiled code carries out.
#![allow(clippy::unwrap_used)]

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
const USER: u64 = 0x2_0000;
const STACK: u64 = 0x3_0000;
const USER_STACK: u64 = 0x4_0000;
const INPUTS: u64 = 0x10_0000;
/// A descriptor that the program writes anew for each input, in the GDT and in the LDT.
const SLOT: u16 = 0x28;
const LDT: u64 = 0xb000;

const KERNEL_CODE: u16 = 0x08;
const KERNEL_DATA: u16 = 0x10;
const USER_DATA: u16 = 0x23;

/// Put the program's code at `at`, and let it jump to `back` at its end.
fn place(vm: &dyn Vm, at: u64, code: &[u8], back: u64) {
    let end = at + code.len() as u64;
    vm.memory().write(at, code).unwrap();
    vm.memory().write(end, &[0xe9]).unwrap();
    vm.memory().write(end + 1, &(back.wrapping_sub(end + 5) as u32).to_le_bytes()).unwrap();
}

/// A handler of a fault: `mov esp,STACK; mov eax,0x1000+vector; out 0x80,eax`, then the next input.
fn handler(vector: u8) -> Vec<u8> {
    let mut code = vec![0xbc];
    code.extend((STACK as u32).to_le_bytes());
    code.extend([0xb8, vector, 0x10, 0, 0, 0xe7, 0x80]);
    code
}

fn machine(
    engine: &TranslateEngine,
    kernel: &[u8],
    user: &[u8],
    inputs: &[u32],
) -> (Arc<dyn Vm>, Box<dyn Vcpu>) {
    let vm = engine.create_vm().unwrap();
    let ram = Arc::new(RamBlock::new(RAM).unwrap());
    vm.memory().set_memslot(0, 0, RAM, ram, 0, false, false).unwrap();
    vm.memslots_changed().unwrap();
    let put = |gpa: u64, value: u64| vm.memory().write(gpa, &value.to_le_bytes()).unwrap();
    put(GDT + 0x08, 0x00cf_9b00_0000_ffff);
    put(GDT + 0x10, 0x00cf_9300_0000_ffff);
    put(GDT + 0x18, 0x00cf_fb00_0000_ffff);
    put(GDT + 0x20, 0x00cf_f300_0000_ffff);
    put(TSS + 4, STACK);
    put(TSS + 8, u64::from(KERNEL_DATA));
    for vector in [0u8, 1, 3, 6, 10, 11, 12, 13, 14, 17, 0x80] {
        let at = HANDLERS + 32 * u64::from(vector);
        let gate = at & 0xffff | u64::from(KERNEL_CODE) << 16 | 0xee00 << 32 | (at >> 16) << 48;
        put(IDT + 8 * u64::from(vector), gate);
        place(vm.as_ref(), at, &handler(vector), CODE);
    }
    place(vm.as_ref(), CODE, kernel, CODE);
    place(vm.as_ref(), USER, user, USER);
    for (place, input) in (INPUTS..).step_by(4).zip(inputs) {
        vm.memory().write(place, &input.to_le_bytes()).unwrap();
    }
    let mut vcpu = vm.create_vcpu(0).unwrap();
    start(vcpu.as_mut());
    (vm, vcpu)
}

fn flat(selector: u16, kind: u8) -> Segment {
    let dpl = (selector & 3) as u8;
    Segment {
        limit: u32::MAX,
        selector,
        kind,
        present: true,
        dpl,
        s: true,
        db: true,
        g: true,
        ..Segment::default()
    }
}

/// Level 0 at `CODE`, ESI at the inputs, EDI at the slot in the GDT.
fn start(vcpu: &mut dyn Vcpu) {
    let data = flat(USER_DATA, 3);
    let system = |base, kind, limit| Segment {
        base,
        kind,
        limit,
        selector: 0x60,
        present: true,
        ..Segment::default()
    };
    let sregs = Sregs {
        segments: [data, flat(KERNEL_CODE, 11), flat(KERNEL_DATA, 3), data, data, data],
        gdt: DescriptorTable { base: GDT, limit: 0x37 },
        idt: DescriptorTable { base: IDT, limit: 0x7ff },
        tr: system(TSS, 11, 0x67),
        ldtr: system(LDT, 2, 0x2f),
        cr0: 0x33,
        ..Sregs::default()
    };
    vcpu.set_sregs(&sregs).unwrap();
    let entry = [(0x174, u64::from(KERNEL_CODE)), (0x175, STACK), (0x176, CODE)];
    vcpu.set_msrs(&entry.map(|(index, value)| MsrEntry { index, value })).unwrap();
    let mut regs = Regs { rip: CODE, rflags: 2, ..Regs::default() };
    regs.gpr[4] = STACK;
    regs.gpr[6] = INPUTS;
    regs.gpr[7] = GDT + u64::from(SLOT);
    vcpu.set_regs(&regs).unwrap();
}

/// The registers after each of `steps` inputs, and how many instructions compiled code carried out.
fn trace(
    engine: &TranslateEngine,
    kernel: &[u8],
    user: &[u8],
    inputs: &[u32],
    steps: usize,
) -> (Vec<String>, u64) {
    let (_vm, mut vcpu) = machine(engine, kernel, user, inputs);
    let seen = (0..steps).map(|step| {
        let exit = vcpu.run().unwrap();
        assert!(matches!(exit, Exit::PioOut { port: 0x80, .. }), "step {step}: {exit:?}");
        format!("{exit:x?} {:x?} {:x?}", vcpu.regs().unwrap(), vcpu.sregs().unwrap().segments)
    });
    let seen = seen.collect();
    (seen, vcpu.statistics().get("vcpu.system_instructions").copied().unwrap_or(0))
}

/// Both ways are the same at each step; the first one leaves the cache less often.
fn compare(kernel: &[u8], user: &[u8], inputs: &[u32], steps: usize) {
    let without = TranslateEngine::new().unwrap().without(Optimisation::SystemInstructions);
    let (expected, all) = trace(&without, kernel, user, inputs, steps);
    let (seen, left) = trace(&TranslateEngine::new().unwrap(), kernel, user, inputs, steps);
    for (step, (seen, expected)) in seen.iter().zip(&expected).enumerate() {
        assert_eq!(seen, expected, "step {step}");
    }
    assert!(left < all, "{left} of {all}");
}

/// Numbers that look random, the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (self.0 >> 33) as usize % bound
    }
    fn pick<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}

/// Data and code, flat and not, present or not, of both levels.
const DESCRIPTORS: [u64; 14] = [
    0x00cf_9300_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x00cf_9200_0000_ffff,
    0x00cf_f300_0000_ffff,
    0x00cf_9100_0000_ffff,
    0x00cf_9700_0000_ffff,
    0x00cf_9b00_0000_ffff,
    0x00cf_1300_0000_ffff,
    0x0040_9300_0000_ffff,
    0x00cf_9302_0000_ffff,
    0x00df_9300_0000_ffff,
    0x008f_9300_0000_ffff,
    0x0000_8900_0000_ffff,
];
const SELECTORS: [u16; 9] = [SLOT, SLOT, SLOT, SLOT | 3, SLOT | 4, KERNEL_DATA, USER_DATA, 0x38, KERNEL_CODE];

/// (descriptor, selector) to load, most of them several times in a row.
fn segment_inputs(steps: usize) -> Vec<u32> {
    let mut random = Random(1);
    let mut inputs = Vec::new();
    while inputs.len() < 3 * steps {
        let (raw, null) = (random.pick(&DESCRIPTORS), random.below(5) == 0);
        let selector = if null { random.below(4) as u16 } else { random.pick(&SELECTORS) };
        for _ in 0..random.below(4) + 1 {
            inputs.extend([raw as u32, (raw >> 32) as u32, u32::from(selector)]);
        }
    }
    inputs
}

/// `lodsd; mov [edi],eax; lodsd; mov [edi+4],eax; lodsd`, the load of a segment register from AX, its selector
/// and `fs:[8]` read: `mov eax,sreg; mov ebx,fs:[8]; out 0x80,eax`. The descriptor lies in both tables.
fn loading(load: &[u8], read: &[u8]) -> Vec<u8> {
    let mut code = vec![0xad, 0x89, 0x07, 0x89, 0x87, 0, 0x30, 0, 0, 0xad, 0x89, 0x47, 0x04];
    code.extend([0x89, 0x87, 0x04, 0x30, 0, 0, 0xad]);
    code.extend(load);
    code.extend(read);
    code.extend([0xe7, 0x80]);
    code
}

const STEPS: usize = 1500;

#[test]
fn fs_and_gs_are_loaded_as_the_descriptor_says() {
    // mov eax,fs; mov ebx,fs:[8]
    compare(
        &loading(&[0x8e, 0xe0], &[0x8c, 0xe0, 0x64, 0x8b, 0x1d, 8, 0, 0, 0]),
        &[],
        &segment_inputs(STEPS),
        STEPS,
    );
    // push eax; pop gs; mov ax,gs; mov gs:[16],eax
    let read = [0x66, 0x8c, 0xe8, 0x65, 0xa3, 16, 0, 0, 0];
    compare(&loading(&[0x50, 0x0f, 0xa9], &read), &[], &segment_inputs(STEPS), STEPS);
}

#[test]
fn es_is_loaded_as_the_descriptor_says() {
    // mov es,ax; push es; pop ebx; mov [0x3000],es; mov eax,es:[8]; push ds; pop es
    let load = [0x8e, 0xc0, 0x06, 0x5b, 0x8c, 0x05, 0, 0x30, 0, 0, 0x26, 0xa1, 8, 0, 0, 0, 0x1e, 0x07];
    compare(&loading(&load, &[]), &[], &segment_inputs(STEPS), STEPS);
}

const IF: u32 = 1 << 9;
const ID: u32 = 1 << 21;
/// TF, DF, IOPL, NT, RF, VM, AC, VIF, a bit that is always 1 and one that is always 0.
const RARE_FLAGS: [u32; 10] =
    [1 << 8, 1 << 10, 3 << 12, 1 << 14, 1 << 16, 1 << 17, 1 << 18, 1 << 19, 1 << 1, 1 << 5];

/// Images of the flags: mostly what programs and kernels have, some with any other one.
fn flag_inputs(steps: usize) -> Vec<u32> {
    let mut random = Random(2);
    let image = move |_| {
        let arithmetic = random.below(0x1000) as u32 & 0x8d5;
        let rare = if random.below(4) == 0 { random.pick(&RARE_FLAGS) } else { 0 };
        arithmetic | random.pick(&[0, IF, IF, ID, IF | ID]) | rare
    };
    (0..steps).map(image).collect()
}

#[test]
fn flags_are_popped_as_the_kernel_may() {
    // mov eax,[esi]; lea esi,[esi+4]; push eax; popfd; pushfd; pop ebx; out 0x80,eax
    let code = [0x8b, 0x06, 0x8d, 0x76, 0x04, 0x50, 0x9d, 0x9c, 0x5b, 0xe7, 0x80];
    compare(&code, &[], &flag_inputs(STEPS), STEPS);
}

#[test]
fn fast_calls_come_and_go() {
    // mov eax,esp; out 0x80,eax; mov edx,USER; mov ecx,USER_STACK; sti; sysexit
    let kernel = [0x89, 0xe0, 0xe7, 0x80, 0xba, 0, 0, 2, 0, 0xb9, 0, 0, 4, 0, 0xfb, 0x0f, 0x35];
    assert_eq!((USER, USER_STACK), (0x2_0000, 0x4_0000));
    // mov eax,[esi]; lea esi,[esi+4]; push eax; popfd; pushfd; pop ebx; mov ebp,esp; sysenter
    let user = [0x8b, 0x06, 0x8d, 0x76, 0x04, 0x50, 0x9d, 0x9c, 0x5b, 0x89, 0xe5, 0x0f, 0x34];
    compare(&kernel, &user, &flag_inputs(STEPS), STEPS);
}

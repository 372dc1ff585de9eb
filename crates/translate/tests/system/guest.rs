//! A vCPU with tables of its own, in 4 MiB of RAM mapped one to one.

use std::sync::Arc;
use sublet_memory::{GuestMemory, RamBlock};
use sublet_translate::cpu::Cpu;
use sublet_translate::state::{gpr, seg, SegmentRegister, TableRegister};
use sublet_translate::system::memory::AccessMode;
use sublet_translate::system::segment::Descriptor;

pub const RAM_BYTES: u64 = 4 << 20;
pub const PML4: u64 = 0x1000;
pub const PDPT: u64 = 0x2000;
pub const PD: u64 = 0x3000;
pub const PT: u64 = 0x4000;
pub const GDT: u64 = 0x8000;
pub const IDT: u64 = 0x9000;
pub const TSS: u64 = 0xa000;
pub const KERNEL_STACK: u64 = 0x2_0000;
pub const USER_STACK: u64 = 0x3_0008;
pub const IST1_STACK: u64 = 0x4_0000;
pub const HANDLER: u64 = 0x5_0000;

pub const KERNEL_CODE: u16 = 0x08;
pub const KERNEL_DATA: u16 = 0x10;
pub const USER_CODE_32: u16 = 0x1b;
pub const USER_DATA: u16 = 0x23;
pub const USER_CODE: u16 = 0x2b;
pub const TASK: u16 = 0x30;
pub const ABSENT_DATA: u16 = 0x40;
pub const CONFORMING_CODE: u16 = 0x48;
pub const KERNEL_CODE_32: u16 = 0x50;
pub const GATE: u16 = 0x60;
pub const EXECUTE_ONLY_CODE: u16 = 0x70;
pub const OTHER_TASK: u16 = 0x78;

pub const INTERRUPT: u64 = 0x8e;
pub const TRAP: u64 = 0x8f;
pub const USER_INTERRUPT: u64 = 0xee;

/// RAM from address 0, empty.
pub fn ram() -> Arc<GuestMemory> {
    let memory = GuestMemory::new();
    let block = Arc::new(RamBlock::new(RAM_BYTES).unwrap());
    memory.set_memslot(0, 0, RAM_BYTES, block, 0, false, false).unwrap();
    Arc::new(memory)
}

pub fn store(memory: &GuestMemory, gpa: u64, value: u64) {
    memory.write(gpa, &value.to_le_bytes()).unwrap();
}

pub fn load(memory: &GuestMemory, gpa: u64) -> u64 {
    memory.load_u64(gpa).unwrap()
}

/// Put a 64-bit gate in the IDT, with the handler at `HANDLER + 16 * vector`.
pub fn gate(cpu: &Cpu, vector: u64, attributes: u64, ist: u64) {
    let target = HANDLER + 16 * vector;
    let low = (target & 0xffff)
        | u64::from(KERNEL_CODE) << 16
        | ist << 32
        | attributes << 40
        | (target & 0xffff_0000) << 32;
    store(&cpu.memory, IDT + 16 * vector, low);
    store(&cpu.memory, IDT + 16 * vector + 8, target >> 32);
}

/// As [`gate`], 32-bit; `selector` of the handler.
pub fn gate_32(cpu: &Cpu, vector: u64, selector: u16, attributes: u64) {
    let target = HANDLER + 16 * vector;
    let low = (target & 0xffff) | u64::from(selector) << 16 | attributes << 40 | (target >> 16) << 48;
    store(&cpu.memory, IDT + 8 * vector, low);
}

fn tables(memory: &GuestMemory) {
    store(memory, PML4, PDPT | 7);
    store(memory, PDPT, PD | 7);
    store(memory, PD, PT | 7);
    for page in 0..512 {
        store(memory, PT + 8 * page, page << 12 | 7);
    }
    let descriptors = [
        (KERNEL_CODE, 0x00af_9b00_0000_ffff),
        (KERNEL_DATA, 0x00cf_9300_0000_ffff),
        (USER_CODE_32, 0x00cf_fb00_0000_ffff),
        (USER_DATA, 0x00cf_f300_0000_ffff),
        (USER_CODE, 0x00af_fb00_0000_ffff),
        (ABSENT_DATA, 0x00cf_1300_0000_ffff),
        (CONFORMING_CODE, 0x00af_9f00_0000_ffff),
        (KERNEL_CODE_32, 0x00cf_9b00_0000_ffff),
        (EXECUTE_ONLY_CODE, 0x00cf_9900_0000_ffff),
        (TASK, 0x0000_8900_0000_0067 | TSS << 16),
    ];
    for (selector, raw) in descriptors {
        store(memory, GDT + u64::from(selector & !7), raw);
    }
}

/// A register loaded with a descriptor of the guest's GDT.
pub fn segment(cpu: &Cpu, selector: u16) -> SegmentRegister {
    let address = GDT + u64::from(selector & !7);
    Descriptor { raw: load(&cpu.memory, address), address }.register(selector)
}

fn set_tables(cpu: &mut Cpu) {
    tables(&cpu.memory);
    cpu.state.gdtr = TableRegister { base: GDT, limit: 0xfff };
    cpu.state.idtr = TableRegister { base: IDT, limit: 0xfff };
    cpu.state.tr = SegmentRegister { base: TSS, limit: 0x67, selector: TASK, attributes: 0x8b };
    cpu.state.ldtr = SegmentRegister::default();
    cpu.state.rip = 0x6_0000;
    cpu.state.gpr[gpr::RSP] = KERNEL_STACK - 0x100;
    let data = segment(cpu, KERNEL_DATA);
    cpu.state.segments = [data; 6];
}

/// 64-bit mode at level 0, with gates for vectors 0 to 31 and paging for 2 MiB.
pub fn long() -> Cpu {
    let mut cpu = Cpu::new(ram());
    set_tables(&mut cpu);
    (cpu.state.cr0, cpu.state.cr3) = (0x8005_0033, PML4);
    (cpu.state.cr4, cpu.state.efer) = (0x6a0, 0xd01);
    cpu.state.segments[seg::CS] = segment(&cpu, KERNEL_CODE);
    store(&cpu.memory, TSS + 4, KERNEL_STACK);
    store(&cpu.memory, TSS + 36, IST1_STACK);
    cpu.state.star = 0x001b_0008 << 32;
    for vector in 0..32 {
        gate(&cpu, vector, INTERRUPT, 0);
    }
    cpu
}

/// As [`long`], at level 3.
pub fn long_user() -> Cpu {
    at_level_3(long(), USER_CODE)
}

fn at_level_3(mut cpu: Cpu, code: u16) -> Cpu {
    cpu.state.segments[seg::CS] = segment(&cpu, code);
    let data = segment(&cpu, USER_DATA);
    for register in [seg::SS, seg::DS, seg::ES] {
        cpu.state.segments[register] = data;
    }
    for register in [seg::FS, seg::GS] {
        cpu.state.segments[register] = SegmentRegister::default();
    }
    cpu.state.gpr[gpr::RSP] = USER_STACK;
    cpu.state.rflags = 0x202;
    cpu
}

/// 32-bit protected mode without paging, at level 0.
pub fn protected() -> Cpu {
    let mut cpu = Cpu::new(ram());
    set_tables(&mut cpu);
    cpu.state.cr0 = 0x33;
    cpu.state.segments[seg::CS] = segment(&cpu, KERNEL_CODE_32);
    store(&cpu.memory, TSS + 4, KERNEL_STACK | u64::from(KERNEL_DATA) << 32);
    for vector in 0..32 {
        gate_32(&cpu, vector, KERNEL_CODE_32, INTERRUPT);
    }
    cpu
}

/// As [`protected`], at level 3.
pub fn protected_user() -> Cpu {
    at_level_3(protected(), USER_CODE_32)
}

/// Words on the stack, the top first.
pub fn stack<const N: usize>(cpu: &mut Cpu, size: u8) -> [u64; N] {
    let (rsp, base) = (cpu.state.gpr[gpr::RSP], cpu.state.segments[seg::SS].base);
    std::array::from_fn(|index| {
        let la = base + rsp + index as u64 * u64::from(size);
        cpu.read_linear(la, size, AccessMode::System).unwrap()
    })
}

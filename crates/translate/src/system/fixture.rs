//! A small vCPU for the tests of this folder: 64-bit code at CPL 0 in 2 MiB of identity-mapped
//! RAM with 4 KiB pages.

use crate::cpu::{Cpu, Outcome};
use crate::frontend::decoder_options;
use crate::state::{flag, seg, SegmentRegister};
use crate::system::control::{cr0, cr4, efer};
use iced_x86::Decoder;
use std::sync::Arc;
use sublet_memory::{GuestMemory, RamBlock};

/// Bytes of RAM, from address 0.
pub(crate) const RAM: u64 = 2 << 20;
/// Where the tests' code lies.
pub(crate) const CODE: u64 = 0x1_0000;
/// Where data may lie, up to the end of RAM.
pub(crate) const DATA: u64 = 0x2_0000;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const DIRECTORY: u64 = 0x3000;
const TABLE: u64 = 0x4000;
const PRESENT_WRITABLE_USER: u64 = 7;

pub(crate) const CODE64: SegmentRegister =
    SegmentRegister { base: 0, limit: u32::MAX, selector: 8, attributes: 0xa09b };
pub(crate) const CODE32: SegmentRegister = SegmentRegister { attributes: 0xc09b, ..CODE64 };
pub(crate) const FLAT: SegmentRegister =
    SegmentRegister { base: 0, limit: u32::MAX, selector: 16, attributes: 0xc093 };

fn memory() -> Arc<GuestMemory> {
    let memory = Arc::new(GuestMemory::new());
    let ram = Arc::new(RamBlock::new(RAM).expect("host memory"));
    memory.set_memslot(0, 0, RAM, ram, 0, false, false).expect("memslot");
    memory
}

/// 64-bit code, CPL 0, paging on, all features of this host.
pub(crate) fn cpu64() -> Cpu {
    let mut cpu = Cpu::new(memory());
    cpu.set_cpuid(crate::system::cpuid::supported_cpuid());
    for (table, entry) in [(PML4, PDPT), (PDPT, DIRECTORY), (DIRECTORY, TABLE)] {
        put(&cpu, table, entry | PRESENT_WRITABLE_USER);
    }
    for page in 0..512 {
        put(&cpu, TABLE + 8 * page, page << 12 | PRESENT_WRITABLE_USER);
    }
    let xcr0 = cpu.xcr0_allowed();
    let state = &mut cpu.state;
    state.cr0 = cr0::PE | cr0::PG | cr0::NE | cr0::ET | cr0::WP;
    state.cr3 = PML4;
    state.cr4 = cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE;
    state.efer = efer::SCE | efer::LME | efer::LMA | efer::NXE;
    state.segments = [FLAT; 6];
    state.segments[seg::CS] = CODE64;
    state.rip = CODE;
    state.rflags = flag::FIXED;
    state.xcr0 = xcr0;
    cpu
}

/// 32-bit protected mode without paging.
pub(crate) fn cpu32() -> Cpu {
    let mut cpu = cpu64();
    cpu.state.segments[seg::CS] = CODE32;
    cpu.state.cr0 &= !cr0::PG;
    cpu.state.cr4 &= !cr4::PAE;
    cpu.state.efer = 0;
    cpu
}

/// Make the vCPU run at CPL 3.
pub(crate) fn to_user(cpu: &mut Cpu) {
    for segment in &mut cpu.state.segments {
        segment.attributes |= 0x60;
        segment.selector |= 3;
    }
}

/// Store eight bytes at a guest-physical address.
pub(crate) fn put(cpu: &Cpu, gpa: u64, value: u64) {
    cpu.memory.write(gpa, &value.to_le_bytes()).expect("RAM");
}

/// Load eight bytes.
pub(crate) fn get(cpu: &Cpu, gpa: u64) -> u64 {
    let mut bytes = [0; 8];
    cpu.memory.read(gpa, &mut bytes).expect("RAM");
    u64::from_le_bytes(bytes)
}

/// Unmap the page of an address below [`RAM`].
pub(crate) fn unmap(cpu: &Cpu, la: u64) {
    put(cpu, TABLE + 8 * (la >> 12), 0);
}

/// Carry out one instruction at RIP.
pub(crate) fn run(cpu: &mut Cpu, code: &[u8]) -> Outcome {
    let bits = if cpu.state.code64() { 64 } else { 32 };
    let mut decoder = Decoder::with_ip(bits, code, cpu.state.rip, decoder_options());
    let instruction = decoder.decode();
    assert_eq!(instruction.len(), code.len(), "the bytes are one instruction");
    cpu.execute(&instruction)
}

/// Carry out one instruction that must succeed.
pub(crate) fn step(cpu: &mut Cpu, code: &[u8]) {
    assert_eq!(run(cpu, code), Ok(()));
}

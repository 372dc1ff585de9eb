//! Each optimisation can be turned off: the guest computes the same, and counters show that it was off.
#![allow(clippy::unwrap_used)]

mod long_mode;

use std::sync::Arc;
use sublet_engine::{Engine, Exit, Regs, Statistics, Vcpu, Vm};
use sublet_memory::RamBlock;
use sublet_translate::optimisations::{Optimisation, NAMES};
use sublet_translate::TranslateEngine;

const CODE: u64 = 0x1_0000;
const TABLES: u64 = 0x8_0000;

/// A thousand times: a call to another page and back, two accesses by one base, CLI, REP STOSB of 64 bytes;
/// then OUT of a sum of what was stored.
const MAIN: [u8; 50] = [
    0xbd, 0xe8, 0x03, 0, 0, // mov ebp,1000
    0xbb, 0, 0, 0x02, 0, // mov ebx,0x20000
    // l:
    0xe8, 0xf1, 0x0f, 0, 0, // call CODE+0x1000
    0x01, 0x03, // add [rbx],eax
    0x29, 0x43, 0x08, // sub [rbx+8],eax
    0xfa, // cli
    0xbf, 0, 0, 0x03, 0, // mov edi,0x30000
    0xb9, 0x40, 0, 0, 0, // mov ecx,64
    0xf3, 0xaa, // rep stosb
    0xff, 0xcd, // dec ebp
    0x75, 0xe5, // jnz l
    0x8b, 0x03, // mov eax,[rbx]
    0x2b, 0x43, 0x08, // sub eax,[rbx+8]
    0x03, 0x05, 0xd4, 0xff, 0x01, 0x00, // add eax,[0x30004]
    0xe7, 0x80, // out 0x80,eax
];
/// `lea eax,[rbp+3]; ret`
const CALLED: [u8; 4] = [0x8d, 0x45, 0x03, 0xc3];

fn machine(engine: &TranslateEngine) -> (Arc<dyn Vm>, Box<dyn Vcpu>) {
    let vm = engine.create_vm().unwrap();
    let ram = Arc::new(RamBlock::new(2 << 20).unwrap());
    vm.memory().set_memslot(0, 0, 2 << 20, ram, 0, false, false).unwrap();
    vm.memslots_changed().unwrap();
    let memory = vm.memory();
    memory.write(TABLES, &((TABLES + 0x1000) | 3).to_le_bytes()).unwrap();
    memory.write(TABLES + 0x1000, &((TABLES + 0x2000) | 3).to_le_bytes()).unwrap();
    memory.write(TABLES + 0x2000, &0x83u64.to_le_bytes()).unwrap();
    memory.write(CODE, &MAIN).unwrap();
    memory.write(CODE + 0x1000, &CALLED).unwrap();
    let mut vcpu = vm.create_vcpu(0).unwrap();
    vcpu.set_sregs(&long_mode::sregs(TABLES, 0)).unwrap();
    let mut regs = Regs { rip: CODE, rflags: 2, ..Regs::default() };
    regs.gpr[4] = 0x4_0000;
    vcpu.set_regs(&regs).unwrap();
    (vm, vcpu)
}

/// What the program puts out, and the counters of the vCPU.
fn run(engine: &TranslateEngine) -> (Exit, Statistics) {
    let (_vm, mut vcpu) = machine(engine);
    (vcpu.run().unwrap(), vcpu.statistics())
}

fn counter(statistics: &Statistics, name: &str) -> u64 {
    statistics.get(name).copied().unwrap_or(0)
}

/// The counter that is small with the optimisation and large without it; none where another optimisation
/// takes over.
fn counter_of(one: Optimisation) -> Option<&'static str> {
    match one {
        Optimisation::SharedChecks
        | Optimisation::Links
        | Optimisation::PageLinks
        | Optimisation::ColdCode => None,
        // See `entries.rs`, `entries_64.rs`, `address_spaces.rs` and `in_place.rs`.
        Optimisation::SegmentLoads | Optimisation::InterruptReturns => None,
        Optimisation::AddressSpaces | Optimisation::InPlace => None,
        // See `windows.rs`.
        Optimisation::Windows | Optimisation::WindowPolicy | Optimisation::UnrolledLoops => None,
        // See `kernel_windows.rs`.
        Optimisation::KernelWindows => None,
        // See `placed_code.rs`.
        Optimisation::PlacedCode => None,
        // See `returns.rs`.
        Optimisation::ReturnStack => None,
        // See `emit/slots.rs`.
        Optimisation::SlotOperands => None,
        // Of one vCPU nobody takes.
        Optimisation::SharedTranslations => None,
        Optimisation::DataTlb => Some("vcpu.slow_accesses"),
        Optimisation::JumpCache => Some("vcpu.indirect_misses"),
        Optimisation::SystemInstructions | Optimisation::RepeatedStrings => Some("vcpu.system_instructions"),
    }
}

#[test]
fn the_guest_computes_the_same_without_each() {
    let expected = run(&TranslateEngine::new().unwrap()).0;
    assert!(matches!(expected, Exit::PioOut { port: 0x80, size: 4, .. }), "{expected:?}");
    for (name, one) in NAMES {
        assert_eq!(run(&TranslateEngine::new().unwrap().without(one)).0, expected, "{name}");
    }
}

#[test]
fn counters_show_that_it_is_off() {
    let with = run(&TranslateEngine::new().unwrap()).1;
    for (name, one) in NAMES {
        let Some(counted) = counter_of(one) else { continue };
        let without = run(&TranslateEngine::new().unwrap().without(one)).1;
        assert!(counter(&with, counted) < 100, "{name}");
        assert!(counter(&without, counted) >= 1000, "{name}");
    }
}

#[test]
fn branches_without_links_go_by_the_jump_cache() {
    let misses = |engine: TranslateEngine| counter(&run(&engine).1, "vcpu.indirect_misses");
    let linked = || TranslateEngine::new().unwrap().without(Optimisation::JumpCache);
    let within_pages = || linked().without(Optimisation::PageLinks);
    assert!(misses(within_pages()) >= misses(linked()) + 1000);
    assert!(misses(within_pages().without(Optimisation::Links)) >= misses(within_pages()) + 900);
}

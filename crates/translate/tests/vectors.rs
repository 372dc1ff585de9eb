//! Vector registers keep every bit over the ways in and out of translated code, which load no more of them than is
//! set.
#![allow(clippy::unwrap_used)]

mod long_mode;

use std::arch::x86_64::{__cpuid_count, _mm256_zeroall, _xgetbv};
use std::ops::Range;
use std::sync::Arc;
use sublet_engine::{Engine, Regs, Vcpu, Vm};
use sublet_memory::RamBlock;
use sublet_translate::TranslateEngine;

const CODE: u64 = 0x1_0000;
const TABLES: u64 = 0x8_0000;
/// Where an XSAVE image carries XCR0 for the engine, and its XSTATE_BV.
const XCR0: Range<usize> = 464..472;
const XSTATE_BV: Range<usize> = 512..520;
/// Components of an XSAVE image, with the bytes that each of registers 0 to 15 has there.
const AVX: (u32, usize) = (2, 16);
const ZMM_HIGH: (u32, usize) = (6, 32);

/// A vCPU that does `out 0x80,eax` again and again, after a load that misses each TLB: `mov ebx,[rdi]`.
fn machine() -> (Arc<dyn Vm>, Box<dyn Vcpu>) {
    let vm = TranslateEngine::new().unwrap().create_vm().unwrap();
    let ram = Arc::new(RamBlock::new(2 << 20).unwrap());
    vm.memory().set_memslot(0, 0, 2 << 20, ram, 0, false, false).unwrap();
    vm.memslots_changed().unwrap();
    let put = |gpa: u64, value: u64| vm.memory().write(gpa, &value.to_le_bytes()).unwrap();
    put(TABLES, (TABLES + 0x1000) | 3);
    put(TABLES + 0x1000, (TABLES + 0x2000) | 3);
    put(TABLES + 0x2000, 0x83);
    // mov ebx,[rdi]; add rdi,4096; out 0x80,eax; jmp back
    vm.memory().write(CODE, &[0x8b, 0x1f, 0x48, 0x81, 0xc7, 0, 0x10, 0, 0, 0xe7, 0x80, 0xeb, 0xf3]).unwrap();
    let mut vcpu = vm.create_vcpu(0).unwrap();
    vcpu.set_sregs(&long_mode::sregs(TABLES, 0)).unwrap();
    (vm, vcpu)
}

/// Run to the `out`, with the registers of `image` before; returns them after.
fn pass(vcpu: &mut dyn Vcpu, image: &[u8]) -> Vec<u8> {
    vcpu.set_regs(&Regs { rip: CODE, rflags: 2, ..Regs::default() }).unwrap();
    vcpu.set_xsave(image).unwrap();
    vcpu.run().unwrap();
    vcpu.xsave().unwrap()
}

/// The components that vCPUs can have, and an image with all of them at zero.
fn empty_image(vcpu: &mut dyn Vcpu) -> (u64, Vec<u8>) {
    let mut image = vcpu.xsave().unwrap();
    // SAFETY: the engine wants hosts with XSAVE.
    let host = unsafe { _xgetbv(0) };
    let components = if host & 0xe0 == 0xe0 { host & 0xe7 } else { host & 7 };
    image[XCR0].copy_from_slice(&components.to_le_bytes());
    image[XSTATE_BV].copy_from_slice(&components.to_le_bytes());
    image[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
    (components, image)
}

/// Where the component lies (Intel SDM vol. 1 §13.5 "XSAVE-Managed State").
fn offset(component: u32) -> usize {
    __cpuid_count(0xd, component).ebx as usize
}

#[test]
fn a_bit_anywhere_in_the_upper_parts_is_kept() {
    let (_vm, mut vcpu) = machine();
    let (components, empty) = empty_image(&mut *vcpu);
    for (component, bytes) in [AVX, ZMM_HIGH].into_iter().filter(|(n, _)| components >> n & 1 != 0) {
        for at in (0..16 * bytes).step_by(8) {
            let place = offset(component) + at + at / 8 % 8;
            let mut image = empty.clone();
            image[place] = 1 << (at / 8 % 8);
            image[160 + 16 * (at / bytes)] = 0x5a;
            let seen = pass(&mut *vcpu, &image);
            let extended = offset(2)..;
            assert_eq!(seen[extended.clone()], image[extended], "component {component}, byte {at}");
            assert_eq!(seen[160..416], image[160..416], "component {component}, byte {at}");
        }
    }
}

#[test]
fn upper_parts_that_are_zero_are_not_in_use() {
    // SAFETY: the engine wants hosts with AVX2, whose XGETBV knows ECX=1 where leaf 0xD says so.
    let tracked = unsafe { host_tracks_use() };
    if !tracked {
        eprintln!("skipped: this processor does not tell which components are in use");
        return;
    }
    let (_vm, mut vcpu) = machine();
    let (_, mut image) = empty_image(&mut *vcpu);
    image[160..416].fill(0x3f);
    let seen = pass(&mut *vcpu, &image);
    assert_eq!(seen[160..416], image[160..416]);
    assert_eq!(seen[XSTATE_BV.start] & 0x44, 0, "AVX and ZMM_Hi256 are in use");
}

#[target_feature(enable = "avx,xsave")]
unsafe fn host_tracks_use() -> bool {
    // SAFETY: as the caller promises.
    unsafe {
        let known = __cpuid_count(0xd, 1).eax & 4 != 0;
        _mm256_zeroall();
        known && _xgetbv(1) & 4 == 0
    }
}

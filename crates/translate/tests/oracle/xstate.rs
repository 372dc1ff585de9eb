//! Reading and writing XSAVE areas in standard format.

use crate::case::CpuImage;
use std::arch::x86_64::__cpuid_count;

/// Offsets in a standard-format XSAVE area (Intel SDM vol. 1 §13.4 "XSAVE Area").
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    /// Components that the host's operating system enabled.
    pub xcr0: u64,
    /// Bytes of the whole area.
    pub size: usize,
    ymm_high: usize,
    opmask: usize,
    zmm_high: usize,
    high_zmm: usize,
}

const XSTATE_BV: usize = 512;
const LEGACY: u64 = 3;
const YMM: u64 = 1 << 2;
const AVX512: u64 = 7 << 5;

impl Layout {
    /// Ask CPUID leaf 0xD.
    #[allow(unused_unsafe, reason = "CPUID intrinsics are unsafe before Rust 1.92")]
    pub fn of_host() -> Self {
        // SAFETY: every processor that runs this test has CPUID; leaf 0xD comes with XSAVE,
        // which the kernel must offer for the signal frames used here.
        let leaf = |subleaf| unsafe { __cpuid_count(0xd, subleaf) };
        let offset = |component| leaf(component).ebx as usize;
        let (low, high): (u32, u32);
        // SAFETY: XGETBV with ECX 0 is unprivileged where the operating system enabled XSAVE.
        unsafe {
            std::arch::asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack));
        }
        let xcr0 = u64::from(high) << 32 | u64::from(low);
        Self {
            xcr0,
            size: (leaf(0).ebx as usize).max(576),
            ymm_high: offset(2),
            opmask: offset(5),
            zmm_high: offset(6),
            high_zmm: offset(7),
        }
    }

    /// Components that cases use.
    pub fn components(&self) -> u64 {
        self.xcr0 & (LEGACY | YMM | AVX512)
    }

    fn has(&self, component: u64) -> bool {
        self.xcr0 & component == component
    }

    /// Write `cpu` into `area`, with every component in use. Bytes 464 to 511 are left alone.
    pub fn store(&self, cpu: &CpuImage, area: &mut [u8]) {
        area[..2].copy_from_slice(&cpu.x87.control.to_le_bytes());
        area[2..4].copy_from_slice(&cpu.x87.status.to_le_bytes());
        area[4] = cpu.x87.tag;
        area[5..24].fill(0);
        area[24..28].copy_from_slice(&cpu.mxcsr.to_le_bytes());
        for (index, register) in cpu.x87.st.iter().enumerate() {
            area[32 + 16 * index..][..10].copy_from_slice(register);
        }
        for (index, register) in cpu.vector.iter().enumerate() {
            for (at, from, size) in self.pieces(index) {
                area[at..at + size].copy_from_slice(&register[from..from + size]);
            }
        }
        if self.has(AVX512) {
            for (index, mask) in cpu.mask.iter().enumerate() {
                area[self.opmask + 8 * index..][..8].copy_from_slice(&mask.to_le_bytes());
            }
        }
        area[XSTATE_BV..XSTATE_BV + 64].fill(0);
        area[XSTATE_BV..XSTATE_BV + 8].copy_from_slice(&self.components().to_le_bytes());
    }

    /// Read `area`; components in their initial state are not in it and read as such.
    pub fn load(&self, area: &[u8], cpu: &mut CpuImage) {
        let present = u64_at(area, XSTATE_BV);
        let initial = CpuImage::default();
        cpu.x87 = initial.x87;
        if present & 1 != 0 {
            cpu.x87.control = u16::from_le_bytes([area[0], area[1]]);
            cpu.x87.status = u16::from_le_bytes([area[2], area[3]]);
            cpu.x87.tag = area[4];
            for (index, register) in cpu.x87.st.iter_mut().enumerate() {
                register.copy_from_slice(&area[32 + 16 * index..][..10]);
            }
        }
        cpu.mxcsr = u32::from_le_bytes([area[24], area[25], area[26], area[27]]);
        for (index, register) in cpu.vector.iter_mut().enumerate() {
            register.fill(0);
            for (at, from, size) in self.pieces(index) {
                if present & component_of(index, from) != 0 {
                    register[from..from + size].copy_from_slice(&area[at..at + size]);
                }
            }
        }
        cpu.mask = [0; 8];
        if self.has(AVX512) && present & 1 << 5 != 0 {
            for (index, mask) in cpu.mask.iter_mut().enumerate() {
                *mask = u64_at(area, self.opmask + 8 * index);
            }
        }
    }

    /// Where vector register `index` lies: (offset in the area, offset in the register, bytes).
    fn pieces(&self, index: usize) -> impl Iterator<Item = (usize, usize, usize)> {
        let low = index < 16;
        [
            low.then_some((160 + 16 * index, 0, 16)),
            (low && self.has(YMM)).then_some((self.ymm_high + 16 * index, 16, 16)),
            (low && self.has(AVX512)).then_some((self.zmm_high + 32 * index, 32, 32)),
            (!low && self.has(AVX512)).then(|| (self.high_zmm + 64 * (index - 16), 0, 64)),
        ]
        .into_iter()
        .flatten()
    }
}

fn component_of(index: usize, from: usize) -> u64 {
    match (index, from) {
        (16.., _) => 1 << 7,
        (_, 0) => 1 << 1,
        (_, 16) => 1 << 2,
        _ => 1 << 6,
    }
}

fn u64_at(area: &[u8], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&area[at..at + 8]);
    u64::from_le_bytes(bytes)
}

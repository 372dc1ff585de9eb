//! Which instructions this host has: the CPUID flags that its kernel lists.

use iced_x86::{Code, CpuidFeature};
use std::collections::HashSet;

/// The host's features by the names in `/proc/cpuinfo`.
#[derive(Clone)]
pub struct Features(HashSet<String>);

impl Features {
    /// Read `/proc/cpuinfo`; an unreadable one leaves the base instruction set.
    pub fn of_host() -> Self {
        let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let flags = text.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
        Self(flags.split_whitespace().map(str::to_owned).collect())
    }

    /// Whether the host has the flag of this name.
    pub fn has(&self, flag: &str) -> bool {
        self.0.contains(flag)
    }

    /// The first feature that `code` needs and the host lacks.
    pub fn missing(&self, code: Code) -> Option<CpuidFeature> {
        code.cpuid_features().iter().copied().find(|feature| !self.supports(*feature))
    }

    fn supports(&self, feature: CpuidFeature) -> bool {
        match flag_name(feature) {
            Some("") => true,
            Some(name) => self.has(name),
            None => false,
        }
    }
}

/// Name of a feature's flag; an empty one for what every 64-bit processor has, none for what a
/// guest is never offered.
fn flag_name(feature: CpuidFeature) -> Option<&'static str> {
    use CpuidFeature as F;
    Some(match feature {
        F::INTEL8086 | F::INTEL186 | F::INTEL286 | F::INTEL386 | F::INTEL486 | F::X64 => "",
        F::FPU | F::FPU287 | F::FPU387 | F::MULTIBYTENOP | F::PAUSE | F::CPUID | F::CX8 | F::CMOV => "",
        F::MMX | F::SSE | F::SSE2 | F::FXSR | F::INTEL8086_ONLY => "",
        F::ADX => "adx",
        F::AES => "aes",
        F::AVX => "avx",
        F::AVX2 => "avx2",
        F::AVX512_BF16 => "avx512_bf16",
        F::AVX512_BITALG => "avx512_bitalg",
        F::AVX512_IFMA => "avx512ifma",
        F::AVX512_VBMI => "avx512vbmi",
        F::AVX512_VBMI2 => "avx512_vbmi2",
        F::AVX512_VNNI => "avx512_vnni",
        F::AVX512_VP2INTERSECT => "avx512_vp2intersect",
        F::AVX512_VPOPCNTDQ => "avx512_vpopcntdq",
        F::AVX512_FP16 => "avx512_fp16",
        F::AVX512BW => "avx512bw",
        F::AVX512CD => "avx512cd",
        F::AVX512DQ => "avx512dq",
        F::AVX512F => "avx512f",
        F::AVX512VL => "avx512vl",
        F::AVX_VNNI => "avx_vnni",
        F::AVX_IFMA => "avx_ifma",
        F::AVX_NE_CONVERT => "avx_ne_convert",
        F::AVX_VNNI_INT8 => "avx_vnni_int8",
        F::AVX_VNNI_INT16 => "avx_vnni_int16",
        F::SHA512 => "sha512",
        F::SM3 => "sm3",
        F::SM4 => "sm4",
        F::BMI1 => "bmi1",
        F::BMI2 => "bmi2",
        F::CLFSH => "clflush",
        F::CLFLUSHOPT => "clflushopt",
        F::CLWB => "clwb",
        F::CMPXCHG16B => "cx16",
        F::F16C => "f16c",
        F::FMA => "fma",
        F::FSGSBASE => "fsgsbase",
        F::GFNI => "gfni",
        F::LZCNT => "abm",
        F::MOVBE => "movbe",
        F::PCLMULQDQ => "pclmulqdq",
        F::POPCNT => "popcnt",
        F::PREFETCHW => "3dnowprefetch",
        F::SHA => "sha_ni",
        F::SSE3 => "pni",
        F::SSE4_1 => "sse4_1",
        F::SSE4_2 => "sse4_2",
        F::SSE4A => "sse4a",
        F::SSSE3 => "ssse3",
        F::VAES => "vaes",
        F::VPCLMULQDQ => "vpclmulqdq",
        F::RDPID => "rdpid",
        F::RDTSCP => "rdtscp",
        F::RDRAND => "rdrand",
        F::RDSEED => "rdseed",
        F::TSC | F::RDPMC | F::SYSCALL | F::SEP | F::MSR | F::XSAVE | F::XSAVEC | F::XSAVEOPT | F::XSAVES => {
            ""
        }
        F::SMAP => "smap",
        F::WBNOINVD => "wbnoinvd",
        F::INVPCID => "invpcid",
        _ => return None,
    })
}

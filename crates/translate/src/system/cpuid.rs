//! CPUID: which features the guest sees, and what the instruction returns.
//!
//! The guest gets the host's identity and an honest subset of its features: what the decoder
//! knows and the host executes natively, plus what this engine carries out itself (`EMULATED`).
//! Results that depend on the running state (OSXSAVE, APIC IDs, XSAVE sizes) are filled in when
//! the instruction executes. Bits: Intel SDM vol. 2A "CPUID"; AMD APM vol. 3 appendix E.

use crate::cpu::{Cpu, Outcome};
use crate::state::gpr;
use core::arch::x86_64::__cpuid_count;
use sublet_engine::CpuidEntry;

const EAX: usize = 0;
const EBX: usize = 1;
const ECX: usize = 2;
const EDX: usize = 3;

/// A mask with these bits set.
const fn bits(list: &[u32]) -> u32 {
    let mut mask = 0;
    let mut at = 0;
    while at < list.len() {
        mask |= 1 << list[at];
        at += 1;
    }
    mask
}

/// Leaf 1 ECX: SSE3 to AVX, without MONITOR, VMX, SMX, EIST, TM2, PDCM, DCA.
const LEAF1_ECX: u32 = bits(&[0, 1, 9, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 28, 29, 30]);
/// Leaf 1 EDX: without serial number, DS, thermal monitors, HTT.
const LEAF1_EDX: u32 =
    bits(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 19, 23, 24, 25, 26, 27]);
/// Leaf 7.0 EBX: without SGX, HLE, RTM, resource director, MPX, PT, AVX-512 PF and ER.
const LEAF7_EBX: u32 =
    bits(&[0, 1, 3, 5, 6, 7, 8, 9, 10, 13, 16, 17, 18, 19, 20, 21, 23, 24, 28, 29, 30, 31]);
/// Leaf 7.0 ECX: without PKU, WAITPKG, CET, LA57, key locker, MOVDIRI, MOVDIR64B, ENQCMD, SGX_LC.
const LEAF7_ECX: u32 = bits(&[1, 2, 6, 8, 9, 10, 11, 12, 14, 22]);
/// Leaf 7.0 EDX: FSRM, VP2INTERSECT, AVX512_FP16. No speculation controls: nothing would back them.
const LEAF7_EDX: u32 = bits(&[4, 8, 23]);
/// Leaf 7.0 EDX: IA32_ARCH_CAPABILITIES, which tells an Intel processor's kernel what not to work around.
const ARCH_CAPABILITIES: u32 = 1 << 29;
/// Leaf 7.1 EAX: SHA512, SM3, SM4, AVX_VNNI, AVX512_BF16, fast strings, AVX_IFMA.
const LEAF7_1_EAX: u32 = bits(&[0, 1, 2, 4, 5, 10, 11, 12, 23]);
/// Leaf 7.1 EDX: AVX_VNNI_INT8, AVX_NE_CONVERT, AVX_VNNI_INT16.
const LEAF7_1_EDX: u32 = bits(&[4, 5, 10]);
/// Leaf 0x80000001 ECX: LAHF, LOCK MOV CR0 as CR8, ABM, SSE4A, misaligned SSE, PREFETCHW.
const EXT1_ECX: u32 = bits(&[0, 4, 5, 6, 7, 8]);
/// Leaf 0x80000001 EDX: the repeated bits of leaf 1, SYSCALL, NX, MMXEXT, 1 GiB pages, RDTSCP, LM.
const EXT1_EDX: u32 =
    bits(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 20, 22, 23, 24, 26, 27, 29]);
/// Leaf 0x80000008 EBX: XSAVEERPTR, WBNOINVD, SSB_NO, BTC_NO.
const EXT8_EBX: u32 = bits(&[2, 9, 26, 29]);
/// Leaf 0x80000021 EAX: no nested data breakpoints, LFENCE serializes.
const EXT21_EAX: u32 = bits(&[0, 2]);

/// Features that this engine carries out itself, whatever the host has:
/// (leaf, sub-leaf, register, bits).
const EMULATED: &[(u32, u32, usize, u32)] = &[
    // PCID, x2APIC, TSC deadline.
    (1, 0, ECX, bits(&[17, 21, 24])),
    // FSGSBASE, TSC_ADJUST, SMEP, INVPCID, SMAP.
    (7, 0, EBX, bits(&[0, 1, 7, 10, 20])),
    // UMIP, RDPID.
    (7, 0, ECX, bits(&[2, 22])),
    // XSAVEOPT, XSAVEC, XGETBV(1), XSAVES.
    (0xd, 1, EAX, bits(&[0, 1, 2, 3])),
    // NX, 1 GiB pages, RDTSCP.
    (0x8000_0001, 0, EDX, bits(&[20, 26, 27])),
    // Loading a null selector clears the base; returns are not the host's RET, so that SRSO does
    // not reach them. Automatic IBRS: translated indirect branches look up a table either way, so
    // that retpolines would cost much and protect nothing (docs/theory/isolation.md).
    (0x8000_0021, 0, EAX, bits(&[6, 8, 29])),
];

/// x87, SSE and AVX.
const AVX_COMPONENTS: u64 = 0x7;
/// All that this engine knows: with the three of AVX-512.
const AVX512_COMPONENTS: u64 = 0xe7;
const HYPERVISOR: u32 = 1 << 31;
const RDSEED: u32 = 1 << 18;
/// Short forms of RDSEED may return 0 as success (AMD-SB-7055); kernels warn and switch it off.
const FAMILY_WITH_BROKEN_RDSEED: u32 = 0x1a;
const HYPERVISOR_LEAF: u32 = 0x4000_0000;
const TIMING_LEAF: u32 = 0x4000_0010;
const SIGNATURE: &[u8; 12] = b"SubletSublet";
/// Frequency of the local APIC's timer, in kHz.
const APIC_BUS_KHZ: u32 = 1_000_000;
const MAX_BASIC_LEAF: u32 = 0x16;
const MAX_EXTENDED_LEAF: u32 = 0x8000_0021;

/// The host's answer.
fn host(leaf: u32, subleaf: u32) -> [u32; 4] {
    let max = __cpuid_count(leaf & 0xc000_0000, 0).eax;
    if leaf > max {
        return [0; 4];
    }
    let r = __cpuid_count(leaf, subleaf);
    [r.eax, r.ebx, r.ecx, r.edx]
}

/// Whether a vendor string (EBX, EDX, ECX of leaf 0) is AMD's or Hygon's.
pub fn is_amd(leaf0: [u32; 4]) -> bool {
    let name: Vec<u8> =
        [leaf0[EBX], leaf0[EDX], leaf0[ECX]].iter().flat_map(|word| word.to_le_bytes()).collect();
    name == b"AuthenticAMD" || name == b"HygonGenuine"
}

/// Features that need AVX and AVX-512 state: (leaf, sub-leaf, register, bits).
const NEEDS_AVX: &[(u32, u32, usize, u32)] = &[
    // FMA, AVX, F16C.
    (1, 0, ECX, bits(&[12, 28, 29])),
    // AVX2.
    (7, 0, EBX, bits(&[5])),
    // VAES, VPCLMULQDQ.
    (7, 0, ECX, bits(&[9, 10])),
    // SHA512, SM3, SM4, AVX_VNNI, AVX_IFMA.
    (7, 1, EAX, bits(&[0, 1, 2, 4, 23])),
    (7, 1, EDX, LEAF7_1_EDX),
];
const NEEDS_AVX512: &[(u32, u32, usize, u32)] = &[
    (7, 0, EBX, bits(&[16, 17, 21, 28, 30, 31])),
    (7, 0, ECX, bits(&[1, 6, 11, 12, 14])),
    (7, 0, EDX, bits(&[8, 23])),
    (7, 1, EAX, bits(&[5])),
];

/// State components that the host's operating system has enabled.
fn enabled_components() -> u64 {
    const OSXSAVE: u32 = 1 << 27;
    if host(1, 0)[ECX] & OSXSAVE == 0 {
        return 3;
    }
    // SAFETY: OSXSAVE says that XGETBV is there and enabled.
    unsafe { core::arch::x86_64::_xgetbv(0) }
}

/// State components offered: what the host has enabled, AVX-512 only as a whole.
fn offered_components() -> u64 {
    let [low, _, _, high] = host(0xd, 0);
    let host = (u64::from(high) << 32 | u64::from(low)) & enabled_components();
    match host & AVX512_COMPONENTS == AVX512_COMPONENTS {
        true => AVX512_COMPONENTS,
        false => host & AVX_COMPONENTS,
    }
}

/// Family from EAX of leaf 1, extended family added.
fn family(signature: u32) -> u32 {
    match signature >> 8 & 0xf {
        0xf => 0xf + (signature >> 20 & 0xff),
        base => base,
    }
}

/// The CPUID results that this engine can honour on this host, sorted by leaf and sub-leaf.
/// One package, core and thread per vCPU; the APIC ID is filled in at execution.
pub fn supported_cpuid() -> Vec<CpuidEntry> {
    let mut table = Table { entries: Vec::new() };
    let amd = is_amd(host(0, 0));
    table.basic(amd);
    table.extended_state();
    table.topology();
    table.hypervisor();
    table.extended(amd);
    for (leaf, subleaf, register, mask) in EMULATED {
        table.set_bits(*leaf, *subleaf, *register, *mask);
    }
    table.match_components(offered_components());
    table.entries.sort_by_key(|entry| (entry.leaf, entry.subleaf));
    table.entries
}

/// Put the measured TSC frequency into the timing leaf.
pub fn set_tsc_khz(entries: &mut [CpuidEntry], khz: u32) {
    if let Some(entry) = entries.iter_mut().find(|entry| entry.leaf == TIMING_LEAF) {
        entry.regs[EAX] = khz;
    }
}

/// A CPUID table under construction.
struct Table {
    entries: Vec<CpuidEntry>,
}

impl Table {
    fn put(&mut self, leaf: u32, regs: [u32; 4]) {
        self.entries.push(CpuidEntry { leaf, subleaf: 0, has_subleaf: false, regs });
    }

    fn put_sub(&mut self, leaf: u32, subleaf: u32, regs: [u32; 4]) {
        self.entries.push(CpuidEntry { leaf, subleaf, has_subleaf: true, regs });
    }

    fn set_bits(&mut self, leaf: u32, subleaf: u32, register: usize, mask: u32) {
        if let Some(entry) = self.entries.iter_mut().find(|e| (e.leaf, e.subleaf) == (leaf, subleaf)) {
            entry.regs[register] |= mask;
        }
    }

    /// Drop the features whose registers the host does not save.
    fn match_components(&mut self, components: u64) {
        for (needed, list) in [(AVX_COMPONENTS, NEEDS_AVX), (AVX512_COMPONENTS, NEEDS_AVX512)] {
            if components & needed == needed {
                continue;
            }
            for (leaf, subleaf, register, mask) in list {
                let entry = self.entries.iter_mut().find(|e| (e.leaf, e.subleaf) == (*leaf, *subleaf));
                entry.into_iter().for_each(|entry| entry.regs[*register] &= !mask);
            }
        }
    }

    fn basic(&mut self, amd: bool) {
        let [max, ebx, ecx, edx] = host(0, 0);
        self.put(0, [max.clamp(0xd, MAX_BASIC_LEAF), ebx, ecx, edx]);
        let [eax, ebx, ecx, edx] = host(1, 0);
        // EBX: brand index and CLFLUSH size; one logical processor.
        let ebx = ebx & 0xffff | 1 << 16;
        self.put(1, [eax, ebx, ecx & LEAF1_ECX | HYPERVISOR, edx & LEAF1_EDX]);
        if !amd {
            self.put(2, host(2, 0));
            self.intel_caches();
            self.put(0x15, host(0x15, 0));
            self.put(0x16, host(0x16, 0));
        }
        // ARAT: the APIC timer never stops.
        self.put(6, [1 << 2, 0, 0, 0]);
        let [_, mut ebx, ecx, edx] = host(7, 0);
        if amd && family(host(1, 0)[EAX]) >= FAMILY_WITH_BROKEN_RDSEED {
            ebx &= !RDSEED;
        }
        let capabilities = if amd { 0 } else { ARCH_CAPABILITIES };
        self.put_sub(7, 0, [1, ebx & LEAF7_EBX, ecx & LEAF7_ECX, edx & LEAF7_EDX | capabilities]);
        let [eax, _, _, edx] = if host(7, 0)[EAX] >= 1 { host(7, 1) } else { [0; 4] };
        self.put_sub(7, 1, [eax & LEAF7_1_EAX, 0, 0, edx & LEAF7_1_EDX]);
    }

    /// Leaf 4, with each cache private to its processor.
    fn intel_caches(&mut self) {
        for subleaf in 0..8 {
            let [eax, ebx, ecx, edx] = host(4, subleaf);
            self.put_sub(4, subleaf, [eax & 0x3fff, ebx, ecx, edx]);
            if eax & 0x1f == 0 {
                break;
            }
        }
    }

    /// Leaf 0xD: the host's layout of the components offered. Current sizes are filled in later.
    fn extended_state(&mut self) {
        let offered = offered_components();
        let parts: Vec<_> = (2..63).filter(|n| offered >> n & 1 != 0).map(|n| (n, host(0xd, n))).collect();
        let max = parts.iter().map(|(_, r)| r[EAX] + r[EBX]).max().unwrap_or(0).max(576);
        self.put_sub(0xd, 0, [offered as u32, 576, max, 0]);
        self.put_sub(0xd, 1, [0, 576, 0, 0]);
        for (n, [size, offset, flags, _]) in parts {
            // Flags: supervisor (never, here) and 64-byte alignment; no feature disable.
            self.put_sub(0xd, n, [size, offset, flags & 2, 0]);
        }
    }

    /// Leaf 0xB: a thread level and a core level of one processor each.
    fn topology(&mut self) {
        self.put_sub(0xb, 0, [0, 1, 0x100, 0]);
        self.put_sub(0xb, 1, [0, 1, 0x201, 1]);
        self.put_sub(0xb, 2, [0, 0, 2, 0]);
    }

    fn hypervisor(&mut self) {
        let word = |at: usize| {
            u32::from_le_bytes([SIGNATURE[at], SIGNATURE[at + 1], SIGNATURE[at + 2], SIGNATURE[at + 3]])
        };
        self.put(HYPERVISOR_LEAF, [TIMING_LEAF, word(0), word(4), word(8)]);
        self.put(TIMING_LEAF, [host_tsc_khz(), APIC_BUS_KHZ, 0, 0]);
    }

    fn extended(&mut self, amd: bool) {
        let [max, ebx, ecx, edx] = host(0x8000_0000, 0);
        let max = max.clamp(0x8000_0008, MAX_EXTENDED_LEAF);
        self.put(0x8000_0000, [max, ebx, ecx, edx]);
        let [eax, ebx, ecx, edx] = host(0x8000_0001, 0);
        self.put(0x8000_0001, [eax, ebx, ecx & EXT1_ECX, edx & EXT1_EDX]);
        for leaf in [0x8000_0002, 0x8000_0003, 0x8000_0004, 0x8000_0005, 0x8000_0006] {
            self.put(leaf, host(leaf, 0));
        }
        // Invariant TSC.
        self.put(0x8000_0007, [0, 0, 0, host(0x8000_0007, 0)[EDX] & 1 << 8]);
        let [eax, ebx, _, _] = host(0x8000_0008, 0);
        let physical = (eax & 0xff).clamp(36, 52);
        self.put(0x8000_0008, [physical | 48 << 8, ebx & EXT8_EBX, 0, 0]);
        if amd && max >= MAX_EXTENDED_LEAF {
            self.put(0x8000_0019, host(0x8000_0019, 0));
            self.put(0x8000_001a, host(0x8000_001a, 0));
            self.put(0x8000_0021, [host(0x8000_0021, 0)[EAX] & EXT21_EAX, 0, 0, 0]);
        }
    }
}

/// The host's TSC frequency as its CPUID tells: leaf 0x15, or a hypervisor's timing leaf; else 0.
pub fn host_tsc_khz() -> u32 {
    let [denominator, numerator, crystal_hz, _] = host(0x15, 0);
    if denominator != 0 && numerator != 0 && crystal_hz != 0 {
        let hz = u64::from(crystal_hz) * u64::from(numerator) / u64::from(denominator);
        return u32::try_from(hz / 1000).unwrap_or(0);
    }
    if host(1, 0)[ECX] & HYPERVISOR == 0 || __cpuid_count(HYPERVISOR_LEAF, 0).eax < TIMING_LEAF {
        return 0;
    }
    __cpuid_count(TIMING_LEAF, 0).eax
}

impl Cpu {
    /// The stored result of a leaf and sub-leaf.
    pub fn cpuid_entry(&self, leaf: u32, subleaf: u32) -> Option<[u32; 4]> {
        let after = self.cpuid.partition_point(|entry| (entry.leaf, entry.subleaf) <= (leaf, subleaf));
        let entry = self.cpuid[..after].last().filter(|entry| entry.leaf == leaf)?;
        (!entry.has_subleaf || entry.subleaf == subleaf).then_some(entry.regs)
    }

    /// Whether a bit of EAX..EDX (0 to 3) of a leaf is set.
    pub fn cpuid_bit(&self, leaf: u32, subleaf: u32, register: usize, bit: u32) -> bool {
        self.cpuid_entry(leaf, subleaf).is_some_and(|regs| regs[register] >> bit & 1 != 0)
    }

    /// What CPUID returns now for EAX = `leaf`, ECX = `subleaf`: EAX, EBX, ECX, EDX.
    pub fn cpuid_query(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        let (leaf, regs) = match self.cpuid_entry(leaf, subleaf) {
            Some(regs) => (leaf, regs),
            None => self.cpuid_missing(leaf, subleaf),
        };
        self.cpuid_dynamic(leaf, subleaf, regs)
    }

    /// A leaf out of range answers like the highest basic one on Intel, with zeros on AMD.
    fn cpuid_missing(&self, leaf: u32, subleaf: u32) -> (u32, [u32; 4]) {
        let limit = |base: u32| self.cpuid_entry(base, 0).map_or(0, |regs| regs[EAX]);
        let group = match leaf {
            0x4000_0000..=0x4fff_ffff => HYPERVISOR_LEAF,
            0x8000_0000.. => 0x8000_0000,
            _ => 0,
        };
        let highest = limit(0);
        if self.amd || leaf <= limit(group) {
            // Leaf 0xB returns the level asked for even where there is none.
            return (leaf, [0, 0, if leaf == 0xb { subleaf & 0xff } else { 0 }, 0]);
        }
        (highest, self.cpuid_entry(highest, subleaf).unwrap_or([0; 4]))
    }

    fn cpuid_dynamic(&self, leaf: u32, subleaf: u32, mut regs: [u32; 4]) -> [u32; 4] {
        let apic_id = self.apic.as_ref().map_or(0, |apic| apic.id());
        match (leaf, subleaf) {
            (1, _) => {
                regs[EBX] = regs[EBX] & 0x00ff_ffff | apic_id << 24;
                let osxsave = self.state.cr4 >> 18 & 1;
                regs[ECX] = regs[ECX] & !(1 << 27) | (osxsave as u32) << 27;
                let apic_on = self.apic.as_ref().is_none_or(|apic| apic.enabled());
                regs[EDX] &= !(u32::from(!apic_on) << 9);
            }
            (0xb, _) => regs[EDX] = apic_id,
            (0xd, 0) => regs[EBX] = self.standard_size(self.state.xcr0),
            (0xd, 1) => regs[EBX] = self.compacted_size(self.state.xcr0 | self.state.xss),
            _ => {}
        }
        regs
    }

    pub(crate) fn cpuid_instruction(&mut self) -> Outcome {
        let (leaf, subleaf) = (self.state.gpr[gpr::RAX] as u32, self.state.gpr[gpr::RCX] as u32);
        let regs = self.cpuid_query(leaf, subleaf);
        for (register, value) in [gpr::RAX, gpr::RBX, gpr::RCX, gpr::RDX].into_iter().zip(regs) {
            self.state.gpr[register] = u64::from(value);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::fixture::{cpu64, step};

    #[test]
    fn nothing_is_advertised_that_is_not_carried_out() {
        let cpu = cpu64();
        // MONITOR, VMX; MPX, RTM, SGX; PKU, LA57, CET; IBRS, AMX.
        let absent: [(u32, usize, &[u32]); 4] = [
            (1, ECX, &[3, 5]),
            (7, EBX, &[2, 4, 11, 14]),
            (7, ECX, &[3, 5, 7, 16]),
            (7, EDX, &[20, 22, 24, 26]),
        ];
        for (leaf, register, list) in absent {
            assert!(list.iter().all(|bit| !cpu.cpuid_bit(leaf, 0, register, *bit)), "leaf {leaf:#x}");
        }
        // ARCH_CAPABILITIES.
        assert_eq!(cpu.cpuid_bit(7, 0, EDX, 29), !cpu.amd);
        assert_eq!(cpu.cpuid_query(0xa, 0), [0; 4]);
        // SVM, TOPOEXT, MONITORX.
        assert!([2, 22, 29].iter().all(|bit| !cpu.cpuid_bit(0x8000_0001, 0, ECX, *bit)));
    }

    #[test]
    fn emulated_features_are_there_whatever_the_host() {
        let cpu = cpu64();
        for (leaf, subleaf, register, mask) in EMULATED.iter().filter(|e| e.0 != 0x8000_0021) {
            let regs = cpu.cpuid_entry(*leaf, *subleaf).unwrap_or_default();
            assert_eq!(regs[*register] & mask, *mask, "leaf {leaf:#x}");
        }
    }

    #[test]
    fn osxsave_and_sizes_follow_the_state() {
        let mut cpu = cpu64();
        assert_ne!(cpu.cpuid_query(1, 0)[ECX] & 1 << 27, 0);
        cpu.state.cr4 = 0;
        assert_eq!(cpu.cpuid_query(1, 0)[ECX] & 1 << 27, 0);
        assert_eq!(cpu.cpuid_query(0xd, 0)[EBX], cpu.cpuid_query(0xd, 0)[ECX]);
        cpu.state.xcr0 = 3;
        assert_eq!(cpu.cpuid_query(0xd, 0)[EBX], 576);
        cpu.state.xcr0 = 7;
        assert_eq!(cpu.cpuid_query(0xd, 1)[EBX], 576 + 256);
    }

    #[test]
    fn the_instruction_fills_four_registers() {
        let mut cpu = cpu64();
        cpu.state.gpr[gpr::RAX] = u64::from(HYPERVISOR_LEAF) | 1 << 40;
        step(&mut cpu, &[0x0f, 0xa2]);
        let bytes: Vec<u8> = [gpr::RBX, gpr::RCX, gpr::RDX]
            .iter()
            .flat_map(|register| (cpu.state.gpr[*register] as u32).to_le_bytes())
            .collect();
        assert_eq!(bytes, SIGNATURE);
        assert_eq!(cpu.state.gpr[gpr::RAX], u64::from(TIMING_LEAF));
    }

    #[test]
    fn entries_are_sorted_and_unique() {
        let keys: Vec<_> = supported_cpuid().iter().map(|entry| (entry.leaf, entry.subleaf)).collect();
        assert!(keys.windows(2).all(|pair| pair[0] < pair[1]));
    }
}

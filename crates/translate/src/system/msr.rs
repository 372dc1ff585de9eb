//! Model-specific registers.
//!
//! Three kinds: those with an effect (a match arm each), those that are stored and returned
//! (`STORED`, a table), and all others, which do not exist: #GP(0). The table holds what operating
//! systems touch without guarding against a fault (Intel SDM vol. 4; AMD APM vol. 2 appendix A).

use crate::cpu::{Cpu, Exception, Outcome};
use crate::mmu::walk::is_canonical;
use crate::state::{gpr, seg};
use crate::system::time::host_tsc;

/// MSR numbers.
pub mod index {
    #![allow(missing_docs)]
    pub const TSC: u32 = 0x10;
    pub const APIC_BASE: u32 = 0x1b;
    pub const TSC_ADJUST: u32 = 0x3b;
    pub const MICROCODE_UPDATE: u32 = 0x79;
    pub const MICROCODE_REVISION: u32 = 0x8b;
    pub const SMBASE: u32 = 0x9e;
    pub const MTRR_CAP: u32 = 0xfe;
    pub const SYSENTER_CS: u32 = 0x174;
    pub const SYSENTER_ESP: u32 = 0x175;
    pub const SYSENTER_EIP: u32 = 0x176;
    pub const MCG_CAP: u32 = 0x179;
    pub const MISC_ENABLE: u32 = 0x1a0;
    pub const MTRR_VARIABLE_FIRST: u32 = 0x200;
    pub const MTRR_VARIABLE_LAST: u32 = 0x20f;
    pub const MTRR_FIXED_64K: u32 = 0x250;
    pub const MTRR_FIXED_16K: u32 = 0x258;
    pub const MTRR_FIXED_4K: u32 = 0x268;
    pub const PAT: u32 = 0x277;
    pub const MTRR_DEFAULT: u32 = 0x2ff;
    pub const TSC_DEADLINE: u32 = 0x6e0;
    pub const X2APIC_FIRST: u32 = 0x800;
    pub const X2APIC_LAST: u32 = 0x8ff;
    pub const XSS: u32 = 0xda0;
    pub const EFER: u32 = 0xc000_0080;
    pub const STAR: u32 = 0xc000_0081;
    pub const LSTAR: u32 = 0xc000_0082;
    pub const CSTAR: u32 = 0xc000_0083;
    pub const SFMASK: u32 = 0xc000_0084;
    pub const FS_BASE: u32 = 0xc000_0100;
    pub const GS_BASE: u32 = 0xc000_0101;
    pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
    pub const TSC_AUX: u32 = 0xc000_0103;
    pub const HWCR: u32 = 0xc001_0015;
}

use index as msr;

/// Which processors have a stored MSR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Vendor {
    Any,
    Amd,
    Intel,
}

/// An MSR that is only stored and returned.
struct Stored {
    /// First and last index.
    range: (u32, u32),
    vendor: Vendor,
    /// Value after reset.
    reset: u64,
    /// Bits the guest may change; others must be written as zero or as they are, else #GP(0).
    writable: u64,
}

const fn stored(first: u32, last: u32, vendor: Vendor, reset: u64, writable: u64) -> Stored {
    Stored { range: (first, last), vendor, reset, writable }
}

const ALL: u64 = u64::MAX;
/// MTRRcap: 8 variable ranges, fixed ranges, write combining.
const MTRR_CAP_VALUE: u64 = 0x508;
/// MISC_ENABLE: fast strings; branch trace and event-based sampling unavailable.
const MISC_ENABLE_VALUE: u64 = 1 | 1 << 11 | 1 << 12;
/// Fast strings, thermal control, SpeedStep, MONITOR, CPUID limit, xTPR messages, execute disable.
const MISC_ENABLE_WRITABLE: u64 = 1 | 1 << 3 | 1 << 16 | 1 << 18 | 1 << 22 | 1 << 23 | 1 << 34;
/// HWCR.TscFreqSel: the TSC counts at the P0 frequency.
const HWCR_VALUE: u64 = 1 << 24;

/// IA32_ARCH_CAPABILITIES: RDCL, MDS and TAA do not concern it. A kernel that takes a processor for one that they
/// concern unmaps itself while programs run, and clears buffers by VERW at each return to them. Neither does anything
/// here: the guest's page tables are not the host's, and VERW is compiled code's (docs/theory/isolation.md).
const ARCH_CAPABILITIES_VALUE: u64 = 1 | 1 << 5 | 1 << 8;

/// Sorted by first index. Neither performance counters nor machine-check banks exist.
const STORED: &[Stored] = &[
    stored(0x00, 0x01, Vendor::Any, 0, ALL), // P5_MC_ADDR, P5_MC_TYPE
    stored(0x17, 0x17, Vendor::Intel, 0, 0), // PLATFORM_ID
    stored(0x2a, 0x2a, Vendor::Intel, 0, 0), // EBL_CR_POWERON
    stored(0x3a, 0x3a, Vendor::Intel, 1, 0), // FEATURE_CONTROL: locked, nothing enabled
    stored(0x8b, 0x8b, Vendor::Amd, 0x0100_0065, 0), // PATCH_LEVEL
    stored(0x8b, 0x8b, Vendor::Intel, 1 << 32, ALL), // BIOS_SIGN_ID
    stored(0xcd, 0xcd, Vendor::Intel, 3, 0), // FSB_FREQ
    stored(0xce, 0xce, Vendor::Intel, 0, 0), // PLATFORM_INFO
    stored(0xfe, 0xfe, Vendor::Any, MTRR_CAP_VALUE, 0), // MTRRcap
    stored(0x10a, 0x10a, Vendor::Intel, ARCH_CAPABILITIES_VALUE, 0),
    stored(0x179, 0x179, Vendor::Any, 0, 0),        // MCG_CAP: no banks
    stored(0x17a, 0x17a, Vendor::Any, 0, 7),        // MCG_STATUS
    stored(0x198, 0x199, Vendor::Intel, 0, 0xffff), // PERF_STATUS, PERF_CTL
    stored(0x1a0, 0x1a0, Vendor::Any, MISC_ENABLE_VALUE, MISC_ENABLE_WRITABLE),
    stored(0x1d9, 0x1d9, Vendor::Any, 0, 3),     // DEBUGCTL: LBR, BTF
    stored(0x1db, 0x1de, Vendor::Any, 0, 0),     // last branch and exception records
    stored(0x200, 0x20f, Vendor::Any, 0, ALL),   // MTRR_PHYSBASE, MTRR_PHYSMASK
    stored(0x250, 0x250, Vendor::Any, 0, ALL),   // MTRR_FIX64K
    stored(0x258, 0x259, Vendor::Any, 0, ALL),   // MTRR_FIX16K
    stored(0x268, 0x26f, Vendor::Any, 0, ALL),   // MTRR_FIX4K
    stored(0x2ff, 0x2ff, Vendor::Any, 0, 0xcff), // MTRR_DEF_TYPE
    stored(0xc001_0010, 0xc001_0010, Vendor::Amd, 0, ALL), // SYSCFG
    stored(0xc001_0015, 0xc001_0015, Vendor::Amd, HWCR_VALUE, 0xffff_ffff),
    stored(0xc001_0016, 0xc001_001a, Vendor::Amd, 0, ALL), // IORR, TOP_MEM
    stored(0xc001_001d, 0xc001_001d, Vendor::Amd, 0, ALL), // TOP_MEM2
    stored(0xc001_001f, 0xc001_001f, Vendor::Amd, 0, ALL), // NB_CFG
    stored(0xc001_0055, 0xc001_0055, Vendor::Amd, 0, ALL), // INT_PENDING_MSG
    stored(0xc001_0058, 0xc001_0058, Vendor::Amd, 0, ALL), // MMIO_CONF_BASE
    stored(0xc001_0061, 0xc001_0063, Vendor::Amd, 0, ALL), // PSTATE limit, control, status
    stored(0xc001_0114, 0xc001_0114, Vendor::Amd, 0x18, 0), // VM_CR: SVM disabled and locked
    stored(0xc001_1020, 0xc001_1023, Vendor::Amd, 0, ALL), // LS_CFG, IC_CFG, DC_CFG, BU_CFG
    stored(0xc001_1029, 0xc001_102c, Vendor::Amd, 0, ALL), // DE_CFG, BU_CFG2, ...
];

/// Event selects and counters of AMD's first performance monitor, which every AMD processor has
/// (APM vol. 2 §13.2 "Performance Monitoring Counters"): they read as zero and keep nothing, by which
/// drivers see that nothing counts.
const K7_COUNTERS: std::ops::RangeInclusive<u32> = 0xc001_0000..=0xc001_0007;

/// Valid memory types of PAT entries and MTRRs: UC, WC, WT, WP, WB, and UC- in the PAT only.
fn valid_types(value: u64, uncached_minus: bool) -> bool {
    value.to_le_bytes().iter().all(|kind| matches!(kind, 0 | 1 | 4 | 5 | 6) || (uncached_minus && *kind == 7))
}

impl Cpu {
    fn stored_msr(&self, index: u32) -> Option<&'static Stored> {
        let own = if self.amd { Vendor::Amd } else { Vendor::Intel };
        STORED.iter().find(|entry| {
            (entry.range.0..=entry.range.1).contains(&index) && [Vendor::Any, own].contains(&entry.vendor)
        })
    }

    /// As [`Self::msr_read`], to save the state: SMBASE is no register of the guest's.
    pub fn msr_read_by_host(&self, index: u32) -> Option<u64> {
        match index {
            msr::SMBASE => Some(u64::from(self.smm.base)),
            _ => self.msr_read(index),
        }
    }

    /// Read an MSR; `None` when there is no such register.
    pub fn msr_read(&self, index: u32) -> Option<u64> {
        let state = &self.state;
        Some(match index {
            msr::TSC => self.guest_tsc(),
            msr::APIC_BASE => {
                self.apic.as_ref().map_or(self.apic_base_without_apic(), |apic| apic.apic_base())
            }
            msr::TSC_ADJUST => self.plain(msr::TSC_ADJUST),
            msr::SYSENTER_CS => state.sysenter_cs,
            msr::SYSENTER_ESP => state.sysenter_esp,
            msr::SYSENTER_EIP => state.sysenter_eip,
            msr::PAT => state.pat,
            msr::TSC_DEADLINE => self.tsc_deadline()?,
            msr::X2APIC_FIRST..=msr::X2APIC_LAST => {
                self.apic.as_ref().filter(|apic| apic.is_x2apic())?.msr_read(index).ok()?
            }
            msr::XSS => state.xss,
            msr::EFER => state.efer,
            msr::STAR => state.star,
            msr::LSTAR => state.lstar,
            msr::CSTAR => state.cstar,
            msr::SFMASK => state.sfmask,
            msr::FS_BASE => state.segments[seg::FS].base,
            msr::GS_BASE => state.segments[seg::GS].base,
            msr::KERNEL_GS_BASE => state.kernel_gs_base,
            msr::TSC_AUX => state.tsc_aux,
            _ if self.amd && K7_COUNTERS.contains(&index) => 0,
            _ => {
                let entry = self.stored_msr(index)?;
                self.plain_msrs.get(&index).copied().unwrap_or(entry.reset)
            }
        })
    }

    /// Write an MSR. `host_initiated` writes (restoring state) may also set read-only bits.
    /// `None`: no such register, or a value that it refuses; nothing has changed.
    pub fn msr_write(&mut self, index: u32, value: u64, host_initiated: bool) -> Option<()> {
        match index {
            msr::TSC => self.write_tsc(value, host_initiated),
            msr::APIC_BASE if !host_initiated && !self.may_hold_apic_base(value) => return None,
            msr::APIC_BASE => match &self.apic {
                Some(apic) => apic.set_apic_base(value).ok()?,
                None => self.write_plain(msr::APIC_BASE, value),
            },
            msr::TSC_ADJUST => self.write_tsc_adjust(value, host_initiated),
            msr::SMBASE if host_initiated => self.smm.base = value as u32,
            // Updates are "accepted" but change nothing, as they may on any processor.
            msr::MICROCODE_UPDATE => {}
            msr::SYSENTER_CS => self.state.sysenter_cs = value & 0xffff_ffff,
            msr::SYSENTER_ESP => self.state.sysenter_esp = canonical(value)?,
            msr::SYSENTER_EIP => self.state.sysenter_eip = canonical(value)?,
            msr::PAT => self.state.pat = Some(value).filter(|value| valid_types(*value, true))?,
            msr::TSC_DEADLINE => self.set_tsc_deadline(value)?,
            msr::X2APIC_FIRST..=msr::X2APIC_LAST => {
                self.apic.as_ref().filter(|apic| apic.is_x2apic())?.msr_write(index, value).ok()?;
            }
            // No supervisor state component is offered.
            msr::XSS if value == 0 => self.state.xss = 0,
            msr::XSS => return None,
            msr::EFER => self.write_efer(value, host_initiated)?,
            msr::STAR => self.state.star = value,
            msr::LSTAR => self.state.lstar = canonical(value)?,
            msr::CSTAR => self.state.cstar = canonical(value)?,
            msr::SFMASK => self.state.sfmask = value & 0xffff_ffff,
            msr::FS_BASE => self.state.segments[seg::FS].base = canonical(value)?,
            msr::GS_BASE => self.state.segments[seg::GS].base = canonical(value)?,
            msr::KERNEL_GS_BASE => self.state.kernel_gs_base = canonical(value)?,
            msr::TSC_AUX => self.state.tsc_aux = Some(value).filter(|value| value >> 32 == 0)?,
            _ if self.amd && K7_COUNTERS.contains(&index) => {}
            _ => self.write_stored(index, value, host_initiated)?,
        }
        Some(())
    }

    fn plain(&self, index: u32) -> u64 {
        self.plain_msrs.get(&index).copied().unwrap_or(0)
    }

    fn write_plain(&mut self, index: u32, value: u64) {
        self.plain_msrs.insert(index, value);
    }

    /// Without an in-core APIC: where it would be, the bootstrap flag, disabled.
    fn apic_base_without_apic(&self) -> u64 {
        self.plain_msrs.get(&msr::APIC_BASE).copied().unwrap_or(0xfee0_0100)
    }

    /// Whether CPUID offers what a value of IA32_APIC_BASE asks for: the width of the address, x2APIC mode
    /// (SDM vol. 3A §11.4.4 "Local APIC Status and Location", §11.12.1 "Detecting and Enabling x2APIC Mode").
    fn may_hold_apic_base(&self, value: u64) -> bool {
        const X2APIC_MODE: u64 = 1 << 10;
        value >> self.physical_bits == 0 && (value & X2APIC_MODE == 0 || self.cpuid_bit(1, 0, 2, 21))
    }

    fn write_stored(&mut self, index: u32, value: u64, host_initiated: bool) -> Option<()> {
        let entry = self.stored_msr(index)?;
        let old = self.plain_msrs.get(&index).copied().unwrap_or(entry.reset);
        let fixed = !entry.writable;
        let refused = (value ^ old) & fixed & value != 0 || (entry.writable == 0 && value != old);
        if !host_initiated && (refused || !valid_mtrr(index, value)) {
            return None;
        }
        let new = if host_initiated { value } else { value & entry.writable | old & fixed };
        self.write_plain(index, new);
        Some(())
    }

    /// Restoring state may set LMA; the guest may not.
    fn write_efer(&mut self, value: u64, host_initiated: bool) -> Option<()> {
        if host_initiated {
            self.state.efer = value & (1 | 1 << 8 | 1 << 10 | 1 << 11);
            self.mmu.flush(crate::cpu::Flush::All);
            return Some(());
        }
        self.set_efer(value).ok()
    }

    /// A guest's write moves TSC_ADJUST by the same amount (Intel SDM vol. 3B §18.17.3
    /// "Time-Stamp Counter Adjustment").
    fn write_tsc(&mut self, value: u64, host_initiated: bool) {
        let offset = value.wrapping_sub(host_tsc());
        let moved = offset.wrapping_sub(self.state.tsc_offset);
        self.state.tsc_offset = offset;
        if !host_initiated {
            self.write_plain(msr::TSC_ADJUST, self.plain(msr::TSC_ADJUST).wrapping_add(moved));
        }
    }

    fn write_tsc_adjust(&mut self, value: u64, host_initiated: bool) {
        if !host_initiated {
            let moved = value.wrapping_sub(self.plain(msr::TSC_ADJUST));
            self.state.tsc_offset = self.state.tsc_offset.wrapping_add(moved);
        }
        self.write_plain(msr::TSC_ADJUST, value);
    }

    /// IA32_TSC_DEADLINE in this vCPU's time; the APIC counts in the VM's, TSC_ADJUST apart.
    fn tsc_deadline(&self) -> Option<u64> {
        let deadline = self.apic.as_ref()?.tsc_deadline();
        Some(if deadline == 0 { 0 } else { deadline.wrapping_add(self.plain(msr::TSC_ADJUST)) })
    }

    fn set_tsc_deadline(&mut self, value: u64) -> Option<()> {
        let apic = self.apic.as_ref()?;
        apic.set_tsc_deadline(if value == 0 {
            0
        } else {
            value.wrapping_sub(self.plain(msr::TSC_ADJUST)).max(1)
        });
        Some(())
    }

    pub(crate) fn rdmsr(&mut self) -> Outcome {
        self.require_cpl0()?;
        let index = self.state.gpr[gpr::RCX] as u32;
        let value = self.msr_read(index).ok_or(Exception::protection(0))?;
        self.set_edx_eax(value);
        Ok(())
    }

    pub(crate) fn wrmsr(&mut self) -> Outcome {
        self.require_cpl0()?;
        let index = self.state.gpr[gpr::RCX] as u32;
        self.msr_write(index, self.edx_eax(), false).ok_or(Exception::protection(0))?;
        Ok(())
    }
}

fn canonical(address: u64) -> Option<u64> {
    Some(address).filter(|address| is_canonical(*address))
}

/// Whether memory types in an MTRR exist (Intel SDM vol. 3A §12.11 "Memory Type Range Registers").
fn valid_mtrr(index: u32, value: u64) -> bool {
    match index {
        msr::MTRR_VARIABLE_FIRST..=msr::MTRR_VARIABLE_LAST if index % 2 == 0 => {
            valid_types(value & 0xff, false)
        }
        msr::MTRR_FIXED_64K | msr::MTRR_FIXED_16K..=0x259 | msr::MTRR_FIXED_4K..=0x26f => {
            valid_types(value, false)
        }
        msr::MTRR_DEFAULT => valid_types(value & 0xff, false),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Stop;
    use crate::system::fixture::{cpu64, run, step, to_user};

    const RDMSR: &[u8] = &[0x0f, 0x32];
    const WRMSR: &[u8] = &[0x0f, 0x30];
    const GP: Result<(), Stop> = Err(Stop::Exception(Exception::protection(0)));

    fn write(cpu: &mut Cpu, index: u32, value: u64) -> Outcome {
        cpu.state.gpr[gpr::RCX] = u64::from(index);
        cpu.set_edx_eax(value);
        run(cpu, WRMSR)
    }

    fn read(cpu: &mut Cpu, index: u32) -> u64 {
        cpu.state.gpr[gpr::RCX] = u64::from(index);
        step(cpu, RDMSR);
        cpu.edx_eax()
    }

    #[test]
    fn every_stored_msr_reads_its_reset_value() {
        for amd in [false, true] {
            let mut cpu = cpu64();
            cpu.amd = amd;
            for entry in STORED.iter().filter(|e| e.vendor != if amd { Vendor::Intel } else { Vendor::Amd }) {
                assert_eq!(read(&mut cpu, entry.range.0), entry.reset, "{:#x}", entry.range.0);
            }
        }
    }

    #[test]
    fn unknown_msrs_and_users_fault() {
        let mut cpu = cpu64();
        assert_eq!(write(&mut cpu, 0x4000_0000, 0), GP);
        cpu.amd = false;
        assert_eq!(write(&mut cpu, 0xc001_0000, 0), GP);
        cpu.amd = true;
        assert_eq!(write(&mut cpu, 0xc001_0000, 5), Ok(()));
        assert_eq!(read(&mut cpu, 0xc001_0000), 0);
        assert_eq!(write(&mut cpu, msr::X2APIC_FIRST, 0), GP);
        to_user(&mut cpu);
        assert_eq!(write(&mut cpu, msr::STAR, 0), GP);
    }

    #[test]
    fn the_apic_base_has_the_width_and_the_modes_that_cpuid_offers() {
        let mut cpu = cpu64();
        let (base, wide) = (0xfee0_0900, 1 << cpu.physical_bits);
        assert_eq!(write(&mut cpu, msr::APIC_BASE, base | wide), GP);
        assert_eq!(write(&mut cpu, msr::APIC_BASE, base | wide >> 1), Ok(()));
        assert_eq!(write(&mut cpu, msr::APIC_BASE, base | 1 << 10), Ok(()));
        cpu.cpuid.clear();
        assert_eq!(write(&mut cpu, msr::APIC_BASE, base | 1 << 10), GP);
        assert_eq!(cpu.msr_write(msr::APIC_BASE, base | 1 << 10, true), Some(()));
    }

    #[test]
    fn values_are_checked() {
        let mut cpu = cpu64();
        assert_eq!(write(&mut cpu, msr::LSTAR, 1 << 62), GP);
        assert_eq!(write(&mut cpu, msr::PAT, 2), GP);
        assert_eq!(write(&mut cpu, msr::PAT, 0x0007_0406_0007_0401), Ok(()));
        assert_eq!(write(&mut cpu, msr::MTRR_DEFAULT, 0xc06), Ok(()));
        assert_eq!(write(&mut cpu, msr::MTRR_DEFAULT, 0xc02), GP);
        assert_eq!(write(&mut cpu, msr::MTRR_CAP, 0), GP);
        assert_eq!(write(&mut cpu, msr::TSC_AUX, 1 << 32), GP);
        assert_eq!(write(&mut cpu, msr::XSS, 1 << 8), GP);
        assert_eq!(write(&mut cpu, msr::EFER, 1 << 20), GP);
        assert_eq!(write(&mut cpu, msr::MISC_ENABLE, 0x4_00c5_1809), Ok(()));
        assert_eq!(write(&mut cpu, msr::MISC_ENABLE, 0x4_00c5_1809 | 1 << 35), GP);
        // LME may not change while paging is on; LMA is kept whatever is written.
        assert_eq!(write(&mut cpu, msr::EFER, 0), GP);
        assert_eq!(write(&mut cpu, msr::EFER, 1 << 8 | 1 << 11), Ok(()));
        assert_eq!(read(&mut cpu, msr::EFER), 1 << 8 | 1 << 10 | 1 << 11);
    }

    /// Intel SDM vol. 3B §18.17.3: TSC and TSC_ADJUST move together.
    #[test]
    fn tsc_adjust_follows_tsc() {
        let mut cpu = cpu64();
        let before = cpu.state.tsc_offset;
        assert_eq!(write(&mut cpu, msr::TSC_ADJUST, 1000), Ok(()));
        assert_eq!(cpu.state.tsc_offset, before + 1000);
        assert_eq!(write(&mut cpu, msr::TSC, 0), Ok(()));
        let moved = cpu.state.tsc_offset.wrapping_sub(before);
        assert_eq!(read(&mut cpu, msr::TSC_ADJUST), moved);
        cpu.msr_write(msr::TSC_ADJUST, 5, true);
        assert_eq!(cpu.state.tsc_offset.wrapping_sub(before), moved);
    }
}

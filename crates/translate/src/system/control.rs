//! Control registers, XCR0, segment bases and TLB invalidation.
//!
//! Rules: Intel SDM vol. 3A §2.5 "Control Registers", §4.10.4 "Invalidation of TLBs and
//! Paging-Structure Caches", §10.8.5 "Initializing IA-32e Mode"; vol. 2 for each instruction.

use super::operand::truncate;
use crate::cpu::{Cpu, Exception, Flush, Outcome};
use crate::mmu::walk::{is_canonical, Kind};
use crate::state::{gpr, seg};
use crate::system::memory::AccessMode;
use iced_x86::{Instruction, Mnemonic, OpKind};

/// CR0 bits.
pub mod cr0 {
    #![allow(missing_docs)]
    pub const PE: u64 = 1 << 0;
    pub const MP: u64 = 1 << 1;
    pub const EM: u64 = 1 << 2;
    pub const TS: u64 = 1 << 3;
    pub const ET: u64 = 1 << 4;
    pub const NE: u64 = 1 << 5;
    pub const WP: u64 = 1 << 16;
    pub const AM: u64 = 1 << 18;
    pub const NW: u64 = 1 << 29;
    pub const CD: u64 = 1 << 30;
    pub const PG: u64 = 1 << 31;
    /// Bits that exist; writes to the others of the low 32 are ignored.
    pub const DEFINED: u64 = PE | MP | EM | TS | ET | NE | WP | AM | NW | CD | PG;
}

/// CR4 bits.
pub mod cr4 {
    #![allow(missing_docs)]
    pub const VME: u64 = 1 << 0;
    pub const PVI: u64 = 1 << 1;
    pub const TSD: u64 = 1 << 2;
    pub const DE: u64 = 1 << 3;
    pub const PSE: u64 = 1 << 4;
    pub const PAE: u64 = 1 << 5;
    pub const MCE: u64 = 1 << 6;
    pub const PGE: u64 = 1 << 7;
    pub const PCE: u64 = 1 << 8;
    pub const OSFXSR: u64 = 1 << 9;
    pub const OSXMMEXCPT: u64 = 1 << 10;
    pub const UMIP: u64 = 1 << 11;
    pub const FSGSBASE: u64 = 1 << 16;
    pub const PCIDE: u64 = 1 << 17;
    pub const OSXSAVE: u64 = 1 << 18;
    pub const SMEP: u64 = 1 << 20;
    pub const SMAP: u64 = 1 << 21;
}

/// IA32_EFER bits.
pub mod efer {
    #![allow(missing_docs)]
    pub const SCE: u64 = 1 << 0;
    pub const LME: u64 = 1 << 8;
    pub const LMA: u64 = 1 << 10;
    pub const NXE: u64 = 1 << 11;
    pub const AIBRSE: u64 = 1 << 21;
}

/// CR4 bits that CPUID advertises: (bit, leaf, index in EAX..EDX, bit there).
const CR4_BY_CPUID: &[(u64, u32, usize, u32)] = &[
    (cr4::VME | cr4::PVI, 1, 3, 1),
    (cr4::TSD, 1, 3, 4),
    (cr4::DE, 1, 3, 2),
    (cr4::PSE, 1, 3, 3),
    (cr4::PAE, 1, 3, 6),
    (cr4::MCE, 1, 3, 7),
    (cr4::PGE, 1, 3, 13),
    (cr4::OSFXSR, 1, 3, 24),
    (cr4::OSXMMEXCPT, 1, 3, 25),
    (cr4::UMIP, 7, 2, 2),
    (cr4::FSGSBASE, 7, 1, 0),
    (cr4::PCIDE, 1, 2, 17),
    (cr4::OSXSAVE, 1, 2, 26),
    (cr4::SMEP, 7, 1, 7),
    (cr4::SMAP, 7, 1, 20),
];

const CR3_NO_FLUSH: u64 = 1 << 63;
const PCID_MASK: u64 = 0xfff;

/// XCR0 components.
mod xcr0 {
    pub const X87: u64 = 1 << 0;
    pub const SSE: u64 = 1 << 1;
    pub const AVX: u64 = 1 << 2;
    pub const AVX512: u64 = 7 << 5;
}

const GP0: Exception = Exception::protection(0);

impl Cpu {
    pub(crate) fn mov_from_cr(&mut self, i: &Instruction) -> Outcome {
        let number = i.op1_register().number();
        if !matches!(number, 0 | 2 | 3 | 4 | 8) {
            return Err(Exception::UNDEFINED.into());
        }
        self.require_cpl0()?;
        let value = match number {
            0 => self.state.cr0,
            2 => self.state.cr2,
            3 => self.state.cr3,
            4 => self.state.cr4,
            _ => self.task_priority(),
        };
        self.gpr_write(i.op0_register(), value);
        Ok(())
    }

    pub(crate) fn mov_to_cr(&mut self, i: &Instruction) -> Outcome {
        let number = i.op0_register().number();
        if !matches!(number, 0 | 2 | 3 | 4 | 8) {
            return Err(Exception::UNDEFINED.into());
        }
        self.require_cpl0()?;
        let value = self.gpr_read(i.op1_register());
        match number {
            0 => self.set_cr0(value)?,
            2 => self.state.cr2 = value,
            3 => self.set_cr3(value)?,
            4 => self.set_cr4(value)?,
            _ => self.set_task_priority(value)?,
        }
        Ok(())
    }

    /// CR8: the local APIC's task priority, 0 to 15.
    pub fn task_priority(&self) -> u64 {
        self.apic.as_ref().map_or(self.cr8, |apic| u64::from(apic.tpr() >> 4))
    }

    /// Write CR8.
    ///
    /// # Errors
    /// #GP(0) above 15.
    pub fn set_task_priority(&mut self, value: u64) -> Result<(), Exception> {
        if value > 15 {
            return Err(GP0);
        }
        match &self.apic {
            Some(apic) => apic.set_tpr((value as u8) << 4),
            None => self.cr8 = value,
        }
        Ok(())
    }

    /// Write CR0 with all checks and consequences.
    ///
    /// # Errors
    /// #GP(0) for a combination that Intel SDM vol. 2B "MOV—Move to/from Control Registers" refuses.
    pub fn set_cr0(&mut self, value: u64) -> Result<(), Exception> {
        if value >> 32 != 0 {
            return Err(GP0);
        }
        let new = (value & cr0::DEFINED) | cr0::ET;
        self.check_cr0(new)?;
        let changed = new ^ self.state.cr0;
        let entering = changed & new & cr0::PG != 0;
        if entering && self.state.efer & efer::LME != 0 {
            self.check_long_mode_entry()?;
            self.state.efer |= efer::LMA;
        } else if changed & cr0::PG != 0 {
            self.load_pdptes_if(new, self.state.cr4, self.state.cr3, entering)?;
            self.state.efer &= !efer::LMA;
        }
        self.state.cr0 = new;
        // PE alone changes no translation: without paging, linear addresses are physical either way.
        if changed & (cr0::PG | cr0::WP) != 0 {
            self.mmu.flush(Flush::All);
        }
        Ok(())
    }

    fn check_cr0(&self, new: u64) -> Result<(), Exception> {
        let set = |bit: u64| new & bit != 0;
        let bad_pair = (set(cr0::PG) && !set(cr0::PE)) || (set(cr0::NW) && !set(cr0::CD));
        let leaving = !set(cr0::PG) && self.state.cr0 & cr0::PG != 0;
        let cannot_leave = leaving && (self.state.code64() || self.state.cr4 & cr4::PCIDE != 0);
        match bad_pair || cannot_leave {
            true => Err(GP0),
            false => Ok(()),
        }
    }

    /// Setting CR0.PG with EFER.LME: needs PAE, and no 64-bit code segment or 16-bit TSS yet.
    fn check_long_mode_entry(&self) -> Result<(), Exception> {
        const TSS16: [u8; 2] = [1, 3];
        let state = &self.state;
        let bad = state.cr4 & cr4::PAE == 0
            || state.segments[seg::CS].long()
            || (state.tr.present() && TSS16.contains(&state.tr.kind()));
        match bad {
            true => Err(GP0),
            false => Ok(()),
        }
    }

    /// Write CR3 with checks and TLB invalidation.
    ///
    /// # Errors
    /// #GP(0) for reserved bits, or reserved bits in a PDPTE of PAE paging.
    pub fn set_cr3(&mut self, value: u64) -> Result<(), Exception> {
        let pcide = self.state.cr4 & cr4::PCIDE != 0;
        let keep = pcide && value & CR3_NO_FLUSH != 0;
        let mut new = if pcide { value & !CR3_NO_FLUSH } else { value };
        if self.state.long_mode() {
            if new >> self.physical_bits != 0 {
                return Err(GP0);
            }
        } else {
            new &= 0xffff_ffff;
            self.load_pdptes_if(self.state.cr0, self.state.cr4, new, true)?;
        }
        self.state.cr3 = new;
        self.flush_for_cr3(pcide, keep, new);
        Ok(())
    }

    fn flush_for_cr3(&mut self, pcide: bool, keep: bool, new: u64) {
        if !pcide {
            self.mmu.flush(Flush::NonGlobal);
            return;
        }
        let pcid = (new & PCID_MASK) as u16;
        if !keep {
            self.mmu.flush(Flush::Pcid(pcid));
        }
        self.mmu.flush(Flush::Switch(pcid));
    }

    /// The current process-context identifier: 0 unless CR4.PCIDE is set.
    pub fn pcid(&self) -> u16 {
        match self.state.cr4 & cr4::PCIDE != 0 {
            true => (self.state.cr3 & PCID_MASK) as u16,
            false => 0,
        }
    }

    /// The bits of CR4 that CPUID says exist.
    pub fn cr4_allowed(&self) -> u64 {
        // Without a PMU, RDPMC faults at every level; the enable bit itself always exists.
        CR4_BY_CPUID
            .iter()
            .filter(|(_, leaf, register, bit)| self.cpuid_bit(*leaf, 0, *register, *bit))
            .fold(cr4::PCE, |bits, (bit, ..)| bits | bit)
    }

    /// Write CR4 with all checks and consequences.
    ///
    /// # Errors
    /// #GP(0) for bits that CPUID does not advertise, and for illegal transitions of PAE and PCIDE.
    pub fn set_cr4(&mut self, value: u64) -> Result<(), Exception> {
        let changed = value ^ self.state.cr4;
        let enabling = changed & value;
        let pcide_refused = !self.state.long_mode() || self.state.cr3 & PCID_MASK != 0;
        let bad = value & !self.cr4_allowed() != 0
            || (self.state.long_mode() && value & cr4::PAE == 0)
            || (enabling & cr4::PCIDE != 0 && pcide_refused);
        if bad {
            return Err(GP0);
        }
        let reload = changed & (cr4::PGE | cr4::PAE | cr4::PSE | cr4::SMEP) != 0;
        self.load_pdptes_if(self.state.cr0, value, self.state.cr3, reload)?;
        self.state.cr4 = value;
        if reload || changed & (cr4::SMAP | cr4::PCIDE) != 0 {
            self.mmu.flush(Flush::All);
        }
        Ok(())
    }

    /// Load the PDPTEs of PAE paging when `wanted` and that paging mode is on with these registers
    /// (Intel SDM vol. 3A §4.4.1 "PDPTE Registers").
    pub(crate) fn load_pdptes_if(
        &mut self,
        cr0: u64,
        cr4: u64,
        cr3: u64,
        wanted: bool,
    ) -> Result<(), Exception> {
        let pae_paging = cr0 & cr0::PG != 0 && cr4 & cr4::PAE != 0 && self.state.efer & efer::LME == 0;
        if !wanted || !pae_paging {
            return Ok(());
        }
        const PRESENT: u64 = 1;
        let reserved = !((1u64 << self.physical_bits) - 1) | 0x1e6;
        let mut entries = [0; 4];
        for (entry, offset) in entries.iter_mut().zip([0, 8, 16, 24]) {
            *entry = self.load_table_entry((cr3 & 0xffff_ffe0) + offset).unwrap_or(u64::MAX);
            if *entry & PRESENT != 0 && *entry & reserved != 0 {
                return Err(GP0);
            }
        }
        self.state.pdptes = entries;
        Ok(())
    }

    /// Eight bytes of a table at a physical address; `None` where there is no RAM.
    pub(crate) fn load_table_entry(&self, gpa: u64) -> Option<u64> {
        self.memory.load_u64(self.bus_address(gpa))
    }

    /// Write IA32_EFER.
    ///
    /// # Errors
    /// #GP(0) for reserved bits, or a change of LME while paging is on. LMA is not writable.
    pub fn set_efer(&mut self, value: u64) -> Result<(), Exception> {
        let mut allowed = efer::LMA;
        if self.cpuid_bit(0x8000_0021, 0, 0, 8) {
            allowed |= efer::AIBRSE;
        }
        for (bit, position) in [(efer::SCE, 11), (efer::NXE, 20), (efer::LME, 29)] {
            if self.cpuid_bit(0x8000_0001, 0, 3, position) {
                allowed |= bit;
            }
        }
        let old = self.state.efer;
        let paging = self.state.cr0 & cr0::PG != 0;
        if value & !allowed != 0 || (paging && (value ^ old) & efer::LME != 0) {
            return Err(GP0);
        }
        self.state.efer = (value & !efer::LMA) | (old & efer::LMA);
        if (value ^ old) & efer::NXE != 0 {
            self.mmu.flush(Flush::All);
        }
        Ok(())
    }

    pub(crate) fn clts(&mut self) -> Outcome {
        self.require_cpl0()?;
        self.state.cr0 &= !cr0::TS;
        Ok(())
    }

    /// LMSW sets PE, MP, EM and TS, but cannot clear PE.
    pub(crate) fn lmsw(&mut self, i: &Instruction) -> Outcome {
        self.require_cpl0()?;
        let value = self.operand_read(i, 0, 2)? & 0xf;
        let kept = self.state.cr0 & !(cr0::MP | cr0::EM | cr0::TS);
        self.set_cr0(kept | value)?;
        Ok(())
    }

    pub(crate) fn smsw(&mut self, i: &Instruction) -> Outcome {
        self.require_no_umip()?;
        self.operand_write(i, 0, 2, self.state.cr0)
    }

    /// With CR4.UMIP, SGDT, SIDT, SLDT, SMSW and STR are privileged.
    pub(crate) fn require_no_umip(&self) -> Result<(), Exception> {
        match self.state.cpl() != 0 && self.state.cr4 & cr4::UMIP != 0 {
            true => Err(GP0),
            false => Ok(()),
        }
    }

    pub(crate) fn invlpg(&mut self, i: &Instruction) -> Outcome {
        self.require_cpl0()?;
        let at = self.memory_operand(i);
        let based = matches!(at.segment, seg::FS | seg::GS) || !self.state.code64();
        let base = if based { self.state.segments[at.segment].base } else { 0 };
        let la = truncate(base.wrapping_add(at.offset), if self.state.long_mode() { 8 } else { 4 });
        self.mmu.flush(Flush::Page(la));
        Ok(())
    }

    /// Intel SDM vol. 2A "INVPCID".
    pub(crate) fn invpcid(&mut self, i: &Instruction) -> Outcome {
        if !self.cpuid_bit(7, 0, 1, 10) {
            return Err(Exception::UNDEFINED.into());
        }
        self.require_cpl0()?;
        let kind = self.gpr_read(i.op0_register());
        let at = self.memory_operand(i);
        let la = self.operand_linear(at, 16, Kind::Read)?;
        let pcid = self.read_u64(la, AccessMode::Current)?;
        let address = self.read_u64(la.wrapping_add(8), AccessMode::Current)?;
        let what = self.invpcid_flush(kind, pcid, address)?;
        self.mmu.flush(what);
        Ok(())
    }

    fn invpcid_flush(&self, kind: u64, pcid: u64, address: u64) -> Result<Flush, Exception> {
        let pcide = self.state.cr4 & cr4::PCIDE != 0;
        let bad_pcid = pcid > PCID_MASK || (!pcide && pcid != 0 && kind < 2);
        match kind {
            _ if bad_pcid => Err(GP0),
            0 if !is_canonical(address) => Err(GP0),
            0 => Ok(Flush::PcidPage(pcid as u16, address)),
            1 => Ok(Flush::Pcid(pcid as u16)),
            2 => Ok(Flush::AllMappings),
            3 => Ok(Flush::NonGlobal),
            _ => Err(GP0),
        }
    }

    pub(crate) fn xgetbv(&mut self) -> Outcome {
        self.require_osxsave()?;
        let value = match self.state.gpr[gpr::RCX] as u32 {
            0 => self.state.xcr0,
            1 if self.cpuid_bit(0xd, 1, 0, 2) => self.state.xcr0 & self.components_in_use(),
            _ => return Err(GP0.into()),
        };
        self.set_edx_eax(value);
        Ok(())
    }

    pub(crate) fn xsetbv(&mut self) -> Outcome {
        self.require_osxsave()?;
        self.require_cpl0()?;
        if self.state.gpr[gpr::RCX] as u32 != 0 {
            return Err(GP0.into());
        }
        self.set_xcr0(self.edx_eax())?;
        Ok(())
    }

    /// #UD unless CR4.OSXSAVE is set.
    pub(crate) fn require_osxsave(&self) -> Result<(), Exception> {
        match self.state.cr4 & cr4::OSXSAVE != 0 {
            true => Ok(()),
            false => Err(Exception::UNDEFINED),
        }
    }

    /// The XCR0 bits that CPUID leaf 0xD advertises.
    pub fn xcr0_allowed(&self) -> u64 {
        let regs = self.cpuid_entry(0xd, 0).unwrap_or([0; 4]);
        u64::from(regs[3]) << 32 | u64::from(regs[0])
    }

    /// Write XCR0.
    ///
    /// # Errors
    /// #GP(0) for components not advertised, or one without those it builds on (Intel SDM vol. 1
    /// §13.3 "Enabling the XSAVE Feature Set and XSAVE-Enabled Features").
    pub fn set_xcr0(&mut self, value: u64) -> Result<(), Exception> {
        let has = |bits: u64| value & bits == bits;
        let some_avx512 = value & xcr0::AVX512 != 0;
        let bad = !has(xcr0::X87)
            || value & !self.xcr0_allowed() != 0
            || (has(xcr0::AVX) && !has(xcr0::SSE))
            || (some_avx512 && !has(xcr0::AVX512 | xcr0::AVX));
        if bad {
            return Err(GP0);
        }
        self.state.xcr0 = value;
        Ok(())
    }

    pub(crate) fn swapgs(&mut self) -> Outcome {
        if !self.state.code64() {
            return Err(Exception::UNDEFINED.into());
        }
        self.require_cpl0()?;
        let state = &mut *self.state;
        std::mem::swap(&mut state.segments[seg::GS].base, &mut state.kernel_gs_base);
        Ok(())
    }

    fn require_fsgsbase(&self) -> Result<(), Exception> {
        match self.state.code64() && self.state.cr4 & cr4::FSGSBASE != 0 {
            true => Ok(()),
            false => Err(Exception::UNDEFINED),
        }
    }

    pub(crate) fn read_segment_base(&mut self, i: &Instruction) -> Outcome {
        self.require_fsgsbase()?;
        let segment = if i.mnemonic() == Mnemonic::Rdfsbase { seg::FS } else { seg::GS };
        self.gpr_write(i.op0_register(), self.state.segments[segment].base);
        Ok(())
    }

    pub(crate) fn write_segment_base(&mut self, i: &Instruction) -> Outcome {
        self.require_fsgsbase()?;
        let segment = if i.mnemonic() == Mnemonic::Wrfsbase { seg::FS } else { seg::GS };
        let base = self.gpr_read(i.op0_register());
        if !is_canonical(base) {
            return Err(GP0.into());
        }
        self.state.segments[segment].base = base;
        Ok(())
    }

    /// MOV r/m, Sreg: memory gets 16 bits, a register the zero-extended selector.
    pub(crate) fn mov_from_segment(&mut self, i: &Instruction) -> Outcome {
        let selector = self.operand_read(i, 1, 2)?;
        self.operand_write(i, 0, 2, selector)
    }

    /// MOV Sreg, r/m: CS is not a target; SS holds off interrupts for one instruction.
    pub(crate) fn mov_to_segment(&mut self, i: &Instruction) -> Outcome {
        let segment = super::operand::segment_index(i.op0_register());
        if segment == seg::CS || i.op0_kind() != OpKind::Register {
            return Err(Exception::UNDEFINED.into());
        }
        let selector = self.operand_read(i, 1, 2)? as u16;
        self.load_segment(segment, selector)?;
        self.note_stack_segment_load(segment);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Stop;
    use crate::system::fixture::{cpu32, cpu64, put, step, to_user, CODE, DATA};

    const MOV_CR0_RAX: &[u8] = &[0x0f, 0x22, 0xc0];
    const MOV_CR3_RAX: &[u8] = &[0x0f, 0x22, 0xd8];
    const MOV_CR4_RAX: &[u8] = &[0x0f, 0x22, 0xe0];
    const GP: Result<(), Stop> = Err(Stop::Exception(GP0));
    const UD: Result<(), Stop> = Err(Stop::Exception(Exception::UNDEFINED));

    fn run_with_rax(cpu: &mut Cpu, rax: u64, code: &[u8]) -> Outcome {
        cpu.state.gpr[gpr::RAX] = rax;
        crate::system::fixture::run(cpu, code)
    }

    /// Intel SDM vol. 2B "MOV—Move to/from Control Registers": illegal combinations.
    #[test]
    fn cr0_refuses_paging_without_protection_and_nw_without_cd() {
        let mut cpu = cpu32();
        assert_eq!(run_with_rax(&mut cpu, cr0::PG, MOV_CR0_RAX), GP);
        assert_eq!(run_with_rax(&mut cpu, cr0::PE | cr0::NW, MOV_CR0_RAX), GP);
        let mut cpu = cpu64();
        assert_eq!(run_with_rax(&mut cpu, cr0::PE, MOV_CR0_RAX), GP);
        let high = 1 << 32 | cpu.state.cr0;
        assert_eq!(run_with_rax(&mut cpu, high, MOV_CR0_RAX), GP);
        assert_eq!(cpu.state.rip, CODE);
    }

    /// Intel SDM vol. 3A §10.8.5: LME, PAE and PG together activate IA-32e mode.
    #[test]
    fn paging_with_lme_enters_long_mode_and_leaving_ends_it() {
        let mut cpu = cpu32();
        (cpu.state.efer, cpu.state.cr4) = (efer::LME, cr4::PAE);
        let on = cpu.state.cr0 | cr0::PG;
        assert_eq!(run_with_rax(&mut cpu, on, MOV_CR0_RAX), Ok(()));
        assert!(cpu.state.long_mode() && cpu.state.efer & efer::LMA != 0);
        assert_eq!(run_with_rax(&mut cpu, on & !cr0::PG, MOV_CR0_RAX), Ok(()));
        assert!(!cpu.state.long_mode());
        cpu.state.cr4 = 0;
        assert_eq!(run_with_rax(&mut cpu, on, MOV_CR0_RAX), GP);
    }

    #[test]
    fn cr4_takes_only_advertised_bits_and_keeps_pae_in_long_mode() {
        let mut cpu = cpu64();
        let cr4 = cpu.state.cr4;
        assert_eq!(run_with_rax(&mut cpu, cr4 | 1 << 12, MOV_CR4_RAX), GP);
        assert_eq!(run_with_rax(&mut cpu, cr4 & !cr4::PAE, MOV_CR4_RAX), GP);
        assert_eq!(run_with_rax(&mut cpu, cr4 | cr4::SMEP | cr4::SMAP | cr4::UMIP, MOV_CR4_RAX), Ok(()));
        cpu.cpuid.clear();
        let same = cpu.state.cr4;
        assert_eq!(run_with_rax(&mut cpu, same, MOV_CR4_RAX), GP);
    }

    /// Intel SDM vol. 3A §4.10.1: PCIDE needs long mode and a PCID of zero; then bit 63 keeps entries.
    #[test]
    fn pcide_rules() {
        let mut cpu = cpu64();
        let cr4 = cpu.state.cr4 | cr4::PCIDE;
        cpu.state.cr3 |= 5;
        assert_eq!(run_with_rax(&mut cpu, cr4, MOV_CR4_RAX), GP);
        cpu.state.cr3 &= !5;
        let cr3 = cpu.state.cr3;
        assert_eq!(run_with_rax(&mut cpu, cr3 | CR3_NO_FLUSH, MOV_CR3_RAX), GP);
        assert_eq!(run_with_rax(&mut cpu, cr4, MOV_CR4_RAX), Ok(()));
        assert_eq!(run_with_rax(&mut cpu, cr3 | 7 | CR3_NO_FLUSH, MOV_CR3_RAX), Ok(()));
        assert_eq!(cpu.state.cr3, cr3 | 7);
        assert_eq!(run_with_rax(&mut cpu, 1 << 60, MOV_CR3_RAX), GP);
    }

    /// Intel SDM vol. 3A §4.4.1: reserved bits in a present PDPTE.
    #[test]
    fn pae_paging_loads_the_pdptes_with_cr3() {
        let mut cpu = cpu32();
        cpu.state.cr4 |= cr4::PAE;
        cpu.state.cr0 |= cr0::PG;
        put(&cpu, DATA, 0x5001);
        assert_eq!(run_with_rax(&mut cpu, DATA, MOV_CR3_RAX), Ok(()));
        assert_eq!(cpu.state.pdptes, [0x5001, 0, 0, 0]);
        put(&cpu, DATA + 8, 0x5003);
        assert_eq!(run_with_rax(&mut cpu, DATA, MOV_CR3_RAX), GP);
    }

    #[test]
    fn lmsw_sets_but_never_clears_pe() {
        let mut cpu = cpu64();
        assert_eq!(run_with_rax(&mut cpu, 0xe, &[0x0f, 0x01, 0xf0]), Ok(()));
        assert_eq!(cpu.state.cr0 & 0xf, 0xf);
    }

    #[test]
    fn control_registers_are_privileged_and_cr1_does_not_exist() {
        let mut cpu = cpu64();
        to_user(&mut cpu);
        assert_eq!(run_with_rax(&mut cpu, 0, MOV_CR3_RAX), GP);
        assert_eq!(run_with_rax(&mut cpu, 0, &[0x0f, 0x06]), GP);
        assert_eq!(run_with_rax(&mut cpu, 0, &[0x0f, 0x01, 0xf8]), GP);
    }

    /// CR4.UMIP makes SMSW, SGDT and their kin privileged.
    #[test]
    fn umip_guards_smsw_and_sgdt() {
        let mut cpu = cpu64();
        to_user(&mut cpu);
        let smsw_eax = [0x0f, 0x01, 0xe0];
        step(&mut cpu, &smsw_eax);
        assert_eq!(cpu.state.gpr[gpr::RAX], cpu.state.cr0);
        cpu.state.cr4 |= cr4::UMIP;
        assert_eq!(run_with_rax(&mut cpu, DATA, &smsw_eax), GP);
        assert_eq!(run_with_rax(&mut cpu, DATA, &[0x0f, 0x01, 0x00]), GP);
    }

    /// Intel SDM vol. 1 §13.3: dependencies between components.
    #[test]
    fn xcr0_checks_dependencies() {
        let mut cpu = cpu64();
        let allowed = cpu.xcr0_allowed();
        assert_eq!(cpu.set_xcr0(0), Err(GP0));
        assert_eq!(cpu.set_xcr0(5), Err(GP0));
        assert_eq!(cpu.set_xcr0(1 << 9 | 1), Err(GP0));
        assert_eq!(cpu.set_xcr0(allowed), Ok(()));
        assert_eq!(cpu.set_xcr0(xcr0::X87 | 1 << 5), Err(GP0));
        cpu.state.cr4 &= !cr4::OSXSAVE;
        assert_eq!(run_with_rax(&mut cpu, 1, &[0x0f, 0x01, 0xd1]), UD);
    }

    #[test]
    fn invpcid_checks_its_descriptor() {
        let mut cpu = cpu64();
        let invpcid_rcx_rax = [0x66, 0x0f, 0x38, 0x82, 0x08];
        put(&cpu, DATA, 1);
        cpu.state.gpr[gpr::RCX] = 1;
        assert_eq!(run_with_rax(&mut cpu, DATA, &invpcid_rcx_rax), GP);
        cpu.state.gpr[gpr::RCX] = 2;
        assert_eq!(run_with_rax(&mut cpu, DATA, &invpcid_rcx_rax), Ok(()));
        cpu.state.gpr[gpr::RCX] = 4;
        assert_eq!(run_with_rax(&mut cpu, DATA, &invpcid_rcx_rax), GP);
    }

    #[test]
    fn swapgs_and_wrgsbase() {
        let mut cpu = cpu64();
        cpu.state.kernel_gs_base = 0x1234;
        step(&mut cpu, &[0x0f, 0x01, 0xf8]);
        assert_eq!(cpu.state.segments[seg::GS].base, 0x1234);
        let wrgsbase_rax = [0xf3, 0x48, 0x0f, 0xae, 0xd8];
        assert_eq!(run_with_rax(&mut cpu, 7, &wrgsbase_rax), UD);
        cpu.state.cr4 |= cr4::FSGSBASE;
        assert_eq!(run_with_rax(&mut cpu, 1 << 63, &wrgsbase_rax), GP);
        assert_eq!(run_with_rax(&mut cpu, 7, &wrgsbase_rax), Ok(()));
        assert_eq!(cpu.state.segments[seg::GS].base, 7);
    }

    #[test]
    fn cr8_is_four_bits() {
        let mut cpu = cpu64();
        let mov_cr8_rax = [0x44, 0x0f, 0x22, 0xc0];
        assert_eq!(run_with_rax(&mut cpu, 9, &mov_cr8_rax), Ok(()));
        assert_eq!(cpu.task_priority(), 9);
        assert_eq!(run_with_rax(&mut cpu, 16, &mov_cr8_rax), GP);
    }

    /// Where CPUID offers it (AMD's AltMovCr8).
    #[test]
    fn locked_moves_of_cr0_are_of_cr8() {
        let mut cpu = cpu64();
        cpu.set_task_priority(9).unwrap();
        let lock_mov_rax_cr0 = [0xf0, 0x0f, 0x20, 0xc0];
        let offered = cpu.cpuid_query(0x8000_0001, 0)[2] & 1 << 4 != 0;
        assert_eq!(run_with_rax(&mut cpu, 0, &lock_mov_rax_cr0), if offered { Ok(()) } else { UD });
        assert_eq!(cpu.state.gpr[gpr::RAX], if offered { 9 } else { 0 });
    }
}

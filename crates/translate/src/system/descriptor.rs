//! Descriptor tables: loading, storing and asking about descriptors.

use crate::cpu::{Cpu, Exception, Outcome};
use crate::mmu::walk::{is_canonical, Kind};
use crate::state::{flag, TableRegister};
use crate::system::memory::AccessMode;
use iced_x86::{Code, Instruction, Mnemonic, OpKind};

/// What LAR, LSL, VERR and VERW look at: the two low words of a descriptor.
#[derive(Debug, Clone, Copy)]
struct Queried {
    low: u32,
    high: u32,
}

impl Queried {
    fn kind(self) -> u8 {
        (self.high >> 8 & 0xf) as u8
    }
    fn is_code_or_data(self) -> bool {
        self.high & 1 << 12 != 0
    }
    fn is_code(self) -> bool {
        self.is_code_or_data() && self.kind() & 8 != 0
    }
    fn conforming(self) -> bool {
        self.is_code() && self.kind() & 4 != 0
    }
    fn dpl(self) -> u8 {
        (self.high >> 13 & 3) as u8
    }
    /// Limit in bytes.
    fn limit(self) -> u32 {
        let raw = self.low & 0xffff | self.high & 0xf_0000;
        match self.high & 1 << 23 != 0 {
            true => raw << 12 | 0xfff,
            false => raw,
        }
    }
}

impl Cpu {
    /// Protected mode and not virtual-8086, or #UD.
    fn require_protected(&self) -> Result<(), Exception> {
        match self.state.protected() && !self.state.v86() {
            true => Ok(()),
            false => Err(Exception::UNDEFINED),
        }
    }

    /// LGDT and LIDT: 2 bytes of limit, then a base of 24, 32 or 64 bits.
    pub(crate) fn load_table(&mut self, i: &Instruction) -> Outcome {
        self.require_cpl0()?;
        let code64 = self.state.code64();
        let base_size = if code64 { 8 } else { 4 };
        let at = self.memory_operand(i);
        let la = self.operand_linear(at, 2 + base_size, Kind::Read)?;
        let limit = self.read_u16(la, AccessMode::Current)?;
        let mut base = self.read_linear(la.wrapping_add(2), base_size as u8, AccessMode::Current)?;
        if matches!(i.code(), Code::Lgdt_m1632_16 | Code::Lidt_m1632_16) {
            base &= 0x00ff_ffff;
        }
        if code64 && !is_canonical(base) {
            return Err(Exception::protection(0).into());
        }
        let table = TableRegister { base, limit };
        match i.mnemonic() {
            Mnemonic::Lgdt => self.state.gdtr = table,
            _ => self.state.idtr = table,
        }
        Ok(())
    }

    /// SGDT and SIDT.
    pub(crate) fn store_table(&mut self, i: &Instruction) -> Outcome {
        self.require_no_umip()?;
        let table = match i.mnemonic() {
            Mnemonic::Sgdt => self.state.gdtr,
            _ => self.state.idtr,
        };
        let base_size = if self.state.code64() { 8 } else { 4 };
        let mut image = [0; 10];
        image[..2].copy_from_slice(&table.limit.to_le_bytes());
        image[2..].copy_from_slice(&table.base.to_le_bytes());
        let at = self.memory_operand(i);
        let la = self.operand_linear(at, 2 + base_size, Kind::Write)?;
        self.write_bytes(la, &image[..2 + base_size as usize], AccessMode::Current)
    }

    /// SLDT and STR: memory gets 16 bits.
    pub(crate) fn store_system_selector(&mut self, i: &Instruction) -> Outcome {
        self.require_protected()?;
        self.require_no_umip()?;
        let selector = match i.mnemonic() {
            Mnemonic::Sldt => self.state.ldtr.selector,
            _ => self.state.tr.selector,
        };
        self.operand_write(i, 0, 2, u64::from(selector))
    }

    /// LLDT and LTR.
    pub(crate) fn load_system_segment(&mut self, i: &Instruction) -> Outcome {
        self.require_protected()?;
        self.require_cpl0()?;
        let selector = self.operand_read(i, 0, 2)? as u16;
        match i.mnemonic() {
            Mnemonic::Lldt => self.load_ldtr(selector)?,
            _ => self.load_tr(selector)?,
        }
        Ok(())
    }

    /// Read a descriptor for LAR, LSL, VERR or VERW; `None` for null selectors and beyond the limit.
    fn query(&mut self, selector: u16) -> Result<Option<Queried>, Exception> {
        if selector & !3 == 0 {
            return Ok(None);
        }
        let (base, limit) = match selector & 4 != 0 {
            true if !self.state.ldtr.present() => return Ok(None),
            true => (self.state.ldtr.base, self.state.ldtr.limit),
            false => (self.state.gdtr.base, u32::from(self.state.gdtr.limit)),
        };
        let offset = u32::from(selector & !7);
        if offset + 7 > limit {
            return Ok(None);
        }
        let word = self.read_table(base.wrapping_add(u64::from(offset)), 8)?;
        Ok(Some(Queried { low: word as u32, high: (word >> 32) as u32 }))
    }

    /// Whether CPL and RPL may see the segment: conforming code always, others if DPL allows.
    fn visible(&self, descriptor: Queried, selector: u16) -> bool {
        let rpl = (selector & 3) as u8;
        descriptor.conforming() || descriptor.dpl() >= self.state.cpl().max(rpl)
    }

    /// LAR and LSL: the answer goes to the register, ZF says whether there is one.
    pub(crate) fn query_descriptor(&mut self, i: &Instruction) -> Outcome {
        self.require_protected()?;
        let selector = self.operand_read(i, 1, 2)? as u16;
        let lar = i.mnemonic() == Mnemonic::Lar;
        let long = self.state.long_mode();
        let found = self
            .query(selector)?
            .filter(|d| self.visible(*d, selector))
            .filter(|d| d.is_code_or_data() || system_type_answers(d.kind(), lar, long));
        self.assign_flag(flag::ZF, found.is_some());
        if let Some(descriptor) = found {
            let value = if lar { descriptor.high & 0x00ff_ff00 } else { descriptor.limit() };
            self.gpr_write(i.op0_register(), u64::from(value));
        }
        Ok(())
    }

    /// VERR and VERW: ZF says whether the segment is readable or writable from here.
    pub(crate) fn verify(&mut self, i: &Instruction) -> Outcome {
        self.require_protected()?;
        let selector = self.operand_read(i, 0, 2)? as u16;
        let read = i.mnemonic() == Mnemonic::Verr;
        let granted = |d: &Queried| match (d.is_code(), read) {
            (true, _) => read && d.kind() & 2 != 0,
            (false, true) => true,
            (false, false) => d.kind() & 2 != 0,
        };
        let found = self
            .query(selector)?
            .filter(|d| d.is_code_or_data() && granted(d))
            .filter(|d| self.visible(*d, selector));
        self.assign_flag(flag::ZF, found.is_some());
        Ok(())
    }

    /// ARPL: raise the RPL of the first selector to that of the second.
    pub(crate) fn arpl(&mut self, i: &Instruction) -> Outcome {
        self.require_protected()?;
        let target = self.operand_read(i, 0, 2)?;
        let source = self.operand_read(i, 1, 2)? & 3;
        let raise = target & 3 < source;
        if raise && i.op0_kind() == OpKind::Register {
            // 16 bits, whatever the operand size is.
            self.gpr_merge(i.op0_register().number(), 2, target & !3 | source);
        } else if raise {
            self.operand_write(i, 0, 2, target & !3 | source)?;
        }
        self.assign_flag(flag::ZF, raise);
        Ok(())
    }
}

/// System descriptor types that LAR or LSL answer for (Intel SDM vol. 2A "LAR" table 3-53, "LSL"
/// table 3-56): TSS and LDT; for LAR also call and task gates.
fn system_type_answers(kind: u8, lar: bool, long: bool) -> bool {
    match kind {
        2 | 9 | 11 => true,
        1 | 3 => !long,
        12 => lar,
        4 | 5 => lar && !long,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Stop;
    use crate::state::gpr;
    use crate::system::fixture::{cpu64, get, put, run, step, to_user, DATA};

    const LGDT_RAX: &[u8] = &[0x0f, 0x01, 0x10];
    const SGDT_RAX: &[u8] = &[0x0f, 0x01, 0x00];
    const LAR_EBX_EAX: &[u8] = &[0x0f, 0x02, 0xd8];
    const LSL_EBX_EAX: &[u8] = &[0x0f, 0x03, 0xd8];
    const VERW_AX: &[u8] = &[0x0f, 0x00, 0xe8];

    #[test]
    fn gdtr_round_trip_and_canonical_base() {
        let mut cpu = cpu64();
        cpu.state.gpr[gpr::RAX] = DATA;
        put(&cpu, DATA, 0x7f | 0x1234_5678_9abc << 16);
        step(&mut cpu, LGDT_RAX);
        assert_eq!(cpu.state.gdtr, TableRegister { base: 0x1234_5678_9abc, limit: 0x7f });
        cpu.state.gpr[gpr::RAX] = DATA + 16;
        step(&mut cpu, SGDT_RAX);
        assert_eq!(get(&cpu, DATA + 16), get(&cpu, DATA));
        put(&cpu, DATA + 2, 1 << 63);
        cpu.state.gpr[gpr::RAX] = DATA;
        assert_eq!(run(&mut cpu, LGDT_RAX), Err(Stop::Exception(Exception::protection(0))));
    }

    /// A GDT with, from selector 8 on: kernel code, kernel data with a limit of one page, user data.
    fn with_gdt() -> Cpu {
        let mut cpu = cpu64();
        cpu.state.gdtr = TableRegister { base: DATA, limit: 31 };
        put(&cpu, DATA + 8, 0x00af_9b00_0000_ffff);
        put(&cpu, DATA + 16, 0x00c0_9300_0000_0000);
        put(&cpu, DATA + 24, 0x00cf_f300_0000_ffff);
        cpu
    }

    fn ask(cpu: &mut Cpu, selector: u64, code: &[u8]) -> Option<u64> {
        cpu.state.gpr[gpr::RAX] = selector;
        cpu.state.gpr[gpr::RBX] = 0;
        step(cpu, code);
        (cpu.state.rflags & flag::ZF != 0).then_some(cpu.state.gpr[gpr::RBX])
    }

    #[test]
    fn lar_and_lsl_answer_for_visible_segments() {
        let mut cpu = with_gdt();
        assert_eq!(ask(&mut cpu, 8, LAR_EBX_EAX), Some(0x00af_9b00));
        assert_eq!(ask(&mut cpu, 16, LSL_EBX_EAX), Some(0xfff));
        assert_eq!(ask(&mut cpu, 0, LSL_EBX_EAX), None);
        assert_eq!(ask(&mut cpu, 32, LSL_EBX_EAX), None);
        assert_eq!(ask(&mut cpu, 19, LSL_EBX_EAX), None);
        to_user(&mut cpu);
        assert_eq!(ask(&mut cpu, 27, LSL_EBX_EAX), Some(0xffff_ffff));
        assert_eq!(ask(&mut cpu, 16, LSL_EBX_EAX), None);
    }

    #[test]
    fn verw_refuses_code() {
        let mut cpu = with_gdt();
        assert!(ask(&mut cpu, 8, VERW_AX).is_none());
        assert!(ask(&mut cpu, 16, VERW_AX).is_some());
    }
}

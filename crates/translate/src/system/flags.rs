//! RFLAGS: interrupt flag, PUSHF and POPF by mode and privilege, and the single-flag instructions.

use crate::cpu::{Cpu, Exception, Outcome};
use crate::state::{flag, gpr};
use iced_x86::{Instruction, Mnemonic};

const CR4_VME: u64 = 1 << 0;
const CR4_PVI: u64 = 1 << 1;
const CR4_SMAP: u64 = 1 << 21;

/// What POPF changes at every privilege level (Intel SDM vol. 2B "POPF"); RF becomes 0.
const POPF_ALWAYS: u64 = flag::ARITHMETIC | flag::TF | flag::DF | flag::NT | flag::AC | flag::ID;

/// How CLI, STI, PUSHF and POPF reach the interrupt flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum InterruptFlag {
    /// IF itself.
    Real,
    /// VIF stands in for it (virtual-8086 mode extensions, protected-mode virtual interrupts).
    Virtual,
    /// Not at all.
    Refused,
}

impl Cpu {
    /// I/O privilege level, 0 to 3.
    pub fn iopl(&self) -> u8 {
        ((self.state.rflags & flag::IOPL) >> 12) as u8
    }

    /// Intel SDM vol. 2A "CLI", table 3-6 (and "STI").
    fn interrupt_flag_access(&self) -> InterruptFlag {
        let state = &self.state;
        if !state.protected() {
            return InterruptFlag::Real;
        }
        if state.v86() {
            return match (self.iopl(), state.cr4 & CR4_VME != 0) {
                (3, _) => InterruptFlag::Real,
                (_, true) => InterruptFlag::Virtual,
                _ => InterruptFlag::Refused,
            };
        }
        if self.iopl() >= state.cpl() {
            return InterruptFlag::Real;
        }
        match state.cpl() == 3 && state.cr4 & CR4_PVI != 0 {
            true => InterruptFlag::Virtual,
            false => InterruptFlag::Refused,
        }
    }

    pub(crate) fn cli(&mut self) -> Outcome {
        match self.interrupt_flag_access() {
            InterruptFlag::Real => self.state.rflags &= !flag::IF,
            InterruptFlag::Virtual => self.state.rflags &= !flag::VIF,
            InterruptFlag::Refused => return Err(Exception::protection(0).into()),
        }
        Ok(())
    }

    /// Interrupts are held off for one more instruction only if they were disabled before.
    pub(crate) fn sti(&mut self) -> Outcome {
        match self.interrupt_flag_access() {
            InterruptFlag::Real => {
                self.events.interrupt_shadow = self.state.rflags & flag::IF == 0;
                self.state.rflags |= flag::IF;
                Ok(())
            }
            InterruptFlag::Virtual if self.state.rflags & flag::VIP == 0 => {
                self.state.rflags |= flag::VIF;
                Ok(())
            }
            _ => Err(Exception::protection(0).into()),
        }
    }

    pub(crate) fn pushf(&mut self, i: &Instruction) -> Outcome {
        let size = flags_size(i.mnemonic());
        let mut image = self.state.rflags & !(flag::VM | flag::RF);
        if self.state.v86() && self.iopl() < 3 {
            self.require_vme(size)?;
            image = (image & !flag::IF) | flag::IOPL;
            if self.state.rflags & flag::VIF != 0 {
                image |= flag::IF;
            }
        }
        self.push_value(size, image)
    }

    /// 16-bit PUSHF and POPF in virtual-8086 mode with IOPL below 3 need the mode's extensions.
    fn require_vme(&self, size: u8) -> Result<(), Exception> {
        match size == 2 && self.state.cr4 & CR4_VME != 0 {
            true => Ok(()),
            false => Err(Exception::protection(0)),
        }
    }

    pub(crate) fn popf(&mut self, i: &Instruction) -> Outcome {
        let size = flags_size(i.mnemonic());
        let virtual_if = self.state.v86() && self.iopl() < 3;
        if virtual_if {
            self.require_vme(size)?;
        }
        let image = self.peek_value(0, size)?;
        if virtual_if {
            self.popf_virtual(image)?;
        } else {
            self.set_flags_from_image(image, size);
        }
        self.drop_stack(i64::from(size));
        Ok(())
    }

    /// POPF with VIF in place of IF; TF may not be set, nor IF while an interrupt is pending.
    fn popf_virtual(&mut self, image: u64) -> Result<(), Exception> {
        let wants_if = image & flag::IF != 0;
        if image & flag::TF != 0 || (wants_if && self.state.rflags & flag::VIP != 0) {
            return Err(Exception::protection(0));
        }
        let mask = (POPF_ALWAYS & 0xffff) | flag::VIF;
        let value = (image & 0xffff) | if wants_if { flag::VIF } else { 0 };
        self.state.rflags = (self.state.rflags & !mask) | (value & mask) | flag::FIXED;
        Ok(())
    }

    /// Take the flags that the current privilege level may change from a popped image.
    pub fn set_flags_from_image(&mut self, image: u64, size: u8) {
        let mut mask = POPF_ALWAYS;
        let level = if self.state.protected() { self.state.cpl() } else { 0 };
        if level <= self.iopl() {
            mask |= flag::IF;
        }
        if level == 0 {
            mask |= flag::IOPL;
        }
        if size == 2 {
            mask &= 0xffff;
        }
        let kept = self.state.rflags & !mask & !if size == 2 { 0 } else { flag::RF };
        self.state.rflags = kept | (image & mask) | flag::FIXED;
    }

    /// STAC and CLAC: #UD without CR4.SMAP's CPUID bit or above CPL 0.
    pub(crate) fn set_ac(&mut self, on: bool) -> Outcome {
        let known = self.cpuid_bit(7, 0, 1, 20) || self.state.cr4 & CR4_SMAP != 0;
        if self.state.cpl() != 0 || !known {
            return Err(Exception::UNDEFINED.into());
        }
        match on {
            true => self.state.rflags |= flag::AC,
            false => self.state.rflags &= !flag::AC,
        }
        Ok(())
    }

    pub(crate) fn change_flag(&mut self, mnemonic: Mnemonic) -> Outcome {
        let rflags = &mut self.state.rflags;
        match mnemonic {
            Mnemonic::Cld => *rflags &= !flag::DF,
            Mnemonic::Std => *rflags |= flag::DF,
            Mnemonic::Clc => *rflags &= !flag::CF,
            Mnemonic::Stc => *rflags |= flag::CF,
            _ => *rflags ^= flag::CF,
        }
        Ok(())
    }

    pub(crate) fn flags_and_ah(&mut self, mnemonic: Mnemonic) -> Outcome {
        const IN_AH: u64 = flag::SF | flag::ZF | flag::AF | flag::PF | flag::CF;
        let state = &mut self.state;
        if mnemonic == Mnemonic::Lahf {
            let ah = (state.rflags & IN_AH) | flag::FIXED;
            state.gpr[gpr::RAX] = (state.gpr[gpr::RAX] & !0xff00) | (ah << 8);
        } else {
            let ah = state.gpr[gpr::RAX] >> 8;
            state.rflags = (state.rflags & !IN_AH) | (ah & IN_AH);
        }
        Ok(())
    }

    /// HLT; the run loop waits.
    pub(crate) fn halt(&mut self) -> Outcome {
        self.require_cpl0()?;
        self.events.halted = true;
        Ok(())
    }

    /// Set ZF, SF and PF from the low `size` bytes of a result.
    pub(crate) fn set_result_flags(&mut self, result: u64, size: u8) {
        let value = super::operand::truncate(result, size);
        let sign = value >> (8 * u32::from(size) - 1) & 1 != 0;
        let parity = (value as u8).count_ones() % 2 == 0;
        self.assign_flag(flag::ZF, value == 0);
        self.assign_flag(flag::SF, sign);
        self.assign_flag(flag::PF, parity);
    }

    /// Set or clear one flag.
    pub(crate) fn assign_flag(&mut self, bit: u64, on: bool) {
        match on {
            true => self.state.rflags |= bit,
            false => self.state.rflags &= !bit,
        }
    }
}

/// Operand size in bytes of a PUSHF or POPF.
fn flags_size(mnemonic: Mnemonic) -> u8 {
    match mnemonic {
        Mnemonic::Pushf | Mnemonic::Popf => 2,
        Mnemonic::Pushfd | Mnemonic::Popfd => 4,
        _ => 8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Stop;
    use crate::system::fixture::{cpu64, get, put, run, step, to_user, DATA};

    const POPFQ: &[u8] = &[0x9d];
    const PUSHFQ: &[u8] = &[0x9c];
    const GP: Result<(), Stop> = Err(Stop::Exception(Exception::protection(0)));

    fn popf(cpu: &mut Cpu, image: u64) -> u64 {
        put(cpu, DATA, image);
        cpu.state.gpr[gpr::RSP] = DATA;
        step(cpu, POPFQ);
        assert_eq!(cpu.state.gpr[gpr::RSP], DATA + 8);
        cpu.state.rflags
    }

    /// Intel SDM vol. 2B "POPF", table 4-16.
    #[test]
    fn popf_changes_what_the_privilege_level_allows() {
        let mut cpu = cpu64();
        let all = u64::MAX;
        let kernel = flag::ARITHMETIC
            | flag::TF
            | flag::IF
            | flag::DF
            | flag::IOPL
            | flag::NT
            | flag::AC
            | flag::ID
            | flag::FIXED;
        assert_eq!(popf(&mut cpu, all), kernel);
        assert_eq!(popf(&mut cpu, 0), flag::FIXED);
        to_user(&mut cpu);
        assert_eq!(popf(&mut cpu, all), kernel & !(flag::IF | flag::IOPL));
        cpu.state.rflags = flag::IOPL | flag::FIXED;
        assert_eq!(popf(&mut cpu, flag::IF), flag::IF | flag::IOPL | flag::FIXED);
    }

    #[test]
    fn pushf_hides_rf_and_vm() {
        let mut cpu = cpu64();
        cpu.state.rflags |= flag::RF | flag::CF;
        cpu.state.gpr[gpr::RSP] = DATA + 8;
        step(&mut cpu, PUSHFQ);
        assert_eq!(get(&cpu, DATA), flag::CF | flag::FIXED);
    }

    #[test]
    fn sti_holds_interrupts_off_only_after_disabled() {
        let mut cpu = cpu64();
        step(&mut cpu, &[0xfb]);
        assert!(cpu.events.interrupt_shadow && cpu.state.rflags & flag::IF != 0);
        step(&mut cpu, &[0xfb]);
        assert!(!cpu.events.interrupt_shadow);
        step(&mut cpu, &[0xfa]);
        assert_eq!(cpu.state.rflags & flag::IF, 0);
    }

    #[test]
    fn cli_and_hlt_are_refused_to_users() {
        let mut cpu = cpu64();
        to_user(&mut cpu);
        assert_eq!(run(&mut cpu, &[0xfa]), GP);
        assert_eq!(run(&mut cpu, &[0xf4]), GP);
        cpu.state.cr4 |= CR4_PVI;
        cpu.state.rflags |= flag::VIF;
        step(&mut cpu, &[0xfa]);
        assert_eq!(cpu.state.rflags & flag::VIF, 0);
    }

    #[test]
    fn stac_needs_cpl_0() {
        let mut cpu = cpu64();
        step(&mut cpu, &[0x0f, 0x01, 0xcb]);
        assert_ne!(cpu.state.rflags & flag::AC, 0);
        to_user(&mut cpu);
        assert_eq!(run(&mut cpu, &[0x0f, 0x01, 0xca]), Err(Exception::UNDEFINED.into()));
    }
}

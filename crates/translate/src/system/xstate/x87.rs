//! The x87 environment, its state as a whole, and its exceptions.

use super::layout::{get_u64, FCW_RESET, X87, X87_POINTERS, X87_REGISTERS};
use crate::cpu::{Cpu, Outcome};
use crate::mmu::walk::Kind;
use crate::system::control::cr0;
use crate::system::memory::AccessMode;
use iced_x86::{Code, Instruction, Mnemonic};

/// The FTW that FXSAVE abridges: 2 bits a register, by its contents.
fn full_tag_word(legacy: &[u8]) -> u16 {
    let top = (legacy[3] >> 3) & 7;
    (0..8u8).fold(0, |tags, physical| {
        let used = legacy[4] >> physical & 1 != 0;
        let slot = 32 + 16 * usize::from((physical.wrapping_sub(top)) & 7);
        let tag = if used { register_tag(&legacy[slot..slot + 10]) } else { 3 };
        tags | tag << (2 * physical)
    })
}

/// Valid, zero or special, for an 80-bit register.
fn register_tag(register: &[u8]) -> u16 {
    let mantissa = get_u64(register, 0);
    let exponent = u16::from_le_bytes([register[8], register[9]]) & 0x7fff;
    match (exponent, mantissa) {
        (0, 0) => 1,
        (0x7fff | 0, _) => 2,
        (_, m) if m >> 63 == 0 => 2,
        _ => 0,
    }
}

impl Cpu {
    /// FNSTENV and FNSAVE. Pointers are zero; afterwards all exceptions are masked (FNSTENV) or
    /// the unit is initialized (FNSAVE).
    pub(crate) fn store_x87(&mut self, i: &Instruction) -> Outcome {
        self.require_fpu(cr0::TS | cr0::EM)?;
        self.materialize_components(X87);
        let save = matches!(i.mnemonic(), Mnemonic::Fnsave | Mnemonic::Fsave);
        let word_size = x87_word_size(i);
        let mut image = [0; 108];
        let area = &self.state.vector.0;
        let tags = full_tag_word(area).to_le_bytes();
        for (n, word) in [[area[0], area[1]], [area[2], area[3]], tags].into_iter().enumerate() {
            let at = n * word_size;
            image[at..at + 2].copy_from_slice(&word);
            // The upper halves of the first three 32-bit words read as ones.
            image[at + 2..at + word_size].fill(0xff);
        }
        let environment = 7 * word_size;
        for n in 0..8 {
            let (at, slot) = (environment + 10 * n, X87_REGISTERS.start + 16 * n);
            image[at..at + 10].copy_from_slice(&area[slot..slot + 10]);
        }
        let size = if save { environment + 80 } else { environment };
        let la = self.operand_linear(self.memory_operand(i), size as u64, Kind::Write)?;
        self.check_image_alignment(la, word_size as u64)?;
        self.write_bytes(la, &image[..size], AccessMode::Current)?;
        match save {
            true => self.initialise_registers(),
            false => self.state.vector.0[0] |= 0x3f,
        }
        Ok(())
    }

    /// FNINIT.
    pub(crate) fn initialise_x87(&mut self) -> Outcome {
        self.require_fpu(cr0::TS | cr0::EM)?;
        self.materialize_components(X87);
        self.initialise_registers();
        Ok(())
    }

    /// Control, status and tags as FNINIT has them; what the registers hold stays, as MMX instructions see.
    fn initialise_registers(&mut self) {
        self.enter_mmx();
        let area = &mut self.state.vector.0;
        area[0..X87_POINTERS.end].fill(0);
        area[0..2].copy_from_slice(&FCW_RESET.to_le_bytes());
    }

    /// FNCLEX.
    pub(crate) fn clear_x87_exceptions(&mut self) -> Outcome {
        self.require_fpu(cr0::TS | cr0::EM)?;
        self.materialize_components(X87);
        let area = &mut self.state.vector.0;
        area[2] = 0;
        area[3] &= 0x7f;
        Ok(())
    }

    /// Whether an unmasked x87 exception is pending in the vCPU's area.
    pub(crate) fn math_error_pending(&mut self) -> bool {
        self.materialize_components(X87);
        self.state.vector.0[2] & !self.state.vector.0[0] & 0x3f != 0
    }

    /// Let the x87 `exceptions` (status word bits 0 to 5) be pending beside those that are.
    pub(crate) fn add_x87_exceptions(&mut self, exceptions: u16) {
        self.materialize_components(X87);
        let area = &mut self.state.vector.0;
        area[2] |= exceptions as u8;
        set_error_summary(area);
    }

    /// FLDENV and FRSTOR.
    pub(crate) fn load_x87(&mut self, i: &Instruction) -> Outcome {
        self.require_fpu(cr0::TS | cr0::EM)?;
        let restore = i.mnemonic() == Mnemonic::Frstor;
        let word_size = x87_word_size(i);
        let environment = 7 * word_size;
        let size = if restore { environment + 80 } else { environment };
        let la = self.operand_linear(self.memory_operand(i), size as u64, Kind::Read)?;
        self.check_image_alignment(la, word_size as u64)?;
        let mut image = [0; 108];
        self.read_bytes(la, &mut image[..size], AccessMode::Current)?;
        self.materialize_components(X87);
        self.take_environment(&image, word_size);
        if restore {
            for n in 0..8 {
                let (at, slot) = (environment + 10 * n, X87_REGISTERS.start + 16 * n);
                self.state.vector.0[slot..slot + 10].copy_from_slice(&image[at..at + 10]);
            }
        }
        Ok(())
    }

    fn take_environment(&mut self, image: &[u8], word_size: usize) {
        let tags = u16::from_le_bytes([image[2 * word_size], image[2 * word_size + 1]]);
        let area = &mut self.state.vector.0;
        area[0..2].copy_from_slice(&image[0..2]);
        area[2..4].copy_from_slice(&image[word_size..word_size + 2]);
        area[4] = (0..8).fold(0, |used, n| used | u8::from(tags >> (2 * n) & 3 != 3) << n);
        area[5..24].fill(0);
        set_error_summary(area);
    }
}

/// FSW.ES and B say whether an unmasked exception is pending, whatever was loaded.
fn set_error_summary(area: &mut [u8]) {
    let pending = area[2] & !area[0] & 0x3f != 0;
    area[2] = area[2] & 0x7f | u8::from(pending) << 7;
    area[3] = area[3] & 0x7f | u8::from(pending) << 7;
}

/// Bytes of each of the seven words of the environment: 4, or 2 in the 14- and 94-byte forms.
fn x87_word_size(i: &Instruction) -> usize {
    match i.code() {
        Code::Fnstenv_m14byte | Code::Fstenv_m14byte | Code::Fldenv_m14byte => 2,
        Code::Fnsave_m94byte | Code::Fsave_m94byte | Code::Frstor_m94byte => 2,
        _ => 4,
    }
}

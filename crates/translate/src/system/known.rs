//! Descriptors whose loading translated code may repeat by itself.

use super::segment::{is_null, rpl};
use crate::cpu::Cpu;
use crate::state::{KnownDescriptor, SegmentRegister, TableRegister, KNOWN_DESCRIPTORS};

/// What a descriptor is loaded for: the checks that it has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Use {
    /// ES or DS at level 0: flat writable data.
    Flat = 1 << 16,
    /// FS or GS at level 0: writable data of 4 GiB, anywhere.
    Whole = 2 << 16,
    /// CS by an interrupt return at level 0: 64-bit code of the selector's level, not conforming.
    ReturnCode = 3 << 16,
    /// SS by an interrupt return at level 0: flat writable data of the selector's level.
    ReturnStack = 4 << 16,
}

/// What the addresses of known descriptors depend on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tables {
    gdtr: TableRegister,
    ldtr: SegmentRegister,
    long: bool,
    protected: bool,
}

/// Descriptor bit 40 of data and code: accessed.
const ACCESSED: u16 = 1;
/// Type bits 3:1 of writable data that grows upwards.
const WRITABLE_DATA: u8 = 0b001;
/// Type bit: code; conforming or expand-down.
const CODE: u16 = 8;
const CONFORMING: u16 = 4;

impl Cpu {
    /// What the known descriptors hold for.
    pub(crate) fn tables(&self) -> Tables {
        let state = &self.state;
        let (long, protected) = (state.long_mode(), state.protected());
        Tables { gdtr: state.gdtr, ldtr: state.ldtr, long, protected }
    }

    /// Remember the descriptor that segment register `index` was just loaded from, if it is one of `usage`.
    pub(crate) fn note_descriptor(&mut self, index: usize, usage: Use) {
        let register = self.state.segments[index];
        let selector = register.selector;
        if is_null(selector) || self.selectors_are_paragraphs() || !fits(&register, usage) {
            return;
        }
        let Ok(Some(descriptor)) = self.descriptor(selector) else { return };
        if descriptor.register(selector) != register || register.attributes & ACCESSED == 0 {
            return;
        }
        let wide = if self.state.long_mode() { u64::MAX } else { 0xffff_ffff };
        let entry = usize::from(selector >> 3) % KNOWN_DESCRIPTORS;
        self.state.hot.known[entry] = KnownDescriptor {
            key: (u64::from(selector) + usage as u64).wrapping_neg(),
            address: descriptor.address & wide,
            raw: descriptor.raw.wrapping_neg(),
            base: register.base,
            image: register.image(),
        };
    }

    /// Forget all of them.
    pub(crate) fn forget_descriptors(&mut self) {
        self.state.hot.known = [KnownDescriptor::default(); KNOWN_DESCRIPTORS];
    }
}

/// Whether a register holds what `usage` promises.
fn fits(register: &SegmentRegister, usage: Use) -> bool {
    let whole = register.limit == u32::MAX && register.present();
    let flat = whole && register.base == 0;
    let data = register.is_code_or_data() && register.kind() >> 1 == WRITABLE_DATA;
    let level = rpl(register.selector);
    match usage {
        Use::Flat => flat && data,
        Use::Whole => whole && data,
        Use::ReturnCode => {
            let code = register.is_code_or_data() && register.attributes & (CODE | CONFORMING) == CODE;
            flat && code && register.long() && !register.big() && register.dpl() == level
        }
        Use::ReturnStack => flat && data && register.dpl() == level,
    }
}

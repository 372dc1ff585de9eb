//! The registers that the vCPU's XSAVE area holds, one by one.

use super::layout::{
    get_u32, get_u64, host_component, vector_parts, FCW_RESET, HEADER, MXCSR, VECTORS, X87, X87_REGISTERS,
    XMM_REGISTERS,
};
use crate::cpu::Cpu;

impl Cpu {
    /// Components of `state.vector` that are not in their initial configuration (XINUSE).
    pub fn components_in_use(&self) -> u64 {
        get_u64(&self.state.vector.0, HEADER)
    }

    pub(super) fn set_in_use(&mut self, components: u64) {
        self.state.vector.0[HEADER..HEADER + 8].copy_from_slice(&components.to_le_bytes());
    }

    /// The guest's MXCSR.
    pub fn mxcsr(&self) -> u32 {
        get_u32(&self.state.vector.0, MXCSR.start)
    }

    /// Give every component of the area its initial value if it is marked as unused, and mark it
    /// used: afterwards the bytes are what the registers hold.
    pub fn materialize_components(&mut self, components: u64) {
        let missing = components & !self.components_in_use();
        for number in (0..8).filter(|n| missing >> n & 1 != 0) {
            self.reset_component(number);
        }
        self.set_in_use(self.components_in_use() | components);
    }

    pub(super) fn reset_component(&mut self, number: u32) {
        let area = &mut self.state.vector.0;
        match number {
            0 => {
                area[0..24].fill(0);
                area[0..2].copy_from_slice(&FCW_RESET.to_le_bytes());
                area[X87_REGISTERS].fill(0);
            }
            1 => area[XMM_REGISTERS..XMM_REGISTERS + 256].fill(0),
            _ => {
                if let Some(component) = host_component(number) {
                    area[component.offset..component.offset + component.size].fill(0);
                }
            }
        }
    }

    /// Make the vector and opmask bytes of the area what the registers hold.
    pub fn materialize_vectors(&mut self) {
        self.materialize_components(self.state.xcr0 & VECTORS);
    }

    /// A vector register (0 to 31), zero-extended; after [`Self::materialize_vectors`].
    pub fn vector_register(&self, number: usize) -> [u8; 64] {
        let area = &self.state.vector.0;
        let mut data = [0; 64];
        for (bytes, from) in vector_parts(number).into_iter().flatten() {
            let size = bytes.len();
            data[bytes].copy_from_slice(&area[from..from + size]);
        }
        data
    }

    /// Replace a vector register; after [`Self::materialize_vectors`].
    pub fn set_vector_register(&mut self, number: usize, data: &[u8; 64]) {
        let area = &mut self.state.vector.0;
        for (bytes, to) in vector_parts(number).into_iter().flatten() {
            let size = bytes.len();
            area[to..to + size].copy_from_slice(&data[bytes]);
        }
    }

    /// An opmask register, 0 to 7; after [`Self::materialize_vectors`].
    pub fn opmask(&self, number: usize) -> u64 {
        host_component(5).map_or(0, |part| get_u64(&self.state.vector.0, part.offset + 8 * (number & 7)))
    }

    /// Replace an opmask register; after [`Self::materialize_vectors`].
    pub fn set_opmask(&mut self, number: usize, value: u64) {
        if let Some(part) = host_component(5) {
            let at = part.offset + 8 * (number & 7);
            self.state.vector.0[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
    }

    /// An MMX register, 0 to 7: the mantissa of a physical x87 register.
    pub fn mmx_register(&mut self, number: usize) -> u64 {
        self.materialize_components(X87);
        let slot = (number.wrapping_sub(self.x87_top())) & 7;
        get_u64(&self.state.vector.0, X87_REGISTERS.start + 16 * slot)
    }

    fn x87_top(&self) -> usize {
        usize::from(self.state.vector.0[3] >> 3 & 7)
    }

    /// What each MMX instruction does to the x87 unit: top of stack 0, all registers in use.
    pub fn enter_mmx(&mut self) {
        self.materialize_components(X87);
        let top = self.x87_top();
        let area = &mut self.state.vector.0;
        // The area lists registers from the top of the stack on.
        area[X87_REGISTERS].rotate_right(16 * top);
        area[3] &= !0x38;
        area[4] = 0xff;
    }
}

//! Vector and x87 state between the processor and `CpuState`.

use super::entry;
use super::vcpu::VcpuCore;
use crate::state::XSAVE_AREA_BYTES;
use iced_x86::Mnemonic;

impl VcpuCore {
    /// Make `state.vector` loadable, whatever its header and MXCSR were.
    pub fn tidy_vectors(&mut self) {
        const MXCSR: std::ops::Range<usize> = 24..28;
        const HEADER: std::ops::Range<usize> = 512..576;
        let area = &mut self.cpu.state.vector.0;
        let mut word = [0; 8];
        word.copy_from_slice(&area[512..520]);
        let components = u64::from_le_bytes(word) & self.xcr0_host;
        area[HEADER].fill(0);
        area[512..520].copy_from_slice(&components.to_le_bytes());
        let mut mxcsr = [0; 4];
        mxcsr.copy_from_slice(&area[MXCSR]);
        area[MXCSR].copy_from_slice(&(u32::from_le_bytes(mxcsr) & 0xffff).to_le_bytes());
    }

    /// Bring `state.vector` up to date; the processor's x87 unit is left at the host's defaults.
    pub fn store_vectors(&mut self) {
        if self.vectors_in_area {
            return;
        }
        let state = self.cpu.state.as_mut_ptr();
        // SAFETY: called inside `run`, on its thread, only while the vectors are not in the area;
        // the area is aligned and of 4 KiB, and `xcr0_host` within what the host enables.
        unsafe { entry::save_x87(state, (*state).vector.0.as_mut_ptr(), self.xcr0_host) };
        self.vectors_in_area = true;
    }

    pub(super) fn load_vectors(&mut self) {
        if !self.vectors_in_area {
            return;
        }
        let state = self.cpu.state.as_mut_ptr();
        // SAFETY: as in `store_vectors`; every writer of the area keeps its header valid.
        unsafe { entry::load_x87(state, (*state).vector.0.as_ptr(), self.xcr0_host) };
        self.vectors_in_area = false;
    }
}

/// Instructions whose compiled form reads or writes `state.vector`.
pub(super) fn uses_vectors(instruction: &iced_x86::Instruction) -> bool {
    use Mnemonic as M;
    let named = matches!(
        instruction.mnemonic(),
        M::Fxsave
            | M::Fxsave64
            | M::Fxrstor
            | M::Fxrstor64
            | M::Xsave
            | M::Xsave64
            | M::Xsaveopt
            | M::Xsaveopt64
            | M::Xsavec
            | M::Xsavec64
            | M::Xsaves
            | M::Xsaves64
            | M::Xrstor
            | M::Xrstor64
            | M::Xrstors
            | M::Xrstors64
            | M::Fnstenv
            | M::Fstenv
            | M::Fnsave
            | M::Fsave
            | M::Fninit
            | M::Fnclex
            | M::Maskmovq
            | M::Xgetbv
    );
    named
        || (0..instruction.op_count()).any(|index| {
            let register = instruction.op_register(index);
            register.is_xmm() || register.is_ymm() || register.is_zmm() || register.is_k() || register.is_mm()
        })
}

/// State components that vCPUs may use: x87, SSE, AVX, AVX-512, as far as the host enables them.
pub(super) fn host_xcr0() -> u64 {
    const MINE: u64 = 0xe7;
    // SAFETY: the engine refuses hosts without XSAVE (see `vm.rs`).
    let host = unsafe { std::arch::x86_64::_xgetbv(0) };
    const { assert!(XSAVE_AREA_BYTES >= 2696) };
    if host & 0xe0 == 0xe0 {
        host & MINE
    } else {
        host & 7
    }
}

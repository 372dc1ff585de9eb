//! Where guest registers live while translated code runs.
//!
//! Twelve guest registers have a host register of their own, ten of them the same one. RCX and
//! RSP are moved aside: host RCX is what `jrcxz` tests and what shifts count in, host RSP is the
//! vCPU's state, and its stack. R10, R11, R14 and R15 stay in memory, which the processor renames as it does registers
//! when it is addressed by RSP and a displacement alone; host RCX, R14 and R15 are scratch.

use super::Host;
use crate::state::CpuState;
use iced_x86::Register;
use std::mem::offset_of;

/// Where a guest general register is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Home {
    /// In a host register.
    Host(Host),
    /// In `CpuState::gpr`, at this offset in the state.
    Memory(i32),
}

/// Host register of guest RCX.
pub const GUEST_RCX: Host = Host::R11;
/// Host register of guest RSP.
pub const GUEST_RSP: Host = Host::R10;

/// Offset of a guest register's slot in the state.
pub const fn slot(guest: usize) -> i32 {
    (offset_of!(CpuState, gpr) + 8 * guest) as i32
}

/// Where guest register `number` (0 to 15, in encoding order) is.
pub const fn home(number: usize) -> Home {
    match number {
        1 => Home::Host(GUEST_RCX),
        4 => Home::Host(GUEST_RSP),
        10 | 11 | 14 | 15 => Home::Memory(slot(number)),
        _ => Home::Host(Host(number as u8)),
    }
}

/// The host register of guest register `number`, if it has one.
pub const fn in_register(number: usize) -> Option<Host> {
    match home(number) {
        Home::Host(host) => Some(host),
        Home::Memory(_) => None,
    }
}

/// The general register that holds `register` (AH is part of RAX), by number.
pub fn number(register: Register) -> Option<usize> {
    register.is_gpr().then(|| register.full_register().number())
}

/// AH, CH, DH or BH.
pub fn is_high_byte(register: Register) -> bool {
    matches!(register, Register::AH | Register::CH | Register::DH | Register::BH)
}

/// Host register `host` at the size of `like`, which must not be a high byte.
pub fn sized(host: Host, like: Register) -> Register {
    const BYTES: [Register; 16] = [
        Register::AL,
        Register::CL,
        Register::DL,
        Register::BL,
        Register::SPL,
        Register::BPL,
        Register::SIL,
        Register::DIL,
        Register::R8L,
        Register::R9L,
        Register::R10L,
        Register::R11L,
        Register::R12L,
        Register::R13L,
        Register::R14L,
        Register::R15L,
    ];
    let first = match like.size() {
        1 => return BYTES[usize::from(host.0)],
        2 => Register::AX,
        4 => Register::EAX,
        _ => Register::RAX,
    };
    first + u32::from(host.0)
}

//! Debug registers and breakpoint matching (Intel SDM vol. 3B ch. 18 "Debug, Branch Profile, ...",
//! §18.2 "Debug Registers").

use crate::cpu::{Cpu, Exception, Outcome};
use crate::state::CpuState;
use iced_x86::Instruction;

const CR4_DE: u64 = 1 << 3;
const DR6_BD: u64 = 1 << 13;
const DR6_FIXED_ONES: u64 = 0xffff_0ff0;
const DR6_WRITABLE: u64 = 0x0000_e00f;
const DR7_GD: u64 = 1 << 13;
const DR7_FIXED_ONES: u64 = 1 << 10;
const DR7_WRITABLE: u64 = 0xffff_23ff;
const DR7_ENABLES: u64 = 0xff;

/// What a breakpoint waits for: the R/W field of DR7.
const EXECUTE: u64 = 0;
const WRITE: u64 = 1;
const PORT: u64 = 2;
const READ_OR_WRITE: u64 = 3;

/// One enabled breakpoint.
#[derive(Debug, Clone, Copy)]
struct Breakpoint {
    bit: u64,
    kind: u64,
    address: u64,
    /// Bytes watched, a power of two; the address is taken as aligned to it.
    length: u64,
}

impl Breakpoint {
    fn overlaps(&self, address: u64, size: u64) -> bool {
        let start = self.address & !(self.length - 1);
        // Wrapping distances, so that an access at the top of the address space is compared rightly.
        address.wrapping_sub(start) < self.length || start.wrapping_sub(address) < size
    }
}

/// The enabled breakpoints of DR7.
fn enabled(state: &CpuState) -> impl Iterator<Item = Breakpoint> + '_ {
    const LENGTHS: [u64; 4] = [1, 2, 8, 4];
    (0..4).filter(|n| state.dr[7] >> (2 * n) & 3 != 0).map(|n| {
        let field = state.dr[7] >> (16 + 4 * n) & 0xf;
        Breakpoint {
            bit: 1 << n,
            kind: field & 3,
            address: state.dr[n],
            length: LENGTHS[(field >> 2) as usize],
        }
    })
}

impl Cpu {
    /// Whether DR7 enables any breakpoint.
    pub fn any_breakpoint_enabled(&self) -> bool {
        self.state.dr[7] & DR7_ENABLES != 0
    }

    /// DR6 bits of the instruction breakpoints at linear address `la` (the caller looks at RF).
    pub fn code_breakpoint_hit(&self, la: u64) -> u64 {
        enabled(&self.state).filter(|b| b.kind == EXECUTE && b.address == la).fold(0, |bits, b| bits | b.bit)
    }

    /// DR6 bits of the data breakpoints that an access of `size` bytes at `la` hits.
    pub fn data_breakpoints_hit(&self, la: u64, size: u64, write: bool) -> u64 {
        let wanted = |b: &Breakpoint| b.kind == READ_OR_WRITE || (write && b.kind == WRITE);
        enabled(&self.state).filter(|b| wanted(b) && b.overlaps(la, size)).fold(0, |bits, b| bits | b.bit)
    }

    /// Note an access for the breakpoints that are armed.
    #[inline]
    pub fn watch(&mut self, la: u64, size: u64, write: bool) {
        if self.watching {
            self.debug_hits |= self.data_breakpoints_hit(la, size, write);
        }
    }

    /// As [`Self::watch`] for a port.
    #[inline]
    pub fn watch_port(&mut self, port: u16, size: u8) {
        if self.watching {
            self.debug_hits |= self.port_breakpoints_hit(port, u64::from(size));
        }
    }

    /// DR6 bits of the I/O breakpoints that an access hits; they exist with CR4.DE only.
    pub fn port_breakpoints_hit(&self, port: u16, size: u64) -> u64 {
        if self.state.cr4 & CR4_DE == 0 {
            return 0;
        }
        enabled(&self.state)
            .filter(|b| b.kind == PORT && b.overlaps(u64::from(port), size))
            .fold(0, |bits, b| bits | b.bit)
    }

    /// After a load of SS interrupts and debug traps wait for one more instruction, which loads the
    /// stack pointer (Intel SDM vol. 3A §6.8.3 "Masking Exceptions and Interrupts When Switching Stacks").
    pub(crate) fn note_stack_segment_load(&mut self, segment: usize) {
        if segment == crate::state::seg::SS {
            self.events.interrupt_shadow = true;
            self.events.debug_shadow = true;
        }
    }

    /// Checks common to both directions of MOV DR, and the register meant.
    fn debug_register(&self, number: usize) -> Result<usize, Exception> {
        let aliased = matches!(number, 4 | 5);
        if number > 7 || (aliased && self.state.cr4 & CR4_DE != 0) {
            return Err(Exception::UNDEFINED);
        }
        self.require_cpl0()?;
        if self.state.dr[7] & DR7_GD != 0 {
            return Err(Exception::debug(DR6_BD));
        }
        Ok(if aliased { number + 2 } else { number })
    }

    pub(crate) fn mov_from_dr(&mut self, i: &Instruction) -> Outcome {
        let number = self.debug_register(i.op1_register().number())?;
        self.gpr_write(i.op0_register(), self.state.dr[number]);
        Ok(())
    }

    pub(crate) fn mov_to_dr(&mut self, i: &Instruction) -> Outcome {
        let number = self.debug_register(i.op0_register().number())?;
        let value = self.gpr_read(i.op1_register());
        if number >= 6 && value >> 32 != 0 {
            return Err(Exception::protection(0).into());
        }
        self.set_debug_register(number, value);
        Ok(())
    }

    /// Store a debug register (0 to 3, 6, 7) with its fixed bits.
    pub fn set_debug_register(&mut self, number: usize, value: u64) {
        self.state.dr[number & 7] = match number {
            6 => value & DR6_WRITABLE | DR6_FIXED_ONES,
            7 => value & DR7_WRITABLE | DR7_FIXED_ONES,
            _ => value,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Stop;
    use crate::state::gpr;
    use crate::system::fixture::{cpu64, run, step, to_user};

    const MOV_RAX_DR7: &[u8] = &[0x0f, 0x21, 0xf8];
    const MOV_DR7_RAX: &[u8] = &[0x0f, 0x23, 0xf8];
    const MOV_RAX_DR4: &[u8] = &[0x0f, 0x21, 0xe0];

    #[test]
    fn fixed_bits_and_upper_halves() {
        let mut cpu = cpu64();
        cpu.state.gpr[gpr::RAX] = 0xffff_dfff;
        step(&mut cpu, MOV_DR7_RAX);
        step(&mut cpu, MOV_RAX_DR7);
        assert_eq!(cpu.state.gpr[gpr::RAX], 0xffff_07ff);
        cpu.state.gpr[gpr::RAX] = 1 << 32;
        assert_eq!(run(&mut cpu, MOV_DR7_RAX), Err(Exception::protection(0).into()));
    }

    #[test]
    fn dr4_is_dr6_unless_debugging_extensions() {
        let mut cpu = cpu64();
        step(&mut cpu, MOV_RAX_DR4);
        assert_eq!(cpu.state.gpr[gpr::RAX], 0xffff_0ff0);
        cpu.state.cr4 |= CR4_DE;
        assert_eq!(run(&mut cpu, MOV_RAX_DR4), Err(Exception::UNDEFINED.into()));
    }

    #[test]
    fn general_detect_and_privilege() {
        let mut cpu = cpu64();
        cpu.state.dr[7] |= DR7_GD;
        assert_eq!(run(&mut cpu, MOV_RAX_DR7), Err(Stop::Exception(Exception::debug(DR6_BD))));
        to_user(&mut cpu);
        assert_eq!(run(&mut cpu, MOV_RAX_DR7), Err(Exception::protection(0).into()));
    }

    /// Intel SDM vol. 3B §18.2.5 "Breakpoint Field Recognition", table 18-1.
    #[test]
    fn breakpoints_match_by_kind_length_and_alignment() {
        let mut cpu = cpu64();
        cpu.state.dr[0] = 0x1002;
        cpu.state.dr[1] = 0x2000;
        cpu.state.dr[2] = 0x3000;
        // 0: 4 bytes, write; 1: execute (its field is 0); 2: 8 bytes, read or write, not enabled.
        cpu.state.dr[7] = 0b1101 << 16 | 0b1011 << 24 | 0b01 | 0b10 << 2;
        assert_eq!(cpu.data_breakpoints_hit(0x1000, 1, true), 1);
        assert_eq!(cpu.data_breakpoints_hit(0xfff, 2, true), 1);
        assert_eq!(cpu.data_breakpoints_hit(0x1004, 4, true), 0);
        assert_eq!(cpu.data_breakpoints_hit(0x1000, 4, false), 0);
        assert_eq!(cpu.data_breakpoints_hit(0x3000, 4, true), 0);
        assert_eq!(cpu.code_breakpoint_hit(0x2000), 2);
        assert_eq!(cpu.code_breakpoint_hit(0x2001), 0);
        cpu.state.dr[7] |= 1 << 4;
        assert_eq!(cpu.data_breakpoints_hit(0x3007, 1, false), 4);
    }
}

//! Port I/O: permission, in-core devices, exits.

use crate::cpu::{Cpu, Exception, Outcome, Stop};
use crate::state::gpr;
use crate::system::operand::truncate;
use iced_x86::{Instruction, OpKind};
use sublet_engine::Exit;

/// Devices in the core that answer ports before the machine outside is asked.
pub trait InCorePorts: Send + Sync {
    /// Read `size` (1, 2 or 4) bytes; `None` when the port is not this device's.
    fn pio_read(&self, port: u16, size: u8) -> Option<u64>;
    /// Write; `false` when the port is not this device's.
    fn pio_write(&self, port: u16, size: u8, value: u64) -> bool;
}

impl InCorePorts for sublet_irq::PlatformTimers {
    fn pio_read(&self, port: u16, size: u8) -> Option<u64> {
        Self::pio_read(self, port, size)
    }
    fn pio_write(&self, port: u16, size: u8, value: u64) -> bool {
        Self::pio_write(self, port, size, value)
    }
}

impl InCorePorts for sublet_engine::PortReadAhead {
    fn pio_read(&self, port: u16, size: u8) -> Option<u64> {
        self.read(port, size)
    }
    fn pio_write(&self, _port: u16, _size: u8, _value: u64) -> bool {
        false
    }
}

/// Offset of the I/O map base in a 32- or 64-bit TSS.
const IO_MAP_BASE: u64 = 0x66;

impl Cpu {
    /// Whether the program may access `size` ports from `port` on (Intel SDM vol. 1 §19.5
    /// "Protected-Mode I/O").
    ///
    /// # Errors
    /// #GP(0) if not; page faults of the TSS.
    pub fn check_port_access(&mut self, port: u16, size: u8) -> Result<(), Exception> {
        let restricted = self.state.v86() || self.state.cpl() > self.iopl();
        if !self.state.protected() || !restricted {
            return Ok(());
        }
        match self.port_bits_clear(port, size)? {
            true => Ok(()),
            false => Err(Exception::protection(0)),
        }
    }

    /// Look the ports up in the TSS's I/O map; two bytes are read, as the processor does.
    fn port_bits_clear(&mut self, port: u16, size: u8) -> Result<bool, Exception> {
        const AVAILABLE_OR_BUSY_TSS: [u8; 2] = [9, 11];
        let tr = self.state.tr;
        let limit = u64::from(tr.limit);
        if !tr.present() || !AVAILABLE_OR_BUSY_TSS.contains(&tr.kind()) || limit < IO_MAP_BASE + 1 {
            return Ok(false);
        }
        let map = self.read_table(tr.base.wrapping_add(IO_MAP_BASE), 2)?;
        let at = map + u64::from(port / 8);
        if at + 1 > limit {
            return Ok(false);
        }
        let bits = self.read_table(tr.base.wrapping_add(at), 2)?;
        let mask = ((1u64 << size) - 1) << (port % 8);
        Ok(bits & mask == 0)
    }

    /// Read a port: in-core devices, or the machine outside.
    ///
    /// # Errors
    /// [`Exit::PioIn`] until `complete_read` has brought the data.
    pub fn pio_read(&mut self, port: u16, size: u8) -> Outcome<u64> {
        self.watch_port(port, size);
        // What the machine outside has answered comes first: with its answer it may have offered more.
        let completed = self.take_completed_read(true, u64::from(port), size);
        match completed.or_else(|| self.in_core_read(port, size)) {
            Some(data) => Ok(truncate(data, size)),
            None => Err(Stop::Exit(Exit::PioIn { port, size })),
        }
    }

    fn in_core_read(&self, port: u16, size: u8) -> Option<u64> {
        let chip = self.irqchip.as_ref().and_then(|chip| chip.pio_read(port, size));
        chip.or_else(|| self.in_core_ports.iter().find_map(|device| device.pio_read(port, size)))
    }

    /// Write a port.
    ///
    /// # Errors
    /// [`Exit::PioOut`] unless an in-core device took the data.
    pub fn pio_write(&mut self, port: u16, size: u8, data: u64) -> Outcome {
        self.watch_port(port, size);
        let data = truncate(data, size);
        let taken = self.irqchip.as_ref().is_some_and(|chip| chip.pio_write(port, size, data))
            || self.in_core_ports.iter().any(|device| device.pio_write(port, size, data));
        match taken {
            true => Ok(()),
            false => Err(Stop::Exit(Exit::PioOut { port, size, data })),
        }
    }

    /// The port operand: an immediate byte, or DX.
    fn port_operand(&self, i: &Instruction, index: u32) -> u16 {
        match i.op_kind(index) {
            OpKind::Immediate8 => u16::from(i.immediate8()),
            _ => self.state.gpr[gpr::RDX] as u16,
        }
    }

    pub(crate) fn port_in(&mut self, i: &Instruction) -> Outcome {
        let target = i.op0_register();
        let size = target.size() as u8;
        let port = self.port_operand(i, 1);
        self.check_port_access(port, size)?;
        let data = self.pio_read(port, size)?;
        self.gpr_write(target, data);
        Ok(())
    }

    pub(crate) fn port_out(&mut self, i: &Instruction) -> Outcome {
        let source = i.op1_register();
        let size = source.size() as u8;
        let port = self.port_operand(i, 0);
        self.check_port_access(port, size)?;
        self.pio_write(port, size, self.gpr_read(source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::SegmentRegister;
    use crate::system::fixture::{cpu64, put, run, step, to_user, CODE, DATA};

    const IN_AL_DX: &[u8] = &[0xec];
    const OUT_DX_AL: &[u8] = &[0xee];
    const GP: Result<(), Stop> = Err(Stop::Exception(Exception::protection(0)));

    #[test]
    fn a_read_restarts_with_its_data_and_a_write_retires() {
        let mut cpu = cpu64();
        cpu.state.gpr[gpr::RDX] = 0x3f8;
        cpu.state.gpr[gpr::RAX] = 0x41;
        let exit = Exit::PioOut { port: 0x3f8, size: 1, data: 0x41 };
        assert_eq!(run(&mut cpu, OUT_DX_AL), Err(Stop::Exit(exit)));
        assert_eq!(cpu.state.rip, CODE + 1);
        let exit = Exit::PioIn { port: 0x3f8, size: 1 };
        assert_eq!(run(&mut cpu, IN_AL_DX), Err(Stop::Exit(exit)));
        assert_eq!(cpu.state.rip, CODE + 1);
        cpu.completed_read = Some((true, 0x3f8, 1, 0x5a));
        step(&mut cpu, IN_AL_DX);
        assert_eq!((cpu.state.rip, cpu.state.gpr[gpr::RAX]), (CODE + 2, 0x5a));
    }

    /// Intel SDM vol. 1 §19.5.2 "I/O Permission Bit Map".
    #[test]
    fn users_need_iopl_or_a_clear_bit_in_the_map() {
        let mut cpu = cpu64();
        to_user(&mut cpu);
        cpu.state.gpr[gpr::RDX] = 0x80;
        cpu.state.tr = SegmentRegister { base: DATA, limit: 0x67 + 0x20, selector: 8, attributes: 0x8b };
        put(&cpu, DATA + 0x66, 0x68);
        put(&cpu, DATA + 0x68 + 0x10, 0xfe);
        let exit = Exit::PioOut { port: 0x80, size: 1, data: 0 };
        assert_eq!(run(&mut cpu, OUT_DX_AL), Err(Stop::Exit(exit)));
        cpu.state.gpr[gpr::RDX] = 0x81;
        assert_eq!(run(&mut cpu, OUT_DX_AL), GP);
        cpu.state.gpr[gpr::RDX] = 0x400;
        assert_eq!(run(&mut cpu, OUT_DX_AL), GP);
        cpu.state.rflags |= crate::state::flag::IOPL;
        let exit = Exit::PioOut { port: 0x400, size: 1, data: 0 };
        assert_eq!(run(&mut cpu, OUT_DX_AL), Err(Stop::Exit(exit)));
    }

    struct Scratch;

    impl InCorePorts for Scratch {
        fn pio_read(&self, port: u16, _size: u8) -> Option<u64> {
            (port == 0x70).then_some(0xabcd)
        }
        fn pio_write(&self, port: u16, _size: u8, _value: u64) -> bool {
            port == 0x70
        }
    }

    #[test]
    fn in_core_devices_are_asked_first() {
        let mut cpu = cpu64();
        cpu.in_core_ports.push(std::sync::Arc::new(Scratch));
        step(&mut cpu, &[0xe4, 0x70]);
        assert_eq!(cpu.state.gpr[gpr::RAX], 0xcd);
        step(&mut cpu, &[0xe6, 0x70]);
    }
}

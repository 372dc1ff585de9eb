//! Register access: the xAPIC page, the x2APIC MSRs, and what a write sets off.

use super::registers::{error, lvt, reg, x2apic_ldr, Registers, SVR_WRITABLE, VERSION};
use super::timer::TimerMode;
use super::{count, LocalApic};
use crate::message::{DeliveryMode, Destination, Message};
use crate::sync::lock;
use crate::GeneralProtection;

/// First x2APIC MSR.
const MSR_BASE: u32 = 0x800;
/// Bits of the ICR's low half that are kept: all but the reserved ones and delivery status.
const ICR_LOW_WRITABLE: u64 = 0x000c_cfff;
/// ICR level bit: assert.
const ICR_ASSERT: u64 = 1 << 14;
/// ICR trigger mode bit: level.
const ICR_LEVEL: u64 = 1 << 15;

/// What a register write asks of others, once the register lock is released.
enum Effect {
    Nothing,
    /// An ICR was written: send.
    Send(u64),
    /// A level-triggered interrupt ended.
    EndOfInterrupt(u8),
}

impl LocalApic {
    /// Read 32 bits of the xAPIC page. Reserved registers read as 0 and set ESR bit 7; a page that is
    /// not decoded (x2APIC mode, disabled) reads as all ones.
    ///
    /// `offset` counts bytes from the start of the page; an offset that is not a multiple of 16 reads as 0.
    pub fn mmio_read(&self, offset: u32) -> u32 {
        if !self.enabled() || self.is_x2apic() {
            return u32::MAX;
        }
        if offset & 0xf != 0 {
            return 0;
        }
        self.read_register(offset >> 4).unwrap_or_else(|| {
            self.update(|registers| registers.record_error(error::ILLEGAL_REGISTER));
            0
        })
    }

    /// Write 32 bits of the xAPIC page. What cannot be written is ignored, reserved registers set ESR bit 7.
    pub fn mmio_write(&self, offset: u32, value: u32) {
        if !self.enabled() || self.is_x2apic() || offset & 0xf != 0 {
            return;
        }
        self.write_register(offset >> 4, value);
    }

    /// Read MSR 0x800 to 0x8ff.
    ///
    /// # Errors
    /// Not in x2APIC mode; a reserved or write-only register (SDM vol. 3A table 11-6).
    pub fn msr_read(&self, msr: u32) -> Result<u64, GeneralProtection> {
        let index = self.x2apic_index(msr)?;
        match index {
            reg::ICR => Ok(lock(&self.registers).icr),
            _ if x2apic_readable(index) => self.read_register(index).map(u64::from).ok_or(GeneralProtection),
            _ => Err(GeneralProtection),
        }
    }

    /// Write MSR 0x800 to 0x8ff.
    ///
    /// # Errors
    /// Not in x2APIC mode; a reserved or read-only register; a reserved bit set.
    pub fn msr_write(&self, msr: u32, value: u64) -> Result<(), GeneralProtection> {
        let index = self.x2apic_index(msr)?;
        if index == reg::ICR {
            return self.write_x2apic_icr(value);
        }
        let reserved = x2apic_reserved(index).ok_or(GeneralProtection)?;
        if value & reserved != 0 {
            return Err(GeneralProtection);
        }
        match index {
            reg::SELF_IPI => self.send_ipi(1 << 18 | value),
            _ => self.write_register(index, value as u32),
        }
        Ok(())
    }

    fn x2apic_index(&self, msr: u32) -> Result<u32, GeneralProtection> {
        let index = msr.checked_sub(MSR_BASE).filter(|index| *index < 0x100);
        index.filter(|_| self.is_x2apic()).ok_or(GeneralProtection)
    }

    fn write_x2apic_icr(&self, value: u64) -> Result<(), GeneralProtection> {
        if value & 0xffff_ffff & !ICR_LOW_WRITABLE & !(1 << 12) != 0 {
            return Err(GeneralProtection);
        }
        let icr = value & !(1 << 12);
        self.update(|registers| registers.icr = icr);
        self.send_ipi(icr);
        Ok(())
    }

    /// A register as 32 bits, `None` where there is none.
    fn read_register(&self, index: u32) -> Option<u32> {
        if index == reg::CURRENT_COUNT {
            let now = self.clock.now_ns();
            let registers = lock(&self.registers);
            return Some(registers.timer.current(registers.timer_mode(), now));
        }
        let registers = lock(&self.registers);
        Some(match index {
            reg::ID if registers.is_x2apic() => self.id,
            reg::ID => self.id << 24,
            reg::VERSION => VERSION,
            reg::TPR => u32::from(registers.tpr),
            reg::PPR => u32::from(registers.ppr()),
            reg::APR | reg::RRD | reg::EOI => 0,
            reg::LDR if registers.is_x2apic() => x2apic_ldr(self.id),
            reg::LDR => registers.ldr,
            reg::DFR => registers.dfr,
            reg::SVR => registers.svr,
            reg::ISR..=reg::IRR_END => vector_word(&registers, index),
            reg::ESR => registers.esr,
            reg::ICR => registers.icr as u32,
            reg::ICR_HIGH => (registers.icr >> 32) as u32,
            reg::LVT_TIMER..=reg::LVT_ERROR => registers.lvt[(index - reg::LVT_TIMER) as usize],
            reg::INITIAL_COUNT => registers.timer.initial,
            reg::DIVIDE => registers.timer.divide,
            _ => return None,
        })
    }

    fn write_register(&self, index: u32, value: u32) {
        let effect = match index {
            reg::LVT_TIMER | reg::INITIAL_COUNT | reg::DIVIDE => {
                let now = self.clock.now_ns();
                self.update(|registers| self.write_timer(registers, index, value, now));
                Effect::Nothing
            }
            _ => self.update(|registers| write_plain(registers, index, value)),
        };
        match effect {
            Effect::Nothing => {}
            Effect::Send(icr) => self.send_ipi(icr),
            Effect::EndOfInterrupt(vector) => {
                if let Some(fabric) = self.fabric.upgrade() {
                    fabric.end_of_interrupt(vector);
                }
            }
        }
    }

    fn write_timer(&self, registers: &mut Registers, index: u32, value: u32, now_ns: u64) {
        self.settle(registers, now_ns);
        let mode = registers.timer_mode();
        match index {
            reg::LVT_TIMER => registers.set_lvt_timer(value, now_ns),
            reg::DIVIDE => registers.timer.set_divide(value & 0xb, mode, now_ns),
            _ if mode == TimerMode::TscDeadline => {}
            _ => registers.timer.start(value, now_ns),
        }
    }

    /// Send what an ICR value says (SDM vol. 3A §11.6 "Issuing Interprocessor Interrupts").
    fn send_ipi(&self, icr: u64) {
        let Some(message) = self.ipi(icr) else { return };
        count(&self.sent);
        let shorthand = (icr >> 18) & 3;
        if shorthand == 1 {
            self.accept(&message);
            return;
        }
        let Some(fabric) = self.fabric.upgrade() else { return };
        match shorthand {
            0 => fabric.deliver(&message),
            2 => fabric.deliver_where(&message, |_| true),
            _ => fabric.deliver_where(&message, |apic| apic.id != self.id),
        };
    }

    /// The message of an ICR value; `None` for what is never sent.
    fn ipi(&self, icr: u64) -> Option<Message> {
        let mode = DeliveryMode::of(icr as u32).filter(|mode| *mode != DeliveryMode::ExtInt)?;
        let vector = icr as u8;
        if mode.is_vectored() && vector < 16 {
            self.update(|registers| registers.record_error(error::SEND_ILLEGAL_VECTOR));
            return None;
        }
        if mode == DeliveryMode::Init && icr & (ICR_LEVEL | ICR_ASSERT) == ICR_LEVEL {
            return None;
        }
        let wide = self.is_x2apic();
        let id = (icr >> if wide { 32 } else { 56 }) as u32;
        let destination = Destination { id, logical: icr & 1 << 11 != 0, wide };
        Some(Message { vector, mode, level_triggered: false, destination, to_one: false, reports_eoi: false })
    }
}

fn vector_word(registers: &Registers, index: u32) -> u32 {
    let word = (index & 7) as usize;
    match index & !7 {
        reg::ISR => registers.isr.0[word],
        reg::TMR => registers.tmr.0[word],
        _ => registers.irr.0[word],
    }
}

/// Write a register that needs neither the clock nor other APICs.
fn write_plain(registers: &mut Registers, index: u32, value: u32) -> Effect {
    match index {
        reg::TPR => registers.tpr = value as u8,
        reg::EOI => return registers.end_of_interrupt().map_or(Effect::Nothing, Effect::EndOfInterrupt),
        reg::LDR => registers.ldr = value & 0xff00_0000,
        reg::DFR => registers.dfr = value | 0x0fff_ffff,
        reg::SVR => registers.set_svr(value),
        reg::ESR => registers.esr = std::mem::take(&mut registers.errors),
        reg::ICR => {
            registers.icr = registers.icr >> 32 << 32 | u64::from(value) & ICR_LOW_WRITABLE;
            return Effect::Send(registers.icr);
        }
        reg::ICR_HIGH => {
            registers.icr = u64::from(value & 0xff00_0000) << 32 | registers.icr & 0xffff_ffff;
        }
        reg::LVT_TIMER..=reg::LVT_ERROR => registers.set_lvt((index - reg::LVT_TIMER) as usize, value),
        reg::ID | reg::VERSION | reg::APR | reg::PPR | reg::RRD => {}
        reg::ISR..=reg::IRR_END | reg::CURRENT_COUNT => {}
        _ => registers.record_error(error::ILLEGAL_REGISTER),
    }
    Effect::Nothing
}

fn x2apic_readable(index: u32) -> bool {
    matches!(
        index,
        reg::ID
            | reg::VERSION
            | reg::TPR
            | reg::PPR
            | reg::LDR
            | reg::SVR
            | reg::ISR..=reg::ESR
            | reg::LVT_TIMER..=reg::CURRENT_COUNT
            | reg::DIVIDE
    )
}

/// Bits that must be 0 in a write, `None` for what cannot be written (SDM vol. 3A table 11-6).
fn x2apic_reserved(index: u32) -> Option<u64> {
    let writable = match index {
        reg::TPR | reg::SELF_IPI => 0xff,
        reg::EOI | reg::ESR => 0,
        reg::SVR => SVR_WRITABLE,
        // Delivery status and remote IRR are read-only, not reserved.
        reg::LVT_TIMER..=reg::LVT_ERROR => lvt::WRITABLE[(index - reg::LVT_TIMER) as usize] | 0x5000,
        reg::INITIAL_COUNT => u32::MAX,
        reg::DIVIDE => 0xb,
        _ => return None,
    };
    Some(!u64::from(writable))
}

//! The pair of 8259A interrupt controllers and their edge/level control registers.
//!
//! References: Intel 8259A Programmable Interrupt Controller (231468-003); Intel 82371AB (PIIX4) §4.1.3
//! and ICH datasheets for ELCR.
//!
//! Deviation: a rise latches a request that survives the fall of the line, as in the virtual
//! platforms guests know; on the chip a line that falls before the acknowledgement becomes a spurious
//! interrupt 7. Spurious interrupts still occur for level-triggered and for newly masked lines.

use crate::message::Delivery;

/// What an initialisation sequence expects next at the data port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Initialisation {
    /// Nothing: the data port is the mask.
    #[default]
    Done,
    /// ICW2, the vector base.
    Icw2,
    /// ICW3, the cascade.
    Icw3,
    /// ICW4, the mode.
    Icw4,
}

/// One 8259A; its state as it is saved.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pic {
    /// Levels of the inputs.
    pub lines: u8,
    /// Latched rises of edge-triggered inputs.
    pub latched: u8,
    /// Interrupt mask register.
    pub imr: u8,
    /// In-service register.
    pub isr: u8,
    /// Inputs that are level-triggered (ELCR).
    pub elcr: u8,
    /// Vector of input 0; the low three bits are clear.
    pub vector_base: u8,
    /// Input of lowest priority, 0 to 7.
    pub lowest: u8,
    /// Progress of the initialisation sequence.
    pub initialisation: Initialisation,
    /// ICW1 announced an ICW4.
    pub wants_icw4: bool,
    /// ICW1 said that there is no cascade, hence no ICW3.
    pub single: bool,
    /// End of interrupt at the acknowledgement (ICW4).
    pub auto_eoi: bool,
    /// Rotate priorities at an automatic end of interrupt (OCW2).
    pub rotate_on_auto_eoi: bool,
    /// Special mask mode (OCW3).
    pub special_mask: bool,
    /// Special fully nested mode (ICW4).
    pub fully_nested: bool,
    /// The next read is a poll (OCW3).
    pub poll: bool,
    /// The command port reads ISR, not IRR (OCW3).
    pub read_isr: bool,
    /// The input that cascades another 8259A, as a bitmap: 4 on the master, 0 on the slave.
    pub cascade: u8,
}

impl Pic {
    fn new(cascade: u8) -> Self {
        Self { cascade, lowest: 7, ..Self::default() }
    }

    /// RESET; the lines are wires and stay.
    fn reset(&mut self) {
        *self = Self { lines: self.lines, ..Self::new(self.cascade) };
    }

    /// Interrupt request register. The cascade follows its line.
    fn irr(&self) -> u8 {
        let level = self.elcr | self.cascade;
        self.latched & !level | self.lines & level
    }

    fn set_line(&mut self, input: u8, level: bool) {
        let bit = 1 << input;
        if level {
            self.latched |= bit & !self.lines;
            self.lines |= bit;
        } else {
            self.lines &= !bit;
        }
    }

    /// Inputs from highest to lowest priority.
    fn by_priority(&self) -> impl Iterator<Item = u8> {
        let lowest = self.lowest;
        (1..=8).map(move |step| (lowest + step) & 7)
    }

    /// The input whose interrupt is to be acknowledged: of those requested and not masked the first
    /// that comes before everything in service (8259A "Fully Nested Mode", "Special Mask Mode").
    fn interrupt(&self) -> Option<u8> {
        let requests = self.irr() & !self.imr;
        let blocking = if self.special_mask { self.isr & !self.imr } else { self.isr };
        for input in self.by_priority() {
            let bit = 1 << input;
            let nested = self.fully_nested && bit == self.cascade;
            if blocking & bit != 0 && !(nested && requests & bit != 0) {
                return None;
            }
            if requests & bit != 0 {
                return Some(input);
            }
        }
        None
    }

    /// What a rise of an edge-triggered input would come to.
    fn rise(&self, input: u8) -> Delivery {
        let bit = 1 << input;
        match (self.imr & bit != 0, self.latched & bit != 0) {
            (true, _) => Delivery::Refused,
            (false, true) => Delivery::Merged,
            (false, false) => Delivery::Accepted,
        }
    }

    fn take(&mut self, input: u8) {
        let bit = 1 << input;
        self.latched &= !bit;
        if !self.auto_eoi {
            self.isr |= bit;
        } else if self.rotate_on_auto_eoi {
            self.lowest = input;
        }
    }

    fn vector(&self, input: u8) -> u8 {
        self.vector_base | input
    }

    fn read_command(&mut self) -> u8 {
        if std::mem::take(&mut self.poll) {
            return self.answer_poll();
        }
        if self.read_isr {
            self.isr
        } else {
            self.irr()
        }
    }

    fn read_data(&mut self) -> u8 {
        if std::mem::take(&mut self.poll) {
            return self.answer_poll();
        }
        self.imr
    }

    /// A poll acknowledges (8259A "Poll Command").
    fn answer_poll(&mut self) -> u8 {
        match self.interrupt() {
            Some(input) => {
                self.take(input);
                0x80 | input
            }
            None => 0,
        }
    }

    fn write_command(&mut self, value: u8) {
        match value & 0x18 {
            _ if value & 0x10 != 0 => self.write_icw1(value),
            0x08 => self.write_ocw3(value),
            _ => self.write_ocw2(value),
        }
    }

    fn write_icw1(&mut self, value: u8) {
        *self = Self {
            lines: self.lines,
            elcr: self.elcr,
            vector_base: self.vector_base,
            ..Self::new(self.cascade)
        };
        self.wants_icw4 = value & 1 != 0;
        self.single = value & 2 != 0;
        self.initialisation = Initialisation::Icw2;
    }

    fn write_ocw2(&mut self, value: u8) {
        let named = value & 7;
        match value >> 5 {
            0 => self.rotate_on_auto_eoi = false,
            1 => drop(self.end_of_interrupt()),
            3 => self.isr &= !(1 << named),
            4 => self.rotate_on_auto_eoi = true,
            5 => self.lowest = self.end_of_interrupt().unwrap_or(self.lowest),
            6 => self.lowest = named,
            7 => {
                self.isr &= !(1 << named);
                self.lowest = named;
            }
            _ => {}
        }
    }

    /// Non-specific EOI: the input of highest priority in service, but for masked ones in special mask mode.
    fn end_of_interrupt(&mut self) -> Option<u8> {
        let candidates = if self.special_mask { self.isr & !self.imr } else { self.isr };
        let input = self.by_priority().find(|input| candidates & (1 << input) != 0)?;
        self.isr &= !(1 << input);
        Some(input)
    }

    fn write_ocw3(&mut self, value: u8) {
        if value & 4 != 0 {
            self.poll = true;
        }
        if value & 2 != 0 {
            self.read_isr = value & 1 != 0;
        }
        if value & 0x40 != 0 {
            self.special_mask = value & 0x20 != 0;
        }
    }

    fn write_data(&mut self, value: u8) {
        self.initialisation = match self.initialisation {
            Initialisation::Done => {
                self.imr = value;
                Initialisation::Done
            }
            Initialisation::Icw2 => {
                self.vector_base = value & 0xf8;
                if self.single {
                    self.after_icw3()
                } else {
                    Initialisation::Icw3
                }
            }
            Initialisation::Icw3 => self.after_icw3(),
            Initialisation::Icw4 => {
                self.auto_eoi = value & 2 != 0;
                self.fully_nested = value & 0x10 != 0;
                Initialisation::Done
            }
        };
    }

    fn after_icw3(&self) -> Initialisation {
        if self.wants_icw4 {
            Initialisation::Icw4
        } else {
            Initialisation::Done
        }
    }
}

/// ELCR bits that can be set: not IRQ 0, 1, 2, 8, 13.
const ELCR_WRITABLE: [u8; 2] = [0xf8, 0xde];
/// The master's input that the slave drives.
const CASCADE_INPUT: u8 = 2;

/// Both controllers as a PC wires them; their state as it is saved. Guarded by the lock on the lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PicPair {
    /// Master (ports 0x20, 0x21; IRQ 0 to 7) and slave (0xa0, 0xa1; IRQ 8 to 15).
    pub chips: [Pic; 2],
}

impl Default for PicPair {
    fn default() -> Self {
        Self { chips: [Pic::new(1 << CASCADE_INPUT), Pic::new(0)] }
    }
}

impl PicPair {
    /// A saved state. What no register can hold is brought into range.
    pub(crate) fn restored(&self) -> Self {
        let mut pair = self.clone();
        for (chip, cascade) in pair.chips.iter_mut().zip([1 << CASCADE_INPUT, 0]) {
            chip.lowest &= 7;
            chip.vector_base &= 0xf8;
            chip.cascade = cascade;
        }
        pair.cascade();
        pair
    }

    /// RESET.
    pub(crate) fn reset(&mut self) {
        self.chips.iter_mut().for_each(Pic::reset);
        self.cascade();
    }

    /// Set the level of IRQ 0 to 15. IRQ 2 is the cascade and takes no level.
    pub(crate) fn set_line(&mut self, irq: u8, level: bool) {
        match irq {
            CASCADE_INPUT | 16.. => return,
            0..=7 => self.chips[0].set_line(irq, level),
            _ => self.chips[1].set_line(irq - 8, level),
        }
        self.cascade();
    }

    /// What a rise of IRQ 0 would come to.
    pub(crate) fn timer_rise(&self) -> Delivery {
        self.chips[0].rise(0)
    }

    fn cascade(&mut self) {
        let output = self.chips[1].interrupt().is_some();
        self.chips[0].set_line(CASCADE_INPUT, output);
    }

    /// The INTR output.
    pub(crate) fn output(&self) -> bool {
        self.chips[0].interrupt().is_some()
    }

    /// Interrupt acknowledge: the vector, a spurious 7 or 15 when the request is gone.
    pub(crate) fn acknowledge(&mut self) -> u8 {
        let [master, slave] = &mut self.chips;
        let vector = match master.interrupt() {
            None => master.vector(7),
            Some(CASCADE_INPUT) => {
                master.take(CASCADE_INPUT);
                let input = slave.interrupt();
                input.into_iter().for_each(|input| slave.take(input));
                slave.vector(input.unwrap_or(7))
            }
            Some(input) => {
                master.take(input);
                master.vector(input)
            }
        };
        self.cascade();
        vector
    }

    /// Read one byte; `None` for another port. A poll changes the state.
    pub(crate) fn read(&mut self, port: u16) -> Option<u8> {
        let value = match port {
            0x20 => self.chips[0].read_command(),
            0x21 => self.chips[0].read_data(),
            0xa0 => self.chips[1].read_command(),
            0xa1 => self.chips[1].read_data(),
            0x4d0 | 0x4d1 => self.chips[usize::from(port & 1)].elcr,
            _ => return None,
        };
        self.cascade();
        Some(value)
    }

    /// Write one byte; false for another port.
    pub(crate) fn write(&mut self, port: u16, value: u8) -> bool {
        match port {
            0x20 => self.chips[0].write_command(value),
            0x21 => self.chips[0].write_data(value),
            0xa0 => self.chips[1].write_command(value),
            0xa1 => self.chips[1].write_data(value),
            0x4d0 | 0x4d1 => {
                let chip = usize::from(port & 1);
                self.chips[chip].elcr = value & ELCR_WRITABLE[chip];
            }
            _ => return false,
        }
        self.cascade();
        true
    }
}

//! An I/O exit of KVM, handed out in the sizes of the contract.
//!
//! KVM reports a whole `rep outsb` at once and MMIO of any length from 1 to 8 bytes; the contract
//! knows elements of 1, 2, 4 and 8.

use crate::shared_page::{MmioExit, PioExit, SharedPage};
use sublet_engine::Exit;

/// What is left of an I/O exit.
#[derive(Debug, Clone, Copy)]
pub struct Transfer {
    kind: Kind,
    /// Where the data lies in the shared page.
    offset: u64,
    /// Bytes in all, and handed out.
    size: u64,
    done: u64,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Pio { port: u16, size: u8, input: bool },
    Mmio { gpa: u64, write: bool },
}

/// Where the answer to a read goes.
#[derive(Debug, Clone, Copy)]
pub struct Element {
    pub offset: u64,
    pub size: u8,
}

impl Transfer {
    /// A port access; what is read is all ones until answered.
    pub fn pio(exit: &PioExit, page: &SharedPage) -> Self {
        let kind = Kind::Pio { port: exit.port, size: exit.size.clamp(1, 4), input: exit.input };
        let size = u64::from(exit.count) * u64::from(exit.size);
        let transfer = Self { kind, offset: exit.offset, size, done: 0 };
        transfer.float_inputs(page);
        transfer
    }

    /// An access to unbacked memory; what is read is all ones until answered.
    pub fn mmio(exit: &MmioExit, page: &SharedPage) -> Self {
        let kind = Kind::Mmio { gpa: exit.gpa, write: exit.write };
        let transfer = Self { kind, offset: exit.offset, size: exit.len.min(8).into(), done: 0 };
        transfer.float_inputs(page);
        transfer
    }

    fn is_input(&self) -> bool {
        match self.kind {
            Kind::Pio { input, .. } => input,
            Kind::Mmio { write, .. } => !write,
        }
    }

    fn float_inputs(&self, page: &SharedPage) {
        if self.is_input() {
            (0..self.size).for_each(|at| page.store(self.offset + at, 1, u64::MAX));
        }
    }

    /// Everything has been handed out.
    pub fn is_done(&self) -> bool {
        self.done >= self.size
    }

    /// The next element as an exit, and where its answer goes if it is a read.
    pub fn next(&mut self, page: &SharedPage) -> Option<(Exit, Option<Element>)> {
        if self.is_done() {
            return None;
        }
        let size = self.element_size();
        let element = Element { offset: self.offset + self.done, size };
        let exit = self.exit(element, page);
        self.done += u64::from(size);
        Some((exit, self.is_input().then_some(element)))
    }

    /// The port's size, or the largest aligned power of two that is left of a memory access.
    fn element_size(&self) -> u8 {
        match self.kind {
            Kind::Pio { size, .. } => size,
            Kind::Mmio { gpa, .. } => {
                let alignment = gpa.wrapping_add(self.done).trailing_zeros();
                1 << (self.size - self.done).ilog2().min(alignment)
            }
        }
    }

    fn exit(&self, Element { offset, size }: Element, page: &SharedPage) -> Exit {
        match self.kind {
            Kind::Pio { port, input: true, .. } => Exit::PioIn { port, size },
            Kind::Pio { port, .. } => Exit::PioOut { port, size, data: page.load(offset, size) },
            Kind::Mmio { gpa, write } => {
                let gpa = gpa.wrapping_add(self.done);
                match write {
                    true => Exit::MmioWrite { gpa, size, data: page.load(offset, size) },
                    false => Exit::MmioRead { gpa, size },
                }
            }
        }
    }
}

//! x87 errors by interrupt: what a PC does with a processor's FERR# and IGNNE# pins.
//!
//! A processor whose CR0.NE is clear asserts FERR# for an unmasked x87 exception; the chipset interrupts by
//! IRQ 13. The handler writes port F0h: the request goes, and while FERR# stays asserted the chipset asserts
//! IGNNE#, under which processors execute x87 instructions with the exception pending.
//!
//! References: Intel SDM vol. 1 §D.2 "MS-DOS Compatibility Sub-Mode"; ICH9 datasheet (316972)
//! §5.8.1 "Numeric Coprocessor Error", §13.7 "COPROC_ERR".

/// The chipset's latch; its state as it is saved.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CoprocessorError {
    /// vCPUs 0 to 63 that assert FERR#, a bit each: the pins are tied together.
    pub asserted: u64,
    /// IRQ 13 is requested, until port F0h is written.
    pub interrupting: bool,
    /// IGNNE# is asserted.
    pub ignored: bool,
}

/// Any write clears the interrupt.
pub(crate) const COPROCESSOR_PORT: u16 = 0xf0;
/// The interrupt that FERR# leads to.
pub(crate) const COPROCESSOR_GSI: u32 = 13;

impl CoprocessorError {
    /// FERR# of the vCPU whose bit is in `mask` changes; one that rises while IGNNE# is asserted
    /// interrupts nobody.
    pub(crate) fn set(&mut self, mask: u64, asserted: bool) {
        if asserted {
            self.asserted |= mask;
            self.interrupting |= !self.ignored;
        } else {
            self.asserted &= !mask;
            self.ignored &= self.asserted != 0;
        }
    }

    /// Port F0h is written; nothing happens unless FERR# has interrupted.
    pub(crate) fn acknowledge(&mut self) {
        self.ignored |= std::mem::take(&mut self.interrupting) && self.asserted != 0;
    }
}

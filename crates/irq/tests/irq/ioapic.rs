//! Intel 82093AA §3 "Register Description" and the EOI register of ICH's I/O APIC.

use crate::fixture::{offset, Machine};
use sublet_irq::IOAPIC_BASE;

const MASKED: u64 = 1 << 16;
const LEVEL: u64 = 1 << 15;
const REMOTE_IRR: u64 = 1 << 14;

#[test]
fn registers_after_reset() {
    let machine = Machine::new(1);
    assert_eq!(machine.read_entry(23), MASKED);
    assert!(machine.chip.mmio_write(IOAPIC_BASE, 4, 1));
    assert_eq!(machine.chip.mmio_read(IOAPIC_BASE + 0x10, 4), Some(0x0017_0020));
    assert_eq!(machine.chip.mmio_read(IOAPIC_BASE + 0x1000, 4), None);
    assert!(!machine.chip.mmio_write(IOAPIC_BASE - 1, 4, 0));
}

#[test]
fn read_only_bits_stay() {
    let machine = Machine::new(1);
    machine.write_entry(3, u64::MAX);
    assert_eq!(machine.read_entry(3), 0xff00_0000_0001_afff);
}

#[test]
fn edge_acts_on_a_rise() {
    let machine = Machine::new(1);
    machine.write_entry(5, 0x45);
    machine.chip.set_line(5, true);
    assert_eq!(machine.bsp().acknowledge(), Some(0x45));
    machine.bsp().mmio_write(offset::EOI, 0);
    machine.chip.set_line(5, true);
    assert_eq!(machine.bsp().acknowledge(), None);
    machine.chip.set_line(5, false);
    machine.chip.set_line(5, true);
    assert_eq!(machine.bsp().acknowledge(), Some(0x45));
}

#[test]
fn a_masked_edge_is_lost() {
    let machine = Machine::new(1);
    machine.write_entry(5, MASKED | 0x45);
    machine.chip.set_line(5, true);
    machine.write_entry(5, 0x45);
    assert_eq!(machine.bsp().acknowledge(), None);
}

#[test]
fn level_waits_for_the_eoi_and_is_sampled_again() {
    let machine = Machine::new(1);
    machine.write_entry(17, LEVEL | 0x61);
    machine.chip.set_line(17, true);
    assert_eq!(machine.read_entry(17), LEVEL | REMOTE_IRR | 0x61);
    assert_eq!(machine.bsp().acknowledge(), Some(0x61));
    assert_eq!(machine.bsp().mmio_read(offset::TMR + 0x30), 1 << 1);
    machine.chip.set_line(17, false);
    machine.chip.set_line(17, true);
    assert_eq!(machine.bsp().mmio_read(offset::IRR + 0x30), 0);
    machine.bsp().mmio_write(offset::EOI, 0);
    assert_eq!(machine.bsp().acknowledge(), Some(0x61));
    machine.chip.set_line(17, false);
    machine.bsp().mmio_write(offset::EOI, 0);
    assert_eq!(machine.read_entry(17), LEVEL | 0x61);
    assert_eq!(machine.bsp().acknowledge(), None);
}

#[test]
fn unmasking_an_asserted_level_delivers() {
    let machine = Machine::new(1);
    machine.write_entry(17, MASKED | LEVEL | 0x61);
    machine.chip.set_line(17, true);
    machine.write_entry(17, LEVEL | 0x61);
    assert_eq!(machine.bsp().acknowledge(), Some(0x61));
}

#[test]
fn the_eoi_register_ends_by_vector() {
    let machine = Machine::new(1);
    machine.write_entry(17, LEVEL | 0x61);
    machine.chip.set_line(17, true);
    machine.chip.set_line(17, false);
    machine.chip.mmio_write(IOAPIC_BASE + 0x40, 4, 0x61);
    assert_eq!(machine.read_entry(17), LEVEL | 0x61);
}

#[test]
fn becoming_edge_triggered_clears_remote_irr() {
    let machine = Machine::new(1);
    machine.write_entry(17, LEVEL | 0x61);
    machine.chip.set_line(17, true);
    machine.write_entry(17, MASKED | 0x61);
    assert_eq!(machine.read_entry(17), MASKED | 0x61);
}

#[test]
fn a_level_nobody_takes_is_not_in_service() {
    let machine = Machine::new(1);
    machine.write_entry(17, 9 << 56 | LEVEL | 0x61);
    machine.chip.set_line(17, true);
    assert_eq!(machine.read_entry(17) & REMOTE_IRR, 0);
    machine.write_entry(17, LEVEL | 0x61);
    assert_eq!(machine.bsp().acknowledge(), Some(0x61));
}

/// ACPI's interrupt source override of a PC: the 8254 is on pin 2.
#[test]
fn gsi_0_is_pin_2() {
    let machine = Machine::new(1);
    machine.write_entry(0, 0x40);
    machine.write_entry(2, 0x42);
    machine.chip.set_line(2, true);
    assert_eq!(machine.bsp().acknowledge(), None);
    machine.chip.set_line(0, true);
    assert_eq!(machine.bsp().acknowledge(), Some(0x42));
}

#[test]
fn nmi_delivery_and_logical_destination() {
    let machine = Machine::new(2);
    machine.apics[1].mmio_write(offset::LDR, 2 << 24);
    machine.write_entry(7, 2 << 56 | 1 << 11 | 0x400);
    machine.chip.set_line(7, true);
    assert!(machine.apics[1].take_nmi() && !machine.bsp().take_nmi());
}

/// Pin 0 carries the 8259s' output, in ExtINT mode.
#[test]
fn extint_through_pin_0() {
    let machine = Machine::new(1);
    machine.bsp().mmio_write(offset::LVT_LINT0, 0x1_0000);
    machine.initialise_pics();
    machine.write_entry(0, 0x700);
    machine.chip.set_line(4, true);
    assert_eq!(machine.extint(), Some(0x24));
    assert_eq!(machine.extint(), None);
}

#[test]
fn gsis_out_of_range_are_ignored() {
    let machine = Machine::new(1);
    for gsi in [24, 32, 255, 256, u32::MAX] {
        machine.chip.set_line(gsi, true);
    }
    assert!(!machine.bsp().has_event());
}

//! Intel 8259A (231468-003): initialisation, priorities, end of interrupt; PIIX4 ELCR; MP virtual wire.

use crate::fixture::{offset, Machine};

fn machine() -> Machine {
    let machine = Machine::after_reset(1);
    machine.initialise_pics();
    machine
}

fn pulse(machine: &Machine, irq: u32) {
    machine.chip.set_line(irq, true);
    machine.chip.set_line(irq, false);
}

/// MultiProcessor Specification 1.4 §3.6.2.2: LINT0 in ExtINT mode, or a disabled local APIC.
#[test]
fn virtual_wire() {
    let machine = machine();
    pulse(&machine, 4);
    assert!(machine.bsp().extint_pending());
    assert_eq!(machine.wakers[0].count(), 1);
    machine.bsp().mmio_write(offset::LVT_LINT0, 0x1_0700);
    assert!(!machine.chip.extint_pending(0));
    machine.bsp().set_apic_base(0xfee0_0100).unwrap();
    assert_eq!(machine.extint(), Some(0x24));
    assert!(!machine.chip.extint_pending(7));
}

#[test]
fn priorities_nest() {
    let machine = machine();
    pulse(&machine, 5);
    assert_eq!(machine.extint(), Some(0x25));
    pulse(&machine, 6);
    assert_eq!(machine.extint(), None);
    pulse(&machine, 3);
    assert_eq!(machine.extint(), Some(0x23));
    machine.out(0x20, 0x20);
    machine.out(0x20, 0x20);
    assert_eq!(machine.extint(), Some(0x26));
}

#[test]
fn cascade() {
    let machine = machine();
    pulse(&machine, 12);
    assert_eq!(machine.extint(), Some(0x2c));
    pulse(&machine, 10);
    assert_eq!(machine.extint(), None, "the master's input 2 is in service");
    machine.out(0x20, 0x20);
    assert_eq!(machine.extint(), Some(0x2a));
    machine.out(0xa0, 0x20);
    machine.out(0xa0, 0x20);
    machine.out(0x20, 0x20);
    assert_eq!(machine.extint(), None);
}

/// "Special Fully Nested Mode": a slave's higher priority interrupts its lower one.
#[test]
fn special_fully_nested_mode() {
    let machine = machine();
    machine.out(0x20, 0x11);
    for word in [0x20, 4, 0x11, 0] {
        machine.out(0x21, word);
    }
    pulse(&machine, 12);
    assert_eq!(machine.extint(), Some(0x2c));
    pulse(&machine, 10);
    assert_eq!(machine.extint(), Some(0x2a));
}

#[test]
fn masked_requests_wait() {
    let machine = machine();
    machine.out(0x21, 1 << 4);
    assert_eq!(machine.inb(0x21), 1 << 4);
    pulse(&machine, 4);
    assert_eq!(machine.extint(), None);
    assert_eq!(machine.inb(0x20), 1 << 4);
    machine.out(0x21, 0);
    assert_eq!(machine.extint(), Some(0x24));
    machine.out(0x20, 0x0b);
    assert_eq!(machine.inb(0x20), 1 << 4);
    machine.out(0x20, 0x0a);
    assert_eq!(machine.inb(0x20), 0);
}

#[test]
fn specific_eoi() {
    let machine = machine();
    pulse(&machine, 5);
    machine.extint();
    pulse(&machine, 3);
    machine.extint();
    machine.out(0x20, 0x65);
    machine.out(0x20, 0x0b);
    assert_eq!(machine.inb(0x20), 1 << 3);
}

#[test]
fn automatic_eoi_and_rotation() {
    let machine = machine();
    machine.out(0x20, 0x11);
    for word in [0x20, 4, 3, 0] {
        machine.out(0x21, word);
    }
    machine.out(0x20, 0x80);
    pulse(&machine, 3);
    assert_eq!(machine.extint(), Some(0x23));
    machine.out(0x20, 0x0b);
    assert_eq!(machine.inb(0x20), 0);
    pulse(&machine, 3);
    pulse(&machine, 4);
    assert_eq!(machine.extint(), Some(0x24), "3 has become the lowest");
}

#[test]
fn rotation_on_eoi_and_set_priority() {
    let machine = machine();
    pulse(&machine, 3);
    machine.extint();
    machine.out(0x20, 0xa0);
    pulse(&machine, 3);
    pulse(&machine, 6);
    assert_eq!(machine.extint(), Some(0x26));
    machine.out(0x20, 0xe6);
    machine.out(0x20, 0xc2);
    pulse(&machine, 4);
    assert_eq!(machine.extint(), Some(0x23));
}

#[test]
fn special_mask_mode() {
    let machine = machine();
    pulse(&machine, 3);
    machine.extint();
    machine.out(0x20, 0x68);
    machine.out(0x21, 1 << 3);
    pulse(&machine, 6);
    assert_eq!(machine.extint(), Some(0x26));
    machine.out(0x20, 0x20);
    machine.out(0x20, 0x0b);
    assert_eq!(machine.inb(0x20), 1 << 3, "a non-specific EOI spares the masked one");
}

#[test]
fn poll() {
    let machine = machine();
    machine.out(0x20, 0x0c);
    assert_eq!(machine.inb(0x20), 0);
    pulse(&machine, 5);
    machine.out(0x20, 0x0c);
    assert_eq!(machine.inb(0x20), 0x85);
    assert_eq!(machine.extint(), None);
    machine.out(0x20, 0x0b);
    assert_eq!(machine.inb(0x20), 1 << 5);
}

#[test]
fn spurious_interrupts() {
    let machine = machine();
    assert_eq!(machine.chip.acknowledge_extint(), 0x27);
    machine.out(0x20, 0x0b);
    assert_eq!(machine.inb(0x20), 0);
}

/// ELCR: a level-triggered input follows its line, and is requested again after the EOI.
#[test]
fn level_triggered_inputs() {
    let machine = machine();
    machine.out(0x4d0, 0xff);
    machine.out(0x4d1, 0xff);
    assert_eq!((machine.inb(0x4d0), machine.inb(0x4d1)), (0xf8, 0xde));
    machine.chip.set_line(11, true);
    assert_eq!(machine.extint(), Some(0x2b));
    machine.out(0xa0, 0x20);
    machine.out(0x20, 0x20);
    assert_eq!(machine.extint(), Some(0x2b));
    machine.chip.set_line(11, false);
    machine.out(0xa0, 0x20);
    machine.out(0x20, 0x20);
    assert_eq!(machine.extint(), None);
    machine.chip.set_line(11, true);
    machine.chip.set_line(11, false);
    assert_eq!(machine.extint(), None);
}

#[test]
fn initialisation_without_icw4_and_without_cascade() {
    let machine = machine();
    machine.out(0x20, 0x12);
    machine.out(0x21, 0x48);
    machine.out(0x21, 0xfe);
    assert_eq!(machine.inb(0x21), 0xfe);
    pulse(&machine, 0);
    assert_eq!(machine.extint(), Some(0x48));
}

#[test]
fn a_word_access_reaches_both_elcr_bytes() {
    let machine = machine();
    assert!(machine.chip.pio_write(0x4d0, 2, 0x0820));
    assert_eq!(machine.chip.pio_read(0x4d0, 2), Some(0x0820));
}

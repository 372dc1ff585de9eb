//! FERR#, IRQ 13, port F0h and IGNNE#: Intel SDM vol. 1 §D.2; ICH9 (316972) §13.7 "COPROC_ERR".

use crate::fixture::Machine;

const VECTOR: u8 = 0x2d;

fn machine() -> Machine {
    let machine = Machine::after_reset(1);
    machine.initialise_pics();
    machine
}

fn end_of_interrupt(machine: &Machine) {
    machine.out(0xa0, 0x20);
    machine.out(0x20, 0x20);
}

#[test]
fn an_error_interrupts_once_until_port_f0h_is_written() {
    let machine = machine();
    assert!(!machine.chip.set_math_error(0, true));
    assert_eq!(machine.extint(), Some(VECTOR));
    end_of_interrupt(&machine);
    assert!(!machine.chip.set_math_error(0, true), "still asserted");
    assert_eq!(machine.extint(), None);
    machine.out(0xf0, 0);
    assert!(machine.chip.set_math_error(0, true), "IGNNE# is asserted");
    assert_eq!(machine.extint(), None);
}

#[test]
fn errors_are_ignored_until_they_end() {
    let machine = machine();
    machine.chip.set_math_error(0, true);
    assert_eq!(machine.extint(), Some(VECTOR));
    end_of_interrupt(&machine);
    machine.out(0xf0, 0);
    machine.chip.set_math_error(0, false);
    assert!(!machine.chip.set_math_error(0, true));
    assert_eq!(machine.extint(), Some(VECTOR));
}

#[test]
fn the_pins_of_all_processors_are_tied_together() {
    let machine = machine();
    machine.chip.set_math_error(1, true);
    assert!(machine.chip.math_error(1) && !machine.chip.math_error(0));
    machine.out(0xf0, 0);
    assert!(machine.chip.set_math_error(0, true));
    assert!(machine.chip.set_math_error(0, false), "vCPU 1 still asserts it");
    assert!(!machine.chip.set_math_error(1, false));
}

#[test]
fn port_f0h_without_an_error_does_nothing() {
    let machine = machine();
    machine.out(0xf0, 0);
    assert!(!machine.chip.set_math_error(0, true));
}

#[test]
fn the_latch_is_saved_and_reset() {
    let (machine, other) = (machine(), machine());
    machine.chip.set_math_error(0, true);
    other.chip.load_state(&machine.chip.save_state());
    assert!(other.chip.math_error(0));
    assert_eq!(other.extint(), Some(VECTOR));
    other.chip.reset();
    assert!(!other.chip.math_error(0));
    assert_eq!(other.chip.save_state().coprocessor, Default::default());
}

//! A state that is saved and loaded elsewhere goes on where it was.

use crate::fixture::{msi_address, offset, Machine, TSC_PER_NS};

fn busy_machine() -> Machine {
    let machine = Machine::new(1);
    machine.initialise_pics();
    machine.write_entry(2, 0x42);
    machine.write_entry(17, 1 << 15 | 0x61);
    machine.chip.set_line(17, true);
    machine.out(0x43, 0x34);
    machine.out(0x40, 0x00);
    machine.out(0x40, 0x10);
    machine.bsp().mmio_write(offset::LVT_TIMER, 0xec);
    machine.bsp().mmio_write(offset::DIVIDE, 0xb);
    machine.bsp().mmio_write(offset::INITIAL_COUNT, 1_000_000);
    machine.run(300_000);
    machine
}

#[test]
fn the_chipset_goes_on() {
    let (machine, other) = (busy_machine(), Machine::new(1));
    other.clock.advance(77_000_000_000);
    other.chip.load_state(&machine.chip.save_state());
    assert_eq!(other.read_entry(17), machine.read_entry(17));
    assert_eq!(other.chip.save_state(), machine.chip.save_state());
    let left = |machine: &Machine| machine.chip.save_state().pit;
    assert_eq!(left(&other), left(&machine));
}

#[test]
fn a_local_apic_goes_on() {
    let (machine, other) = (busy_machine(), Machine::new(1));
    machine.bsp().set_tpr(0x20);
    machine.chip.signal_msi(msi_address(0), 0x99);
    other.clock.advance(5_000);
    other.bsp().load_state(&machine.bsp().save_state());
    assert_eq!(other.bsp().mmio_read(offset::CURRENT_COUNT), 700_000);
    assert_eq!(other.chip.next_deadline_ns(), Some(705_000));
    assert_eq!(other.bsp().acknowledge(), Some(0x99));
    assert_eq!(other.bsp().tpr(), 0x20);
    assert!(other.wakers[0].count() > 0);
}

#[test]
fn a_tsc_deadline_goes_on() {
    let (machine, other) = (Machine::new(1), Machine::new(1));
    machine.bsp().mmio_write(offset::LVT_TIMER, 2 << 17 | 0xec);
    machine.bsp().set_tsc_deadline(9000 * TSC_PER_NS);
    other.bsp().load_state(&machine.bsp().save_state());
    assert_eq!(other.chip.next_deadline_ns(), Some(9000));
}

#[test]
fn reset_forgets_all_but_the_wires() {
    let machine = busy_machine();
    machine.chip.reset();
    assert_eq!(machine.chip.next_deadline_ns(), None);
    assert_eq!(machine.bsp().mmio_read(offset::SVR), 0xff);
    assert_eq!(machine.read_entry(17), 1 << 16);
    machine.bsp().mmio_write(offset::SVR, 0x1ff);
    machine.write_entry(17, 1 << 15 | 0x61);
    assert_eq!(machine.bsp().acknowledge(), Some(0x61));
}

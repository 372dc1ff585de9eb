//! Intel SDM vol. 3A §11.11 "Message Signalled Interrupts".

use crate::fixture::{msi_address, offset, Machine};

#[test]
fn physical_and_broadcast() {
    let machine = Machine::new(2);
    machine.chip.signal_msi(msi_address(1), 0x41);
    assert_eq!((machine.apics[0].acknowledge(), machine.apics[1].acknowledge()), (None, Some(0x41)));
    machine.chip.signal_msi(msi_address(0xff), 0x52);
    assert_eq!((machine.apics[0].acknowledge(), machine.apics[1].acknowledge()), (Some(0x52), Some(0x52)));
}

#[test]
fn broadcast_reaches_x2apic_mode() {
    let machine = Machine::x2apic(2);
    machine.chip.signal_msi(msi_address(0xff), 0x41);
    assert_eq!((machine.apics[0].acknowledge(), machine.apics[1].acknowledge()), (Some(0x41), Some(0x41)));
}

#[test]
fn redirection_hint_goes_to_one_of_a_set() {
    let machine = Machine::new(2);
    machine.apics.iter().for_each(|apic| apic.mmio_write(offset::LDR, 1 << (24 + apic.id())));
    machine.chip.signal_msi(msi_address(3) | 0xc, 0x41);
    let taken = machine.apics.iter().filter(|apic| apic.acknowledge().is_some()).count();
    assert_eq!(taken, 1);
}

#[test]
fn delivery_modes() {
    let machine = Machine::new(1);
    machine.chip.signal_msi(msi_address(0), 0x400);
    assert!(machine.bsp().take_nmi());
    machine.chip.signal_msi(msi_address(0), 0x340);
    assert!(!machine.bsp().has_event());
}

#[test]
fn other_addresses_are_not_interrupts() {
    let machine = Machine::new(1);
    for address in [0, 0xfed0_0000, 0x1_fee0_0000, u64::MAX] {
        machine.chip.signal_msi(address, 0x41);
    }
    assert!(!machine.bsp().has_event());
}

//! Intel SDM vol. 3A §11.6 "Issuing Interprocessor Interrupts" and §11.12.9 "ICR Operation in x2APIC Mode".

use crate::fixture::{offset, Machine};

const LOGICAL: u32 = 1 << 11;
const LOWEST: u32 = 1 << 8;

fn send(machine: &Machine, destination: u32, icr: u32) {
    machine.bsp().mmio_write(offset::ICR_HIGH, destination << 24);
    machine.bsp().mmio_write(offset::ICR, icr);
}

/// Who received a vector, as a bitmap; taken away.
fn receivers(machine: &Machine) -> u32 {
    let mut set = 0;
    for apic in &machine.apics {
        if apic.acknowledge().is_some() {
            apic.mmio_write(offset::EOI, 0);
            set |= 1 << apic.id();
        }
    }
    set
}

#[test]
fn physical_destinations() {
    let machine = Machine::new(4);
    send(&machine, 2, 0x40);
    assert_eq!(receivers(&machine), 0b0100);
    send(&machine, 0xff, 0x40);
    assert_eq!(receivers(&machine), 0b1111);
    send(&machine, 9, 0x40);
    assert_eq!(receivers(&machine), 0);
}

#[test]
fn shorthands() {
    let machine = Machine::new(4);
    for (shorthand, expected) in [(1, 0b0001), (2, 0b1111), (3, 0b1110)] {
        send(&machine, 2, shorthand << 18 | 0x40);
        assert_eq!(receivers(&machine), expected);
    }
}

/// §11.6.2.2 "Logical Destination Mode", flat model.
#[test]
fn flat_logical_destinations() {
    let machine = Machine::new(4);
    machine.apics.iter().for_each(|apic| apic.mmio_write(offset::LDR, 1 << (24 + apic.id())));
    send(&machine, 0b1010, LOGICAL | 0x40);
    assert_eq!(receivers(&machine), 0b1010);
}

/// §11.6.2.2, cluster model: the upper nibble names the cluster, 15 all of them.
#[test]
fn cluster_logical_destinations() {
    let machine = Machine::new(4);
    for apic in &machine.apics {
        apic.mmio_write(offset::DFR, 0);
        apic.mmio_write(offset::LDR, (apic.id() / 2) << 28 | 1 << (24 + apic.id() % 2));
    }
    send(&machine, 0x13, LOGICAL | 0x40);
    assert_eq!(receivers(&machine), 0b1100);
    send(&machine, 0xf1, LOGICAL | 0x40);
    assert_eq!(receivers(&machine), 0b0101);
}

/// §11.6.2.4 "Lowest Priority Delivery Mode": one of them, the one of lowest priority.
#[test]
fn lowest_priority_goes_to_one() {
    let machine = Machine::new(4);
    machine.apics.iter().for_each(|apic| apic.mmio_write(offset::LDR, 1 << (24 + apic.id())));
    for id in [0, 1, 3] {
        machine.apics[id].set_tpr(0x30);
    }
    send(&machine, 0xf, LOGICAL | LOWEST | 0x40);
    assert_eq!(receivers(&machine), 0b0100);
    machine.apics[2].set_tpr(0x30);
    let mut seen = 0;
    for _ in 0..8 {
        send(&machine, 0xf, LOGICAL | LOWEST | 0x40);
        let one = receivers(&machine);
        assert_eq!(one.count_ones(), 1);
        seen |= one;
    }
    assert!(seen.count_ones() > 1, "equals take turns");
}

/// §9.4 "Multiple-Processor (MP) Initialization": INIT, its de-assert, start-up.
#[test]
fn init_and_start_up() {
    let machine = Machine::after_reset(2);
    send(&machine, 1, 0xc500);
    send(&machine, 1, 0x8500);
    send(&machine, 1, 0x0608);
    assert!(machine.apics[1].take_init() && !machine.apics[1].take_init());
    assert_eq!(machine.apics[1].take_sipi(), Some(8));
    assert_eq!(machine.apics[1].take_sipi(), None);
    assert_eq!(machine.wakers[1].count(), 2);
}

/// §11.4.7.3 "Local APIC State After an INIT Reset".
#[test]
fn init_resets_the_registers() {
    let machine = Machine::new(2);
    machine.apics[1].mmio_write(offset::LDR, 1 << 24);
    send(&machine, 1, 0x4500);
    assert!(machine.apics[1].take_init());
    assert_eq!(machine.apics[1].mmio_read(offset::SVR), 0xff);
    assert_eq!(machine.apics[1].mmio_read(offset::LDR), 0);
    assert_eq!(machine.apics[1].mmio_read(offset::ID), 1 << 24);
}

#[test]
fn nmi_and_smi_pass_a_software_disabled_apic() {
    let machine = Machine::after_reset(2);
    send(&machine, 1, 0x4400);
    send(&machine, 1, 0x4200);
    assert!(machine.apics[1].take_nmi() && machine.apics[1].take_smi());
}

#[test]
fn reserved_modes_send_nothing() {
    let machine = Machine::new(2);
    send(&machine, 1, 0x4340);
    send(&machine, 1, 0x4740);
    assert!(!machine.apics[1].has_event());
}

/// §11.12.9: 32-bit destinations, one write.
#[test]
fn x2apic_destinations() {
    let machine = Machine::x2apic(20);
    let send = |icr: u64| machine.bsp().msr_write(0x830, icr).unwrap();
    let taken = |id: usize| machine.apics[id].acknowledge();
    send(18 << 32 | 0x40);
    assert_eq!(taken(18), Some(0x40));
    send(0x0001_0006 << 32 | u64::from(LOGICAL) | 0x61);
    assert_eq!((taken(16), taken(17), taken(18), taken(2)), (None, Some(0x61), Some(0x61), None));
    send(0xffff_ffff << 32 | 0x82);
    assert!((0..20).all(|id| taken(id) == Some(0x82)));
    send(0xff << 32 | 0x93);
    assert!((0..20).all(|id| taken(id).is_none()), "0xff is an ID of 32 bits here");
}

#[test]
fn icr_reads_back_without_delivery_status() {
    let machine = Machine::new(1);
    send(&machine, 7, 0x1040);
    assert_eq!(machine.bsp().mmio_read(offset::ICR), 0x40);
    assert_eq!(machine.bsp().mmio_read(offset::ICR_HIGH), 7 << 24);
}

//! Intel SDM vol. 3A chapter 11: registers, priorities, acceptance.

use crate::fixture::{msi_address, offset, Machine};
use sublet_irq::GeneralProtection;

/// §11.4.7.1 "Local APIC State After Power-Up or Reset".
#[test]
fn reset_leaves_vectors_off_and_entries_masked() {
    let machine = Machine::after_reset(2);
    assert_eq!(machine.apics[1].mmio_read(offset::SVR), 0xff);
    assert_eq!(machine.apics[1].mmio_read(offset::LVT_LINT0), 0x1_0000);
    assert_eq!(machine.apics[1].mmio_read(offset::DFR), u32::MAX);
    assert_eq!(machine.apics[1].mmio_read(offset::ID), 1 << 24);
    assert_eq!((machine.bsp().apic_base(), machine.apics[1].apic_base()), (0xfee0_0900, 0xfee0_0800));
}

/// §11.4.7.2 "Local APIC State After It Has Been Software Disabled".
#[test]
fn software_disable_masks_entries_and_refuses_vectors() {
    let machine = Machine::new(1);
    let apic = machine.bsp();
    apic.mmio_write(offset::LVT_TIMER, 0x40);
    apic.mmio_write(offset::SVR, 0xff);
    assert_eq!(apic.mmio_read(offset::LVT_TIMER), 0x1_0040);
    apic.mmio_write(offset::LVT_TIMER, 0x41);
    assert_eq!(apic.mmio_read(offset::LVT_TIMER), 0x1_0041);
    machine.chip.signal_msi(msi_address(0), 0x50);
    assert!(!apic.has_interrupt());
}

/// §11.8.4 "Interrupt Acceptance for Fixed Interrupts": highest vector first, IRR to ISR.
#[test]
fn highest_vector_is_acknowledged_first() {
    let machine = Machine::new(1);
    for vector in [0x31, 0x92, 0x55] {
        machine.chip.signal_msi(msi_address(0), vector);
    }
    assert_eq!(machine.bsp().acknowledge(), Some(0x92));
    assert_eq!(machine.bsp().mmio_read(offset::ISR + 0x40), 1 << 0x12);
    assert_eq!(machine.bsp().mmio_read(offset::IRR + 0x20), 1 << 0x15);
    assert_eq!(machine.bsp().acknowledge(), None);
    machine.bsp().mmio_write(offset::EOI, 0);
    assert_eq!(machine.bsp().acknowledge(), Some(0x55));
}

/// §11.8.3.1 "Task and Processor Priorities": a vector must be of a class above PPR's.
#[test]
fn priority_classes_gate_delivery() {
    let machine = Machine::new(1);
    let apic = machine.bsp();
    apic.set_tpr(0x50);
    machine.chip.signal_msi(msi_address(0), 0x5f);
    assert!(!apic.has_interrupt());
    machine.chip.signal_msi(msi_address(0), 0x60);
    assert_eq!(apic.acknowledge(), Some(0x60));
    assert_eq!(apic.mmio_read(offset::PPR), 0x60);
    machine.chip.signal_msi(msi_address(0), 0x6f);
    assert!(!apic.has_interrupt());
    apic.mmio_write(offset::EOI, 0);
    assert_eq!(apic.mmio_read(offset::PPR), 0x50);
    assert_eq!(apic.acknowledge(), Some(0x6f));
}

/// §11.8.3.1: PPR is TPR whole when TPR's class is not below the one in service.
#[test]
fn lowering_the_task_priority_wakes() {
    let machine = Machine::new(1);
    machine.bsp().mmio_write(offset::TPR, 0xff);
    machine.chip.signal_msi(msi_address(0), 0x80);
    assert_eq!(machine.wakers[0].count(), 0);
    assert_eq!(machine.bsp().mmio_read(offset::PPR), 0xff);
    machine.bsp().mmio_write(offset::TPR, 0);
    assert_eq!((machine.wakers[0].count(), machine.bsp().has_interrupt()), (1, true));
}

/// §11.8.4: one vector waits once in IRR, and once more while in service.
#[test]
fn a_vector_in_service_can_wait_again() {
    let machine = Machine::new(1);
    machine.chip.signal_msi(msi_address(0), 0x40);
    assert_eq!(machine.bsp().acknowledge(), Some(0x40));
    machine.chip.signal_msi(msi_address(0), 0x40);
    machine.chip.signal_msi(msi_address(0), 0x40);
    machine.bsp().mmio_write(offset::EOI, 0);
    assert_eq!(machine.bsp().acknowledge(), Some(0x40));
    machine.bsp().mmio_write(offset::EOI, 0);
    assert_eq!(machine.bsp().acknowledge(), None);
}

/// §11.8.5: an EOI with nothing in service does nothing.
#[test]
fn an_eoi_out_of_place_is_harmless() {
    let machine = Machine::new(1);
    machine.bsp().mmio_write(offset::EOI, 0);
    machine.chip.signal_msi(msi_address(0), 0x40);
    machine.bsp().mmio_write(offset::EOI, 0);
    assert_eq!(machine.bsp().acknowledge(), Some(0x40));
}

/// §11.5.3 "Error Handling": a write latches, vectors below 16 are illegal, and raise the error interrupt.
#[test]
fn illegal_vectors_are_errors() {
    let machine = Machine::new(1);
    let apic = machine.bsp();
    apic.mmio_write(offset::LVT_ERROR, 0xfe);
    machine.chip.signal_msi(msi_address(0), 0x0f);
    assert_eq!(apic.mmio_read(offset::ESR), 0);
    assert_eq!(apic.acknowledge(), Some(0xfe));
    apic.mmio_write(offset::ESR, 0);
    assert_eq!(apic.mmio_read(offset::ESR), 1 << 6);
    apic.mmio_write(offset::ICR, 1 << 18 | 3);
    apic.mmio_write(offset::ESR, 0);
    assert_eq!(apic.mmio_read(offset::ESR), 1 << 5);
    apic.mmio_write(offset::ESR, 0);
    assert_eq!(apic.mmio_read(offset::ESR), 0);
}

/// §11.5.3: errors do not breed errors.
#[test]
fn an_illegal_error_vector_is_only_noted() {
    let machine = Machine::new(1);
    machine.bsp().mmio_write(offset::LVT_ERROR, 0x05);
    machine.bsp().mmio_write(0x3f0, 0);
    machine.bsp().mmio_write(offset::ESR, 0);
    assert_eq!(machine.bsp().mmio_read(offset::ESR), 1 << 7 | 1 << 6);
    assert!(!machine.bsp().has_interrupt());
}

/// §11.12.5 "x2APIC State Transitions".
#[test]
fn apic_base_transitions() {
    let machine = Machine::new(1);
    let apic = machine.bsp();
    assert_eq!(apic.set_apic_base(0xfee0_0500), Err(GeneralProtection));
    assert_eq!(apic.set_apic_base(0xfee0_0901), Err(GeneralProtection));
    assert_eq!(apic.set_apic_base(1 << 60 | 0xfee0_0900), Err(GeneralProtection));
    assert_eq!(apic.set_apic_base(0xfee0_0d00), Ok(()));
    assert!(apic.is_x2apic());
    assert_eq!(apic.set_apic_base(0xfee0_0900), Err(GeneralProtection));
    assert_eq!(apic.set_apic_base(0xfee0_0100), Ok(()));
    assert!(!apic.enabled());
    assert_eq!(apic.set_apic_base(0xfee0_0d00), Err(GeneralProtection));
    assert_eq!(apic.set_apic_base(0xfee0_0900), Ok(()));
    assert_eq!(apic.mmio_read(offset::SVR), 0xff);
}

/// §11.12.1.2 "x2APIC Register Address Space": which MSRs exist, and how.
#[test]
fn x2apic_registers() {
    let machine = Machine::x2apic(1);
    let apic = machine.bsp();
    assert_eq!(apic.msr_read(0x802), Ok(0));
    assert_eq!(apic.msr_read(0x80d), Ok(1));
    for absent in [0x80e, 0x80b, 0x831, 0x83f, 0x82f, 0x8ff, 0x801, 0x900, 0x7ff] {
        assert_eq!(apic.msr_read(absent), Err(GeneralProtection), "{absent:#x}");
    }
    for read_only in [0x802, 0x803, 0x80a, 0x80d, 0x810, 0x820, 0x839, 0x831] {
        assert_eq!(apic.msr_write(read_only, 0), Err(GeneralProtection), "{read_only:#x}");
    }
    for (msr, reserved) in [(0x80b, 1), (0x828, 1), (0x808, 0x100), (0x838, 1 << 32), (0x830, 1 << 16)] {
        assert_eq!(apic.msr_write(msr, reserved), Err(GeneralProtection), "{msr:#x}");
    }
    assert_eq!(apic.msr_write(0x83f, 0x77), Ok(()));
    assert_eq!(apic.acknowledge(), Some(0x77));
    assert_eq!(apic.msr_write(0x80b, 0), Ok(()));
    assert_eq!(apic.mmio_read(offset::ID), u32::MAX);
}

/// §11.12.1: MSRs fault in xAPIC mode.
#[test]
fn x2apic_registers_fault_in_xapic_mode() {
    let machine = Machine::new(1);
    assert_eq!(machine.bsp().msr_read(0x802), Err(GeneralProtection));
    assert_eq!(machine.bsp().msr_write(0x80b, 0), Err(GeneralProtection));
}

/// §11.12.10.2 "Deriving Logical x2APIC ID from the Local x2APIC ID".
#[test]
fn logical_x2apic_id() {
    let machine = Machine::x2apic(20);
    assert_eq!(machine.apics[18].msr_read(0x80d), Ok(1 << 16 | 1 << 2));
}

/// §11.5.1 "Local Vector Table": LINT1 as NMI.
#[test]
fn lint1_delivers_nmi() {
    let machine = Machine::new(2);
    machine.bsp().mmio_write(offset::LVT_LINT1, 0x400);
    machine.chip.signal_nmi();
    assert!(machine.bsp().has_event());
    assert!(machine.bsp().take_nmi() && !machine.bsp().take_nmi());
    assert!(!machine.apics[1].take_nmi());
}

/// §11.5.1: LINT0 in fixed mode, level-triggered, delivers again after the EOI while the line is up.
#[test]
fn lint0_level_is_delivered_until_the_line_falls() {
    let machine = Machine::new(1);
    machine.initialise_pics();
    machine.bsp().mmio_write(offset::LVT_LINT0, 0x8041);
    machine.chip.set_line(3, true);
    assert_eq!(machine.bsp().acknowledge(), Some(0x41));
    assert_eq!(machine.bsp().acknowledge(), None);
    machine.bsp().mmio_write(offset::EOI, 0);
    assert_eq!(machine.bsp().acknowledge(), Some(0x41));
    assert_eq!(machine.chip.acknowledge_extint(), 0x23);
    machine.bsp().mmio_write(offset::EOI, 0);
    assert_eq!(machine.bsp().acknowledge(), None);
}

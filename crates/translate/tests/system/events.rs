//! Events in 64-bit mode (§6.14) and the double-fault rules (§6.15).

use crate::guest::*;
use sublet_translate::cpu::{Cpu, Exception};
use sublet_translate::state::{gpr, seg};
use sublet_translate::system::interrupt::{Event, ShutDown};

fn deliver(cpu: &mut Cpu, event: Event) {
    cpu.deliver(event).unwrap();
}

fn handler(cpu: &Cpu) -> u64 {
    (cpu.state.rip - HANDLER) / 16
}

#[test]
fn an_interrupt_enters_the_kernel_and_iretq_leaves_it() {
    let mut cpu = long_user();
    let before = (cpu.state.segments, cpu.state.rip, cpu.state.rflags, cpu.state.gpr);
    deliver(&mut cpu, Event::External(14));
    assert_eq!(handler(&cpu), 14);
    assert_eq!(cpu.state.cpl(), 0);
    assert_eq!(cpu.state.segments[seg::CS].selector, KERNEL_CODE);
    assert_eq!(cpu.state.segments[seg::SS].selector, 0);
    assert_eq!(cpu.state.rflags, 2);
    assert_eq!(cpu.state.gpr[gpr::RSP], KERNEL_STACK - 40);
    let user = |selector: u16| u64::from(selector);
    assert_eq!(stack(&mut cpu, 8), [0x6_0000, user(USER_CODE), 0x202, USER_STACK, user(USER_DATA)]);
    cpu.iret(8).unwrap();
    assert_eq!((cpu.state.segments, cpu.state.rip, cpu.state.rflags, cpu.state.gpr), before);
}

#[test]
fn a_page_fault_has_code_address_and_resume_flag() {
    let mut cpu = long_user();
    deliver(&mut cpu, Event::Exception(Exception::page_fault(6, 0xdead_b000)));
    assert_eq!(cpu.state.cr2, 0xdead_b000);
    let [code, rip, _, flags] = stack(&mut cpu, 8);
    assert_eq!((code, rip, flags), (6, 0x6_0000, 0x1_0202));
}

#[test]
fn the_same_level_keeps_its_stack_aligned() {
    let mut cpu = long();
    cpu.state.gpr[gpr::RSP] = KERNEL_STACK - 0x108 + 3;
    deliver(&mut cpu, Event::External(3));
    assert_eq!(cpu.state.gpr[gpr::RSP], KERNEL_STACK - 0x110 - 40);
    assert_eq!(cpu.state.segments[seg::SS].selector, KERNEL_DATA);
    cpu.iret(8).unwrap();
    assert_eq!(cpu.state.gpr[gpr::RSP], KERNEL_STACK - 0x108 + 3);
}

#[test]
fn an_interrupt_stack_is_used_at_every_level() {
    for mut cpu in [long(), long_user()] {
        gate(&cpu, 2, INTERRUPT, 1);
        deliver(&mut cpu, Event::Nmi);
        assert_eq!(cpu.state.gpr[gpr::RSP], IST1_STACK - 40);
    }
}

#[test]
fn trap_gates_leave_interrupts_on() {
    let mut cpu = long_user();
    gate(&cpu, 4, TRAP, 0);
    deliver(&mut cpu, Event::External(4));
    assert_eq!(cpu.state.rflags, 0x202);
}

#[test]
fn nmis_are_blocked_until_iret() {
    // §6.7.1.
    let mut cpu = long();
    deliver(&mut cpu, Event::Nmi);
    assert!(cpu.events.nmi_masked);
    cpu.iret(8).unwrap();
    assert!(!cpu.events.nmi_masked);
}

#[test]
fn debug_exceptions_tell_why() {
    // Vol. 3B §17.2.3.
    let mut cpu = long();
    (cpu.state.dr[6], cpu.state.dr[7]) = (0xffff_0ff1, 0x2400);
    deliver(&mut cpu, Event::Exception(Exception::debug(0x4000)));
    assert_eq!((cpu.state.dr[6], cpu.state.dr[7]), (0xffff_4ff0, 0x400));
    let [_, _, flags] = stack(&mut cpu, 8);
    assert_eq!(flags, 2);
}

#[test]
fn software_interrupts_need_the_gates_permission() {
    let mut cpu = long_user();
    cpu.int_n(5, 0x6_0002).unwrap();
    assert_eq!(handler(&cpu), 13);
    let [code, rip] = stack(&mut cpu, 8);
    assert_eq!((code, rip), (5 * 8 + 2, 0x6_0000));

    let mut cpu = long_user();
    gate(&cpu, 5, USER_INTERRUPT, 0);
    cpu.int_n(5, 0x6_0002).unwrap();
    assert_eq!(handler(&cpu), 5);
    assert_eq!(stack(&mut cpu, 8), [0x6_0002]);
}

#[test]
fn faults_on_the_way_of_an_interrupt_are_external() {
    // §6.13: EXT and IDT bits.
    let mut cpu = long_user();
    deliver(&mut cpu, Event::External(0x80));
    assert_eq!(handler(&cpu), 13);
    assert_eq!(stack(&mut cpu, 8), [0x80 * 8 + 3]);

    let mut cpu = long_user();
    gate(&cpu, 7, INTERRUPT & !0x80, 0);
    deliver(&mut cpu, Event::External(7));
    assert_eq!(handler(&cpu), 11);
    assert_eq!(stack(&mut cpu, 8), [7 * 8 + 3]);
}

#[test]
fn two_faults_make_a_double_fault_as_tabled() {
    // Table 6-5. The second fault is #NP (gate absent) or #PF (IDT page absent).
    let contributory = Exception::protection(0);
    let page_fault = Exception::page_fault(0, 0x1000);
    for (first, expected) in [(Exception::UNDEFINED, 11), (contributory, 8), (page_fault, 8)] {
        let mut cpu = long_user();
        gate(&cpu, u64::from(first.vector), INTERRUPT & !0x80, 0);
        deliver(&mut cpu, Event::Exception(first));
        assert_eq!(handler(&cpu), expected, "after {}", first.vector);
    }
}

#[test]
fn a_page_fault_while_delivering_a_benign_event_is_served() {
    let mut cpu = long_user();
    store(&cpu.memory, PT + 8 * (IST1_STACK / 4096 - 1), 0);
    gate(&cpu, 6, INTERRUPT, 1);
    deliver(&mut cpu, Event::Exception(Exception::UNDEFINED));
    assert_eq!(handler(&cpu), 14);
    assert_eq!(cpu.state.cr2 & !0xfff, IST1_STACK - 0x1000);
    assert_eq!(stack(&mut cpu, 8), [2, 0x6_0000]);
}

#[test]
fn a_double_fault_that_faults_shuts_down() {
    let mut cpu = long_user();
    for vector in [8, 13] {
        gate(&cpu, vector, INTERRUPT & !0x80, 0);
    }
    let before = (cpu.state.rip, cpu.state.gpr, cpu.state.segments);
    assert_eq!(cpu.deliver(Event::Exception(Exception::protection(0))), Err(ShutDown));
    assert_eq!((cpu.state.rip, cpu.state.gpr, cpu.state.segments), before);
}

#[test]
fn an_empty_idt_shuts_down() {
    let mut cpu = long_user();
    cpu.state.idtr.limit = 0;
    assert_eq!(cpu.deliver(Event::Exception(Exception::UNDEFINED)), Err(ShutDown));
}

#[test]
fn handlers_must_be_64_bit_code() {
    let mut cpu = long_user();
    store(&cpu.memory, IDT + 16 * 3, 0x8e00 << 32 | u64::from(KERNEL_CODE_32) << 16);
    deliver(&mut cpu, Event::External(3));
    assert_eq!(handler(&cpu), 13);
    assert_eq!(stack(&mut cpu, 8), [u64::from(KERNEL_CODE_32) | 1]);
}

#[test]
fn a_short_tss_is_invalid() {
    let mut cpu = long_user();
    cpu.state.tr.limit = 10;
    assert_eq!(cpu.deliver(Event::External(3)), Err(ShutDown));
}

//! 32-bit protected mode, virtual-8086 mode, tasks and real-address mode.

use crate::guest::*;
use sublet_translate::cpu::{Cpu, Exception};
use sublet_translate::state::{flag, gpr, seg, SegmentRegister};
use sublet_translate::system::interrupt::{Event, ShutDown};

#[test]
fn a_32_bit_gate_switches_stacks_and_iretd_back() {
    let mut cpu = protected_user();
    let before = (cpu.state.segments, cpu.state.rip, cpu.state.rflags, cpu.state.gpr);
    cpu.deliver(Event::Exception(Exception::protection(0x18))).unwrap();
    assert_eq!((cpu.state.rip, cpu.state.cpl()), (HANDLER + 16 * 13, 0));
    assert_eq!(cpu.state.segments[seg::SS].selector, KERNEL_DATA);
    let frame = stack(&mut cpu, 4);
    let (code, data) = (u64::from(USER_CODE_32), u64::from(USER_DATA));
    assert_eq!(frame, [0x18, 0x6_0000, code, 0x1_0202, USER_STACK, data]);
    cpu.state.gpr[gpr::RSP] += 4;
    cpu.iret(4).unwrap();
    assert_eq!((cpu.state.segments, cpu.state.rip, cpu.state.gpr), (before.0, before.1, before.3));
    assert_eq!(cpu.state.rflags, 0x1_0202);
}

#[test]
fn the_same_level_pushes_three_words() {
    let mut cpu = protected();
    cpu.deliver(Event::External(3)).unwrap();
    assert_eq!(cpu.state.gpr[gpr::RSP], KERNEL_STACK - 0x100 - 12);
    cpu.iret(4).unwrap();
    assert_eq!((cpu.state.rip, cpu.state.gpr[gpr::RSP]), (0x6_0000, KERNEL_STACK - 0x100));
}

#[test]
fn a_call_gate_copies_parameters() {
    // §5.8.5 "Stack Switching".
    let mut cpu = protected_user();
    let gate = 0xec02 << 32 | u64::from(KERNEL_CODE_32) << 16 | 0x4000;
    store(&cpu.memory, GDT + u64::from(GATE), gate);
    store(&cpu.memory, USER_STACK, 0x2222_2222_1111_1111);
    cpu.far_call(GATE | 3, 0, 4, 0x6_0007).unwrap();
    let (code, data) = (u64::from(USER_CODE_32), u64::from(USER_DATA));
    assert_eq!(stack(&mut cpu, 4), [0x6_0007, code, 0x1111_1111, 0x2222_2222, USER_STACK, data]);
    cpu.far_return(8, 4).unwrap();
    assert_eq!((cpu.state.cpl(), cpu.state.gpr[gpr::RSP]), (3, USER_STACK + 8));
}

/// Virtual-8086 mode at 0x1000:0x0100 with the stack at 0x2000:0x0ff0.
fn v86(iopl: u64) -> Cpu {
    let mut cpu = protected();
    cpu.state.rflags = 0x202 | flag::VM | iopl << 12;
    for (segment, selector) in [(seg::CS, 0x1000), (seg::SS, 0x2000), (seg::DS, 0x3000)] {
        cpu.state.segments[segment] =
            SegmentRegister { base: u64::from(selector) << 4, limit: 0xffff, selector, attributes: 0xf3 };
    }
    (cpu.state.rip, cpu.state.gpr[gpr::RSP]) = (0x100, 0xff0);
    cpu
}

#[test]
fn v86_programs_are_monitored() {
    // §21.3.1 "Class 1-Hardware Interrupt and Exception Handling in Virtual-8086 Mode".
    let mut cpu = v86(0);
    cpu.deliver(Event::External(3)).unwrap();
    assert_eq!((cpu.state.cpl(), cpu.state.v86()), (0, false));
    assert_eq!(cpu.state.segments[seg::DS], SegmentRegister::default());
    let [ip, cs, flags, sp, ss, _, ds] = stack(&mut cpu, 4);
    assert_eq!((ip, cs, flags, sp, ss, ds), (0x100, 0x1000, 0x2_0202, 0xff0, 0x2000, 0x3000));
    cpu.iret(4).unwrap();
    assert!(cpu.state.v86());
    assert_eq!((cpu.state.rip, cpu.state.gpr[gpr::RSP], cpu.state.cpl()), (0x100, 0xff0, 3));
    assert_eq!(cpu.state.segments[seg::DS].base, 0x3_0000);
}

#[test]
fn v86_software_interrupts_need_iopl_or_vme() {
    // §21.3.3.
    let gp = Err(Exception::protection(0).into());
    assert_eq!(v86(0).int_n(3, 0x102), gp);
    assert_eq!(v86(0).iret(2), gp);

    let mut cpu = v86(0);
    cpu.state.cr4 |= 1;
    cpu.state.tr.limit = 0xfff;
    store(&cpu.memory, TSS + 102, 0x88);
    store(&cpu.memory, 0x21 * 4, 0x4000_0123);
    cpu.int_n(0x21, 0x102).unwrap();
    assert!(cpu.state.v86());
    assert_eq!((cpu.state.rip, cpu.state.segments[seg::CS].base), (0x123, 0x4_0000));
    assert_eq!(stack(&mut cpu, 2), [0x102, 0x1000, 0x3002], "IF shows VIF");
}

#[test]
fn real_mode_uses_the_vector_table() {
    // §20.1.4.
    let mut cpu = Cpu::new(ram());
    store(&cpu.memory, 8 * 4, 0xf000_1234);
    cpu.state.rflags = 0x302;
    (cpu.state.rip, cpu.state.gpr[gpr::RSP]) = (0xfff0, 0x1000);
    cpu.deliver(Event::External(8)).unwrap();
    assert_eq!((cpu.state.rip, cpu.state.segments[seg::CS].base), (0x1234, 0xf_0000));
    assert_eq!((cpu.state.rflags, cpu.state.gpr[gpr::RSP]), (2, 0xffa));
    assert_eq!(stack(&mut cpu, 2), [0xfff0, 0xf000, 0x302]);
    cpu.iret(2).unwrap();
    assert_eq!((cpu.state.rip, cpu.state.rflags, cpu.state.gpr[gpr::RSP]), (0xfff0, 0x302, 0x1000));
    cpu.state.idtr.limit = 3;
    assert_eq!(cpu.deliver(Event::External(8)), Err(ShutDown));
}

#[test]
fn real_mode_segments_are_paragraphs() {
    let mut cpu = Cpu::new(ram());
    cpu.load_segment(seg::ES, 0xb800).unwrap();
    assert_eq!(cpu.state.segments[seg::ES].base, 0xb_8000);
    cpu.far_jump(0x1234, 0x5678, 2, 0).unwrap();
    assert_eq!((cpu.state.segments[seg::CS].base, cpu.state.rip), (0x1_2340, 0x5678));
}

const OTHER_TSS: u64 = 0xb000;

/// A second task that starts at 0x7000.
fn other_task(cpu: &Cpu) {
    store(&cpu.memory, GDT + u64::from(OTHER_TASK), 0x0000_8900_0000_0067 | OTHER_TSS << 16);
    store(&cpu.memory, OTHER_TSS + 0x20, 0x7000 | 2 << 32);
    store(&cpu.memory, OTHER_TSS + 0x38, 0x1_8000);
    let (code, data) = (u64::from(KERNEL_CODE_32), u64::from(KERNEL_DATA));
    store(&cpu.memory, OTHER_TSS + 0x48, data | code << 32);
    store(&cpu.memory, OTHER_TSS + 0x50, data | data << 32);
}

#[test]
fn calling_a_task_nests_and_iret_returns() {
    // §8.3, §8.4.
    let mut cpu = protected();
    other_task(&cpu);
    store(&cpu.memory, GDT + u64::from(TASK), 0x0000_8b00_0000_0067 | TSS << 16);
    cpu.state.gpr[gpr::RAX] = 0x1234;
    cpu.far_call(OTHER_TASK, 0, 4, 0x6_0007).unwrap();
    assert_eq!((cpu.state.rip, cpu.state.gpr[gpr::RAX], cpu.state.gpr[gpr::RSP]), (0x7000, 0, 0x1_8000));
    assert_eq!((cpu.state.tr.selector, cpu.state.tr.kind()), (OTHER_TASK, 11));
    assert_eq!((cpu.state.rflags & flag::NT, cpu.state.cr0 & 8), (flag::NT, 8));
    assert_eq!(load(&cpu.memory, OTHER_TSS) & 0xffff, u64::from(TASK));
    cpu.iret(4).unwrap();
    assert_eq!((cpu.state.rip, cpu.state.gpr[gpr::RAX], cpu.state.tr.selector), (0x6_0007, 0x1234, TASK));
    assert_eq!(load(&cpu.memory, GDT + u64::from(OTHER_TASK)) >> 40 & 0xf, 9, "available again");
    assert_eq!(load(&cpu.memory, OTHER_TSS + 0x20) & 0xffff, 0x7001, "after its IRET");
}

#[test]
fn a_task_that_is_not_reached_stays_available() {
    let mut cpu = protected();
    other_task(&cpu);
    let beyond_the_table = 0xfff8;
    cpu.state.tr.selector = beyond_the_table;
    let gp = Exception::protection(beyond_the_table.into());
    assert_eq!(cpu.far_jump(OTHER_TASK, 0, 4, 0x6_0007), Err(gp.into()));
    assert_eq!(load(&cpu.memory, GDT + u64::from(OTHER_TASK)) >> 40 & 0xf, 9);
    assert_eq!(cpu.state.tr.selector, beyond_the_table);
}

#[test]
fn a_task_may_ask_for_a_debug_trap_and_has_no_local_breakpoints_of_another() {
    // Vol. 3B §18.2.4 "Debug Control Register (DR7)", §18.3.1.5 "Task-Switch Exception Condition".
    const T: u64 = 1;
    const DR6_BT: u64 = 1 << 15;
    let mut cpu = protected();
    other_task(&cpu);
    store(&cpu.memory, OTHER_TSS + 0x64, T);
    cpu.state.dr[7] = 0x7ff;
    cpu.far_jump(OTHER_TASK, 0, 4, 0x6_0007).unwrap();
    assert_eq!((cpu.debug_hits, cpu.state.dr[7]), (DR6_BT, 0x6aa));
}

#[test]
fn a_double_fault_may_be_a_task() {
    // §6.12.2: the error code goes on the new task's stack.
    let mut cpu = protected_user();
    other_task(&cpu);
    gate_32(&cpu, 8, OTHER_TASK, 0x85);
    gate_32(&cpu, 13, KERNEL_CODE_32, INTERRUPT & !0x80);
    cpu.deliver(Event::Exception(Exception::protection(0))).unwrap();
    assert_eq!((cpu.state.rip, cpu.state.gpr[gpr::RSP]), (0x7000, 0x1_7ffc));
    assert_eq!(stack(&mut cpu, 4), [0]);
}

#[test]
fn a_bad_task_is_refused() {
    let mut cpu = protected();
    other_task(&cpu);
    store(&cpu.memory, OTHER_TSS + 0x50, u64::from(USER_DATA));
    let fault = Exception::invalid_tss(u32::from(USER_DATA) & !3);
    assert_eq!(cpu.far_jump(OTHER_TASK, 0, 4, 0x6_0007), Err(fault.into()));
    let mut cpu = protected();
    let gp = Exception::protection(OTHER_TASK.into());
    assert_eq!(cpu.far_jump(OTHER_TASK, 0, 4, 0x6_0007), Err(gp.into()));
}

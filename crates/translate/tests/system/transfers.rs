//! Far transfers and fast system calls in long mode.

use crate::guest::*;
use sublet_translate::cpu::{Cpu, Exception, Outcome, Stop};
use sublet_translate::state::{gpr, seg, SegmentRegister, TableRegister};

fn raised(outcome: Outcome) -> Exception {
    match outcome {
        Err(Stop::Exception(exception)) => exception,
        other => panic!("{other:?}"),
    }
}

fn words(cpu: &Cpu, values: &[u64]) {
    for (index, value) in values.iter().enumerate() {
        store(&cpu.memory, cpu.state.gpr[gpr::RSP] + 8 * index as u64, *value);
    }
}

#[test]
fn syscall_and_sysret_are_inverse() {
    let mut cpu = long_user();
    (cpu.state.lstar, cpu.state.sfmask) = (0xffff_8000_0000_1000, 0x4_7700);
    let before = cpu.state.segments;
    cpu.syscall(0x6_0002).unwrap();
    assert_eq!(cpu.state.rip, 0xffff_8000_0000_1000);
    assert_eq!((cpu.state.gpr[gpr::RCX], cpu.state.gpr[11], cpu.state.rflags), (0x6_0002, 0x202, 2));
    assert_eq!(cpu.state.cpl(), 0);
    assert_eq!(cpu.state.segments[seg::CS], segment(&cpu, KERNEL_CODE));
    assert_eq!(cpu.state.segments[seg::SS], segment(&cpu, KERNEL_DATA));
    cpu.sysret(true).unwrap();
    assert_eq!((cpu.state.rip, cpu.state.rflags), (0x6_0002, 0x202));
    assert_eq!(cpu.state.segments, before);
}

#[test]
fn sysret_to_32_bits_takes_the_other_selector() {
    let mut cpu = long();
    (cpu.state.gpr[gpr::RCX], cpu.state.gpr[11]) = (0xffff_ffff_0000_1234, 0x3_0202);
    cpu.sysret(false).unwrap();
    assert_eq!((cpu.state.rip, cpu.state.rflags), (0x1234, 0x202));
    assert_eq!(cpu.state.segments[seg::CS], segment(&cpu, USER_CODE_32));
}

#[test]
fn sysret_to_a_bad_address_differs_by_vendor() {
    let mut cpu = long();
    cpu.state.gpr[gpr::RCX] = 1 << 47;
    assert_eq!(raised(cpu.sysret(true)), Exception::protection(0));
    cpu.amd = true;
    cpu.sysret(true).unwrap();
    assert_eq!((cpu.state.rip, cpu.state.cpl()), (1 << 47, 3));
}

#[test]
fn fast_system_calls_can_be_off_or_forbidden() {
    let mut cpu = long_user();
    assert_eq!(raised(cpu.sysret(true)), Exception::protection(0));
    cpu.state.efer &= !1;
    assert_eq!(raised(cpu.syscall(0)), Exception::UNDEFINED);
    assert_eq!(raised(cpu.sysret(true)), Exception::UNDEFINED);
}

#[test]
fn sysenter_and_sysexit_use_their_msrs() {
    let mut cpu = long_user();
    assert_eq!(raised(cpu.sysenter()), Exception::protection(0));
    (cpu.state.sysenter_cs, cpu.state.sysenter_esp, cpu.state.sysenter_eip) = (8, 0x7000, 0x5000);
    cpu.sysenter().unwrap();
    assert_eq!((cpu.state.rip, cpu.state.gpr[gpr::RSP], cpu.state.rflags), (0x5000, 0x7000, 2));
    assert_eq!((cpu.state.cpl(), cpu.state.code64()), (0, true));
    (cpu.state.gpr[gpr::RDX], cpu.state.gpr[gpr::RCX]) = (0x1000, 0x2000);
    cpu.sysexit(false).unwrap();
    assert_eq!((cpu.state.rip, cpu.state.gpr[gpr::RSP], cpu.state.cpl()), (0x1000, 0x2000, 3));
    assert_eq!(cpu.state.segments[seg::CS].selector, 0x1b);
}

#[test]
fn iretq_checks_what_it_returns_to() {
    let (user, data) = (u64::from(USER_CODE), u64::from(USER_DATA));
    for (frame, expected) in [
        ([0, 0, 2, 0, data], Exception::protection(0)),
        ([0, 0xff8, 2, 0, data], Exception::protection(0xff8)),
        ([0, data, 2, 0, data], Exception::protection(0x20)),
        ([1 << 47, user, 2, 0, data], Exception::protection(0)),
        ([0, user, 2, 0, 0x10], Exception::protection(0x10)),
        ([0, user, 2, 0, 3], Exception::protection(0)),
        ([0, user, 2, 0, 0x43], Exception::protection(0x40)),
    ] {
        let mut cpu = long();
        words(&cpu, &frame);
        let before = (cpu.state.gpr, cpu.state.rip, cpu.state.segments);
        assert_eq!(raised(cpu.iret(8)), expected, "{frame:x?}");
        assert_eq!((cpu.state.gpr, cpu.state.rip, cpu.state.segments), before);
    }
}

#[test]
fn iretq_to_the_kernel_may_have_no_stack_segment() {
    let mut cpu = long();
    words(&cpu, &[0x1234, u64::from(KERNEL_CODE), 0x246, 0x9876, 0]);
    cpu.iret(8).unwrap();
    assert_eq!((cpu.state.rip, cpu.state.gpr[gpr::RSP], cpu.state.rflags), (0x1234, 0x9876, 0x246));
    assert_eq!((cpu.state.cpl(), cpu.state.segments[seg::SS].present()), (0, false));
}

#[test]
fn nested_task_flag_is_illegal_in_long_mode() {
    let mut cpu = long();
    cpu.state.rflags |= 1 << 14;
    assert_eq!(raised(cpu.iret(8)), Exception::protection(0));
}

#[test]
fn users_cannot_raise_their_flags_with_iret() {
    let mut cpu = long_user();
    words(&cpu, &[0x1000, u64::from(USER_CODE), 0x3_3002, USER_STACK, u64::from(USER_DATA)]);
    cpu.state.rflags = 0x202;
    cpu.iret(8).unwrap();
    assert_eq!(cpu.state.rflags, 0x1_0202, "IF, IOPL and VM stay");
}

#[test]
fn returns_outward_drop_inner_segments_but_keep_bases() {
    let mut cpu = long();
    cpu.state.segments[seg::DS] = segment(&cpu, KERNEL_DATA);
    cpu.state.segments[seg::ES] = segment(&cpu, USER_DATA);
    cpu.state.segments[seg::GS] = SegmentRegister { base: 0x5555, ..SegmentRegister::default() };
    words(&cpu, &[0x1000, u64::from(USER_CODE), 0x202, USER_STACK, u64::from(USER_DATA)]);
    cpu.iret(8).unwrap();
    assert_eq!(cpu.state.segments[seg::DS], SegmentRegister::default());
    assert_eq!(cpu.state.segments[seg::ES].selector, USER_DATA);
    assert_eq!(cpu.state.segments[seg::GS].base, 0x5555);
}

#[test]
fn far_calls_return() {
    let mut cpu = long();
    cpu.far_call(KERNEL_CODE, 0x1234, 8, 0x6_0003).unwrap();
    assert_eq!(cpu.state.rip, 0x1234);
    assert_eq!(stack(&mut cpu, 8), [0x6_0003, u64::from(KERNEL_CODE)]);
    cpu.far_return(16, 8).unwrap();
    assert_eq!((cpu.state.rip, cpu.state.gpr[gpr::RSP]), (0x6_0003, KERNEL_STACK - 0x100 + 16));
}

#[test]
fn a_call_gate_leads_inward_and_far_return_out() {
    // §5.8.3.1 "IA-32e Mode Call Gates".
    let mut cpu = long_user();
    store(&cpu.memory, GDT + u64::from(GATE), 0xec00 << 32 | u64::from(KERNEL_CODE) << 16 | 0x4000);
    store(&cpu.memory, GDT + u64::from(GATE) + 8, 0);
    let before = (cpu.state.segments, cpu.state.gpr);
    cpu.far_call(GATE | 3, 0xffff, 4, 0x6_0007).unwrap();
    assert_eq!((cpu.state.rip, cpu.state.cpl()), (0x4000, 0));
    assert_eq!(cpu.state.gpr[gpr::RSP], KERNEL_STACK - 32);
    let frame = [0x6_0007, u64::from(USER_CODE), USER_STACK, u64::from(USER_DATA)];
    assert_eq!(stack(&mut cpu, 8), frame);
    cpu.far_return(0, 8).unwrap();
    assert_eq!(cpu.state.rip, 0x6_0007);
    assert_eq!((cpu.state.segments, cpu.state.gpr), before);
}

#[test]
fn far_jumps_check_their_target() {
    for (selector, expected) in [
        (0, Exception::protection(0)),
        (KERNEL_DATA, Exception::protection(KERNEL_DATA.into())),
        (USER_CODE, Exception::protection(u32::from(USER_CODE) & !3)),
        (TASK, Exception::protection(TASK.into())),
        (0xff8, Exception::protection(0xff8)),
    ] {
        assert_eq!(raised(long().far_jump(selector, 0x1000, 8, 0)), expected, "{selector:#x}");
    }
    let mut cpu = long_user();
    cpu.far_jump(CONFORMING_CODE, 0x1000, 8, 0).unwrap();
    assert_eq!((cpu.state.rip, cpu.state.cpl()), (0x1000, 3));
    assert_eq!(cpu.state.segments[seg::CS].selector, CONFORMING_CODE | 3);
}

#[test]
fn a_far_jump_enters_compatibility_mode() {
    let mut cpu = long();
    cpu.far_jump(KERNEL_CODE_32, 0x1000, 4, 0).unwrap();
    assert!(!cpu.state.code64() && cpu.state.long_mode());
}

#[test]
fn loading_a_segment_checks_it() {
    // MOV to a segment register, vol. 2B; privilege 0, then 3.
    let gp = |selector: u16| Err(Exception::protection(u32::from(selector) & !3));
    for (segment, selector, kernel, user) in [
        (seg::DS, 0, Ok(()), Ok(())),
        (seg::DS, KERNEL_DATA, Ok(()), gp(KERNEL_DATA)),
        (seg::DS, USER_DATA, Ok(()), Ok(())),
        (seg::DS, KERNEL_DATA | 3, gp(KERNEL_DATA), gp(KERNEL_DATA)),
        (seg::DS, CONFORMING_CODE | 3, Ok(()), Ok(())),
        (seg::DS, EXECUTE_ONLY_CODE, gp(EXECUTE_ONLY_CODE), gp(EXECUTE_ONLY_CODE)),
        (seg::DS, ABSENT_DATA, Err(Exception::not_present(0x40)), gp(ABSENT_DATA)),
        (seg::ES, TASK, gp(TASK), gp(TASK)),
        (seg::FS, 0xff8, gp(0xff8), gp(0xff8)),
        (seg::FS, 0x1000, gp(0x1000), gp(0x1000)),
        (seg::GS, 0x0c, gp(0x0c), gp(0x0c)),
        (seg::SS, 0, Ok(()), gp(0)),
        (seg::SS, 3, gp(0), gp(0)),
        (seg::SS, KERNEL_DATA, Ok(()), gp(KERNEL_DATA)),
        (seg::SS, USER_DATA, gp(USER_DATA), Ok(())),
        (seg::SS, KERNEL_CODE, gp(KERNEL_CODE), gp(KERNEL_CODE)),
        (seg::SS, ABSENT_DATA, Err(Exception::stack(0x40)), gp(ABSENT_DATA)),
        (seg::CS, KERNEL_CODE, Err(Exception::UNDEFINED), Err(Exception::UNDEFINED)),
    ] {
        for (mut cpu, expected) in [(long(), kernel), (long_user(), user)] {
            let result = cpu.load_segment(segment, selector);
            assert_eq!(result, expected.map_err(Stop::Exception), "{segment} {selector:#x}");
        }
    }
}

#[test]
fn loading_marks_the_descriptor_accessed() {
    let mut cpu = long();
    store(&cpu.memory, GDT + u64::from(KERNEL_DATA), 0x00cf_9200_1000_ffff);
    cpu.load_segment(seg::FS, KERNEL_DATA).unwrap();
    assert_eq!(load(&cpu.memory, GDT + u64::from(KERNEL_DATA)), 0x00cf_9300_1000_ffff);
    assert_eq!(cpu.state.segments[seg::FS].base, 0x1000);
    assert_eq!(cpu.state.segments[seg::FS].limit, 0xffff_ffff);
}

#[test]
fn ltr_loads_sixteen_bytes_and_marks_busy() {
    let mut cpu = long();
    cpu.state.tr = SegmentRegister::default();
    store(&cpu.memory, GDT + u64::from(TASK) + 8, 0xffff_8000);
    cpu.load_tr(TASK).unwrap();
    assert_eq!(cpu.state.tr.base, 0xffff_8000_0000_0000 | TSS);
    assert_eq!(raised(cpu.load_tr(TASK)), Exception::protection(TASK.into()), "busy now");
    assert_eq!(raised(cpu.load_tr(0)), Exception::protection(0));
}

#[test]
fn an_ldt_holds_descriptors() {
    let mut cpu = long();
    assert_eq!(raised(cpu.load_ldtr(KERNEL_DATA)), Exception::protection(KERNEL_DATA.into()));
    store(&cpu.memory, GDT + u64::from(GATE), 0x8200 << 32 | 0xc000 << 16 | 0xf);
    store(&cpu.memory, GDT + u64::from(GATE) + 8, 0);
    cpu.load_ldtr(GATE).unwrap();
    store(&cpu.memory, 0xc008, 0x00cf_9300_0000_ffff);
    cpu.load_segment(seg::ES, 0x0c).unwrap();
    assert_eq!(raised(cpu.load_segment(seg::ES, 0x14)), Exception::protection(0x14));
    cpu.load_ldtr(0).unwrap();
    assert_eq!(raised(cpu.load_segment(seg::ES, 0x0c)), Exception::protection(0x0c));
}

#[test]
fn a_descriptor_that_faults_is_a_supervisor_read() {
    let mut cpu = long_user();
    cpu.state.gdtr = TableRegister { base: 0x40_0000, limit: 0xff };
    assert_eq!(raised(cpu.load_segment(seg::DS, 8)), Exception::page_fault(0, 0x40_0008));
}

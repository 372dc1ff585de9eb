//! Accesses by linear address and through segments.

use crate::guest::*;
use iced_x86::{Decoder, DecoderOptions};
use sublet_engine::Exit;
use sublet_translate::cpu::{Exception, Stop};
use sublet_translate::state::{flag, gpr, seg, SegmentRegister};
use sublet_translate::system::memory::AccessMode::{Current, Level, System};

const DEVICE: u64 = 0xd000_0000;

#[test]
fn accesses_may_cross_pages() {
    let mut cpu = long();
    store(&cpu.memory, PT + 8 * 0x101, 0x1f_0007);
    cpu.write_u64(0x10_0ffd, 0x1122_3344_5566_7788, Current).unwrap();
    assert_eq!(cpu.read_u64(0x10_0ffd, Current).unwrap(), 0x1122_3344_5566_7788);
    assert_eq!(load(&cpu.memory, 0x10_0ff8) >> 40, 0x66_7788);
    assert_eq!(load(&cpu.memory, 0x1f_0000), 0x11_2233_4455);
}

#[test]
fn a_store_that_faults_writes_nothing() {
    let mut cpu = long();
    store(&cpu.memory, PT + 8 * 0x101, 0x10_1005);
    let fault = Exception::page_fault(3, 0x10_1000);
    assert_eq!(cpu.write_u32(0x10_0ffe, u32::MAX, Current), Err(fault.into()));
    assert_eq!(cpu.write_bytes(0x10_0ff0, &[0xff; 100], Current), Err(fault.into()));
    assert_eq!(load(&cpu.memory, 0x10_0ff8), 0);
}

#[test]
fn privilege_and_smap_decide() {
    let mut cpu = long();
    store(&cpu.memory, PT + 8 * 0x100, 0x10_0003);
    assert_eq!(cpu.read_u8(0x10_0000, Level(3)), Err(Exception::page_fault(5, 0x10_0000).into()));
    cpu.state.cr4 |= 1 << 21;
    let smap = Stop::Exception(Exception::page_fault(1, 0x200));
    assert_eq!(cpu.read_u8(0x200, Current), Err(smap));
    cpu.state.rflags |= 1 << 18;
    assert_eq!(cpu.read_u8(0x200, Current), Ok(0));
    assert_eq!(cpu.read_u8(0x200, System), Err(smap), "implicit accesses are never exempt");
}

#[test]
fn mmio_leaves_and_restarts() {
    let mut cpu = protected();
    let exit = Exit::MmioRead { gpa: DEVICE, size: 4 };
    assert_eq!(cpu.read_u32(DEVICE, Current), Err(Stop::Exit(exit)));
    cpu.completed_read = Some((false, DEVICE, 4, 0x1_2345_6789));
    assert_eq!(cpu.read_u32(DEVICE, Current), Ok(0x2345_6789));
    assert_eq!(cpu.read_u32(DEVICE, Current), Err(Stop::Exit(exit)), "the data serves once");
    let exit = Exit::MmioWrite { gpa: DEVICE, size: 2, data: 0xbeef };
    assert_eq!(cpu.write_linear(DEVICE, 2, 0xdead_beef, Current), Ok(()));
    assert_eq!(cpu.posted_writes, [exit]);
}

/// ENTER stores RBP, then moves both pointers: the store to a device does not end it in between.
#[test]
fn an_instruction_that_stores_to_a_device_is_carried_out_whole() {
    let mut cpu = protected();
    (cpu.state.gpr[gpr::RSP], cpu.state.gpr[gpr::RBP]) = (DEVICE + 8, 0x1234);
    let enter = Decoder::new(32, &[0xc8, 0x10, 0, 0], DecoderOptions::NONE).decode();
    assert_eq!(cpu.execute(&enter), Ok(()));
    assert_eq!(cpu.posted_writes, [Exit::MmioWrite { gpa: DEVICE + 4, size: 4, data: 0x1234 }]);
    assert_eq!((cpu.state.gpr[gpr::RBP], cpu.state.gpr[gpr::RSP]), (DEVICE + 4, DEVICE + 4 - 0x10));
}

#[test]
fn an_instruction_may_read_two_devices() {
    let mut cpu = protected();
    (cpu.state.gpr[gpr::RSI], cpu.state.gpr[gpr::RDI]) = (DEVICE, DEVICE + 0x100);
    let cmpsb = Decoder::new(32, &[0xa6], DecoderOptions::NONE).decode();
    for _ in 0..2 {
        let (first, second) = (cpu.state.gpr[gpr::RSI], cpu.state.gpr[gpr::RDI]);
        assert_eq!(cpu.execute(&cmpsb), Err(Stop::Exit(Exit::MmioRead { gpa: first, size: 1 })));
        cpu.completed_read = Some((false, first, 1, 7));
        assert_eq!(cpu.execute(&cmpsb), Err(Stop::Exit(Exit::MmioRead { gpa: second, size: 1 })));
        cpu.completed_read = Some((false, second, 1, 7));
        assert_eq!(cpu.execute(&cmpsb), Ok(()));
        assert_ne!(cpu.state.rflags & flag::ZF, 0);
    }
    assert_eq!(cpu.state.gpr[gpr::RSI], DEVICE + 2);
}

#[test]
fn the_processors_own_accesses_see_no_devices() {
    let mut cpu = protected();
    assert_eq!(cpu.read_u16(DEVICE, System), Ok(0xffff));
    assert_eq!(cpu.write_u64(DEVICE, 1, System), Ok(()));
}

#[test]
fn addresses_must_be_canonical() {
    let mut cpu = long();
    let (gp, ss) = (Err(Exception::protection(0).into()), Err(Exception::stack(0).into()));
    assert_eq!(cpu.read_seg(seg::DS, 1 << 47, 1), gp);
    assert_eq!(cpu.read_seg(seg::DS, (1 << 47) - 4, 8), gp);
    assert_eq!(cpu.read_seg(seg::SS, 1 << 47, 1), ss);
    assert_eq!(cpu.read_u8(1 << 47, System), Err(Exception::protection(0).into()));
}

#[test]
fn only_fs_and_gs_have_a_base_in_64_bit_code() {
    let mut cpu = long();
    for segment in &mut cpu.state.segments {
        segment.base = 0x1000;
    }
    store(&cpu.memory, 0x10_0000, 0x55);
    store(&cpu.memory, 0x10_1000, 0x66);
    assert_eq!(cpu.read_seg(seg::DS, 0x10_0000, 1), Ok(0x55));
    assert_eq!(cpu.read_seg(seg::FS, 0x10_0000, 1), Ok(0x66));
}

#[test]
fn limits_and_types_bind_32_bit_code() {
    // §5.3, §5.5.
    let mut cpu = protected();
    let data = |attributes| SegmentRegister { base: 0x10_0000, limit: 0xfff, selector: 8, attributes };
    let gp: Stop = Exception::protection(0).into();
    for (attributes, offset, size, read, written) in [
        (0x93, 0xffc, 4, true, true),
        (0x93, 0xffd, 4, false, false),
        (0x93, u64::MAX, 4, false, false),
        (0x91, 0, 4, true, false),
        (0x9b, 0, 4, true, false),
        (0x99, 0, 4, false, false),
        (0x97, 0xfff, 1, false, false),
        (0x97, 0x1000, 4, true, true),
        (0x97, 0xfffe, 4, false, false),
        (0x4097, 0xfffe, 4, true, true),
        (0x00, 0, 1, false, false),
    ] {
        cpu.state.segments[seg::DS] = data(attributes);
        let verdict = |allowed: bool| if allowed { Ok(()) } else { Err(gp) };
        let result = cpu.read_seg(seg::DS, offset, size).map(|_| ());
        assert_eq!(result, verdict(read), "read {attributes:#x} {offset:#x}");
        let result = cpu.write_seg(seg::DS, offset, size, 0);
        assert_eq!(result, verdict(written), "write {attributes:#x} {offset:#x}");
    }
}

#[test]
fn users_may_ask_for_alignment_checks() {
    let mut cpu = long_user();
    cpu.state.rflags |= 1 << 18;
    assert_eq!(cpu.read_seg(seg::DS, 0x1001, 4), Err(Exception::with_code(17, 0).into()));
    assert_eq!(cpu.read_seg(seg::DS, 0x1001, 1), Ok(0x20));
}

//! Page walks.

use crate::guest::{load, ram, store};
use sublet_memory::GuestMemory;
use sublet_translate::mmu::walk::{is_canonical, peek, walk, Access, Kind, PagingRegs, Walk};

const NX: u64 = 1 << 63;
const LA: u64 = 0x0000_7f80_4020_1abc;
const TABLES: [u64; 4] = [0x1000, 0x2000, 0x3000, 0x4000];

fn access(kind: Kind, user: bool) -> Access {
    Access { kind, user, smap_override: false }
}

/// 4-level paging with NX and write protection.
fn long() -> PagingRegs {
    PagingRegs {
        cr0: 0x8001_0001,
        cr3: TABLES[0],
        cr4: 0xa0,
        efer: 0xd00,
        pdptes: [0; 4],
        physical_bits: 46,
        smm: false,
    }
}

fn slot(level: usize) -> u64 {
    TABLES[level] + 8 * ((LA >> (39 - 9 * level)) & 0x1ff)
}

/// Tables that map the page of `LA` with these entries' flags, top level first; a shorter list
/// ends in a large page.
fn map(flags: &[u64]) -> std::sync::Arc<GuestMemory> {
    let memory = ram();
    for (level, flags) in flags.iter().enumerate() {
        let leaf = level == 3 || flags & 0x80 != 0;
        store(&memory, slot(level), if leaf { *flags } else { TABLES[level + 1] | flags });
    }
    memory
}

fn code(memory: &GuestMemory, regs: &PagingRegs, access: Access) -> Option<u32> {
    walk(memory, regs, LA, access).err().map(|fault| fault.code)
}

#[test]
fn a_page_of_each_size_is_found() {
    // §4.5.4, tables 4-15 to 4-20.
    for (flags, bits, frame) in [
        (vec![7, 0x4000_0087], 30, 0x4000_0000),
        (vec![7, 7, 0x20_0087], 21, 0x20_0000),
        (vec![7, 7, 7, 0x12_3007], 12, 0x12_3000),
    ] {
        let memory = map(&flags);
        let found = walk(&memory, &long(), LA, access(Kind::Read, true)).unwrap();
        assert_eq!(found.page_bits, bits);
        assert_eq!(found.gpa, frame | (LA & ((1 << bits) - 1)));
    }
}

#[test]
fn error_codes_tell_the_access() {
    // §4.7 figure 4-12.
    let absent = map(&[7, 7, 7, 6]);
    for (kind, user, expected) in [
        (Kind::Read, false, 0),
        (Kind::Write, false, 2),
        (Kind::Read, true, 4),
        (Kind::Write, true, 6),
        (Kind::Execute, true, 0x14),
    ] {
        assert_eq!(code(&absent, &long(), access(kind, user)), Some(expected));
    }
    let without_nx = PagingRegs { efer: 0x500, ..long() };
    assert_eq!(code(&absent, &without_nx, access(Kind::Execute, false)), Some(0));
    let smep = PagingRegs { cr4: 0x10_00a0, ..without_nx };
    assert_eq!(code(&absent, &smep, access(Kind::Execute, false)), Some(0x10));
}

#[test]
fn every_level_restricts() {
    // §4.6.1: U/S and R/W are ANDed over all levels, XD is ORed.
    for level in 0..4 {
        let mut flags = [7; 4];
        flags[level] = 3;
        assert_eq!(code(&map(&flags), &long(), access(Kind::Read, true)), Some(5));
        flags[level] = 5;
        assert_eq!(code(&map(&flags), &long(), access(Kind::Write, true)), Some(7));
        flags[level] = 7 | NX;
        assert_eq!(code(&map(&flags), &long(), access(Kind::Execute, true)), Some(0x15));
    }
}

#[test]
fn write_protection_binds_supervisors_when_set() {
    // §4.6.1, CR0.WP.
    let memory = map(&[7, 7, 7, 5]);
    assert_eq!(code(&memory, &long(), access(Kind::Write, false)), Some(3));
    let unprotected = PagingRegs { cr0: 0x8000_0001, ..long() };
    assert_eq!(code(&memory, &unprotected, access(Kind::Write, false)), None);
    assert_eq!(code(&memory, &unprotected, access(Kind::Write, true)), Some(7));
}

#[test]
fn supervisors_keep_out_of_user_pages() {
    // §4.6.1, CR4.SMEP and CR4.SMAP.
    let memory = map(&[7; 4]);
    let guarded = PagingRegs { cr4: 0x30_00a0, ..long() };
    assert_eq!(code(&memory, &guarded, access(Kind::Execute, false)), Some(0x11));
    assert_eq!(code(&memory, &guarded, access(Kind::Read, false)), Some(1));
    assert_eq!(code(&memory, &guarded, access(Kind::Write, false)), Some(3));
    let exempt = Access { smap_override: true, ..access(Kind::Write, false) };
    assert_eq!(code(&memory, &guarded, exempt), None);
    assert_eq!(code(&memory, &guarded, access(Kind::Read, true)), None);
}

#[test]
fn reserved_bits_fault() {
    // §4.5.4: bits 51:MAXPHYADDR, PS in a PML4E, low frame bits of large pages, XD without NXE.
    for flags in [
        vec![7, 7, 7, 7 | 1 << 46],
        vec![7 | 1 << 51, 7, 7, 7],
        vec![0x87],
        vec![7, 0x4000_0087 | 1 << 13],
        vec![7, 7, 0x20_0087 | 1 << 20],
    ] {
        assert_eq!(code(&map(&flags), &long(), access(Kind::Read, true)), Some(0xd));
    }
    let without_nx = PagingRegs { efer: 0x500, ..long() };
    assert_eq!(code(&map(&[7, 7, 7, 7 | NX]), &without_nx, access(Kind::Read, false)), Some(9));
    let pat_bit = map(&[7, 7, 0x20_0087 | 1 << 12]);
    assert_eq!(code(&pat_bit, &long(), access(Kind::Read, false)), None);
}

#[test]
fn tables_outside_ram_read_as_all_ones() {
    let memory = map(&[7, 7, 0x7f_ffff_f007]);
    assert_eq!(
        peek(&memory, &PagingRegs { cr3: 1 << 40, ..long() }, LA, access(Kind::Read, false))
            .unwrap_err()
            .code,
        9
    );
    assert_eq!(code(&memory, &long(), access(Kind::Read, false)), Some(9));
}

#[test]
fn accessed_and_dirty_flags_follow_use() {
    // §4.8.
    let memory = map(&[7; 4]);
    let entries = |memory: &GuestMemory| [0, 1, 2, 3].map(|level| load(memory, slot(level)) & 0x60);
    peek(&memory, &long(), LA, access(Kind::Write, true)).unwrap();
    assert_eq!(entries(&memory), [0; 4]);
    let read = walk(&memory, &long(), LA, access(Kind::Read, true)).unwrap();
    assert_eq!(entries(&memory), [0x20; 4]);
    assert!(!read.dirty);
    let written = walk(&memory, &long(), LA, access(Kind::Write, true)).unwrap();
    assert_eq!(entries(&memory), [0x20, 0x20, 0x20, 0x60]);
    assert!(written.dirty);
}

#[test]
fn faults_set_no_flags() {
    let memory = map(&[7, 7, 7, 5]);
    assert_eq!(code(&memory, &long(), access(Kind::Write, true)), Some(7));
    assert_eq!([0, 1, 2, 3].map(|level| load(&memory, slot(level)) & 0x60), [0; 4]);
}

#[test]
fn global_needs_pge() {
    // §4.10.2.4.
    let memory = map(&[7, 7, 7, 0x107]);
    let global = |regs: &PagingRegs| walk(&memory, regs, LA, access(Kind::Read, false)).unwrap().global;
    assert!(global(&long()));
    assert!(!global(&PagingRegs { cr4: 0x20, ..long() }));
}

#[test]
fn one_walk_gives_the_rights_of_all() {
    // Every combination of flags and controls: `rights` agrees with a walk for each access.
    for flags in 0..8u64 {
        let entry = 1 | (flags & 1) << 1 | (flags & 2) << 1 | if flags & 4 != 0 { NX } else { 0 };
        let memory = map(&[7, 7, 7, entry]);
        for controls in 0..8u64 {
            let regs = PagingRegs {
                cr0: 0x8000_0001 | (controls & 1) << 16,
                cr4: 0xa0 | (controls & 6) << 19,
                ..long()
            };
            check_rights(&memory, &regs);
        }
    }
}

fn check_rights(memory: &GuestMemory, regs: &PagingRegs) {
    let found: Walk = peek(memory, regs, LA, access(Kind::Read, false))
        .or_else(|_| peek(memory, regs, LA, access(Kind::Read, true)))
        .unwrap();
    for kind in [Kind::Read, Kind::Write, Kind::Execute] {
        for (user, smap_override) in [(true, false), (false, false), (false, true)] {
            let access = Access { kind, user, smap_override };
            assert_eq!(found.rights.allow(access), allowed(&found, regs, access), "{access:?} {regs:x?}");
            assert_eq!(found.rights.allow(access), peek(memory, regs, LA, access).is_ok());
        }
    }
}

/// §4.6.1 "Determination of Access Rights", as its text has it.
fn allowed(page: &Walk, regs: &PagingRegs, access: Access) -> bool {
    let (wp, smep, smap) = (regs.cr0 & 1 << 16 != 0, regs.cr4 & 1 << 20 != 0, regs.cr4 & 1 << 21 != 0);
    match (access.user, access.kind) {
        (true, Kind::Read) => page.user,
        (true, Kind::Write) => page.user && page.writable,
        (true, Kind::Execute) => page.user && page.executable,
        (false, Kind::Execute) => page.executable && !(smep && page.user),
        (false, kind) => {
            let smap_allows = !page.user || !smap || access.smap_override;
            smap_allows && (kind == Kind::Read || page.writable || !wp)
        }
    }
}

#[test]
fn pae_starts_in_registers() {
    // §4.4.
    let memory = ram();
    store(&memory, 0x3000 + 8, 0x20_0083);
    store(&memory, 0x3000 + 16, 0x4007);
    store(&memory, 0x4000, 0x5007);
    let pdptes = [0x3001, 0, 0, 0];
    let regs = PagingRegs { efer: 0x800, pdptes, ..long() };
    let at = |la| walk(&memory, &regs, la, access(Kind::Read, false)).map(|walk| (walk.gpa, walk.page_bits));
    assert_eq!(at(0x20_1234), Ok((0x20_1234, 21)));
    assert_eq!(at(0x40_0abc), Ok((0x5abc, 12)));
    assert_eq!(at(0x4000_0000).unwrap_err().code, 0);
    store(&memory, 0x4000, 0x5007 | 1 << 52);
    assert_eq!(at(0x40_0abc).unwrap_err().code, 9);
}

#[test]
fn two_levels_of_four_byte_entries() {
    // §4.3.
    let memory = ram();
    let entry = |at: u64, value: u32| memory.write(at, &value.to_le_bytes()).unwrap();
    entry(0x1000 + 4, 0x2007);
    entry(0x2000 + 4 * 3, 0x9007);
    entry(0x1000 + 8, 0x0040_2087);
    entry(0x1000 + 12, 0x0060_0087);
    let regs = PagingRegs { cr4: 0x10, efer: 0, ..long() };
    let at = |la| walk(&memory, &regs, la, access(Kind::Write, true)).map(|walk| (walk.gpa, walk.page_bits));
    assert_eq!(at(0x40_3123), Ok((0x9123, 12)));
    assert_eq!(at(0x80_0123), Ok((0x1_0040_0123, 22)));
    assert_eq!(at(0xc0_0000).unwrap_err().code, 0xf);
    assert_eq!(load(&memory, 0x2008) >> 32, 0x9067);
}

#[test]
fn without_paging_addresses_are_physical() {
    let regs = PagingRegs { cr0: 1, ..long() };
    let found = walk(&ram(), &regs, 0x1234, access(Kind::Execute, true)).unwrap();
    assert_eq!((found.gpa, found.dirty), (0x1234, true));
}

#[test]
fn canonical_addresses_extend_bit_47() {
    for (la, canonical) in [
        (0x0000_7fff_ffff_ffff, true),
        (0x0000_8000_0000_0000, false),
        (0xffff_7fff_ffff_ffff, false),
        (0xffff_8000_0000_0000, true),
    ] {
        assert_eq!(is_canonical(la), canonical, "{la:#x}");
    }
}

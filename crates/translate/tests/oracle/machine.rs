//! The bare machine that a case runs in: descriptor tables, page tables, exception handlers.
//!
//! Guest-physical layout: page tables from 0x1000, the tables and handlers from 0x8000, then the
//! pages of the regions. The low 2 MiB are mapped once more at [`SYSTEM`], for privilege 0 only;
//! the regions lie at the addresses they have in this process.

use crate::case::{Case, Pristine, Region, CODE, DATA, PAGE, READ_ONLY};
use crate::segments::{self, Selectors};
use sublet_engine::{DescriptorTable, Segment, Sregs};

/// Bytes of guest memory.
pub const MEMORY_BYTES: u64 = 2 << 20;
/// Linear address of guest-physical 0, for the handlers and tables.
pub const SYSTEM: u64 = 0x4000_0000;

const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const LOW_DIRECTORY: u64 = 0x3000;
const SYSTEM_DIRECTORY: u64 = 0x4000;
const PAGE_TABLES: u64 = 0x5000;
const GDT: u64 = 0x8000;
const IDT: u64 = 0x9000;
const TSS: u64 = 0xa000;
const HANDLERS: u64 = 0xb000;
const HANDLER_STACK_TOP: u64 = 0xf000;
const START: u64 = 0xc000;
const LDT: u64 = 0xc800;

/// Where the machine starts, at privilege 0: `xsetbv; hlt`.
pub const START_ADDRESS: u64 = SYSTEM + START;
const START_CODE: [u8; 4] = [0x0f, 0x01, 0xd1, 0xf4];

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;

/// Linux's descriptors, so that selectors mean the same on both sides: 32-bit and 64-bit kernel
/// code, kernel data, 32-bit user code, user data, 64-bit user code, the TSS at 0x40, and the processor's
/// number at 0x78.
const DESCRIPTORS: [u64; 16] = [
    0,
    0x00cf_9b00_0000_ffff,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x00cf_fb00_0000_ffff,
    0x00cf_f300_0000_ffff,
    0x00af_fb00_0000_ffff,
    0,
    0x0000_8b00_0000_0067 | ((SYSTEM + TSS) & 0xff_ffff) << 16 | (((SYSTEM + TSS) >> 24) & 0xff) << 56,
    0,
    0,
    0,
    0,
    0,
    0,
    0x0040_f500_0000_0000,
];

/// Where a region's pages lie in guest-physical memory.
pub fn region_gpa(base: u64) -> u64 {
    match base {
        CODE => 0x1_0000,
        DATA => 0x2_0000,
        READ_ONLY => 0x2_2000,
        _ => 0x3_0000,
    }
}

/// Guest-physical address of an address in a region.
pub fn gpa_of(address: u64) -> u64 {
    let base = [READ_ONLY, DATA, CODE].into_iter().find(|base| address.wrapping_sub(*base) < 2 * PAGE);
    let base = base.unwrap_or(crate::case::STACK);
    region_gpa(base) + (address - base)
}

/// All of guest memory before the first case.
pub fn image(original: &Pristine, privilege: u8) -> Vec<u8> {
    let mut image = vec![0; MEMORY_BYTES as usize];
    page_tables(&mut image, original, privilege);
    for (index, descriptor) in DESCRIPTORS.iter().enumerate() {
        put(&mut image, GDT + 8 * index as u64, *descriptor);
    }
    for (index, entry) in segments::TABLE.iter().enumerate() {
        put(&mut image, LDT + 8 * index as u64, entry.bits());
    }
    task_state(&mut image);
    for vector in 0..32 {
        gate(&mut image, vector);
    }
    image[START as usize..START as usize + START_CODE.len()].copy_from_slice(&START_CODE);
    for (region, contents) in original.regions() {
        let at = region_gpa(region.base) as usize;
        image[at..at + contents.len()].copy_from_slice(contents);
    }
    image
}

fn put(image: &mut [u8], at: u64, value: u64) {
    image[at as usize..at as usize + 8].copy_from_slice(&value.to_le_bytes());
}

fn page_tables(image: &mut [u8], original: &Pristine, privilege: u8) {
    let all = PRESENT | WRITABLE | USER;
    put(image, PML4, PDPT | all);
    put(image, PDPT, LOW_DIRECTORY | all);
    put(image, PDPT + 8, SYSTEM_DIRECTORY | all);
    put(image, SYSTEM_DIRECTORY, PRESENT | WRITABLE | LARGE);
    for (region, _) in original.regions() {
        let table = PAGE_TABLES + PAGE * ((region.base >> 28) - 1);
        put(image, LOW_DIRECTORY + 8 * (region.base >> 21), table | all);
        for page in 0..region.size / PAGE {
            let entry = (region_gpa(region.base) + PAGE * page) | rights(region, privilege);
            let slot = ((region.base >> 12) & 511) + page;
            put(image, table + 8 * slot, entry);
        }
    }
}

fn rights(region: &Region, privilege: u8) -> u64 {
    let user = if privilege == 3 { USER } else { 0 };
    let write = if region.writable { WRITABLE } else { 0 };
    let fetch = if region.executable { 0 } else { NO_EXECUTE };
    PRESENT | user | write | fetch
}

/// A 64-bit TSS: RSP0 and IST1 (Intel SDM vol. 3A §8.7 "Task Management in 64-bit Mode").
fn task_state(image: &mut [u8]) {
    put(image, TSS + 4, SYSTEM + HANDLER_STACK_TOP);
    put(image, TSS + 36, SYSTEM + HANDLER_STACK_TOP);
    image[TSS as usize + 102..TSS as usize + 104].copy_from_slice(&104_u16.to_le_bytes());
}

/// An interrupt gate on IST1 whose handler is a single `hlt`.
fn gate(image: &mut [u8], vector: u64) {
    let handler = SYSTEM + HANDLERS + 16 * vector;
    let privilege = if matches!(vector, 3 | 4) { 3 } else { 0 };
    let low = handler & 0xffff
        | 0x10 << 16
        | 1 << 32
        | (0x8e | privilege << 5) << 40
        | (handler >> 16 & 0xffff) << 48;
    put(image, IDT + 16 * vector, low);
    put(image, IDT + 16 * vector + 8, handler >> 32);
    image[(HANDLERS + 16 * vector) as usize] = 0xf4;
}

/// The vector whose handler has halted with this RIP.
pub fn halted_vector(rip: u64) -> Option<u8> {
    let offset = rip.wrapping_sub(SYSTEM + HANDLERS + 1);
    (offset % 16 == 0 && offset / 16 < 32).then_some((offset / 16) as u8)
}

fn code_segment(selector: u16, long: bool) -> Segment {
    Segment { kind: 0xb, l: long, db: !long, ..data_segment(selector) }
}

fn data_segment(selector: u16) -> Segment {
    Segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        kind: 3,
        present: true,
        dpl: (selector & 3) as u8,
        db: true,
        s: true,
        g: true,
        ..Segment::default()
    }
}

/// Registers to run a case with: 64-bit or compatibility mode, at privilege 3 or 0.
pub fn system_registers(bits: u32, privilege: u8, fs_base: u64, gs_base: u64) -> Sregs {
    let code = match (bits, privilege) {
        (32, _) => code_segment(0x23, false),
        (_, 0) => code_segment(0x10, true),
        _ => code_segment(0x33, true),
    };
    let data = data_segment(0x2b);
    let stack = data_segment(if privilege == 0 { 0x18 } else { 0x2b });
    let unusable = Segment { unusable: true, ..Segment::default() };
    // As Linux leaves them: null selectors, with bases of their own.
    let fs = Segment { base: fs_base, selector: 0, ..data_segment(0x2b) };
    let gs = Segment { base: gs_base, selector: 0, ..data_segment(0x2b) };
    Sregs {
        segments: [data, code, stack, data, fs, gs],
        ldtr: unusable,
        tr: Segment {
            base: SYSTEM + TSS,
            limit: 0x67,
            selector: 0x40,
            kind: 0xb,
            present: true,
            ..Segment::default()
        },
        gdt: DescriptorTable { base: SYSTEM + GDT, limit: (8 * DESCRIPTORS.len() - 1) as u16 },
        idt: DescriptorTable { base: SYSTEM + IDT, limit: 32 * 16 - 1 },
        // PE MP ET NE WP AM PG
        cr0: 0x8005_0033,
        cr3: PML4,
        // PAE OSFXSR OSXMMEXCPT FSGSBASE OSXSAVE
        cr4: 1 << 5 | 1 << 9 | 1 << 10 | 1 << 16 | 1 << 18,
        // SCE LME LMA NXE
        efer: 0xd01,
        apic_base: 0xfee0_0900,
        ..Sregs::default()
    }
}

/// Registers to run `case` with, its own segments and the local table among them if it has any.
pub fn case_registers(case: &Case, privilege: u8) -> Sregs {
    let mut sregs = system_registers(case.bits, privilege, case.cpu.fs_base, case.cpu.gs_base);
    if let Some(selectors) = &case.selectors {
        sregs.segments = loaded(selectors);
        sregs.ldtr = Segment {
            base: SYSTEM + LDT,
            limit: 8 * segments::TABLE.len() as u32 - 1,
            selector: 0x50,
            kind: 2,
            present: true,
            ..Segment::default()
        };
    }
    sregs
}

/// Segment registers as loading the selectors leaves them.
fn loaded(selectors: &Selectors) -> [Segment; 6] {
    selectors.map(|selector| match segments::entry(selector) {
        Some(entry) => Segment {
            base: u64::from(entry.base),
            limit: if entry.pages { entry.limit << 12 | 0xfff } else { entry.limit },
            selector,
            kind: 1 | u8::from(!entry.restricted) << 1 | (entry.contents as u8) << 2,
            present: true,
            dpl: 3,
            db: entry.wide,
            s: true,
            g: entry.pages,
            ..Segment::default()
        },
        None => Segment { unusable: true, selector, ..Segment::default() },
    })
}

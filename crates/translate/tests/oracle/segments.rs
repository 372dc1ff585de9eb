//! Segments of a local descriptor table, the same on both sides: by `modify_ldt` natively, in
//! memory for the translated side.
//!
//! They lie over the regions in every way that matters: 16- and 32-bit, limits inside a page and
//! at its end, expand-down, read-only, not present, bases that make offsets wrap.

use crate::case::{CODE, DATA, STACK};

/// One descriptor, as `modify_ldt` takes it (`struct user_desc`, `asm/ldt.h`).
#[derive(Debug, Clone, Copy)]
pub struct Descriptor {
    /// Linear address of offset 0.
    pub base: u32,
    /// Last offset, in bytes or pages; 20 bits.
    pub limit: u32,
    /// What it is.
    pub contents: Contents,
    /// D or B: 32-bit operands and addresses, or stack pointer.
    pub wide: bool,
    /// Data that is not writable; code that is not readable.
    pub restricted: bool,
    /// The limit counts pages.
    pub pages: bool,
    /// Loading it raises no #NP.
    pub present: bool,
}

/// `contents` of `struct user_desc`: the upper two bits of the type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contents {
    /// Data that grows upwards.
    Data = 0,
    /// Data that grows downwards: offsets above the limit are valid.
    ExpandDown = 1,
    /// Code.
    Code = 2,
    /// Code that keeps its caller's privilege. Linux installs it only as not present.
    Conforming = 3,
}

impl Descriptor {
    /// The eight bytes, accessed, of privilege 3 (Intel SDM vol. 3A §3.4.5 "Segment Descriptors").
    pub fn bits(&self) -> u64 {
        let (base, limit) = (u64::from(self.base), u64::from(self.limit));
        let kind = 1 | u64::from(!self.restricted) << 1 | (self.contents as u64) << 2;
        let rights = kind | 0x70 | u64::from(self.present) << 7;
        let attributes = u64::from(self.wide) << 2 | u64::from(self.pages) << 3;
        limit & 0xffff
            | (base & 0xff_ffff) << 16
            | rights << 40
            | (limit >> 16 & 0xf) << 48
            | attributes << 52
            | (base >> 24) << 56
    }

    /// The flags word of `struct user_desc`.
    pub fn user_flags(&self) -> u32 {
        u32::from(self.wide)
            | (self.contents as u32) << 1
            | u32::from(self.restricted) << 3
            | u32::from(self.pages) << 4
            | u32::from(!self.present) << 5
    }
}

const fn segment(contents: Contents, base: u64, limit: u32, wide: bool) -> Descriptor {
    Descriptor { base: base as u32, limit, contents, wide, restricted: false, pages: false, present: true }
}

const fn flat(contents: Contents, wide: bool) -> Descriptor {
    Descriptor { pages: true, ..segment(contents, 0, 0xf_ffff, wide) }
}

const fn restricted(of: Descriptor) -> Descriptor {
    Descriptor { restricted: true, ..of }
}

const fn absent(of: Descriptor) -> Descriptor {
    Descriptor { present: false, ..of }
}

use Contents::{Code, Conforming, Data, ExpandDown};

/// Offset whose segment's base lies that much below a region, so that 16-bit offsets from here on
/// reach the region and offsets past 0xffff wrap out of it.
pub const HIGH: u64 = 0xe000;

/// The table. The first [`CODES`] are code that a case may start in, 16- and 32-bit in turn.
pub const TABLE: [Descriptor; 29] = [
    segment(Code, CODE, 0x1fff, false),
    segment(Code, CODE, 0x1fff, true),
    segment(Code, CODE, 0x0fff, false),
    flat(Code, true),
    restricted(segment(Code, CODE, 0x1fff, false)),
    restricted(segment(Code, CODE, 0x1fff, true)),
    segment(Code, CODE, 0xffff, false),
    segment(Code, CODE, 0x1800, true),
    absent(segment(Conforming, CODE, 0x1fff, false)),
    segment(Data, DATA, 0x2fff, false),
    segment(Data, DATA, 0x2fff, true),
    segment(Data, DATA, 0x17fe, false),
    restricted(segment(Data, DATA, 0x1fff, true)),
    segment(ExpandDown, DATA - HIGH, 0xe7ff, false),
    segment(ExpandDown, DATA, 0x3ff, true),
    segment(Data, DATA - HIGH, 0xffff, false),
    flat(Data, true),
    absent(segment(Data, DATA, 0x1fff, false)),
    restricted(segment(ExpandDown, DATA - HIGH, 0xe000, false)),
    segment(Data, DATA + 0x123, 0xd00, true),
    flat(ExpandDown, true),
    segment(Data, STACK, 0x1fff, false),
    segment(Data, STACK, 0x1fff, true),
    segment(Data, STACK - HIGH, 0xffff, false),
    flat(Data, false),
    segment(ExpandDown, STACK - HIGH, 0xe0ff, false),
    segment(ExpandDown, STACK, 0x3ff, true),
    segment(Data, STACK + 0x1000, 0xffff, false),
    segment(Data, STACK, 0x1402, false),
];

/// Code segments at the start of [`TABLE`].
pub const CODES: usize = 8;
/// Data segments of [`TABLE`], those that are not present among them.
pub const DATAS: std::ops::Range<usize> = 9..21;
/// Stack segments of [`TABLE`].
pub const STACKS: std::ops::Range<usize> = 21..29;

/// Selector of an entry, for privilege 3.
pub const fn selector(index: usize) -> u16 {
    (index as u16) << 3 | 7
}

/// The entry that a selector names, if it names one of the table.
pub fn entry(selector: u16) -> Option<&'static Descriptor> {
    TABLE.get(usize::from(selector >> 3)).filter(|_| selector & 4 != 0)
}

/// Selectors that a case starts with: ES, CS, SS, DS, FS, GS.
pub type Selectors = [u16; 6];

/// Index in [`Selectors`].
pub const CS: usize = 1;
/// See [`CS`].
pub const SS: usize = 2;

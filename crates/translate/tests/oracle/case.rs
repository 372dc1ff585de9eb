//! A case: code, input state and memory; and what came out of running it.

use crate::segments::{self, Selectors};
use std::collections::BTreeMap;

/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// Two pages of code: executable and writable, filled with `int3`.
pub const CODE: u64 = 0x1000_0000;
/// Two writable pages of data, not executable; the page before is not mapped.
pub const DATA: u64 = 0x2000_0000;
/// One read-only page right after the writable data; the page after it is not mapped.
pub const READ_ONLY: u64 = DATA + 2 * PAGE;
/// Two pages of stack, not executable; the pages around are not mapped.
pub const STACK: u64 = 0x3000_0000;
/// Bytes of the code region, and of the stack region.
pub const TWO_PAGES: u64 = 2 * PAGE;

/// A run of mapped addresses.
#[derive(Debug, Clone, Copy)]
pub struct Region {
    /// First address.
    pub base: u64,
    /// Bytes.
    pub size: u64,
    /// The snippet may store here.
    pub writable: bool,
    /// The snippet may run here.
    pub executable: bool,
}

/// Everything a snippet can reach, in order of address. The code region is the first.
pub const REGIONS: [Region; 4] = [
    Region { base: CODE, size: TWO_PAGES, writable: true, executable: true },
    Region { base: DATA, size: TWO_PAGES, writable: true, executable: false },
    Region { base: READ_ONLY, size: PAGE, writable: false, executable: false },
    Region { base: STACK, size: TWO_PAGES, writable: true, executable: false },
];

/// Contents of a region before a case's own bytes are put in: `int3` in the code, a fixed
/// pattern with plausible numbers elsewhere.
pub fn initial_region(region: &Region) -> Vec<u8> {
    if region.executable {
        return vec![0xcc; region.size as usize];
    }
    let mut bytes = vec![0; region.size as usize];
    crate::rng::Rng::new(region.base, 0).fill(&mut bytes);
    bytes
}

/// x87 state without the last-instruction pointers, which a translator does not keep.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct X87 {
    /// Control word.
    pub control: u16,
    /// Status word.
    pub status: u16,
    /// Abridged tag word: bit i set when physical register i is in use.
    pub tag: u8,
    /// ST0 to ST7, 80 bits each.
    pub st: [[u8; 10]; 8],
}

/// User-visible state of the processor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuImage {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub gpr: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
    /// FS and GS base.
    pub fs_base: u64,
    /// See `fs_base`.
    pub gs_base: u64,
    /// x87 and MMX.
    pub x87: X87,
    /// SSE control and status.
    pub mxcsr: u32,
    /// ZMM0 to ZMM31; what the host does not have stays zero.
    pub vector: [[u8; 64]; 32],
    /// K0 to K7.
    pub mask: [u64; 8],
}

impl CpuImage {
    /// What 32-bit code sees: no upper halves, no R8 to R15.
    pub fn truncate(&mut self) {
        self.gpr[8..].fill(0);
        self.gpr.iter_mut().for_each(|value| *value &= 0xffff_ffff);
    }
}

impl Default for CpuImage {
    fn default() -> Self {
        Self {
            gpr: [0; 16],
            rip: 0,
            rflags: 0x202,
            fs_base: 0,
            gs_base: 0,
            x87: X87 { control: 0x37f, ..X87::default() },
            mxcsr: 0x1f80,
            vector: [[0; 64]; 32],
            mask: [0; 8],
        }
    }
}

/// Groups of the summary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Class {
    /// General-purpose instructions.
    Integer,
    /// MOVS, STOS, LODS, SCAS, CMPS with and without REP.
    String,
    /// BMI1, BMI2, ADX, LZCNT, POPCNT.
    Bmi,
    /// x87.
    X87,
    /// MMX.
    Mmx,
    /// SSE to SSE4, SSE4A, AES, SHA, PCLMULQDQ, GFNI in their legacy encodings.
    Sse,
    /// AVX, FMA, F16C and VEX forms of the cryptographic instructions.
    Avx,
    /// AVX2.
    Avx2,
    /// Everything EVEX-encoded, and instructions on mask registers.
    Avx512,
    /// Branches, calls, returns, in sequences of several instructions.
    Control,
    /// Code that changes itself.
    SelfModifying,
    /// Code in compatibility mode.
    Compat,
    /// 16-bit code in segments of a local descriptor table.
    Segments16,
    /// 32-bit code in such segments.
    Segments32,
}

impl Class {
    /// All classes, in the order of the summary.
    pub const ALL: [Self; 14] = [
        Self::Integer,
        Self::String,
        Self::Bmi,
        Self::X87,
        Self::Mmx,
        Self::Sse,
        Self::Avx,
        Self::Avx2,
        Self::Avx512,
        Self::Control,
        Self::SelfModifying,
        Self::Compat,
        Self::Segments16,
        Self::Segments32,
    ];

    /// Name in the summary.
    pub fn name(self) -> &'static str {
        match self {
            Self::Integer => "integer",
            Self::String => "string",
            Self::Bmi => "bmi/adx",
            Self::X87 => "x87",
            Self::Mmx => "mmx",
            Self::Sse => "sse",
            Self::Avx => "avx",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx-512",
            Self::Control => "control flow",
            Self::SelfModifying => "self-modifying",
            Self::Compat => "compatibility",
            Self::Segments16 => "16-bit segments",
            Self::Segments32 => "32-bit segments",
        }
    }
}

/// One test: run `code` from `cpu.rip` until a fault (the `int3` behind it, normally).
#[derive(Debug, Clone)]
pub struct Case {
    /// Group of the summary.
    pub class: Class,
    /// Instruction and kind of operand, for reports and filters.
    pub name: String,
    /// 64; 32 or 16 for compatibility mode.
    pub bits: u32,
    /// Input state; `rip` is where the code starts.
    pub cpu: CpuImage,
    /// Bytes put over the initial memory, the code among them.
    pub memory: Vec<(u64, Vec<u8>)>,
    /// Segments to start with, where they are not the flat ones of Linux.
    pub selectors: Option<Selectors>,
    /// Bytes of `memory` not compared: `(address, size)`.
    pub ignored: Vec<(u64, u64)>,
    /// Flags not compared.
    pub ignored_flags: u64,
    /// Of a page fault's address, only the page is compared: which of an instruction's accesses, or
    /// of its elements, faults first is the processor's own affair.
    pub any_address_in_page: bool,
    /// The code has an instruction of many accesses and checks: which of them faults first, and what has
    /// been done by then, is the processor's own affair.
    pub any_fault: bool,
    /// Vector registers (0 to 31) and mask registers (32 to 39) not compared after a fault: what a
    /// gather has done by then is the processor's own affair.
    pub partial_registers: Vec<usize>,
}

impl Case {
    /// Linear address of the first instruction.
    pub fn code_address(&self) -> u64 {
        let code = self.selectors.and_then(|selectors| segments::entry(selectors[segments::CS]));
        self.cpu.rip + code.map_or(0, |code| u64::from(code.base))
    }
}

/// How a case ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// Exception vector.
    pub vector: u8,
    /// Error code; 0 for vectors that have none.
    pub error_code: u32,
    /// Faulting address of a page fault, otherwise 0.
    pub address: u64,
}

/// What a case left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The exception that ended it.
    pub fault: Fault,
    /// State at the exception.
    pub cpu: CpuImage,
    /// Segments at the exception; none for cases that did not choose them.
    pub selectors: Option<Selectors>,
    /// Bytes that differ from the memory the case started with.
    pub memory: BTreeMap<u64, u8>,
}

/// Something that runs cases.
pub trait Target {
    /// Run one case.
    ///
    /// # Errors
    /// A sentence, when the target did not end at an exception.
    fn run(&mut self, case: &Case) -> Result<Outcome, String>;
}

/// Memory of a target as the host sees it, with what each case changed.
///
/// Keeps a pristine copy of each region so that only changed bytes are written back.
pub struct Pristine {
    regions: Vec<(Region, Vec<u8>)>,
}

impl Pristine {
    /// The initial contents of all regions.
    pub fn new() -> Self {
        Self { regions: REGIONS.iter().map(|region| (*region, initial_region(region))).collect() }
    }

    /// Regions with their contents.
    pub fn regions(&self) -> impl Iterator<Item = (&Region, &[u8])> {
        self.regions.iter().map(|(region, bytes)| (region, bytes.as_slice()))
    }

    /// Pristine bytes at `address`; `None` when they are not all in one region.
    pub fn at(&self, address: u64, size: usize) -> Option<&[u8]> {
        let (region, bytes) =
            self.regions.iter().find(|(region, _)| address.wrapping_sub(region.base) < region.size)?;
        let start = (address - region.base) as usize;
        bytes.get(start..start.checked_add(size)?)
    }

    /// Put a case's bytes in, over the pristine ones; [`Self::restore`] takes them out again.
    pub fn apply(&mut self, case: &Case) {
        for (address, patch) in &case.memory {
            self.put(*address, patch);
        }
    }

    /// Take a case's bytes out.
    pub fn restore(&mut self, case: &Case, original: &Pristine) {
        for (address, patch) in &case.memory {
            if let Some(bytes) = original.at(*address, patch.len()) {
                let bytes = bytes.to_vec();
                self.put(*address, &bytes);
            }
        }
    }

    fn put(&mut self, address: u64, patch: &[u8]) {
        let found =
            self.regions.iter_mut().find(|(region, _)| address.wrapping_sub(region.base) < region.size);
        if let Some((region, bytes)) = found {
            let start = (address - region.base) as usize;
            let size = patch.len().min(bytes.len() - start);
            bytes[start..start + size].copy_from_slice(&patch[..size]);
        }
    }

    /// Bytes in which `now`, a region's present contents, differs from what a case started with.
    pub fn changes(&self, base: u64, now: &[u8], into: &mut BTreeMap<u64, u8>) {
        let Some((_, before)) = self.regions.iter().find(|(region, _)| region.base == base) else { return };
        for (chunk, (old, new)) in before.chunks(64).zip(now.chunks(64)).enumerate() {
            if old == new {
                continue;
            }
            for (at, (old, new)) in old.iter().zip(new).enumerate() {
                if old != new {
                    into.insert(base + (chunk * 64 + at) as u64, *new);
                }
            }
        }
    }
}

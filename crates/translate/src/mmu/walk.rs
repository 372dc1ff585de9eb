//! From linear to guest-physical addresses through the guest's page tables.
//!
//! All section numbers are of Intel SDM vol. 3A (edition 081), chapter 4 "Paging".

use crate::cpu::Exception;
use sublet_memory::{GuestMemory, MemoryView};

const CR0_WP: u64 = 1 << 16;
const CR0_PG: u64 = 1 << 31;
const CR4_PSE: u64 = 1 << 4;
const CR4_PAE: u64 = 1 << 5;
const CR4_PGE: u64 = 1 << 7;
const CR4_SMEP: u64 = 1 << 20;
const CR4_SMAP: u64 = 1 << 21;
const EFER_LMA: u64 = 1 << 10;
const EFER_NXE: u64 = 1 << 11;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const PAGE_SIZE: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
const NO_EXECUTE: u64 = 1 << 63;

/// Error-code bits of #PF (§4.7 "Page-Fault Exceptions").
pub mod fault {
    #![allow(missing_docs)]
    pub const PRESENT: u32 = 1 << 0;
    pub const WRITE: u32 = 1 << 1;
    pub const USER: u32 = 1 << 2;
    pub const RESERVED: u32 = 1 << 3;
    pub const FETCH: u32 = 1 << 4;
}

/// The registers that paging depends on.
#[derive(Debug, Clone, Copy)]
pub struct PagingRegs {
    /// CR0: PG and WP matter.
    pub cr0: u64,
    /// CR3: the table's address.
    pub cr3: u64,
    /// CR4: PSE, PAE, PGE, SMEP, SMAP matter.
    pub cr4: u64,
    /// IA32_EFER: LMA and NXE matter.
    pub efer: u64,
    /// PDPTE registers, for PAE paging.
    pub pdptes: [u64; 4],
    /// MAXPHYADDR, 36 to 52.
    pub physical_bits: u8,
    /// In system-management mode: tables may lie in its memory.
    pub smm: bool,
}

impl PagingRegs {
    /// Where the entry at guest-physical address `at` of a table is looked for.
    #[inline]
    fn place(&self, memory: &MemoryView, at: u64) -> u64 {
        if self.smm {
            memory.wired_in_smm(at)
        } else {
            at
        }
    }
}

/// What an access does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Data read.
    Read,
    /// Data write.
    Write,
    /// Instruction fetch.
    Execute,
}

/// An access whose rights a walk checks (§4.6 "Access Rights").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// What it does.
    pub kind: Kind,
    /// A user-mode access: CPL is 3 and it is not an implicit supervisor access.
    pub user: bool,
    /// An explicit supervisor access with RFLAGS.AC set: SMAP does not apply.
    pub smap_override: bool,
}

/// A bit for each [`Kind`] that a page's entries allow, for each sort of access.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rights {
    /// User-mode accesses.
    pub user: u8,
    /// Supervisor-mode accesses with SMAP in force.
    pub supervisor: u8,
    /// Explicit supervisor-mode accesses with RFLAGS.AC set.
    pub supervisor_override: u8,
}

impl Rights {
    /// Data reads.
    pub const READ: u8 = 1;
    /// Data writes.
    pub const WRITE: u8 = 2;
    /// Instruction fetches.
    pub const EXECUTE: u8 = 4;
    const ALL: Self = Self { user: 7, supervisor: 7, supervisor_override: 7 };

    /// Whether `access` is allowed.
    pub fn allow(&self, access: Access) -> bool {
        let granted = match (access.user, access.smap_override) {
            (true, _) => self.user,
            (false, false) => self.supervisor,
            (false, true) => self.supervisor_override,
        };
        let wanted = match access.kind {
            Kind::Read => Self::READ,
            Kind::Write => Self::WRITE,
            Kind::Execute => Self::EXECUTE,
        };
        granted & wanted != 0
    }

    /// The rights that the combined U/S, R/W and XD flags of all levels give (§4.6.1).
    fn of_page(regs: &PagingRegs, user: bool, writable: bool, executable: bool) -> Self {
        let data = |write: bool| Self::READ | if write { Self::WRITE } else { 0 };
        let fetch = if executable { Self::EXECUTE } else { 0 };
        let supervisor_data = data(writable || regs.cr0 & CR0_WP == 0);
        if !user {
            let all = supervisor_data | fetch;
            return Self { user: 0, supervisor: all, supervisor_override: all };
        }
        let fetch_as_supervisor = if regs.cr4 & CR4_SMEP == 0 { fetch } else { 0 };
        let guarded = if regs.cr4 & CR4_SMAP == 0 { supervisor_data } else { 0 };
        Self {
            user: data(writable) | fetch,
            supervisor: guarded | fetch_as_supervisor,
            supervisor_override: supervisor_data | fetch_as_supervisor,
        }
    }
}

/// Where a linear address leads, and what one may do there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Walk {
    /// Guest-physical address of the byte.
    pub gpa: u64,
    /// Log2 of the page's size: 12, 21, 22 or 30 (12 without paging).
    pub page_bits: u8,
    /// All levels allow writes.
    pub writable: bool,
    /// All levels allow user mode.
    pub user: bool,
    /// No level forbids fetches.
    pub executable: bool,
    /// The translation survives a CR3 load (CR4.PGE is set and the entry is global).
    pub global: bool,
    /// The accessed flag of the page was set before.
    pub accessed: bool,
    /// The dirty flag is set, so that stores need no further walk. Always true without paging
    /// and where the entry lies in memory that ignores stores.
    pub dirty: bool,
    /// What every sort of access may do, from the flags above and CR0.WP, SMEP and SMAP.
    pub rights: Rights,
}

/// A walk that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageFault {
    /// Error code, see [`fault`].
    pub code: u32,
    /// The linear address.
    pub address: u64,
}

impl From<PageFault> for Exception {
    fn from(fault: PageFault) -> Self {
        Self::page_fault(fault.code, fault.address)
    }
}

/// Whether bits 63:47 of a linear address are all equal (4-level paging).
#[inline]
pub fn is_canonical(la: u64) -> bool {
    ((la as i64) << 16 >> 16) as u64 == la
}

/// Translate `la` for `access`, setting accessed and dirty flags as the processor does.
///
/// Outside long mode only bits 31:0 of `la` count; in long mode the caller has checked that it
/// is canonical. A walk that faults sets no flags.
///
/// # Errors
/// The page fault to deliver.
#[inline]
pub fn walk(memory: &GuestMemory, regs: &PagingRegs, la: u64, access: Access) -> Result<Walk, PageFault> {
    if regs.cr0 & CR0_PG == 0 {
        return Ok(unpaged(la));
    }
    loop {
        let path = descend(&memory.view(), regs, la).and_then(|path| path.permit(access));
        let path = path.map_err(|cause| PageFault { code: error_code(regs, access, cause), address: la })?;
        if let Some(walk) = path.mark(memory, access.kind == Kind::Write) {
            return Ok(walk);
        }
    }
}

/// As [`walk`], but changes nothing: for debuggers and for probing.
///
/// # Errors
/// The page fault that [`walk`] would give.
pub fn peek(memory: &GuestMemory, regs: &PagingRegs, la: u64, access: Access) -> Result<Walk, PageFault> {
    if regs.cr0 & CR0_PG == 0 {
        return Ok(unpaged(la));
    }
    descend(&memory.view(), regs, la)
        .and_then(|path| path.permit(access))
        .map(|path| path.walk)
        .map_err(|cause| PageFault { code: error_code(regs, access, cause), address: la })
}

/// A walk of 4-level tables with the entries that it went by.
#[derive(Clone, Copy)]
pub struct Trace {
    /// Where it led.
    pub walk: Walk,
    entries: [(u64, u64); 4],
    depth: usize,
}

impl Trace {
    /// Guest-physical address and value of each entry, the first level first.
    pub fn entries(&self) -> &[(u64, u64)] {
        &self.entries[..self.depth]
    }
}

/// As [`peek`] in long mode, for any access; `None` where nothing is mapped.
pub fn trace(memory: &MemoryView, regs: &PagingRegs, la: u64) -> Option<Trace> {
    let path = descend_long(memory, regs, la).ok()?;
    Some(Trace { walk: path.walk, entries: path.steps.map(|step| (step.at, step.entry)), depth: path.depth })
}

fn unpaged(la: u64) -> Walk {
    Walk {
        gpa: la & 0xffff_ffff,
        page_bits: 12,
        writable: true,
        user: true,
        executable: true,
        global: false,
        accessed: true,
        dirty: true,
        rights: Rights::ALL,
    }
}

/// §4.7: I/D is reported only where XD or SMEP can be in force.
fn error_code(regs: &PagingRegs, access: Access, cause: u32) -> u32 {
    let fetches_told = regs.cr4 & CR4_SMEP != 0 || (regs.cr4 & CR4_PAE != 0 && regs.efer & EFER_NXE != 0);
    let kind = match access.kind {
        Kind::Read => 0,
        Kind::Write => fault::WRITE,
        Kind::Execute if fetches_told => fault::FETCH,
        Kind::Execute => 0,
    };
    cause | kind | if access.user { fault::USER } else { 0 }
}

/// An entry that a walk used: its address and value.
#[derive(Clone, Copy, Default)]
struct Step {
    at: u64,
    entry: u64,
}

/// A walk that reached a page, before its flags are set. The last step maps the page.
struct Path {
    steps: [Step; 4],
    depth: usize,
    wide: bool,
    walk: Walk,
}

impl Path {
    fn permit(self, access: Access) -> Result<Self, u32> {
        if self.walk.rights.allow(access) {
            Ok(self)
        } else {
            Err(fault::PRESENT)
        }
    }

    /// Set accessed (and dirty) flags; `None` when an entry changed meanwhile and the walk must
    /// start again (§4.8 "Accessed and Dirty Flags").
    #[inline]
    fn mark(mut self, memory: &GuestMemory, write: bool) -> Option<Walk> {
        for (level, step) in self.steps[..self.depth].iter().enumerate() {
            let leaf = level + 1 == self.depth;
            let wanted = ACCESSED | if leaf && write { DIRTY } else { 0 };
            if step.entry & wanted == wanted {
                continue;
            }
            let new = step.entry | wanted;
            let swapped = if self.wide {
                memory.update_u64(step.at, step.entry, new)
            } else {
                memory.update_u32(step.at, step.entry as u32, new as u32)
            };
            match swapped {
                Some(false) => return None,
                Some(true) => self.walk.dirty |= leaf && write,
                // The table is in ROM: nothing to keep, and no store needs another walk.
                None => self.walk.dirty |= leaf,
            }
        }
        Some(self.walk)
    }
}

fn descend(memory: &MemoryView, regs: &PagingRegs, la: u64) -> Result<Path, u32> {
    if regs.efer & EFER_LMA != 0 {
        descend_long(memory, regs, la)
    } else if regs.cr4 & CR4_PAE != 0 {
        descend_pae(memory, regs, la & 0xffff_ffff)
    } else {
        descend_32(memory, regs, la & 0xffff_ffff)
    }
}

/// Physical-address bits of an 8-byte entry: 51:12.
const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// The state of a descent through 8-byte entries.
struct Descent<'a> {
    memory: &'a MemoryView,
    regs: &'a PagingRegs,
    la: u64,
    reserved: u64,
    steps: [Step; 4],
    depth: usize,
    /// AND of all levels' R/W and U/S.
    allowed: u64,
    /// OR of all levels' XD.
    forbidden: u64,
}

impl<'a> Descent<'a> {
    /// Reserved everywhere: bits 51:MAXPHYADDR, and XD while EFER.NXE is clear (§4.5.4).
    #[inline]
    fn new(memory: &'a MemoryView, regs: &'a PagingRegs, la: u64, high_reserved: u64) -> Self {
        let mut reserved = (FRAME & !((1 << regs.physical_bits.min(52)) - 1)) | high_reserved;
        if regs.efer & EFER_NXE == 0 {
            reserved |= NO_EXECUTE;
        }
        let steps = [Step::default(); 4];
        Self { memory, regs, la, reserved, steps, depth: 0, allowed: WRITABLE | USER, forbidden: 0 }
    }

    /// Use the entry for bits `shift + 8 .. shift` of the address in the table at `table`.
    /// Memory outside RAM reads as all ones.
    #[inline]
    fn step(&mut self, table: u64, shift: u32) -> Result<u64, u32> {
        let at = self.regs.place(self.memory, table + ((self.la >> shift) & 0x1ff) * 8);
        let entry = self.memory.load_u64(at).unwrap_or(u64::MAX);
        if entry & PRESENT == 0 {
            return Err(0);
        }
        if entry & self.reserved != 0 {
            return Err(fault::PRESENT | fault::RESERVED);
        }
        self.steps[self.depth] = Step { at, entry };
        self.depth += 1;
        self.allowed &= entry;
        self.forbidden |= entry;
        Ok(entry)
    }

    /// The last entry maps a page of `1 << bits` bytes.
    #[inline]
    fn finish(self, entry: u64, bits: u8) -> Result<Path, u32> {
        let offset_mask = (1u64 << bits) - 1;
        // A large page has PAT in bit 12; the other frame bits below its size are reserved.
        if bits > 12 && entry & FRAME & offset_mask & !0x1000 != 0 {
            return Err(fault::PRESENT | fault::RESERVED);
        }
        let gpa = (entry & FRAME & !offset_mask) | (self.la & offset_mask);
        let writable = self.allowed & WRITABLE != 0;
        let user = self.allowed & USER != 0;
        let executable = self.forbidden & NO_EXECUTE == 0;
        let walk = Walk {
            gpa,
            page_bits: bits,
            writable,
            user,
            executable,
            global: entry & GLOBAL != 0 && self.regs.cr4 & CR4_PGE != 0,
            accessed: entry & ACCESSED != 0,
            dirty: entry & DIRTY != 0,
            rights: Rights::of_page(self.regs, user, writable, executable),
        };
        Ok(Path { steps: self.steps, depth: self.depth, wide: true, walk })
    }
}

/// 4-level paging (§4.5.4).
fn descend_long(memory: &MemoryView, regs: &PagingRegs, la: u64) -> Result<Path, u32> {
    let mut descent = Descent::new(memory, regs, la, 0);
    let pml4e = descent.step(regs.cr3 & FRAME, 39)?;
    if pml4e & PAGE_SIZE != 0 {
        return Err(fault::PRESENT | fault::RESERVED);
    }
    let pdpte = descent.step(pml4e & FRAME, 30)?;
    if pdpte & PAGE_SIZE != 0 {
        return descent.finish(pdpte, 30);
    }
    let pde = descent.step(pdpte & FRAME, 21)?;
    if pde & PAGE_SIZE != 0 {
        return descent.finish(pde, 21);
    }
    let pte = descent.step(pde & FRAME, 12)?;
    descent.finish(pte, 12)
}

/// PAE paging (§4.4): the first level is in registers and has no rights of its own.
fn descend_pae(memory: &MemoryView, regs: &PagingRegs, la: u64) -> Result<Path, u32> {
    const IGNORED_BY_LONG_MODE: u64 = 0x7ff << 52;
    let pdpte = regs.pdptes[(la >> 30) as usize & 3];
    if pdpte & PRESENT == 0 {
        return Err(0);
    }
    let mut descent = Descent::new(memory, regs, la, IGNORED_BY_LONG_MODE);
    let pde = descent.step(pdpte & FRAME, 21)?;
    if pde & PAGE_SIZE != 0 {
        return descent.finish(pde, 21);
    }
    let pte = descent.step(pde & FRAME, 12)?;
    descent.finish(pte, 12)
}

/// 32-bit paging (§4.3), with 4 MiB pages and PSE-36.
fn descend_32(memory: &MemoryView, regs: &PagingRegs, la: u64) -> Result<Path, u32> {
    let mut steps = [Step::default(); 4];
    let at = regs.place(memory, (regs.cr3 & 0xffff_f000) + (la >> 22) * 4);
    let pde = load_entry_32(memory, at)?;
    steps[0] = Step { at, entry: pde };
    if pde & PAGE_SIZE != 0 && regs.cr4 & CR4_PSE != 0 {
        // Bits 20:13 hold address bits 39:32; those above MAXPHYADDR, and bit 21, are reserved.
        let high = (pde >> 13) & 0xff;
        if pde & (1 << 21) != 0 || (high << 32) >> regs.physical_bits != 0 {
            return Err(fault::PRESENT | fault::RESERVED);
        }
        let gpa = (high << 32) | (pde & 0xffc0_0000) | (la & 0x003f_ffff);
        return Ok(path_32(regs, steps, 1, pde, gpa, 22));
    }
    let at = regs.place(memory, (pde & 0xffff_f000) + ((la >> 12) & 0x3ff) * 4);
    let pte = load_entry_32(memory, at)?;
    steps[1] = Step { at, entry: pte };
    let gpa = (pte & 0xffff_f000) | (la & 0xfff);
    Ok(path_32(regs, steps, 2, pde & pte, gpa, 12))
}

fn load_entry_32(memory: &MemoryView, at: u64) -> Result<u64, u32> {
    let entry = u64::from(memory.load_u32(at).unwrap_or(u32::MAX));
    if entry & PRESENT == 0 {
        return Err(0);
    }
    Ok(entry)
}

fn path_32(regs: &PagingRegs, steps: [Step; 4], depth: usize, allowed: u64, gpa: u64, bits: u8) -> Path {
    let (writable, user) = (allowed & WRITABLE != 0, allowed & USER != 0);
    let leaf = steps[depth - 1].entry;
    let walk = Walk {
        gpa,
        page_bits: bits,
        writable,
        user,
        executable: true,
        global: leaf & GLOBAL != 0 && regs.cr4 & CR4_PGE != 0,
        accessed: leaf & ACCESSED != 0,
        dirty: leaf & DIRTY != 0,
        rights: Rights::of_page(regs, user, writable, true),
    };
    Path { steps, depth, wide: false, walk }
}

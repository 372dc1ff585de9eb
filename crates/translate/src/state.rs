//! The part of a vCPU that translated code addresses directly (through RSP).

mod mapped;

pub(crate) use mapped::reserve;
pub use mapped::{MappedState, Side, SEGMENT_BITS, SEGMENT_TABLE, USER_SEGMENTS};

/// Where RSP points while translated code runs: behind [`CpuState::stack`], at [`CpuState::gpr`], which it therefore reaches
/// with the shortest displacements. Its low six bits are 32, and shift addresses (`emit::window`).
pub const STACK_TOP: usize = std::mem::offset_of!(CpuState, gpr);

/// Index of a general register in encoding order.
pub mod gpr {
    #![allow(missing_docs)]
    pub const RAX: usize = 0;
    pub const RCX: usize = 1;
    pub const RDX: usize = 2;
    pub const RBX: usize = 3;
    pub const RSP: usize = 4;
    pub const RBP: usize = 5;
    pub const RSI: usize = 6;
    pub const RDI: usize = 7;
}

/// Index of a segment register in encoding order.
pub mod seg {
    #![allow(missing_docs)]
    pub const ES: usize = 0;
    pub const CS: usize = 1;
    pub const SS: usize = 2;
    pub const DS: usize = 3;
    pub const FS: usize = 4;
    pub const GS: usize = 5;
}

/// RFLAGS bits (Intel SDM vol. 1 §3.4.3 "EFLAGS Register").
pub mod flag {
    #![allow(missing_docs)]
    pub const CF: u64 = 1 << 0;
    pub const FIXED: u64 = 1 << 1;
    pub const PF: u64 = 1 << 2;
    pub const AF: u64 = 1 << 4;
    pub const ZF: u64 = 1 << 6;
    pub const SF: u64 = 1 << 7;
    pub const TF: u64 = 1 << 8;
    pub const IF: u64 = 1 << 9;
    pub const DF: u64 = 1 << 10;
    pub const OF: u64 = 1 << 11;
    pub const IOPL: u64 = 3 << 12;
    pub const NT: u64 = 1 << 14;
    pub const RF: u64 = 1 << 16;
    pub const VM: u64 = 1 << 17;
    pub const AC: u64 = 1 << 18;
    pub const VIF: u64 = 1 << 19;
    pub const VIP: u64 = 1 << 20;
    pub const ID: u64 = 1 << 21;
    /// The flags that arithmetic instructions change; in the host's flags while in the cache.
    pub const ARITHMETIC: u64 = CF | PF | AF | ZF | SF | OF;
}

/// A segment register as the processor holds it.
///
/// `attributes` are bits 40 to 55 of the descriptor: type 3:0, S 4, DPL 6:5, P 7, (limit bits
/// 11:8, zero here), AVL 12, L 13, D/B 14, G 15. A null selector loads all zero attributes.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SegmentRegister {
    /// Base address.
    pub base: u64,
    /// Limit in bytes, granularity applied; inclusive.
    pub limit: u32,
    /// Visible selector.
    pub selector: u16,
    /// See the type's description.
    pub attributes: u16,
}

impl SegmentRegister {
    /// Descriptor type, 4 bits.
    pub fn kind(&self) -> u8 {
        (self.attributes & 0xf) as u8
    }
    /// Code or data, not a system segment.
    pub fn is_code_or_data(&self) -> bool {
        self.attributes & 0x10 != 0
    }
    /// Descriptor privilege level.
    pub fn dpl(&self) -> u8 {
        ((self.attributes >> 5) & 3) as u8
    }
    /// Present (clear after loading a null selector).
    pub fn present(&self) -> bool {
        self.attributes & 0x80 != 0
    }
    /// Limit, selector and attributes as they lie in memory.
    pub fn image(&self) -> u64 {
        u64::from(self.limit) | u64::from(self.selector) << 32 | u64::from(self.attributes) << 48
    }
    /// 64-bit code.
    pub fn long(&self) -> bool {
        self.attributes & 0x2000 != 0
    }
    /// Default operation size: 32 bits (code), big stack (data).
    pub fn big(&self) -> bool {
        self.attributes & 0x4000 != 0
    }
}

/// GDTR or IDTR.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TableRegister {
    /// Linear base.
    pub base: u64,
    /// Limit in bytes, inclusive.
    pub limit: u16,
}

/// Architectural state that both translated and compiled code use.
///
/// While translated code runs, `gpr` and the arithmetic bits of `rflags` are stale: they live in
/// host registers. Compiled code sees them up to date, and the vector state in `vector`.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct CpuState {
    /// The uppermost words of the stack that lies before the state ([`MappedState`]), for what translated code calls.
    pub stack: [u64; 4],
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub gpr: [u64; 16],
    /// Instruction pointer, as the guest counts it (offset in CS).
    pub rip: u64,
    /// All of RFLAGS; bit 1 set.
    pub rflags: u64,
    /// ES, CS, SS, DS, FS, GS.
    pub segments: [SegmentRegister; 6],
    /// LDTR.
    pub ldtr: SegmentRegister,
    /// TR.
    pub tr: SegmentRegister,
    /// GDTR.
    pub gdtr: TableRegister,
    /// IDTR.
    pub idtr: TableRegister,
    /// Control registers.
    pub cr0: u64,
    /// Faulting address.
    pub cr2: u64,
    /// Page-table base, PCID.
    pub cr3: u64,
    /// Features.
    pub cr4: u64,
    /// IA32_EFER.
    pub efer: u64,
    /// XCR0.
    pub xcr0: u64,
    /// IA32_XSS.
    pub xss: u64,
    /// DR0 to DR3, (4, 5 unused), DR6, DR7.
    pub dr: [u64; 8],
    /// Added to the host's time-stamp counter to make the guest's.
    pub tsc_offset: u64,
    /// IA32_TSC_AUX.
    pub tsc_aux: u64,
    /// IA32_KERNEL_GS_BASE.
    pub kernel_gs_base: u64,
    /// IA32_STAR, LSTAR, CSTAR, SFMASK.
    pub star: u64,
    /// See `star`.
    pub lstar: u64,
    /// See `star`.
    pub cstar: u64,
    /// See `star`.
    pub sfmask: u64,
    /// IA32_SYSENTER_CS, ESP, EIP.
    pub sysenter_cs: u64,
    /// See `sysenter_cs`.
    pub sysenter_esp: u64,
    /// See `sysenter_cs`.
    pub sysenter_eip: u64,
    /// IA32_PAT.
    pub pat: u64,
    /// The four PDPTEs of PAE paging, as loaded by the last MOV to CR3.
    pub pdptes: [u64; 4],
    /// x87, SSE, AVX and AVX-512 state as a standard-format XSAVE area of the host's layout.
    /// Valid outside the code cache.
    pub vector: XsaveArea,
    /// What only translated code and the run loop use.
    pub hot: HotState,
}

/// Entries of each software TLB; a power of two.
pub const TLB_ENTRIES: usize = 16384;
/// Entries of each jump cache; a power of two.
pub const JUMP_ENTRIES: usize = 65536;
/// Software TLBs: who accesses (see [`crate::mode::Mode::mmu_index`]).
pub const MMU_INDICES: usize = 4;
/// Jump caches: 64-bit user, 64-bit kernel, kernel with AC, 32-bit user, 32-bit kernel, kernel with AC.
pub const JUMP_CACHES: usize = 6;
/// Largest access that may leave the inline path, in bytes (FRSTOR has 108).
pub const BOUNCE_BYTES: usize = 128;

/// One software TLB, direct-mapped by page number.
///
/// INVARIANT: `tag[i] + a` is below 4096 only if `a` lies in the page that entry `i` maps, and
/// then `a + addend[i]` is the host address of the byte. Empty entries hold a page address that
/// no lookup of that index can produce (0, which is of index 0; or a non-canonical one).
#[repr(C)]
#[derive(Debug, Clone)]
pub struct Tlb {
    /// Negated linear address of the page.
    pub tag: [u64; TLB_ENTRIES],
    /// Host address minus linear address.
    pub addend: [u64; TLB_ENTRIES],
}

/// Where an indirect branch to one guest RIP goes. One cache line never holds part of an entry only.
#[repr(C, align(32))]
#[derive(Debug, Clone, Copy)]
pub struct JumpEntry {
    /// Negated RIP.
    pub tag: u64,
    /// Host address of the block.
    pub host: u64,
    /// RIP of byte 0 of the block's page.
    pub rip_page: u64,
    /// The block's number.
    pub block: u32,
}

/// Where indirect branches look up their target, by guest RIP.
pub type JumpCache = [JumpEntry; JUMP_ENTRIES];

/// Where a call is to return to.
#[repr(C, align(16))]
#[derive(Debug, Clone, Copy, Default)]
pub struct ReturnEntry {
    /// RIP, all bits inverted.
    pub inverted_rip: u64,
    /// Host address of what goes on there.
    pub host: u64,
}

/// Entries of a return stack; each is two steps of the index, of which eight bits count.
pub const RETURNS: usize = 128;
/// Return stacks, by the jump caches of 64-bit code.
pub const RETURN_STACKS: usize = 3;

/// Entries of the table of known descriptors; a power of two.
pub const KNOWN_DESCRIPTORS: usize = 32;

/// A descriptor that compiled code has loaded, checked and found to be of the usual sort.
///
/// What loading it gives depends on its eight bytes and the selector alone. Translated code reads the bytes
/// where they lie, at every load, and takes the rest from here if they are the same.
#[repr(C, align(64))]
#[derive(Debug, Clone, Copy, Default)]
pub struct KnownDescriptor {
    /// Negated selector plus use (`system::known::Use`); 0 in an empty entry.
    pub key: u64,
    /// Where the bytes are, a linear address.
    pub address: u64,
    /// The bytes, negated.
    pub raw: u64,
    /// Base of the segment.
    pub base: u64,
    /// Limit, selector and attributes, see [`SegmentRegister::image`].
    pub image: u64,
}

/// Fields that translated code and the entry and exit paths use.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct HotState {
    /// Data of an access that cannot be done in place. First, so that it is aligned as the struct is.
    pub bounce: [u8; BOUNCE_BYTES],
    /// Non-zero while translated code may go on; zeroed (from any thread) to make it leave.
    pub permit: std::sync::atomic::AtomicU64,
    /// Zero while an event waits for the guest to enable it: STI must leave the cache.
    pub nothing_waits: u64,
    /// Minus the numbers of the present generations of kernel and user mappings (1 to 2^31 - 1), see
    /// `cache::Link::guard`.
    pub negated_generations: [u64; 2],
    /// The `Mode` that translated code runs in.
    pub mode: u64,
    /// Non-zero if SYSCALL may stay in the cache: it is enabled and masks all flags.
    pub syscall_ready: u64,
    /// Non-zero if SYSRETQ may stay in the cache.
    pub sysret_ready: u64,
    /// Limit, selector and attributes of CS and SS after SYSCALL.
    pub syscall_segments: [u64; 2],
    /// The same after SYSRETQ.
    pub sysret_segments: [u64; 2],
    /// Non-zero if SYSENTER and SYSEXIT may stay in the cache: outside long mode, with a code segment.
    pub sysenter_ready: u64,
    /// Limit, selector and attributes of CS and SS after SYSENTER.
    pub sysenter_segments: [u64; 2],
    /// The same after SYSEXIT.
    pub sysexit_segments: [u64; 2],
    /// PEXT and PDEP masks: the arithmetic flags, all other bits, all but `emit::FREE_FLAGS`, and
    /// the bits that are clear in a user program's addresses.
    pub arithmetic_mask: u64,
    /// See `arithmetic_mask`.
    pub not_arithmetic_mask: u64,
    /// See `arithmetic_mask`.
    pub unusual_mask: u64,
    /// See `arithmetic_mask`.
    pub not_user_mask: u64,
    /// PEXT mask of the bits of a program's addresses.
    pub user_mask: u64,
    /// All bits but RFLAGS.AC.
    pub not_ac_mask: u64,
    /// RIP of byte 0 of the page that the running block lies in.
    pub rip_page: u64,
    /// Why translated code left: an `exit::*` number.
    pub exit_reason: u64,
    /// Link or system-instruction number that goes with it.
    pub exit_argument: u64,
    /// Target of an indirect branch.
    pub target: u64,
    /// Set when a jump cache led to a block that had been dropped.
    pub dead_entry: u64,
    /// Host stack pointer to return to.
    pub host_rsp: u64,
    /// Where to enter.
    pub entry: u64,
    /// Effective address of the access on the slow path.
    pub access_address: u64,
    /// What the slow path found: host minus guest address.
    pub access_addend: u64,
    /// Host address that faulted inside the cache.
    pub fault_pc: u64,
    /// Guest exception it stands for.
    pub fault_vector: u64,
    /// For a page fault: the address, and the processor's error code.
    pub fault_address: u64,
    /// See `fault_address`.
    pub fault_code: u64,
    /// RCX, R14 and R15 while a fault in a memory window is dealt with; RAX, flags and RBX while pieces are copied.
    pub kept: [u64; 3],
    /// The `Mode` of the user code that a 64-bit kernel returns to, whose blocks its jump cache holds.
    pub user_mode: u64,
    /// Where the kernel's table of segments ends: entries of 8 bytes from the state on (see [`MappedState`]).
    pub kernel_segments: u64,
    /// A value kept across an access check.
    pub temporary: u64,
    /// Eight times the index of the known descriptor that is being loaded.
    pub descriptor_index: u64,
    /// What an interrupt return popped: RIP, CS, RFLAGS, RSP, SS.
    pub frame: [u64; 5],
    /// Non-zero if an interrupt return may stay in the cache: it ends no blocking of NMIs.
    pub iret_ready: u64,
    /// Descriptors by bits 7:3 of their selectors.
    pub known: [KnownDescriptor; KNOWN_DESCRIPTORS],
    /// Addends kept by leaders for their followers (see `emit::sharing`).
    pub shared: [u64; 32],
    /// The range that a leader checks, see `Descriptor::leader`.
    pub range: u64,
    /// PEXT mask that selects a TLB index.
    pub tlb_mask: u64,
    /// PEXT mask of the page number.
    pub page_mask: u64,
    /// PEXT mask that selects a jump-cache index.
    pub jump_mask: u64,
    /// 63, 31 and 15: masks of bit offsets.
    pub bit_masks: [u64; 3],
    /// The run loop's `VcpuCore`.
    pub runtime: u64,
    /// Non-zero if the host has AVX-512 (F and BW): selects how vectors are saved.
    pub avx512: u64,
    /// Guest MXCSR outside the cache (`vector_saved`).
    pub mxcsr: u32,
    /// Host MXCSR while compiled code runs.
    pub host_mxcsr: u32,
    /// Entry points of compiled code: slow access, commit, instructions carried out in place.
    pub slow_access: u64,
    /// See `slow_access`.
    pub commit: u64,
    /// See `slow_access`.
    pub in_place: u64,
    /// Copies of bytes over the ends of pages, see `runtime::pieces`.
    pub copy_pieces: u64,
    /// Addresses of the exit paths in the core's own text: link, indirect, system.
    pub exit_link: u64,
    /// See `exit_link`.
    pub exit_indirect: u64,
    /// See `exit_link`.
    pub exit_system: u64,
    /// Opmask registers outside the cache.
    pub opmask: [u64; 8],
    /// ZMM (or YMM) registers outside the cache.
    pub zmm: [[u8; 64]; 32],
    /// Which 64-bit lanes from bit 128 on are not zero in any of registers 0 to 15, bit 0 for the first; without
    /// AVX-512 it is 1 for both.
    pub upper_lanes: u64,
    /// Twice the number of the newest entry of each return stack.
    pub return_top: [u64; RETURN_STACKS],
    /// Host code that a return goes to which no call has foreseen: what a dropped block's entry jumps to.
    pub unforeseen: u64,
    /// Return stacks: where the last calls of code of each jump cache are to return to, see `emit::returns`.
    pub returns: [[ReturnEntry; RETURNS]; RETURN_STACKS],
    /// Read TLBs by MMU index.
    pub read_tlb: [Tlb; MMU_INDICES],
    /// Write TLBs by MMU index.
    pub write_tlb: [Tlb; MMU_INDICES],
    /// Jump caches.
    pub jump: [JumpCache; JUMP_CACHES],
}

impl HotState {
    /// Nothing is known of where the calls of a jump cache's code return to.
    pub fn forget_returns(&mut self, cache: usize) {
        if let Some(stack) = self.returns.get_mut(cache) {
            // Returns to the last byte of the address space match, and are left to the run loop.
            stack.fill(ReturnEntry { inverted_rip: 0, host: self.unforeseen });
        }
    }
}

/// Bytes of an XSAVE area with x87, SSE, AVX and AVX-512 (with slack for MPX and PKRU gaps).
pub const XSAVE_AREA_BYTES: usize = 4096;

/// An XSAVE area, aligned as the instructions want it.
#[repr(C, align(64))]
#[derive(Debug, Clone)]
pub struct XsaveArea(pub [u8; XSAVE_AREA_BYTES]);

impl CpuState {
    /// Current privilege level.
    pub fn cpl(&self) -> u8 {
        self.segments[seg::SS].dpl()
    }
    /// IA-32e mode is active (EFER.LMA).
    pub fn long_mode(&self) -> bool {
        self.efer & (1 << 10) != 0
    }
    /// Running 64-bit code.
    pub fn code64(&self) -> bool {
        self.long_mode() && self.segments[seg::CS].long()
    }
    /// Protected mode is on (CR0.PE).
    pub fn protected(&self) -> bool {
        self.cr0 & 1 != 0
    }
    /// Virtual-8086 mode.
    pub fn v86(&self) -> bool {
        self.rflags & flag::VM != 0
    }
}

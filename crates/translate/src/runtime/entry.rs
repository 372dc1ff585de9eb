//! Entering and leaving the code cache.
//!
//! While translated code runs, RSP points into the vCPU's `CpuState` (at [`STACK_TOP`], below which a stack
//! lies), twelve guest registers are in host registers (see `emit::registers`), the arithmetic
//! flags are the guest's, and so is all vector and x87 state. The paths here move general
//! registers, flags and vector registers between that and `CpuState`; x87 state stays in the
//! processor, because compiled code never touches it, until [`save_x87`] is called.

use crate::state::{CpuState, HotState, STACK_TOP};
use std::mem::offset_of;

/// Why translated code left.
pub mod exit {
    /// A direct branch that is not linked: `exit_argument` is the link.
    pub const LINK: u64 = 1;
    /// An indirect branch, or a poll: `target` is the RIP.
    pub const INDIRECT: u64 = 2;
    /// An instruction for compiled code: `exit_argument` is its number.
    pub const SYSTEM: u64 = 3;
    /// A memory access that stopped: the run loop holds why.
    pub const ACCESS: u64 = 4;
    /// A host signal: `fault_pc`, `fault_vector`.
    pub const FAULT: u64 = 5;
}

/// What the slow path tells its stub to do.
pub mod resume {
    /// Go on in place; `access_addend` is set.
    pub const DIRECT: u64 = 0;
    /// Go on with the operation on the bounce buffer.
    pub const BOUNCE: u64 = 1;
    /// Leave the cache.
    pub const LEAVE: u64 = 2;
}

macro_rules! at {
    (hot.$($field:tt)+) => { offset_of!(CpuState, hot) + offset_of!(HotState, $($field)+) };
    ($field:ident) => { offset_of!(CpuState, $field) };
}

std::arch::global_asm!(
    // Store guest general registers, flags and vectors; clobbers RAX and flags, and leaves the state's address in
    // RBX. RSP is `depth` bytes lower than in translated code.
    ".macro sublet_save_guest depth",
    "mov [rsp + \\depth + {gpr} - {STACK_TOP} + 3*8], rbx",
    "lea rbx, [rsp + \\depth - {STACK_TOP}]",
    "mov [rbx + {gpr} + 0*8], rax",
    "mov [rbx + {gpr} + 1*8], r11",
    "mov [rbx + {gpr} + 2*8], rdx",
    "mov [rbx + {gpr} + 4*8], r10",
    "mov [rbx + {gpr} + 5*8], rbp",
    "mov [rbx + {gpr} + 6*8], rsi",
    "mov [rbx + {gpr} + 7*8], rdi",
    "mov [rbx + {gpr} + 8*8], r8",
    "mov [rbx + {gpr} + 9*8], r9",
    "mov [rbx + {gpr} + 12*8], r12",
    "mov [rbx + {gpr} + 13*8], r13",
    "lahf",
    "seto al",
    "mov byte ptr [rbx + {rflags}], ah",
    "shl al, 3",
    "and byte ptr [rbx + {rflags} + 1], 0xf7",
    "or byte ptr [rbx + {rflags} + 1], al",
    "stmxcsr [rbx + {mxcsr}]",
    "ldmxcsr [rbx + {host_mxcsr}]",
    "lea rax, [rip + 9f]",
    "jmp sublet_save_vectors",
    "9:",
    ".endm",
    // The reverse, of the state at RBX; the entry jump or return follows. R14 and R15 are left alone.
    ".macro sublet_load_guest",
    "lea rax, [rip + 9f]",
    "jmp sublet_load_vectors",
    "9:",
    "ldmxcsr [rbx + {mxcsr}]",
    "movzx eax, byte ptr [rbx + {rflags} + 1]",
    "and al, 8",
    "add al, 0x78",
    "mov ah, byte ptr [rbx + {rflags}]",
    "sahf",
    "mov rax, [rbx + {gpr} + 0*8]",
    "mov r11, [rbx + {gpr} + 1*8]",
    "mov rdx, [rbx + {gpr} + 2*8]",
    "mov r10, [rbx + {gpr} + 4*8]",
    "mov rbp, [rbx + {gpr} + 5*8]",
    "mov rsi, [rbx + {gpr} + 6*8]",
    "mov rdi, [rbx + {gpr} + 7*8]",
    "mov r8, [rbx + {gpr} + 8*8]",
    "mov r9, [rbx + {gpr} + 9*8]",
    "mov r12, [rbx + {gpr} + 12*8]",
    "mov r13, [rbx + {gpr} + 13*8]",
    "mov rbx, [rbx + {gpr} + 3*8]",
    ".endm",
    // Vectors, to and from plain arrays of the state at RBX; RAX is the return address. Registers 0 to 15 of which nothing above bit
    // 127 is set are loaded as XMM registers: while the processor takes their upper parts to be in use, every SSE
    // instruction merges, and waits for its destination's old value.
    "sublet_save_vectors:",
    "cmp byte ptr [rbx + {avx512}], 0",
    "je 2f",
    ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "vmovups [rbx + {zmm} + \\n * 64], zmm\\n",
    ".endr",
    ".irp n, 0,1,2,3,4,5,6,7",
    "kmovq [rbx + {opmask} + \\n * 8], k\\n",
    ".endr",
    ".irp n, 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "vporq zmm0, zmm0, zmm\\n",
    ".endr",
    "vptestmq k1, zmm0, zmm0",
    "kshiftrq k1, k1, 2",
    "kmovq [rbx + {upper_lanes}], k1",
    "vzeroupper",
    "jmp rax",
    "2:",
    ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "vmovups [rbx + {zmm} + \\n * 64], ymm\\n",
    ".endr",
    ".irp n, 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "vorps ymm0, ymm0, ymm\\n",
    ".endr",
    "vextractf128 xmm0, ymm0, 1",
    "vptest xmm0, xmm0",
    "setne byte ptr [rbx + {upper_lanes}]",
    "vzeroupper",
    "jmp rax",
    "sublet_load_vectors:",
    "cmp byte ptr [rbx + {avx512}], 0",
    "je 3f",
    ".irp n, 16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "vmovups zmm\\n, [rbx + {zmm} + \\n * 64]",
    ".endr",
    ".irp n, 0,1,2,3,4,5,6,7",
    "kmovq k\\n, [rbx + {opmask} + \\n * 8]",
    ".endr",
    "test byte ptr [rbx + {upper_lanes}], 0x3c",
    "je 3f",
    ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "vmovups zmm\\n, [rbx + {zmm} + \\n * 64]",
    ".endr",
    "jmp rax",
    "3:",
    "cmp byte ptr [rbx + {upper_lanes}], 0",
    "je 2f",
    ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "vmovups ymm\\n, [rbx + {zmm} + \\n * 64]",
    ".endr",
    "jmp rax",
    "2:",
    ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "vmovups xmm\\n, [rbx + {zmm} + \\n * 64]",
    ".endr",
    "jmp rax",
    // extern "sysv64" fn(entry, state): run translated code until it leaves.
    ".globl sublet_enter_cache",
    ".hidden sublet_enter_cache",
    "sublet_enter_cache:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "mov rbx, rsi",
    "mov [rbx + {host_rsp}], rsp",
    "lea rsp, [rbx + {STACK_TOP}]",
    "mov [rbx + {entry}], rdi",
    "mov r14, [rbx + {target}]",
    "sublet_load_guest",
    "jmp qword ptr [rsp + {entry} - {STACK_TOP}]",
    // Ways out.
    ".globl sublet_exit_link",
    ".hidden sublet_exit_link",
    "sublet_exit_link:",
    "mov qword ptr [rsp + {exit_reason} - {STACK_TOP}], {LINK}",
    "jmp sublet_leave",
    ".globl sublet_exit_indirect",
    ".hidden sublet_exit_indirect",
    "sublet_exit_indirect:",
    "mov qword ptr [rsp + {exit_reason} - {STACK_TOP}], {INDIRECT}",
    "jmp sublet_leave",
    ".globl sublet_exit_system",
    ".hidden sublet_exit_system",
    "sublet_exit_system:",
    "mov qword ptr [rsp + {exit_reason} - {STACK_TOP}], {SYSTEM}",
    "jmp sublet_leave",
    // A signal handler sends the thread here in place of the instruction that faulted.
    ".globl sublet_exit_fault",
    ".hidden sublet_exit_fault",
    "sublet_exit_fault:",
    "mov qword ptr [rsp + {exit_reason} - {STACK_TOP}], {FAULT}",
    "sublet_leave:",
    "sublet_save_guest 0",
    "sublet_return:",
    "mov rsp, [rbx + {host_rsp}]",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    // Called from translated code: ECX describes an access at R14 that the inline check refused.
    // Returns R15 = host minus guest address, or 5 bytes further on to use the bounce buffer.
    ".globl sublet_slow_access",
    ".hidden sublet_slow_access",
    "sublet_slow_access:",
    "sublet_save_guest 8",
    "mov [rbx + {access_address}], r14",
    "mov rdi, [rbx + {runtime}]",
    "mov esi, ecx",
    "mov rdx, r14",
    "mov rcx, [rsp]",
    "sub rsp, 8",
    "call {slow}",
    "add rsp, 8",
    "cmp eax, {BOUNCE}",
    "jb 3f",
    "ja sublet_return",
    "add qword ptr [rsp], 5",
    "3:",
    "mov r14, [rbx + {access_address}]",
    "mov r15, [rbx + {access_addend}]",
    "sublet_load_guest",
    "ret",
    // Called from translated code after it stored into the bounce buffer.
    ".globl sublet_commit",
    ".hidden sublet_commit",
    "sublet_commit:",
    "sublet_save_guest 8",
    "mov rdi, [rbx + {runtime}]",
    "mov rsi, [rsp]",
    "sub rsp, 8",
    "call {commit}",
    "add rsp, 8",
    "test eax, eax",
    "jnz sublet_return",
    "mov r14, [rbx + {access_address}]",
    "sublet_load_guest",
    "ret",
    // A signal handler sends the thread here in place of an instruction whose memory window lacks a page.
    ".globl sublet_window_fault",
    ".hidden sublet_window_fault",
    "sublet_window_fault:",
    "sublet_save_guest 0",
    "mov [rbx + {kept}], rcx",
    "mov [rbx + {kept} + 8], r14",
    "mov [rbx + {kept} + 16], r15",
    "mov rdi, [rbx + {runtime}]",
    "call {window_fault}",
    "test eax, eax",
    "jnz sublet_return",
    "mov rcx, [rbx + {kept}]",
    "mov r14, [rbx + {kept} + 8]",
    "mov r15, [rbx + {kept} + 16]",
    "sublet_load_guest",
    "jmp qword ptr [rsp + {fault_pc} - {STACK_TOP}]",
    // Called from translated code to have an instruction carried out without leaving, if that can be.
    ".globl sublet_in_place",
    ".hidden sublet_in_place",
    "sublet_in_place:",
    "sublet_save_guest 8",
    "mov rdi, [rbx + {runtime}]",
    "sub rsp, 8",
    "call {in_place}",
    "add rsp, 8",
    "test eax, eax",
    "jnz sublet_return",
    "sublet_load_guest",
    "ret",
    // extern "sysv64" fn(area, mask_low, mask_high, state): the vector arrays and x87 into an XSAVE area.
    ".globl sublet_save_x87",
    ".hidden sublet_save_x87",
    "sublet_save_x87:",
    "push rbx",
    "mov rbx, rcx",
    "mov ecx, edx",
    "mov r8d, esi",
    "lea rax, [rip + 4f]",
    "jmp sublet_load_vectors",
    "4:",
    "ldmxcsr [rbx + {mxcsr}]",
    "mov eax, r8d",
    "mov edx, ecx",
    "xsave64 [rdi]",
    "ldmxcsr [rbx + {host_mxcsr}]",
    "vzeroupper",
    "fninit",
    "pop rbx",
    "ret",
    // The same into an area of the compacted format; x87 state stays in the processor, too.
    ".globl sublet_save_compacted",
    ".hidden sublet_save_compacted",
    "sublet_save_compacted:",
    "push rbx",
    "mov rbx, rcx",
    "mov ecx, edx",
    "mov r8d, esi",
    "lea rax, [rip + 6f]",
    "jmp sublet_load_vectors",
    "6:",
    "ldmxcsr [rbx + {mxcsr}]",
    "mov eax, r8d",
    "mov edx, ecx",
    "xsavec64 [rdi]",
    "ldmxcsr [rbx + {host_mxcsr}]",
    "vzeroupper",
    "pop rbx",
    "ret",
    // The reverse.
    ".globl sublet_load_x87",
    ".hidden sublet_load_x87",
    "sublet_load_x87:",
    "push rbx",
    "mov rbx, rcx",
    "mov eax, esi",
    "xrstor64 [rdi]",
    "stmxcsr [rbx + {mxcsr}]",
    "ldmxcsr [rbx + {host_mxcsr}]",
    "lea rax, [rip + 5f]",
    "jmp sublet_save_vectors",
    "5:",
    "pop rbx",
    "ret",
    gpr = const at!(gpr),
    rflags = const at!(rflags),
    mxcsr = const at!(hot.mxcsr),
    host_mxcsr = const at!(hot.host_mxcsr),
    avx512 = const at!(hot.avx512),
    zmm = const at!(hot.zmm),
    opmask = const at!(hot.opmask),
    upper_lanes = const at!(hot.upper_lanes),
    host_rsp = const at!(hot.host_rsp),
    entry = const at!(hot.entry),
    target = const at!(hot.target),
    exit_reason = const at!(hot.exit_reason),
    access_address = const at!(hot.access_address),
    access_addend = const at!(hot.access_addend),
    runtime = const at!(hot.runtime),
    kept = const at!(hot.kept),
    fault_pc = const at!(hot.fault_pc),
    window_fault = sym crate::runtime::windows::window_fault,
    STACK_TOP = const STACK_TOP,
    LINK = const exit::LINK,
    INDIRECT = const exit::INDIRECT,
    SYSTEM = const exit::SYSTEM,
    FAULT = const exit::FAULT,
    BOUNCE = const resume::BOUNCE,
    slow = sym crate::runtime::access::slow_access,
    commit = sym crate::runtime::access::commit,
    in_place = sym crate::runtime::in_place::in_place,
);

extern "sysv64" {
    /// Run translated code at `entry` until it leaves.
    ///
    /// # Safety
    /// `state` is a [`crate::state::MappedState`]'s; `entry` is a live block's host address; the state's
    /// pointers are valid; nothing else runs this vCPU.
    pub fn sublet_enter_cache(entry: u64, state: *mut CpuState);
    fn sublet_save_x87(area: *mut u8, mask_low: u32, mask_high: u32, state: *mut CpuState);
    fn sublet_save_compacted(area: *mut u8, mask_low: u32, mask_high: u32, state: *mut CpuState);
    fn sublet_load_x87(area: *const u8, mask_low: u32, mask_high: u32, state: *mut CpuState);
    fn sublet_exit_link();
    fn sublet_exit_indirect();
    fn sublet_exit_system();
    fn sublet_exit_fault();
    fn sublet_window_fault();
    fn sublet_slow_access();
    fn sublet_commit();
    fn sublet_in_place();
}

/// Fill in the addresses and constants that translated code finds in its state.
pub fn prepare(hot: &mut HotState) {
    hot.exit_link = sublet_exit_link as *const () as u64;
    hot.exit_indirect = sublet_exit_indirect as *const () as u64;
    hot.exit_system = sublet_exit_system as *const () as u64;
    hot.slow_access = sublet_slow_access as *const () as u64;
    hot.commit = sublet_commit as *const () as u64;
    hot.in_place = sublet_in_place as *const () as u64;
    hot.copy_pieces = super::pieces::entry();
    hot.tlb_mask = (crate::state::TLB_ENTRIES as u64 - 1) << 12;
    hot.page_mask = !0xfff;
    hot.arithmetic_mask = crate::state::flag::ARITHMETIC;
    hot.not_arithmetic_mask = !crate::state::flag::ARITHMETIC;
    hot.unusual_mask = !crate::emit::FREE_FLAGS;
    hot.not_user_mask = !((1 << 47) - 1);
    hot.user_mask = !hot.not_user_mask;
    hot.not_ac_mask = !crate::state::flag::AC;
    hot.jump_mask = crate::mmu::jumps::JUMP_MASK;
    hot.bit_masks = [63, 31, 15];
    hot.avx512 =
        u64::from(std::is_x86_feature_detected!("avx512f") && std::is_x86_feature_detected!("avx512bw"));
    hot.host_mxcsr = 0x1f80;
    hot.mxcsr = 0x1f80;
}

/// Where a signal handler sends a thread that faulted in the cache.
pub fn fault_exit() -> u64 {
    sublet_exit_fault as *const () as u64
}

/// The same for a page fault.
pub fn page_fault() -> u64 {
    sublet_window_fault as *const () as u64
}

/// Gather x87 and vector state into a standard-format XSAVE area of all components in `mask`.
///
/// # Safety
/// `state` is the vCPU's, and its vector arrays are up to date; `area` is 64-byte
/// aligned and large enough for `mask`, a subset of the host's XCR0.
pub unsafe fn save_x87(state: *mut CpuState, area: *mut u8, mask: u64) {
    // SAFETY: as the caller promises.
    unsafe { sublet_save_x87(area, mask as u32, (mask >> 32) as u32, state) };
}

/// Gather x87 and vector state into an XSAVE area of the compacted format, with room for all components in
/// `mask`; those in their initial configuration are left out. x87 state stays in the processor.
///
/// # Safety
/// As for [`save_x87`]; the host has XSAVEC.
pub unsafe fn save_compacted(state: *mut CpuState, area: *mut u8, mask: u64) {
    // SAFETY: as the caller promises.
    unsafe { sublet_save_compacted(area, mask as u32, (mask >> 32) as u32, state) };
}

/// Load x87 state into the processor and vector state into the vCPU's arrays.
///
/// # Safety
/// As for [`save_x87`]; the area's header is valid.
pub unsafe fn load_x87(state: *mut CpuState, area: *const u8, mask: u64) {
    // SAFETY: as the caller promises.
    unsafe { sublet_load_x87(area, mask as u32, (mask >> 32) as u32, state) };
}

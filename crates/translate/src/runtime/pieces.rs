//! REP MOVSB of at most a page's bytes whose source or destination goes on in a next page: copied piece by piece
//! between translated code's registers, without the vectors and all else that compiled code needs saved.
//!
//! Kernels copy so between a page and a program's buffer, which seldom begins where a page does.

use crate::state::{CpuState, HotState, Tlb, STACK_TOP, TLB_ENTRIES};
use std::mem::offset_of;

/// Distance from RSP to the state, after a call from translated code.
const CALLED: isize = 8 - STACK_TOP as isize;
const ADDENDS: usize = offset_of!(Tlb, addend);
// The addends are found from the tags, and the tags by their index alone.
const _: () = assert!(offset_of!(Tlb, tag) == 0 && ADDENDS == 8 * TLB_ENTRIES);

std::arch::global_asm!(
    // Called from translated code, where R11 is the guest's RCX, not 0; R14 and R15 are the offsets of the read and
    // write TLBs' tags in the vCPU's state. RSI, RDI and R11 say at every moment what is left. What the TLBs do not
    // have is left to `sublet_in_place`, as if the instruction began there.
    ".globl sublet_copy_pieces",
    ".hidden sublet_copy_pieces",
    "sublet_copy_pieces:",
    "mov [rsp + {CALLED} + {kept}], rax",
    "lahf",
    "seto al",
    "mov [rsp + {CALLED} + {kept} + 8], rax",
    "mov [rsp + {CALLED} + {kept} + 16], rbx",
    "2:",
    // RBX = bytes up to where the first page ends.
    "mov eax, edi",
    "or eax, 0xfffff000",
    "mov ecx, esi",
    "or ecx, 0xfffff000",
    "cmp eax, ecx",
    "cmovb eax, ecx",
    "neg eax",
    "mov rbx, r11",
    "cmp rbx, rax",
    "cmova rbx, rax",
    // RCX, RAX = host addresses of the two bytes.
    "pext rax, rsi, [rsp + {CALLED} + {tlb_mask}]",
    "lea rax, [r14 + rax * 8]",
    "mov rcx, [rsp + rax + {CALLED}]",
    "add rcx, rsi",
    "cmp rcx, 4096",
    "jae 3f",
    "mov rcx, [rsp + rax + {CALLED} + {ADDENDS}]",
    "add rcx, rsi",
    "pext rax, rdi, [rsp + {CALLED} + {tlb_mask}]",
    "lea rax, [r15 + rax * 8]",
    "push qword ptr [rsp + rax + {CALLED}]",
    "add [rsp], rdi",
    "cmp qword ptr [rsp], 4096",
    "lea rsp, [rsp + 8]",
    "jae 3f",
    "mov rax, [rsp + rax + {CALLED} + {ADDENDS}]",
    "add rax, rdi",
    // The guest's pointers come back from behind the piece.
    "sub r11, rbx",
    "add rsi, rbx",
    "add rdi, rbx",
    "xchg rsi, rcx",
    "xchg rdi, rax",
    "xchg rcx, rbx",
    "rep movsb",
    "mov rsi, rbx",
    "mov rdi, rax",
    "test r11, r11",
    "jnz 2b",
    "call 4f",
    "ret",
    "3:",
    "call 4f",
    "jmp sublet_in_place",
    "4:",
    "mov rbx, [rsp + 8 + {CALLED} + {kept} + 16]",
    "mov rax, [rsp + 8 + {CALLED} + {kept} + 8]",
    "add al, 0x7f",
    "sahf",
    "mov rax, [rsp + 8 + {CALLED} + {kept}]",
    "ret",
    kept = const offset_of!(CpuState, hot) + offset_of!(HotState, kept),
    tlb_mask = const offset_of!(CpuState, hot) + offset_of!(HotState, tlb_mask),
    ADDENDS = const ADDENDS,
    CALLED = const CALLED,
);

extern "sysv64" {
    fn sublet_copy_pieces();
}

/// The address that translated code calls.
pub(super) fn entry() -> u64 {
    sublet_copy_pieces as *const () as u64
}

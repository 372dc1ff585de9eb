//! What a decoded instruction asks of the translator.

use crate::mode::{Mode, Width};
use iced_x86::{Code, CpuidFeature, EncodingKind, Instruction, Mnemonic, OpKind, Register};
use std::sync::OnceLock;

/// How an instruction is translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Re-encoded with registers renamed and its memory operand translated.
    Generic,
    /// Emitted by code of its own.
    Special,
    /// REP MOVS or REP STOS, run by the host's where it stays in a page, else by compiled code.
    RepeatedString,
    /// Carried out by compiled code; ends the block.
    System,
    /// #UD.
    Undefined,
    /// #NM.
    DeviceNotAvailable,
    /// No effect.
    Nothing,
}

/// Which processor state an instruction uses, for CR0.TS and its kin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Integer,
    X87,
    Wait,
    Mmx,
    Sse,
    Avx,
    Avx512,
}

fn is_vector(register: Register) -> bool {
    register.is_xmm() || register.is_ymm() || register.is_zmm() || register.is_k()
}

/// What classifying asks of a code, found once for all of them: their features are in a list of lists.
#[derive(Debug, Clone, Copy)]
struct Traits {
    x87: bool,
    refused: bool,
    /// Code of any privilege may execute it.
    unprivileged: bool,
}

fn traits(code: Code) -> Traits {
    static ALL: OnceLock<Box<[Traits]>> = OnceLock::new();
    let find = |code: Code| {
        let features = code.cpuid_features();
        Traits {
            x87: features.iter().any(|feature| is_x87(*feature)),
            refused: features.iter().any(|feature| refused(*feature)),
            unprivileged: code.op_code().cpl3(),
        }
    };
    ALL.get_or_init(|| Code::values().map(find).collect())[code as usize]
}

fn unit(instruction: &Instruction) -> Unit {
    if instruction.mnemonic() == Mnemonic::Wait {
        return Unit::Wait;
    }
    let code = instruction.code();
    let mut mmx = false;
    let mut opmask = false;
    let mut vector = matches!(
        instruction.mnemonic(),
        Mnemonic::Ldmxcsr
            | Mnemonic::Stmxcsr
            | Mnemonic::Vldmxcsr
            | Mnemonic::Vstmxcsr
            | Mnemonic::Vzeroupper
            | Mnemonic::Vzeroall
    );
    for index in 0..instruction.op_count() {
        if instruction.op_kind(index) == OpKind::Register {
            let register = instruction.op_register(index);
            vector |= is_vector(register);
            opmask |= register.is_k();
            mmx |= register.is_mm();
        }
    }
    match (vector, code.encoding()) {
        (true, EncodingKind::EVEX) => Unit::Avx512,
        (true, EncodingKind::VEX) if opmask => Unit::Avx512,
        (true, EncodingKind::VEX) => Unit::Avx,
        (true, _) => Unit::Sse,
        (false, _) if mmx || instruction.mnemonic() == Mnemonic::Emms => Unit::Mmx,
        _ if traits(code).x87 => Unit::X87,
        _ => Unit::Integer,
    }
}

fn is_x87(feature: CpuidFeature) -> bool {
    use CpuidFeature::{FPU, FPU287, FPU387};
    matches!(feature, FPU | FPU287 | FPU387)
}

/// Whether a pending x87 exception is reported before the instruction does anything else
/// (Intel SDM vol. 1 §8.6 "x87 FPU Exception Synchronization").
pub fn waits_for_x87(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    let silent = matches!(
        instruction.mnemonic(),
        M::Fnstcw | M::Fnstsw | M::Fnstenv | M::Fnsave | M::Fninit | M::Fnclex
    );
    let mmx = has_register(instruction, Register::is_mm);
    !silent && (mmx || matches!(unit(instruction), Unit::X87 | Unit::Mmx | Unit::Wait))
}

/// The trap that CR0, CR4 and XCR0 put on the instruction's unit, if any.
fn trap(instruction: &Instruction, mode: Mode) -> Option<Kind> {
    let (undefined, unavailable) = match unit(instruction) {
        Unit::Integer => (false, false),
        Unit::X87 => (false, mode.emulate_fpu() || mode.task_switched()),
        Unit::Wait => (false, mode.monitor_coprocessor() && mode.task_switched()),
        Unit::Mmx => (mode.emulate_fpu(), mode.task_switched()),
        Unit::Sse => (mode.emulate_fpu() || !mode.sse(), mode.task_switched()),
        Unit::Avx => (!mode.avx(), mode.task_switched()),
        Unit::Avx512 => (!mode.avx512(), mode.task_switched()),
    };
    match (undefined, unavailable) {
        (true, _) => Some(Kind::Undefined),
        (_, true) => Some(Kind::DeviceNotAvailable),
        _ => None,
    }
}

/// Features that CPUID never offers here, though the host may have them.
fn refused(feature: CpuidFeature) -> bool {
    use CpuidFeature as F;
    matches!(
        feature,
        F::AMX_BF16
            | F::AMX_TILE
            | F::AMX_INT8
            | F::PKU
            | F::WAITPKG
            | F::MONITOR
            | F::MONITORX
            | F::CET_SS
            | F::HLE
            | F::RTM
            | F::MPX
            | F::UINTR
            | F::ENQCMD
            | F::MOVDIR64B
            | F::MOVDIRI
            | F::PTWRITE
            | F::SERIALIZE
            | F::XOP
            | F::FMA4
            | F::TBM
            | F::LWP
            | F::D3NOW
            | F::D3NOWEXT
            | F::KL
            | F::AESKLE
            | F::TSXLDTRK
            | F::RDPRU
            | F::SGX1
            | F::SKINIT
            | F::PADLOCK_ACE
            | F::PADLOCK_PHE
            | F::PADLOCK_PMM
            | F::PADLOCK_RNG
            | F::PADLOCK_GMI
            | F::PADLOCK_UNDOC
            | F::UDBG
            | F::SMX
            | F::MCOMMIT
            | F::INVLPGB
            | F::SEV_ES
            | F::HRESET
            | F::PCONFIG
            | F::CLZERO
    )
}

fn has_register(instruction: &Instruction, test: impl Fn(Register) -> bool) -> bool {
    (0..instruction.op_count())
        .any(|index| instruction.op_kind(index) == OpKind::Register && test(instruction.op_register(index)))
}

/// Whether compiled code carries the instruction out.
fn is_system(instruction: &Instruction, mode: Mode) -> bool {
    use Mnemonic as M;
    match instruction.mnemonic() {
        M::In | M::Out | M::Insb | M::Insw | M::Insd | M::Outsb | M::Outsw | M::Outsd => true,
        // A spinning vCPU may have to give its processor to the one it waits for.
        M::Pause => true,
        M::Cli | M::Sti | M::Hlt | M::Cld | M::Std | M::Clac | M::Stac => true,
        M::Pushf | M::Pushfd | M::Pushfq => mode.v86(),
        M::Popf | M::Popfd | M::Popfq => true,
        M::Iret | M::Iretd | M::Iretq | M::Int | M::Int1 | M::Int3 | M::Into => true,
        M::Syscall | M::Sysret | M::Sysretq | M::Sysenter | M::Sysexit | M::Sysexitq | M::Swapgs => true,
        M::Rdmsr | M::Wrmsr | M::Cpuid | M::Rdtscp | M::Rdpmc | M::Rdpid | M::Xgetbv | M::Xsetbv => true,
        M::Rdtsc => mode.tsc_privileged(),
        M::Lgdt | M::Lidt | M::Sgdt | M::Sidt | M::Lldt | M::Sldt | M::Ltr | M::Str | M::Lmsw | M::Smsw => {
            true
        }
        M::Clts | M::Invd | M::Wbinvd | M::Wbnoinvd | M::Invlpg | M::Invpcid => true,
        M::Lar | M::Lsl | M::Verr | M::Verw | M::Arpl => true,
        M::Rdfsbase | M::Rdgsbase | M::Wrfsbase | M::Wrgsbase => true,
        M::Fxsave | M::Fxsave64 | M::Fxrstor | M::Fxrstor64 | M::Xsave | M::Xsave64 | M::Xsaveopt => true,
        M::Xsaveopt64 | M::Xsavec | M::Xsavec64 | M::Xsaves | M::Xsaves64 => true,
        M::Xrstor | M::Xrstor64 | M::Xrstors | M::Xrstors64 => true,
        M::Fnstenv | M::Fstenv | M::Fnsave | M::Fsave => true,
        // They end an x87 error that interrupts, of which the chipset hears.
        M::Fninit | M::Fnclex => true,
        M::Enter | M::Bound | M::Pusha | M::Pushad | M::Popa | M::Popad | M::Xlatb => true,
        M::Aaa | M::Aas | M::Aad | M::Aam | M::Daa | M::Das | M::Salc => true,
        M::Lds | M::Les | M::Lfs | M::Lgs | M::Lss => true,
        M::Maskmovdqu | M::Maskmovq | M::Vmaskmovdqu => true,
        M::Vmaskmovps | M::Vmaskmovpd | M::Vpmaskmovd | M::Vpmaskmovq => true,
        M::Vmcall | M::Vmmcall | M::Monitor | M::Mwait | M::Rsm => true,
        M::Mov => has_register(instruction, |register| {
            register.is_segment_register() || register.is_cr() || register.is_dr() || register.is_tr()
        }),
        M::Pop => has_register(instruction, Register::is_segment_register),
        M::Call | M::Jmp => is_far(instruction),
        M::Retf => true,
        _ => instruction.is_vsib() || is_masked_move(instruction) || is_repeated(instruction, mode),
    }
}

fn is_far(instruction: &Instruction) -> bool {
    instruction.is_call_far()
        || instruction.is_jmp_far()
        || instruction.is_call_far_indirect()
        || instruction.is_jmp_far_indirect()
}

/// Compress and expand touch as many elements as the mask has bits: not a fixed-size access.
fn is_masked_move(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    let memory = (0..instruction.op_count()).any(|index| instruction.op_kind(index) == OpKind::Memory);
    memory
        && matches!(
            instruction.mnemonic(),
            M::Vcompressps
                | M::Vcompresspd
                | M::Vpcompressb
                | M::Vpcompressw
                | M::Vpcompressd
                | M::Vpcompressq
                | M::Vexpandps
                | M::Vexpandpd
                | M::Vpexpandb
                | M::Vpexpandw
                | M::Vpexpandd
                | M::Vpexpandq
        )
}

/// Whether the instruction is MOVS, STOS, LODS, SCAS or CMPS.
pub fn is_string(instruction: &Instruction) -> bool {
    instruction.is_string_instruction()
        && (0..instruction.op_count()).any(|index| {
            matches!(
                instruction.op_kind(index),
                OpKind::MemorySegSI
                    | OpKind::MemorySegESI
                    | OpKind::MemorySegRSI
                    | OpKind::MemoryESDI
                    | OpKind::MemoryESEDI
                    | OpKind::MemoryESRDI
            )
        })
}

/// Whether the inline forms of string instructions cover the operands: 64-bit addresses, or 32-bit ones
/// in flat segments; no segment base.
fn has_plain_pointers(instruction: &Instruction, mode: Mode) -> bool {
    use OpKind::{MemoryESEDI, MemoryESRDI, MemorySegESI, MemorySegRSI};
    let based = matches!(instruction.segment_prefix(), Register::FS | Register::GS);
    // A flat code segment may not be readable.
    let narrow = mode.code() == Width::W32 && mode.flat() && instruction.segment_prefix() != Register::CS;
    !based
        && (0..instruction.op_count()).all(|index| match instruction.op_kind(index) {
            MemorySegRSI | MemoryESRDI => mode.is64(),
            MemorySegESI | MemoryESEDI => narrow,
            kind => kind == OpKind::Register,
        })
}

/// A string instruction that the inline form does not cover.
fn is_repeated(instruction: &Instruction, mode: Mode) -> bool {
    use OpKind::{MemoryESEDI, MemoryESRDI, MemorySegESI, MemorySegRSI};
    if !is_string(instruction) {
        return false;
    }
    // Compiled code completes an instruction that reads two devices.
    let compares = matches!(instruction.op0_kind(), MemorySegRSI | MemorySegESI)
        && matches!(instruction.op1_kind(), MemoryESRDI | MemoryESEDI);
    let repeats = instruction.has_rep_prefix() || instruction.has_repne_prefix();
    compares || repeats || !has_plain_pointers(instruction, mode)
}

/// A forward REP MOVS or REP STOS with plain pointers.
fn is_native_repeat(instruction: &Instruction, mode: Mode) -> bool {
    use OpKind::{MemoryESEDI, MemoryESRDI, MemorySegESI, MemorySegRSI};
    let moves = matches!(instruction.op1_kind(), MemorySegRSI | MemorySegESI);
    let stores = instruction.op1_kind() == OpKind::Register;
    is_string(instruction)
        && matches!(instruction.op0_kind(), MemoryESRDI | MemoryESEDI)
        && (moves || stores)
        && !is_scan(instruction)
        && (instruction.has_rep_prefix() || instruction.has_repne_prefix())
        && has_plain_pointers(instruction, mode)
        && !mode.backwards()
        && !mode.checks_alignment()
        && !mode.single_step()
}

fn is_scan(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    matches!(instruction.mnemonic(), M::Scasb | M::Scasw | M::Scasd | M::Scasq | M::Insb | M::Insw | M::Insd)
}

fn is_special(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    instruction.is_jcc_short_or_near()
        || instruction.is_jcx_short()
        || instruction.is_loop()
        || instruction.is_loopcc()
        || is_string(instruction)
        || matches!(
            instruction.mnemonic(),
            M::Pushf
                | M::Pushfd
                | M::Pushfq
                | M::Jmp
                | M::Call
                | M::Ret
                | M::Push
                | M::Pop
                | M::Leave
                | M::Lea
                | M::Rdtsc
        )
}

/// 0F 0D with a register is a no-operation on Intel's processors and #UD on AMD's (APM vol. 3
/// "PREFETCHlevel"; SDM vol. 2A table A-3); guests see the host's vendor.
fn refuses_register_prefetch(instruction: &Instruction) -> bool {
    let reserved = matches!(
        instruction.code(),
        Code::Reservednop_rm16_r16_0F0D | Code::Reservednop_rm32_r32_0F0D | Code::Reservednop_rm64_r64_0F0D
    );
    reserved && has_register(instruction, Register::is_gpr) && host_is_amd()
}

pub(super) fn host_is_amd() -> bool {
    static AMD: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *AMD.get_or_init(|| {
        // "Auth"enticAMD, "Hygo"nGenuine.
        matches!(std::arch::x86_64::__cpuid(0).ebx, 0x6874_7541 | 0x6f67_7948)
    })
}

/// CLD and STD that change nothing.
fn keeps_direction(instruction: &Instruction, mode: Mode) -> bool {
    match instruction.mnemonic() {
        Mnemonic::Cld => !mode.backwards(),
        Mnemonic::Std => mode.backwards(),
        _ => false,
    }
}

fn is_nothing(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    matches!(
        instruction.mnemonic(),
        M::Nop
            | M::Endbr64
            | M::Endbr32
            | M::Prefetchnta
            | M::Prefetcht0
            | M::Prefetcht1
            | M::Prefetcht2
            | M::Prefetchw
            | M::Prefetch
            | M::Prefetchwt1
            | M::Prefetchit0
            | M::Prefetchit1
            | M::Cldemote
            | M::Rdsspd
            | M::Rdsspq
            | M::Reservednop
    )
}

/// Decide how to translate.
pub fn classify(instruction: &Instruction, mode: Mode) -> Kind {
    let code = instruction.code();
    if code == Code::INVALID {
        return Kind::Undefined;
    }
    if keeps_direction(instruction, mode) {
        return Kind::Nothing;
    }
    if is_nothing(instruction) {
        return if refuses_register_prefetch(instruction) { Kind::Undefined } else { Kind::Nothing };
    }
    if traits(code).refused {
        return Kind::Undefined;
    }
    if let Some(kind) = trap(instruction, mode) {
        return kind;
    }
    if matches!(instruction.mnemonic(), Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2 | Mnemonic::Vmfunc) {
        return Kind::Undefined;
    }
    if is_native_repeat(instruction, mode) {
        return Kind::RepeatedString;
    }
    if is_system(instruction, mode) {
        return Kind::System;
    }
    if is_special(instruction) {
        return Kind::Special;
    }
    // What only privileged code may execute and nothing here carries out: not offered.
    if !traits(code).unprivileged {
        return Kind::Undefined;
    }
    Kind::Generic
}

#[cfg(test)]
mod tests {
    use super::{classify, Kind};
    use crate::mode::Mode;
    use iced_x86::{
        Code, EncodingKind, Instruction, InstructionInfoFactory, OpCodeInfo, OpCodeOperandKind, OpKind,
    };

    /// 64-bit code at privilege 3 with every unit enabled.
    const USER_64: Mode = Mode(2 | 2 << 2 | 3 << 4 | 1 << 6 | 7 << 12 | 1 << 17 | 1 << 19);

    fn names_memory(op_code: &OpCodeInfo) -> bool {
        use OpCodeOperandKind as K;
        (0..op_code.op_count()).any(|operand| {
            matches!(
                op_code.op_kind(operand),
                K::mem
                    | K::mem_offs
                    | K::mem_mpx
                    | K::mem_mib
                    | K::seg_rBX_al
                    | K::seg_rSI
                    | K::seg_rDI
                    | K::es_rDI
            )
        })
    }

    /// The instruction with registers where it has operands.
    fn register_form(code: Code) -> Instruction {
        let mut instruction = Instruction::default();
        instruction.set_code(code);
        for operand in 0..code.op_code().op_count().min(4) {
            instruction.set_op_kind(operand, OpKind::Register);
        }
        instruction
    }

    /// Memory that no operand names would be the host's: such instructions are not emitted as they are.
    #[test]
    fn nothing_is_emitted_that_touches_memory_unseen() {
        let mut info = InstructionInfoFactory::new();
        for code in Code::values() {
            let op_code = code.op_code();
            let decoded =
                op_code.is_instruction() && op_code.mode64() && code.encoding() != EncodingKind::MVEX;
            if !decoded || names_memory(op_code) {
                continue;
            }
            let instruction = register_form(code);
            if classify(&instruction, USER_64) == Kind::Generic {
                assert!(info.info(&instruction).used_memory().is_empty(), "{code:?}");
                assert!(op_code.cpl3(), "{code:?} is privileged");
            }
        }
    }
}

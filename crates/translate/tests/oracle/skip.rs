//! Instructions that single-instruction cases leave out, and why.

use crate::features::Features;
use iced_x86::{Code, EncodingKind, FlowControl, Mnemonic, OpCodeOperandKind as K};
use std::collections::BTreeMap;

/// Why `code` is not run as a single instruction in `bits`-bit code; `None` when it is.
pub fn reason(code: Code, bits: u32, features: &Features) -> Option<&'static str> {
    let op = code.op_code();
    if !op.is_instruction() || !op.is_available_in_mode(bits) || op.fwait() {
        return Some("not an instruction of this mode");
    }
    if matches!(op.encoding(), EncodingKind::XOP | EncodingKind::D3NOW | EncodingKind::MVEX) {
        return Some("encoding that no guest is offered");
    }
    if features.missing(code).is_some() {
        return Some("this host does not advertise it");
    }
    if op.is_privileged() || op.must_be_cpl0() || op.may_require_cpl0() || op.is_input_output() {
        return Some("privileged: system tests cover it");
    }
    if op.is_save_restore() {
        return Some("stores last-instruction pointers, or depends on XCR0");
    }
    if code.flow_control() != FlowControl::Next {
        return Some("changes control flow: the sequences cover it");
    }
    let kinds = op.op_kinds();
    if kinds.iter().any(|kind| matches!(kind, K::seg_reg | K::cr_reg | K::dr_reg | K::tr_reg)) {
        return Some("loads or reads a system register");
    }
    let segment = |kind: &K| matches!(kind, K::es | K::ss | K::ds | K::fs | K::gs);
    if code.mnemonic() == Mnemonic::Pop && kinds.iter().any(segment) {
        return Some("loads or reads a system register");
    }
    by_mnemonic(code.mnemonic())
}

fn by_mnemonic(mnemonic: Mnemonic) -> Option<&'static str> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Rdtsc | M::Rdtscp | M::Rdrand | M::Rdseed | M::Rdpid | M::Rdpmc => "another result each time",
        M::Cpuid | M::Xgetbv => "the guest's answer differs from the host's by design",
        M::Sgdt | M::Sidt | M::Sldt | M::Str | M::Smsw => "system tables differ (and UMIP)",
        M::Lar | M::Lsl | M::Verr | M::Verw | M::Arpl => "depends on the descriptor table",
        M::Lds | M::Les | M::Lfs | M::Lgs | M::Lss => "loads or reads a system register",
        M::Fnstenv | M::Fstenv | M::Fnsave | M::Fsave => {
            "stores last-instruction pointers, or depends on XCR0"
        }
        M::Monitor | M::Mwait | M::Monitorx | M::Mwaitx => "not offered to guests",
        M::Rdpkru | M::Wrpkru => "not offered to guests",
        M::Cli | M::Sti => "privileged: system tests cover it",
        _ => return None,
    })
}

/// How many encodings each reason leaves out.
pub fn summary(bits: u32, features: &Features) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    for reason in Code::values().filter_map(|code| reason(code, bits, features)) {
        *counts.entry(reason).or_default() += 1;
    }
    counts
}

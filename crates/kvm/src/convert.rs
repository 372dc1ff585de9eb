//! The contract's structures from and to KVM's.

use kvm_bindings::{
    kvm_cpuid_entry2, kvm_dtable, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs,
    KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
};
use sublet_engine::{CpuidEntry, DescriptorTable, MsrEntry, Regs, Segment, Sregs};

/// Room for the CPUID entries of any host.
pub const SUPPORTED_CPUID_ENTRIES: usize = 256;

/// Bit 1 of RFLAGS is always set (Intel SDM vol. 1 §3.4.3 "EFLAGS Register").
const RFLAGS_FIXED: u64 = 2;

pub fn regs_from_kvm(from: &kvm_regs) -> Regs {
    let gpr = [
        from.rax, from.rcx, from.rdx, from.rbx, from.rsp, from.rbp, from.rsi, from.rdi, from.r8, from.r9,
        from.r10, from.r11, from.r12, from.r13, from.r14, from.r15,
    ];
    Regs { gpr, rip: from.rip, rflags: from.rflags | RFLAGS_FIXED }
}

pub fn regs_to_kvm(from: &Regs) -> kvm_regs {
    let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] = from.gpr;
    let (rip, rflags) = (from.rip, from.rflags | RFLAGS_FIXED);
    kvm_regs { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags }
}

fn segment_from_kvm(from: &kvm_segment) -> Segment {
    Segment {
        base: from.base,
        limit: from.limit,
        selector: from.selector,
        kind: from.type_,
        present: from.present != 0,
        dpl: from.dpl,
        db: from.db != 0,
        s: from.s != 0,
        l: from.l != 0,
        g: from.g != 0,
        avl: from.avl != 0,
        unusable: from.unusable != 0,
    }
}

fn segment_to_kvm(from: &Segment) -> kvm_segment {
    kvm_segment {
        base: from.base,
        limit: from.limit,
        selector: from.selector,
        type_: from.kind & 0xf,
        present: from.present.into(),
        dpl: from.dpl & 3,
        db: from.db.into(),
        s: from.s.into(),
        l: from.l.into(),
        g: from.g.into(),
        avl: from.avl.into(),
        unusable: from.unusable.into(),
        padding: 0,
    }
}

fn table_from_kvm(from: &kvm_dtable) -> DescriptorTable {
    DescriptorTable { base: from.base, limit: from.limit }
}

fn table_to_kvm(from: &DescriptorTable) -> kvm_dtable {
    kvm_dtable { base: from.base, limit: from.limit, ..Default::default() }
}

pub fn sregs_from_kvm(from: &kvm_sregs) -> Sregs {
    Sregs {
        segments: [&from.es, &from.cs, &from.ss, &from.ds, &from.fs, &from.gs].map(segment_from_kvm),
        ldtr: segment_from_kvm(&from.ldt),
        tr: segment_from_kvm(&from.tr),
        gdt: table_from_kvm(&from.gdt),
        idt: table_from_kvm(&from.idt),
        cr0: from.cr0,
        cr2: from.cr2,
        cr3: from.cr3,
        cr4: from.cr4,
        cr8: from.cr8,
        efer: from.efer,
        apic_base: from.apic_base,
    }
}

/// `old` with the contract's registers replaced; an interrupt already queued stays, and so does
/// the APIC base where the new one is 0.
pub fn sregs_to_kvm(from: &Sregs, old: &kvm_sregs) -> kvm_sregs {
    let [es, cs, ss, ds, fs, gs] = from.segments.each_ref().map(segment_to_kvm);
    kvm_sregs {
        es,
        cs,
        ss,
        ds,
        fs,
        gs,
        tr: segment_to_kvm(&from.tr),
        ldt: segment_to_kvm(&from.ldtr),
        gdt: table_to_kvm(&from.gdt),
        idt: table_to_kvm(&from.idt),
        cr0: from.cr0,
        cr2: from.cr2,
        cr3: from.cr3,
        cr4: from.cr4,
        cr8: from.cr8,
        efer: from.efer,
        apic_base: if from.apic_base == 0 { old.apic_base } else { from.apic_base },
        interrupt_bitmap: old.interrupt_bitmap,
    }
}

pub fn cpuid_from_kvm(from: &kvm_cpuid_entry2) -> CpuidEntry {
    CpuidEntry {
        leaf: from.function,
        subleaf: from.index,
        has_subleaf: from.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0,
        regs: [from.eax, from.ebx, from.ecx, from.edx],
    }
}

pub fn cpuid_to_kvm(from: &CpuidEntry) -> kvm_cpuid_entry2 {
    let [eax, ebx, ecx, edx] = from.regs;
    kvm_cpuid_entry2 {
        function: from.leaf,
        index: from.subleaf,
        flags: if from.has_subleaf { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 },
        eax,
        ebx,
        ecx,
        edx,
        ..Default::default()
    }
}

pub fn msr_from_kvm(from: &kvm_msr_entry) -> MsrEntry {
    MsrEntry { index: from.index, value: from.data }
}

pub fn msr_to_kvm(from: &MsrEntry) -> kvm_msr_entry {
    kvm_msr_entry { index: from.index, data: from.value, ..Default::default() }
}

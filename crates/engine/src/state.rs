//! Architectural state that crosses the contract. Field names follow KVM's structures.

/// General registers. `rflags` has bit 1 set on output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Regs {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15, in encoding order.
    pub gpr: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// Flags register.
    pub rflags: u64,
}

/// A segment register with its hidden part (Intel SDM vol. 3A §3.4.3 "Segment Registers").
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Segment {
    /// Base address.
    pub base: u64,
    /// Limit in bytes, granularity applied.
    pub limit: u32,
    /// Visible selector.
    pub selector: u16,
    /// Descriptor type, 4 bits.
    pub kind: u8,
    /// Present.
    pub present: bool,
    /// Descriptor privilege level, 0 to 3.
    pub dpl: u8,
    /// Default operation size (D/B).
    pub db: bool,
    /// Code or data (S), clear for system segments.
    pub s: bool,
    /// 64-bit code (L).
    pub l: bool,
    /// Granularity.
    pub g: bool,
    /// Available for software.
    pub avl: bool,
    /// Null selector was loaded: not usable for access.
    pub unusable: bool,
}

/// GDTR or IDTR.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DescriptorTable {
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u16,
}

/// Special registers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sregs {
    /// ES, CS, SS, DS, FS, GS, in encoding order.
    pub segments: [Segment; 6],
    /// Local descriptor table register.
    pub ldtr: Segment,
    /// Task register.
    pub tr: Segment,
    /// Global descriptor table.
    pub gdt: DescriptorTable,
    /// Interrupt descriptor table.
    pub idt: DescriptorTable,
    /// Control registers.
    pub cr0: u64,
    /// Page-fault linear address.
    pub cr2: u64,
    /// Page-table base and PCID.
    pub cr3: u64,
    /// Feature control.
    pub cr4: u64,
    /// Task priority, bits 3:0.
    pub cr8: u64,
    /// Extended feature enable register.
    pub efer: u64,
    /// IA32_APIC_BASE.
    pub apic_base: u64,
}

/// One CPUID result (leaf and, where `has_subleaf`, sub-leaf).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CpuidEntry {
    /// EAX on input.
    pub leaf: u32,
    /// ECX on input.
    pub subleaf: u32,
    /// The result depends on ECX.
    pub has_subleaf: bool,
    /// EAX, EBX, ECX, EDX on output.
    pub regs: [u32; 4],
}

/// One model-specific register.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MsrEntry {
    /// Register number.
    pub index: u32,
    /// Value.
    pub value: u64,
}

/// Events in flight, as KVM_GET_VCPU_EVENTS has them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VcpuEvents {
    /// Interrupts are held off for one instruction (STI or MOV SS).
    pub interrupt_shadow: bool,
    /// An NMI waits.
    pub nmi_pending: bool,
    /// NMIs are blocked until IRET.
    pub nmi_masked: bool,
    /// The vCPU is in HLT.
    pub halted: bool,
    /// The vCPU waits for a start-up IPI.
    pub waiting_for_startup: bool,
    /// The vCPU is in system-management mode. Its SMBASE is MSR 0x9e.
    pub smm: bool,
    /// An SMI waits.
    pub smi_pending: bool,
    /// NMIs were blocked when the SMI came, and stay so after RSM.
    pub smm_inside_nmi: bool,
}

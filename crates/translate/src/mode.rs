//! The execution mode: everything that a translation depends on besides the code's bytes.

use crate::state::{flag, seg, CpuState};

/// Width of code or stack: 16, 32 or 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    /// 16 bits.
    W16,
    /// 32 bits.
    W32,
    /// 64 bits.
    W64,
}

impl Width {
    /// The number of bits.
    pub fn bits(self) -> u32 {
        match self {
            Self::W16 => 16,
            Self::W32 => 32,
            Self::W64 => 64,
        }
    }
}

/// Bits that say why a class of instructions traps (see [`Mode`]).
mod bit {
    pub const CODE_SHIFT: u32 = 0;
    pub const STACK_SHIFT: u32 = 2;
    pub const CPL_SHIFT: u32 = 4;
    pub const FLAT: u32 = 1 << 6;
    pub const AC: u32 = 1 << 7;
    pub const DF: u32 = 1 << 8;
    pub const STEP: u32 = 1 << 9;
    pub const EM: u32 = 1 << 10;
    pub const TS: u32 = 1 << 11;
    pub const SSE: u32 = 1 << 12;
    pub const AVX: u32 = 1 << 13;
    pub const AVX512: u32 = 1 << 14;
    pub const TSD: u32 = 1 << 15;
    pub const SMAP: u32 = 1 << 16;
    pub const STACK_FLAT: u32 = 1 << 17;
    pub const MP: u32 = 1 << 18;
    pub const PROTECTED: u32 = 1 << 19;
    pub const V86: u32 = 1 << 20;
    pub const CS_BASE: u32 = 1 << 21;
    pub const UNUSUAL_FLAGS: u32 = 1 << 22;
    pub const ALONE: u32 = 1 << 23;
    pub const ALIGNMENT: u32 = 1 << 24;
    pub const CS_LIMITED: u32 = 1 << 25;
    pub const FS_WHOLE: u32 = 1 << 26;
    pub const GS_WHOLE: u32 = 1 << 27;
    pub const WINDOWED: u32 = 1 << 28;
    pub const KERNEL_WINDOWS: u32 = 1 << 29;
    pub const BEYOND_64K: u32 = 1 << 31;
}

/// What a block's translation assumes of the processor's state; part of its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mode(pub u32);

fn width_bits(width: Width) -> u32 {
    match width {
        Width::W16 => 0,
        Width::W32 => 1,
        Width::W64 => 2,
    }
}

fn width_of(bits: u32) -> Width {
    match bits & 3 {
        0 => Width::W16,
        1 => Width::W32,
        _ => Width::W64,
    }
}

/// A segment that refuses no access: of 4 GiB, present, and writable expand-up data or the code segment.
fn whole(state: &CpuState, index: usize) -> bool {
    let segment = &state.segments[index];
    let kind_ok = index == seg::CS || segment.kind() & 0b1110 == 0b0010;
    segment.limit == u32::MAX && segment.present() && kind_ok
}

fn flat(state: &CpuState, index: usize) -> bool {
    state.segments[index].base == 0 && whole(state, index)
}

/// Whether an instruction pointer of `code` bits can be beyond the limit of CS.
fn limited_code(state: &CpuState, code: Width) -> bool {
    let limit = state.segments[seg::CS].limit;
    // Only a branch of 32 bits leads 16-bit code further; what runs on past 64 KiB is caught where it enters.
    limit != u32::MAX && (code != Width::W16 || limit != 0xffff)
}

/// Whether 16-bit code may lie beyond the first 64 KiB of its segment, as that of an SMI's handler may.
fn beyond_64k(state: &CpuState, code: Width) -> bool {
    code == Width::W16 && state.segments[seg::CS].limit > 0xffff
}

impl Mode {
    /// The mode that `state` is in.
    pub fn of(state: &CpuState) -> Self {
        use bit::*;
        let (code, stack) = Self::widths(state);
        let cpl = u32::from(if state.v86() { 3 } else { state.cpl() });
        let mut bits =
            (width_bits(code) << CODE_SHIFT) | (width_bits(stack) << STACK_SHIFT) | (cpl << CPL_SHIFT);
        let mut set = |condition: bool, mask: u32| {
            if condition {
                bits |= mask;
            }
        };
        if code != Width::W64 {
            let all = [seg::ES, seg::CS, seg::SS, seg::DS].iter().all(|&index| flat(state, index));
            set(all, FLAT);
            set(flat(state, seg::SS), STACK_FLAT);
            set(state.segments[seg::CS].base != 0, CS_BASE);
            set(limited_code(state, code), CS_LIMITED);
            set(beyond_64k(state, code), BEYOND_64K);
            set(whole(state, seg::FS), FS_WHOLE);
            set(whole(state, seg::GS), GS_WHOLE);
        } else {
            set(true, FLAT | STACK_FLAT);
        }
        let smap = state.cr4 & (1 << 21) != 0;
        set(smap, SMAP);
        set(state.rflags & flag::AC != 0, AC);
        set(state.rflags & flag::DF != 0, DF);
        set(state.rflags & flag::TF != 0 || state.dr[7] & 0xff != 0, STEP);
        set(state.cr0 & (1 << 2) != 0, EM);
        set(state.cr0 & (1 << 3) != 0, TS);
        set(state.cr0 & (1 << 1) != 0, MP);
        set(state.cr4 & (1 << 9) != 0, SSE);
        let xsave = state.cr4 & (1 << 18) != 0;
        set(xsave && state.xcr0 & 6 == 6, AVX);
        set(xsave && state.xcr0 & 0xe6 == 0xe6, AVX512);
        set(state.cr4 & (1 << 2) != 0, TSD);
        set(state.protected(), PROTECTED);
        set(state.v86(), V86);
        set(cpl == 3 && state.rflags & flag::AC != 0 && state.cr0 & (1 << 18) != 0, ALIGNMENT);
        set(state.rflags & (flag::IOPL | flag::NT | flag::VIF | flag::VIP) != 0, UNUSUAL_FLAGS);
        Self(bits)
    }

    /// This mode with RFLAGS.AC as given.
    #[must_use]
    pub fn with_access_override(self, on: bool) -> Self {
        if on {
            Self(self.0 | bit::AC)
        } else {
            Self(self.0 & !bit::AC)
        }
    }

    /// This mode with FS or GS, `index`, refusing no access or some.
    #[must_use]
    pub fn with_whole(self, index: usize, whole: bool) -> Self {
        let mask = if index == seg::FS { bit::FS_WHOLE } else { bit::GS_WHOLE };
        Self(if whole { self.0 | mask } else { self.0 & !mask })
    }

    /// RFLAGS.AC is set.
    pub fn access_override(self) -> bool {
        self.has(bit::AC)
    }

    fn widths(state: &CpuState) -> (Width, Width) {
        if state.code64() {
            return (Width::W64, Width::W64);
        }
        let pick = |big| if big { Width::W32 } else { Width::W16 };
        if state.v86() || !state.protected() {
            return (
                pick(state.segments[seg::CS].big() && !state.v86()),
                pick(state.segments[seg::SS].big()),
            );
        }
        (pick(state.segments[seg::CS].big()), pick(state.segments[seg::SS].big()))
    }

    fn has(self, mask: u32) -> bool {
        self.0 & mask != 0
    }

    /// Width of code: instruction pointer, default operand and address size.
    pub fn code(self) -> Width {
        width_of(self.0 >> bit::CODE_SHIFT)
    }
    /// Width of the stack pointer.
    pub fn stack(self) -> Width {
        width_of(self.0 >> bit::STACK_SHIFT)
    }
    /// Privilege level.
    pub fn cpl(self) -> u8 {
        ((self.0 >> bit::CPL_SHIFT) & 3) as u8
    }
    /// 64-bit code.
    pub fn is64(self) -> bool {
        self.code() == Width::W64
    }
    /// ES, CS, SS and DS have base 0 and no limit that matters.
    pub fn flat(self) -> bool {
        self.has(bit::FLAT)
    }
    /// SS is flat.
    pub fn stack_flat(self) -> bool {
        self.has(bit::STACK_FLAT)
    }
    /// Strings go downwards.
    pub fn backwards(self) -> bool {
        self.has(bit::DF)
    }
    /// One instruction at a time (TF or a debug register).
    pub fn single_step(self) -> bool {
        self.has(bit::STEP)
    }
    /// The mode at CPL 0 with clear flags that SYSCALL leads to from this one.
    #[must_use]
    pub fn kernel_side(self) -> Self {
        const FLAGS: u32 =
            bit::AC | bit::DF | bit::UNUSUAL_FLAGS | bit::ALIGNMENT | bit::ALONE | bit::WINDOWED;
        Self(self.0 & !(FLAGS | 3 << bit::CPL_SHIFT))
    }

    /// The mode at CPL 3 with the usual flags that SYSRETQ leads to from this one.
    #[must_use]
    pub fn user_side(self) -> Self {
        Self(self.kernel_side().0 | 3 << bit::CPL_SHIFT)
    }

    /// This mode at another privilege level, the rest as it is.
    #[must_use]
    pub fn at_level(self, cpl: u8) -> Self {
        Self(self.0 & !(3 << bit::CPL_SHIFT) | u32::from(cpl) << bit::CPL_SHIFT)
    }

    /// This mode for one instruction, after which the run loop has another look.
    #[must_use]
    pub fn alone(self) -> Self {
        Self(self.0 & !bit::WINDOWED | bit::ALONE)
    }

    /// This mode with accesses through memory windows (see `mmu::window`), if it is one that has them: 64-bit
    /// user code that checks nothing of its accesses.
    #[must_use]
    pub fn with_windows(self) -> Self {
        let plain = self.is64() && self.cpl() == 3 && !self.has(bit::STEP | bit::ALIGNMENT | bit::ALONE);
        Self(if plain { self.0 | bit::WINDOWED } else { self.0 })
    }

    /// This mode without memory windows.
    #[must_use]
    pub fn without_windows(self) -> Self {
        Self(self.0 & !bit::WINDOWED)
    }

    /// This mode, of a machine whose 64-bit kernel has memory windows. User code's differs, too, so that SYSCALL leads to
    /// the right one.
    #[must_use]
    pub fn with_kernel_windows(self) -> Self {
        Self(if self.is64() { self.0 | bit::KERNEL_WINDOWS } else { self.0 })
    }

    /// Whether code accesses kernel memory through windows: a 64-bit kernel's, but where it has set AC to touch user
    /// memory (SMAP), or its accesses are checked.
    pub fn kernel_windowed(self) -> bool {
        let plain = self.is64() && self.cpl() == 0 && !self.has(bit::STEP | bit::ALONE);
        let touches_user = self.has(bit::SMAP) && self.has(bit::AC);
        plain && self.has(bit::KERNEL_WINDOWS) && !touches_user
    }

    /// See [`Self::with_windows`].
    pub fn windowed(self) -> bool {
        self.has(bit::WINDOWED)
    }
    /// See [`Self::alone`]: such blocks are entered and left by the run loop only, and each access
    /// checks for itself.
    pub fn is_alone(self) -> bool {
        self.has(bit::ALONE)
    }
    /// Whether code of this mode stays at the linear address where it is, so that its translation may build on that:
    /// a 64-bit kernel's, and that of programs that run for long.
    pub fn stays(self) -> bool {
        let lasting = self.cpl() == 0 || self.windowed();
        self.is64() && lasting && !self.has(bit::STEP | bit::ALONE)
    }
    /// Misaligned accesses are #AC.
    pub fn checks_alignment(self) -> bool {
        self.has(bit::ALIGNMENT)
    }
    /// IOPL, NT, VIF or VIP is set.
    pub fn unusual_flags(self) -> bool {
        self.has(bit::UNUSUAL_FLAGS)
    }
    /// RDTSC is privileged.
    pub fn tsc_privileged(self) -> bool {
        self.has(bit::TSD) && self.cpl() != 0
    }
    /// CS has a base: RIP is not a linear address.
    pub fn code_based(self) -> bool {
        self.has(bit::CS_BASE)
    }
    /// The limit of CS says where code ends: each block is checked against it when it is entered.
    pub fn code_limited(self) -> bool {
        self.has(bit::CS_LIMITED)
    }
    /// 16-bit code whose instruction pointer may have more than 16 bits.
    pub fn beyond_64k(self) -> bool {
        self.has(bit::BEYOND_64K)
    }
    /// No access through segment register `index` is refused; outside 64-bit code.
    pub fn whole(self, index: usize) -> bool {
        match index {
            seg::FS => self.has(bit::FS_WHOLE),
            seg::GS => self.has(bit::GS_WHOLE),
            seg::CS => false,
            _ => self.flat(),
        }
    }
    /// Protected mode, and not virtual-8086 mode.
    pub fn protected(self) -> bool {
        self.has(bit::PROTECTED) && !self.has(bit::V86)
    }
    /// Virtual-8086 mode.
    pub fn v86(self) -> bool {
        self.has(bit::V86)
    }
    /// CR0.EM.
    pub fn emulate_fpu(self) -> bool {
        self.has(bit::EM)
    }
    /// CR0.TS.
    pub fn task_switched(self) -> bool {
        self.has(bit::TS)
    }
    /// CR0.MP.
    pub fn monitor_coprocessor(self) -> bool {
        self.has(bit::MP)
    }
    /// CR4.OSFXSR.
    pub fn sse(self) -> bool {
        self.has(bit::SSE)
    }
    /// CR4.OSXSAVE with SSE and AVX in XCR0.
    pub fn avx(self) -> bool {
        self.has(bit::AVX)
    }
    /// As `avx`, with the three AVX-512 components.
    pub fn avx512(self) -> bool {
        self.has(bit::AVX512)
    }

    /// Which software TLB serves data accesses: 0 user, 1 kernel, 2 kernel that may touch user pages,
    /// 3 (never filled, so that every access is seen) user with alignment checks.
    pub fn mmu_index(self) -> usize {
        if self.checks_alignment() {
            return 3;
        }
        match (self.cpl(), self.has(bit::SMAP) && !self.has(bit::AC)) {
            (3, _) => 0,
            (_, true) => 1,
            (_, false) => 2,
        }
    }

    /// What is added to a RIP of this mode to look for it in a jump cache: narrow code, whose RIP has 32
    /// bits, is told apart by its mode.
    pub fn jump_tag(self) -> u64 {
        if self.is64() {
            0
        } else {
            u64::from(self.0) << 32
        }
    }

    /// Which jump cache serves indirect branches, if any does.
    pub fn jump_cache(self) -> Option<usize> {
        if self.single_step() || self.has(bit::CS_BASE | bit::CS_LIMITED | bit::ALONE) {
            return None;
        }
        match (self.code(), self.cpl()) {
            (Width::W64, 3) => Some(0),
            (Width::W64, _) => Some(1 + usize::from(self.has(bit::AC))),
            (Width::W32, 3) => Some(3),
            (Width::W32, _) => Some(4 + usize::from(self.has(bit::AC))),
            (Width::W16, _) => None,
        }
    }
}

//! The GS base of the thread.

/// The GS base of this thread, put back when dropped.
pub(super) struct GsBase(u64);

impl GsBase {
    /// Make it `base`.
    pub(super) fn set(base: u64) -> Self {
        let old = arch_prctl_get();
        arch_prctl_set(base);
        Self(old)
    }
}

impl Drop for GsBase {
    fn drop(&mut self) {
        arch_prctl_set(self.0);
    }
}

fn has_fsgsbase() -> bool {
    const HWCAP2_FSGSBASE: u64 = 1 << 1;
    static KNOWN: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    // SAFETY: getauxval has no preconditions.
    *KNOWN.get_or_init(|| unsafe { libc::getauxval(libc::AT_HWCAP2) } & HWCAP2_FSGSBASE != 0)
}

fn arch_prctl_get() -> u64 {
    if has_fsgsbase() {
        let base: u64;
        // SAFETY: the kernel enables RDGSBASE for programs (checked above).
        unsafe { std::arch::asm!("rdgsbase {0}", out(reg) base, options(nomem, nostack)) };
        return base;
    }
    const ARCH_GET_GS: i32 = 0x1004;
    let mut base = 0u64;
    // SAFETY: writes one u64 to the address given.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_GET_GS, &mut base) };
    base
}

fn arch_prctl_set(base: u64) {
    if has_fsgsbase() {
        // SAFETY: as above; user space on x86-64 Linux does not use GS otherwise.
        unsafe { std::arch::asm!("wrgsbase {0}", in(reg) base, options(nomem, nostack)) };
        return;
    }
    const ARCH_SET_GS: i32 = 0x1001;
    // SAFETY: changes the GS base of this thread only.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, base) };
}

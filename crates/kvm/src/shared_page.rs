//! `struct kvm_run`: the memory that a vCPU shares with the kernel.

use kvm_bindings::{kvm_run, KVM_EXIT_IO_IN};
use kvm_ioctls::VcpuFd;
use std::sync::atomic::{AtomicU8, Ordering};

/// The mapped `struct kvm_run` of one vCPU, and the data pages behind it.
///
/// Only the thread that runs the vCPU may use it, except for [`SharedPage::set_immediate_exit`].
/// INVARIANT: it is not used after the `VcpuFd` that it came from is dropped (`Kicker::detach`).
#[derive(Debug, Clone, Copy)]
pub struct SharedPage {
    run: *mut kvm_run,
    /// Bytes mapped.
    size: usize,
}

// SAFETY: the mapping is memory that the kernel shares; see the type's INVARIANT, and
// `set_immediate_exit`, the only method that another thread calls, is atomic.
unsafe impl Send for SharedPage {}

/// A port access as the kernel describes it: `count` elements of `size` bytes at `offset`.
#[derive(Debug, Clone, Copy)]
pub struct PioExit {
    pub input: bool,
    pub port: u16,
    pub size: u8,
    pub count: u32,
    pub offset: u64,
}

/// An access to memory that no slot covers: 1 to 8 bytes.
#[derive(Debug, Clone, Copy)]
pub struct MmioExit {
    pub gpa: u64,
    pub len: u32,
    pub write: bool,
    pub offset: u64,
}

impl SharedPage {
    /// The page of `fd`, `size` bytes (`KVM_GET_VCPU_MMAP_SIZE`).
    pub fn new(fd: &mut VcpuFd, size: usize) -> Self {
        Self { run: fd.get_kvm_run(), size }
    }

    fn run(&self) -> &kvm_run {
        // SAFETY: the mapping lives (the type's INVARIANT), and the kernel writes to it only during
        // an ioctl of this thread.
        unsafe { &*self.run }
    }

    /// Make `KVM_RUN` return `EINTR` instead of executing guest code. Any thread.
    pub fn set_immediate_exit(&self, on: bool) {
        // SAFETY: the mapping lives (the type's INVARIANT, kept by the lock in `Kicker`).
        let cell = unsafe { AtomicU8::from_ptr(&raw mut (*self.run).immediate_exit) };
        cell.store(u8::from(on), Ordering::SeqCst);
    }

    /// Ask for an exit when the guest can take an interrupt.
    pub fn set_request_interrupt_window(&self, on: bool) {
        // SAFETY: the mapping lives; only this thread writes the field.
        unsafe { (*self.run).request_interrupt_window = u8::from(on) };
    }

    /// Why the last `KVM_RUN` returned: a `KVM_EXIT_*` number.
    pub fn exit_reason(&self) -> u32 {
        self.run().exit_reason
    }

    /// Whether the guest could take an interrupt when the last `KVM_RUN` returned.
    pub fn ready_for_interrupt(&self) -> bool {
        self.run().ready_for_interrupt_injection != 0 && self.run().if_flag != 0
    }

    /// The fields of `KVM_EXIT_IO`.
    pub fn pio(&self) -> PioExit {
        // SAFETY: plain integers, whatever the exit was.
        let io = unsafe { self.run().__bindgen_anon_1.io };
        PioExit {
            input: u32::from(io.direction) == KVM_EXIT_IO_IN,
            port: io.port,
            size: io.size,
            count: io.count,
            offset: io.data_offset,
        }
    }

    /// The fields of `KVM_EXIT_MMIO`.
    pub fn mmio(&self) -> MmioExit {
        // SAFETY: plain integers, whatever the exit was.
        let mmio = unsafe { self.run().__bindgen_anon_1.mmio };
        // SAFETY: only the address of the field is taken.
        let data = unsafe { &raw const (*self.run).__bindgen_anon_1.mmio.data };
        let offset = (data as usize - self.run as usize) as u64;
        MmioExit { gpa: mmio.phys_addr, len: mmio.len, write: mmio.is_write != 0, offset }
    }

    /// The hypercall number and its first four arguments (`KVM_EXIT_HYPERCALL`).
    pub fn hypercall(&self) -> (u64, [u64; 4]) {
        // SAFETY: plain integers, whatever the exit was.
        let call = unsafe { self.run().__bindgen_anon_1.hypercall };
        let [a, b, c, d, ..] = call.args;
        (call.nr, [a, b, c, d])
    }

    /// The type of `KVM_EXIT_SYSTEM_EVENT`.
    pub fn system_event(&self) -> u32 {
        // SAFETY: plain integers, whatever the exit was.
        unsafe { self.run().__bindgen_anon_1.system_event.type_ }
    }

    /// The sub-code of `KVM_EXIT_INTERNAL_ERROR`.
    pub fn suberror(&self) -> u32 {
        // SAFETY: plain integers, whatever the exit was.
        unsafe { self.run().__bindgen_anon_1.internal.suberror }
    }

    /// `size` (at most 8) bytes at `offset`, little-endian; all ones outside the mapping.
    pub fn load(&self, offset: u64, size: u8) -> u64 {
        let mut bytes = [0; 8];
        match self.data(offset, size) {
            // SAFETY: `data` checked the range; `bytes` has room for 8.
            Some(from) => unsafe {
                std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), size.into());
            },
            None => return u64::MAX,
        }
        u64::from_le_bytes(bytes)
    }

    /// Put the low `size` (at most 8) bytes of `value` at `offset`.
    pub fn store(&self, offset: u64, size: u8, value: u64) {
        if let Some(to) = self.data(offset, size) {
            // SAFETY: `data` checked the range.
            unsafe { std::ptr::copy_nonoverlapping(value.to_le_bytes().as_ptr(), to, size.into()) };
        }
    }

    fn data(&self, offset: u64, size: u8) -> Option<*mut u8> {
        let offset = usize::try_from(offset).ok()?;
        let inside = size <= 8 && offset.checked_add(size.into())? <= self.size;
        // SAFETY: inside the mapping.
        inside.then(|| unsafe { self.run.cast::<u8>().add(offset) })
    }
}

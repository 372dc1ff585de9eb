//! Why a vCPU stopped running guest code.

/// What the guest did that the machine outside the engine must carry out.
///
/// Reads (`PioIn`, `MmioRead`) are completed by [`crate::Vcpu::complete_read`]
/// before the next `run`; a run without completion delivers all ones, as an
/// undecoded bus does. Data of 1, 2, 4 or 8 bytes travels little-endian in the
/// low bytes of a `u64`. An engine splits larger or unaligned accesses, and
/// each element of a string instruction, into exits of these sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // the fields are described above
pub enum Exit {
    /// `in`: `size` is 1, 2 or 4.
    PioIn { port: u16, size: u8 },
    /// `out`: `size` is 1, 2 or 4.
    PioOut { port: u16, size: u8, data: u64 },
    /// A load from an address that no memslot covers.
    MmioRead { gpa: u64, size: u8 },
    /// A store to an address that no memslot, or a read-only one, covers.
    MmioWrite { gpa: u64, size: u8, data: u64 },
    /// `hlt` with no in-core interrupt controller (with one, the engine waits inside `run`).
    Hlt,
    /// `vmcall`/`vmmcall` that the engine does not answer itself.
    Hypercall { number: u64, args: [u64; 4] },
    /// Triple fault: the processor shut down. The machine resets or stops.
    Shutdown,
    /// [`crate::Kick::kick`] asked for it; no guest effect.
    Interrupted,
    /// The interrupt window that `request_interrupt_window` asked for is open.
    InterruptWindow,
    /// The guest wrote the reset register of an in-core device (code as in `docs/design`).
    SystemReset,
    /// The engine cannot continue; the machine must stop. A bug of ours or of the host.
    InternalError { code: u32 },
}

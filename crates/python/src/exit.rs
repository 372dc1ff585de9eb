//! `Exit`: why a vCPU's `run` returned.

use pyo3::prelude::*;
use sublet_engine::Exit;

const PIO_IN: u32 = 0;
const PIO_OUT: u32 = 1;
const MMIO_READ: u32 = 2;
const MMIO_WRITE: u32 = 3;
const HLT: u32 = 4;
const HYPERCALL: u32 = 5;
const SHUTDOWN: u32 = 6;
const INTERRUPTED: u32 = 7;
const INTERRUPT_WINDOW: u32 = 8;
const SYSTEM_RESET: u32 = 9;
const INTERNAL_ERROR: u32 = 10;

/// Add the class and the `EXIT_*` constants to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let reasons = [
        ("EXIT_PIO_IN", PIO_IN),
        ("EXIT_PIO_OUT", PIO_OUT),
        ("EXIT_MMIO_READ", MMIO_READ),
        ("EXIT_MMIO_WRITE", MMIO_WRITE),
        ("EXIT_HLT", HLT),
        ("EXIT_HYPERCALL", HYPERCALL),
        ("EXIT_SHUTDOWN", SHUTDOWN),
        ("EXIT_INTERRUPTED", INTERRUPTED),
        ("EXIT_INTERRUPT_WINDOW", INTERRUPT_WINDOW),
        ("EXIT_SYSTEM_RESET", SYSTEM_RESET),
        ("EXIT_INTERNAL_ERROR", INTERNAL_ERROR),
    ];
    for (name, reason) in reasons {
        module.add(name, reason)?;
    }
    module.add_class::<PyExit>()
}

/// One exit, flat so that Python reads plain fields; those that a reason does not use are 0.
#[pyclass(frozen, name = "Exit", module = "sublet.core._native", get_all)]
#[derive(Default)]
pub struct PyExit {
    /// One of the `EXIT_*` constants.
    reason: u32,
    /// I/O port.
    port: u16,
    /// Guest-physical address of MMIO.
    address: u64,
    /// Bytes: 1, 2, 4 or 8.
    size: u8,
    /// What was written; a hypercall's number; an internal error's code.
    data: u64,
    /// A hypercall's arguments.
    args: (u64, u64, u64, u64),
}

impl From<Exit> for PyExit {
    fn from(exit: Exit) -> Self {
        let plain = |reason| Self { reason, ..Self::default() };
        match exit {
            Exit::PioIn { port, size } => Self { port, size, ..plain(PIO_IN) },
            Exit::PioOut { port, size, data } => Self { port, size, data, ..plain(PIO_OUT) },
            Exit::MmioRead { gpa, size } => Self { address: gpa, size, ..plain(MMIO_READ) },
            Exit::MmioWrite { gpa, size, data } => Self { address: gpa, size, data, ..plain(MMIO_WRITE) },
            Exit::Hypercall { number, args: [a, b, c, d] } => {
                Self { data: number, args: (a, b, c, d), ..plain(HYPERCALL) }
            }
            Exit::Hlt => plain(HLT),
            Exit::Shutdown => plain(SHUTDOWN),
            Exit::Interrupted => plain(INTERRUPTED),
            Exit::InterruptWindow => plain(INTERRUPT_WINDOW),
            Exit::SystemReset => plain(SYSTEM_RESET),
            Exit::InternalError { code } => Self { data: code.into(), ..plain(INTERNAL_ERROR) },
        }
    }
}

#[pymethods]
impl PyExit {
    fn __repr__(&self) -> String {
        format!(
            "Exit(reason={}, port={:#x}, address={:#x}, size={}, data={:#x})",
            self.reason, self.port, self.address, self.size, self.data
        )
    }
}

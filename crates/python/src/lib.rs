//! The core's Python face: the extension module `sublet.core._native`.
//!
//! The only crate that names PyO3. It holds no behaviour: every class wraps one type of the engine
//! contract or of guest memory, errors are mapped once (`error`), and a panic of the core becomes
//! `InternalError`. `src/sublet/core/_native.pyi` is the reference; a test compares the two.

mod arguments;
mod block;
mod disk_copy;
mod engine;
mod error;
mod exit;
mod memory;
mod nat;
mod packet_queue;
mod sregs;
mod vcpu;
mod vm;
mod xts;

use pyo3::prelude::*;

/// The Rust core of sublet.
#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    error::register(module)?;
    exit::register(module)?;
    module.add_class::<memory::PyRamBlock>()?;
    module.add_class::<memory::PyGuestMemory>()?;
    module.add_class::<nat::PyNatEngine>()?;
    module.add_class::<block::PyInPlace>()?;
    module.add_function(wrap_pyfunction!(block::store_entries, module)?)?;
    module.add_function(wrap_pyfunction!(disk_copy::copy_pieces, module)?)?;
    module.add_class::<packet_queue::PyPacketQueue>()?;
    module.add_class::<xts::PyAesXts>()?;
    module.add_class::<engine::PyEngine>()?;
    module.add_class::<vm::PyVm>()?;
    module.add_class::<vcpu::PyVcpu>()?;
    module.add_function(wrap_pyfunction!(core_version, module)?)
}

/// Version of the core, equal to that of the Python package.
#[pyfunction]
fn core_version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

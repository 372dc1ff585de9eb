//! Errors and panics of the core as Python exceptions.

use pyo3::prelude::*;
use std::panic::{catch_unwind, AssertUnwindSafe};
use sublet_engine::EngineError;
use sublet_memory::MemoryError;

mod classes {
    //! Defined in `src/sublet/core/exceptions.py`, as subclasses of `sublet.errors`.
    use pyo3::import_exception;

    import_exception!(sublet.core.exceptions, NativeError);
    import_exception!(sublet.core.exceptions, InvalidError);
    import_exception!(sublet.core.exceptions, HostError);
    import_exception!(sublet.core.exceptions, UnsupportedError);
    import_exception!(sublet.core.exceptions, InternalError);
    import_exception!(sublet.core.exceptions, MemoryRangeError);
    import_exception!(sublet.core.exceptions, GuestFault);
}

pub use classes::{
    GuestFault, HostError, InternalError, InvalidError, MemoryRangeError, NativeError, UnsupportedError,
};

/// Add the exception classes to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    module.add("NativeError", py.get_type::<NativeError>())?;
    module.add("InvalidError", py.get_type::<InvalidError>())?;
    module.add("HostError", py.get_type::<HostError>())?;
    module.add("UnsupportedError", py.get_type::<UnsupportedError>())?;
    module.add("InternalError", py.get_type::<InternalError>())?;
    module.add("GuestFault", py.get_type::<GuestFault>())?;
    module.add("MemoryRangeError", py.get_type::<MemoryRangeError>())
}

/// Run an operation of the core; a panic becomes [`EngineError::Internal`] with its message.
///
/// # Errors
/// Those of `operation`, and `Internal` for a panic.
pub fn caught<T>(operation: impl FnOnce() -> sublet_engine::Result<T>) -> sublet_engine::Result<T> {
    match catch_unwind(AssertUnwindSafe(operation)) {
        Ok(result) => result,
        Err(payload) => Err(EngineError::Internal(format!("the core panicked: {}", panic_text(&*payload)))),
    }
}

fn panic_text(payload: &(dyn std::any::Any + Send)) -> &str {
    payload
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
}

/// [`caught`], with the error mapped for Python.
///
/// # Errors
/// As [`caught`].
pub fn guarded<T>(operation: impl FnOnce() -> sublet_engine::Result<T>) -> PyResult<T> {
    caught(operation).map_err(engine_error)
}

/// An engine's error as the Python exception of the same class.
pub fn engine_error(error: EngineError) -> PyErr {
    match error {
        EngineError::Invalid(text) => InvalidError::new_err(text),
        EngineError::Unsupported(text) => UnsupportedError::new_err(text),
        EngineError::Internal(text) => InternalError::new_err(text),
        EngineError::Host { errno, .. } => host_error(error.to_string(), errno),
    }
}

/// A memory error as the Python exception of the same class.
pub fn memory_error(error: MemoryError) -> PyErr {
    match error {
        MemoryError::OutOfRange { .. } => MemoryRangeError::new_err(error.to_string()),
        MemoryError::BadSlot(text) => InvalidError::new_err(text),
    }
}

/// `HostError` with its `errno`.
pub fn host_error(text: String, errno: i32) -> PyErr {
    HostError::new_err((text, errno))
}

//! Errors and panics of the core as Python exceptions.

use pyo3::create_exception;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use std::panic::{catch_unwind, AssertUnwindSafe};
use sublet_engine::EngineError;
use sublet_memory::MemoryError;

create_exception!(sublet.core._native, NativeError, PyException, "Base of what the core raises.");
create_exception!(
    sublet.core._native,
    InvalidError,
    NativeError,
    "The caller asked for something impossible."
);
create_exception!(sublet.core._native, HostError, NativeError, "The host refused; has `errno: int`.");
create_exception!(sublet.core._native, UnsupportedError, NativeError, "This engine or host cannot do it.");
create_exception!(sublet.core._native, InternalError, NativeError, "A bug of ours.");
create_exception!(sublet.core._native, MemoryRangeError, NativeError, "The guest-physical range is not RAM.");

/// Add the exception classes to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    module.add("NativeError", py.get_type::<NativeError>())?;
    module.add("InvalidError", py.get_type::<InvalidError>())?;
    module.add("HostError", py.get_type::<HostError>())?;
    module.add("UnsupportedError", py.get_type::<UnsupportedError>())?;
    module.add("InternalError", py.get_type::<InternalError>())?;
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

/// `HostError` with its `errno` set.
pub fn host_error(text: String, errno: i32) -> PyErr {
    Python::attach(|py| {
        let error = HostError::new_err(text);
        match error.value(py).setattr("errno", errno) {
            Ok(()) => error,
            Err(failure) => failure,
        }
    })
}

//! Python arguments as Rust values: byte buffers, and keywords checked against known names.

use crate::error::InvalidError;
use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

/// Call `each` with the bytes of a `bytes`, `bytearray` or contiguous `memoryview`.
///
/// # Errors
/// `TypeError` or `BufferError` for another object; `InvalidError` for one that is not contiguous.
pub fn with_bytes<T>(data: &Bound<'_, PyAny>, each: impl FnOnce(&[u8]) -> PyResult<T>) -> PyResult<T> {
    if let Ok(bytes) = data.cast::<PyBytes>() {
        return each(bytes.as_bytes());
    }
    let buffer = PyBuffer::<u8>::get(data)?;
    let bytes = buffer.as_slice_ptr().ok_or_else(not_contiguous)?;
    // SAFETY: the exported buffer keeps the storage in place, and `each` runs with the interpreter
    // held and calls nothing that could run Python code, so nothing stores to it meanwhile.
    each(unsafe { bytes.as_ref() })
}

/// As [`with_bytes`], for a writable buffer.
///
/// # Errors
/// As [`with_bytes`]; `InvalidError` for a read-only buffer too.
pub fn with_bytes_mut<T>(
    data: &Bound<'_, PyAny>,
    each: impl FnOnce(&mut [u8]) -> PyResult<T>,
) -> PyResult<T> {
    let buffer = PyBuffer::<u8>::get(data)?;
    let mut bytes = buffer.as_slice_ptr().filter(|_| !buffer.readonly()).ok_or_else(not_contiguous)?;
    // SAFETY: as in `with_bytes`, and the buffer is writable.
    each(unsafe { bytes.as_mut() })
}

fn not_contiguous() -> PyErr {
    InvalidError::new_err("the buffer must be contiguous bytes, and writable where it receives data")
}

/// Call `set` with the name and value of each keyword; `false` says that the name is unknown.
///
/// # Errors
/// `TypeError` naming the unknown keyword, and those of `set`.
pub fn each_keyword(
    keywords: Option<&Bound<'_, PyDict>>,
    mut set: impl FnMut(&str, &Bound<'_, PyAny>) -> PyResult<bool>,
) -> PyResult<()> {
    let Some(keywords) = keywords else { return Ok(()) };
    for (key, value) in keywords.iter() {
        let name: String = key.extract()?;
        if !set(&name, &value)? {
            let text = format!("unexpected keyword argument '{name}'");
            return Err(pyo3::exceptions::PyTypeError::new_err(text));
        }
    }
    Ok(())
}

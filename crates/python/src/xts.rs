//! `AesXts`: a cipher of `sublet_block`.

use crate::arguments::with_bytes;
use crate::error::{guarded, InvalidError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use sublet_block::xts::{AesXts, Direction, SECTOR};

/// AES in XTS mode, by sectors of 512 bytes.
#[pyclass(frozen, name = "AesXts", module = "sublet.core._native")]
pub struct PyAesXts {
    cipher: AesXts,
}

impl PyAesXts {
    fn crypt<'py>(
        &self,
        py: Python<'py>,
        sector: u64,
        data: &Bound<'_, PyAny>,
        direction: Direction,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let mut data = with_bytes(data, |bytes| Ok(bytes.to_vec()))?;
        if data.len() % SECTOR != 0 {
            return Err(InvalidError::new_err(format!("{} bytes are no whole sectors", data.len())));
        }
        py.detach(|| {
            guarded(|| {
                self.cipher.crypt(sector, &mut data, direction);
                Ok(())
            })
        })?;
        Ok(PyBytes::new(py, &data))
    }
}

#[pymethods]
impl PyAesXts {
    #[new]
    fn new(key: &[u8]) -> PyResult<Self> {
        let cipher = AesXts::new(key);
        let refused = || InvalidError::new_err(format!("a key of {} bytes: 32 or 64", key.len()));
        Ok(Self { cipher: cipher.ok_or_else(refused)? })
    }

    fn encrypt<'py>(
        &self,
        py: Python<'py>,
        sector: u64,
        data: &Bound<'_, PyAny>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        self.crypt(py, sector, data, Direction::Encrypt)
    }

    fn decrypt<'py>(
        &self,
        py: Python<'py>,
        sector: u64,
        data: &Bound<'_, PyAny>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        self.crypt(py, sector, data, Direction::Decrypt)
    }
}

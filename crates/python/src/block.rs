//! `InPlace`: what of a disk `sublet_block` reads and overwrites where it lies.

use crate::error::{guarded, InvalidError};
use crate::memory::PyGuestMemory;
use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use pyo3::Borrowed;
use std::sync::Arc;
use sublet_block::dma;
use sublet_block::in_place::{Direction, InPlace, Layout, PLACES};
use sublet_block::pieces::Pieces;
use sublet_block::table::{store, Table};
use sublet_block::virtio::{serve, Ring, Share};

/// The way past a disk's format to what stays where it is in a host file.
#[pyclass(frozen, name = "InPlace", module = "sublet.core._native")]
pub struct PyInPlace {
    places: Arc<InPlace>,
    writes: bool,
}

/// Size, descriptor table, available ring, used ring, indirect, next available, next used.
type RingRow = (u16, u64, u64, u64, bool, u16, u16);

/// A number of bytes; `None` for one that no disk has.
struct Count(Option<u64>);

impl<'py> FromPyObject<'_, 'py> for Count {
    type Error = PyErr;

    fn extract(number: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        Ok(Self(number.extract::<u64>().ok()))
    }
}

/// Memory of a buffer that the caller keeps exported while the interpreter is let go.
struct Bytes(*mut u8, usize);

// SAFETY: a buffer's memory may be used on any thread as long as it is exported.
unsafe impl Send for Bytes {}
// SAFETY: as above.
unsafe impl Sync for Bytes {}

impl PyInPlace {
    fn new(fd: Option<i32>, layout: Layout, size: u64, writable: bool) -> Self {
        Self { places: Arc::new(InPlace::new(fd, layout, size, writable)), writes: true }
    }

    /// Move bytes with the interpreter let go. Precondition: `bytes` is exported, or ours alone.
    fn transfer(&self, py: Python<'_>, offset: u64, bytes: &Bytes, direction: Direction) -> PyResult<bool> {
        if direction == Direction::ToDisk && !self.writes {
            return Ok(false);
        }
        let moved = || {
            let mut pieces = Pieces::default();
            pieces.push(bytes.0, bytes.1);
            // SAFETY: the precondition; Python code that changes the buffer meanwhile gets what it asked
            // for, one of both in each byte.
            Ok(unsafe { self.places.transfer(offset, bytes.1 as u64, &mut pieces, direction) })
        };
        py.detach(|| guarded(moved))
    }
}

fn exported(buffer: &PyBuffer<u8>, writable: bool) -> PyResult<Bytes> {
    if !buffer.is_c_contiguous() || (writable && buffer.readonly()) {
        return Err(InvalidError::new_err("the buffer must be contiguous, and writable to be filled"));
    }
    Ok(Bytes(buffer.buf_ptr().cast(), buffer.len_bytes()))
}

/// Refuse what is no table of 64-bit numbers.
fn check_table(table: &PyBuffer<u64>) -> PyResult<()> {
    let aligned = table.buf_ptr() as usize % align_of::<u64>() == 0;
    if table.is_c_contiguous() && !table.readonly() && aligned {
        return Ok(());
    }
    Err(InvalidError::new_err("a table must be a contiguous, writable array of 64-bit numbers"))
}

#[pymethods]
impl PyInPlace {
    #[staticmethod]
    fn flat(fd: Option<i32>, size: u64, writable: bool) -> Self {
        Self::new(fd, Layout::Flat, size, writable)
    }

    #[staticmethod]
    fn clusters(fd: Option<i32>, size: u64, bits: u32, extended: bool, writable: bool) -> PyResult<Self> {
        if !(9..=30).contains(&bits) {
            return Err(InvalidError::new_err(format!("clusters of 2^{bits} bytes")));
        }
        Ok(Self::new(fd, Layout::Clusters { bits, extended }, size, writable))
    }

    #[staticmethod]
    fn places(fd: Option<i32>, size: u64, bits: u32) -> PyResult<Self> {
        if !(9..=30).contains(&bits) {
            return Err(InvalidError::new_err(format!("clusters of 2^{bits} bytes")));
        }
        Ok(Self::new(fd, Layout::Places { bits }, size, false))
    }

    #[classattr]
    #[pyo3(name = "PLACES")]
    fn places_of_a_table() -> usize {
        PLACES
    }

    fn reads_only(&self) -> Self {
        Self { places: self.places.clone(), writes: false }
    }

    fn read<'py>(
        &self,
        py: Python<'py>,
        offset: Count,
        size: Count,
    ) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let (Some(offset), Some(size)) = (offset.0, size.0) else { return Ok(None) };
        if !self.places.contains(offset, size) {
            return Ok(None);
        }
        let mut found = false;
        let data = PyBytes::new_with(py, size as usize, |data| {
            let bytes = Bytes(data.as_mut_ptr(), data.len());
            found = self.transfer(py, offset, &bytes, Direction::FromDisk)?;
            Ok(())
        })?;
        Ok(found.then_some(data))
    }

    fn readinto(&self, py: Python<'_>, offset: Count, buffer: &Bound<'_, PyAny>) -> PyResult<bool> {
        let (Some(offset), Ok(buffer)) = (offset.0, PyBuffer::<u8>::get(buffer)) else {
            return Ok(false);
        };
        self.transfer(py, offset, &exported(&buffer, true)?, Direction::FromDisk)
    }

    fn write(&self, py: Python<'_>, offset: Count, data: &Bound<'_, PyAny>) -> PyResult<bool> {
        let Some(offset) = offset.0 else { return Ok(false) };
        if let Ok(bytes) = data.cast::<PyBytes>() {
            let bytes = bytes.as_bytes();
            let bytes = Bytes(bytes.as_ptr().cast_mut(), bytes.len());
            return self.transfer(py, offset, &bytes, Direction::ToDisk);
        }
        let Ok(buffer) = PyBuffer::<u8>::get(data) else { return Ok(false) };
        self.transfer(py, offset, &exported(&buffer, false)?, Direction::ToDisk)
    }

    fn resize(&self, size: u64) {
        self.places.resize(size);
    }

    fn set_writable(&self, writable: bool) {
        self.places.set_writable(writable);
    }

    fn attach(&self, index: u64, table: PyBuffer<u64>, own: bool) -> PyResult<()> {
        check_table(&table)?;
        let (entries, length) = (table.buf_ptr().cast(), table.item_count());
        // SAFETY: the exported buffer keeps the table where it is, and is the owner; `store_entries` is
        // how it is changed (`block/qcow2/tables.py`).
        self.places.attach(index, unsafe { Table::new(entries, length, own, Box::new(table)) });
        Ok(())
    }

    fn detach(&self, index: u64) {
        self.places.detach(index);
    }

    fn clear(&self) {
        self.places.clear();
    }

    fn take_used(&self, index: u64) -> bool {
        self.places.take_used(index)
    }

    fn enter(&self) {
        std::mem::forget(self.places.gate.enter_anyway());
    }

    fn leave(&self) {
        self.places.gate.leave();
    }

    #[getter]
    fn busy(&self) -> bool {
        !self.places.gate.is_empty()
    }

    fn shut(&self, py: Python<'_>) {
        py.detach(|| self.places.gate.shut());
    }

    fn open(&self) {
        self.places.gate.open();
    }

    #[pyo3(signature = (memory, ring, limit, *, wait = true))]
    fn serve(
        &self,
        py: Python<'_>,
        memory: &Bound<'_, PyAny>,
        ring: RingRow,
        limit: u16,
        wait: bool,
    ) -> PyResult<u16> {
        let Ok(memory) = memory.cast::<PyGuestMemory>() else { return Ok(0) };
        let memory = &memory.get().memory;
        let (size, desc_table, avail_ring, used_ring, indirect, next_avail, next_used) = ring;
        let ring = Ring { size, desc_table, avail_ring, used_ring, indirect, next_avail, next_used };
        let share = Share { limit, writes: self.writes, wait };
        py.detach(|| guarded(|| Ok(serve(memory, &ring, &self.places, share))))
    }

    fn transfer_segments(
        &self,
        py: Python<'_>,
        memory: &Bound<'_, PyAny>,
        offset: u64,
        segments: Vec<(u64, u64)>,
        to_disk: bool,
    ) -> PyResult<bool> {
        let Ok(memory) = memory.cast::<PyGuestMemory>() else { return Ok(false) };
        let memory = &memory.get().memory;
        let direction = if to_disk { Direction::ToDisk } else { Direction::FromDisk };
        if to_disk && !self.writes {
            return Ok(false);
        }
        py.detach(|| guarded(|| Ok(dma::transfer(&self.places, memory, offset, &segments, direction))))
    }
}

/// Change entries of a table that may be looked at meanwhile.
#[pyfunction]
pub fn store_entries(table: PyBuffer<u64>, start: usize, values: PyBuffer<u64>) -> PyResult<()> {
    check_table(&table)?;
    check_table(&values)?;
    let count = values.item_count();
    if start.checked_add(count).is_none_or(|end| end > table.item_count()) {
        return Err(InvalidError::new_err(format!("entries {start} and {count} more lie past the table")));
    }
    // SAFETY: both buffers are exported, contiguous and aligned, and the range was checked; the interpreter
    // is held, so nobody stores to either.
    unsafe {
        let values = std::slice::from_raw_parts(values.buf_ptr().cast::<u64>(), count);
        store(table.buf_ptr().cast::<u64>().add(start), values);
    }
    Ok(())
}

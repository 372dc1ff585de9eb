//! `RamBlock` and `GuestMemory`.

use crate::arguments::{with_bytes, with_bytes_mut};
use crate::error::{host_error, memory_error, MemoryRangeError};
use crate::packet_queue::PyPacketQueue;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use std::sync::Arc;
use sublet_memory::{GuestMemory, MemoryError, RamBlock, SMM_SPACE};
use sublet_virtio::{Placement, Positions};

/// Zero-filled host memory that backs guest RAM (a memfd).
#[pyclass(frozen, name = "RamBlock", module = "sublet.core._native")]
pub struct PyRamBlock {
    pub(crate) ram: Arc<RamBlock>,
}

#[pymethods]
impl PyRamBlock {
    #[new]
    fn new(size: u64) -> PyResult<Self> {
        match RamBlock::new(size) {
            Ok(ram) => Ok(Self { ram: Arc::new(ram) }),
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(22);
                Err(host_error(format!("cannot map {size} bytes of guest RAM: {error}"), errno))
            }
        }
    }

    #[getter]
    fn size(&self) -> u64 {
        self.ram.size()
    }

    fn fileno(&self) -> i32 {
        self.ram.fd()
    }
}

/// An address as devices may put it on the bus: those of the processors' system-management memory do not
/// exist for them.
///
/// # Errors
/// [`MemoryError::OutOfRange`].
pub(crate) fn bus_address(gpa: u64) -> Result<u64, MemoryError> {
    if gpa >= SMM_SPACE {
        return Err(MemoryError::OutOfRange { gpa, size: 1 });
    }
    Ok(gpa)
}

/// All RAM of one VM, by guest-physical address. Little-endian integers.
#[pyclass(frozen, name = "GuestMemory", module = "sublet.core._native")]
pub struct PyGuestMemory {
    pub(crate) memory: Arc<GuestMemory>,
}

/// Reads up to this size are allocated before their range is checked.
const UNCHECKED_READ: usize = 1 << 20;

impl PyGuestMemory {
    /// Refuse a size that no range of RAM can have, before allocating it.
    fn check_size(&self, gpa: u64, size: usize) -> PyResult<()> {
        let ram = || self.memory.slots().iter().map(|slot| slot.size).sum::<u64>();
        if size > UNCHECKED_READ && size as u64 > ram() {
            return Err(MemoryRangeError::new_err(format!(
                "guest memory at {gpa:#x}: {size} bytes are not RAM"
            )));
        }
        Ok(())
    }

    fn read_array<const N: usize>(&self, gpa: u64) -> PyResult<[u8; N]> {
        let mut data = [0; N];
        self.read_bytes(gpa, &mut data)?;
        Ok(data)
    }

    fn read_bytes(&self, gpa: u64, data: &mut [u8]) -> PyResult<()> {
        bus_address(gpa).and_then(|gpa| self.memory.read(gpa, data)).map_err(memory_error)
    }

    fn write_slice(&self, gpa: u64, data: &[u8]) -> PyResult<()> {
        bus_address(gpa).and_then(|gpa| self.memory.write(gpa, data)).map_err(memory_error)
    }
}

#[pymethods]
impl PyGuestMemory {
    /// RAM from address 0 on that is no machine's.
    #[staticmethod]
    fn alone(ram: &PyRamBlock) -> PyResult<Self> {
        let memory = GuestMemory::new();
        memory.set_memslot(0, 0, ram.ram.size(), ram.ram.clone(), 0, false, false).map_err(memory_error)?;
        Ok(Self { memory: Arc::new(memory) })
    }

    #[pyo3(signature = (size, desc_table, avail_ring, used_ring, event_idx, indirect, positions))]
    #[allow(clippy::too_many_arguments)]
    fn packet_queue(
        &self,
        size: u16,
        desc_table: u64,
        avail_ring: u64,
        used_ring: u64,
        event_idx: bool,
        indirect: bool,
        positions: (u16, u16, u16),
    ) -> PyResult<PyPacketQueue> {
        let at = Placement {
            size,
            descriptors: desc_table,
            available: avail_ring,
            used: used_ring,
            event_idx,
            indirect,
        };
        let (available, used, signalled) = positions;
        PyPacketQueue::place(self.memory.clone(), at, Positions { available, used, signalled })
    }

    fn read<'py>(&self, py: Python<'py>, gpa: u64, size: usize) -> PyResult<Bound<'py, PyBytes>> {
        self.check_size(gpa, size)?;
        PyBytes::new_with(py, size, |data| self.read_bytes(gpa, data))
    }

    fn write(&self, gpa: u64, data: &Bound<'_, PyAny>) -> PyResult<()> {
        with_bytes(data, |bytes| self.write_slice(gpa, bytes))
    }

    fn read_into(&self, gpa: u64, buffer: &Bound<'_, PyAny>) -> PyResult<()> {
        with_bytes_mut(buffer, |bytes| self.read_bytes(gpa, bytes))
    }

    fn gather<'py>(&self, py: Python<'py>, segments: Vec<(u64, usize)>) -> PyResult<Bound<'py, PyBytes>> {
        let size = segments.iter().fold(0usize, |total, &(_, length)| total.saturating_add(length));
        self.check_size(segments.first().map_or(0, |&(gpa, _)| gpa), size)?;
        PyBytes::new_with(py, size, |mut data| {
            for &(gpa, length) in &segments {
                let (part, rest) = std::mem::take(&mut data).split_at_mut(length);
                self.read_bytes(gpa, part)?;
                data = rest;
            }
            Ok(())
        })
    }

    fn scatter(&self, segments: Vec<(u64, usize)>, data: &Bound<'_, PyAny>) -> PyResult<usize> {
        with_bytes(data, |bytes| {
            let mut left = bytes;
            for &(gpa, length) in &segments {
                let (part, rest) = left.split_at(length.min(left.len()));
                self.write_slice(gpa, part)?;
                left = rest;
                if left.is_empty() {
                    break;
                }
            }
            Ok(bytes.len() - left.len())
        })
    }

    fn read_u16(&self, gpa: u64) -> PyResult<u16> {
        match bus_address(gpa).ok().and_then(|gpa| self.memory.load_u16(gpa)) {
            Some(value) => Ok(value),
            None => self.read_array(gpa).map(u16::from_le_bytes),
        }
    }

    fn read_u32(&self, gpa: u64) -> PyResult<u32> {
        match bus_address(gpa).ok().and_then(|gpa| self.memory.load_u32(gpa)) {
            Some(value) => Ok(value),
            None => self.read_array(gpa).map(u32::from_le_bytes),
        }
    }

    fn read_u64(&self, gpa: u64) -> PyResult<u64> {
        match bus_address(gpa).ok().and_then(|gpa| self.memory.load_u64(gpa)) {
            Some(value) => Ok(value),
            None => self.read_array(gpa).map(u64::from_le_bytes),
        }
    }

    fn write_u16(&self, gpa: u64, value: u16) -> PyResult<()> {
        self.write_slice(gpa, &value.to_le_bytes())
    }

    fn write_u32(&self, gpa: u64, value: u32) -> PyResult<()> {
        self.write_slice(gpa, &value.to_le_bytes())
    }

    fn write_u64(&self, gpa: u64, value: u64) -> PyResult<()> {
        self.write_slice(gpa, &value.to_le_bytes())
    }

    fn slots(&self) -> Vec<(u32, u64, u64, bool)> {
        self.memory.slots().iter().map(|slot| (slot.slot, slot.gpa, slot.size, slot.readonly)).collect()
    }
}

//! `PacketQueue`: a queue of a network card, of `sublet_virtio`.

use crate::error::{guarded, GuestFault};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PyDict, PyList};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use sublet_memory::GuestMemory;
use sublet_virtio::{Chain, Fault, Placement, Positions, Ring};

/// A virtqueue that carries packets. Its lock is never waited for with the interpreter held.
#[pyclass(frozen, name = "PacketQueue", module = "sublet.core._native")]
pub struct PyPacketQueue {
    ring: Mutex<Ring>,
}

fn at_fault(fault: Fault) -> PyErr {
    GuestFault::new_err(fault.0)
}

impl PyPacketQueue {
    /// The queue of a driver's.
    ///
    /// # Errors
    /// `GuestFault` when its parts cannot be there.
    pub fn place(memory: Arc<GuestMemory>, at: Placement, now: Positions) -> PyResult<Self> {
        Ring::new(memory, at, now).map(|ring| Self { ring: Mutex::new(ring) }).map_err(at_fault)
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Work on the queue without the interpreter.
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut Ring) -> Result<T, Fault> + Send,
    ) -> PyResult<T> {
        py.detach(|| guarded(|| Ok(work(&mut self.lock()))))?.map_err(at_fault)
    }
}

#[pymethods]
impl PyPacketQueue {
    fn put(
        &self,
        py: Python<'_>,
        packets: Vec<PyBackedBytes>,
        header_size: usize,
        merge: bool,
    ) -> PyResult<(usize, usize, u64, bool)> {
        let put = self.with(py, |ring| {
            let slices: Vec<&[u8]> = packets.iter().map(|packet| &**packet).collect();
            ring.put(&slices, header_size.min(12), merge)
        })?;
        Ok((put.done, put.too_large, put.bytes, put.interrupt))
    }

    fn take<'py>(
        &self,
        py: Python<'py>,
        limit: usize,
        budget: u64,
        least: usize,
        most: usize,
    ) -> PyResult<Bound<'py, PyList>> {
        let (chains, memory) =
            self.with(py, |ring| Ok((ring.take(limit, budget)?, ring.memory().clone())))?;
        let packets = PyList::empty(py);
        for chain in &chains {
            packets.append(packet(py, &memory, chain, least, most)?)?;
        }
        Ok(packets)
    }

    fn give_back(&self, py: Python<'_>, done: usize) -> PyResult<bool> {
        self.with(py, |ring| ring.give_back(done))
    }

    fn enable_notifications(&self, py: Python<'_>) -> PyResult<bool> {
        self.with(py, |ring| ring.enable_notifications())
    }

    fn disable_notifications(&self, py: Python<'_>) -> PyResult<()> {
        self.with(py, |ring| ring.disable_notifications())
    }

    fn save_state<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let now = self.with(py, |ring| Ok(ring.positions()))?;
        let state = PyDict::new(py);
        state.set_item("next_avail", now.available)?;
        state.set_item("next_used", now.used)?;
        state.set_item("signalled_used", now.signalled)?;
        Ok(state)
    }
}

/// What is in a buffer; `None` when it is shorter or longer than packets are.
fn packet<'py>(
    py: Python<'py>,
    memory: &GuestMemory,
    chain: &Chain,
    least: usize,
    most: usize,
) -> PyResult<Option<Bound<'py, PyBytes>>> {
    let size = chain.readable.iter().map(|&(_, length)| u64::from(length)).sum::<u64>();
    if size < least as u64 || size > most as u64 {
        return Ok(None);
    }
    let fill =
        |into: &mut [u8]| sublet_virtio::gather(&memory.view(), &chain.readable, into).map_err(at_fault);
    PyBytes::new_with(py, size as usize, fill).map(Some)
}

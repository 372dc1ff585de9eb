//! `Vm`: one virtual machine.

use crate::error::{guarded, memory_error};
use crate::memory::{bus_address, PyGuestMemory, PyRamBlock};
use crate::vcpu::PyVcpu;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use std::sync::Arc;
use sublet_engine::{Statistics, Vm};
use sublet_memory::{MemoryError, NewMemslot, SMM_SPACE};

/// One virtual machine.
#[pyclass(frozen, name = "Vm", module = "sublet.core._native")]
pub struct PyVm {
    vm: Arc<dyn Vm>,
}

impl PyVm {
    pub(crate) fn new(vm: Arc<dyn Vm>) -> Self {
        Self { vm }
    }
}

/// Do what waits for every vCPU that runs, without the interpreter lock: whoever wants to end a machine, or to
/// read a signal, can go on meanwhile.
fn wait_for_vcpus<T: Send>(
    py: Python<'_>,
    operation: impl FnOnce() -> sublet_engine::Result<T> + Send,
) -> PyResult<T> {
    py.detach(|| guarded(operation))
}

/// A memslot as Python gives it: slot, gpa, size, ram, ram_offset, readonly, smm.
type Placement<'py> = (u32, u64, u64, PyRef<'py, PyRamBlock>, u64, bool, bool);

fn new_memslot(placement: Placement<'_>) -> Result<NewMemslot, MemoryError> {
    let (slot, gpa, size, ram, ram_offset, readonly, smm) = placement;
    let gpa = bus_address(gpa)? | if smm { SMM_SPACE } else { 0 };
    Ok(NewMemslot { slot, gpa, size, ram: ram.ram.clone(), ram_offset, readonly, log_dirty: false })
}

#[pymethods]
impl PyVm {
    #[getter]
    fn memory(&self) -> PyGuestMemory {
        PyGuestMemory { memory: self.vm.memory().clone() }
    }

    #[pyo3(signature = (slot, gpa, size, ram, ram_offset=0, readonly=false, log_dirty=false, smm=false))]
    #[allow(clippy::too_many_arguments)] // the contract's signature
    fn set_memslot(
        &self,
        py: Python<'_>,
        slot: u32,
        gpa: u64,
        size: u64,
        ram: &PyRamBlock,
        ram_offset: u64,
        readonly: bool,
        log_dirty: bool,
        smm: bool,
    ) -> PyResult<()> {
        let memory = self.vm.memory();
        let gpa = bus_address(gpa).map_err(memory_error)? | if smm { SMM_SPACE } else { 0 };
        memory
            .set_memslot(slot, gpa, size, ram.ram.clone(), ram_offset, readonly, log_dirty)
            .map_err(memory_error)?;
        wait_for_vcpus(py, || self.vm.memslots_changed()).inspect_err(|_| memory.remove_memslot(slot))
    }

    fn remove_memslot(&self, py: Python<'_>, slot: u32) -> PyResult<()> {
        self.vm.memory().remove_memslot(slot);
        wait_for_vcpus(py, || self.vm.memslots_changed())
    }

    /// `new`: slot, gpa, size, ram, ram_offset, readonly, smm.
    fn change_memslots(&self, py: Python<'_>, gone: Vec<u32>, new: Vec<Placement<'_>>) -> PyResult<()> {
        let new = new.into_iter().map(new_memslot).collect::<Result<Vec<_>, _>>().map_err(memory_error)?;
        let memory = self.vm.memory();
        let numbers: Vec<u32> = new.iter().map(|new| new.slot).collect();
        memory.change_memslots(&gone, new).map_err(memory_error)?;
        wait_for_vcpus(py, || self.vm.memslots_changed()).inspect_err(|_| {
            // Removing cannot fail.
            let _ = memory.change_memslots(&numbers, Vec::new());
        })
    }

    fn has_smm(&self) -> bool {
        self.vm.has_smm()
    }

    fn set_smm_open(&self, py: Python<'_>, open: bool) -> PyResult<()> {
        wait_for_vcpus(py, || self.vm.set_smm_open(open))
    }

    fn set_a20(&self, py: Python<'_>, open: bool) -> PyResult<()> {
        wait_for_vcpus(py, || self.vm.set_a20(open))
    }

    fn take_dirty_log<'py>(&self, py: Python<'py>, slot: u32) -> PyResult<Bound<'py, PyBytes>> {
        let words = wait_for_vcpus(py, || self.vm.take_dirty_log(slot))?;
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        Ok(PyBytes::new(py, &bytes))
    }

    fn create_irqchip(&self) -> PyResult<()> {
        guarded(|| self.vm.create_irqchip())
    }

    fn add_platform_timers(&self) -> PyResult<()> {
        guarded(|| self.vm.add_platform_timers())
    }

    fn connect_legacy_timers(&self, connected: bool) -> PyResult<()> {
        guarded(|| self.vm.connect_legacy_timers(connected))
    }

    fn write_cmos(&self, bytes: Vec<(u8, u8)>) -> PyResult<()> {
        guarded(|| self.vm.write_cmos(&bytes))
    }

    fn read_cmos<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        Ok(PyBytes::new(py, &guarded(|| self.vm.read_cmos())?))
    }

    fn offer_port_data(&self, port: u16, data: Vec<u8>) {
        self.vm.read_ahead().offer(port, data);
    }

    fn take_back_port_data(&self, port: u16) -> usize {
        self.vm.read_ahead().take_back(port)
    }

    fn set_irq_line(&self, gsi: u32, level: bool) -> PyResult<()> {
        guarded(|| self.vm.set_irq_line(gsi, level))
    }

    fn signal_msi(&self, address: u64, data: u32) -> PyResult<()> {
        guarded(|| self.vm.signal_msi(address, data))
    }

    fn create_vcpu(&self, index: u32) -> PyResult<PyVcpu> {
        Ok(PyVcpu::new(guarded(|| self.vm.create_vcpu(index))?))
    }

    fn statistics(&self) -> PyResult<Statistics> {
        guarded(|| Ok(self.vm.statistics()))
    }
}

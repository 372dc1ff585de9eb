//! `Vcpu`: one virtual CPU.

use crate::arguments::each_keyword;
use crate::engine::{cpuid_entry, CpuidTuple};
use crate::error::{caught, engine_error, guarded};
use crate::exit::PyExit;
use crate::sregs;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use std::sync::{Arc, Mutex, TryLockError};
use sublet_engine::{EngineError, Kick, MsrEntry, ProfileSample, Regs, Result, Statistics, Vcpu, VcpuEvents};

/// Names of `Regs::gpr`, in its order.
const GPR_NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];

/// Address, page-table base, privilege level, in translated code, times.
type SampleTuple = (u64, u64, u8, bool, u64);

/// One virtual CPU. Any thread may call; while one is inside a call, another gets `InvalidError`,
/// except from `kick`, which never waits.
#[pyclass(frozen, name = "Vcpu", module = "sublet.core._native")]
pub struct PyVcpu {
    /// Held for the length of a call. Poisoned once the core has panicked: its state is then unknown.
    vcpu: Mutex<Box<dyn Vcpu>>,
    kicker: Arc<dyn Kick>,
}

impl PyVcpu {
    pub(crate) fn new(vcpu: Box<dyn Vcpu>) -> Self {
        let kicker = vcpu.kicker();
        Self { vcpu: Mutex::new(vcpu), kicker }
    }

    /// Use the vCPU if no other thread does.
    fn attempt<T>(&self, operation: impl FnOnce(&mut dyn Vcpu) -> Result<T>) -> Result<T> {
        caught(|| match self.vcpu.try_lock() {
            Ok(mut vcpu) => operation(vcpu.as_mut()),
            Err(TryLockError::WouldBlock) => {
                Err(EngineError::Invalid("the vCPU is in use by another thread; kick it first".into()))
            }
            Err(TryLockError::Poisoned(_)) => {
                Err(EngineError::Internal("the vCPU cannot go on after a panic of the core".into()))
            }
        })
    }

    fn call<T>(&self, operation: impl FnOnce(&mut dyn Vcpu) -> Result<T>) -> PyResult<T> {
        self.attempt(operation).map_err(engine_error)
    }
}

#[pymethods]
impl PyVcpu {
    fn run(&self, py: Python<'_>) -> PyResult<PyExit> {
        let exit = py.detach(|| self.attempt(|vcpu| vcpu.run()));
        exit.map(PyExit::from).map_err(engine_error)
    }

    fn complete_read(&self, data: u64) -> PyResult<()> {
        self.call(|vcpu| {
            vcpu.complete_read(data);
            Ok(())
        })
    }

    fn kick(&self) -> PyResult<()> {
        guarded(|| {
            self.kicker.kick();
            Ok(())
        })
    }

    fn get_regs<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let regs = self.call(|vcpu| vcpu.regs())?;
        let dict = PyDict::new(py);
        for (name, value) in GPR_NAMES.iter().zip(regs.gpr) {
            dict.set_item(name, value)?;
        }
        dict.set_item("rip", regs.rip)?;
        dict.set_item("rflags", regs.rflags)?;
        Ok(dict)
    }

    #[pyo3(signature = (**regs))]
    fn set_regs(&self, regs: Option<&Bound<'_, PyDict>>) -> PyResult<()> {
        let mut new = self.call(|vcpu| vcpu.regs())?;
        each_keyword(regs, |name, value| match reg_slot(&mut new, name) {
            Some(slot) => {
                *slot = value.extract()?;
                Ok(true)
            }
            None => Ok(false),
        })?;
        self.call(|vcpu| vcpu.set_regs(&new))
    }

    fn get_sregs<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        sregs::to_dict(py, &self.call(|vcpu| vcpu.sregs())?)
    }

    #[pyo3(signature = (**sregs))]
    fn set_sregs(&self, sregs: Option<&Bound<'_, PyDict>>) -> PyResult<()> {
        let mut new = self.call(|vcpu| vcpu.sregs())?;
        each_keyword(sregs, |name, value| sregs::set(&mut new, name, value))?;
        self.call(|vcpu| vcpu.set_sregs(&new))
    }

    fn get_xsave<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        Ok(PyBytes::new(py, &self.call(|vcpu| vcpu.xsave())?))
    }

    fn set_xsave(&self, area: &[u8]) -> PyResult<()> {
        self.call(|vcpu| vcpu.set_xsave(area))
    }

    fn get_msrs(&self, indices: Vec<u32>) -> PyResult<Vec<u64>> {
        let entries = self.call(|vcpu| vcpu.msrs(&indices))?;
        Ok(entries.iter().map(|entry| entry.value).collect())
    }

    fn set_msrs(&self, entries: Vec<(u32, u64)>) -> PyResult<()> {
        let entries: Vec<_> = entries.into_iter().map(|(index, value)| MsrEntry { index, value }).collect();
        self.call(|vcpu| vcpu.set_msrs(&entries))
    }

    fn get_debug_regs(&self) -> PyResult<(u64, u64, u64, u64, u64, u64)> {
        self.call(|vcpu| vcpu.debug_regs()).map(|regs| regs.into())
    }

    fn set_debug_regs(&self, regs: [u64; 6]) -> PyResult<()> {
        self.call(|vcpu| vcpu.set_debug_regs(&regs))
    }

    fn set_cpuid(&self, entries: Vec<CpuidTuple>) -> PyResult<()> {
        let entries: Vec<_> = entries.into_iter().map(cpuid_entry).collect();
        self.call(|vcpu| vcpu.set_cpuid(&entries))
    }

    fn get_events<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let mut events = self.call(|vcpu| vcpu.events())?;
        let dict = PyDict::new(py);
        for name in EVENT_NAMES {
            if let Some(slot) = event_slot(&mut events, name) {
                dict.set_item(name, *slot)?;
            }
        }
        Ok(dict)
    }

    #[pyo3(signature = (**events))]
    fn set_events(&self, events: Option<&Bound<'_, PyDict>>) -> PyResult<()> {
        let mut new = self.call(|vcpu| vcpu.events())?;
        each_keyword(events, |name, value| match event_slot(&mut new, name) {
            Some(slot) => {
                *slot = value.extract()?;
                Ok(true)
            }
            None => Ok(false),
        })?;
        self.call(|vcpu| vcpu.set_events(&new))
    }

    fn inject_interrupt(&self, vector: u8) -> PyResult<()> {
        self.call(|vcpu| vcpu.inject_interrupt(vector))
    }

    fn ready_for_interrupt(&self) -> PyResult<bool> {
        self.call(|vcpu| vcpu.ready_for_interrupt())
    }

    fn request_interrupt_window(&self, on: bool) -> PyResult<()> {
        self.call(|vcpu| vcpu.request_interrupt_window(on))
    }

    fn inject_nmi(&self) -> PyResult<()> {
        self.call(|vcpu| vcpu.inject_nmi())
    }

    fn start_profile(&self, hertz: u32) -> PyResult<()> {
        self.call(|vcpu| vcpu.start_profile(hertz))
    }

    fn take_profile(&self) -> PyResult<Vec<SampleTuple>> {
        let samples = self.call(|vcpu| vcpu.take_profile())?;
        let row =
            |sample: ProfileSample| (sample.rip, sample.cr3, sample.cpl, sample.translated, sample.count);
        Ok(samples.into_iter().map(row).collect())
    }

    fn statistics(&self) -> PyResult<Statistics> {
        self.call(|vcpu| Ok(vcpu.statistics()))
    }
}

fn reg_slot<'a>(regs: &'a mut Regs, name: &str) -> Option<&'a mut u64> {
    match name {
        "rip" => Some(&mut regs.rip),
        "rflags" => Some(&mut regs.rflags),
        _ => GPR_NAMES.iter().position(|known| *known == name).map(|index| &mut regs.gpr[index]),
    }
}

const EVENT_NAMES: [&str; 8] = [
    "interrupt_shadow",
    "nmi_pending",
    "nmi_masked",
    "halted",
    "waiting_for_startup",
    "smm",
    "smi_pending",
    "smm_inside_nmi",
];

fn event_slot<'a>(events: &'a mut VcpuEvents, name: &str) -> Option<&'a mut bool> {
    match name {
        "interrupt_shadow" => Some(&mut events.interrupt_shadow),
        "nmi_pending" => Some(&mut events.nmi_pending),
        "nmi_masked" => Some(&mut events.nmi_masked),
        "halted" => Some(&mut events.halted),
        "waiting_for_startup" => Some(&mut events.waiting_for_startup),
        "smm" => Some(&mut events.smm),
        "smi_pending" => Some(&mut events.smi_pending),
        "smm_inside_nmi" => Some(&mut events.smm_inside_nmi),
        _ => None,
    }
}

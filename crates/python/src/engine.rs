//! `Engine`: a way to execute guests on this host.

use crate::error::guarded;
use crate::vm::PyVm;
use pyo3::prelude::*;
use std::sync::Arc;
use sublet_engine::{CpuidEntry, Engine, EngineError};
use sublet_kvm::KvmEngine;
use sublet_translate::TranslateEngine;

/// One CPUID result: leaf, sub-leaf, whether the sub-leaf matters, EAX, EBX, ECX, EDX.
pub type CpuidTuple = (u32, u32, bool, u32, u32, u32, u32);

/// `"kvm"` or `"translate"`.
#[pyclass(frozen, name = "Engine", module = "sublet.core._native")]
pub struct PyEngine {
    engine: Arc<dyn Engine>,
}

fn open_engine(name: &str) -> sublet_engine::Result<Arc<dyn Engine>> {
    match name {
        "translate" => Ok(Arc::new(TranslateEngine::new()?)),
        "kvm" => Ok(Arc::new(KvmEngine::open()?)),
        _ => Err(EngineError::Invalid(format!("no engine is called {name:?}: kvm or translate"))),
    }
}

/// A contract entry as the tuple that Python sees.
fn cpuid_tuple(entry: &CpuidEntry) -> CpuidTuple {
    let [eax, ebx, ecx, edx] = entry.regs;
    (entry.leaf, entry.subleaf, entry.has_subleaf, eax, ebx, ecx, edx)
}

/// A tuple from Python as the contract's entry.
pub fn cpuid_entry(tuple: CpuidTuple) -> CpuidEntry {
    let (leaf, subleaf, has_subleaf, eax, ebx, ecx, edx) = tuple;
    CpuidEntry { leaf, subleaf, has_subleaf, regs: [eax, ebx, ecx, edx] }
}

#[pymethods]
impl PyEngine {
    #[new]
    fn new(name: &str) -> PyResult<Self> {
        Ok(Self { engine: guarded(|| open_engine(name))? })
    }

    #[getter]
    fn name(&self) -> &'static str {
        self.engine.name()
    }

    fn create_vm(&self) -> PyResult<PyVm> {
        Ok(PyVm::new(guarded(|| self.engine.create_vm())?))
    }

    fn supported_cpuid(&self) -> PyResult<Vec<CpuidTuple>> {
        let entries = guarded(|| self.engine.supported_cpuid())?;
        Ok(entries.iter().map(cpuid_tuple).collect())
    }
}

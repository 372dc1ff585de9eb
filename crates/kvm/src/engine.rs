//! `KvmEngine`: the kernel's device.

use crate::convert::{cpuid_from_kvm, SUPPORTED_CPUID_ENTRIES};
use crate::error::host;
use crate::kick;
use crate::vm::{read_tsc, KvmVm};
use kvm_ioctls::{Cap, Kvm};
use std::sync::Arc;
use sublet_engine::{CpuidEntry, Engine, EngineError, Result, Vm};
use sublet_irq::HostClock;

/// The API version that every kernel since 2.6.22 has (Linux Documentation/virt/kvm/api.rst §4.1).
const API_VERSION: i32 = 12;

/// What the engine cannot do without, and how to name it.
const REQUIRED: [(Cap, &str); 6] = [
    (Cap::UserMemory, "user memory"),
    (Cap::ImmediateExit, "immediate exit"),
    (Cap::ReadonlyMem, "read-only memory"),
    (Cap::Xsave, "XSAVE state"),
    (Cap::Xcrs, "XCR state"),
    (Cap::SignalMsi, "message-signalled interrupts"),
];

/// The KVM engine of this host.
#[derive(Debug)]
pub struct KvmEngine {
    kvm: Kvm,
}

impl KvmEngine {
    /// Open `/dev/kvm`.
    ///
    /// That it opens does not say that it runs a real kernel: see `sublet.engine.kvm_probe`.
    ///
    /// # Errors
    /// `Host` where the device is missing or not ours to open; `Unsupported` where it is too old.
    pub fn open() -> Result<Self> {
        let kvm = Kvm::new().map_err(host("opening /dev/kvm"))?;
        if kvm.get_api_version() != API_VERSION {
            return Err(EngineError::Unsupported("/dev/kvm does not speak version 12 of the API".into()));
        }
        if let Some((_, name)) = REQUIRED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
            return Err(EngineError::Unsupported(format!("this host's KVM lacks {name}")));
        }
        kick::install()?;
        HostClock::prepare(read_tsc);
        Ok(Self { kvm })
    }
}

impl Engine for KvmEngine {
    fn name(&self) -> &'static str {
        "kvm"
    }

    fn create_vm(&self) -> Result<Arc<dyn Vm>> {
        Ok(Arc::new(KvmVm::new(&self.kvm)?))
    }

    fn supported_cpuid(&self) -> Result<Vec<CpuidEntry>> {
        let supported =
            self.kvm.get_supported_cpuid(SUPPORTED_CPUID_ENTRIES).map_err(host("KVM_GET_SUPPORTED_CPUID"))?;
        Ok(supported.as_slice().iter().map(cpuid_from_kvm).collect())
    }
}

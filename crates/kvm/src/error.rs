//! Error numbers of the kernel as errors of the contract.

use sublet_engine::EngineError;

/// A refused ioctl, named by what was tried.
pub fn host(what: &str) -> impl FnOnce(kvm_ioctls::Error) -> EngineError + '_ {
    move |error| EngineError::Host { what: what.to_owned(), errno: error.errno() }
}

/// As [`host`], but `EINVAL` is the caller's fault.
pub fn refused(what: &str) -> impl FnOnce(kvm_ioctls::Error) -> EngineError + '_ {
    move |error| match error.errno() {
        libc::EINVAL => EngineError::Invalid(format!("{what}: KVM refuses these values")),
        _ => host(what)(error),
    }
}

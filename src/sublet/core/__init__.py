"""The only door to the Rust core.

Everything here is defined by the extension module ``_native`` (``_native.pyi`` is its reference);
other packages import it from here or, where they only run guests, from ``sublet.engine``.
"""

from __future__ import annotations

from sublet.core._native import (
    EXIT_HLT,
    EXIT_HYPERCALL,
    EXIT_INTERNAL_ERROR,
    EXIT_INTERRUPT_WINDOW,
    EXIT_INTERRUPTED,
    EXIT_MMIO_READ,
    EXIT_MMIO_WRITE,
    EXIT_PIO_IN,
    EXIT_PIO_OUT,
    EXIT_SHUTDOWN,
    EXIT_SYSTEM_RESET,
    Engine,
    Exit,
    GuestMemory,
    HostError,
    InPlace,
    InternalError,
    InvalidError,
    MemoryRangeError,
    NatEngine,
    NativeError,
    RamBlock,
    UnsupportedError,
    Vcpu,
    Vm,
    copy_pieces,
    core_version,
    store_entries,
)

__all__ = [
    "EXIT_HLT",
    "EXIT_HYPERCALL",
    "EXIT_INTERNAL_ERROR",
    "EXIT_INTERRUPTED",
    "EXIT_INTERRUPT_WINDOW",
    "EXIT_MMIO_READ",
    "EXIT_MMIO_WRITE",
    "EXIT_PIO_IN",
    "EXIT_PIO_OUT",
    "EXIT_SHUTDOWN",
    "EXIT_SYSTEM_RESET",
    "Engine",
    "Exit",
    "GuestMemory",
    "HostError",
    "InPlace",
    "InternalError",
    "InvalidError",
    "MemoryRangeError",
    "NatEngine",
    "NativeError",
    "RamBlock",
    "UnsupportedError",
    "Vcpu",
    "Vm",
    "copy_pieces",
    "core_version",
    "store_entries",
]

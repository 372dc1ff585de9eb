"""Fakes of every contract, for our tests and for those of whoever builds on sublet."""

from __future__ import annotations

from sublet.testing.block import RamDisk
from sublet.testing.clock import FakeClock
from sublet.testing.executor import InlineExecutor, ManualExecutor
from sublet.testing.interrupts import RecordingIrqLine, RecordingMsiSink
from sublet.testing.memory import FakeGuestMemory
from sublet.testing.net import FakeCard, FakeSink
from sublet.testing.pci import FakeAddressSpace, PciDriver
from sublet.testing.ram import FakeDeviceRam, FakeRamWindow
from sublet.testing.virtio import VirtioDriver
from sublet.testing.virtqueue import DriverQueue

__all__ = [
    "DriverQueue",
    "FakeAddressSpace",
    "FakeCard",
    "FakeClock",
    "FakeDeviceRam",
    "FakeGuestMemory",
    "FakeRamWindow",
    "FakeSink",
    "InlineExecutor",
    "ManualExecutor",
    "PciDriver",
    "RamDisk",
    "RecordingIrqLine",
    "RecordingMsiSink",
    "VirtioDriver",
]

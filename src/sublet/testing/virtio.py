"""A well-behaved virtio PCI driver, and a machine of one slot around a device.

Reference: virtio 1.2 §3.1.1 "Driver Requirements: Device Initialization".
"""

from __future__ import annotations

from sublet.core import GuestMemory, RamBlock
from sublet.devices.pci import IntxRouter, PciHost, Window
from sublet.devices.virtio import VirtioDevice, VirtioPci
from sublet.testing.interrupts import RecordingIrqLine, RecordingMsiSink
from sublet.testing.pci import FakeAddressSpace, PciDriver
from sublet.testing.virtqueue import DriverQueue

COMMON, ISR, DEVICE, NOTIFY = 0x0000, 0x1000, 0x2000, 0x3000
MSIX_CAPABILITY = 0x11
QUEUE_SPACE = 0x10000
MEMORY_SIZE = 1 << 20


class VirtioDriver:
    """A device in slot 1 of a fake machine, with the guest's side of it.

    ``memory`` is the machine's RAM; queue n lies at ``QUEUE_SPACE * (n + 1)`` and its buffers behind it.
    """

    def __init__(
        self, device: VirtioDevice, memory: GuestMemory | None = None, *, transitional: bool = False
    ) -> None:
        self.structures_bar = 4 if transitional else 0
        self.device = device
        self.memory = memory or GuestMemory.alone(RamBlock(MEMORY_SIZE))
        self.lines = [RecordingIrqLine() for _ in range(8)]
        self.msi = RecordingMsiSink()
        self.bus = FakeAddressSpace()
        self.host = PciHost(
            self.bus,
            IntxRouter(self.lines),
            memory32=Window(0xC000_0000, 0x1000_0000),
            memory64=Window(1 << 40, 1 << 30),
            io=Window(0xC000, 0x1000),
        )
        self.function = VirtioPci(device, self.memory, self.msi, transitional=transitional)
        self.host.plug(1, self.function)
        self.host.assign_bars()
        self.pci = PciDriver(self.host, self.bus, 1)
        self.pci.enable()
        self.queues: list[DriverQueue] = []

    @property
    def line(self) -> RecordingIrqLine:
        """The INTx line of the device: slot 1, INTA."""
        return self.lines[1]

    def read(self, offset: int, size: int) -> int:
        """Read BAR 0."""
        return self.pci.read(self.structures_bar, offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """Write BAR 0."""
        self.pci.write(self.structures_bar, offset, size, value)

    @property
    def status(self) -> int:
        """The device status field."""
        return self.read(COMMON + 20, 1)

    @status.setter
    def status(self, value: int) -> None:
        self.write(COMMON + 20, 1, value)

    @property
    def device_features(self) -> int:
        """What the device offers, 64 bits."""
        features = 0
        for word in range(2):
            self.write(COMMON + 0, 4, word)
            features |= self.read(COMMON + 4, 4) << (32 * word)
        return features

    def accept_features(self, features: int) -> None:
        """Write the driver's choice."""
        for word in range(2):
            self.write(COMMON + 8, 4, word)
            self.write(COMMON + 12, 4, features >> (32 * word) & 0xFFFF_FFFF)

    def start(self, features: int | None = None, *, msix: bool = False) -> None:
        """Go through initialization up to DRIVER_OK with ``features`` (all that are offered)."""
        self.status = 0
        self.status = 1
        self.status = 3
        self.accept_features(self.device_features if features is None else features)
        self.status = 11
        assert self.status == 11, "FEATURES_OK was not accepted"
        if msix:
            self.enable_msix()
        self.setup_queues()
        self.status = 15

    def setup_queues(self) -> None:
        """Lay out, describe and enable every queue."""
        self.queues = []
        for index in range(self.read(COMMON + 18, 2)):
            self.write(COMMON + 22, 2, index)
            self.memory.write(QUEUE_SPACE * (index + 1), bytes(QUEUE_SPACE))
            queue = DriverQueue(self.memory, QUEUE_SPACE * (index + 1), self.read(COMMON + 24, 2))
            parts = (queue.desc_table, queue.avail_ring, queue.used_ring)
            for offset, address in zip((32, 40, 48), parts, strict=True):
                self.write(COMMON + offset, 4, address & 0xFFFF_FFFF)
                self.write(COMMON + offset + 4, 4, address >> 32)
            self.write(COMMON + 28, 2, 1)
            self.queues.append(queue)

    def enable_msix(self) -> None:
        """Vector 0 for configuration, n + 1 for queue n; vector v sends data 0x40 + v."""
        capability = dict(self.pci.capabilities())[MSIX_CAPABILITY]
        vectors = (self.pci.config_read(capability + 2, 2) & 0x7FF) + 1
        for vector in range(vectors):
            self.pci.write(2, 16 * vector, 4, 0xFEE0_0000)
            self.pci.write(2, 16 * vector + 8, 4, 0x40 + vector)
            self.pci.write(2, 16 * vector + 12, 4, 0)
        self.pci.config_write(capability + 2, 2, 0x8000)
        self.write(COMMON + 16, 2, 0)
        for index in range(vectors - 1):
            self.write(COMMON + 22, 2, index)
            self.write(COMMON + 26, 2, index + 1)

    def notify(self, index: int) -> None:
        """Tell the device that queue ``index`` has buffers."""
        self.write(NOTIFY + 4 * index, 2, index)

    def config(self, offset: int, size: int) -> int:
        """Read the device-specific configuration."""
        return self.read(DEVICE + offset, size)

    def put(self, queue: DriverQueue, data: bytes) -> tuple[int, int]:
        """A readable buffer with ``data``."""
        gpa = queue.alloc(len(data))
        self.memory.write(gpa, data)
        return gpa, len(data)

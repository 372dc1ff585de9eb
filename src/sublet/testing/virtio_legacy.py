"""A driver of virtio 0.9.5, which knows the ports of BAR 0 and nothing else.

Reference: virtio 1.2 §3.1.2 "Legacy Interface: Device Initialization".
"""

from __future__ import annotations

from sublet.devices.virtio import VirtioDevice
from sublet.testing.virtio import QUEUE_SPACE, VirtioDriver
from sublet.testing.virtqueue import DriverQueue

PAGE_SIZE = 4096


class LegacyVirtioDriver(VirtioDriver):
    """A transitional device in slot 1 of a fake machine; queue n lies at ``QUEUE_SPACE * (n + 1)``."""

    def __init__(self, device: VirtioDevice) -> None:
        super().__init__(device, transitional=True)
        self.port = self.pci.port(0)

    def input(self, offset: int, size: int) -> int:
        """Read BAR 0."""
        return self.bus.port_read(self.port + offset, size)

    def output(self, offset: int, size: int, value: int) -> None:
        """Write BAR 0."""
        self.bus.port_write(self.port + offset, size, value)

    @property
    def legacy_status(self) -> int:
        """The device status field."""
        return self.input(18, 1)

    @legacy_status.setter
    def legacy_status(self, value: int) -> None:
        self.output(18, 1, value)

    def start_legacy(self, features: int | None = None, *, driver_ok: bool = True) -> None:
        """Go through initialization with ``features`` (all that are offered); queues up to the last."""
        self.legacy_status = 0
        self.legacy_status = 1
        self.legacy_status = 3
        self.output(4, 4, self.input(0, 4) if features is None else features)
        self.queues = []
        for index in range(len(self.device.queue_sizes)):
            self.output(14, 2, index)
            base = QUEUE_SPACE * (index + 1)
            self.memory.write(base, bytes(QUEUE_SPACE))
            queue = DriverQueue(self.memory, base, self.input(12, 2), alignment=PAGE_SIZE)
            self.output(8, 4, base // PAGE_SIZE)
            self.queues.append(queue)
        if driver_ok:
            self.legacy_status = 7

    def notify(self, index: int) -> None:
        """Tell the device that queue ``index`` has buffers."""
        self.output(16, 2, index)

    def config(self, offset: int, size: int) -> int:
        """Read the device-specific configuration; MSI-X is off."""
        return self.input(20 + offset, size)

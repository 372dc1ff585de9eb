"""virtio over PCI: the modern interface, and the identity of transitional functions.

BAR 0 (64-bit memory, 16 KiB) holds the four structures, BAR 2 (32-bit memory, 4 KiB) the MSI-X table. In
a transitional function they are BARs 4 and 1, and BAR 0 is the legacy interface (`legacy`). The structures:

    0x0000 common configuration    0x1000 ISR status
    0x2000 device configuration    0x3000 notifications, 4 bytes a queue

Reference: virtio 1.2 §4.1 "Virtio Over PCI Bus".
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sublet.devices.pci.device import Bar, BarKind, PciDevice
from sublet.devices.pci.msix import MsixTable
from sublet.devices.virtio.device import (
    F_EVENT_IDX,
    F_INDIRECT_DESC,
    F_VERSION_1,
    TRANSPORT_FEATURES,
    VirtioDevice,
)
from sublet.devices.virtio.legacy import legacy_bar
from sublet.devices.virtio.queue import Virtqueue
from sublet.errors import GuestError
from sublet.hw import GuestMemory, MsiSink

VENDOR_ID = 0x1AF4
DEVICE_ID_BASE = 0x1040
TRANSITIONAL_DEVICE_IDS = {1: 0x1000, 2: 0x1001, 3: 0x1003, 4: 0x1005}
"""By device type (virtio 1.2 §4.1.2 "PCI Device Discovery"): network, block, console, entropy source."""
SUBSYSTEM_ID_BASE = 0x1100

BAR_INDEX, MSIX_BAR_INDEX = 0, 2
TRANSITIONAL_BAR_INDEX, TRANSITIONAL_MSIX_BAR_INDEX = 4, 1
BAR_SIZE = 0x4000
COMMON, ISR, DEVICE, NOTIFY = 0x0000, 0x1000, 0x2000, 0x3000
REGION_SIZE = 0x1000
NOTIFY_MULTIPLIER = 4

CAP_VENDOR = 0x09
CAP_COMMON_CFG, CAP_NOTIFY_CFG, CAP_ISR_CFG, CAP_DEVICE_CFG, CAP_PCI_CFG = 1, 2, 3, 4, 5

STATUS_ACKNOWLEDGE, STATUS_DRIVER, STATUS_DRIVER_OK, STATUS_FEATURES_OK = 1, 2, 4, 8
STATUS_NEEDS_RESET, STATUS_FAILED = 0x40, 0x80
ISR_QUEUE, ISR_CONFIG = 1, 2
NO_VECTOR = 0xFFFF


@dataclass(slots=True)
class QueueConfig:
    """What the driver set up for one queue."""

    size: int
    max_size: int
    vector: int = NO_VECTOR
    enabled: int = 0
    desc: int = 0
    driver: int = 0
    device: int = 0


class VirtioPci(PciDevice):
    """Makes a ``VirtioDevice`` a PCI function with one MSI-X vector a queue and one for configuration.

    Locks: ``registers`` guards the common configuration and is held while the device is activated or
    reset; ``_interrupts`` guards the ISR and may be taken with queue locks held, never before them.

    Bad input, by design: registers read wider than the field are zero, written with another width they
    ignore it; queues past the last read as size 0; the driver's illegal status changes are ignored.

    Args:
        device: What to expose.
        memory: Guest RAM, for the queues.
        msi: Receives MSI-X messages.
        transitional: Offer the legacy interface too, to drivers of virtio 0.9.5 and before.
    """

    status: int
    """What the driver wrote, without DEVICE_NEEDS_RESET."""
    driver_features: int
    queue_select: int
    config_vector: int

    def __init__(
        self, device: VirtioDevice, memory: GuestMemory, msi: MsiSink, *, transitional: bool = False
    ) -> None:
        kind = device.device_type
        super().__init__(
            vendor_id=VENDOR_ID,
            device_id=TRANSITIONAL_DEVICE_IDS[kind] if transitional else DEVICE_ID_BASE + kind,
            class_code=device.pci_class,
            revision=0 if transitional else 1,
            subsystem_vendor_id=VENDOR_ID,
            subsystem_id=kind if transitional else SUBSYSTEM_ID_BASE,
            interrupt_pin=1,
        )
        self.device = device
        device.transport = self
        self._memory = memory
        self.registers = threading.RLock()
        self._interrupts = threading.Lock()
        self._generation = 0
        self._isr = 0
        self._broken = False
        self._bar = TRANSITIONAL_BAR_INDEX if transitional else BAR_INDEX
        if transitional:
            self.add_bar(legacy_bar(self))
        self.add_bar(Bar(self._bar, BarKind.MEMORY64, BAR_SIZE, self))
        msix_bar = TRANSITIONAL_MSIX_BAR_INDEX if transitional else MSIX_BAR_INDEX
        self.msix = MsixTable(self, msix_bar, len(device.queue_sizes) + 1, msi)
        self._add_capabilities()
        self._set_initial_registers()

    def _add_capabilities(self) -> None:
        self._add_region(CAP_COMMON_CFG, COMMON, 64)
        self._add_region(CAP_NOTIFY_CFG, NOTIFY, REGION_SIZE, struct.pack("<I", NOTIFY_MULTIPLIER))
        self._add_region(CAP_ISR_CFG, ISR, 4)
        self._add_region(CAP_DEVICE_CFG, DEVICE, REGION_SIZE)
        body = struct.pack("<BBBxxxII4x", 20, CAP_PCI_CFG, 0, 0, 0)
        mask = struct.pack("<BBBxxxII4s", 0, 0, 0xFF, 0xFFFF_FFFF, 0xFFFF_FFFF, b"\xff" * 4)
        self._window_capability = self.config.add_capability(CAP_VENDOR, body, mask)

    def _add_region(self, kind: int, offset: int, length: int, extra: bytes = b"") -> None:
        """virtio 1.2 §4.1.4 ``struct virtio_pci_cap``, after its identifier and next pointer."""
        body = struct.pack("<BBBxxxII", 16 + len(extra), kind, self._bar, offset, length)
        self.config.add_capability(CAP_VENDOR, body + extra)

    def _set_initial_registers(self) -> None:
        self.status = 0
        self._device_feature_select = 0
        self._driver_feature_select = 0
        self.driver_features = 0
        self.config_vector = NO_VECTOR
        self.queue_select = 0
        self._queues = [QueueConfig(size, size) for size in self.device.queue_sizes]

    @property
    def offered_features(self) -> int:
        """All feature bits that the device and this transport offer."""
        return self.device.offered_features | TRANSPORT_FEATURES

    # The structures

    def mmio_read(self, offset: int, size: int) -> int:
        """Read one of the structures."""
        region, offset = offset & ~(REGION_SIZE - 1), offset & (REGION_SIZE - 1)
        if region == ISR:
            return self.read_isr() if offset == 0 else 0
        with self.registers:
            if region == COMMON:
                return self._read_common(offset, size)
            if region == DEVICE:
                return int.from_bytes(self.device.config()[offset : offset + size], "little")
        return 0

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        """Write one of the structures; the notification area is the hot one."""
        if offset >= NOTIFY:
            if self.status & STATUS_DRIVER_OK:
                self.device.notify((offset - NOTIFY) // NOTIFY_MULTIPLIER)
            return
        region, offset = offset & ~(REGION_SIZE - 1), offset & (REGION_SIZE - 1)
        with self.registers:
            if region == COMMON:
                self._write_common(offset, size, value)
            elif region == DEVICE:
                data = (value & ((1 << (8 * size)) - 1)).to_bytes(size, "little")
                self.device.write_config(offset, data)

    def read_isr(self) -> int:
        """Reading clears the status and releases the pin (virtio 1.2 §4.1.4.5)."""
        with self._interrupts:
            isr, self._isr = self._isr, 0
            self.set_intx(False)
            return isr

    def _read_common(self, offset: int, size: int) -> int:
        if size == 8 and offset in _QUEUE_ADDRESSES:
            return self._read_common(offset, 4) | self._read_common(offset + 4, 4) << 32
        entry = _COMMON_FIELDS.get(offset)
        if entry is None or entry.size < size:
            return 0
        # Quirk: iPXE reads the lower half alone of 32-bit fields, and means the whole.
        return entry.read(self) & ((1 << (8 * size)) - 1)

    def _write_common(self, offset: int, size: int, value: int) -> None:
        if size == 8 and offset in _QUEUE_ADDRESSES:
            self._write_common(offset, 4, value & 0xFFFF_FFFF)
            self._write_common(offset + 4, 4, value >> 32)
            return
        entry = _COMMON_FIELDS.get(offset)
        if entry is not None and entry.size == size and entry.write is not None:
            entry.write(self, value & ((1 << (8 * size)) - 1))

    # Common configuration fields (virtio 1.2 §4.1.4.3)

    def _read_device_feature(self) -> int:
        select = self._device_feature_select
        return self.offered_features >> (32 * select) & 0xFFFF_FFFF if select < 2 else 0

    def _read_driver_feature(self) -> int:
        select = self._driver_feature_select
        return self.driver_features >> (32 * select) & 0xFFFF_FFFF if select < 2 else 0

    def _write_driver_feature(self, value: int) -> None:
        if self._driver_feature_select > 1 or self.status & STATUS_FEATURES_OK:
            return
        shift = 32 * self._driver_feature_select
        self.driver_features = self.driver_features & ~(0xFFFF_FFFF << shift) | value << shift

    def _write_device_feature_select(self, value: int) -> None:
        self._device_feature_select = value

    def _write_driver_feature_select(self, value: int) -> None:
        self._driver_feature_select = value

    def _write_config_vector(self, value: int) -> None:
        self.config_vector = self.valid_vector(value)

    def valid_vector(self, value: int) -> int:
        """The vector, or the one that means none where there is no such."""
        return value if value < self.msix.vectors else NO_VECTOR

    def _read_status(self) -> int:
        return self.status | (STATUS_NEEDS_RESET if self._broken else 0)

    def _write_status(self, value: int) -> None:
        if value == 0:
            self.reset_device()
            return
        added = value & ~self.status & ~STATUS_NEEDS_RESET
        if added & STATUS_FEATURES_OK and not self._features_acceptable():
            # §2.2.2: the device "MUST NOT" accept FEATURES_OK for a set it does not support.
            added &= ~(STATUS_FEATURES_OK | STATUS_DRIVER_OK)
        if added & STATUS_DRIVER_OK and not (self.status | added) & STATUS_FEATURES_OK:
            added &= ~STATUS_DRIVER_OK
        self.status |= added
        if added & STATUS_DRIVER_OK:
            self.activate()

    def _features_acceptable(self) -> bool:
        unknown = self.driver_features & ~self.offered_features
        return not unknown and bool(self.driver_features & F_VERSION_1)

    def activate(self) -> None:
        """Have the device serve the queues that are enabled."""
        try:
            queues = [self._make_queue(queue) if queue.enabled else None for queue in self._queues]
        except GuestError as error:
            self.needs_reset(str(error))
            return
        self.device.activate(queues, self.driver_features)

    def _make_queue(self, config: QueueConfig) -> Virtqueue:
        return Virtqueue(
            self._memory,
            config.size,
            config.desc,
            config.driver,
            config.device,
            event_idx=bool(self.driver_features & F_EVENT_IDX),
            indirect=bool(self.driver_features & F_INDIRECT_DESC),
        )

    def reset_device(self) -> None:
        """What writing 0 to the status does. Precondition: ``registers`` is held."""
        self.device.reset()
        self._set_initial_registers()
        with self._interrupts:
            self._broken = False
            self._isr = 0
            self.set_intx(False)

    def _write_queue_select(self, value: int) -> None:
        self.queue_select = value

    def selected_queue(self) -> QueueConfig:
        """The selected queue; past the last, one of size 0 that takes no writes."""
        select = self.queue_select
        return self._queues[select] if select < len(self._queues) else QueueConfig(0, 0)

    def _writable_queue(self) -> QueueConfig:
        """The selected queue, or a throw-away one when the driver may not configure it any more."""
        queue = self.selected_queue()
        return QueueConfig(0, 0) if queue.enabled else queue

    def _write_queue_size(self, value: int) -> None:
        queue = self._writable_queue()
        if 0 < value <= queue.max_size and value & (value - 1) == 0:
            queue.size = value

    def _write_queue_vector(self, value: int) -> None:
        self.selected_queue().vector = self.valid_vector(value)

    def _write_queue_enable(self, value: int) -> None:
        # §4.1.4.3.2: the driver "MUST NOT write a 0"; queues cannot join after DRIVER_OK.
        if value == 1 and not self.status & STATUS_DRIVER_OK:
            self.selected_queue().enabled = 1

    def _read_notify_offset(self) -> int:
        return self.queue_select if self.queue_select < len(self._queues) else 0

    # Interrupts

    def queue_interrupt(self, index: int) -> None:
        """Tell the driver of used buffers, by MSI-X or the pin. Any thread."""
        if self.msix.enabled:
            self.msix.notify(self._queues[index].vector)
        else:
            self._raise_isr(ISR_QUEUE)

    def config_interrupt(self) -> None:
        """Tell the driver that the configuration changed. Any thread."""
        self._generation = (self._generation + 1) & 0xFF
        if not self.status & STATUS_DRIVER_OK:
            return
        if self.msix.enabled:
            self.msix.notify(self.config_vector)
        else:
            self._raise_isr(ISR_CONFIG)

    def needs_reset(self, reason: str) -> None:
        """Set DEVICE_NEEDS_RESET and send a configuration interrupt (virtio 1.2 §2.1.2). Any thread."""
        self._broken = True
        self.config_interrupt()

    def _raise_isr(self, bits: int) -> None:
        with self._interrupts:
            self._isr |= bits
            self.set_intx(True)

    # Configuration space

    def config_read(self, offset: int, size: int) -> int:
        """Reading the PCI configuration access window reads the BAR (virtio 1.2 §4.1.4.9)."""
        if self._in_window(offset):
            target = self._window_target()
            if target is not None:
                data = self.mmio_read(*target)
                self.config.set(self._window_capability + 16, 4, data & 0xFFFF_FFFF)
        return super().config_read(offset, size)

    def config_write(self, offset: int, size: int, value: int) -> None:
        """Writing the window writes the BAR; MSI-X control is looked at again."""
        super().config_write(offset, size, value)
        self.msix.config_written()
        if self._in_window(offset):
            target = self._window_target()
            if target is not None:
                data = self.config.get(self._window_capability + 16, target[1])
                self.mmio_write(*target, data)

    def _in_window(self, offset: int) -> bool:
        return 0 <= offset - (self._window_capability + 16) < 4

    def _window_target(self) -> tuple[int, int] | None:
        """(offset, size) in BAR 0 that the window names, if it is a legal access."""
        base = self._window_capability
        bar = self.config.get(base + 4, 1)
        offset, length = self.config.get(base + 8, 4), self.config.get(base + 12, 4)
        legal = bar == self._bar and length in (1, 2, 4) and offset % length == 0
        return (offset, length) if legal and offset + length <= BAR_SIZE else None

    # Lifecycle

    def reset(self) -> None:
        """Power-on state of device, transport and function."""
        with self.registers:
            self.reset_device()
            self.msix.reset()
            super().reset()

    def save_state(self) -> dict[str, Any]:
        """Everything the guest could observe. The machine is paused and no request is in flight."""
        with self.registers:
            state: dict[str, Any] = {
                name: getattr(self, attribute) for name, attribute in _STATE_FIELDS.items()
            }
            state["queues"] = [_queue_tuple(queue) for queue in self._queues]
            state["positions"] = self.device.queue_states()
            state["msix"] = self.msix.save_state()
            state["pci"] = super().save_state()
            state["device"] = self.device.save_state()
            return state

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``save_state`` on a device with the same queues."""
        with self.registers:
            self.reset_device()
            super().load_state(state["pci"])
            self.msix.load_state(state["msix"])
            for name, attribute in _STATE_FIELDS.items():
                setattr(self, attribute, state[name])
            self._queues = [QueueConfig(*values) for values in state["queues"]]
            self.device.load_state(state["device"])
            if self.status & STATUS_DRIVER_OK:
                self._reactivate(state["positions"])

    def _reactivate(self, positions: list[dict[str, Any] | None]) -> None:
        queues: list[Virtqueue | None] = []
        for config, position in zip(self._queues, positions, strict=True):
            queue = self._make_queue(config) if position is not None else None
            if queue is not None and position is not None:
                queue.load_state(position)
            queues.append(queue)
        self.device.activate(queues, self.driver_features)


def _queue_tuple(queue: QueueConfig) -> tuple[int, ...]:
    return (
        queue.size,
        queue.max_size,
        queue.vector,
        queue.enabled,
        queue.desc,
        queue.driver,
        queue.device,
    )


_STATE_FIELDS = {
    "status": "status",
    "device_feature_select": "_device_feature_select",
    "driver_feature_select": "_driver_feature_select",
    "driver_features": "driver_features",
    "config_vector": "config_vector",
    "queue_select": "queue_select",
    "generation": "_generation",
    "isr": "_isr",
    "broken": "_broken",
}
"""Names in a saved state, and the attributes that they are of."""


@dataclass(frozen=True, slots=True)
class _Field:
    """One field of the common configuration: width in bytes, and what reads and writes it."""

    size: int
    read: Callable[[VirtioPci], int]
    write: Callable[[VirtioPci, int], None] | None = None


def _address_field(name: str, high: bool) -> _Field:
    """Half of a 64-bit queue address, which drivers write as two 32-bit fields."""
    shift = 32 if high else 0
    keep = 0xFFFF_FFFF if high else 0xFFFF_FFFF << 32

    def read(transport: VirtioPci) -> int:
        return int(getattr(transport.selected_queue(), name)) >> shift & 0xFFFF_FFFF

    def write(transport: VirtioPci, value: int) -> None:
        queue = transport._writable_queue()
        setattr(queue, name, getattr(queue, name) & keep | value << shift)

    return _Field(4, read, write)


_QUEUE_ADDRESSES = (32, 40, 48)

_COMMON_FIELDS: dict[int, _Field] = {
    0: _Field(4, lambda t: t._device_feature_select, VirtioPci._write_device_feature_select),
    4: _Field(4, VirtioPci._read_device_feature),
    8: _Field(4, lambda t: t._driver_feature_select, VirtioPci._write_driver_feature_select),
    12: _Field(4, VirtioPci._read_driver_feature, VirtioPci._write_driver_feature),
    16: _Field(2, lambda t: t.config_vector, VirtioPci._write_config_vector),
    18: _Field(2, lambda t: len(t._queues)),
    20: _Field(1, VirtioPci._read_status, VirtioPci._write_status),
    21: _Field(1, lambda t: t._generation),
    22: _Field(2, lambda t: t.queue_select, VirtioPci._write_queue_select),
    24: _Field(2, lambda t: t.selected_queue().size, VirtioPci._write_queue_size),
    26: _Field(2, lambda t: t.selected_queue().vector, VirtioPci._write_queue_vector),
    28: _Field(2, lambda t: t.selected_queue().enabled, VirtioPci._write_queue_enable),
    30: _Field(2, VirtioPci._read_notify_offset),
    32: _address_field("desc", high=False),
    36: _address_field("desc", high=True),
    40: _address_field("driver", high=False),
    44: _address_field("driver", high=True),
    48: _address_field("device", high=False),
    52: _address_field("device", high=True),
}

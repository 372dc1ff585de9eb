"""The legacy interface of a transitional virtio function: drivers of virtio 0.9.5 and before.

BAR 0, ports. Fields are little-endian, as the guest is:

    0  device features      8  queue page        14  queue select    18  status
    4  driver features     12  queue size        16  queue notify    19  ISR status

then, while MSI-X is enabled, the vectors of configuration (20) and of the queue (22), then the
device-specific configuration. A queue is one run of pages: its parts follow each other, the used ring on a
page boundary. There is no FEATURES_OK, so features that are not offered are dropped in silence.

Reference: virtio 1.2 §4.1.4.10 "Legacy Interfaces: A Note on PCI Device Layout", §2.7.2 "Legacy Interfaces: A
Note on Virtqueue Layout", §3.1.2 "Legacy Interface: Device Initialization".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from sublet.devices.pci.device import Bar, BarKind

if TYPE_CHECKING:
    from sublet.devices.virtio.pci_transport import VirtioPci

F_ANY_LAYOUT: Final = 1 << 27
"""Requests may be cut into descriptors as the driver likes; part of VERSION_1 (virtio 1.2 §6.3)."""
PAGE_SIZE: Final = 4096

_STATUS_DRIVER, _STATUS_DRIVER_OK, _STATUS_WRITABLE = 0x02, 0x04, 0x87
_FEATURE_BITS: Final = 0xFFFF_FFFF
_NOTIFY: Final = 16
_VECTORS: Final = 20
_AFTER_VECTORS: Final = 24


class LegacyPorts:
    """What BAR 0 decodes. An access with another width than the field's reads as 0 and writes nothing."""

    def __init__(self, transport: VirtioPci) -> None:
        self._transport = transport

    def pio_read(self, offset: int, size: int) -> int:
        """Read the header or the device's configuration."""
        transport = self._transport
        with transport.registers:
            start = self._config_start()
            if offset >= start:
                data = transport.device.config()[offset - start : offset - start + size]
                return int.from_bytes(data, "little")
            field = _FIELDS.get(offset)
            return field.read(transport) if field is not None and field.size == size else 0

    def pio_write(self, offset: int, size: int, value: int) -> None:
        """Write the header or the device's configuration."""
        transport = self._transport
        value &= (1 << (8 * size)) - 1
        if offset == _NOTIFY:
            self._notify(value)
            return
        with transport.registers:
            start = self._config_start()
            if offset >= start:
                transport.device.write_config(offset - start, value.to_bytes(size, "little"))
                return
            field = _FIELDS.get(offset)
            if field is not None and field.size == size and field.write is not None:
                field.write(transport, value)

    def _notify(self, index: int) -> None:
        """Quirk: drivers before Linux 2.6.39 use their queues in their probe, before they set DRIVER_OK."""
        transport = self._transport
        if not transport.status & _STATUS_DRIVER_OK:
            with transport.registers:
                if transport.status & _STATUS_DRIVER:
                    _write_status(transport, transport.status | _STATUS_DRIVER_OK)
        if transport.status & _STATUS_DRIVER_OK:
            transport.device.notify(index)

    def _config_start(self) -> int:
        return _AFTER_VECTORS if self._transport.msix.enabled else _VECTORS


def legacy_bar(transport: VirtioPci) -> Bar:
    """BAR 0, large enough for the device's configuration."""
    size = _AFTER_VECTORS + len(transport.device.config())
    return Bar(0, BarKind.IO, 1 << (size - 1).bit_length(), LegacyPorts(transport))


def _offered(transport: VirtioPci) -> int:
    return transport.offered_features & _FEATURE_BITS | F_ANY_LAYOUT


def _write_features(transport: VirtioPci, value: int) -> None:
    if not transport.status & _STATUS_DRIVER_OK:
        transport.driver_features = value & _offered(transport)


def _write_queue_page(transport: VirtioPci, page: int) -> None:
    """Place the queue; page 0 takes it away, and with it a driver that runs, as by a reset."""
    queue = transport.selected_queue()
    if page == 0 and transport.status & _STATUS_DRIVER_OK:
        transport.reset_device()
    elif not transport.status & _STATUS_DRIVER_OK:
        queue.desc = page * PAGE_SIZE
        queue.driver = queue.desc + 16 * queue.size
        end = queue.driver + 6 + 2 * queue.size
        queue.device = (end + PAGE_SIZE - 1) // PAGE_SIZE * PAGE_SIZE
        queue.enabled = int(page != 0)


def _write_status(transport: VirtioPci, value: int) -> None:
    if value == 0:
        transport.reset_device()
        return
    started = value & ~transport.status & _STATUS_DRIVER_OK
    transport.status |= value & _STATUS_WRITABLE
    if started:
        transport.activate()


def _write_queue_select(transport: VirtioPci, value: int) -> None:
    transport.queue_select = value


def _write_vector(name: str) -> Callable[[VirtioPci, int], None]:
    def write(transport: VirtioPci, value: int) -> None:
        vector = transport.valid_vector(value)
        if name == "queue":
            transport.selected_queue().vector = vector
        else:
            transport.config_vector = vector

    return write


class _Field(NamedTuple):
    """One field: width in bytes, and what reads and writes it."""

    size: int
    read: Callable[[VirtioPci], int]
    write: Callable[[VirtioPci, int], None] | None = None


_FIELDS: Final[dict[int, _Field]] = {
    0: _Field(4, _offered),
    4: _Field(4, lambda t: t.driver_features & _FEATURE_BITS, _write_features),
    8: _Field(4, lambda t: t.selected_queue().desc // PAGE_SIZE & 0xFFFF_FFFF, _write_queue_page),
    12: _Field(2, lambda t: t.selected_queue().size),
    14: _Field(2, lambda t: t.queue_select, _write_queue_select),
    18: _Field(1, lambda t: t.status, _write_status),
    19: _Field(1, lambda t: t.read_isr()),
    20: _Field(2, lambda t: t.config_vector, _write_vector("config")),
    22: _Field(2, lambda t: t.selected_queue().vector, _write_vector("queue")),
}

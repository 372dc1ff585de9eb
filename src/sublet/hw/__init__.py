"""Contracts between devices and what surrounds them. No behaviour here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable


class PacketQueue(Protocol):
    """A network card's virtqueue, walked in the core; raises ``GuestError`` where the driver breaks a rule.

    The calls of one queue follow each other.
    """

    def put(self, packets: Sequence[bytes], header_size: int, merge: bool) -> tuple[int, int, int, bool]:
        """Lay packets into the driver's buffers, with the header cut to ``header_size`` (10 or 12).

        Returns:
            Packets done with, from the first on; those of them that no buffer had room for; bytes of the
            frames that were laid; whether the driver wants an interrupt. When fewer than all are done, it
            has been asked to notify of more buffers.
        """

    def take(self, limit: int, budget: int, least: int, most: int) -> list[bytes | None]:
        """Buffers of the driver, at most ``limit`` and of at most ``budget`` bytes together.

        None stands for one that has not ``least`` to ``most`` bytes.
        """

    def give_back(self, done: int) -> bool:
        """Return the first of the buffers taken last, and leave the others to be taken again.

        Returns:
            Whether the driver wants an interrupt.
        """

    def enable_notifications(self) -> bool:
        """Ask to be notified of the next buffer; whether there is one already."""

    def disable_notifications(self) -> None: ...
    def save_state(self) -> dict[str, Any]: ...


class GuestMemory(Protocol):
    """RAM by guest-physical address; raises ``GuestError`` outside RAM."""

    def read(self, gpa: int, size: int) -> bytes: ...
    def read_into(self, gpa: int, buffer: bytearray | memoryview) -> None: ...
    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None: ...
    def gather(self, segments: Sequence[tuple[int, int]]) -> bytes: ...
    def scatter(self, segments: Sequence[tuple[int, int]], data: bytes | bytearray | memoryview) -> int: ...
    def read_u16(self, gpa: int) -> int: ...
    def read_u32(self, gpa: int) -> int: ...
    def read_u64(self, gpa: int) -> int: ...
    def write_u16(self, gpa: int, value: int) -> None: ...
    def write_u32(self, gpa: int, value: int) -> None: ...
    def write_u64(self, gpa: int, value: int) -> None: ...
    def packet_queue(
        self,
        size: int,
        desc_table: int,
        avail_ring: int,
        used_ring: int,
        event_idx: bool,
        indirect: bool,
        positions: tuple[int, int, int],
    ) -> PacketQueue:
        """The queue at these addresses; ``positions``: next available, next used, last signalled used."""


class IrqLine(Protocol):
    """One interrupt line (a GSI). Callable from any thread."""

    def set_level(self, level: bool) -> None: ...


class MsiSink(Protocol):
    """Where message-signalled interrupts go. Callable from any thread."""

    def signal(self, address: int, data: int) -> None: ...


class PioDevice(Protocol):
    """Answers port I/O. ``offset`` is relative to the device's first port; sizes 1, 2, 4."""

    def pio_read(self, offset: int, size: int) -> int: ...
    def pio_write(self, offset: int, size: int, value: int) -> None: ...


class MmioDevice(Protocol):
    """Answers memory-mapped I/O. ``offset`` is relative to the region; sizes 1, 2, 4, 8."""

    def mmio_read(self, offset: int, size: int) -> int: ...
    def mmio_write(self, offset: int, size: int, value: int) -> None: ...


@runtime_checkable
class RamWindow(Protocol):
    """Where the guest reaches a piece of a device's own RAM without an exit: nowhere, or at one address."""

    def place(self, gpa: int, size: int, offset: int = 0) -> None:
        """Show ``size`` bytes from ``offset`` at ``gpa`` (all multiples of 4096), and nowhere else."""

    def withdraw(self) -> None:
        """Show it nowhere. Idempotent."""


class DeviceRam(Protocol):
    """RAM that belongs to a device: a framebuffer, a ROM. Zero-filled."""

    @property
    def buffer(self) -> memoryview:
        """Its bytes, writable by the device at any time, whether or not the guest sees them."""

    def window(self, *, readonly: bool = False) -> RamWindow:
        """One more place to show it; in a ``readonly`` one, the guest's stores reach the device instead."""


class Stateful(Protocol):
    """Every device saves and restores what the guest could observe."""

    def save_state(self) -> dict[str, Any]: ...
    def load_state(self, state: dict[str, Any]) -> None: ...
    def reset(self) -> None: ...


class Clock(Protocol):
    """Where time comes from; a test can stop it."""

    def now_ns(self) -> int: ...


class Executor(Protocol):
    """Runs a device's blocking work off the vCPU's thread; ``done`` is called on a worker."""

    def submit(self, work: Callable[[], None]) -> None: ...


class ReadAhead(Protocol):
    """Bytes behind a device's data port that the guest reads without the device: all but the last read.

    Any thread; the device takes back what is left before it looks at how far the guest has come.
    """

    def offer(self, data: bytes) -> None: ...
    def take_back(self) -> int: ...


class AddressSpace(Protocol):
    """Where PCI devices decode. Bases are guest-physical (MMIO) or port numbers (PIO).

    The caller never maps overlapping ranges and always unmaps with what it mapped with.
    Callable from any vCPU's thread.
    """

    def map_mmio(self, base: int, size: int, device: MmioDevice) -> None: ...
    def unmap_mmio(self, base: int, size: int, device: MmioDevice) -> None: ...
    def map_pio(self, base: int, size: int, device: PioDevice) -> None: ...
    def unmap_pio(self, base: int, size: int, device: PioDevice) -> None: ...

"""The bus-master half of an IDE channel: its registers and its table of memory regions.

Reference: Programming Interface for Bus Master IDE Controller 1.0 (SFF-8038i), May 1994.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from sublet.devices.storage.medium import PIECE, SECTOR
from sublet.devices.storage.regions import RegionWalk
from sublet.devices.storage.taskfile import Direction, Drive, Transfer
from sublet.hw import GuestMemory

COMMAND, STATUS, TABLE = 0, 2, 4
REGISTERS = 8
"""Ports a channel."""

CMD_START, CMD_TO_MEMORY = 0x01, 0x08
STATUS_ACTIVE, STATUS_ERROR, STATUS_INTERRUPT = 0x01, 0x02, 0x04
_STATUS_CAPABLE = 0x60

_ENTRY_SIZE = 8
_ENTRIES_MAXIMUM = 0x1_0000 // _ENTRY_SIZE
"""A table may not cross a boundary of 64 KiB, so no good one is longer."""
_LAST_ENTRY = 1 << 63


class RegionTable(RegionWalk):
    """Walks a physical region descriptor table as a transfer goes on.

    A table without a last entry ends after 8192 entries, whatever the guest has written there.

    Args:
        memory: Where the table lies.
        address: Its guest-physical address.
    """

    def __init__(self, memory: GuestMemory, address: int) -> None:
        super().__init__(memory, address)
        self._entries = 0
        self._last = False

    def _fetch(self) -> bool:
        if self._last or self._entries >= _ENTRIES_MAXIMUM:
            return False
        entry = self._memory.read_u64(self._next)
        self._next += _ENTRY_SIZE
        self._entries += 1
        self._base = entry & 0xFFFF_FFFE
        self._left = entry >> 32 & 0xFFFE or 0x1_0000
        self._last = bool(entry & _LAST_ENTRY)
        return True

    @property
    def used_up(self) -> bool:
        """Whether the last entry's last byte was taken."""
        return self._last and not self._left


class Regions(Protocol):
    """Memory that a transfer's bytes go to or come from, in order."""

    def take(self, size: int) -> Iterator[tuple[int, int]]:
        """Up to ``size`` bytes of it as (address, length); fewer at its end."""


class BusMaster:
    """The eight ports of one channel. Guarded by the channel's lock."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Stopped, nothing pending."""
        self.command = 0
        self.status = _STATUS_CAPABLE
        self.table = 0

    @property
    def started(self) -> bool:
        """Whether the host has set the start bit."""
        return bool(self.command & CMD_START)

    def read(self, offset: int) -> int:
        """One byte."""
        if offset == COMMAND:
            return self.command
        if offset == STATUS:
            return self.status
        return self.table >> 8 * (offset - TABLE) & 0xFF if offset >= TABLE else 0

    def write(self, offset: int, value: int) -> bool:
        """One byte; whether it set the start bit."""
        if offset == COMMAND:
            started = bool(value & ~self.command & CMD_START)
            self.command = value & (CMD_START | CMD_TO_MEMORY)
            self._set_active(started or (self.started and bool(self.status & STATUS_ACTIVE)))
            return started
        if offset == STATUS:
            self.status &= ~(value & (STATUS_ERROR | STATUS_INTERRUPT))
            self.status = self.status & ~_STATUS_CAPABLE | value & _STATUS_CAPABLE
        elif offset >= TABLE:
            shift = 8 * (offset - TABLE)
            self.table = (self.table & ~(0xFF << shift) | value << shift) & 0xFFFF_FFFC
        return False

    def _set_active(self, active: bool) -> None:
        self.status = self.status & ~STATUS_ACTIVE | (STATUS_ACTIVE if active else 0)

    def stop(self) -> None:
        """The table ran out, or the transfer failed."""
        self._set_active(False)

    def save_state(self) -> dict[str, Any]:
        """The registers."""
        return {"command": self.command, "status": self.status, "table": self.table}

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``save_state``."""
        self.command, self.status, self.table = state["command"], state["status"], state["table"]


def move_by_table(
    drive: Drive, transfer: Transfer, table: Regions, memory: GuestMemory, go_on: Callable[[], bool]
) -> None:
    """Move a transfer's bytes between drive and regions, as far as the table reaches and ``go_on`` agrees.

    Raises:
        AtaError: The drive failed.
        GuestError: A region, or the table, is not in RAM.
    """
    while transfer.left and go_on():
        wanted = min(PIECE, transfer.left)
        regions = list(table.take(wanted))
        size = sum(length for _, length in regions)
        to_host = transfer.direction is Direction.TO_HOST
        if (to_host or size % SECTOR == 0) and drive.move(transfer, transfer.done, memory, regions):
            pass
        elif to_host:
            _scatter(memory, regions, drive.read(transfer, transfer.done, size))
        else:
            if transfer.data is None:
                size -= size % SECTOR  # no drive writes a part of a sector
            drive.write(transfer, transfer.done, _gather(memory, regions)[:size])
        transfer.done += size
        if size < wanted:
            return


def _scatter(memory: GuestMemory, regions: list[tuple[int, int]], data: bytes) -> None:
    position = 0
    for address, length in regions:
        memory.write(address, data[position : position + length])
        position += length


def _gather(memory: GuestMemory, regions: list[tuple[int, int]]) -> bytes:
    return b"".join(memory.read(address, length) for address, length in regions)

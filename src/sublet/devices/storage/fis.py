"""Frames between a Serial ATA host port and its device, and the structures in memory that carry them.

Reference: Serial ATA 3.0 §10.3 "FIS types"; AHCI 1.3.1 §4.2 "HBA memory", §5.6 "Data transfer operation".
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from sublet.devices.storage.regions import RegionWalk
from sublet.devices.storage.taskfile import TaskFile
from sublet.hw import GuestMemory

HOST_TO_DEVICE, DEVICE_TO_HOST, SET_DEVICE_BITS, PIO_SETUP = 0x27, 0x34, 0xA1, 0x5F
IS_COMMAND = 0x80
CONTROL_SRST = 0x04
_INTERRUPT = 0x40

RECEIVED_PIO_SETUP, RECEIVED_D2H, RECEIVED_SET_BITS = 0x20, 0x40, 0x58
"""Where each lies in the area for received frames, 256 bytes."""

HEADER_SIZE = 32
_HEADER = struct.Struct("<IIQ16x")
_TABLE_PACKET, _TABLE_REGIONS = 0x40, 0x80
_REGION = struct.Struct("<Q4xI")
_REGION_SIZE_MASK = 0x3F_FFFF


@dataclass(frozen=True)
class CommandHeader:
    """One of the 32 slots of a command list."""

    address: int
    """Of the header itself."""
    flags: int
    regions: int
    """Entries of the region table."""
    table: int
    """Address of the command table."""

    @classmethod
    def fetch(cls, memory: GuestMemory, command_list: int, slot: int) -> CommandHeader:
        """Read a slot.

        Raises:
            GuestError: It is not in RAM.
        """
        address = command_list + HEADER_SIZE * slot
        flags, _, table = _HEADER.unpack(memory.read(address, HEADER_SIZE))
        return cls(address, flags & 0xFFFF, flags >> 16, table & ~0x7F)

    @property
    def clears_busy(self) -> bool:
        """Whether the command is over as soon as the device has the frame."""
        return bool(self.flags & 0x400)

    def frame(self, memory: GuestMemory) -> bytes:
        """The frame for the device, 20 bytes."""
        return memory.read(self.table, 20)

    def packet(self, memory: GuestMemory) -> bytes:
        """The packet of a PACKET command."""
        return memory.read(self.table + _TABLE_PACKET, 16)

    def report(self, memory: GuestMemory, size: int) -> None:
        """Say how many bytes have moved."""
        memory.write_u32(self.address + 4, size)


class CommandRegions(RegionWalk):
    """Walks a command's region table as its transfer goes on; it has at most 65535 entries.

    Args:
        memory: Where the table lies.
        header: Whose table.
    """

    def __init__(self, memory: GuestMemory, header: CommandHeader) -> None:
        super().__init__(memory, header.table + _TABLE_REGIONS)
        self._entries = header.regions

    def _fetch(self) -> bool:
        if not self._entries:
            return False
        self._base, size = _REGION.unpack(self._memory.read(self._next, _REGION.size))
        self._left = (size & _REGION_SIZE_MASK) + 1
        self._entries -= 1
        self._next += _REGION.size
        return True


def parse_command(frame: bytes) -> TaskFile:
    """The registers that a host-to-device frame sets."""
    return TaskFile(
        feature=frame[3] | frame[11] << 8,
        count=frame[12] | frame[13] << 8,
        lba=int.from_bytes(frame[4:7] + frame[8:11], "little"),
        device=frame[7],
        command=frame[2],
    )


def device_to_host(taskfile: TaskFile, *, interrupt: bool) -> bytes:
    """The registers as a command left them."""
    lba = taskfile.lba.to_bytes(6, "little")
    head = bytes((DEVICE_TO_HOST, _INTERRUPT if interrupt else 0, taskfile.status, taskfile.error))
    tail = taskfile.count.to_bytes(2, "little") + bytes(6)
    return head + lba[:3] + bytes((taskfile.device,)) + lba[3:] + b"\0" + tail


def pio_setup(taskfile: TaskFile, *, before: int, size: int, to_host: bool) -> bytes:
    """A PIO data phase: status ``before`` it, the task file's after it, bytes moved."""
    raw = bytearray(device_to_host(taskfile, interrupt=to_host))
    raw[0] = PIO_SETUP
    raw[1] |= 0x20 if to_host else 0
    raw[2] = before
    raw[15] = taskfile.status
    raw[16:18] = min(size, 0xFFFF).to_bytes(2, "little")
    return bytes(raw)


def set_device_bits(status: int, error: int, finished: int) -> bytes:
    """Queued commands, a bit each, that are over."""
    return bytes((SET_DEVICE_BITS, _INTERRUPT, status & 0x77, error)) + finished.to_bytes(4, "little")

"""What an ATA host port and a drive exchange: registers, transfers and the drive's contract.

A transfer is plain data, so that it can be saved in the middle. The ports (`ide_channel`, `ahci_port`) move
its bytes; the drive says what they are.

Reference: ATA/ATAPI-7 volume 1 §5 "I/O registers description".
"""

from __future__ import annotations

import enum
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from sublet.errors import GuestError
from sublet.hw import GuestMemory

# Registers of the command block; reading ERROR's port shows errors, writing it sets features.
DATA, ERROR, COUNT, LBA_LOW, LBA_MID, LBA_HIGH, DEVICE, STATUS = range(8)
_LBA_SHIFT = {LBA_LOW: 0, LBA_MID: 8, LBA_HIGH: 16}
_OLDER = 24
"""Distance in bits from an address byte to the one written before it."""

# Status register.
ERR, DRQ, DSC, DF, DRDY, BSY = 0x01, 0x08, 0x10, 0x20, 0x40, 0x80
# Error register.
ABRT, IDNF, UNC = 0x04, 0x10, 0x40

DEVICE_LBA = 0x40
DEVICE_SECOND = 0x10
READY = DRDY | DSC

# Interrupt reason of a packet device, in the count register.
REASON_COMMAND, REASON_TO_HOST = 0x01, 0x02


class AtaError(GuestError):
    """A command ends with ERR set.

    Args:
        error: The error register: ABRT, IDNF, UNC, or a sense key in the upper four bits.
        lba: First sector concerned, where there is one.
        shows_signature: Whether the registers show what a reset leaves in them.
    """

    def __init__(self, error: int, lba: int | None = None, *, shows_signature: bool = False) -> None:
        super().__init__(f"ATA command ended with error {error:#04x}")
        self.error = error
        self.lba = lba
        self.shows_signature = shows_signature


@dataclass(slots=True)
class TaskFile:
    """The registers of one drive; count and feature 16 bits, lba 48 bits, newest bytes lowest."""

    feature: int = 0
    count: int = 0
    lba: int = 0
    device: int = 0
    command: int = 0
    status: int = 0
    error: int = 0

    def shift_in(self, register: int, value: int) -> None:
        """Write ERROR to DEVICE, one byte; what a 16-bit one held becomes its older byte."""
        if register == ERROR:
            self.feature = (self.feature << 8 | value) & 0xFFFF
        elif register == COUNT:
            self.count = (self.count << 8 | value) & 0xFFFF
        elif register == DEVICE:
            self.device = value
        else:
            shift = _LBA_SHIFT[register]
            old = self.lba >> shift & 0xFF
            kept = self.lba & ~(0xFF << shift | 0xFF << shift + _OLDER)
            self.lba = kept | value << shift | old << shift + _OLDER

    def shown(self, register: int, *, older: bool) -> int:
        """Read ERROR to LBA_HIGH, one byte: the newest, or the one before it."""
        if register == ERROR:
            return self.error
        if register == COUNT:
            return self.count >> (8 if older else 0) & 0xFF
        return self.lba >> _LBA_SHIFT[register] + (_OLDER if older else 0) & 0xFF

    def put_lba(self, lba: int) -> None:
        """Name the sector where a command failed; registers in CHS stay as they are."""
        if self.device & DEVICE_LBA:
            self.lba = lba & (1 << 48) - 1
            self.device = self.device & 0xF0 | lba >> 24 & 15


class Direction(enum.IntEnum):
    """Who sends data."""

    NONE = 0
    TO_HOST = 1
    TO_DEVICE = 2


@dataclass(slots=True)
class Transfer:
    """One command under way."""

    taskfile: TaskFile
    """The registers as the command will leave them."""
    direction: Direction = Direction.NONE
    size: int = 0
    """Bytes in all."""
    block: int = 512
    """Bytes that PIO moves a data request."""
    dma: bool = False
    action: str = ""
    """What the drive does; the drive's own word."""
    offset: int = 0
    """Bytes from the start of the medium."""
    data: bytearray | None = None
    """The bytes themselves, where they are not the medium's."""
    blocks_host: bool = False
    """Whether the drive's ``finish`` does host work."""
    wants_packet: bool = False
    """The bytes are a command packet: they go to ``Drive.packet``."""
    packet: bool = False
    """The data phase of a packet command."""
    done: int = 0
    """Bytes moved so far."""

    @property
    def left(self) -> int:
        """Bytes still to be moved."""
        return self.size - self.done

    def save_state(self) -> dict[str, Any]:
        """Every field, as plain values."""
        state = asdict(self)
        state["direction"] = int(self.direction)
        state["data"] = None if self.data is None else bytes(self.data)
        return state

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Transfer:
        """Inverse of ``save_state``."""
        values = dict(state)
        values["taskfile"] = TaskFile(**values["taskfile"])
        values["direction"] = Direction(values["direction"])
        values["data"] = None if values["data"] is None else bytearray(values["data"])
        return cls(**values)


class Drive(Protocol):
    """A disk or a CD drive, whatever controller it hangs on.

    ``start``, ``packet`` and ``reset`` never block; ``read``, ``write`` and ``finish`` of a transfer with
    ``blocks_host`` may, and are called on a worker. All raise ``AtaError`` where the command fails.
    """

    signature: TaskFile
    """The registers after a reset."""

    def start(self, taskfile: TaskFile) -> Transfer:
        """Take a command; its bytes have not moved yet."""

    def packet(self, transfer: Transfer, packet: bytes) -> Transfer:
        """Take a command packet that PACKET asked for."""

    def read(self, transfer: Transfer, offset: int, size: int) -> bytes:
        """Bytes of the transfer for the host; ``offset`` counts from the transfer's start."""

    def write(self, transfer: Transfer, offset: int, data: bytes) -> None:
        """Bytes of the transfer from the host."""

    def move(
        self, transfer: Transfer, offset: int, memory: GuestMemory, segments: list[tuple[int, int]]
    ) -> bool:
        """Move bytes of the transfer without a stop here; False: ``read`` or ``write`` has to, all of them.

        Args:
            segments: Guest-physical address and bytes each; whole sectors in all for the disk.
        """

    def finish(self, transfer: Transfer) -> None:
        """All bytes have moved: carry the command out, and leave the registers in the task file."""

    def note_queue_error(self, tag: int, taskfile: TaskFile) -> None:
        """A queued command has failed: for the log that the host reads next."""

    def reset(self) -> None:
        """What a reset of the bus undoes."""

    def save_state(self) -> dict[str, Any]:
        """What the guest has set."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``save_state``."""

    def close(self) -> None:
        """Flush and close the medium. Idempotent."""


@dataclass(slots=True)
class Registers:
    """The registers of one drive as a host port shows them, and the drive."""

    drive: Drive
    taskfile: TaskFile = field(default_factory=TaskFile)

    def signature(self) -> None:
        """The state after a reset: the drive's signature tells what kind it is."""
        source = self.drive.signature
        self.taskfile = TaskFile(count=source.count, lba=source.lba, status=source.status, error=1)

    def save_state(self) -> dict[str, Any]:
        """The registers and the drive."""
        return {"taskfile": asdict(self.taskfile), "drive": self.drive.save_state()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``save_state``."""
        self.taskfile = TaskFile(**state["taskfile"])
        self.drive.load_state(state["drive"])

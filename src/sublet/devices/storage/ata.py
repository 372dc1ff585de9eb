"""An ATA disk: its commands, whatever controller they come through.

Reference: ATA8-ACS r6a §7 "Command descriptions"; ATA/ATAPI-5 §8 for CHS and the commands that went away.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sublet.block import BlockDevice
from sublet.devices.storage.identify import (
    MULTIPLE_MAXIMUM,
    DiskIdentity,
    Geometry,
    default_geometry,
    identify_disk,
)
from sublet.devices.storage.logs import QUEUE_ERROR_LOG, log_directory, no_queue_error, queue_error
from sublet.devices.storage.medium import SECTOR, Medium, Segment
from sublet.devices.storage.smart import SMART_SIGNATURE, smart_data, smart_thresholds
from sublet.devices.storage.taskfile import (
    ABRT,
    DEVICE_LBA,
    IDNF,
    READY,
    AtaError,
    Direction,
    TaskFile,
    Transfer,
)
from sublet.hw import GuestMemory

MODEL = "SUBLET DISK"
FIRMWARE = "1.0"

_LBA28_LIMIT = 1 << 28
_DIAGNOSTIC_PASSED = 1
_DSM_TRIM = 1
_DSM_BLOCKS_MAXIMUM = 8
_TRIM_ENTRY = struct.Struct("<Q")


@dataclass(frozen=True)
class _Access:
    """How a read or write command moves its sectors."""

    write: bool = False
    ext: bool = False
    dma: bool = False
    multiple: bool = False
    flush: bool = False


_ACCESSES = {
    0x20: _Access(),
    0x21: _Access(),
    0x24: _Access(ext=True),
    0x25: _Access(ext=True, dma=True),
    0x29: _Access(ext=True, multiple=True),
    0x30: _Access(write=True),
    0x31: _Access(write=True),
    0x34: _Access(write=True, ext=True),
    0x35: _Access(write=True, ext=True, dma=True),
    0x39: _Access(write=True, ext=True, multiple=True),
    0x3D: _Access(write=True, ext=True, dma=True, flush=True),
    0xC4: _Access(multiple=True),
    0xC5: _Access(write=True, multiple=True),
    0xC8: _Access(dma=True),
    0xC9: _Access(dma=True),
    0xCA: _Access(write=True, dma=True),
    0xCB: _Access(write=True, dma=True),
    0xCE: _Access(write=True, ext=True, multiple=True, flush=True),
}
READ_FPDMA, WRITE_FPDMA = 0x60, 0x61
"""Queued commands: only an AHCI port may pass them on."""


class AtaDisk:
    """One disk (`taskfile.Drive`).

    Bad input, by design: an unknown command, a write to a read-only image or a wrong feature value ends
    with ABRT; a sector past the end with IDNF and its address; a failing host with UNC. A transfer that
    starts inside the disk and would end outside moves nothing.

    Args:
        image: Served until ``close``.
        serial: Up to 20 ASCII characters.
        serial_ata: Whether it says that it is a Serial ATA disk, with queued commands.
    """

    signature = TaskFile(count=1, lba=1, status=READY)

    def __init__(
        self, image: BlockDevice, *, serial: str = "", model: str = MODEL, serial_ata: bool = False
    ) -> None:
        self._medium = Medium(image)
        self._serial = serial
        self._model = model
        self._serial_ata = serial_ata
        self._sectors = image.size // SECTOR
        self._handlers = self._make_handlers()
        self._default_geometry = default_geometry(self._sectors)
        self._power_on()

    def _power_on(self) -> None:
        self._geometry = self._default_geometry
        self._multiple = 0
        self._write_cache = True
        self._look_ahead = True
        self._transfer_mode = 0x0C
        self._standby = False
        self._queue_error = no_queue_error()

    @property
    def sectors(self) -> int:
        """Sectors of 512 bytes."""
        return self._sectors

    @property
    def geometry(self) -> Geometry:
        """Cylinders, heads and sectors a track as firmware reports them."""
        return self._default_geometry

    def _make_handlers(self) -> dict[int, Callable[[TaskFile], Transfer]]:
        handlers: dict[int, Callable[[TaskFile], Transfer]] = {
            0x06: self._data_set_management,
            0x2F: self._read_log,
            0x40: self._verify,
            0x41: self._verify,
            0x42: self._verify,
            0x91: self._initialize_parameters,
            0xB0: self._smart,
            0xC6: self._set_multiple,
            0xE5: self._check_power,
            0xE7: self._flush,
            0xEA: self._flush,
            0xEC: self._identify,
            0xEF: self._set_features,
            0x27: self._read_native_max,
            0xF8: self._read_native_max,
        }
        handlers |= dict.fromkeys((*range(0x10, 0x20), *range(0x70, 0x80)), self._nothing)
        handlers |= dict.fromkeys((0xE0, 0xE1, 0xE2, 0xE3, 0xE6), self._power_mode)
        handlers |= dict.fromkeys((READ_FPDMA, WRITE_FPDMA), self._queued)
        return handlers | dict.fromkeys(_ACCESSES, self._access)

    # The drive's contract

    def start(self, taskfile: TaskFile) -> Transfer:
        """See `taskfile.Drive`."""
        handler = self._handlers.get(taskfile.command)
        if handler is None:
            raise AtaError(ABRT)
        return handler(taskfile)

    def packet(self, transfer: Transfer, packet: bytes) -> Transfer:
        """No packets here."""
        raise AtaError(ABRT)

    def read(self, transfer: Transfer, offset: int, size: int) -> bytes:
        """See `taskfile.Drive`."""
        if transfer.data is not None:
            return bytes(transfer.data[offset : offset + size])
        return self._medium.read(transfer.offset + offset, size)

    def write(self, transfer: Transfer, offset: int, data: bytes) -> None:
        """See `taskfile.Drive`."""
        if transfer.data is not None:
            transfer.data[offset : offset + len(data)] = data
        else:
            self._medium.write(transfer.offset + offset, data)

    def move(self, transfer: Transfer, offset: int, memory: GuestMemory, segments: list[Segment]) -> bool:
        """See `taskfile.Drive`."""
        if transfer.data is not None:
            return False
        to_disk = transfer.direction is not Direction.TO_HOST
        return self._medium.move(memory, transfer.offset + offset, segments, to_disk=to_disk)

    def finish(self, transfer: Transfer) -> None:
        """See `taskfile.Drive`."""
        if transfer.action == "flush" or (transfer.action == "access" and transfer.blocks_host):
            self._medium.flush()
        elif transfer.action == "trim":
            self._trim(bytes(transfer.data or b""))
        elif transfer.action == "verify":
            self._medium.read(transfer.offset, SECTOR)

    def note_queue_error(self, tag: int, taskfile: TaskFile) -> None:
        """See `taskfile.Drive`."""
        self._queue_error = queue_error(tag, taskfile)

    def reset(self) -> None:
        """Settings that a software reset takes back."""
        self._multiple = 0
        self._standby = False

    def save_state(self) -> dict[str, Any]:
        """What SET FEATURES and its like have set."""
        geometry = self._geometry
        return {
            "geometry": [geometry.cylinders, geometry.heads, geometry.sectors],
            "multiple": self._multiple,
            "write_cache": self._write_cache,
            "look_ahead": self._look_ahead,
            "transfer_mode": self._transfer_mode,
            "standby": self._standby,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``save_state``."""
        self._geometry = Geometry(*state["geometry"])
        self._multiple = state["multiple"]
        self._write_cache = state["write_cache"]
        self._look_ahead = state["look_ahead"]
        self._transfer_mode = state["transfer_mode"]
        self._standby = state["standby"]

    def close(self) -> None:
        """Flush and close the image."""
        self._medium.close()

    # Addresses

    def _address(self, taskfile: TaskFile, *, ext: bool) -> int:
        """The first sector that the registers name."""
        if ext:
            return taskfile.lba
        low = taskfile.lba & 0xFF_FFFF
        if taskfile.device & DEVICE_LBA:
            return low | (taskfile.device & 15) << 24
        return self._chs_to_lba(low >> 8, taskfile.device & 15, low & 0xFF, low)

    def _chs_to_lba(self, cylinder: int, head: int, sector: int, low: int) -> int:
        geometry = self._geometry
        if not 1 <= sector <= geometry.sectors or head >= geometry.heads or cylinder >= geometry.cylinders:
            raise AtaError(IDNF)
        return (cylinder * geometry.heads + head) * geometry.sectors + sector - 1

    def _range(self, taskfile: TaskFile, *, ext: bool) -> tuple[int, int]:
        """(first sector, sectors) of a command, inside the disk."""
        count = taskfile.count or 0x1_0000 if ext else taskfile.count & 0xFF or 0x100
        lba = self._address(taskfile, ext=ext)
        self._check_range(lba, count)
        return lba, count

    def _check_range(self, lba: int, count: int) -> None:
        if lba + count > self._sectors:
            raise AtaError(IDNF, max(lba, self._sectors))

    # Reading and writing

    def _access(self, taskfile: TaskFile) -> Transfer:
        access = _ACCESSES[taskfile.command]
        if (access.write and self._medium.readonly) or (access.multiple and not self._multiple):
            raise AtaError(ABRT)
        lba, count = self._range(taskfile, ext=access.ext)
        self._standby = False
        return Transfer(
            taskfile,
            Direction.TO_DEVICE if access.write else Direction.TO_HOST,
            size=count * SECTOR,
            block=SECTOR * (self._multiple if access.multiple else 1),
            dma=access.dma,
            action="access",
            offset=lba * SECTOR,
            blocks_host=access.flush or (access.write and not self._write_cache),
        )

    def _queued(self, taskfile: TaskFile) -> Transfer:
        """READ and WRITE FPDMA QUEUED: the feature register has the count (ATA8-ACS §7.29, §7.78)."""
        write = taskfile.command == WRITE_FPDMA
        if not self._serial_ata or (write and self._medium.readonly):
            raise AtaError(ABRT)
        count = taskfile.feature or 0x1_0000
        self._check_range(taskfile.lba, count)
        flush = write and (bool(taskfile.device & 0x80) or not self._write_cache)
        return Transfer(
            taskfile,
            Direction.TO_DEVICE if write else Direction.TO_HOST,
            size=count * SECTOR,
            dma=True,
            action="access",
            offset=taskfile.lba * SECTOR,
            blocks_host=flush,
        )

    def _verify(self, taskfile: TaskFile) -> Transfer:
        lba, _ = self._range(taskfile, ext=taskfile.command == 0x42)
        return Transfer(taskfile, action="verify", offset=lba * SECTOR, blocks_host=True)

    def _flush(self, taskfile: TaskFile) -> Transfer:
        return Transfer(taskfile, action="flush", blocks_host=True)

    def _data_set_management(self, taskfile: TaskFile) -> Transfer:
        blocks = taskfile.count
        known = taskfile.feature & 0xFF == _DSM_TRIM and 0 < blocks <= _DSM_BLOCKS_MAXIMUM
        if not known or self._medium.readonly:
            raise AtaError(ABRT)
        size = blocks * SECTOR
        data = bytearray(size)
        return Transfer(
            taskfile, Direction.TO_DEVICE, size, dma=True, action="trim", data=data, blocks_host=True
        )

    def _trim(self, entries: bytes) -> None:
        """Entries of 48 bits of sector and 16 of count; all are checked before any is carried out."""
        values = [entry for (entry,) in _TRIM_ENTRY.iter_unpack(entries)]
        ranges = [(value & (1 << 48) - 1, value >> 48) for value in values if value >> 48]
        for lba, count in ranges:
            self._check_range(lba, count)
        for lba, count in ranges:
            self._medium.discard(lba * SECTOR, count * SECTOR)

    # What the disk says of itself

    def _data(self, taskfile: TaskFile, data: bytes) -> Transfer:
        return Transfer(taskfile, Direction.TO_HOST, len(data), data=bytearray(data))

    def _identify(self, taskfile: TaskFile) -> Transfer:
        identity = DiskIdentity(
            sectors=self._sectors,
            physical_block=max(4096, self._medium.block_size),
            serial=self._serial,
            model=self._model,
            firmware=FIRMWARE,
            readonly=self._medium.readonly,
            serial_ata=self._serial_ata,
            geometry=self._geometry,
            multiple=self._multiple,
            write_cache=self._write_cache,
            look_ahead=self._look_ahead,
            transfer_mode=self._transfer_mode,
        )
        return self._data(taskfile, identify_disk(identity))

    def _read_native_max(self, taskfile: TaskFile) -> Transfer:
        last = self._sectors - 1
        if taskfile.command == 0x27:
            taskfile.lba = last
            return Transfer(taskfile)
        last = min(last, _LBA28_LIMIT - 1)
        taskfile.lba = last & 0xFF_FFFF
        taskfile.device = taskfile.device & 0xF0 | last >> 24
        return Transfer(taskfile)

    def _read_log(self, taskfile: TaskFile) -> Transfer:
        """The directory of logs, and the one there is: the queued command that failed last."""
        log, page = taskfile.lba & 0xFF, taskfile.lba >> 8 & 0xFF | taskfile.lba >> 32 & 0xFF00
        if page or taskfile.count != 1 or log not in (0x00, QUEUE_ERROR_LOG):
            raise AtaError(ABRT)
        if log == 0:
            return self._data(taskfile, log_directory((QUEUE_ERROR_LOG,) if self._serial_ata else ()))
        content, self._queue_error = self._queue_error, no_queue_error()
        return self._data(taskfile, content)

    def _smart(self, taskfile: TaskFile) -> Transfer:
        """A disk that is well: status, data and thresholds without attributes."""
        if taskfile.lba >> 8 & 0xFFFF != SMART_SIGNATURE:
            raise AtaError(ABRT)
        subcommand = taskfile.feature & 0xFF
        if subcommand == 0xD0:
            return self._data(taskfile, smart_data())
        if subcommand == 0xD1:
            return self._data(taskfile, smart_thresholds())
        if subcommand in (0xD2, 0xD8, 0xD9, 0xDA):  # autosave, enable, disable, return status: no fault
            return Transfer(taskfile)
        raise AtaError(ABRT)

    # Settings

    def _nothing(self, taskfile: TaskFile) -> Transfer:
        """RECALIBRATE and SEEK: there are no heads to move."""
        return Transfer(taskfile)

    def _initialize_parameters(self, taskfile: TaskFile) -> Transfer:
        sectors, heads = taskfile.count & 0xFF, (taskfile.device & 15) + 1
        if not sectors:
            raise AtaError(ABRT)
        cylinders = max(1, min(0xFFFF, self._sectors // (heads * sectors)))
        self._geometry = Geometry(cylinders, heads, sectors)
        return Transfer(taskfile)

    def _set_multiple(self, taskfile: TaskFile) -> Transfer:
        sectors = taskfile.count & 0xFF
        if sectors > MULTIPLE_MAXIMUM or sectors & (sectors - 1):
            raise AtaError(ABRT)
        self._multiple = sectors
        return Transfer(taskfile)

    def _power_mode(self, taskfile: TaskFile) -> Transfer:
        self._standby = taskfile.command in (0xE0, 0xE2, 0xE6)
        return Transfer(taskfile, action="flush", blocks_host=True)

    def _check_power(self, taskfile: TaskFile) -> Transfer:
        taskfile.count = 0x00 if self._standby else 0xFF
        return Transfer(taskfile)

    def _set_features(self, taskfile: TaskFile) -> Transfer:
        subcommand, value = taskfile.feature & 0xFF, taskfile.count & 0xFF
        if subcommand == 0x03:
            self._set_transfer_mode(value)
        elif subcommand in (0x02, 0x82):
            self._write_cache = subcommand == 0x02
            return Transfer(taskfile, action="flush", blocks_host=not self._write_cache)
        elif subcommand in (0x55, 0xAA):
            self._look_ahead = subcommand == 0xAA
        elif subcommand not in (0x66, 0xCC):  # keep or drop settings at a reset
            raise AtaError(ABRT)
        return Transfer(taskfile)

    def _set_transfer_mode(self, mode: int) -> None:
        default, pio = mode in (0, 1), 8 <= mode <= 12
        if not (default or pio or 0x20 <= mode <= 0x22 or 0x40 <= mode <= 0x45):
            raise AtaError(ABRT)
        self._transfer_mode = 0x0C if default else mode

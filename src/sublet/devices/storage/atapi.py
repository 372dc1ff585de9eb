"""A CD drive on an ATA cable: PACKET and the few other commands such a device has.

Reference: ATA/ATAPI-7 volume 1 §6.24 "PACKET", §6.17 "IDENTIFY PACKET DEVICE"; SFF-8020i r2.6.
"""

from __future__ import annotations

from typing import Any

from sublet.block import BlockDevice
from sublet.devices.storage import cd_pages
from sublet.devices.storage.cd import PACKET_SIZE, CdDrive, Reply
from sublet.devices.storage.identify import identify_packet_device
from sublet.devices.storage.sense import CheckCondition
from sublet.devices.storage.taskfile import ABRT, AtaError, Direction, TaskFile, Transfer
from sublet.hw import GuestMemory

MODEL = "SUBLET CD-ROM"
FIRMWARE = "1.0"

_SIGNATURE_LBA = 0xEB1401
_PACKET, _IDENTIFY_PACKET = 0xA0, 0xA1
_FEATURE_DMA = 1
_BYTE_COUNT_MAXIMUM = 0xFFFE
_SHOWS_SIGNATURE = frozenset((0x20, 0x21, 0xEC))
"""IDENTIFY DEVICE and READ SECTORS are how hosts of old find out that this is not a disk."""
_NOTHING_TO_DO = frozenset((0xE0, 0xE1, 0xE2, 0xE3, 0xE6, 0xE7))


class AtapiCd:
    """One CD drive (`taskfile.Drive`).

    Args:
        image: The disc, or None; served until ``close``.
        serial: Up to 20 ASCII characters.
        serial_ata: Whether it says that it is a Serial ATA device.
    """

    signature = TaskFile(count=1, lba=1 | _SIGNATURE_LBA & 0xFFFF00, status=0)

    def __init__(self, image: BlockDevice | None, *, serial: str = "", serial_ata: bool = False) -> None:
        self.drive = CdDrive(image)
        self._serial = serial
        self._serial_ata = serial_ata
        self._transfer_mode = 0x0C

    def start(self, taskfile: TaskFile) -> Transfer:
        """See `taskfile.Drive`."""
        command = taskfile.command
        if command == _PACKET:
            return self._ask_for_packet(taskfile)
        if command == _IDENTIFY_PACKET:
            data = identify_packet_device(
                serial=self._serial,
                model=MODEL,
                firmware=FIRMWARE,
                mode=self._transfer_mode,
                serial_ata=self._serial_ata,
            )
            return Transfer(taskfile, Direction.TO_HOST, len(data), data=bytearray(data))
        if command == 0xEF:
            return self._set_features(taskfile)
        if command == 0xE5:
            taskfile.count = 0xFF
            return Transfer(taskfile)
        if command in _NOTHING_TO_DO:
            return Transfer(taskfile)
        raise AtaError(ABRT, shows_signature=command in _SHOWS_SIGNATURE)

    def _ask_for_packet(self, taskfile: TaskFile) -> Transfer:
        return Transfer(
            taskfile,
            Direction.TO_DEVICE,
            size=PACKET_SIZE,
            block=PACKET_SIZE,
            data=bytearray(PACKET_SIZE),
            wants_packet=True,
        )

    def _set_features(self, taskfile: TaskFile) -> Transfer:
        subcommand, mode = taskfile.feature & 0xFF, taskfile.count & 0xFF
        known = mode in (0, 1) or 8 <= mode <= 12 or 0x20 <= mode <= 0x22 or 0x40 <= mode <= 0x45
        if subcommand == 0x03 and known:
            self._transfer_mode = mode if mode > 1 else 0x0C
        elif subcommand not in (0x66, 0xCC):
            raise AtaError(ABRT)
        return Transfer(taskfile)

    def packet(self, transfer: Transfer, packet: bytes) -> Transfer:
        """See `taskfile.Drive`."""
        try:
            reply = self.drive.execute(packet.ljust(PACKET_SIZE, b"\0"))
        except CheckCondition as failure:
            raise _ata_error(failure) from failure
        taskfile = transfer.taskfile
        if reply.takes:
            data = bytearray(reply.takes)
            return self._data_phase(taskfile, Direction.TO_DEVICE, len(data), data=data)
        if reply.data:
            return self._data_phase(taskfile, Direction.TO_HOST, len(reply.data), data=bytearray(reply.data))
        if not reply.count:
            return Transfer(taskfile, packet=True)
        return self._sectors(taskfile, reply)

    def _sectors(self, taskfile: TaskFile, reply: Reply) -> Transfer:
        unit = cd_pages.RAW_SECTOR if reply.raw else cd_pages.SECTOR
        transfer = self._data_phase(taskfile, Direction.TO_HOST, reply.count * unit)
        transfer.offset = reply.lba
        transfer.action = "raw" if reply.raw else "user"
        return transfer

    def _data_phase(
        self, taskfile: TaskFile, direction: Direction, size: int, data: bytearray | None = None
    ) -> Transfer:
        """The host said with PACKET how many bytes it moves at a time (ATA/ATAPI-7 §6.24.4)."""
        limit = taskfile.lba >> 8 & 0xFFFF
        limit = min(limit or _BYTE_COUNT_MAXIMUM, _BYTE_COUNT_MAXIMUM)
        if size > limit:
            limit = max(limit & ~1, 2)
        dma = bool(taskfile.feature & _FEATURE_DMA)
        return Transfer(taskfile, direction, size, block=limit, dma=dma, data=data, packet=True)

    def read(self, transfer: Transfer, offset: int, size: int) -> bytes:
        """See `taskfile.Drive`; the transfer's ``offset`` is a block number."""
        if transfer.data is not None:
            return bytes(transfer.data[offset : offset + size])
        try:
            return self.drive.read(transfer.offset, offset, size, raw=transfer.action == "raw")
        except CheckCondition as failure:
            raise _ata_error(failure) from failure

    def write(self, transfer: Transfer, offset: int, data: bytes) -> None:
        """See `taskfile.Drive`."""
        if transfer.data is not None:
            transfer.data[offset : offset + len(data)] = data

    def move(
        self, transfer: Transfer, offset: int, memory: GuestMemory, segments: list[tuple[int, int]]
    ) -> bool:
        """Never: a disc may have been taken out."""
        return False

    def finish(self, transfer: Transfer) -> None:
        """Nothing is left to do."""

    def note_queue_error(self, tag: int, taskfile: TaskFile) -> None:
        """No queues here."""

    def reset(self) -> None:
        """See `taskfile.Drive`."""
        self.drive.reset()

    def save_state(self) -> dict[str, Any]:
        """The drive, and the transfer mode."""
        return {"cd": self.drive.save_state(), "transfer_mode": self._transfer_mode}

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``save_state``."""
        self.drive.load_state(state["cd"])
        self._transfer_mode = state["transfer_mode"]

    def close(self) -> None:
        """Close the disc's image."""
        self.drive.close()


def _ata_error(failure: CheckCondition) -> AtaError:
    """The sense key goes into the upper half of the error register."""
    return AtaError(failure.sense.key << 4 | ABRT)

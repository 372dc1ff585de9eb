"""A CD drive's packet commands.

Reference: MMC-6 r2g §6 "Commands"; SPC-3 r23 §6.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sublet.block import BlockDevice
from sublet.devices.storage import cd_pages as pages
from sublet.devices.storage import sense
from sublet.devices.storage.medium import Medium
from sublet.devices.storage.sense import CheckCondition, Sense
from sublet.devices.storage.taskfile import AtaError

PACKET_SIZE = 12

_EVENT_NONE, _EVENT_EJECT_REQUEST, _EVENT_NEW_MEDIA, _EVENT_REMOVED = 0, 1, 2, 3
_ANSWERED_BEFORE_ATTENTION = frozenset((0x03, 0x12, 0x46, 0x4A))
"""REQUEST SENSE, INQUIRY, GET CONFIGURATION, GET EVENT STATUS: never end for a unit attention."""


@dataclass(frozen=True)
class Reply:
    """What a command sends: ``data``, or ``count`` sectors from ``lba``, whole (raw) or their user data."""

    data: bytes = b""
    lba: int = 0
    count: int = 0
    raw: bool = False
    takes: int = 0
    """Bytes that the command wants from the host; their content does not matter."""


class CdDrive:
    """The tray, what lies in it, and the commands.

    Bad input, by design: an unknown command or field ends with ILLEGAL REQUEST, a block past the end with
    its own code, a failing host with MEDIUM ERROR; an empty tray with NOT READY. After a reset or a change
    of medium the first command that may be told of it ends with UNIT ATTENTION.

    Args:
        image: A disc of 2048-byte sectors, or None for an empty tray; served until ``close``.
    """

    def __init__(self, image: BlockDevice | None) -> None:
        self._medium = None if image is None else Medium(image)
        self._changing = threading.RLock()
        self._commands = self._make_commands()
        self._position = 0
        self._tray_open = False
        self._locked = False
        self._event = _EVENT_NONE
        self._sense = sense.NO_SENSE
        self._attention: Sense | None = sense.POWER_ON

    def _make_commands(self) -> dict[int, Callable[[bytes], Reply]]:
        return {
            0x00: self._test_unit_ready,
            0x03: self._request_sense,
            0x12: self._inquiry,
            0x15: self._mode_select_6,
            0x1A: self._mode_sense_6,
            0x1B: self._start_stop,
            0x1E: self._prevent_allow,
            0x25: self._read_capacity,
            0x28: self._read,
            0x2B: self._seek,
            0x42: self._read_sub_channel,
            0x43: self._read_toc,
            0x46: self._get_configuration,
            0x4A: self._get_event_status,
            0x51: self._read_disc_information,
            0x52: self._read_track_information,
            0x55: self._mode_select_10,
            0x5A: self._mode_sense_10,
            0xA8: self._read,
            0xB9: self._read_cd_msf,
            0xBB: self._set_speed,
            0xBD: self._mechanism_status,
            0xBE: self._read_cd,
        }

    # The tray

    @property
    def present(self) -> bool:
        """Whether a disc can be read."""
        return self._medium is not None and not self._tray_open

    @property
    def sectors(self) -> int:
        """Sectors of 2048 bytes of the disc; a rest counts as one. 0 without a disc."""
        if self._medium is None or self._tray_open:
            return 0
        return -(-self._medium.size // pages.SECTOR)

    def insert(self, image: BlockDevice | None) -> None:
        """Put another disc in, or take it out with None; the old one is closed. Any thread."""
        with self._changing:
            old, self._medium = self._medium, None if image is None else Medium(image)
            self._tray_open = False
            self._changed()
            if old is not None:
                old.close()

    def eject(self, *, force: bool = False) -> bool:
        """Take the disc out, as the button does: a locked tray tells the guest of the wish. Any thread.

        Args:
            force: Also from a locked tray.

        Returns:
            Whether the tray is empty now.
        """
        with self._changing:
            if self._locked and self.present and not force:
                self._event = _EVENT_EJECT_REQUEST
                return False
            self.insert(None)
            return True

    def _changed(self) -> None:
        self._attention = sense.MEDIUM_CHANGED if self.present else None
        self._event = _EVENT_NEW_MEDIA if self.present else _EVENT_REMOVED

    def reset(self) -> None:
        """A reset of the bus: the lock and the sense go."""
        self._locked = False
        self._sense = sense.NO_SENSE
        self._attention = sense.POWER_ON

    # Commands

    def execute(self, packet: bytes) -> Reply:
        """Carry out a command packet of 12 bytes, up to the moving of its data.

        Raises:
            CheckCondition: It fails; the sense is kept for REQUEST SENSE.
        """
        with self._changing:
            return self._execute(packet)

    def _execute(self, packet: bytes) -> Reply:
        command = packet[0]
        try:
            self._tell_attention(command)
            handler = self._commands.get(command)
            if handler is None:
                raise CheckCondition(sense.INVALID_COMMAND)
            reply = handler(packet)
        except CheckCondition as failure:
            self._sense = failure.sense
            raise
        if command != 0x03:
            self._sense = sense.NO_SENSE
        return reply

    def _tell_attention(self, command: int) -> None:
        if self._attention is not None and command not in _ANSWERED_BEFORE_ATTENTION:
            told, self._attention = self._attention, None
            raise CheckCondition(told)

    def read(self, reply_lba: int, offset: int, size: int, *, raw: bool) -> bytes:
        """Bytes of a read command, from ``offset`` after its first sector. Blocks.

        Raises:
            CheckCondition: The host failed, or the disc is gone.
        """
        unit = pages.RAW_SECTOR if raw else pages.SECTOR
        first, last = offset // unit, -(-(offset + size) // unit)
        content = self._user_data(reply_lba + first, last - first)
        if raw:
            sectors = [content[i : i + pages.SECTOR] for i in range(0, len(content), pages.SECTOR)]
            content = b"".join(
                pages.raw_sector(reply_lba + first + i, data) for i, data in enumerate(sectors)
            )
        start = offset - first * unit
        return content[start : start + size]

    def _user_data(self, lba: int, count: int) -> bytes:
        with self._changing:
            return self._read_medium(lba, count)

    def _read_medium(self, lba: int, count: int) -> bytes:
        """Precondition: ``_changing`` is held, so that the disc stays in."""
        medium = self._medium
        try:
            if medium is None:
                raise CheckCondition(sense.NO_MEDIUM)
            start, end = lba * pages.SECTOR, (lba + count) * pages.SECTOR
            if start >= medium.size:
                raise CheckCondition(sense.ADDRESS_OUT_OF_RANGE)  # another disc than at the command's start
            self._position = lba
            return medium.read(start, min(end, medium.size) - start).ljust(end - start, b"\0")
        except AtaError as error:
            self._sense = sense.READ_ERROR
            raise CheckCondition(sense.READ_ERROR) from error
        except CheckCondition as failure:
            self._sense = failure.sense
            raise

    def _need_medium(self) -> None:
        if not self.present:
            raise CheckCondition(sense.NO_MEDIUM_TRAY_OPEN if self._tray_open else sense.NO_MEDIUM)

    def _test_unit_ready(self, packet: bytes) -> Reply:
        self._need_medium()
        return Reply()

    def _request_sense(self, packet: bytes) -> Reply:
        told = self._sense
        if told == sense.NO_SENSE and self._attention is not None:
            told, self._attention = self._attention, None
        self._sense = sense.NO_SENSE
        return Reply(told.fixed()[: packet[4]])

    def _inquiry(self, packet: bytes) -> Reply:
        if packet[1] & 1 or packet[2]:  # vital product data: none
            raise CheckCondition(sense.INVALID_FIELD)
        return Reply(pages.inquiry()[: _u16(packet, 3)])

    def _start_stop(self, packet: bytes) -> Reply:
        load_eject, start = packet[4] & 2, packet[4] & 1
        if not load_eject:
            return Reply()
        if not start and self._locked and not self._tray_open:
            raise CheckCondition(sense.REMOVAL_PREVENTED)
        if self._tray_open == bool(start):
            self._tray_open = not start
            self._changed()
        return Reply()

    def _prevent_allow(self, packet: bytes) -> Reply:
        self._locked = bool(packet[4] & 1)
        return Reply()

    def _read_capacity(self, packet: bytes) -> Reply:
        self._need_medium()
        return Reply(struct.pack(">II", self.sectors - 1, pages.SECTOR))

    def _read(self, packet: bytes) -> Reply:
        """READ(10) and READ(12)."""
        self._need_medium()
        count = _u16(packet, 7) if packet[0] == 0x28 else _u32(packet, 6)
        return self._sectors_reply(_u32(packet, 2), count, raw=False)

    def _sectors_reply(self, lba: int, count: int, *, raw: bool) -> Reply:
        if lba + count > self.sectors:
            raise CheckCondition(sense.ADDRESS_OUT_OF_RANGE)
        return Reply(lba=lba, count=count, raw=raw)

    def _read_cd(self, packet: bytes) -> Reply:
        count = int.from_bytes(packet[6:9], "big")
        return self._read_cd_range(_u32(packet, 2), count, packet[9])

    def _read_cd_msf(self, packet: bytes) -> Reply:
        first, end = (_msf_to_lba(packet[i : i + 3]) for i in (3, 6))
        if first < 0 or end < first:
            raise CheckCondition(sense.INVALID_FIELD)
        return self._read_cd_range(first, end - first, packet[9])

    def _read_cd_range(self, lba: int, count: int, main_channel: int) -> Reply:
        """Which fields of a sector are wanted: none, its user data, or all of it."""
        self._need_medium()
        if main_channel & 0xF8 == 0 or not count:
            return Reply()
        if main_channel & 0xF8 == 0x10:
            return self._sectors_reply(lba, count, raw=False)
        if main_channel & 0xF8 == 0xF8:
            return self._sectors_reply(lba, count, raw=True)
        raise CheckCondition(sense.INVALID_FIELD)

    def _seek(self, packet: bytes) -> Reply:
        self._need_medium()
        if _u32(packet, 2) >= self.sectors:
            raise CheckCondition(sense.ADDRESS_OUT_OF_RANGE)
        return Reply()

    def _read_toc(self, packet: bytes) -> Reply:
        self._need_medium()
        msf = bool(packet[1] & 2)
        kind = packet[2] & 15 or packet[9] >> 6  # older drivers have the format in the control byte
        answers = {
            0: pages.toc(self.sectors, msf=msf, start=packet[6]),
            1: pages.toc_sessions(msf=msf),
            2: pages.toc_full(self.sectors),
        }
        return self._cut(answers.get(kind), packet)

    def _cut(self, data: bytes | None, packet: bytes) -> Reply:
        """Not more than the allocation length in bytes 7 and 8."""
        if data is None:
            raise CheckCondition(sense.INVALID_FIELD)
        return Reply(data[: _u16(packet, 7)])

    def _read_sub_channel(self, packet: bytes) -> Reply:
        self._need_medium()
        if not packet[2] & 0x40:
            return self._cut(b"\0\x15\0\0", packet)
        data = pages.sub_channel(self._position, msf=bool(packet[1] & 2), wanted=packet[3])
        return self._cut(data, packet)

    def _get_configuration(self, packet: bytes) -> Reply:
        current, requested = pages.profile(self.sectors), packet[1] & 3
        if requested == 3:
            raise CheckCondition(sense.INVALID_FIELD)
        return self._cut(pages.configuration(current, requested=requested, first=_u16(packet, 2)), packet)

    def _get_event_status(self, packet: bytes) -> Reply:
        if not packet[1] & 1:  # only polling
            raise CheckCondition(sense.INVALID_FIELD)
        data = pages.event_status(
            packet[4], event=self._event, tray_open=self._tray_open, present=self.present
        )
        if packet[4] & 0x10:
            self._event = _EVENT_NONE
        return self._cut(data, packet)

    def _read_disc_information(self, packet: bytes) -> Reply:
        self._need_medium()
        return self._cut(pages.disc_information() if not packet[1] & 7 else None, packet)

    def _read_track_information(self, packet: bytes) -> Reply:
        self._need_medium()
        return self._cut(pages.track_information(self.sectors), packet)

    def _mode_sense_6(self, packet: bytes) -> Reply:
        body = self._mode_pages(packet)
        return Reply((struct.pack(">BBBB", len(body) + 3, 0, 0, 0) + body)[: packet[4]])

    def _mode_sense_10(self, packet: bytes) -> Reply:
        body = self._mode_pages(packet)
        return self._cut(struct.pack(">HBB4x", len(body) + 6, 0, 0) + body, packet)

    def _mode_pages(self, packet: bytes) -> bytes:
        control = packet[2] >> 6
        body = pages.mode_pages(packet[2] & 0x3F, control, locked=self._locked)
        if body is None or control == 3:  # saved values: none
            raise CheckCondition(sense.INVALID_FIELD)
        return body

    def _mode_select_6(self, packet: bytes) -> Reply:
        return Reply(takes=packet[4])

    def _mode_select_10(self, packet: bytes) -> Reply:
        """Taken without effect: no page has a value that can be changed."""
        return Reply(takes=_u16(packet, 7))

    def _set_speed(self, packet: bytes) -> Reply:
        return Reply()

    def _mechanism_status(self, packet: bytes) -> Reply:
        return Reply(pages.mechanism_status(self._position)[: _u16(packet, 8)])

    # Lifecycle

    def save_state(self) -> dict[str, Any]:
        """The tray and what is still to be told."""
        return {
            "position": self._position,
            "tray_open": self._tray_open,
            "locked": self._locked,
            "event": self._event,
            "sense": list(self._sense),
            "attention": None if self._attention is None else list(self._attention),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``save_state``."""
        self._position, self._tray_open = state["position"], state["tray_open"]
        self._locked, self._event = state["locked"], state["event"]
        self._sense = Sense(*state["sense"])
        self._attention = None if state["attention"] is None else Sense(*state["attention"])

    def close(self) -> None:
        """Close the disc's image."""
        if self._medium is not None:
            self._medium.close()


def _u16(packet: bytes, offset: int) -> int:
    return int.from_bytes(packet[offset : offset + 2], "big")


def _u32(packet: bytes, offset: int) -> int:
    return int.from_bytes(packet[offset : offset + 4], "big")


def _msf_to_lba(msf: bytes) -> int:
    return (msf[0] * 60 + msf[1]) * 75 + msf[2] - 150

"""What a CD drive answers about itself and the disc in it: pure functions to bytes.

Reference: MMC-6 r2g §5 "Features and profiles", §6.25 "READ TOC/PMA/ATIP", §6.21 "READ DISC INFORMATION",
§7 "Mode parameters"; MMC-3 r10g §6.3.11 "CD/DVD capabilities and mechanical status page".
"""

from __future__ import annotations

import struct

SECTOR = 2048
RAW_SECTOR = 2352
CD_SECTORS_MAXIMUM = 80 * 60 * 75
"""Of a CD of 80 minutes; what is larger is a DVD."""
PROFILE_NONE, PROFILE_CD_ROM, PROFILE_DVD_ROM = 0x00, 0x08, 0x10

_LEAD_IN_FRAMES = 150
_LEAD_OUT = 0xAA
_DATA_TRACK = 0x14
"""ADR 1 (position), control 4 (data, uninterrupted)."""


def frames_to_msf(lba: int) -> bytes:
    """Minute, second, frame of a block, two seconds of lead-in counted."""
    frames = lba + _LEAD_IN_FRAMES
    return bytes((min(frames // (75 * 60), 255), frames // 75 % 60, frames % 75))


def address(lba: int, msf: bool) -> bytes:
    """Four bytes of a position in either form."""
    return b"\0" + frames_to_msf(lba) if msf else struct.pack(">I", lba)


def inquiry() -> bytes:
    """Standard INQUIRY data of a removable CD drive, 36 bytes."""
    return struct.pack(
        ">BBBBB3x8s16s4s", 0x05, 0x80, 0x00, 0x21, 31, b"SUBLET  ", b"CD-ROM".ljust(16), b"1.0 "
    )


def toc(sectors: int, *, msf: bool, start: int) -> bytes | None:
    """Format 0: one data track and the lead-out; None for a track that there is not."""
    if start > 1 and start != _LEAD_OUT:
        return None
    rows = [] if start == _LEAD_OUT else [(1, 0)]
    rows.append((_LEAD_OUT, sectors))
    body = b"".join(struct.pack(">BBBB", 0, _DATA_TRACK, track, 0) + address(lba, msf) for track, lba in rows)
    return struct.pack(">HBB", len(body) + 2, 1, 1) + body


def toc_sessions(*, msf: bool) -> bytes:
    """Format 1: one session, which starts with track 1."""
    return struct.pack(">HBBBBBB", 10, 1, 1, 0, _DATA_TRACK, 1, 0) + address(0, msf)


def toc_full(sectors: int) -> bytes:
    """Format 2: the entries of the lead-in: first track, last track, lead-out, track 1."""
    points = [
        (0xA0, b"\x01\0\0"),
        (0xA1, b"\x01\0\0"),
        (0xA2, frames_to_msf(sectors)),
        (0x01, frames_to_msf(0)),
    ]
    body = b"".join(bytes((1, _DATA_TRACK, 0, point, 0, 0, 0, 0)) + msf for point, msf in points)
    return struct.pack(">HBB", len(body) + 2, 1, 1) + body


def profile(sectors: int) -> int:
    """The kind of disc that this many sectors make; 0 sectors: none."""
    if not sectors:
        return PROFILE_NONE
    return PROFILE_CD_ROM if sectors <= CD_SECTORS_MAXIMUM else PROFILE_DVD_ROM


def configuration(current: int, *, requested: int, first: int) -> bytes:
    """GET CONFIGURATION: the features from ``first`` on, all, current ones, or just that one (0, 1, 2)."""
    present = current != PROFILE_NONE
    features = [
        (0x0000, 3, b"".join(_profile(number, current) for number in (PROFILE_DVD_ROM, PROFILE_CD_ROM))),
        (0x0001, 7, struct.pack(">IB3x", 2, 1)),  # core: ATAPI
        (0x0003, 3, struct.pack(">B3x", 0x29)),  # removable medium: tray, can be ejected and locked
        (0x0010, int(present), struct.pack(">IHBx", SECTOR, 1, 0)),  # random readable
        (0x001D, int(present), b""),  # multi-read
        (0x001E, 8 | int(current == PROFILE_CD_ROM), bytes(4)),  # CD read
        (0x001F, 8 | int(current == PROFILE_DVD_ROM), bytes(4)),  # DVD read
    ]
    chosen = [row for row in features if _is_requested(row[0], row[1], requested, first)]
    body = b"".join(struct.pack(">HBB", code, flags, len(data)) + data for code, flags, data in chosen)
    return struct.pack(">IHH", len(body) + 4, 0, current) + body


def _profile(number: int, current: int) -> bytes:
    return struct.pack(">HBB", number, int(number == current), 0)


def _is_requested(code: int, flags: int, requested: int, first: int) -> bool:
    if requested == 2:
        return code == first
    return code >= first and (requested == 0 or bool(flags & 1))


def event_status(requested: int, *, event: int, tray_open: bool, present: bool) -> bytes:
    """GET EVENT STATUS NOTIFICATION, polled: the media class, or nothing where others are asked for."""
    supported = 0x10
    if not requested & supported:
        return struct.pack(">HBB", 2, 0x80, supported)
    status = int(tray_open) | int(present) << 1
    return struct.pack(">HBBBBxx", 6, 4, supported, event, status)


def disc_information() -> bytes:
    """READ DISC INFORMATION: a finished disc of one session and one track, 34 bytes."""
    return struct.pack(">HBBBBBBB25x", 32, 0x0E, 1, 1, 1, 1, 0x20, 0)


def track_information(sectors: int) -> bytes:
    """READ TRACK INFORMATION of track 1, 36 bytes."""
    head = struct.pack(">HBBBBBB", 34, 1, 1, 0, 0x04, 0x01, 0)
    return (head + struct.pack(">IIIII", 0, 0, 0, 0, sectors)).ljust(36, b"\0")


def mechanism_status(lba: int) -> bytes:
    """MECHANISM STATUS: no changer."""
    return bytes(2) + (lba & 0xFF_FFFF).to_bytes(3, "big") + bytes(3)


def sub_channel(lba: int, *, msf: bool, wanted: int) -> bytes | None:
    """READ SUB-CHANNEL formats 1 to 3: position, and no catalogue numbers; None for others."""
    if wanted == 0x01:
        body = bytes((1, _DATA_TRACK, 1, 1)) + address(lba, msf) + address(lba, msf)
    elif wanted in (0x02, 0x03):
        body = bytes((wanted,)).ljust(20, b"\0")
    else:
        return None
    return struct.pack(">BBH", 0, 0x15, len(body)) + body  # 15h: no audio is playing


def mode_pages(code: int, control: int, *, locked: bool) -> bytes | None:
    """The pages of a MODE SENSE; None for a page that there is not.

    ``control`` 0 asks for current values, 1 for what can be changed, 2 for defaults.
    """
    pages = {
        0x01: bytes((0x01, 6, 0, 5, 0, 0, 0, 0)),  # read error recovery: five retries
        0x0D: bytes((0x0D, 6, 0, 0, 0, 60, 0, 75)),  # CD: seconds a minute, frames a second
        0x1A: bytes((0x1A, 10)) + bytes(10),  # power condition
        0x2A: _capabilities(locked=locked),
    }
    chosen = pages.values() if code == 0x3F else [pages[code]] if code in pages else None
    if chosen is None:
        return None
    if control == 1:
        return b"".join(page[:2] + bytes(len(page) - 2) for page in chosen)
    return b"".join(chosen)


def _capabilities(*, locked: bool) -> bytes:
    """CD/DVD capabilities and mechanical status: reads, ejects and locks; 48 times the first speed."""
    speed = 48 * 176
    status = 0x29 | (0x02 if locked else 0)  # tray, eject, lock; locked now
    return struct.pack(">BBBBBBBBHHHH6x", 0x2A, 20, 0x3B, 0, 0x70, 0, status, 0, speed, 0, 512, speed)


def raw_sector(lba: int, data: bytes) -> bytes:
    """A mode 1 sector of 2352 bytes. Deviation: its error correction is zero, as nothing reads it."""
    minute, second, frame = frames_to_msf(lba)
    header = bytes(value // 10 << 4 | value % 10 for value in (minute % 100, second, frame)) + b"\x01"
    return (b"\0" + b"\xff" * 10 + b"\0" + header + data).ljust(RAW_SECTOR, b"\0")

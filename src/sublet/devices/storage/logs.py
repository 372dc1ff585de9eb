"""The logs that READ LOG EXT shows.

Reference: ATA8-ACS r6a annex A "Log page definitions"; Serial ATA 3.0 §13.7.1 "Queued error log".
"""

from __future__ import annotations

from collections.abc import Iterable

from sublet.devices.storage.taskfile import TaskFile

QUEUE_ERROR_LOG = 0x10
_VERSION = 1
_NOT_QUEUED = 0x80
_PAGE = 512


def log_directory(logs: Iterable[int]) -> bytes:
    """Which logs there are, a page each."""
    page = bytearray(_PAGE)
    page[0] = _VERSION
    for log in logs:
        page[2 * log] = 1
    return bytes(page)


def no_queue_error() -> bytes:
    """No queued command has failed."""
    return _seal(bytearray((_NOT_QUEUED,)))


def queue_error(tag: int, taskfile: TaskFile) -> bytes:
    """The command of that tag ended with these registers."""
    lba = taskfile.lba.to_bytes(6, "little")
    head = bytes((tag & 31, 0, taskfile.status, taskfile.error)) + lba[:3]
    return _seal(
        bytearray(head + bytes((taskfile.device,)) + lba[3:] + b"\0" + taskfile.count.to_bytes(2, "little"))
    )


def _seal(page: bytearray) -> bytes:
    """512 bytes that add up to zero."""
    page.extend(bytes(_PAGE - len(page)))
    page[511] = -sum(page) & 0xFF
    return bytes(page)

"""Writing a VHDX file's headers, and its metadata through the log.

Every entry that we write stands alone (its tail is itself): the file is flushed before, so whatever earlier
entries say is already in place. Entries alternate between the halves of the log, so the last one stays whole
while the next is written.

Reference: MS-VHDX 8.0 §2.2.2 "Headers", §2.3 "Log".
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from sublet.block.hostfile import HostFile
from sublet.block.vhdx.layout import FILE_SIGNATURE, HEADER_OFFSETS, HEADER_SIZE, NO_GUID, Header
from sublet.block.vhdx.log import MAX_FILE, MAX_LOG, Entry, LogReader, Patch, entry_size, pack_entry
from sublet.errors import CorruptImage, HostRefused, UnsupportedImage

_RING_USED: Final = 1 << 20
"""Bytes of the log that we write, however long it is."""
_HALF: Final = _RING_USED // 2
BATCH: Final = 120
"""Sectors of 4 KiB that one entry carries at most, and that are thus written all or not at all."""
assert entry_size(BATCH) <= _HALF


def read_headers(file: HostFile) -> tuple[Header, int]:
    """The header that counts, and its slot: 0 or 1.

    Raises:
        CorruptImage: No valid header, or two different ones of the same sequence number.
    """
    if file.read(0, len(FILE_SIGNATURE)) != FILE_SIGNATURE:
        raise CorruptImage(f"{file.path}: the VHDX file identifier is missing")
    parsed = [Header.parse(file.read(offset, HEADER_SIZE)) for offset in HEADER_OFFSETS]
    valid = [(header, slot) for slot, header in enumerate(parsed) if header is not None]
    if not valid:
        raise CorruptImage(f"{file.path}: both VHDX headers are damaged")
    return max(valid, key=lambda pair: pair[0].sequence_number)


def read_log(file: HostFile, header: Header) -> tuple[list[Patch], int]:
    """What the log says that the file does not hold yet, and the size that the file then has.

    Returns:
        Patches in the order of application; none when the log is empty.

    Raises:
        CorruptImage: An entry is malformed, or the file is shorter than when it was logged.
        UnsupportedImage: A log that is too long.
    """
    if header.log_guid == NO_GUID or not header.log_length:
        return [], file.size()
    if header.log_length > MAX_LOG:
        raise UnsupportedImage(f"{file.path}: a log of {header.log_length} bytes, at most {MAX_LOG} are read")
    if header.log_offset + header.log_length > file.size():
        raise CorruptImage(f"{file.path}: the log at {header.log_offset} lies outside the file")
    reader = LogReader(file.read(header.log_offset, header.log_length), header.log_guid)
    entries = reader.active_sequence()
    size = file.size()
    patches: list[Patch] = []
    for entry in entries:
        if entry.flushed > file.size():
            raise CorruptImage(f"{file.path}: {file.size()} bytes, but {entry.flushed} when it was logged")
        size = max(size, _require_size(entry))
        patches += reader.patches(entry)
    return patches, size


def _require_size(entry: Entry) -> int:
    if entry.last > MAX_FILE:
        raise CorruptImage(f"VHDX log: entry {entry.sequence} wants a file of {entry.last} bytes")
    return entry.last


def read_patched(file: HostFile, patches: list[Patch], offset: int, size: int) -> bytes:
    """Read as though the patches were applied."""
    data = bytearray(file.read(offset, size))
    for patch in patches:
        start, end = max(offset, patch.offset), min(offset + size, patch.offset + patch.size)
        if start < end:
            zeroes = bytes(end - start)
            piece = zeroes if patch.data is None else patch.data[start - patch.offset : end - patch.offset]
            data[start - offset : end - offset] = piece
    return bytes(data)


class Journal:
    """Headers and log of a writable image. The image's lock guards it.

    Args:
        file: The image.
        header, slot: What ``read_headers`` gave.
    """

    def __init__(self, file: HostFile, header: Header, slot: int) -> None:
        self._file = file
        self.header = header
        self._slot = slot
        self._sequence = 0
        self._begun = False

    @property
    def begun(self) -> bool:
        """Whether the disk was changed since the log was last empty."""
        return self._begun

    def replay(self, patches: list[Patch], size: int) -> None:
        """Apply the log to the file and empty it. May be cut short and begun again at any point.

        Raises:
            HostRefused: The file cannot become as long as the log says that it is.
        """
        if size > self._file.size():
            try:
                self._file.truncate(size)
            except OSError as error:
                raise HostRefused(
                    f"{self._file.path}: its log needs a file of {size} bytes: {error.strerror}"
                ) from error
        for patch in patches:
            if patch.data is None:
                self._file.write_zeroes(patch.offset, patch.size)
            else:
                self._file.write(patch.offset, patch.data)
        self.empty()

    def empty(self) -> None:
        """Make everything stable where it belongs, and say that the log holds nothing."""
        self._file.flush()
        if self.header.log_guid != NO_GUID:
            self._update(replace(self.header, log_guid=NO_GUID))
        self._begun = False

    def begin(self) -> None:
        """Say that the disk changes and that the log is in use; to be called before every change.

        The GUIDs change so that a child can tell that its parent is no longer what it was.
        """
        if self._begun:
            return
        if self.header.log_length < _RING_USED:
            raise UnsupportedImage(f"{self._file.path}: a log of {self.header.log_length} bytes is too small")
        changed = replace(
            self.header, file_write_guid=uuid.uuid4(), data_write_guid=uuid.uuid4(), log_guid=uuid.uuid4()
        )
        self._update(changed)
        self._sequence = 0
        self._begun = True

    def _update(self, header: Header) -> None:
        """Write both headers, the older one first."""
        for _ in HEADER_OFFSETS:
            self._slot = 1 - self._slot
            header = replace(header, sequence_number=header.sequence_number + 1)
            self._file.write(HEADER_OFFSETS[self._slot], header.pack())
            self._file.flush()
        self.header = header

    def write(self, sectors: Mapping[int, bytes | bytearray]) -> None:
        """Write metadata sectors by file offset: into the log, flushed, then in place.

        What was written to the file before is stable when this returns; of the sectors, ``BATCH`` at a time.
        """
        self.begin()
        offsets = list(sectors)
        for first in range(0, len(offsets), BATCH):
            batch = {offset: sectors[offset] for offset in offsets[first : first + BATCH]}
            self._file.flush()
            self._append(batch)
            self._file.flush()
            for offset, data in batch.items():
                self._file.write(offset, data)

    def _append(self, batch: Mapping[int, bytes | bytearray]) -> None:
        self._sequence += 1
        at = self._sequence % 2 * _HALF
        entry = pack_entry(
            batch, sequence=self._sequence, at=at, log_guid=self.header.log_guid, file_size=self._file.size()
        )
        self._file.write(self.header.log_offset + at, entry)

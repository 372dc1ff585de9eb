"""QCOW2 internal snapshots: the snapshot table, and taking, reverting to and deleting one.

Each of the three plans the tables as they shall be and lets ``rewrite`` bring them in with one write of the
header, so that a crash leaves the image as before or as after.

Reference: "QCOW2 image format" (QEMU 7.2), § "Snapshots".
"""

from __future__ import annotations

import struct
import time
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sublet.block.description import Snapshot
from sublet.block.hostfile import HostFile, read_structure
from sublet.block.qcow2.layout import L1_BYTES_MAXIMUM, SNAPSHOTS_MAXIMUM, Header, table_from_bytes
from sublet.errors import CorruptImage, UsageError

if TYPE_CHECKING:
    from sublet.block.qcow2.image import Qcow2Image

_ENTRY: Final = struct.Struct(">QIHHIIQII")
_EXTRA_MAXIMUM: Final = 1024
_TABLE_MAXIMUM: Final = 64 << 20
_NO_ICOUNT: Final = (1 << 64) - 1


@dataclass(frozen=True)
class SnapshotRecord:
    """An entry of the snapshot table."""

    l1_offset: int
    l1_entries: int
    id: str
    name: str
    seconds: int
    nanoseconds: int
    vm_clock: int
    vm_state_size: int
    disk_size: int | None
    """Bytes of the disk then; None in old images that do not say."""
    icount: int = _NO_ICOUNT
    more: bytes = b""
    """Extra data that we do not know, kept."""

    def pack(self) -> bytes:
        """The entry's bytes, a multiple of 8."""
        id_, name = self.id.encode("utf-8", "surrogateescape"), self.name.encode("utf-8", "surrogateescape")
        extra = b""
        if self.disk_size is not None:
            extra = struct.pack(">QQQ", self.vm_state_size, self.disk_size, self.icount) + self.more
        head = _ENTRY.pack(
            self.l1_offset,
            self.l1_entries,
            len(id_),
            len(name),
            self.seconds,
            self.nanoseconds,
            self.vm_clock,
            min(self.vm_state_size, 0xFFFFFFFF),
            len(extra),
        )
        packed = head + extra + id_ + name
        return packed + bytes(-len(packed) % 8)

    def describe(self, disk_size: int) -> Snapshot:
        """As the user sees it."""
        size = disk_size if self.disk_size is None else self.disk_size
        return Snapshot(self.id, self.name, self.seconds + self.nanoseconds / 1e9, size)


def read_snapshots(file: HostFile, header: Header) -> list[SnapshotRecord]:
    """Read the snapshot table.

    Raises:
        CorruptImage: An entry is cut off or names tables that cannot be.
    """
    records: list[SnapshotRecord] = []
    offset = header.snapshots_offset
    for number in range(header.snapshot_count):
        record, size = _read_record(file, header, offset, number)
        records.append(record)
        offset += size
        if offset - header.snapshots_offset > _TABLE_MAXIMUM:
            raise CorruptImage(f"{file.path}: the snapshot table has more than {_TABLE_MAXIMUM} bytes")
    return records


def _read_record(file: HostFile, header: Header, offset: int, number: int) -> tuple[SnapshotRecord, int]:
    what = f"snapshot table entry {number}"
    fields = _ENTRY.unpack(read_structure(file, offset, _ENTRY.size, what))
    l1_offset, l1_entries, id_size, name_size, seconds, nanoseconds, clock, state_size, extra_size = fields
    if extra_size > _EXTRA_MAXIMUM:
        raise CorruptImage(f"{file.path}: {what} has {extra_size} bytes of extra data")
    if l1_offset % header.cluster_size or l1_offset >= 1 << 62 or l1_entries * 8 > L1_BYTES_MAXIMUM:
        raise CorruptImage(f"{file.path}: {what} has {l1_entries} L1 entries at {l1_offset:#x}")
    rest = read_structure(file, offset + _ENTRY.size, extra_size + id_size + name_size, what)
    disk_size: int | None = None
    icount = _NO_ICOUNT
    if extra_size >= 16:
        state_size, disk_size = struct.unpack_from(">QQ", rest)
    if extra_size >= 24:
        (icount,) = struct.unpack_from(">Q", rest, 16)
    limit = (L1_BYTES_MAXIMUM // 8 * header.l2_entries) << header.cluster_bits
    if disk_size is not None and (disk_size % 512 or disk_size > limit):
        raise CorruptImage(f"{file.path}: {what} has a disk of {disk_size} bytes")
    id_ = rest[extra_size : extra_size + id_size].decode("utf-8", "surrogateescape")
    name = rest[extra_size + id_size :].decode("utf-8", "surrogateescape")
    record = SnapshotRecord(
        l1_offset, l1_entries, id_, name, seconds, nanoseconds, clock, state_size, disk_size, icount,
        rest[24:extra_size],
    )  # fmt: skip
    size = _ENTRY.size + extra_size + id_size + name_size
    return record, size + (-size % 8)


def create(image: Qcow2Image, name: str) -> Snapshot:
    """Take a snapshot. Precondition: the image's lock is held.

    Raises:
        UsageError: The name is empty or taken, or counts of the image are too narrow.
    """
    if not name or len(name.encode("utf-8", "surrogateescape")) > 0xFFFF:
        raise UsageError("a snapshot needs a name of 1 to 65535 bytes")
    if any(name in (record.name, record.id) for record in image.snapshot_records):
        raise UsageError(f"{image.path} has a snapshot {name!r} already")
    if len(image.snapshot_records) >= SNAPSHOTS_MAXIMUM:
        raise UsageError(f"{image.path} has {SNAPSHOTS_MAXIMUM} snapshots, as many as there can be")
    _settle(image)
    now = time.time_ns()
    header = image.header
    record = SnapshotRecord(
        header.l1_offset,
        header.l1_entries,
        _next_id(image.snapshot_records),
        name,
        now // 10**9,
        now % 10**9,
        0,
        0,
        header.size,
    )
    _replace(image, array("Q", image.tables.l1), [*image.snapshot_records, record], header.size)
    return record.describe(header.size)


def revert(image: Qcow2Image, name: str) -> None:
    """Make the disk what it was. Precondition: the image's lock is held.

    Raises:
        UsageError: There is no such snapshot.
    """
    record = find(image, name)
    _settle(image)
    data = read_structure(image.file, record.l1_offset, record.l1_entries * 8, "L1 table of a snapshot")
    size = image.header.size if record.disk_size is None else record.disk_size
    _replace(image, table_from_bytes(data), image.snapshot_records, size)


def delete(image: Qcow2Image, name: str) -> None:
    """Forget a snapshot. Precondition: the image's lock is held.

    Raises:
        UsageError: There is no such snapshot.
    """
    record = find(image, name)
    _settle(image)
    rest = [other for other in image.snapshot_records if other is not record]
    _replace(image, array("Q", image.tables.l1), rest, image.header.size)


def find(image: Qcow2Image, name: str) -> SnapshotRecord:
    """The snapshot of that name or, failing that, id.

    Raises:
        UsageError: There is none.
    """
    for key in ("name", "id"):
        for record in image.snapshot_records:
            if getattr(record, key) == name:
                return record
    names = ", ".join(record.name for record in image.snapshot_records) or "none"
    raise UsageError(f"{image.path} has no snapshot {name!r}; it has: {names}")


def _next_id(records: list[SnapshotRecord]) -> str:
    return str(max((int(r.id) for r in records if r.id.isascii() and r.id.isdigit()), default=0) + 1)


def _settle(image: Qcow2Image) -> None:
    """Bring everything to disk, so that the tables there are those in memory."""
    if image.external_data:
        raise UsageError(f"{image.path} keeps its data in another file and has no internal snapshots")
    image.write_metadata()


def _replace(image: Qcow2Image, l1: array[int], records: list[SnapshotRecord], size: int) -> None:
    from sublet.block.qcow2.rewrite import rewrite

    rewrite(image, l1, records, size)

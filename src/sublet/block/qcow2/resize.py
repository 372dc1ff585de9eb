"""Growing and shrinking a QCOW2 disk."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from sublet.block.qcow2 import layout as q
from sublet.errors import UsageError

if TYPE_CHECKING:
    from sublet.block.qcow2.image import Qcow2Image


def resize(image: Qcow2Image, size: int) -> None:
    """Change the disk's size. The image's lock is held.

    Raises:
        UsageError: The tables cannot map so much, or old snapshots do not say how large they are.
    """
    if any(record.disk_size is None for record in image.snapshot_records):
        raise UsageError(f"{image.path} has snapshots that do not record their size: delete them first")
    if image.header.l1_entries * 8 > q.L1_BYTES_MAXIMUM or size >= 1 << 63:
        raise UsageError(f"a disk of {size} bytes is too large for the image")
    image.write_metadata()
    if size < image.size:
        _shrink(image, size)
    else:
        _grow(image, size)


def _shrink(image: Qcow2Image, size: int) -> None:
    """The new size first: a crash then leaves clusters behind the end, which growing clears."""
    old = image.header.size
    image.header.size = size
    image.write_header()
    image.clear_behind(size, old)
    image.write_metadata()
    if image.external_data:
        image.truncate_data(size)


def _grow(image: Qcow2Image, size: int) -> None:
    header = image.header
    old = header.size
    needed = q.l1_entries_for(size, header.cluster_size, header.l2_entries)
    if needed * 8 > q.L1_BYTES_MAXIMUM:
        raise UsageError(
            f"a disk of {size} bytes needs larger clusters than {header.cluster_size} bytes",
            remedy="Convert it with -o cluster_size=2M.",
        )
    if needed > header.l1_entries:
        _move_l1(image, needed)
    # What another writer or an interrupted shrink left behind the end must not come to light.
    image.clear_behind(old, size)
    image.write_metadata()
    if image.external_data:
        image.truncate_data(size)
    header.size = size
    image.write_header()


def _move_l1(image: Qcow2Image, entries: int) -> None:
    """A larger L1 table elsewhere, then the header that names it."""
    header, refcounts, bits = image.header, image.refcounts, image.header.cluster_bits
    clusters = -(-entries * 8 // header.cluster_size)
    first = refcounts.allocate_exact(clusters)
    entries = min(clusters * header.cluster_size, q.L1_BYTES_MAXIMUM) // 8
    l1 = array("Q", image.tables.l1)
    l1.extend([0] * (entries - len(l1)))
    image.file.write(first << bits, q.table_to_bytes(l1))
    image.write_metadata()
    old_first, old_size = header.l1_offset >> bits, header.l1_entries * 8
    header.l1_offset, header.l1_entries = first << bits, entries
    image.write_header()
    image.tables.l1 = l1
    image.reserve_tables()
    if old_size:
        refcounts.release(old_first, -(-old_size // header.cluster_size))

"""What ``sublet disk info`` shows of a QCOW2 image."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sublet.block.description import BackingReference, ImageInfo, Json
from sublet.block.qcow2 import layout as q

if TYPE_CHECKING:
    from sublet.block.qcow2.image import Qcow2Image


def describe(image: Qcow2Image) -> ImageInfo:
    """What the header says, and what the files take."""
    header, file, data = image.header, image.file, image.data
    return ImageInfo(
        image.format,
        image.path,
        image.size,
        file.size(),
        file.allocated() + (data.allocated() if data is not file else 0),
        cluster_size=header.cluster_size,
        backing=_reference(header),
        snapshots=image.snapshots(),
        dirty=bool(header.incompatible & q.INCOMPATIBLE_DIRTY),
        encrypted=image.encrypted,
        details=_details(image),
    )


def _reference(header: q.Header) -> BackingReference | None:
    if header.backing is None:
        return None
    name = header.extension(q.EXTENSION_BACKING_FORMAT)
    return BackingReference(header.backing, name.decode("utf-8", "replace") if name else None)


def _details(image: Qcow2Image) -> dict[str, Json]:
    header = image.header
    data_file = header.extension(q.EXTENSION_DATA_FILE)
    return {
        "compat": "0.10" if header.version == 2 else "1.1",
        "compression_type": "zstd" if header.compression else "zlib",
        "lazy_refcounts": bool(header.compatible & q.COMPATIBLE_LAZY_REFCOUNTS),
        "refcount_bits": 1 << header.refcount_order,
        "corrupt": bool(header.incompatible & q.INCOMPATIBLE_CORRUPT),
        "extended_l2": header.extended_l2,
        "data_file": data_file.decode("utf-8", "replace") if data_file else None,
        "bitmaps": [bitmap.describe() for bitmap in image.bitmaps.all],
    }

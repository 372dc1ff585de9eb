"""Pictures as PNG files.

Reference: W3C "Portable Network Graphics (PNG) Specification (Second Edition)" §11 "Chunk specifications".
"""

from __future__ import annotations

import struct
import zlib

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TRUECOLOUR = 2
_NO_FILTER = b"\0"


def encode_png(width: int, height: int, rgb: bytes) -> bytes:
    """A PNG of ``width`` by ``height`` pixels of three bytes each, rows from the top."""
    stride = 3 * width
    rows = b"".join(_NO_FILTER + rgb[at : at + stride] for at in range(0, height * stride, stride))
    header = struct.pack(">IIBBBBB", width, height, 8, _TRUECOLOUR, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(rows, level=6)), (b"IEND", b"")
    return _SIGNATURE + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    checked = kind + data
    return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

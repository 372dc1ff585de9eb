"""QCOW2 compressed clusters: raw deflate with a window of 4 KiB, or a Zstandard frame.

Reference: "QCOW2 image format" (QEMU 7.2), § "Compressed Clusters Descriptor" and "compression_type".
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from sublet.block.qcow2.layout import COMPRESSION_ZSTD
from sublet.errors import CorruptImage

if TYPE_CHECKING:
    from zstandard import ZstdDecompressor

_WINDOW_BITS = -12
_ZSTD_WINDOW_MAXIMUM = 1 << 23


def compress(data: bytes | memoryview, kind: int) -> bytes:
    """Compress a cluster; the result may be larger than it."""
    if kind == COMPRESSION_ZSTD:
        import zstandard

        return zstandard.ZstdCompressor().compress(data)
    packer = zlib.compressobj(zlib.Z_DEFAULT_COMPRESSION, zlib.DEFLATED, _WINDOW_BITS)
    return packer.compress(data) + packer.flush()


def decompress(data: bytes, size: int, kind: int) -> bytes:
    """Exactly ``size`` bytes from ``data``, which may have rubbish behind its end.

    Raises:
        CorruptImage: It is not compressed data, or holds less.
    """
    try:
        plain = _unzstd(data, size) if kind == COMPRESSION_ZSTD else _inflate(data, size)
    except (zlib.error, ValueError) as error:
        raise CorruptImage(f"a compressed cluster is damaged: {error}") from error
    if len(plain) != size:
        raise CorruptImage(f"a compressed cluster holds {len(plain)} bytes, not {size}")
    return plain


def _inflate(data: bytes, size: int) -> bytes:
    return zlib.decompressobj(_WINDOW_BITS).decompress(data, size)


def _unzstd(data: bytes, size: int) -> bytes:
    """As ``decompress``; ``ValueError`` for damage."""
    import zstandard

    try:
        return _read_frame(zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_MAXIMUM), data, size)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error


def _read_frame(unpacker: ZstdDecompressor, data: bytes, size: int) -> bytes:
    with unpacker.stream_reader(data, read_across_frames=False) as reader:
        plain = bytearray()
        while len(plain) < size:
            piece = reader.read(size - len(plain))
            if not piece:
                break
            plain += piece
    return bytes(plain)

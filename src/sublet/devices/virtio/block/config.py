"""Feature bits, request types and configuration layout of the block device.

Reference: virtio 1.2 §5.2 "Block Device".
"""

from __future__ import annotations

import struct

DEVICE_TYPE = 2
PCI_CLASS = 0x010000
SECTOR = 512
"""Unit of every sector field, whatever the logical block size."""

F_SEG_MAX = 1 << 2
F_RO = 1 << 5
F_BLK_SIZE = 1 << 6
F_FLUSH = 1 << 9
F_TOPOLOGY = 1 << 10
F_MQ = 1 << 12
F_DISCARD = 1 << 13
F_WRITE_ZEROES = 1 << 14

T_IN, T_OUT, T_FLUSH, T_GET_ID, T_DISCARD, T_WRITE_ZEROES = 0, 1, 4, 8, 11, 13
S_OK, S_IOERR, S_UNSUPP = 0, 1, 2
ID_SIZE = 20
HEADER = struct.Struct("<IIQ")
"""Type, reserved, sector."""
RANGE = struct.Struct("<QII")
"""Of discard and write zeroes: sector, number of sectors, flags."""
WRITE_ZEROES_F_UNMAP = 1

MAX_RANGE_SECTORS = 1 << 22
"""Of one discard or write-zeroes range: 2 GiB."""
MAX_RANGES = 16

_LAYOUT = struct.Struct("<QIIHBBIBBHIBBHIIIIIB3x")


def pack_config(
    *,
    sectors: int,
    seg_max: int,
    block_size: int,
    physical_block_size: int,
    queues: int,
) -> bytes:
    """``struct virtio_blk_config``, 60 bytes, as far as the features offered reach."""
    blocks_exponent = max(physical_block_size // block_size, 1).bit_length() - 1
    return _LAYOUT.pack(
        sectors,
        0,  # size_max: not offered
        seg_max,
        0,  # geometry: not offered
        0,
        0,
        block_size,
        blocks_exponent,
        0,  # alignment offset
        max(physical_block_size // block_size, 1),  # suggested minimum I/O size in blocks
        0,  # optimal I/O size: no preference
        0,  # writeback: not offered, so the cache is write-back with flush
        0,
        queues,
        MAX_RANGE_SECTORS,
        MAX_RANGES,
        block_size // SECTOR,  # discard alignment
        MAX_RANGE_SECTORS,
        MAX_RANGES,
        1,  # write zeroes may unmap
    )

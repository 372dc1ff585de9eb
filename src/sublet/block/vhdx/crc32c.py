"""CRC-32C (Castagnoli), the checksum of every VHDX structure.

Structures are up to 64 KiB and end in long runs of zeroes, which are skipped by a matrix product in
place of a loop.

Reference: RFC 3720 appendix B.4 (test vectors); MS-VHDX 8.0 §2.2.2 "Headers".
"""

from __future__ import annotations

_POLYNOMIAL = 0x82F6_3B78
_Matrix = list[int]


def _table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _table()


def crc32c(data: bytes | bytearray) -> int:
    """The checksum of ``data``, 0 to 2**32 - 1."""
    head = data.rstrip(b"\0")
    register = 0xFFFF_FFFF
    for byte in head:
        register = _TABLE[(register ^ byte) & 0xFF] ^ (register >> 8)
    return _skip_zeroes(register, len(data) - len(head)) ^ 0xFFFF_FFFF


def _times(matrix: _Matrix, vector: int) -> int:
    """Product over GF(2); ``matrix[i]`` is the image of bit i."""
    result = 0
    for column in matrix:
        if vector & 1:
            result ^= column
        vector >>= 1
    return result


def _squares() -> list[_Matrix]:
    """Element n advances the register over 2**n zero bytes."""
    step = [_TABLE[(1 << bit) & 0xFF] ^ ((1 << bit) >> 8) for bit in range(32)]
    powers = [step]
    for _ in range(24):
        step = [_times(step, column) for column in step]
        powers.append(step)
    return powers


_POWERS = _squares()


def _skip_zeroes(register: int, count: int) -> int:
    """The register after ``count`` zero bytes, below 2**25."""
    for matrix in _POWERS:
        if count & 1:
            register = _times(matrix, register)
        count >>= 1
    return register

"""The Internet checksum.

Reference: RFC 1071 "Computing the Internet Checksum".
"""

from __future__ import annotations


def ones_complement_sum(data: bytes | bytearray | memoryview) -> int:
    """16-bit one's complement sum of big-endian words; an odd last byte is the high half of a word.

    2^16 is 1 modulo 0xFFFF, so the sum of the words is the whole number's remainder, computed in one go.
    A sum of words that are not all zero is never +0, but its remainder can be: that is 0xFFFF.
    """
    number = int.from_bytes(data, "big")
    if len(data) & 1:
        number <<= 8
    return number % 0xFFFF or (0xFFFF if number else 0)


def internet_checksum(data: bytes | bytearray | memoryview) -> int:
    """What goes into the checksum field when it was zero, or the sum of the pseudo header, in ``data``."""
    return ones_complement_sum(data) ^ 0xFFFF

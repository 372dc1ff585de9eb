"""Whole pictures at a time: pixels from planes, colours from pixels, with the loops inside ``bytes``."""

from __future__ import annotations

from collections.abc import Sequence

_BIT_AS = [
    [bytes((value >> 7 - bit & 1) << plane for value in range(256)) for plane in range(4)] for bit in range(8)
]
"""For bit ``7 - index`` of a plane's byte: its share of the pixel's value, by plane."""
_PAIR_AS = [
    [bytes((value >> 6 - 2 * pair & 3) << 2 * half for value in range(256)) for half in range(2)]
    for pair in range(4)
]
"""For a pair of bits, leftmost first: its share of the pixel's value, from a low or a high plane."""

_FIVE_BITS = [value << 3 | value >> 2 for value in range(32)]
_SIX_BITS = [value << 2 | value >> 4 for value in range(64)]


def from_planes(words: bytes, shown: int) -> bytes:
    """Eight pixels of a byte each from every word of four planes; ``shown`` masks the planes."""
    planes = [words[plane::4] for plane in range(4)]
    pixels = bytearray(2 * len(words))
    for bit, tables in enumerate(_BIT_AS):
        parts = [planes[plane].translate(tables[plane]) for plane in range(4) if shown >> plane & 1]
        pixels[bit::8] = _or(parts, len(planes[0]))
    return bytes(pixels)


def from_pairs(words: bytes, shown: int) -> bytes:
    """Eight pixels from every word: pairs of bits of plane 0, then of plane 1; planes 2 and 3 above them."""
    pixels = bytearray(2 * len(words))
    count = len(words) // 4
    mask = bytes(value & shown for value in range(256))
    for half in range(2):
        low, high = words[half::4], words[half + 2 :: 4]
        for pair, (as_low, as_high) in enumerate(_PAIR_AS):
            parts = [low.translate(as_low), high.translate(as_high)]
            pixels[4 * half + pair :: 8] = _or(parts, count).translate(mask)
    return bytes(pixels)


def _or(parts: Sequence[bytes], size: int) -> bytes:
    """Byte strings of one length ORed; a long integer does it in one sweep."""
    total = 0
    for part in parts:
        total |= int.from_bytes(part, "little")
    return total.to_bytes(size, "little")


def doubled(pixels: bytes) -> bytes:
    """Every pixel twice."""
    wide = bytearray(2 * len(pixels))
    wide[0::2] = wide[1::2] = pixels
    return bytes(wide)


def interleaved(red: bytes, green: bytes, blue: bytes) -> bytes:
    """RGB triples from three components of a picture."""
    rgb = bytearray(3 * len(red))
    rgb[0::3], rgb[1::3], rgb[2::3] = red, green, blue
    return bytes(rgb)


def through_palette(pixels: bytes, tables: tuple[bytes, bytes, bytes]) -> bytes:
    """RGB of pixels of a byte each."""
    red, green, blue = (pixels.translate(table) for table in tables)
    return interleaved(red, green, blue)


def _split_tables(green_bits: int) -> tuple[bytes, bytes, bytes, bytes]:
    """Red from the high byte, green from high and low, blue from the low, of 5:5:5 or 5:6:5 pixels."""
    red_shift = 5 + green_bits
    low_bits = 3  # of green, in the low byte
    widen = _SIX_BITS if green_bits == 6 else _FIVE_BITS
    red = bytes(_FIVE_BITS[(high << 8) >> red_shift & 31] for high in range(256))
    blue = bytes(_FIVE_BITS[low & 31] for low in range(256))
    in_high = (1 << green_bits - low_bits) - 1
    green_high = bytes((high & in_high) << low_bits for high in range(256))
    green = bytes(widen[value] if value < len(widen) else 0 for value in range(256))
    return red, green_high, green, blue


_GREEN_LOW = bytes(low >> 5 for low in range(256))
_SPLIT = {15: _split_tables(5), 16: _split_tables(6)}


def from_16_bits(data: bytes, bits: int) -> bytes:
    """RGB of little-endian pixels of 5:5:5 (``bits`` 15) or 5:6:5 (16)."""
    red, green_high, green, blue = _SPLIT[bits]
    low, high = data[0::2], data[1::2]
    mixed = _or([high.translate(green_high), low.translate(_GREEN_LOW)], len(low)).translate(green)
    return interleaved(high.translate(red), mixed, low.translate(blue))


def from_24_bits(data: bytes) -> bytes:
    """RGB of pixels stored blue, green, red."""
    return interleaved(data[2::3], data[1::3], data[0::3])


def from_32_bits(data: bytes) -> bytes:
    """RGB of pixels stored blue, green, red, unused."""
    return interleaved(data[2::4], data[1::4], data[0::4])

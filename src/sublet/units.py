"""Sizes as people write them."""

from __future__ import annotations

import re
from typing import Final

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30
TIB: Final = 1 << 40

_FACTORS: Final = {"": MIB, "B": 1, "K": KIB, "M": MIB, "G": GIB, "T": TIB}
_SIZE: Final = re.compile(
    r"([0-9]{1,15})(?:\.([0-9]{1,6}))? ?(?:([KMGT])(?:I?B)?|(B))?", re.ASCII | re.IGNORECASE
)


def parse_size(text: str) -> int:
    """Read a size such as ``512M``, ``1.5G`` or ``1GiB``; a bare number is in MiB.

    Args:
        text: A decimal number and a unit: B, K, M, G or T, powers of 1024, in either case.

    Returns:
        Bytes, 0 or more, rounded down.

    Raises:
        ValueError: The text is not a size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size: write a number and a unit, as in 512M or 1G")
    whole, fraction, unit, bare = match.groups()
    factor = _FACTORS[(unit or bare or "").upper()]
    digits = fraction or ""
    scale: int = 10 ** len(digits)
    return int(whole + digits) * factor // scale


def format_size(size: int) -> str:
    """Write ``size`` bytes for people: the largest binary unit that keeps it at 1 or more, one decimal."""
    for unit, factor in (("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if size >= factor:
            return f"{size / factor:.1f}".removesuffix(".0") + f" {unit}"
    return f"{size} B"

"""Sizes as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sublet.units import GIB, KIB, MIB, format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512", 512 * MIB),
        ("512M", 512 * MIB),
        ("512 MiB", 512 * MIB),
        ("1g", GIB),
        ("1.5G", GIB + 512 * MIB),
        ("4K", 4 * KIB),
        ("100B", 100),
        ("0", 0),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "-1M", "1..5G", "1X", "1e9", "0x10", "١M", "9" * 16])
def test_what_is_not_a_size(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


@given(st.integers(min_value=0, max_value=1 << 50))
def test_written_sizes_read_back_within_a_tenth(size: int) -> None:
    assert abs(parse_size(format_size(size)) - size) <= size * 0.1

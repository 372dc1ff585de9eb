"""What the core raises, as a caller of ``sublet.errors`` sees it."""

from __future__ import annotations

import pytest

from sublet import errors
from sublet.core import Engine, HostError, RamBlock
from sublet.engine import open_engine


def test_an_unknown_engine_is_wrong_usage() -> None:
    with pytest.raises(errors.UsageError, match="xen"):
        Engine("xen")
    with pytest.raises(errors.UsageError, match="xen"):
        open_engine("xen")  # type: ignore[arg-type]


def test_refused_memory_has_its_errno_and_class() -> None:
    with pytest.raises(errors.HostRefused) as caught:
        RamBlock(1 << 62)
    assert isinstance(caught.value, HostError)
    assert caught.value.errno > 0
    assert caught.value.exit_code == 3


def test_an_empty_ram_block_is_refused() -> None:
    with pytest.raises(errors.HostRefused, match="0 bytes"):
        RamBlock(0)


def test_a_ram_block_is_whole_pages() -> None:
    block = RamBlock(5000)
    assert block.size == 8192
    assert block.fileno() >= 0

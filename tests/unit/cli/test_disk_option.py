"""The value of ``--disk``."""

from __future__ import annotations

from pathlib import Path

import pytest

from sublet.cli.disk_option import parse_disk
from sublet.errors import UsageError
from sublet.machine import DiskConfig


def test_file_alone() -> None:
    assert parse_disk("a.qcow2") == DiskConfig(path=Path("a.qcow2"))


def test_all_options() -> None:
    text = "a,,b.img,format=raw,readonly=on,cache=none,serial=s1,iops=100,bps=10M"
    assert parse_disk(text) == DiskConfig(
        path=Path("a,b.img"),
        format="raw",
        readonly=True,
        cache="none",
        serial="s1",
        iops=100,
        bytes_per_second=10 << 20,
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        ",readonly=on",
        "a,b",
        "a,cache=fast",
        "a,readonly=yes",
        "a,bps=x",
        "a,iops=-1",
        "a,iops=many",
        "a,serial=" + "s" * 21,
    ],
)
def test_what_cannot_be(text: str) -> None:
    with pytest.raises(UsageError, match="--disk"):
        parse_disk(text)

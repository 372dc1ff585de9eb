"""``sublet disk``: what each verb prints and how it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sublet.block import open_image
from sublet.cli import main

KIB, MIB = 1 << 10, 1 << 20


@pytest.fixture
def qcow2(tmp_path: Path) -> Path:
    path = tmp_path / "disk.qcow2"
    assert main(["disk", "create", str(path), "4M"]) == 0
    with open_image(path) as image:
        image.write(MIB, b"x" * MIB)
    return path


def answer(capsys: pytest.CaptureFixture[str], *words: str | Path, status: int = 0) -> Any:
    """The JSON that a verb prints."""
    capsys.readouterr()
    assert main(["disk", *map(str, words), "--json"]) == status
    return json.loads(capsys.readouterr().out)


def test_info(qcow2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_image(qcow2):  # also while it is in use
        facts = answer(capsys, "info", qcow2)
    assert (facts["format"], facts["size"], facts["cluster_size"]) == ("qcow2", 4 * MIB, 64 * KIB)
    assert main(["disk", "info", str(qcow2)]) == 0
    assert "size: 4 MiB (4194304 bytes)" in capsys.readouterr().out


def test_convert_and_compare(tmp_path: Path, qcow2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = tmp_path / "disk.raw"
    assert answer(capsys, "convert", qcow2, raw)["size"] == 4 * MIB
    assert answer(capsys, "compare", qcow2, raw) == {"same": True}
    assert main(["disk", "convert", str(qcow2), str(raw)]) == 3
    assert main(["disk", "convert", str(qcow2), str(raw), "--force", "--no-sync"]) == 0
    with open_image(raw) as image:
        image.write(5, b"!")
    assert answer(capsys, "compare", qcow2, raw, status=22)["offset"] == 5


def test_overlay_commit_rebase(tmp_path: Path, qcow2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    top = tmp_path / "top.qcow2"
    assert answer(capsys, "create", top, "-b", qcow2)["backing"] == "disk.qcow2"
    with open_image(top) as image:
        image.write(0, b"top")
    rows = answer(capsys, "map", top)
    assert [(row["offset"], row["size"], row["depth"]) for row in rows if row["data"]] == [
        (0, 64 * KIB, 0),
        (MIB, MIB, 1),
    ]
    assert answer(capsys, "commit", top)["parent"] == str(qcow2)
    with open_image(qcow2, readonly=True) as image:
        assert image.read(0, 3) == b"top"
    assert answer(capsys, "rebase", top)["backing"] is None


def test_snapshots(qcow2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [one["name"] for one in answer(capsys, "snapshot", qcow2, "before")] == ["before"]
    assert main(["disk", "snapshot", str(qcow2), "--revert", "before"]) == 0
    assert main(["disk", "snapshot", str(qcow2)]) == 0
    assert "before" in capsys.readouterr().out
    assert answer(capsys, "snapshot", qcow2, "--delete", "before") == []
    assert main(["disk", "snapshot", str(qcow2), "--delete", "before"]) == 2


def test_resize(qcow2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(capsys, "resize", qcow2, "+4M")["size"] == 8 * MIB
    assert main(["disk", "resize", str(qcow2), "2M"]) == 2
    assert answer(capsys, "resize", qcow2, "2M", "--shrink")["size"] == 2 * MIB


def test_compact_and_dd(tmp_path: Path, qcow2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = tmp_path / "zero.raw"
    raw.write_bytes(bytes(4 * MIB))
    assert answer(capsys, "dd", raw, qcow2, "--bs", "1M", "--count", "1", "--seek", "1") == {"copied": MIB}
    assert main(["disk", "dd", str(raw), str(qcow2), "--seek", "1"]) == 2
    answer(capsys, "compact", qcow2)
    assert [row for row in answer(capsys, "map", qcow2) if row["data"]] == []


def test_bitmap_and_backup(tmp_path: Path, qcow2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(capsys, "bitmap", qcow2, "--add", "b")[0]["granularity"] == 64 * KIB
    full, increment = tmp_path / "full.qcow2", tmp_path / "one.qcow2"
    answer(capsys, "convert", qcow2, full)
    with open_image(qcow2) as image:
        image.write(0, b"later")
    words = ("backup", qcow2, increment, "--bitmap", "b", "--previous", full)
    assert answer(capsys, *words)["size"] == 64 * KIB
    assert answer(capsys, "compare", qcow2, increment) == {"same": True}
    assert answer(capsys, "bitmap", qcow2, "--remove", "b") == []
    assert main(["disk", "bitmap", str(qcow2), "--remove", "b"]) == 2


def test_check_tells_leaks_from_errors(qcow2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(capsys, "check", qcow2)["clean"] is True
    content = bytearray(qcow2.read_bytes())
    block = int.from_bytes(content[65536:65544], "big")
    content[block + 200 : block + 202] = b"\0\1"
    qcow2.write_bytes(content)
    assert answer(capsys, "check", qcow2, status=21)["leaks"] == 1
    content[block : block + 2] = b"\0\0"
    qcow2.write_bytes(content)
    assert answer(capsys, "check", qcow2, status=20)["errors"] >= 1
    assert answer(capsys, "check", qcow2, "--repair")["errors_repaired"] >= 1
    assert answer(capsys, "check", qcow2)["clean"] is True


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["create", "x.foo", "1M"], 2),
        (["create", "x.qcow2", "much"], 2),
        (["create", "x.qcow2", "1M", "-o", "colour=red"], 2),
        (["create", "x.qcow2", "1M", "-o", "colour"], 2),
        (["create", "x.qcow2"], 2),
        (["create", "x.qcow2", "-b", "missing.raw"], 3),
        (["info", "missing.raw"], 3),
        (["serve", "missing.raw"], 3),
        (["resize", "missing.raw", "1G"], 3),
    ],
)
def test_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], status: int) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["disk", *words]) == status
    assert list(tmp_path.iterdir()) == []

"""The initramfs: its archive form, and the tables of its modules."""

from __future__ import annotations

import io

import pytest
from tests.unit.guest.fake_archive import make_module

from sublet.errors import CorruptImage
from sublet.guest.cpio import CpioWriter
from sublet.guest.modules import Module, module_path, modules_alias, modules_dep, select


def parse(data: bytes) -> dict[str, tuple[int, bytes]]:
    """Entries of a newc archive by name: mode and content."""
    entries: dict[str, tuple[int, bytes]] = {}
    offset = 0
    while True:
        assert data[offset : offset + 6] == b"070701"
        fields = [int(data[offset + 6 + 8 * i : offset + 14 + 8 * i], 16) for i in range(13)]
        name = data[offset + 110 : offset + 110 + fields[11] - 1].decode()
        start = -(-(offset + 110 + fields[11]) // 4) * 4
        if name == "TRAILER!!!":
            return entries
        entries[name] = (fields[1], data[start : start + fields[6]])
        offset = -(-(start + fields[6]) // 4) * 4


def test_newc_entries_round_trip() -> None:
    stream = io.BytesIO()
    writer = CpioWriter(stream)
    writer.directory("bin")
    writer.file("bin/sh", b"12345", 0o755)
    writer.symlink("sbin", "bin")
    writer.character_device("console", 5, 1)
    writer.close()
    data = stream.getvalue()
    assert len(data) % 512 == 0
    assert parse(data) == {
        "bin": (0o40755, b""),
        "bin/sh": (0o100755, b"12345"),
        "sbin": (0o120777, b"bin"),
        "console": (0o20600, b""),
    }


def modules(*made: tuple[str, str]) -> dict[str, Module]:
    return {name: Module(f"kernel/{name}.ko", make_module(name, depends)) for name, depends in made}


def test_module_comes_after_what_it_needs() -> None:
    known = modules(("a", "b,c"), ("b", "c"), ("c", ""))
    assert [module.name for module in select(known, ["a", "absent"])] == ["c", "b", "a"]


def test_modules_dep_lists_nearest_first() -> None:
    known = modules(("a", "b"), ("b", "c"), ("c", ""))
    text = modules_dep(select(known, ["a"]))
    assert "kernel/a.ko: kernel/b.ko kernel/c.ko\n" in text
    assert "kernel/c.ko:\n" in text


@pytest.mark.parametrize("made", [[("a", "missing")], [("a", "b"), ("b", "a")]])
def test_bad_dependencies_are_refused(made: list[tuple[str, str]]) -> None:
    with pytest.raises(CorruptImage, match="bad dependency"):
        select(modules(*made), ["a"])


def test_aliases_and_dashes() -> None:
    module = Module("kernel/virtio-blk.ko", make_module("virtio_blk", "", "virtio:d2v*"))
    assert modules_alias([module]) == "alias virtio:d2v* virtio_blk\n"


def test_module_paths() -> None:
    assert module_path("lib/modules/6.1/kernel/fs/ext4/ext4.ko") == ("6.1", "kernel/fs/ext4/ext4.ko")
    assert module_path("lib/modules/6.1/modules.order") is None

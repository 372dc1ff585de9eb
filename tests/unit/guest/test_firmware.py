"""Firmware from an archive: what is kept, what is refused, and that the cache serves it afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.guest.fake_archive import FakeArchive

from sublet.errors import CorruptImage
from sublet.guest.firmware import prepare_firmware


@pytest.fixture
def published(archive: FakeArchive) -> FakeArchive:
    """The archive with a BIOS, a link and a manual in its package."""
    archive.add(
        "seabios",
        {
            "usr/share/seabios/bios.bin": b"a BIOS",
            "usr/share/seabios/link.bin": b"->bios.bin",
            "usr/share/doc/seabios/README": b"a manual",
        },
    )
    archive.add("ovmf", {"usr/share/doc/ovmf/README": b"a manual"})
    archive.publish()
    return archive


def test_images_are_kept_and_nothing_else(published: FakeArchive, cache: Path) -> None:
    folder = prepare_firmware("seabios", cache=cache)
    assert {path.name for path in folder.iterdir()} == {"bios.bin", "manifest.json"}
    assert (folder / "bios.bin").read_bytes() == b"a BIOS"


def test_the_second_time_needs_no_archive(
    published: FakeArchive, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare_firmware("seabios", cache=cache)
    monkeypatch.setenv("SUBLET_MIRROR", "http://127.0.0.1:1/debian")
    assert prepare_firmware("seabios", cache=cache) == first


def test_a_tampered_package_is_refused(published: FakeArchive, cache: Path) -> None:
    data = bytearray(published.deb_path("seabios").read_bytes())
    data[-1] ^= 1
    published.deb_path("seabios").write_bytes(data)
    with pytest.raises(CorruptImage, match="checksum"):
        prepare_firmware("seabios", cache=cache)
    assert list((cache / "guests").glob("firmware*")) == []


def test_a_package_without_images_is_refused(published: FakeArchive, cache: Path) -> None:
    with pytest.raises(CorruptImage, match=r"OVMF_\*"):
        prepare_firmware("ovmf", cache=cache)

"""The cache: sparse copies, throw-away disks, what killed processes leave."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sublet.errors import HostRefused
from sublet.guest.store import Store, cache_directory, copy_sparse


def test_cache_directory_follows_the_standard() -> None:
    assert cache_directory({"XDG_CACHE_HOME": "/x"}) == Path("/x/sublet")
    assert cache_directory({"XDG_CACHE_HOME": "relative"}) == Path("~/.cache/sublet").expanduser()


def test_copy_keeps_content_and_holes(tmp_path: Path) -> None:
    source = tmp_path / "a"
    with source.open("wb") as stream:
        stream.seek(8 << 20)
        stream.write(b"middle")
        stream.truncate(64 << 20)
    copy_sparse(source, tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == source.read_bytes()
    assert (tmp_path / "b").stat().st_blocks * 512 < 8 << 20


def test_run_disk_is_private_and_goes(tmp_path: Path) -> None:
    image = tmp_path / "disk.raw"
    image.write_bytes(b"cached")
    store = Store(tmp_path / "cache")
    one, two = store.private_copy(image), store.private_copy(image)
    one.path.write_bytes(b"changed")
    assert two.path.read_bytes() == image.read_bytes() == b"cached"
    one.close()
    one.close()
    two.close()
    assert list((tmp_path / "cache/runs").iterdir()) == []


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    (runs / "dead").mkdir(parents=True)
    (runs / "dead/disk.raw").write_bytes(b"x")
    (runs / "dead.lock").touch()
    image = tmp_path / "disk.raw"
    image.write_bytes(b"cached")
    Store(tmp_path).private_copy(image).close()
    assert not (runs / "dead").exists()


def test_damaged_pointer_counts_as_not_cached(tmp_path: Path) -> None:
    (tmp_path / "guests").mkdir()
    for text in ("", "{", "[]", '{"directory": "../.."}'):
        (tmp_path / "guests/default.json").write_text(text)
        assert Store(tmp_path).current("default", "1") is None


def test_cache_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HostRefused, match="cache directory"):
        Store(tmp_path / "file").directory("guests")


def test_a_ctrl_c_during_the_removal_waits_for_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, real, calls = Store(tmp_path), shutil.rmtree, []

    def interrupted_once(path: Path, **options: bool) -> None:
        calls.append(path)
        if len(calls) == 1:
            raise KeyboardInterrupt
        real(path, **options)

    monkeypatch.setattr(shutil, "rmtree", interrupted_once)
    with pytest.raises(KeyboardInterrupt), store.scratch() as scratch:
        (scratch / "file").touch()
    assert not list((tmp_path / "scratch").iterdir())


def test_a_held_directory_that_nobody_closes_goes_with_its_holder(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"disk")
    disk = Store(tmp_path).private_copy(image)
    assert disk.path.read_bytes() == b"disk"
    del disk
    assert not list((tmp_path / "runs").iterdir())

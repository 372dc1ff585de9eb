"""Making guests from an archive: what comes out, what is refused, and what is left behind (nothing)."""

from __future__ import annotations

import errno
import http.server
import json
import threading
from pathlib import Path

import pytest
from tests.unit.guest.fake_archive import KERNEL, RELEASE, FakeArchive

from sublet.errors import CorruptImage, HostRefused, UsageError
from sublet.guest import catalogue, list_guests, prepare_guest
from sublet.guest.cpio import CpioWriter


def leftovers(cache: Path) -> list[str]:
    """Everything in the cache that is neither a lock nor an empty directory."""
    return [str(p.relative_to(cache)) for p in cache.rglob("*") if p.is_file() and p.suffix != ".lock"]


def test_default_guest_is_made_of_kernel_busybox_and_wanted_modules(
    archive: FakeArchive, cache: Path
) -> None:
    guest = prepare_guest("default", cache=cache)
    assert guest.kernel.read_bytes() == b"a kernel"
    assert guest.initrd is not None
    content = guest.initrd.read_bytes()
    for expected in (
        b"a busybox",
        b"virtio_blk.ko",
        b"kernel/drivers/virtio_blk.ko: kernel/drivers/virtio.ko",
    ):
        assert expected in content
    assert b"unwanted" not in content
    assert guest.cmdline.startswith("console=ttyS0")
    assert guest.disks == ()


def test_second_preparation_needs_no_archive(
    archive: FakeArchive, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare_guest("default", cache=cache)
    monkeypatch.setenv("SUBLET_MIRROR", "http://127.0.0.1:1/debian")
    assert prepare_guest("default", cache=cache).kernel == first.kernel
    assert [info.name for info in list_guests(cache) if info.cached] == ["default"]


def test_same_packages_make_the_same_bytes(archive: FakeArchive, tmp_path: Path) -> None:
    images = [prepare_guest("default", cache=tmp_path / name).initrd for name in ("one", "two")]
    assert images[0] is not None
    assert images[1] is not None
    assert images[0].read_bytes() == images[1].read_bytes()


def test_another_builder_makes_it_anew(
    archive: FakeArchive, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare_guest("default", cache=cache)
    monkeypatch.setattr(catalogue, "_BUILDER_VERSION", "another")
    assert prepare_guest("default", cache=cache).kernel != first.kernel


def test_unknown_guest_names_the_known_ones(cache: Path) -> None:
    with pytest.raises(UsageError) as caught:
        prepare_guest("windows", cache=cache)
    assert "default" in caught.value.remedy
    assert not cache.exists()


def test_packages_need_a_disk(cache: Path) -> None:
    with pytest.raises(UsageError, match="no disk"):
        prepare_guest("default", packages=("gcc",), cache=cache)


def test_unknown_package_is_named(archive: FakeArchive, cache: Path) -> None:
    with pytest.raises(UsageError, match="no-such-package"):
        prepare_guest("debian", packages=("no-such-package",), cache=cache)


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_tampered_package_is_refused(archive: FakeArchive, cache: Path) -> None:
    flip_last_byte(archive.deb_path(KERNEL))
    with pytest.raises(CorruptImage, match="checksum"):
        prepare_guest("default", cache=cache)
    assert leftovers(cache) == []


def test_package_longer_than_announced_is_refused(archive: FakeArchive, cache: Path) -> None:
    with archive.deb_path(KERNEL).open("ab") as stream:
        stream.write(b"more")
    with pytest.raises(CorruptImage, match="longer"):
        prepare_guest("default", cache=cache)
    assert leftovers(cache) == []


def test_tampered_index_is_refused(archive: FakeArchive, cache: Path) -> None:
    flip_last_byte(archive.index_path)
    with pytest.raises(CorruptImage, match="checksum"):
        prepare_guest("default", cache=cache)


def test_tampered_release_is_refused(archive: FakeArchive, cache: Path) -> None:
    text = archive.release_path.read_text().replace("Origin: Debian", "Origin: Another")
    archive.release_path.write_text(text)
    with pytest.raises(CorruptImage, match="signature"):
        prepare_guest("default", cache=cache)


def test_unsigned_release_is_refused(archive: FakeArchive, cache: Path) -> None:
    archive.release_path.write_text("Codename: bookworm\nSHA256:\n")
    with pytest.raises(CorruptImage, match="signature"):
        prepare_guest("default", cache=cache)


def test_no_keyring_is_refused_with_a_remedy(
    archive: FakeArchive, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUBLET_KEYRING", "/nonexistent/keyring")
    with pytest.raises(HostRefused) as caught:
        prepare_guest("default", cache=cache)
    assert "SUBLET_KEYRING" in caught.value.remedy


def test_unreachable_mirror_is_refused(archive: FakeArchive, cache: Path) -> None:
    with pytest.raises(HostRefused, match=r"127\.0\.0\.1"):
        prepare_guest("default", mirror="http://127.0.0.1:1/debian", cache=cache)


def test_what_is_no_address_is_refused(cache: Path) -> None:
    with pytest.raises(UsageError, match="mirror"):
        prepare_guest("default", mirror="ftp:/x", cache=cache)


class BreakingHandler(http.server.SimpleHTTPRequestHandler):
    """Announces the whole of a package and sends half of it."""

    def copyfile(self, source: object, outputfile: object) -> None:
        data = source.read()  # type: ignore[attr-defined]
        part = data[: len(data) // 2] if self.path.endswith(".deb") else data
        outputfile.write(part)  # type: ignore[attr-defined]

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_download_that_breaks_leaves_nothing(archive: FakeArchive, cache: Path) -> None:
    def handler(*arguments: object) -> BreakingHandler:
        return BreakingHandler(*arguments, directory=str(archive.root))  # type: ignore[arg-type]

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:  # type: ignore[arg-type]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with pytest.raises(HostRefused, match="broke off"):
                prepare_guest("default", mirror=f"http://127.0.0.1:{server.server_port}", cache=cache)
        finally:
            server.shutdown()
            thread.join()
    assert leftovers(cache) == []


def test_full_disk_has_a_remedy_and_leaves_nothing(
    archive: FakeArchive, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(CpioWriter, "file", refuse)
    with pytest.raises(HostRefused, match="no space") as caught:
        prepare_guest("default", cache=cache)
    assert "XDG_CACHE_HOME" in caught.value.remedy
    assert leftovers(cache) == []


def test_interruption_leaves_nothing(
    archive: FakeArchive, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(CpioWriter, "close", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare_guest("default", cache=cache)
    assert leftovers(cache) == []


def test_two_at_once_build_it_once(
    archive: FakeArchive, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builds: list[str] = []
    build = catalogue._build

    def counted(*arguments: object) -> Path:
        builds.append("build")
        return build(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(catalogue, "_build", counted)
    threads = [
        threading.Thread(target=prepare_guest, args=("default",), kwargs={"cache": cache}) for _ in "ab"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert builds == ["build"]


def test_manifest_says_what_it_was_made_from(archive: FakeArchive, cache: Path) -> None:
    manifest = json.loads((prepare_guest("default", cache=cache).kernel.parent / "manifest.json").read_text())
    assert manifest["packages"] == {KERNEL: "1.0", "busybox-static": "1.0"}
    assert RELEASE in KERNEL

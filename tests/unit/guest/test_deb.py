"""Reading packages: good ones, damaged ones, hostile ones."""

from __future__ import annotations

import lzma
import os
import stat
from pathlib import Path

import pytest
from tests.unit.guest.fake_archive import make_ar, make_deb, make_tar

from sublet.errors import CorruptImage, UnsupportedImage
from sublet.guest.deb import DebFile
from sublet.guest.tree import RootTree

CONTROL = "Package: p\nVersion: 1\nArchitecture: amd64\n"


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_entries_and_control_files(tmp_path: Path) -> None:
    deb = DebFile(write(tmp_path / "p.deb", make_deb(CONTROL, {"./usr/bin/p": b"hello"})))
    assert deb.control_files() == {"control": CONTROL.encode()}
    assert [(info.name, stream.read()) for info, stream in deb.entries() if stream] == [
        ("usr/bin/p", b"hello")
    ]


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = make_deb(CONTROL, {"a": b"content"})
    for size in range(0, len(whole) - 1, 7):
        path = write(tmp_path / "p.deb", whole[:size])
        with pytest.raises(CorruptImage):
            list(DebFile(path).entries())


def test_other_compression_is_named(tmp_path: Path) -> None:
    data = make_ar({"debian-binary": b"2.0\n", "control.tar.zst": b"", "data.tar.zst": b""})
    with pytest.raises(UnsupportedImage, match=r"data\.tar\.zst"):
        list(DebFile(write(tmp_path / "p.deb", data)).entries())


def test_name_that_climbs_out_is_refused(tmp_path: Path) -> None:
    deb = DebFile(write(tmp_path / "p.deb", make_deb(CONTROL, {"../../etc/passwd": b"x"})))
    with pytest.raises(CorruptImage, match="unsafe"):
        list(deb.entries())


def test_link_does_not_lead_out_of_the_tree(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    tree = RootTree(tmp_path / "root")
    files = {"etc/": b"", "etc/link": f"->{outside}".encode(), "etc/link/file": b"x"}
    tree.unpack(write(tmp_path / "p.deb", make_deb(CONTROL, files)))
    assert list(outside.iterdir()) == []
    assert (tree.path / str(outside).lstrip("/") / "file").read_bytes() == b"x"


def test_files_follow_merged_usr(tmp_path: Path) -> None:
    tree = RootTree(tmp_path / "root")
    tree.unpack(write(tmp_path / "p.deb", make_deb(CONTROL, {"bin/": b"", "bin/tool": b"x"})))
    assert (tree.path / "bin").is_symlink()
    assert (tree.path / "usr/bin/tool").read_bytes() == b"x"


def test_database_says_unpacked_and_conffiles_wait(tmp_path: Path) -> None:
    tree = RootTree(tmp_path / "root")
    scripts = {"conffiles": b"/etc/p.conf\n", "postinst": b"#!/bin/sh\n"}
    tree.unpack(write(tmp_path / "p.deb", make_deb(CONTROL, {"etc/p.conf": b"x"}, scripts)))
    status = (tree.path / "var/lib/dpkg/status").read_text()
    assert "Status: install ok unpacked" in status
    assert "Conffiles:\n /etc/p.conf newconffile" in status
    assert (tree.path / "etc/p.conf.dpkg-new").exists()
    assert (tree.path / "var/lib/dpkg/info/p.list").read_text() == "/.\n/etc/p.conf\n"
    assert stat.S_IMODE((tree.path / "var/lib/dpkg/info/p.postinst").stat().st_mode) == 0o755


def test_device_node_in_a_package_is_refused(tmp_path: Path) -> None:
    raw = bytearray(make_tar({"dev/x": b""}))
    raw[156:157] = b"3"
    raw[148:156] = b"        "
    raw[148:156] = f"{sum(raw[:512]):06o}\0 ".encode()
    members = {
        "debian-binary": b"2.0\n",
        "control.tar.xz": lzma.compress(make_tar({"control": CONTROL.encode()})),
    }
    path = write(tmp_path / "p.deb", make_ar({**members, "data.tar.xz": lzma.compress(bytes(raw))}))
    with pytest.raises(CorruptImage, match="neither file"):
        RootTree(tmp_path / "root").unpack(path)
    assert not os.path.lexists(tmp_path / "root/dev/x")

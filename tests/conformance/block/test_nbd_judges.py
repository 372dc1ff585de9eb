"""The NBD server as other people's clients see it."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sublet.block import create_image, open_image
from sublet.block.nbd import NbdServer

pytestmark = pytest.mark.skipif(
    shutil.which("nbdcopy") is None or shutil.which("qemu-img") is None,
    reason="nbdcopy or qemu-img is not installed",
)

MIB = 1 << 20


def run(*words: str | Path) -> str:
    """What a command prints; it must succeed."""
    result = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, f"{words}: {result.stdout}{result.stderr}"
    return result.stdout


@pytest.fixture
def uri(tmp_path: Path) -> Iterator[str]:
    """A served QCOW2 image of 8 MiB."""
    create_image(tmp_path / "disk.qcow2", 8 * MIB, format="qcow2")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    with open_image(tmp_path / "disk.qcow2") as image:
        server = NbdServer(image, listener)
        thread = threading.Thread(target=server.serve)
        thread.start()
        yield f"nbd+unix:///?socket={tmp_path / 's'}"
        server.stop()
        thread.join()


def test_nbdcopy_there_and_back(tmp_path: Path, uri: str) -> None:
    source, back = tmp_path / "source.raw", tmp_path / "back.raw"
    source.write_bytes((b"x" * MIB + bytes(MIB)) * 4)
    run("nbdcopy", source, uri)
    run("nbdcopy", uri, back)
    assert back.read_bytes() == source.read_bytes()
    assert "base:allocation" in run("nbdinfo", uri)
    assert run("nbdinfo", "--map", "--totals", uri).count("hole") == 1


def test_qemu_img_as_client(tmp_path: Path, uri: str) -> None:
    source = tmp_path / "source.raw"
    source.write_bytes((b"y" * 12345).ljust(8 * MIB, b"\0"))
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", source, uri)
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", source, uri)
    assert '"virtual-size": 8388608' in run("qemu-img", "info", "--output=json", uri)

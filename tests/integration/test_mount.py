"""A disk of any format as a raw file of the host."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sublet.block import create_image, open_image

MIB = 1 << 20

pytestmark = pytest.mark.skipif(
    shutil.which("nbdfuse") is None or not os.access("/dev/fuse", os.R_OK | os.W_OK) or os.geteuid() != 0,
    reason="there is no nbdfuse, or no /dev/fuse to mount with as root",
)


@pytest.mark.parametrize("format", ["qcow2", "vhdx"])
def test_what_is_written_to_the_file_is_in_the_image(tmp_path: Path, format: str) -> None:
    path, folder = tmp_path / f"disk.{format}", tmp_path / "mounted"
    create_image(path, 8 * MIB, format=format)
    with open_image(path) as image:
        image.write(MIB, b"before" * 1000)
    folder.mkdir()
    command = [sys.executable, "-m", "sublet", "disk", "mount", str(path), str(folder)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        assert str(folder / "disk") in process.stderr.readline()
        file = folder / "disk"
        assert file.stat().st_size == 8 * MIB
        with file.open("r+b") as raw:
            raw.seek(MIB)
            assert raw.read(6000) == b"before" * 1000
            raw.seek(3 * MIB + 77)
            raw.write(b"after" * 1000)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()
    assert list(folder.iterdir()) == []
    with open_image(path, readonly=True) as image:
        assert image.check().clean
        assert image.read(3 * MIB + 77, 5000) == b"after" * 1000


def test_a_missing_program_is_named(tmp_path: Path) -> None:
    create_image(tmp_path / "disk.qcow2", MIB, format="qcow2")
    (tmp_path / "mounted").mkdir()
    command = [sys.executable, "-m", "sublet", "disk", "mount", str(tmp_path / "disk.qcow2")]
    environment = {**os.environ, "PATH": str(tmp_path)}
    result = subprocess.run(
        [*command, str(tmp_path / "mounted")], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 3
    assert "no nbdfuse" in result.stderr
    assert "libnbd-bin" in result.stderr

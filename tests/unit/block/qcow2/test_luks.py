"""Encrypted QCOW2 images."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import pytest

from sublet.block import create_image, open_image
from sublet.block.qcow2 import luks
from sublet.errors import CorruptImage, UnsupportedImage, UsageError

MIB = 1 << 20


@pytest.fixture(autouse=True)
def secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "secret"
    path.write_bytes(b"open sesame\n")
    monkeypatch.setenv(luks.SECRET_VARIABLE, str(path))
    monkeypatch.setattr(luks, "_ITERATIONS", 1000)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "disk.qcow2"
    create_image(path, 2 * MIB, format="qcow2", options={"encryption": "luks"})
    return path


def test_what_is_written_is_read_and_hidden(path: Path) -> None:
    rng = random.Random(2)
    model = bytearray(2 * MIB)
    with open_image(path) as image:
        assert image.info().encrypted
        for _ in range(20):
            offset = rng.randrange(2 * MIB - 100_000)
            data = b"plain text" * rng.randrange(1, 9000)
            image.write(offset, data)
            model[offset : offset + len(data)] = data
        image.write_compressed(MIB, bytes(65536))
        model[MIB : MIB + 65536] = bytes(65536)
        image.create_snapshot("s")
        assert image.check().clean
    assert b"plain text" not in path.read_bytes()
    with open_image(path, readonly=True) as image:
        assert image.read(0, 2 * MIB) == model


def test_passphrases(path: Path, secret: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_image(path) as image:
        image.write(0, b"x")
    secret.write_bytes(b"wrong")
    with open_image(path) as image, pytest.raises(UsageError, match="does not open"):
        image.read(0, 512)
    monkeypatch.delenv(luks.SECRET_VARIABLE)
    with open_image(path) as image:
        assert image.check().clean  # needs no passphrase
        with pytest.raises(UsageError, match="encrypted"):
            image.read(0, 512)
    with pytest.raises(UsageError, match="encrypted"):
        create_image(path.parent / "other.qcow2", MIB, format="qcow2", options={"encryption": "luks"})
    assert not (path.parent / "other.qcow2").exists()


@pytest.mark.parametrize(
    ("offset", "value", "error"),
    [
        (0, b"XXXX", CorruptImage),
        (6, b"\0\2", UnsupportedImage),
        (8, b"des", UnsupportedImage),
        (72, b"md5\0\0\0\0", UnsupportedImage),
        (164, b"\xff\xff\xff\xff", CorruptImage),
        (212, b"\xff\xff\xff\xff", CorruptImage),
        (248, b"\xff\xff\xff\xff", CorruptImage),
        (252, b"\0\xff\xff\xff", CorruptImage),
    ],
)
def test_damaged_headers(offset: int, value: bytes, error: type[Exception]) -> None:
    header = bytearray(luks.make_header(b"open sesame", iterations=1000)[0])
    assert len(luks.unlock(bytes(header), b"open sesame")) == 64
    header[offset : offset + len(value)] = value
    with pytest.raises(error):
        luks.unlock(bytes(header), b"open sesame")


def _create_with_qemu(words: list[str]) -> None:
    """Run qemu-img until it has timed its key derivation: it gives up when the kernel's clock ticks badly."""
    for _ in range(50):
        run = subprocess.run(["qemu-img", *words], capture_output=True, text=True)
        if "Unable to get accurate CPU usage" not in run.stderr:
            break
    assert run.returncode == 0, run.stderr


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")
def test_qemu_reads_ours_and_we_read_theirs(tmp_path: Path, path: Path) -> None:
    theirs, raw = tmp_path / "theirs.qcow2", tmp_path / "plain.raw"
    (tmp_path / "bare").write_bytes(b"open sesame")
    key = f"secret,id=k,file={tmp_path / 'bare'}"
    content = random.Random(3).randbytes(MIB) + bytes(MIB)
    with open_image(path) as image:
        image.write(0, content)
    opened = f"driver=qcow2,file.filename={path},encrypt.key-secret=k"
    words = ["convert", "--object", key, "--image-opts", opened, "-O", "raw", str(raw)]
    subprocess.run(["qemu-img", *words], check=True, capture_output=True)
    assert raw.read_bytes() == content
    options = "encrypt.format=luks,encrypt.key-secret=k,encrypt.iter-time=10"
    _create_with_qemu(["create", "--object", key, "-f", "qcow2", "-o", options, str(theirs), "2M"])
    target = f"driver=qcow2,file.filename={theirs},encrypt.key-secret=k"
    words = ["convert", "--object", key, "-n", "--image-opts", "--target-image-opts"]
    source = f"driver=raw,file.filename={raw}"
    subprocess.run(["qemu-img", *words, source, target], check=True, capture_output=True)
    with open_image(theirs) as image:
        assert image.read(0, 2 * MIB) == content
        image.write(MIB, b"ours")
        assert image.check().clean

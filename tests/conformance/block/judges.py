"""Other people's tools, and random content to judge with them."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

needs_qemu = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")


def qemu_img(*arguments: object) -> str:
    """What ``qemu-img`` prints; it must succeed."""
    command = ["qemu-img", *(str(argument) for argument in arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, (command, result.stdout, result.stderr)
    return result.stdout


def qemu_info(path: Path, format: str) -> dict[str, Any]:
    """What ``qemu-img info`` knows of an image."""
    found: dict[str, Any] = json.loads(qemu_img("info", "--output=json", "-f", format, path))
    return found


def assert_qemu_reads(path: Path, format: str, content: bytes) -> None:
    """QEMU finds no errors in the image, and this content."""
    assert qemu_info(path, format)["virtual-size"] == len(content)
    qemu_img("check", "-f", format, path)
    plain = path.with_suffix(".plain")
    plain.write_bytes(content)
    qemu_img("compare", "-f", format, "-F", "raw", path, plain)


def content(size: int, seed: int) -> bytes:
    """Islands of random bytes in zeroes."""
    rng = random.Random(seed)
    data = bytearray(size)
    for _ in range(12):
        offset, length = rng.randrange(max(1, size)), rng.choice([1, 512, 5000, 200_000])
        data[offset : offset + length] = rng.randbytes(min(length, size - offset))
    return bytes(data)

"""Bad input through the command: one line on standard error, the documented exit code, no output."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from tests.integration.conftest import StartGuest
from tests.unit.machine.images import Bzimage, Elf


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A directory of kernels, good and bad."""
    contents = {
        "good": Bzimage().build(),
        "empty": b"",
        "truncated": Bzimage(payload=bytes(1 << 20)).build()[:-4096],
        "text": b"#!/bin/sh\n" * 100,
        "arm": Elf(machine=183).build(),
        "no-note": Elf(entry=None).build(),
        "elf-truncated": Elf().build()[:100],
        "elf-outside": Elf(segments=[(1 << 40, b"x", 1)]).build(),
        "loop": struct.pack("<I", 0x464C457F) * 200,
    }
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    with (tmp_path / "huge").open("wb") as huge:
        huge.truncate(1 << 30)
    return tmp_path


CASES = {
    "missing kernel": (["--kernel", "{files}/nowhere"], 2, "no kernel at"),
    "kernel is a directory": (["--kernel", "{files}"], 2, "not a regular file"),
    "missing initrd": (["--kernel", "{files}/good", "--initrd", "{files}/nowhere"], 2, "no initrd at"),
    "empty kernel": (["--kernel", "{files}/empty"], 4, "truncated"),
    "truncated kernel": (["--kernel", "{files}/truncated"], 4, "truncated"),
    "kernel is text": (["--kernel", "{files}/text"], 4, "neither"),
    "ELF of another machine": (["--kernel", "{files}/arm"], 4, "AArch64"),
    "ELF without an entry": (["--kernel", "{files}/no-note"], 4, "PHYS32_ENTRY"),
    "truncated ELF": (["--kernel", "{files}/elf-truncated"], 4, "truncated"),
    "damaged ELF": (["--kernel", "{files}/loop"], 4, "is"),
    "ELF outside memory": (["--kernel", "{files}/elf-outside"], 2, "memory"),
    "initrd larger than memory": (
        ["--kernel", "{files}/good", "--initrd", "{files}/huge"],
        2,
        "does not fit",
    ),
    "no memory": (["--kernel", "{files}/good", "--memory", "0"], 2, "memory"),
    "too much memory": (["--kernel", "{files}/good", "--memory", "1000000M"], 3, "1000000 MiB"),
    "memory is no size": (["--kernel", "{files}/good", "--memory", "lots"], 2, "memory"),
    "no vCPU": (["--kernel", "{files}/good", "--cpus", "0"], 2, "vCPU"),
    "unknown guest": (["no-such-guest"], 2, "no-such-guest"),
    "unknown engine": (["--kernel", "{files}/good", "--engine", "bochs"], 2, "engine"),
    "unknown network": (["--kernel", "{files}/good", "--net", "carrier-pigeon"], 2, "carrier-pigeon"),
    "missing disk": (["--kernel", "{files}/good", "--disk", "{files}/nowhere"], 3, "nowhere"),
    "empty disk": (["--kernel", "{files}/good", "--disk", "{files}/empty"], 4, "empty"),
    "long command line": (["--kernel", "{files}/good", "--append", "x" * 5000], 2, "5000 bytes"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_clear_line(start_guest: StartGuest, files: Path, case: str) -> None:
    arguments, code, text = CASES[case]
    guest = start_guest(*(argument.format(files=files) for argument in arguments), stdin=False)
    assert guest.wait() == code, guest.report("another exit code")
    errors = guest.errors.decode()
    assert errors.startswith("sublet: error: "), guest.report("no error line")
    assert text in errors
    assert "Traceback" not in errors
    assert guest.output == b""

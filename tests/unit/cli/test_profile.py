"""A guest's profile as viewers read it, and where its names come from."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from sublet.cli.profile_file import speedscope, write_profile
from sublet.cli.symbols import Symbols, load_symbols
from sublet.errors import CorruptImage, HostRefused
from sublet.machine import Place

KERNEL = Place(0xFFFF_FFFF_8100_0040, 0, 0, True)
USER = Place(0x40_1000, 0x1234000, 3, False)
LISTING = "ffffffff81000000 T startup_64\nffffffff81000100 t other\nffffffff81000020 D not_code\n"


def test_each_place_is_a_stack_and_weights_add_up() -> None:
    document = speedscope({KERNEL: 3, USER: 5}, Symbols([(0xFFFF_FFFF_8100_0000, "startup_64")]))
    names = [frame["name"] for frame in document["shared"]["frames"]]
    profile = document["profiles"][0]
    stacks = [[names[frame] for frame in stack] for stack in profile["samples"]]
    assert stacks == [
        ["user 0x1234000", "0x401000 (engine)"],
        ["kernel", "startup_64", "0xffffffff81000040"],
    ]
    assert profile["weights"] == [5, 3]
    assert profile["endValue"] == 8


def test_the_file_is_json(tmp_path: Path) -> None:
    write_profile(tmp_path / "out.json", {KERNEL: 1}, Symbols([]))
    assert json.loads((tmp_path / "out.json").read_text())["profiles"][0]["weights"] == [1]
    with pytest.raises(HostRefused, match="cannot write"):
        write_profile(tmp_path / "no" / "out.json", {}, Symbols([]))


def test_a_listing_names_functions_only(tmp_path: Path) -> None:
    (tmp_path / "kallsyms").write_text(LISTING)
    symbols = load_symbols([tmp_path / "kallsyms"])
    assert symbols.find(0xFFFF_FFFF_8100_00FF) == "startup_64"
    assert symbols.find(0xFFFF_FFFF_8100_0100) == "other"
    assert symbols.find(0xFFFF_FFFF_80FF_FFFF) is None
    assert symbols.find(0xFFFF_FFFF_9000_0000) is None


def test_an_elf_file_names_its_functions(tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    source = tmp_path / "code.c"
    source.write_text("int work(int x) { return x + 1; }\n")
    subprocess.run(["gcc", "-c", "-o", tmp_path / "code.o", source], check=True)
    assert load_symbols([tmp_path / "code.o"]).find(0) == "work"


@pytest.mark.parametrize(
    "content", [b"", b"\x7fELF", b"\x7fELF" + b"\xff" * 100, b"no list\n", b"zz T name\n"]
)
def test_what_names_nothing_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(CorruptImage, match="file"):
        load_symbols([tmp_path / "file"])
    with pytest.raises(HostRefused, match="cannot read"):
        load_symbols([tmp_path / "missing"])

"""Debian's installer to its first screen: from CD, from the network and by its kernel, by BIOS and by UEFI.

Run by hand from the top of the repository (ten minutes; it needs debian-installer-12-netboot-amd64
beside what scripts/install-test-packages installs):

    python -m tests.judges.installer --json result.json
    python -m tests.judges.installer --only network --pictures DIRECTORY

The boot loader's menu and the installer's first question, "Select a language", are graphics. A row passes
when both are on our screen pixel by pixel as QEMU's TCG shows them, booted from the same CD by the same
firmware; colours are compared to five bits, which is what the installer's mode of 16 bits a pixel has.
Where the installer talks to a serial port or a text screen, its question is to be there in letters.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from tests.integration.guest import Guest
from tests.judges.installer_media import INITRD, KERNEL, NETBOOT, make_cd, missing
from tests.judges.our_machine import OurMachine
from tests.judges.qemu import Qemu

from sublet.devices.vga import Picture
from sublet.errors import SubletError
from sublet.machine.firmware import find_image
from sublet.machine.png import encode_png

_MEMORY_MIB: Final = 1024
"""With less, the installer's first words are about that."""
_LIMIT_S: Final = 600.0
_SETTLED_S: Final = 5.0
_MENU_COLOURS: Final = 200
"""ISOLINUX's menu has a picture behind it; no other screen on the way has as many colours."""
_GRUB_SIZE: Final = (800, 600)
"""GRUB's menu is letters alone, in the mode that its configuration sets and the firmware never does."""
_DIFFERENT: Final = 0.002
"""Share of pixels that may differ: a cursor of one character in 800 by 600, twice."""
_FIVE_BITS: Final = bytes(value >> 3 for value in range(256))
_QUESTION: Final = "Select a language"
_SHIM: Final = "debian-installer/amd64/bootnetx64.efi"


@dataclass(frozen=True)
class Row:
    """A way into the installer."""

    name: str
    firmware: str
    arguments: Sequence[str]
    """``{cd}``, ``{text}``: the CDs."""
    judged_by: str = "pixels"
    """``pixels``, ``serial`` or ``text``."""


def rows() -> list[Row]:
    """All of them."""
    network = f"nat,tftp={NETBOOT},bootfile="
    cd = ("--cdrom", "{cd}", "--boot", "cdrom", "--net", "none")
    kernel = ("--kernel", str(KERNEL), "--initrd", str(INITRD), "--net", "none", "--append", "console=ttyS0")
    from_network = ("--boot", "network", "--net")
    pxelinux, shim = f"{network}pxelinux.0", f"{network}{_SHIM}"
    table = [
        Row("cd, pc, BIOS", "bios", ("--machine", "pc", *cd)),
        Row("cd, q35, BIOS", "bios", ("--machine", "q35", *cd)),
        Row("cd, q35, UEFI", "uefi", ("--machine", "q35", *cd)),
        Row("cd, pc, UEFI", "uefi", ("--machine", "pc", *cd)),
        Row("cd, pc, BIOS, --console vga", "bios", ("--machine", "pc", "--cdrom", "{text}", *cd[2:]), "text"),
        Row("kernel, microvm", "", kernel, "serial"),
        Row("kernel, pc, BIOS", "bios", ("--machine", "pc", *kernel), "serial"),
        Row("kernel, q35, BIOS", "bios", ("--machine", "q35", *kernel), "serial"),
        Row("kernel, q35, UEFI", "uefi", ("--machine", "q35", *kernel), "serial"),
    ]
    for machine in ("pc", "q35"):
        for model in ("e1000", "virtio"):
            start = ("--machine", machine, *from_network)
            table.append(
                Row(f"network, {machine}, BIOS, {model}", "bios", (*start, f"{pxelinux},model={model}"))
            )
            table.append(Row(f"network, {machine}, UEFI, {model}", "uefi", (*start, f"{shim},model={model}")))
    return table


@dataclass(frozen=True)
class Result:
    """What became of a row."""

    name: str
    verdict: str
    seconds: float
    why: str = ""


class Reference:
    """The two screens as QEMU's TCG shows them, of one kind of firmware."""

    def __init__(self, firmware: str, boot: Sequence[str]) -> None:
        """``boot``: what QEMU starts from, as words for it."""
        with tempfile.TemporaryDirectory() as directory:
            qemu = Qemu(Path(directory), *_qemu_words(firmware, Path(directory)), *boot)
            try:
                self.menu = settled(qemu.picture, is_menu)
                for down in (True, False):
                    qemu.key("ret", down)
                self.question = settled(qemu.picture, is_question)
            finally:
                qemu.close()


def _qemu_words(firmware: str, directory: Path) -> list[str]:
    words = ["-m", str(_MEMORY_MIB), "-device", "VGA,edid=off"]
    if firmware == "bios":
        return words
    variables = directory / "vars.fd"
    shutil.copyfile(str(find_image(("OVMF_VARS_4M.fd",))), variables)
    code = find_image(("OVMF_CODE_4M.fd",))
    flash = [f"if=pflash,format=raw,readonly=on,file={code}", f"if=pflash,format=raw,file={variables}"]
    return ["-M", "q35", *words, "-drive", flash[0], "-drive", flash[1]]


def _qemu_boot(row: Row, cd: Path) -> tuple[str, ...]:
    """What QEMU starts from: the CD, but for UEFI from the network, where GRUB's menu is another.

    The BIOS's loaders show the same menu from both.
    """
    if not row.name.startswith("network") or row.firmware == "bios":
        return ("-cdrom", str(cd))
    network = f"user,id=net,tftp={NETBOOT},bootfile={_SHIM}"
    return ("-netdev", network, "-device", "virtio-net-pci,netdev=net,bootindex=1")


def _colours(picture: Picture) -> Counter[bytes]:
    rgb = picture.rgb
    return Counter(rgb[at : at + 3] for at in range(0, len(rgb), 3))


def is_menu(picture: Picture) -> bool:
    """Whether a boot loader's menu is on the screen."""
    colours = len(_colours(picture))
    return colours > _MENU_COLOURS or ((picture.width, picture.height) == _GRUB_SIZE and colours > 2)


def is_question(picture: Picture) -> bool:
    """Whether a window with few colours covers most of the screen, as the installer's questions do."""
    colours = _colours(picture)
    commonest, count = colours.most_common(1)[0]
    covers = any(commonest) and count > 0.4 * picture.width * picture.height
    return covers and len(colours) < _MENU_COLOURS


def settled(look: Callable[[], Picture], wanted: Callable[[Picture], bool]) -> Picture:
    """Wait for a picture that is ``wanted`` and has stood still for a while.

    Raises:
        RuntimeError: It did not come in time.
    """
    last: Picture | None = None
    since = time.monotonic()
    deadline = since + _LIMIT_S
    while time.monotonic() < deadline:
        picture = look()
        if last is None or differing(picture, last) > _DIFFERENT:
            last, since = picture, time.monotonic()
        elif time.monotonic() - since > _SETTLED_S and wanted(picture):
            return picture
        time.sleep(1)
    raise RuntimeError("the reference did not get there in time")


def differing(one: Picture | None, other: Picture) -> float:
    """Share of the pixels that differ in their upper five bits, 0 to 1."""
    if one is None or (one.width, one.height) != (other.width, other.height):
        return 1.0
    left, right = one.rgb.translate(_FIVE_BITS), other.rgb.translate(_FIVE_BITS)
    if left == right:
        return 0.0
    pairs = zip(left[::3], right[::3], strict=True), zip(left[1::3], right[1::3], strict=True)
    changed = sum(a != b or c != d for (a, b), (c, d) in zip(*pairs, strict=True))
    return changed / (one.width * one.height)


def wait_for(ours: OurMachine, picture: Picture, what: str) -> None:
    """Wait until our screen shows it.

    Raises:
        AssertionError: It did not in time, or the machine ended.
    """
    deadline = time.monotonic() + _LIMIT_S
    seen = 1.0
    while time.monotonic() < deadline and ours.guest.process.poll() is None:
        seen = differing(ours.picture(), picture)
        if seen <= _DIFFERENT:
            return
        time.sleep(1)
    raise AssertionError(ours.report(f"{what}: {seen:.2%} of the pixels differ"))


def judge_pixels(row: Row, words: Sequence[str], reference: Reference, pictures: Path | None) -> None:
    """Menu, Enter, question.

    Raises:
        AssertionError: One of them is not there.
    """
    ours = OurMachine("installer", words)
    try:
        wait_for(ours, reference.menu, "the menu")
        ours.type("{enter}")
        wait_for(ours, reference.question, "the question")
    finally:
        picture = ours.picture()
        if pictures is not None and picture is not None:
            name = row.name.replace(", ", "-").replace(" ", "-")
            (pictures / f"{name}.png").write_bytes(encode_png(picture.width, picture.height, picture.rgb))
        ours.close()


def judge_letters(row: Row, words: Sequence[str]) -> None:
    """The question on the serial port, or on the text screen that ``--console vga`` draws.

    Raises:
        AssertionError: It is not there.
    """
    more = ["--console", "vga"] if row.judged_by == "text" else []
    guest = Guest(["--engine", "translate", *words, *more], terminal=True)
    try:
        guest.expect(_QUESTION, _LIMIT_S)
        guest.type("\x1d")
        assert guest.process.wait(30) == 130, guest.report("Ctrl-] does not work")
    finally:
        guest.close()


def judge(
    row: Row,
    media: dict[str, Path],
    references: dict[tuple[str, tuple[str, ...]], Reference],
    pictures: Path | None,
) -> Result:
    """Run one row."""
    firmware = ["--firmware", row.firmware] if row.firmware else []
    words = ["--memory", f"{_MEMORY_MIB}M", *firmware, *(word.format(**media) for word in row.arguments)]
    started = time.monotonic()
    try:
        if row.judged_by == "pixels":
            way = _qemu_boot(row, media["cd"])
            if (row.firmware, way) not in references:
                references[row.firmware, way] = Reference(row.firmware, way)
                started = time.monotonic()
            judge_pixels(row, words, references[row.firmware, way], pictures)
        else:
            judge_letters(row, words)
    except (AssertionError, RuntimeError, SubletError) as error:
        return Result(row.name, "fail", time.monotonic() - started, str(error))
    return Result(row.name, "pass", time.monotonic() - started)


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", default="", help="rows with this in their names")
    parser.add_argument("--pictures", type=Path, help="keep the last screen of each row there")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if absent := missing():
        print(f"not installed: {' '.join(absent)}", file=sys.stderr)
        return 2
    results = []
    print("| way | verdict | seconds |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as directory:
        os.environ["XDG_RUNTIME_DIR"] = directory
        media = {"cd": make_cd(Path(directory)), "text": make_cd(Path(directory), text_mode=True)}
        references: dict[tuple[str, tuple[str, ...]], Reference] = {}
        for row in rows():
            if options.only in row.name:
                results.append(judge(row, media, references, options.pictures))
                print(f"| {row.name} | {results[-1].verdict} | {results[-1].seconds:.0f} |", flush=True)
                if results[-1].why:
                    print(results[-1].why, file=sys.stderr)
    if options.json:
        options.json.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
    return 1 if any(result.verdict == "fail" for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())

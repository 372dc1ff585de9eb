"""Shadow RAM: what the chipset shows from 768 KiB to 1 MiB, RAM or the firmware's ROM, by its PAM registers.

Reference: Intel 82441FX datasheet (290549) §3.2.17 "PAM[6:0] Programmable Attribute Map Registers";
Intel 3 Series Express Chipset datasheet (316966) §5.1.13 "PAM0". Both have the same layout.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from sublet.devices.platform.pam import PAM_SEGMENTS
from sublet.machine.memory import DeviceMemory, Placement, ShownPieces, SystemMemory

_ROM_START, _END = 0xE0000, 0x100000

_Kind = Literal["ram", "readonly", "rom"]


class _Run(NamedTuple):
    """Neighbouring segments of one kind, half-open."""

    start: int
    end: int
    kind: _Kind


class ShadowRam:
    """Keeps memslots in line with the PAM registers. Called with the PCI host's lock held.

    A segment that takes writes but reads from ROM shows the ROM alone: memslots cannot tell them apart.

    Args:
        memory: The machine's RAM, with its legacy hole open.
        rom: The firmware's image; its last 128 KiB show below 1 MiB, or all of it if it is smaller.
    """

    def __init__(self, memory: SystemMemory, rom: DeviceMemory) -> None:
        self._memory = memory
        self._rom = rom
        self._rom_start = max(_ROM_START, _END - len(rom.buffer))
        self._shown = ShownPieces(memory)
        self.apply((0,) * len(PAM_SEGMENTS))

    def apply(self, attributes: tuple[int, ...]) -> None:
        """Show what each segment's two bits say: bit 0 reads from RAM, bit 1 writes to it."""
        self._shown.show([self._placement(run) for run in _runs(attributes, self._rom_start)])

    def _placement(self, run: _Run) -> Placement:
        start, end, kind = run
        if kind == "rom":
            start = max(start, self._rom_start)
            offset = len(self._rom.buffer) - (_END - start)
            return Placement(start, end - start, self._rom.block, offset, readonly=True)
        return Placement(start, end - start, self._memory.ram, start, readonly=kind == "readonly")


def _runs(attributes: tuple[int, ...], rom_start: int) -> list[_Run]:
    runs: list[_Run] = []
    for (start, size), bits in zip(PAM_SEGMENTS, attributes, strict=True):
        kind = _kind(bits, shows_rom=start + size > rom_start)
        if kind is None:
            continue
        last = runs[-1] if runs else None
        if last is not None and last.end == start and last.kind == kind:
            runs[-1] = _Run(last.start, start + size, kind)
        else:
            runs.append(_Run(start, start + size, kind))
    return runs


def _kind(bits: int, *, shows_rom: bool) -> _Kind | None:
    if bits & 1:
        return "ram" if bits & 2 else "readonly"
    return "rom" if shows_rom else None

"""The options of ``sublet run`` that choose the machine, its firmware and what the firmware boots."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sublet.errors import UsageError

_BOOT_DEVICE: Final = re.compile(r"(disk|cdrom|floppy|network)(:[1-9][0-9]?)?")


class MachineChoice(enum.StrEnum):
    """Values of ``--machine``."""

    MICROVM = "microvm"
    PC = "pc"
    Q35 = "q35"


_UEFI: Final = ("uefi", "uefi-secure")


class VirtioChoice(enum.StrEnum):
    """Values of ``--virtio``."""

    TRANSITIONAL = "transitional"
    MODERN = "modern"


@dataclass(frozen=True)
class MachineOptions:
    """What the user said of the machine; None and empty: nothing."""

    machine: MachineChoice | None = None
    firmware: str | None = None
    """``bios``, ``uefi``, ``uefi-secure`` or the path of an image."""
    boot: str | None = None
    """Names of boot devices, with commas."""
    cdroms: tuple[Path, ...] = ()
    floppies: tuple[Path, ...] = ()
    virtio: VirtioChoice | None = None

    @property
    def needs_firmware(self) -> bool:
        """Whether only a machine with firmware can do what was asked."""
        named = self.firmware is not None or self.boot is not None or bool(self.cdroms or self.floppies)
        return named or self.machine in (MachineChoice.PC, MachineChoice.Q35)

    def configure(self, *, with_kernel: bool) -> dict[str, Any]:
        """Fields of ``MachineConfig``.

        Args:
            with_kernel: There is a kernel, of a guest by name or of the user's.

        Raises:
            UsageError: A value is none of those that exist, or they contradict each other.
        """
        machine = self._machine(self.needs_firmware or not with_kernel)
        if machine is MachineChoice.MICROVM and self.needs_firmware:
            raise UsageError(
                "the machine microvm has no firmware, CD or floppy drive",
                remedy="Give --machine pc or q35.",
            )
        if with_kernel and self.boot is not None:
            raise UsageError(
                "--boot is for what firmware finds: a kernel or a GUEST by name comes before all of it",
                remedy="Leave out one of them.",
            )
        return {
            "machine": machine.value,
            "firmware": self._firmware(),
            "boot": _boot_order(self.boot),
            "cdroms": tuple(map(_medium, self.cdroms)),
            "floppies": tuple(map(_medium, self.floppies)),
            "virtio": None if self.virtio is None else self.virtio.value,
        }

    def _machine(self, with_firmware: bool) -> MachineChoice:
        if self.machine is not None:
            return self.machine
        if not with_firmware:
            return MachineChoice.MICROVM
        return MachineChoice.Q35 if self.firmware in _UEFI else MachineChoice.PC

    def _firmware(self) -> str | Path | None:
        if self.firmware in (None, "bios", *_UEFI):
            return self.firmware
        return Path(str(self.firmware))


def _medium(path: Path) -> Path | None:
    """``none`` is an empty drive."""
    return None if str(path) == "none" else path


def _boot_order(text: str | None) -> tuple[str, ...]:
    """Names out of ``disk,cdrom``."""
    if text is None:
        return ()
    names = tuple(text.split(","))
    for name in names:
        if not _BOOT_DEVICE.fullmatch(name):
            raise UsageError(
                f"--boot {text}: {name!r} is nothing to boot from",
                remedy="Name some of disk, cdrom, floppy, network, with commas; disk:2 is the second disk.",
            )
    if len(set(names)) != len(names):
        raise UsageError(f"--boot {text}: each device is named once")
    return names

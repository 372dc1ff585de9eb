"""One machine as words for two commands: ``sublet run``, and QEMU's TCG beside it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from guest_benchmark import newest_qemu
from tests.integration.guest import SUBLET_RUN

from sublet.machine.firmware import find_image

_ORDER: Final = {"disk": "c", "cdrom": "d", "floppy": "a", "network": "n"}
_QEMU_CARDS: Final = {"virtio": "virtio-net-pci"}


@dataclass(frozen=True)
class Network:
    """A card on NAT: its model, and the folder and the file of it that the machine is to boot from."""

    model: str = "e1000"
    tftp: Path | None = None
    bootfile: str = ""
    forward: str = ""
    """``ADDRESS:PORT-ADDRESS:PORT``, from the host into the guest, TCP."""

    def ours(self) -> str:
        """For ``--net``."""
        given = {"tftp": self.tftp, "bootfile": self.bootfile, "forward": self.forward}
        words = [f"{name}={value}" for name, value in given.items() if value]
        return ",".join(["nat", f"model={self.model}", *words])

    def qemu(self) -> str:
        """For ``-nic``."""
        forward = f"tcp:{self.forward}" if self.forward else ""
        given = {"tftp": self.tftp, "bootfile": self.bootfile, "hostfwd": forward}
        words = [f"{name}={value}" for name, value in given.items() if value]
        return ",".join(["user", f"model={_QEMU_CARDS.get(self.model, self.model)}", *words])


@dataclass(frozen=True)
class Machine:
    """What both sides are to build. Its console is the serial port, on standard input and output."""

    machine: str = "pc"
    firmware: str = "bios"
    """``bios``, ``uefi`` or ``uefi-secure``."""
    memory_mib: int = 512
    cpus: int = 1
    disk: Path | None = None
    """A raw image."""
    bus: str = ""
    """What the disk hangs on: ``ide``, ``ahci`` or ``virtio``; empty for what the machine has."""
    cdrom: Path | None = None
    floppy: Path | None = None
    boot: str = ""
    """What the firmware is to try first: ``disk``, ``cdrom``, ``floppy`` or ``network``."""
    network: Network | None = None
    kernel: Path | None = None
    initrd: Path | None = None
    append: str = ""
    modules: tuple[str, ...] = ()
    """Of a Multiboot kernel: files with their arguments."""

    def ours(self) -> list[str]:
        """``sublet run`` with it."""
        words = ["--engine", "translate", "--machine", self.machine, "--firmware", self.firmware]
        words += ["--memory", f"{self.memory_mib}M", "--cpus", str(self.cpus)]
        words += ["--net", self.network.ours() if self.network else "none"]
        if self.disk:
            words += ["--disk", f"{self.disk},format=raw" + (f",bus={self.bus}" if self.bus else "")]
        words += self._given(
            {"cdrom": self.cdrom, "floppy": self.floppy, "boot": self.boot}, self._loaded(), dashes="--"
        )
        return [*SUBLET_RUN, *words, *(word for module in self.modules for word in ("--module", module))]

    def qemu(self) -> list[str]:
        """The same in QEMU, the newest there is."""
        smm = ",smm=on" if self.firmware == "uefi-secure" else ""
        words = [newest_qemu() or "qemu-system-x86_64", "-accel", "tcg", "-machine", self.machine + smm]
        words += ["-cpu", "max", "-m", str(self.memory_mib), "-smp", str(self.cpus), "-nographic"]
        words += self._qemu_flash()
        words += ["-nic", self.network.qemu() if self.network else "none"]
        if self.disk:
            interface = "virtio" if self.bus == "virtio" else "ide"
            words += ["-drive", f"file={self.disk},format=raw,if={interface}"]
        if self.floppy:
            words += ["-drive", f"file={self.floppy},format=raw,if=floppy"]
        words += self._given({"cdrom": self.cdrom, "boot": _ORDER.get(self.boot)}, self._loaded(), dashes="-")
        return words

    def _loaded(self) -> dict[str, object]:
        """A kernel and what comes with it."""
        return {"kernel": self.kernel, "initrd": self.initrd, "append": self.append}

    @staticmethod
    def _given(*options: dict[str, object], dashes: str) -> list[str]:
        """Those options that have a value."""
        pairs = [pair for some in options for pair in some.items() if pair[1]]
        return [word for name, value in pairs for word in (dashes + name, str(value))]

    def _qemu_flash(self) -> list[str]:
        """UEFI, with variables of its own beside the disk or CD."""
        if self.firmware == "bios":
            return []
        kind, keys = (".secboot", ".ms") if self.firmware == "uefi-secure" else ("", "")
        code, variables = find_image((f"OVMF_CODE_4M{kind}.fd",)), find_image((f"OVMF_VARS_4M{keys}.fd",))
        own = (self.disk or self.cdrom or Path("variables")).with_suffix(".vars")
        shutil.copyfile(str(variables), own)
        files = [f"if=pflash,format=raw,readonly=on,file={code}", f"if=pflash,format=raw,file={own}"]
        guard = ["-global", "driver=cfi.pflash01,property=secure,value=on"] if kind else []
        return ["-drive", files[0], "-drive", files[1], *guard]

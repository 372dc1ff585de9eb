"""What one machine is made of, as the user asked for it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from sublet.engine import ENGINE_CHOICES, EngineChoice
from sublet.errors import UsageError

MachineName = Literal["microvm", "pc", "q35"]
DiskBus = Literal["virtio", "ide", "ahci"]
CacheMode = Literal["writeback", "writethrough", "none", "unsafe"]
VirtioKind = Literal["transitional", "modern"]
FirmwareName = Literal["bios", "uefi", "uefi-secure"]

_BOOT_DEVICE: Final = re.compile(r"(disk|cdrom|floppy|network)(:[1-9][0-9]?)?")
_SERIAL_LENGTH: Final = 20
_FLOPPIES: Final = 2


def _choose(field: str, value: object, choices: Sequence[object]) -> None:
    """Refuse a value that is none of ``choices``.

    Raises:
        UsageError: It is none.
    """
    if value not in choices:
        known = ", ".join(str(choice) for choice in choices if choice is not None)
        raise UsageError(f"{field}: {value!r} is none of {known}")


@dataclass(frozen=True, kw_only=True)
class DiskConfig:
    """One disk, in the order that the guest sees them (vda, vdb, ...).

    Raises:
        UsageError: A value is out of its range.
    """

    path: Path
    readonly: bool = False
    format: str | None = None
    """Name of a disk format; None: what the file's name says (`sublet.block.registry`)."""
    folders: tuple[Path, ...] = ()
    """Where its parents may be, besides its own folder."""
    cache: CacheMode = "writeback"
    """The host's page cache: used; used but flushed by each write; bypassed; used and never flushed."""
    serial: str | None = None
    """What the guest reads as the disk's serial number, at most 20 characters; None: one by its position."""
    bus: DiskBus | None = None
    """What it hangs on; None: the machine's own kind (`MachineConfig.bus_of`)."""
    iops: int = 0
    """Requests a second, 0 for no limit."""
    bytes_per_second: int = 0
    """Bytes a second, 0 for no limit."""
    copy_on_read: bool = False
    """Whether an overlay keeps what it reads from its parents."""

    def __post_init__(self) -> None:
        _choose("cache", self.cache, get_args(CacheMode))
        _choose("bus", self.bus, (None, *get_args(DiskBus)))
        if self.serial is not None and len(self.serial) > _SERIAL_LENGTH:
            raise UsageError(f"serial: {self.serial!r} has more than {_SERIAL_LENGTH} characters")
        for field, value in (("iops", self.iops), ("bps", self.bytes_per_second)):
            if value < 0:
                raise UsageError(f"{field}: {value} is less than 0")


_OWN_BUS: Final[dict[MachineName, DiskBus]] = {"microvm": "virtio", "pc": "ide", "q35": "ahci"}
"""What every system that such a machine is chosen for can boot from."""


@dataclass(frozen=True, kw_only=True)
class MachineConfig:
    """Definition of one machine; ranges that depend on the host are checked when it is built.

    Raises:
        UsageError: A value is none of those that exist.
    """

    name: str | None = None
    """What other commands call the machine by; None: by its process. Must be free if given."""
    suggested_name: str = "machine"
    """Without ``name``: taken if it is free, else with a number."""
    kernel: Path | None = None
    """A bzImage, a Multiboot kernel, or an ELF with a PVH entry note; None: firmware finds what to boot."""
    initrd: Path | None = None
    """Initial RAM disk, handed over as it is (compressed or not)."""
    modules: tuple[str, ...] = ()
    """Of a Multiboot ``kernel``: each a file and, after a blank, what the kernel is told of it."""
    cmdline: str = ""
    """Kernel command line, without NUL."""
    machine: MachineName = "microvm"
    """microvm: no firmware, boots ``kernel`` directly; pc: i440FX and PIIX3; q35: Q35 and ICH9."""
    firmware: FirmwareName | Path | None = None
    """Of pc and q35; a path is an image of the user's own. None: the BIOS. uefi-secure: Secure Boot with the
    keys of Microsoft and of the firmware's distributor enrolled; q35 alone."""
    firmware_folders: tuple[Path, ...] = ()
    """Where firmware and ROMs are looked for where the host has none installed."""
    boot: tuple[str, ...] = ()
    """What the firmware tries, in order; empty: disk, cdrom, floppy, network. The others come last. Each is a
    kind, or one of it, counted from 1 in the order of the definition: ``disk:2``."""
    cdroms: tuple[Path | None, ...] = ()
    """ISO images, of pc and q35; None is an empty drive."""
    floppies: tuple[Path | None, ...] = ()
    """At most two floppy images, of pc and q35; None is an empty drive."""
    memory_mib: int = 512
    """Guest RAM in MiB; `sublet.machine.memory_map` says which values are possible."""
    virtio: VirtioKind | None = None
    """Whether virtio devices have the legacy interface too; None: on pc, as its old systems need it."""
    cpus: int = 1
    """Number of vCPUs."""
    disks: tuple[DiskConfig, ...] = ()
    net: tuple[str, ...] = ()
    """One network card an entry, as ``--net`` has it (`sublet.net.options`)."""
    engine: EngineChoice = "auto"
    profile: bool = False
    """Whether to sample where the guest spends its time; translate only."""
    reboot: bool = True
    """Whether a guest reset boots again; otherwise it ends the run."""

    def __post_init__(self) -> None:
        _choose("machine", self.machine, get_args(MachineName))
        _choose("virtio", self.virtio, (None, *get_args(VirtioKind)))
        _choose("engine", self.engine, ENGINE_CHOICES)
        if not isinstance(self.firmware, Path):
            _choose("firmware", self.firmware, (None, *get_args(FirmwareName)))
        for device in self.boot:
            if not _BOOT_DEVICE.fullmatch(device):
                raise UsageError(f"boot: {device!r} is nothing to boot from")
        if len(self.floppies) > _FLOPPIES:
            raise UsageError(f"{len(self.floppies)} floppy drives: a machine has at most {_FLOPPIES}")

    @property
    def boot_kinds(self) -> tuple[str, ...]:
        """The kinds of devices that ``boot`` names, each once."""
        return tuple(dict.fromkeys(device.partition(":")[0] for device in self.boot))

    @property
    def virtio_is_transitional(self) -> bool:
        """Whether virtio devices have the legacy interface beside the modern one."""
        return self.virtio == "transitional" if self.virtio is not None else self.machine == "pc"

    @property
    def is_uefi(self) -> bool:
        """Whether the firmware is UEFI, as far as is known: an image of the user's own counts as a BIOS."""
        return self.firmware in ("uefi", "uefi-secure")

    def bus_of(self, disk: DiskConfig) -> DiskBus:
        """What a disk hangs on in this machine."""
        return disk.bus or _OWN_BUS[self.machine]

"""What one machine is made of, as the user asked for it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

MachineName = Literal["microvm", "pc", "q35"]
DiskBus = Literal["virtio", "ide", "ahci"]
BootDevice = Annotated[str, Field(pattern=r"^(disk|cdrom|floppy|network)(:[1-9][0-9]?)?$")]
"""A kind, or one of it, counted from 1 in the order of the definition."""


class DiskConfig(BaseModel):
    """One disk, in the order that the guest sees them (vda, vdb, ...)."""

    model_config = ConfigDict(frozen=True)

    path: Path
    readonly: bool = False
    format: str | None = None
    """Name of a disk format; None: what the file's name says (`sublet.block.registry`)."""
    folders: tuple[Path, ...] = ()
    """Where its parents may be, besides its own folder."""
    cache: Literal["writeback", "writethrough", "none", "unsafe"] = "writeback"
    """The host's page cache: used; used but flushed by each write; bypassed; used and never flushed."""
    serial: str | None = Field(default=None, max_length=20)
    """What the guest reads as the disk's serial number; None: one by its position."""
    bus: DiskBus | None = None
    """What it hangs on; None: the machine's own kind (`MachineConfig.bus_of`)."""
    iops: int = Field(default=0, ge=0)
    """Requests a second, 0 for no limit."""
    bytes_per_second: int = Field(default=0, ge=0)
    """Bytes a second, 0 for no limit."""
    copy_on_read: bool = False
    """Whether an overlay keeps what it reads from its parents."""


_OWN_BUS: Final[dict[MachineName, DiskBus]] = {"microvm": "virtio", "pc": "ide", "q35": "ahci"}
"""What every system that such a machine is chosen for can boot from."""


class MachineConfig(BaseModel):
    """Definition of one machine; ranges that depend on the host are checked when it is built."""

    model_config = ConfigDict(frozen=True)

    name: str | None = None
    """What other commands call the machine by; None: by its process. Must be free if given."""
    suggested_name: str = "machine"
    """Without ``name``: taken if it is free, else with a number."""
    kernel: Path | None = None
    """A bzImage, a Multiboot kernel, or an ELF with a PVH entry note; None: firmware finds what to boot."""
    initrd: Path | None = None
    """Initial RAM disk, handed over as it is (compressed or not)."""
    modules: tuple[str, ...] = Field(default=())
    """Of a Multiboot ``kernel``: each a file and, after a blank, what the kernel is told of it."""
    cmdline: str = ""
    """Kernel command line, without NUL."""
    machine: MachineName = "microvm"
    """microvm: no firmware, boots ``kernel`` directly; pc: i440FX and PIIX3; q35: Q35 and ICH9."""
    firmware: Literal["bios", "uefi", "uefi-secure"] | Path | None = None
    """Of pc and q35; a path is an image of the user's own. None: the BIOS. uefi-secure: Secure Boot with the
    keys of Microsoft and of the firmware's distributor enrolled; q35 alone."""
    firmware_folders: tuple[Path, ...] = Field(default=())
    """Where firmware and ROMs are looked for where the host has none installed."""
    boot: tuple[BootDevice, ...] = Field(default=())
    """What the firmware tries, in order; empty: disk, cdrom, floppy, network. The others come last."""
    cdroms: tuple[Path | None, ...] = Field(default=())
    """ISO images, of pc and q35; None is an empty drive."""
    floppies: tuple[Path | None, ...] = Field(default=(), max_length=2)
    """Floppy images, of pc and q35; None is an empty drive."""
    memory_mib: int = 512
    """Guest RAM in MiB; `sublet.machine.memory_map` says which values are possible."""
    virtio: Literal["transitional", "modern"] | None = None
    """Whether virtio devices have the legacy interface too; None: on pc, as its old systems need it."""
    cpus: int = 1
    """Number of vCPUs."""
    disks: tuple[DiskConfig, ...] = Field(default=())
    net: tuple[str, ...] = Field(default=())
    """One network card an entry, as ``--net`` has it (`sublet.net.options`)."""
    engine: Literal["auto", "kvm", "translate"] = "auto"
    profile: bool = False
    """Whether to sample where the guest spends its time; translate only."""
    reboot: bool = True
    """Whether a guest reset boots again; otherwise it ends the run."""

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

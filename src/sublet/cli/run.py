"""``sublet run``."""

from __future__ import annotations

import enum
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from sublet.cli.firmware_files import provide_firmware
from sublet.cli.machine_options import MachineChoice, MachineOptions, VirtioChoice
from sublet.cli.messages import ProgressDisplay, say
from sublet.cli.parameters import Argument, Option
from sublet.cli.statistics import StatisticsFormat, print_statistics
from sublet.errors import UsageError
from sublet.units import MIB, parse_size

if TYPE_CHECKING:
    from sublet.cli.terminal import StreamConsole
    from sublet.guest import PreparedGuest
    from sublet.machine import DiskConfig, MachineConfig, MachineResult

_GUEST_PANEL = "What to boot"
_MACHINE_PANEL = "The machine"
_RUN_PANEL = "The run"

EPILOG: Final = """
**Examples**

- `sublet run` — the default guest, at a shell
- `sublet run debian --memory 2G` — Debian 12 with systemd
- `sublet run --kernel vmlinuz --initrd initrd.gz --append console=ttyS0`
- `sublet run --kernel vmlinuz --initrd initrd.gz --firmware uefi` — by its EFI stub
- `sublet run debian --machine q35` — started by the BIOS of a board with PCI Express
- `sublet run --disk old.vmdk` — what the disk has, by its BIOS boot record
- `sublet run --cdrom install.iso --disk new.qcow2 --firmware uefi`
- `sublet run --no-reboot --stats=json < /dev/null > console.log`

**Exit status**

- 0: the guest powered off
- 2: wrong usage
- 3: the host refused
- 4: a bad image
- 70: a bug of ours
- 80: the guest reset, with --no-reboot
- 81: triple fault, with --no-reboot
- 82: the guest's kernel panicked
- 130: left with Ctrl-] or Ctrl-C
"""


class EngineName(enum.StrEnum):
    """Values of ``--engine``."""

    AUTO = "auto"
    KVM = "kvm"
    TRANSLATE = "translate"


class ConsoleChoice(enum.StrEnum):
    """Values of ``--console``."""

    SERIAL = "serial"
    VGA = "vga"


def run(
    guest: Annotated[
        str | None,
        Argument(help="Name of a guest (see `sublet guests`); without it, default."),
    ] = None,
    kernel: Annotated[
        Path | None,
        Option(
            help="Kernel to boot: a bzImage, a Multiboot kernel, or an ELF with a PVH entry.",
            panel=_GUEST_PANEL,
        ),
    ] = None,
    initrd: Annotated[Path | None, Option(help="Initial RAM disk for --kernel.", panel=_GUEST_PANEL)] = None,
    module: Annotated[
        list[str] | None,
        Option(
            metavar='"FILE [ARGUMENTS]"',
            help="Module for a Multiboot --kernel; several in their order.",
            panel=_GUEST_PANEL,
        ),
    ] = None,
    append: Annotated[
        str | None,
        Option(
            help="Kernel command line; added to the guest's own where GUEST is named.",
            panel=_GUEST_PANEL,
        ),
    ] = None,
    machine: Annotated[
        MachineChoice | None,
        Option(
            help="The board: microvm (no firmware; needs a kernel or guest), pc (i440FX) or q35. By default "
            "microvm for a kernel or guest, else pc; q35 with UEFI.",
            panel=_MACHINE_PANEL,
        ),
    ] = None,
    firmware: Annotated[
        str | None,
        Option(
            metavar="bios|uefi|uefi-secure|FILE",
            help="Firmware of pc and q35.",
            panel=_MACHINE_PANEL,
        ),
    ] = None,
    boot: Annotated[
        str | None,
        Option(
            metavar="DEVICE[,DEVICE...]",
            help="What the firmware tries, in order: disk, cdrom, floppy, network; disk:2 is the second.",
            panel=_GUEST_PANEL,
        ),
    ] = None,
    cdrom: Annotated[
        list[Path] | None,
        Option(
            metavar="FILE",
            help="ISO image in a CD drive; none is an empty drive.",
            panel=_MACHINE_PANEL,
        ),
    ] = None,
    floppy: Annotated[
        list[Path] | None,
        Option(
            metavar="FILE",
            help="Image in a floppy drive; at most two. none is an empty drive.",
            panel=_MACHINE_PANEL,
        ),
    ] = None,
    virtio: Annotated[
        VirtioChoice | None,
        Option(
            help="Whether virtio devices also serve drivers of before virtio 1.0 (transitional: the default "
            "on pc) or not (modern: elsewhere).",
            panel=_MACHINE_PANEL,
        ),
    ] = None,
    engine: Annotated[
        EngineName,
        Option(help="What executes the guest; auto takes KVM where it really works.", panel=_RUN_PANEL),
    ] = EngineName.AUTO,
    cpus: Annotated[int, Option(metavar="N", help="Number of vCPUs.", panel=_MACHINE_PANEL)] = 1,
    memory: Annotated[
        str | None,
        Option(
            metavar="SIZE",
            help="RAM, as in 512M or 1G; a bare number is MiB. By default what the guest needs, or 512M.",
            panel=_MACHINE_PANEL,
        ),
    ] = None,
    disk: Annotated[
        list[str] | None,
        Option(
            metavar="FILE[,NAME=VALUE...]",
            help="Disk image to attach, after the guest's own. Names: format, readonly (on, off), cache "
            "(writeback, writethrough, none, unsafe), serial, bus (virtio, ide, ahci), iops, bps, "
            "copy-on-read (on, off). A comma in FILE is written twice.",
            panel=_MACHINE_PANEL,
        ),
    ] = None,
    net: Annotated[
        list[str] | None,
        Option(
            metavar="KIND[,NAME=VALUE...]",
            help="Network card; several for several cards. Kinds: nat (without --net), bridged, hostonly, "
            "internal, tap, unix:PATH, none. Any card: mac, mtu, queues, link (on, off); rate, delay, "
            "jitter, loss, reorder, duplicate, limit and seed make a bad line. See docs/guide/networks.md.",
            panel=_MACHINE_PANEL,
        ),
    ] = None,
    console: Annotated[
        ConsoleChoice,
        Option(
            help="What the terminal shows: the serial port, or the screen and keyboard of pc and q35.",
            panel=_RUN_PANEL,
        ),
    ] = ConsoleChoice.SERIAL,
    name: Annotated[
        str | None,
        Option(
            help="What other commands call this machine by; else the guest's name, with a number if that "
            "is taken. See `sublet ps`.",
            panel=_RUN_PANEL,
        ),
    ] = None,
    no_reboot: Annotated[
        bool, Option("--no-reboot", help="Leave when the guest resets.", panel=_RUN_PANEL)
    ] = False,
    profile: Annotated[
        Path | None,
        Option(
            metavar="FILE",
            help="Write where the guest spent its time, for viewers of speedscope's format (translate only).",
            panel=_RUN_PANEL,
        ),
    ] = None,
    symbols: Annotated[
        list[Path] | None,
        Option(
            metavar="FILE",
            help="Names for --profile: a copy of the guest's /proc/kallsyms, a System.map, or an ELF file.",
            panel=_RUN_PANEL,
        ),
    ] = None,
    stats: Annotated[
        StatisticsFormat | None,
        Option(
            metavar="[=table|json]",
            help="Print statistics on standard error at the end: a table, or JSON.",
            panel=_RUN_PANEL,
        ),
    ] = None,
) -> int:
    """Boot a machine on this terminal, and stay until it is off.

    Without GUEST and --kernel, firmware boots what --disk, --cdrom or --floppy holds; without these too,
    the default guest boots: a small Linux, at a shell. The terminal is the guest's serial console
    (ttyS0); `Ctrl-]` leaves. Without a terminal, standard input is what the guest reads, and standard
    output carries the guest's bytes and nothing else; messages of sublet go to standard error.
    """
    from sublet.machine import run_machine

    memory_mib = None if memory is None else _memory_mib(memory)
    options = MachineOptions(machine, firmware, boot, tuple(cdrom or ()), tuple(floppy or ()), virtio)
    with _Boot(guest, kernel, initrd, append, options, has_disks=bool(disk)) as source:
        config = source.configure(
            memory_mib, cpus, disk or [], net or ["nat"], engine, name, reboot=not no_reboot
        )
        if module:
            config = _with_modules(config, module)
        config = replace(config, profile=profile is not None)
        config = provide_firmware(config)
        result = run_machine(config, _open_console(console, config))
    if profile is not None:
        _save_profile(profile, result, symbols or [])
    if result.exit_code != 0:
        say(result.reason)
    if stats is not None:
        print_statistics(result.statistics, stats)
    return result.exit_code


def _with_modules(config: MachineConfig, modules: list[str]) -> MachineConfig:
    if config.kernel is None:
        raise UsageError("--module needs --kernel")
    return replace(config, modules=tuple(modules))


def _save_profile(file: Path, result: MachineResult, symbols: list[Path]) -> None:
    """Write the profile; first without names, as a bad list of symbols must not cost the run's result."""
    from sublet.cli.profile_file import write_profile
    from sublet.cli.symbols import Symbols, load_symbols

    write_profile(file, result.profile, Symbols([]))
    if symbols:
        write_profile(file, result.profile, load_symbols(symbols))


def _open_console(choice: ConsoleChoice, config: MachineConfig) -> StreamConsole:
    """The terminal as the user wants it.

    Raises:
        UsageError: The machine has no screen, or there is no terminal to show it.
    """
    if choice is ConsoleChoice.SERIAL:
        from sublet.cli.terminal import open_console

        return open_console()
    if config.machine == "microvm":
        raise UsageError("a microvm has no screen", remedy="Give --machine pc, or --console serial.")
    from sublet.cli.screen_console import open_screen_console

    return open_screen_console()


def _memory_mib(text: str) -> int:
    try:
        size = parse_size(text)
    except ValueError as error:
        raise UsageError(f"--memory: {error}") from error
    if 0 < size < MIB:
        raise UsageError(f"--memory {text} is less than 1 MiB", remedy="Give MiB or GiB, as in 512M.")
    return size // MIB


def _throw_away(path: Path) -> DiskConfig:
    """A disk of the guest's own: gone when the run is over, so nothing has to reach stable storage."""
    from sublet.machine import DiskConfig

    return DiskConfig(path=path, format="raw", bus="virtio", cache="unsafe")


class _Boot:
    """What to boot: a guest by name, the user's own kernel, or what firmware finds."""

    _DEFAULT_MEMORY_MIB = 512

    def __init__(
        self,
        guest: str | None,
        kernel: Path | None,
        initrd: Path | None,
        append: str | None,
        options: MachineOptions,
        *,
        has_disks: bool,
    ) -> None:
        if guest is not None and (kernel is not None or initrd is not None):
            raise UsageError("give either a guest's name or --kernel, not both")
        if kernel is None and initrd is not None:
            raise UsageError("--initrd needs --kernel")
        self._by_firmware = guest is None and kernel is None and (has_disks or options.needs_firmware)
        if self._by_firmware and append is not None:
            raise UsageError("--append needs --kernel or GUEST: what firmware boots has its own")
        self._options = options
        self._name = guest or "default"
        self._kernel = kernel
        self._initrd = initrd
        self._append = append
        self._prepared: PreparedGuest | None = None

    def __enter__(self) -> _Boot:
        if self._kernel is None and not self._by_firmware:
            from sublet.guest import prepare_guest

            with ProgressDisplay() as progress:
                self._prepared = prepare_guest(self._name, progress)
        return self

    def __exit__(self, *_: object) -> None:
        if self._prepared is not None:
            self._prepared.close()

    def configure(
        self,
        memory_mib: int | None,
        cpus: int,
        disks: list[str],
        net: list[str],
        engine: EngineName,
        name: str | None,
        *,
        reboot: bool,
    ) -> MachineConfig:
        """The machine's definition from the guest's and the user's wishes."""
        from sublet.cli.disk_option import parse_disk
        from sublet.machine import MachineConfig

        kernel, initrd, cmdline, own_disks, default_mib = self._image()
        return MachineConfig(
            name=name,
            suggested_name="machine" if self._prepared is None else self._name,
            kernel=kernel,
            initrd=initrd,
            cmdline=cmdline,
            **self._options.configure(with_kernel=kernel is not None),
            memory_mib=default_mib if memory_mib is None else memory_mib,
            cpus=cpus,
            disks=(
                *map(_throw_away, own_disks),
                *(parse_disk(text) for text in disks),
            ),
            net=tuple(net),
            engine=engine.value,
            reboot=reboot,
        )

    def _image(self) -> tuple[Path | None, Path | None, str, tuple[Path, ...], int]:
        own = self._prepared
        if own is not None:
            cmdline = f"{own.cmdline} {self._append}" if self._append else own.cmdline
            return own.kernel, own.initrd, cmdline, own.disks, own.memory_mib
        return self._kernel, self._initrd, self._append or "", (), self._DEFAULT_MEMORY_MIB

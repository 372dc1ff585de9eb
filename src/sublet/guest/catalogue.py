"""The guests that sublet knows by name, and how each is made."""

from __future__ import annotations

import atexit
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from sublet.errors import UsageError
from sublet.guest.modules import INITRAMFS, OLD_HARDWARE
from sublet.guest.script_files import scripts_digest
from sublet.guest.store import (
    Progress,
    RunDisk,
    Store,
    cache_directory,
    cache_key,
    host_errors,
    silent,
)

_BUILDER_VERSION: Final = "13"
"""Raised when the same packages are made into something else; a change of the scripts counts by itself."""

Configure = Callable[[Path, Path, Path, Progress], bool]
"""Boots (kernel, initrd, disk) with ``sublet.configure`` to its end; whether that configured the packages."""


def _configure_in_machine(kernel: Path, initrd: Path, disk: Path, progress: Progress) -> bool:
    from sublet.guest.configure import configure_in_machine

    return configure_in_machine(kernel, initrd, disk, progress)


@dataclass(frozen=True)
class GuestInfo:
    """One guest of the catalogue; ``cached`` says that it can be prepared without a network."""

    name: str
    description: str
    cached: bool


@dataclass(frozen=True)
class PreparedGuest:
    """What a machine needs to boot a guest.

    ``disks`` are private to this preparation and writable; they go when the process ends, or at ``close``.
    """

    name: str
    kernel: Path
    initrd: Path | None
    cmdline: str
    disks: tuple[Path, ...]
    memory_mib: int
    _run_disks: tuple[RunDisk, ...] = field(default=(), repr=False)

    @property
    def default_memory_mib(self) -> int:
        """MiB of memory that the guest is comfortable with, for a user who names no size."""
        return self.memory_mib

    def close(self) -> None:
        """Remove the private disks."""
        for disk in self._run_disks:
            disk.close()


@dataclass(frozen=True)
class Recipe:
    """How one guest is made. ``kernel`` is the meta-package whose newest version is taken."""

    name: str
    description: str
    kernel: str
    cmdline: str
    memory_mib: int
    has_disk: bool = False
    architecture: str = "amd64"
    """Debian's name for what its packages are made for."""
    modules: tuple[str, ...] = INITRAMFS
    """What its RAM disk carries, where the kernel has it as a module."""


_RECIPES: Final = (
    Recipe(
        name="default",
        description="a small Linux in a RAM disk: Debian 12's cloud kernel and BusyBox, at a shell",
        kernel="linux-image-cloud-amd64",
        cmdline="console=ttyS0 quiet",
        memory_mib=512,
    ),
    Recipe(
        name="default-amd64",
        description="the same with Debian 12's ordinary kernel",
        kernel="linux-image-amd64",
        cmdline="console=ttyS0 quiet",
        memory_mib=512,
    ),
    Recipe(
        name="default-686",
        description="the same for 32-bit processors without PAE",
        kernel="linux-image-686",
        cmdline="console=ttyS0 quiet",
        memory_mib=512,
        architecture="i386",
        modules=INITRAMFS + OLD_HARDWARE,
    ),
    Recipe(
        name="default-686-pae",
        description="the same for 32-bit processors with PAE",
        kernel="linux-image-686-pae",
        cmdline="console=ttyS0 quiet",
        memory_mib=512,
        architecture="i386",
        modules=INITRAMFS + OLD_HARDWARE,
    ),
    Recipe(
        name="debian",
        description="Debian 12 with systemd on a disk of 4 GiB; log in as root, there is no password",
        kernel="linux-image-cloud-amd64",
        cmdline="console=ttyS0 root=/dev/vda rw quiet",
        memory_mib=1024,
        has_disk=True,
    ),
)


def list_guests(cache: Path | None = None) -> list[GuestInfo]:
    """The guests by name, in the order a user should read them."""
    store = Store(cache or cache_directory())
    return [
        GuestInfo(recipe.name, recipe.description, store.current(recipe.name, _builder()) is not None)
        for recipe in _RECIPES
    ]


def prepare_guest(
    name: str,
    progress: Progress = silent,
    *,
    packages: Sequence[str] = (),
    mirror: str | None = None,
    refresh: bool = False,
    cache: Path | None = None,
    configure: Configure | None = _configure_in_machine,
) -> PreparedGuest:
    """Make a guest ready to boot: from the cache where it is there, else from Debian's packages.

    Args:
        name: One of ``list_guests``.
        progress: Told of each long step.
        packages: Debian packages on top, for a guest with a disk; each set is cached apart.
        mirror: Address of a Debian mirror; else ``SUBLET_MIRROR``, else the host's apt, else Debian's own.
        refresh: Make it anew from what the archive has now.
        cache: Directory to use in place of ``cache_directory()``.
        configure: Boots a disk that this host cannot configure itself; with None, or where that fails, the
            guest does so the first time it boots.

    Raises:
        UsageError: No such guest or package, or packages for a guest without a disk.
        HostRefused: No network, no space, no permission, no keyring.
        CorruptImage: Something did not verify.
    """
    recipe = find_recipe(name)
    extra = tuple(sorted(set(packages)))
    if extra and not recipe.has_disk:
        raise UsageError(f"the guest {name!r} has no disk to install {', '.join(extra)} on")
    store = Store(cache or cache_directory())
    label = f"{name}-{cache_key(*extra)}" if extra else name
    built = None if refresh else store.current(label, _builder())
    if built is None:
        with store.lock(label, progress):
            built = (None if refresh else store.current(label, _builder())) or _build(
                recipe, label, extra, store, mirror, progress, configure
            )
    return _prepared(recipe, built, store)


def find_recipe(name: str) -> Recipe:
    """The recipe of a guest's name."""
    for recipe in _RECIPES:
        if recipe.name == name:
            return recipe
    names = ", ".join(recipe.name for recipe in _RECIPES)
    attach = " To boot this file, attach it by --disk, --cdrom or --floppy." if Path(name).is_file() else ""
    raise UsageError(f"there is no guest {name!r}", remedy=f"Choose one of: {names}.{attach}")


def _build(
    recipe: Recipe,
    label: str,
    extra: tuple[str, ...],
    store: Store,
    mirror: str | None,
    progress: Progress,
    configure: Configure | None,
) -> Path:
    """Make a guest and publish it as ``label``."""
    # Loaded for this alone: HTTP, TLS and archives are most of what this package needs, and run once.
    from sublet.guest.build import build, open_archive

    archive = open_archive(store, progress, mirror, recipe.architecture)
    return build(recipe, label, extra, store, archive, progress, configure, builder=_builder())


def _builder() -> str:
    """Names the way that guests are made; what was made in another way is made anew."""
    return f"{_BUILDER_VERSION}-{scripts_digest()}"


def _prepared(recipe: Recipe, built: Path, store: Store) -> PreparedGuest:
    image = built / "disk.raw"
    disks: tuple[RunDisk, ...] = ()
    with host_errors(f"cannot prepare {recipe.name}"):
        if recipe.has_disk:
            disks = (store.private_copy(image),)
    prepared = PreparedGuest(
        name=recipe.name,
        kernel=built / "vmlinuz",
        initrd=built / "initrd.cpio",
        cmdline=recipe.cmdline,
        disks=tuple(disk.path for disk in disks),
        memory_mib=recipe.memory_mib,
        _run_disks=disks,
    )
    if disks:
        atexit.register(prepared.close)
    return prepared

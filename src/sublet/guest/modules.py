"""Kernel modules: which ones a guest needs, what they depend on, and the tables that ``modprobe`` reads."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from sublet.errors import CorruptImage

VIRTIO: Final = ("virtio_pci", "virtio_blk", "virtio_net", "virtio_console", "virtio_rng", "virtio_balloon")
FILE_SYSTEMS: Final = ("ext4", "vfat", "isofs", "overlay", "squashfs", "nls_ascii", "nls_cp437")
OTHERS: Final = (
    "af_packet",
    "loop",
    "crc32c_generic",
    "sr_mod",
    "cdrom",
    "sd_mod",
    "ahci",
    "ata_piix",
    "e1000",
)
PLATFORM: Final = ("button", "evdev", "pvpanic_mmio")
"""The power button, what reads it, and the device that reports a panic."""
OLD_HARDWARE: Final = ("floppy", "ata_generic", "pata_legacy", "ne2k_pci", "pcnet32", "8139cp", "e100")
"""What machines had when their processors had 32 bits."""
INITRAMFS: Final = VIRTIO + FILE_SYSTEMS + OTHERS + PLATFORM
"""What an initramfs of ours carries, where the kernel has it as a module."""

_MODULE_PATH: Final = re.compile(r"(?:usr/)?lib/modules/([^/]+)/(kernel/.+/)?([^/]+)\.ko$")


@dataclass(frozen=True)
class Module:
    """One loadable module; ``path`` is relative to ``/lib/modules/<release>``."""

    path: str
    data: bytes

    @property
    def name(self) -> str:
        return canonical(self.path.rpartition("/")[2].removesuffix(".ko"))

    def info(self, key: str) -> list[str]:
        """The values of a key of the module's ``.modinfo``, as ``depends`` or ``alias``.

        Entries are NUL-terminated ``key=value`` strings. They are looked for in the whole file rather than in
        the section: a constant that looks the same is harmless, it names a module that is not there.
        """
        pattern = rb"\0" + key.encode() + rb"=([\x20-\x7e]*)(?=\0)"
        return [value.decode() for value in re.findall(pattern, self.data)]

    def depends(self) -> list[str]:
        """Names of the modules that must be loaded before."""
        listed = ",".join(self.info("depends"))
        return [canonical(name) for name in listed.split(",") if name]

    def soft_depends(self) -> list[str]:
        """Names that the module would like to have before it (``crc32c`` for ext4, say)."""
        found = [re.findall(r"pre:((?:\s+[\w-]+(?!:))+)", text) for text in self.info("softdep")]
        return [canonical(name) for groups in found for group in groups for name in group.split()]


def canonical(name: str) -> str:
    """A module's name as the kernel spells it."""
    return name.replace("-", "_")


def module_path(name: str) -> tuple[str, str] | None:
    """A kernel package's path as the kernel's release and the path below it; None for another file."""
    match = _MODULE_PATH.match(name)
    if match is None:
        return None
    release, folder, stem = match.groups()
    return release, f"{folder or ''}{stem}.ko"


def select(modules: Mapping[str, Module], wanted: Iterable[str]) -> list[Module]:
    """The wanted modules that exist and all that they depend on, each after what it needs.

    Raises:
        CorruptImage: A module depends on one that the package does not have, or on itself.
    """
    chosen: dict[str, Module] = {}
    for name in wanted:
        if name in modules:
            _visit(name, modules, chosen, ())
    return list(chosen.values())


def _visit(
    name: str, modules: Mapping[str, Module], chosen: dict[str, Module], above: tuple[str, ...]
) -> None:
    if name in chosen:
        return
    if name in above or name not in modules:
        raise CorruptImage(f"the kernel module {above[-1] if above else name} has a bad dependency on {name}")
    for needed in modules[name].depends():
        _visit(needed, modules, chosen, (*above, name))
    for needed in modules[name].soft_depends():
        if needed in modules and needed not in above:
            _visit(needed, modules, chosen, (*above, name))
    chosen[name] = modules[name]


def modules_dep(modules: Iterable[Module]) -> str:
    """The table ``modules.dep``: each module's path and those of all that it depends on, nearest first."""
    chosen = {module.name: module for module in modules}
    lines = []
    for module in chosen.values():
        needed = select(chosen, [module.name])[-2::-1] if module.depends() or module.soft_depends() else []
        lines.append(" ".join([f"{module.path}:", *(other.path for other in needed)]))
    return "\n".join(lines) + "\n"


def modules_alias(modules: Iterable[Module]) -> str:
    """The table ``modules.alias``: device patterns and other names, each with its module."""
    lines = [f"alias {alias} {module.name}" for module in modules for alias in module.info("alias")]
    return "\n".join(lines) + "\n"

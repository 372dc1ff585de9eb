"""The initramfs images that sublet makes: BusyBox, kernel modules and a first process of our own."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Final

from sublet.errors import CorruptImage
from sublet.guest.cpio import CpioWriter
from sublet.guest.deb import DebFile
from sublet.guest.modules import Module, module_path, modules_alias, modules_dep, select
from sublet.guest.script_files import script

_DIRECTORIES: Final = (
    "bin",
    "dev",
    "etc",
    "lib",
    "mnt",
    "newroot",
    "proc",
    "root",
    "run",
    "sys",
    "tmp",
    "usr",
    "var",
)
_PASSWD: Final = b"root:x:0:0:root:/root:/bin/sh\n"
_GROUP: Final = b"root:x:0:\ntty:x:5:\n"
_NAMES: Final = b"127.0.0.1 localhost sublet\n::1 localhost\n"


def read_busybox(deb: Path) -> bytes:
    """The static BusyBox out of the package ``busybox-static``."""
    for info, stream in DebFile(deb).entries():
        if stream is not None and info.name in ("bin/busybox", "usr/bin/busybox"):
            return stream.read()
    raise CorruptImage(f"{deb.name} has no busybox in it")


class KernelPackage:
    """What sublet takes from a Debian kernel package: the image, and modules by name."""

    def __init__(self, deb: Path) -> None:
        self.image = b""
        self.release = ""
        self.modules: dict[str, Module] = {}
        for info, stream in DebFile(deb).entries():
            if stream is None:
                continue
            if info.name.startswith("boot/vmlinuz-"):
                self.image = stream.read()
                self.release = info.name.removeprefix("boot/vmlinuz-")
            elif (found := module_path(info.name)) is not None:
                module = Module(found[1], stream.read())
                self.modules[module.name] = module
        if not self.image:
            raise CorruptImage(f"{deb.name} has no kernel image in it")


def write_default_initramfs(
    path: Path, busybox: bytes, kernel: KernelPackage, modules: Iterable[str]
) -> None:
    """The default guest's file system: BusyBox, a shell on the console, and the drivers ``modules``."""
    files = {
        "init": (script("init"), 0o755),
        "etc/profile": (script("profile"), 0o644),
        "etc/udhcpc/default.script": (script("udhcpc"), 0o755),
        "etc/passwd": (_PASSWD, 0o644),
        "etc/group": (_GROUP, 0o644),
        "etc/hosts": (_NAMES, 0o644),
    }
    _write_initramfs(path, busybox, kernel, modules, files)


def write_disk_initramfs(path: Path, busybox: bytes, kernel: KernelPackage, modules: Iterable[str]) -> None:
    """The initramfs that mounts a disk's root file system and hands over to it."""
    _write_initramfs(path, busybox, kernel, modules, {"init": (script("disk-init"), 0o755)})


def _write_initramfs(
    path: Path,
    busybox: bytes,
    kernel: KernelPackage,
    wanted: Iterable[str],
    files: dict[str, tuple[bytes, int]],
) -> None:
    """Write it uncompressed: the guest then copies it rather than decompressing it, which is quicker."""
    modules = select(kernel.modules, wanted)
    content = {"bin/busybox": (busybox, 0o755), **files}
    content.update(
        (f"lib/modules/{kernel.release}/{module.path}", (module.data, 0o644)) for module in modules
    )
    for name, text in (("dep", modules_dep(modules)), ("alias", modules_alias(modules))):
        content[f"lib/modules/{kernel.release}/modules.{name}"] = (text.encode(), 0o644)
    with path.open("wb") as stream:
        archive = CpioWriter(stream)
        for name in _directories(content):
            archive.directory(name, 0o1777 if name == "tmp" else 0o755)
        archive.character_device("dev/console", 5, 1)
        archive.character_device("dev/null", 1, 3, 0o666)
        archive.symlink("bin/sh", "busybox")
        archive.symlink("sbin", "bin")
        for name in ("usr/bin", "usr/sbin"):
            archive.symlink(name, "../bin")
        for name, (data, mode) in sorted(content.items()):
            archive.file(name, data, mode)
        archive.close()


def _directories(names: Iterable[str]) -> list[str]:
    """Every directory that the names lie in and those every guest has, parents first."""
    parents = {str(parent) for name in names for parent in PurePosixPath(name).parents} - {"."}
    return sorted(parents | set(_DIRECTORIES))

"""Making a guest out of Debian's packages, once; afterwards it comes from the cache without this."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sublet.errors import CorruptImage, UsageError
from sublet.guest.apt import AptArchive, apt_is_usable
from sublet.guest.archive import Archive, Package, PackageIndex
from sublet.guest.initramfs import (
    KernelPackage,
    read_busybox,
    write_default_initramfs,
    write_disk_initramfs,
)
from sublet.guest.mirror import EXAMPLE_MIRROR, MirrorArchive
from sublet.guest.rootfs import configure_here, make_image, package_names, unpack_root
from sublet.guest.store import Progress, Store, cache_key, file_sha256
from sublet.guest.tree import RootTree

if TYPE_CHECKING:
    from sublet.guest.catalogue import Configure, Recipe


def open_archive(
    store: Store, progress: Progress, mirror: str | None = None, architecture: str = "amd64"
) -> Archive:
    """Where packages of an architecture come from on this host: the user's mirror, else its apt.

    Raises:
        UsageError: There is neither.
    """
    named = mirror or os.environ.get("SUBLET_MIRROR", "")
    if not named and apt_is_usable():
        folder = "apt" if architecture == "amd64" else f"apt-{architecture}"
        return AptArchive(store.directory(folder), progress, architecture)
    if not named:
        raise UsageError(
            "this host has no apt with Debian 12 among its sources, and no mirror is named",
            remedy=f"Set SUBLET_MIRROR to the address of a Debian mirror, such as {EXAMPLE_MIRROR}.",
        )
    return MirrorArchive(named, progress, architecture=architecture)


def newest_kernel(index: PackageIndex, meta: str) -> Package:
    """The kernel package that a meta-package stands for today."""
    for alternatives in index[meta].depends():
        if alternatives and alternatives[0].startswith("linux-image-"):
            return index[alternatives[0]]
    raise CorruptImage(f"the package {meta} does not name a kernel")


def build(
    recipe: Recipe,
    label: str,
    extra: tuple[str, ...],
    store: Store,
    archive: Archive,
    progress: Progress,
    configure: Configure | None,
    *,
    builder: str,
) -> Path:
    """Make a guest and publish it as ``label``; ``builder`` names the way it is made."""
    index = archive.index()
    kernel, busybox = newest_kernel(index, recipe.kernel), index["busybox-static"]
    root = index.closure(package_names(index, extra)) if recipe.has_disk else []
    wanted = list({package.name: package for package in (kernel, busybox, *root)}.values())
    with store.scratch() as scratch:
        for name in ("debs", "out"):
            (scratch / name).mkdir()
        paths = dict(zip((p.name for p in wanted), archive.fetch(wanted, scratch / "debs"), strict=True))
        progress("building the initramfs")
        _write_boot_files(recipe, scratch / "out", paths[kernel.name], paths[busybox.name])
        if recipe.has_disk:
            debs = [paths[package.name] for package in root]
            _write_disk(scratch, debs, paths[kernel.name], progress, configure)
        key = cache_key(builder, recipe.name, *(package.sha256 for package in wanted))
        built = store.publish(
            label, key, scratch / "out", _manifest(recipe, builder, wanted, scratch / "out")
        )
    progress(f"{recipe.name} is ready")
    return built


def _write_boot_files(recipe: Recipe, out: Path, kernel_deb: Path, busybox_deb: Path) -> None:
    kernel = KernelPackage(kernel_deb)
    write = write_disk_initramfs if recipe.has_disk else write_default_initramfs
    (out / "vmlinuz").write_bytes(kernel.image)
    write(out / "initrd.cpio", read_busybox(busybox_deb), kernel, recipe.modules)


def _write_disk(
    scratch: Path, debs: Sequence[Path], kernel_deb: Path, progress: Progress, configure: Configure | None
) -> None:
    """Make ``disk.raw``, configured here, else in a machine, else by the guest's first boot."""
    out = scratch / "out"
    tree = RootTree(scratch / "root")
    unpack_root(tree, debs, kernel_deb, progress)
    configured = configure_here(tree, progress)
    make_image(tree, out / "disk.raw", progress)
    if not configured and configure is not None:
        progress("configuring packages in a machine")
        configure(out / "vmlinuz", out / "initrd.cpio", out / "disk.raw", progress)


def _manifest(recipe: Recipe, builder: str, packages: Sequence[Package], out: Path) -> dict[str, Any]:
    """What a guest was made from, and its boot files' checksums."""
    return {
        "guest": recipe.name,
        "builder": builder,
        "packages": {package.name: package.version for package in packages},
        "files": {path.name: file_sha256(path) for path in (out / "vmlinuz", out / "initrd.cpio")},
    }

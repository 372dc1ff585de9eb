"""Firmware out of Debian's packages, for hosts that do not have it: fetched and verified as guests are."""

from __future__ import annotations

import fnmatch
import shutil
from pathlib import Path
from typing import Final

from sublet.errors import CorruptImage
from sublet.guest.archive import Package
from sublet.guest.build import open_archive
from sublet.guest.deb import DebFile
from sublet.guest.store import Progress, Store, cache_directory, cache_key, silent

_BUILDER: Final = "1"
"""Raised when other files of the packages are kept."""
_FILES: Final = {
    "seabios": "usr/share/seabios/*.bin",
    "ovmf": "usr/share/OVMF/OVMF_*.fd",
    "ipxe-qemu": "usr/lib/ipxe/qemu/*.rom",
}
"""What is kept of each package; links are not."""


def prepare_firmware(
    package: str, progress: Progress = silent, *, mirror: str | None = None, cache: Path | None = None
) -> Path:
    """A folder with the images of one of Debian's packages: from the cache, else from the archive.

    Args:
        package: ``seabios``, ``ovmf`` or ``ipxe-qemu``.
        progress: Told of each long step.
        mirror: See `sublet.guest.prepare_guest`; so are the errors.
        cache: Directory to use in place of ``cache_directory()``.

    Raises:
        UsageError: There is neither an archive nor apt.
        HostRefused: No network, no space, no permission, no keyring.
        CorruptImage: Something did not verify, or the package has no images.
    """
    store = Store(cache or cache_directory())
    label = f"firmware-{package}"
    built = store.current(label, _BUILDER)
    if built is not None:
        return built
    with store.lock(label, progress):
        return store.current(label, _BUILDER) or _build(package, label, store, progress, mirror)


def _build(package: str, label: str, store: Store, progress: Progress, mirror: str | None) -> Path:
    archive = open_archive(store, progress, mirror)
    wanted = archive.index()[package]
    with store.scratch() as scratch:
        for name in ("debs", "out"):
            (scratch / name).mkdir()
        (deb,) = archive.fetch([wanted], scratch / "debs")
        _unpack(deb, _FILES[package], scratch / "out")
        key = cache_key(_BUILDER, package, wanted.sha256)
        return store.publish(label, key, scratch / "out", _manifest(wanted))


def _unpack(deb: Path, pattern: str, out: Path) -> None:
    """Put the regular files whose path is like ``pattern`` into one folder."""
    for info, stream in DebFile(deb).entries():
        if stream is not None and fnmatch.fnmatchcase(info.name, pattern):
            with (out / Path(info.name).name).open("wb") as target:
                shutil.copyfileobj(stream, target)
    if not any(out.iterdir()):
        raise CorruptImage(f"{deb.name} has no {pattern}")


def _manifest(package: Package) -> dict[str, object]:
    return {"builder": _BUILDER, "packages": {package.name: package.version}}

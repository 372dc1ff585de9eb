"""A Debian root directory, unpacked as ``dpkg --unpack`` would, without dpkg and without root."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from sublet.errors import CorruptImage
from sublet.guest.archive import parse_stanza
from sublet.guest.deb import DebFile, safe_name

MERGED: Final = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
"""Top directories that are links into ``usr`` on Debian 12."""

_MAX_LINKS: Final = 40
_PERMISSIONS: Final = 0o7777


@dataclass(frozen=True)
class Ownership:
    """What the packages say of one file; kept aside where we may not set it ourselves."""

    uid: int
    gid: int
    mode: int


class RootTree:
    """A directory that becomes a guest's root, and the ownership that its files shall have.

    Names are those of the packages, without a leading slash. Nothing is ever written through a link that
    leads outside: every parent directory is resolved within the tree, as a kernel would after ``chroot``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.owners: dict[str, Ownership] = {}
        self.names: list[str] = []
        self._own = os.geteuid() == 0
        path.mkdir(mode=0o755)
        for name in MERGED:
            (path / "usr" / name).mkdir(parents=True, exist_ok=True)
            (path / name).symlink_to(f"usr/{name}")

    def unpack(self, deb: Path) -> None:
        """Unpack one package and enter it into dpkg's database as unpacked, not yet configured."""
        package = DebFile(deb)
        control = package.control_files()
        conffiles = _conffiles(control)
        listed = ["/."]
        for info, stream in package.entries():
            listed.append(f"/{info.name}")
            self._extract(info, stream, f"{info.name}.dpkg-new" if info.name in conffiles else info.name)
        self._register(control, listed, deb)

    def unpack_some(self, deb: Path, prefixes: tuple[str, ...]) -> None:
        """Take from a package only what lies below ``prefixes``, and leave dpkg's database alone."""
        for info, stream in DebFile(deb).entries():
            if info.name.startswith(prefixes):
                self._extract(info, stream, info.name)

    def write(self, name: str, data: bytes | str, mode: int = 0o644) -> None:
        """Write a file of ours, owned by root."""
        path = self._inside(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        self._set_owner(path, Ownership(0, 0, stat.S_IFREG | mode))

    def symlink(self, name: str, target: str) -> None:
        """Make a symbolic link, replacing what is there."""
        path = self._inside(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(target)

    def directory(self, name: str, mode: int = 0o755) -> None:
        """Make a directory owned by root."""
        path = self._inside(name)
        path.mkdir(parents=True, exist_ok=True)
        self._set_owner(path, Ownership(0, 0, stat.S_IFDIR | mode))

    def _extract(self, info: tarfile.TarInfo, stream: IO[bytes] | None, name: str) -> None:
        path = self._inside(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if info.isdir():
            # A directory of a package does not replace a link to one: that is how merged /usr stays merged.
            if path.is_symlink():
                return
            path.mkdir(exist_ok=True)
        else:
            path.unlink(missing_ok=True)
            if not self._make_file(info, stream, path):
                return
        self._set_owner(path, Ownership(info.uid, info.gid, _file_type(info) | info.mode & _PERMISSIONS))
        if info.isreg():
            os.utime(path, (info.mtime, info.mtime))

    def _make_file(self, info: tarfile.TarInfo, stream: IO[bytes] | None, path: Path) -> bool:
        """Make one non-directory; False when its ownership is another file's (a hard link)."""
        if info.issym():
            path.symlink_to(info.linkname)
        elif info.islnk():
            path.hardlink_to(self._inside(safe_name(info.linkname, self.path)))
            return False
        elif stream is not None:
            with path.open("wb") as target:
                shutil.copyfileobj(stream, target, 1 << 20)
        else:
            raise CorruptImage(f"a package holds {info.name!r}, which is neither file, link nor directory")
        return True

    def _inside(self, name: str) -> Path:
        """The path of ``name`` with every link among its parents followed within the tree."""
        waiting = [part for part in name.split("/") if part not in ("", ".")]
        resolved: list[str] = []
        links = 0
        while len(waiting) > 1:
            part = waiting.pop(0)
            if part == "..":
                del resolved[-1:]
                continue
            path = self.path.joinpath(*resolved, part)
            if not path.is_symlink():
                resolved.append(part)
                continue
            links += 1
            if links > _MAX_LINKS:
                raise CorruptImage(f"{name!r} lies behind too many links")
            target = os.readlink(path)
            resolved = [] if target.startswith("/") else resolved
            waiting[:0] = [piece for piece in target.split("/") if piece not in ("", ".")]
        if waiting and waiting[0] == "..":
            raise CorruptImage(f"{name!r} leaves the tree")
        return self.path.joinpath(*resolved, *waiting)

    def _set_owner(self, path: Path, owner: Ownership) -> None:
        """Give a file its owner and mode where we may, and note them where we may not."""
        if self._own:
            os.chown(path, owner.uid, owner.gid, follow_symlinks=False)
        self.owners[str(path.relative_to(self.path))] = owner
        if not stat.S_ISLNK(owner.mode):
            # Whoever makes the image must be able to read it; the true mode is set there.
            readable = 0o700 if stat.S_ISDIR(owner.mode) else 0o400
            path.chmod(owner.mode & _PERMISSIONS | (0 if self._own else readable))

    def _register(self, control: dict[str, bytes], listed: Iterable[str], deb: Path) -> None:
        """Enter a package into ``/var/lib/dpkg``.

        Reference: dpkg 1.21 lib/dpkg/parse.c; a conffile not installed yet has the hash ``newconffile``.
        """
        fields = parse_stanza(control.get("control", b"").decode(errors="replace"))
        if not {"Package", "Version", "Architecture"} <= fields.keys():
            raise CorruptImage(f"{deb.name} has an incomplete control file")
        name = fields["Package"]
        same = fields.get("Multi-Arch") == "same"
        self.names.append(f"{name}:{fields['Architecture']}" if same else name)
        for file, data in control.items():
            if file != "control" and "/" not in file:
                executable = file in ("preinst", "postinst", "prerm", "postrm", "config")
                self.write(f"var/lib/dpkg/info/{self.names[-1]}.{file}", data, 0o755 if executable else 0o644)
        self.write(f"var/lib/dpkg/info/{self.names[-1]}.list", "\n".join(listed) + "\n")
        self._append_status(control, deb)

    def _append_status(self, control: dict[str, bytes], deb: Path) -> None:
        lines = control["control"].decode(errors="replace").strip("\n").split("\n")
        lines.insert(1, "Status: install ok unpacked")
        if conffiles := sorted(_conffiles(control)):
            lines += ["Conffiles:", *(f" /{name} newconffile" for name in conffiles)]
        path = self.path / "var/lib/dpkg/status"
        with path.open("a") as stream:
            stream.write("\n".join(lines) + "\n\n")


def _conffiles(control: dict[str, bytes]) -> set[str]:
    """Names of the configuration files that a package asks dpkg to look after."""
    lines = control.get("conffiles", b"").decode(errors="replace").splitlines()
    return {line.lstrip("/") for line in map(str.strip, lines) if line.startswith("/")}


def _file_type(info: tarfile.TarInfo) -> int:
    if info.isdir():
        return stat.S_IFDIR
    return stat.S_IFLNK if info.issym() else stat.S_IFREG


def forget_tree(tree: RootTree) -> None:
    """Drop a tree's memory of names that no longer exist, after scripts have run in it."""
    for name in list(tree.owners):
        with contextlib.suppress(OSError):
            if not os.path.lexists(tree.path / name):
                del tree.owners[name]

"""Reading Debian binary packages without dpkg."""

from __future__ import annotations

import gzip
import io
import lzma
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from sublet.errors import CorruptImage, UnsupportedImage

_AR_MAGIC: Final = b"!<arch>\n"
_AR_HEADER_SIZE: Final = 60
_MAX_CONTROL_FILE: Final = 16 << 20


@dataclass(frozen=True)
class Member:
    """Where one member of an ``ar`` archive lies: bytes from the start of the file."""

    name: str
    offset: int
    size: int


class DebFile:
    """One ``.deb``: an ``ar`` archive of a version, control files and a data tar.

    Reference: deb(5) "Debian binary package format", format 2.0.

    Raises:
        CorruptImage: The file is not a package, or is cut short.
        UnsupportedImage: The package uses a compression other than xz, gzip or none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._members = {member.name: member for member in _read_ar(path)}
        if "debian-binary" not in self._members:
            raise CorruptImage(f"{path.name} is not a Debian package: it has no debian-binary member")

    def control_files(self) -> dict[str, bytes]:
        """The control archive's files by name: ``control``, ``md5sums``, maintainer scripts, and so on."""
        files: dict[str, bytes] = {}
        with self._open_tar("control.tar") as archive:
            for info in _members_of(archive, self.path):
                stream = archive.extractfile(info) if info.isreg() else None
                if stream is not None and info.size <= _MAX_CONTROL_FILE:
                    files[info.name.removeprefix("./")] = stream.read()
        return files

    def entries(self) -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
        """Every entry of the data archive in its order, regular files with an open stream.

        Names are relative, have no ``..`` in them and no leading ``./``; the top itself is left out.
        """
        with self._open_tar("data.tar") as archive:
            for info in _members_of(archive, self.path):
                info.name = safe_name(info.name, self.path)
                if info.name:
                    yield info, archive.extractfile(info) if info.isreg() else None

    def _open_tar(self, stem: str) -> tarfile.TarFile:
        for suffix, mode in (("", ":"), (".gz", ":gz"), (".xz", ":xz")):
            member = self._members.get(stem + suffix)
            if member is not None:
                return self._open_member(member, mode)
        found = [name for name in self._members if name.startswith(stem)]
        if found:
            raise UnsupportedImage(f"{self.path.name} holds {found[0]}; only xz and gzip are read")
        raise CorruptImage(f"{self.path.name} is not a Debian package: it has no {stem} member")

    def _open_member(self, member: Member, mode: str) -> tarfile.TarFile:
        with self.path.open("rb") as stream:
            stream.seek(member.offset)
            packed = stream.read(member.size)
        try:
            if mode == ":xz":
                packed = lzma.decompress(packed)
            elif mode == ":gz":
                packed = gzip.decompress(packed)
            return tarfile.open(fileobj=io.BytesIO(packed), mode="r:")
        except (lzma.LZMAError, OSError, EOFError, tarfile.TarError) as error:
            raise CorruptImage(f"{self.path.name}: {member.name} is damaged") from error


def safe_name(name: str, source: Path) -> str:
    """A tar entry's name as a relative path; refuses a name that would leave the tree."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise CorruptImage(f"{source.name} holds the unsafe name {name!r}")
    return "/".join(parts)


def _members_of(archive: tarfile.TarFile, path: Path) -> Iterator[tarfile.TarInfo]:
    try:
        yield from archive
    except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
        raise CorruptImage(f"{path.name} is damaged") from error


def _read_ar(path: Path) -> Iterator[Member]:
    """The members of an ``ar`` archive; every size is checked against the file's."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        if stream.read(len(_AR_MAGIC)) != _AR_MAGIC:
            raise CorruptImage(f"{path.name} is not a Debian package")
        while len(header := stream.read(_AR_HEADER_SIZE)) == _AR_HEADER_SIZE:
            member = _parse_header(header, stream.tell(), path)
            if member.offset + member.size > size:
                raise CorruptImage(f"{path.name} is cut short in {member.name}")
            yield member
            stream.seek(member.offset + member.size + member.size % 2)


def _parse_header(header: bytes, offset: int, path: Path) -> Member:
    if header[58:] != b"`\n" or not header[48:58].strip().isdigit():
        raise CorruptImage(f"{path.name} has a damaged header at byte {offset - _AR_HEADER_SIZE}")
    name = header[:16].decode("ascii", "replace").strip().removesuffix("/")
    return Member(name, offset, int(header[48:58]))

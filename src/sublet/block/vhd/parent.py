"""How a differencing VHD names its parent.

Windows paths are stored with backslashes, URLs as ``file://`` and a path, relative ones as ``file://./``.

Reference: VHD 1.0 "Parent Locator Entry" and "Splitting/Parent" notes; platform codes of the same section.
"""

from __future__ import annotations

import uuid
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Final
from urllib.parse import quote, unquote

from sublet.block.chain import Chain
from sublet.block.description import BackingReference
from sublet.block.format import Image
from sublet.block.hostfile import HostFile
from sublet.block.vhd.layout import LOCATORS, SECTOR, DynamicHeader, Locator
from sublet.errors import CorruptImage, ImageError

LOCATOR_MAXIMUM: Final = 64 << 10
_RELATIVE, _ABSOLUTE, _URL = b"W2ru", b"W2ku", b"MacX"


def stored_names(file: HostFile, header: DynamicHeader) -> list[str]:
    """Paths of the parent as the locators have them, relative ones first, with forward slashes.

    Raises:
        CorruptImage: A locator lies outside the file.
    """
    found: dict[bytes, str] = {}
    for entry in header.locators:
        if entry.platform in (_RELATIVE, _ABSOLUTE, _URL) and entry.length:
            found[entry.platform] = _decode(entry.platform, _text(file, entry))
    names = [found[platform] for platform in (_RELATIVE, _URL, _ABSOLUTE) if platform in found]
    if header.parent_name:
        names.append(_slashes(header.parent_name))
    return list(dict.fromkeys(name for name in names if name))


def _text(file: HostFile, entry: Locator) -> bytes:
    if entry.length > LOCATOR_MAXIMUM or entry.offset + entry.length > file.size():
        raise CorruptImage(
            f"VHD parent locator {entry.platform!r}: {entry.length} bytes at {entry.offset}, outside the file"
        )
    return file.read(entry.offset, entry.length)


def _decode(platform: bytes, raw: bytes) -> str:
    if platform == _URL:
        url = raw.split(b"\0", 1)[0].decode("utf-8", "replace")
        return unquote(url.removeprefix("file://").removeprefix("localhost"))
    return _slashes(raw.decode("utf-16-le", "replace").split("\0", 1)[0])


def _slashes(text: str) -> str:
    """A Windows path with forward slashes."""
    return text.replace("\\", "/")


def _encode(platform: bytes, path: str) -> bytes:
    relative = not path.startswith("/")
    if platform == _URL:
        return ("file://" + ("./" if relative else "") + quote(path)).encode()
    return ((".\\" if relative else "") + path.replace("/", "\\")).encode("utf-16-le")


def pack_locators(path: str, start: int) -> tuple[tuple[Locator, ...], bytes]:
    """Locator entries for a path, and their text in whole sectors, to be written at ``start``."""
    platforms = (_ABSOLUTE if path.startswith("/") else _RELATIVE, _URL)
    entries, area = [], b""
    for platform in platforms:
        text = _encode(platform, path)
        space = -(-len(text) // SECTOR) * SECTOR
        entries.append(Locator(platform, space, len(text), start + len(area)))
        area += text.ljust(space, b"\0")
    unused = (Locator(),) * (LOCATORS - len(entries))
    return (*entries, *unused), area


def with_parent(
    header: DynamicHeader, path: str, parent_id: uuid.UUID, start: int
) -> tuple[DynamicHeader, bytes]:
    """The header of a child of the parent of that id, and the locators' text for ``start``."""
    locators, area = pack_locators(path, start)
    name = PurePosixPath(path).name
    return replace(header, parent_id=parent_id, parent_name=name, locators=locators), area


def find_parent(file: HostFile, header: DynamicHeader, chain: Chain) -> Image | None:
    """Open the parent: the first named file that exists, else the first named for the error.

    Returns:
        None when the chain opens no parents.

    Raises:
        ImageError: No name is stored, the parent is missing or not allowed, or it is another disk.
    """
    names = stored_names(file, header)
    if not names:
        raise ImageError(f"{file.path} does not say where its parent is")
    return chain.open_parent(file, _first_that_exists(file, names, chain), "vhd")


def _first_that_exists(file: HostFile, names: list[str], chain: Chain) -> str:
    """An absolute Windows path means nothing here, but its last part may lie beside the child."""
    candidates = [*names, *(PurePosixPath(name).name for name in names)]
    for name in candidates:
        try:
            if name and chain.resolve(file.path, name).exists():
                return name
        except ImageError:
            continue
    return names[0]


def reference(file: HostFile, header: DynamicHeader) -> BackingReference | None:
    """What ``sublet disk info`` shows."""
    names = stored_names(file, header)
    return BackingReference(names[0].removeprefix("./"), "vhd") if names else None

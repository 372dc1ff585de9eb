"""Finding the parent of a differencing VDI image.

The image holds its parent's UUID and no path: VirtualBox keeps paths in its registry. So the parent is
looked for by UUID in the folders where VirtualBox puts it. An image that we made also says where its parent
was, in the comment; that is only where the search begins.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sublet.block.chain import Chain
from sublet.block.hostfile import HostFiles, Lock
from sublet.block.vdi.layout import HEADER_AREA, Header
from sublet.errors import CorruptImage, ImageError, SubletError

_PREFIX: Final = b"parent="
_COMMENT_MAXIMUM: Final = 255
_FILES_MAXIMUM: Final = 1000
"""Files of a folder that are looked into."""


def parent_comment(reference: str) -> bytes:
    """A comment that says where the parent is; empty when that is too long for one."""
    comment = _PREFIX + reference.encode("utf-8", "surrogateescape")
    return comment if len(comment) <= _COMMENT_MAXIMUM else b""


def find_parent(child: Path, header: Header, chain: Chain) -> str:
    """Path of the parent, absolute or relative to the child's folder.

    Returns:
        The UUID in braces where the parent is not found and the chain does not need it.

    Raises:
        ImageError: No file where it may be has the UUID.
    """
    for reference in itertools.chain(_hint(header), _neighbours(child)):
        if _has_uuid(child, reference, header.parent, chain):
            return reference
    if not chain.parents:
        return f"{{{header.parent}}}"
    raise ImageError(
        f"{child} needs its parent, the VDI image with the UUID {header.parent}, which is not in its folder",
        remedy="Bring it there, or name it with 'sublet disk rebase --unsafe'.",
    )


def read_header(path: Path, files: HostFiles) -> Header | None:
    """The header of a VDI image; None when the file is none, or cannot be read."""
    try:
        file = files.open(path, readonly=True, lock=Lock.NONE)
    except SubletError:
        return None
    try:
        return Header.parse(file.read(0, HEADER_AREA))
    except (SubletError, OSError):
        return None
    finally:
        file.close()


def _hint(header: Header) -> Iterator[str]:
    if header.comment.startswith(_PREFIX):
        yield header.comment.removeprefix(_PREFIX).decode("utf-8", "surrogateescape")


def _neighbours(child: Path) -> Iterator[str]:
    """VDI files beside the child, in its folder for snapshots, and where that folder lies."""
    for folder in (".", "Snapshots", ".."):
        try:
            names = sorted(
                path.name for path in itertools.islice((child.parent / folder).iterdir(), _FILES_MAXIMUM)
            )
        except OSError:
            continue
        yield from (str(Path(folder) / name) for name in names if name.lower().endswith(".vdi"))


def _has_uuid(child: Path, reference: str, wanted: uuid.UUID, chain: Chain) -> bool:
    """Whether an allowed file has the UUID."""
    try:
        path = chain.resolve(child, reference)
    except CorruptImage:
        raise
    except ImageError:
        return False
    header = read_header(path, chain.files)
    return header is not None and header.image == wanted

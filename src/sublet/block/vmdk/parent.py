"""The parent of a VMDK disk: how a child refers to it, and what it remembers of it."""

from __future__ import annotations

from pathlib import Path, PureWindowsPath
from typing import Final

from sublet.block.description import BackingReference
from sublet.block.hostfile import HostFiles, Lock, read_structure
from sublet.block.vmdk.descriptor import MAX_SIZE, Descriptor
from sublet.block.vmdk.layout import HOSTED_MAGIC, SECTOR, HostedHeader
from sublet.errors import ImageError, UsageError

FORMAT_NAME: Final = "vmdk"


def read_descriptor(path: Path, files: HostFiles) -> Descriptor:
    """The descriptor of a VMDK disk, without opening its extents.

    Raises:
        HostRefused: The file cannot be opened.
        ImageError: It holds no descriptor.
    """
    file = files.open(path, readonly=True, lock=Lock.NONE)
    try:
        head = file.read(0, SECTOR)
        if head[:4] != HOSTED_MAGIC:
            return Descriptor.decode(file.read(0, min(file.size(), MAX_SIZE)), str(path))
        header = HostedHeader.parse(head, str(path))
        size = min(header.descriptor_size * SECTOR, MAX_SIZE)
        return Descriptor.decode(
            read_structure(file, header.descriptor_offset * SECTOR, size, "descriptor"), str(path)
        )
    finally:
        file.close()


def parent_content_id(child: Path, backing: BackingReference, files: HostFiles) -> int:
    """What a child of ``backing`` remembers of it.

    Raises:
        UsageError: It is no VMDK disk, which is all that the format refers to.
    """
    if backing.format not in (None, FORMAT_NAME):
        raise UsageError(f"the parent of a VMDK disk is a VMDK disk, not {backing.format}")
    try:
        return read_descriptor(child.parent / backing.path, files).content_id
    except ImageError as error:
        raise UsageError(f"the parent {backing.path} is no VMDK disk: {error.message}") from error


def parent_reference(path: Path, descriptor: Descriptor) -> str:
    """The hint; or the file of that name beside the child, when the hint is another machine's path."""
    hint = descriptor.parent_hint or ""
    if not (path.parent / hint).exists():
        name = PureWindowsPath(hint).name
        if name and (path.parent / name).exists():
            return name
    return hint

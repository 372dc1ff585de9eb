"""Creating VMDK disks of every kind that we write."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from sublet.block.chain import Chain
from sublet.block.description import BackingReference
from sublet.block.format import (
    CreateOption,
    Image,
    read_flag,
    read_options,
)
from sublet.block.hostfile import HostFile, HostFiles
from sublet.block.vmdk import descriptor as descriptors
from sublet.block.vmdk.build import KINDS, SPLIT_SECTORS, Kind, extent_name, write_extent, write_hosted
from sublet.block.vmdk.descriptor import NO_PARENT, Descriptor, ExtentLine, ExtentType
from sublet.block.vmdk.image import VmdkImage
from sublet.block.vmdk.layout import (
    COWD_MAGIC,
    DESCRIPTOR_SECTORS,
    HOSTED_MAGIC,
    MAX_GRAIN_DIRECTORY,
    SECTOR,
    hosted_plan,
    stream_plan,
)
from sublet.block.vmdk.parent import FORMAT_NAME, parent_content_id
from sublet.block.vmdk.stream import descriptor_area, write_stream
from sublet.errors import UsageError

_ADAPTERS: Final = ("ide", "buslogic", "lsilogic", "legacyESX")
_EXTENTS_MAXIMUM: Final = 10_000


class VmdkFormat:
    """VMware's format (``ImageFormat``)."""

    name = FORMAT_NAME
    extensions = (".vmdk",)
    options: tuple[CreateOption, ...] = (
        CreateOption("subformat", "monolithicSparse", ", ".join(KINDS)),
        CreateOption("adapter_type", "ide", ", ".join(_ADAPTERS)),
        CreateOption("hwversion", "4", "VMware's virtual hardware version"),
        CreateOption("zeroed_grain", "off", "on: zeroed grains take no space in a child (header version 2)"),
    )

    def probe(self, head: bytes, tail: bytes, size: int) -> bool:
        """By an extent's magic number, or a descriptor's first line."""
        return head[:4] in (HOSTED_MAGIC, COWD_MAGIC) or descriptors.probe(head)

    def open(self, path: Path, *, readonly: bool, chain: Chain, check: bool = False) -> Image:
        """Open the disk that a descriptor describes, embedded or not."""
        return VmdkImage(path, readonly=readonly, chain=chain, check=check)

    def create(
        self,
        path: Path,
        size: int,
        *,
        options: Mapping[str, str],
        backing: BackingReference | None,
        files: HostFiles,
    ) -> None:
        """Create a disk, and the files of its extents beside it."""
        plan = _Plan(path, size, read_options(self.name, self.options, options), backing, files)
        plan.carry_out()


class _Plan:
    """A disk to be created, checked before anything is written."""

    def __init__(
        self,
        path: Path,
        size: int,
        values: Mapping[str, str],
        backing: BackingReference | None,
        files: HostFiles,
    ) -> None:
        self.path, self.files = path, files
        self.create_type = values["subformat"]
        self.zeroed_grains = read_flag("zeroed_grain", values["zeroed_grain"])
        kind = KINDS.get(self.create_type)
        if kind is None:
            raise UsageError(f"subformat={self.create_type}: it can be {', '.join(KINDS)}")
        if backing is not None and not kind.child:
            raise UsageError(f"a VMDK disk of type {self.create_type} has no parent")
        self.kind = kind
        self.lines = _lines(path, self.create_type, kind, size // SECTOR)
        self.descriptor = self._describe(values, backing)

    def _describe(self, values: Mapping[str, str], backing: BackingReference | None) -> Descriptor:
        if values["adapter_type"] not in _ADAPTERS:
            raise UsageError(f"adapter_type={values['adapter_type']}: it can be {', '.join(_ADAPTERS)}")
        if not values["hwversion"].isdigit():
            raise UsageError(f"hwversion={values['hwversion']}: write a number")
        if backing is not None:
            _check_name(backing.path)
        return descriptors.make(
            self.create_type,
            self.lines,
            content_id=secrets.randbelow(NO_PARENT - 1) + 1,
            parent_content_id=NO_PARENT
            if backing is None
            else parent_content_id(self.path, backing, self.files),
            parent_hint=None if backing is None else backing.path,
            adapter=values["adapter_type"],
            hardware_version=values["hwversion"],
        )

    def carry_out(self) -> None:
        """Write extents first and the descriptor last, so that an unfinished disk does not open."""
        file = self.files.create(self.path)
        made = [self.path]
        try:
            if self.kind.suffix:
                for line in self.lines:
                    extent = self.path.parent / line.filename
                    write_extent(extent, line, self.files, made, zeroed_grains=self.zeroed_grains)
                file.write(0, self.descriptor.encode())
                file.flush()
            else:
                self._write_alone(file)
            file.close()
        except BaseException:
            file.close()
            for path in made:
                self.files.remove(path)
            raise

    def _write_alone(self, file: HostFile) -> None:
        area = descriptor_area(self.descriptor.encode(), DESCRIPTOR_SECTORS)
        capacity = self.lines[0].sectors
        if self.create_type == "streamOptimized":
            write_stream(file, stream_plan(capacity), area)
        else:
            write_hosted(file, hosted_plan(capacity, descriptor=True, zeroed_grains=self.zeroed_grains), area)


def _lines(path: Path, create_type: str, kind: Kind, total: int) -> list[ExtentLine]:
    """Extent lines of a disk of ``total`` sectors.

    Raises:
        UsageError: The kind cannot hold that many, or the name does not fit into a descriptor.
    """
    _check_name(path.name)
    _check_size(kind, total)
    step = SPLIT_SECTORS if kind.split else max(1, total)
    counts = [min(step, total - start) for start in range(0, total, step)] or [0]
    name: Callable[[int], str] = lambda number: extent_name(path, create_type, number)  # noqa: E731
    return [ExtentLine("RW", count, kind.type, name(number)) for number, count in enumerate(counts, 1)]


def _check_size(kind: Kind, total: int) -> None:
    most = {True: SPLIT_SECTORS * _EXTENTS_MAXIMUM, False: MAX_GRAIN_DIRECTORY << 16}[kind.split]
    if kind.type is ExtentType.VMFS_SPARSE:
        most = 0xFFFF_FFFF
    if total > most:
        raise UsageError(f"a disk of {total * SECTOR} bytes is too large: {most * SECTOR} is the most")


def _check_name(name: str) -> None:
    if '"' in name or not name.isprintable():
        raise UsageError(f"the name {name!r} has characters that a VMDK descriptor cannot hold")

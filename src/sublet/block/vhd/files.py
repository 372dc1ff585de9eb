"""Telling, opening and creating VHD files."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from sublet.block.chain import Chain
from sublet.block.description import BackingReference
from sublet.block.format import CreateOption, Image, read_options
from sublet.block.hostfile import HostFile, HostFiles, new_file, read_structure
from sublet.block.vhd import parent as parents
from sublet.block.vhd.blocks import table_size
from sublet.block.vhd.image import DynamicVhd, FixedVhd, require_size
from sublet.block.vhd.layout import (
    COOKIE,
    FOOTER_SIZE,
    HEADER_SIZE,
    MAX_BLOCK_SIZE,
    MIN_BLOCK_SIZE,
    NO_OFFSET,
    DiskType,
    DynamicHeader,
    Footer,
    geometry,
    timestamp,
)
from sublet.errors import CorruptImage, ImageError, UsageError
from sublet.units import parse_size

_OPTIONS: Final = (
    CreateOption("subformat", "dynamic", "dynamic, or fixed"),
    CreateOption("block_size", "2M", "bytes of a block of a dynamic disk, a power of two"),
)
_PIECE: Final = 1 << 20


class VhdFormat:
    """The VHD format (``ImageFormat``)."""

    name = "vhd"
    extensions = (".vhd", ".avhd", ".vpc")
    options = _OPTIONS

    def probe(self, head: bytes, tail: bytes, size: int) -> bool:
        """A footer's cookie at the start, or where the file's last sector begins."""
        return head[:8] == COOKIE or tail[:8] == COOKIE or tail[1:9] == COOKIE

    def open(self, path: Path, *, readonly: bool, chain: Chain, check: bool = False) -> Image:
        """See ``ImageFormat.open``."""
        file = chain.open_file(path, readonly=readonly)
        try:
            return _open(file, chain, check)
        except BaseException:
            file.close()
            raise

    def create(
        self,
        path: Path,
        size: int,
        *,
        options: Mapping[str, str],
        backing: BackingReference | None,
        files: HostFiles,
    ) -> None:
        """See ``ImageFormat.create``."""
        require_size(size)
        values = read_options(self.name, self.options, options)
        subformat, block_size = values["subformat"], _read_block_size(values["block_size"])
        if subformat not in ("dynamic", "fixed"):
            raise UsageError(f"subformat={subformat}: write dynamic or fixed")
        if backing is not None and subformat == "fixed":
            raise UsageError("a fixed VHD has no parent")
        parent_id = None if backing is None else _id_of_parent(path, backing, files)
        with new_file(files, path) as file:
            if subformat == "fixed":
                _write_fixed(file, size)
            else:
                _write_dynamic(file, size, block_size, backing, parent_id)


def _open(file: HostFile, chain: Chain, check: bool) -> Image:
    footer, tail_is_good = _find_footer(file)
    if footer.disk_type == DiskType.FIXED:
        return FixedVhd(file, footer)
    if footer.data_offset % 512 or footer.data_offset < FOOTER_SIZE:
        raise CorruptImage(
            f"{file.path}: data offset {footer.data_offset} of the footer is no dynamic header's"
        )
    raw = read_structure(file, footer.data_offset, HEADER_SIZE, "dynamic header")
    header = DynamicHeader.parse(raw)
    return DynamicVhd(file, footer, header, tail_is_good=tail_is_good, chain=chain, check=check)


def _find_footer(file: HostFile) -> tuple[Footer, bool]:
    """The last footer and True; its copy at the start and False where the last one is damaged.

    Raises:
        CorruptImage: Neither is good; the error is the last one's.
    """
    size = file.size()
    last = max(0, size - 1) // FOOTER_SIZE * FOOTER_SIZE
    try:
        return Footer.parse(read_structure(file, last, size - last, "footer")), True
    except ImageError as damaged:
        try:
            copy = Footer.parse(file.read(0, FOOTER_SIZE))
        except ImageError:
            raise damaged from None
        if copy.disk_type == DiskType.FIXED:
            raise
        return copy, False


def _read_block_size(text: str) -> int:
    try:
        size = parse_size(text)
    except ValueError as error:
        raise UsageError(f"block_size={text}: {error}") from error
    if size & (size - 1) or not MIN_BLOCK_SIZE <= size <= MAX_BLOCK_SIZE:
        raise UsageError(
            f"block_size={text}: must be a power of two from {MIN_BLOCK_SIZE} to {MAX_BLOCK_SIZE}"
        )
    return size


def _id_of_parent(path: Path, backing: BackingReference, files: HostFiles) -> uuid.UUID:
    if backing.format not in (None, "vhd"):
        raise UsageError(f"the parent of a VHD must be a VHD, not {backing.format}")
    file = files.open((path.parent / backing.path), readonly=True)
    try:
        return _find_footer(file)[0].unique_id
    finally:
        file.close()


def _new_footer(size: int, disk_type: DiskType) -> Footer:
    return Footer(
        size,
        disk_type,
        uuid.uuid4(),
        data_offset=NO_OFFSET if disk_type == DiskType.FIXED else FOOTER_SIZE,
        original_size=size,
        timestamp=timestamp(time.time()),
        geometry=geometry(size),
    )


def _write_fixed(file: HostFile, size: int) -> None:
    file.write(size, _new_footer(size, DiskType.FIXED).pack())
    file.flush()


def _write_dynamic(
    file: HostFile, size: int, block_size: int, backing: BackingReference | None, parent_id: uuid.UUID | None
) -> None:
    """Table and header before the footers: until these are there, the file is no VHD."""
    blocks = max(1, -(-size // block_size))
    header, area = DynamicHeader(0, blocks, block_size), b""
    if backing is not None and parent_id is not None:
        header, area = parents.with_parent(header, backing.path, parent_id, FOOTER_SIZE + HEADER_SIZE)
    start = FOOTER_SIZE + HEADER_SIZE + len(area)
    header = header.at_table(start, blocks)
    footer = _new_footer(size, DiskType.DIFFERENCING if backing is not None else DiskType.DYNAMIC)
    end = start + table_size(blocks)
    for at in range(start, end, _PIECE):
        file.write(at, b"\xff" * min(_PIECE, end - at))
    file.write(FOOTER_SIZE, header.pack() + area)
    file.flush()
    file.write(0, footer.pack())
    file.write(end, footer.pack())
    file.flush()

"""ESX's copy-on-write extents."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Final

from sublet.block.clusters import ReadBelow
from sublet.block.entries import decode, encode
from sublet.block.hostfile import HostFile, read_structure
from sublet.block.vmdk.grains import Grains, Span
from sublet.block.vmdk.layout import SECTOR, CowdHeader, sectors

_COWD_COUNTER: Final = CowdHeader.FREE_SECTOR_OFFSET


class CowdGrains(Grains):
    """An ESX copy-on-write extent (``Extent``); its tables are made when they are first needed."""

    def __init__(
        self,
        file: HostFile,
        header: CowdHeader,
        *,
        size: int,
        lock: AbstractContextManager[object],
        below: ReadBelow | None,
    ) -> None:
        self.header = header
        self._counter = header.free_sector
        offset = header.gd_offset * SECTOR
        super().__init__(
            file,
            size=size,
            grain_size=header.grain_size * SECTOR,
            gtes_per_gt=CowdHeader.GTES_PER_GT,
            lock=lock,
            below=below,
            directory=decode(read_structure(file, offset, 4 * header.grain_tables, "grain directory")),
            directory_offset=offset,
        )
        self._file_size = max(self._file_size, header.free_sector * SECTOR)

    def _fixed_spans(self) -> list[Span]:
        start = self.header.gd_offset * SECTOR
        directory = (start, start + sectors(4 * self.header.gd_entries) * SECTOR)
        return [(0, CowdHeader.SIZE), directory]

    def _before_barrier(self) -> None:
        """The counter of used sectors; never too small, or ESX would use them twice."""
        counter = sectors(self._file_size)
        if counter != self._counter:
            self.file.write(_COWD_COUNTER, encode([counter]))
            self._counter = counter

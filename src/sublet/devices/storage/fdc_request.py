"""One read, write, verify or format of a floppy track: which sectors, and how it ended.

Reference: Intel 82077AA §5.1 "Data transfer commands", §6 "Status register encoding".
"""

from __future__ import annotations

from dataclasses import dataclass

from sublet.devices.storage.floppy import FloppyDrive
from sublet.devices.storage.medium import SECTOR
from sublet.devices.storage.taskfile import AtaError

ABNORMAL, INVALID, SEEK_END, EQUIPMENT_CHECK = 0x40, 0x80, 0x20, 0x10
"""Status 0."""
END_OF_CYLINDER, DATA_ERROR, OVERRUN, NO_DATA, NOT_WRITABLE, MISSING_MARK = 0x80, 0x20, 0x10, 0x04, 0x02, 0x01
"""Status 1."""
WRONG_CYLINDER = 0x10
"""Status 2."""

SIZE_512 = 2
READ, WRITE, VERIFY, FORMAT = "read", "write", "verify", "format"


@dataclass
class FdcRequest:
    """A command's operands and its progress; plain values, so that it can be saved."""

    kind: str
    drive: int
    physical_head: int
    cylinder: int
    head: int
    sector: int
    size_code: int
    last: int
    """Number of the last sector of a track."""
    multi_track: bool
    fill: int = 0
    """What FORMAT TRACK fills sectors with."""
    done: int = 0
    """Sectors moved."""
    status1: int = 0
    status2: int = 0

    def run(self) -> list[tuple[int, int]]:
        """(head, sector) of all that the command reaches, in order."""
        places = [(self.head, sector) for sector in range(self.sector, self.last + 1)]
        if self.multi_track and not self.head & 1:
            places += [(self.head ^ 1, sector) for sector in range(1, self.last + 1)]
        return places or [(self.head, self.sector)]

    def check(self, drive: FloppyDrive, rate: int) -> bool:
        """Whether the first sector can be found; sets the status where not."""
        layout = drive.layout
        if layout is None or drive.medium is None or rate not in layout.rates:
            self.status1 |= MISSING_MARK
        elif self.cylinder != drive.cylinder:
            self.status1 |= NO_DATA
            self.status2 |= WRONG_CYLINDER
        elif self.size_code != SIZE_512 or self.head != self.physical_head:
            self.status1 |= NO_DATA
        elif self.kind in (WRITE, FORMAT) and drive.write_protected:
            self.status1 |= NOT_WRITABLE
        elif self.kind != FORMAT and drive.place(*self.run()[0]) is None:
            self.status1 |= NO_DATA
        return not self.status1

    def read(self, drive: FloppyDrive, sectors: int) -> bytes:
        """The next sectors, as many as there are; sets the status where they end too early. Blocks."""
        data = b""
        for head, sector in self.run()[self.done : self.done + sectors]:
            place = drive.place(head, sector)
            if place is None:
                self.status1 |= NO_DATA
                break
            try:
                data += drive.read(place)
            except AtaError:
                self.status1 |= DATA_ERROR
                break
        return data

    def write(self, drive: FloppyDrive, data: bytes) -> None:
        """Write the next sectors; a part of one is filled up with zeroes. Blocks."""
        whole = data.ljust(-(-len(data) // SECTOR) * SECTOR, b"\0")
        run = self.run()[self.done :]
        for index, (head, sector) in zip(range(len(whole) // SECTOR), run, strict=False):
            place = drive.place(head, sector)
            if place is None:
                self.status1 |= NO_DATA
                return
            try:
                drive.write(place, whole[SECTOR * index : SECTOR * (index + 1)])
            except AtaError:
                self.status1 |= DATA_ERROR
                return
            self.done += 1

    def format(self, drive: FloppyDrive, identifiers: bytes) -> None:
        """Fill the sectors that the identifiers name: four bytes each, C, H, R, N. Blocks."""
        for index in range(0, len(identifiers) - 3, 4):
            cylinder, head, sector, size_code = identifiers[index : index + 4]
            place = drive.place(head, sector)
            wrong = cylinder != drive.cylinder or head != self.physical_head or size_code != SIZE_512
            if place is None or wrong:
                continue  # a sector with another identifier: a copy protection's, which an image cannot hold
            try:
                drive.write(place, bytes((self.fill,)) * SECTOR)
            except AtaError:
                self.status1 |= DATA_ERROR
                return

    def result(self, *, terminated: bool) -> bytes:
        """The seven bytes at the end: status 0 to 2, and the sector that would be next.

        Args:
            terminated: The DMA controller ended the transfer; otherwise the end of the cylinder did.
        """
        if not terminated and not self.status1:
            self.status1 |= END_OF_CYLINDER
        status0 = (ABNORMAL if self.status1 or self.status2 else 0) | self.physical_head << 2 | self.drive
        return bytes((status0, self.status1, self.status2, *self._next(), self.size_code))

    def _next(self) -> tuple[int, int, int]:
        if not self.done:
            return self.cylinder, self.head, self.sector
        head, sector = self.run()[min(self.done, len(self.run())) - 1]
        if sector < self.last:
            return self.cylinder, head, sector + 1
        if self.multi_track and not head & 1:
            return self.cylinder, head ^ 1, 1
        return self.cylinder + 1 & 0xFF, head ^ 1 if self.multi_track else head, 1

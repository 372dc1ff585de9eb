"""The 512 bytes in which an ATA drive says what it is.

Reference: ATA8-ACS r6a §7.16 "IDENTIFY DEVICE", §7.17 "IDENTIFY PACKET DEVICE".
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

WORDS = 256
MULTIPLE_MAXIMUM = 16
"""Sectors a block of READ MULTIPLE and WRITE MULTIPLE."""
QUEUE_DEPTH = 32

_LBA28_MAXIMUM = 0x0FFF_FFFF
_PIO_MODES_3_AND_4 = 0x0003
_CYCLE_NS = 120
_MWDMA_MODES = 0x0007
_UDMA_MODES = 0x003F
"""Ultra DMA 0 to 5."""
_ATA4_TO_ATA8 = 0x01F0
_VALID = 0x4000
"""Bit 14 set, bit 15 clear: the word is meant."""


@dataclass(frozen=True)
class Geometry:
    """What INITIALIZE DEVICE PARAMETERS sets and CHS addresses are counted in."""

    cylinders: int
    heads: int
    sectors: int

    @property
    def capacity(self) -> int:
        """Sectors that CHS reaches."""
        return self.cylinders * self.heads * self.sectors


def default_geometry(sectors: int) -> Geometry:
    """16 heads of 63 sectors, at most 16383 cylinders (ATA8-ACS annex B "CHS")."""
    return Geometry(max(1, min(16383, sectors // (16 * 63))), 16, 63)


def ata_text(text: str, size: int) -> bytes:
    """``size`` bytes of ASCII, padded with blanks, the bytes of each word swapped."""
    raw = text.encode("ascii", "replace")[:size].ljust(size)
    return bytes(raw[i ^ 1] for i in range(size))


@dataclass(frozen=True)
class DiskIdentity:
    """What the identification of a disk depends on."""

    sectors: int
    physical_block: int
    """Bytes, 512 or 4096."""
    serial: str
    model: str
    firmware: str
    readonly: bool
    serial_ata: bool
    geometry: Geometry
    multiple: int
    """Sectors that SET MULTIPLE MODE chose, 0 for none."""
    write_cache: bool
    look_ahead: bool
    transfer_mode: int
    """As SET FEATURES 03h has it: 08h to 0Ch PIO, 20h to 22h multiword DMA, 40h to 45h Ultra DMA."""


def dma_words(mode: int) -> tuple[int, int]:
    """Words 63 and 88: modes there are, and the one chosen in the upper byte."""
    multiword = _MWDMA_MODES | (1 << (8 + (mode & 7)) if 0x20 <= mode <= 0x22 else 0)
    ultra = _UDMA_MODES | (1 << (8 + (mode & 7)) if 0x40 <= mode <= 0x45 else 0)
    return multiword, ultra


def identify_disk(disk: DiskIdentity) -> bytes:
    """IDENTIFY DEVICE data of a disk."""
    words = [0] * WORDS
    geometry = disk.geometry
    words[0] = 0x0040  # ATA, fixed
    words[1], words[3], words[6] = geometry.cylinders, geometry.heads, geometry.sectors
    words[47] = 0x8000 | MULTIPLE_MAXIMUM
    words[49] = 0x0F00  # IORDY may be disabled, IORDY, LBA, DMA
    words[50] = _VALID
    words[51] = 0x0200
    words[53] = 0x0007  # words 54 to 58, 64 to 70 and 88 are valid
    words[54], words[55], words[56] = words[1], words[3], words[6]
    words[57], words[58] = _split(geometry.capacity)
    words[59] = 0x0100 | disk.multiple if disk.multiple else 0
    words[60], words[61] = _split(min(disk.sectors, _LBA28_MAXIMUM))
    _transfer_modes(words, disk.transfer_mode)
    if disk.serial_ata:
        _serial_ata(words)
    _features(words, disk)
    words[100:104] = struct.unpack("<4H", struct.pack("<Q", disk.sectors))
    words[106] = _VALID | (0x2003 if disk.physical_block == 4096 else 0)  # 2^3 logical a physical sector
    words[217] = 1  # no rotation: a solid-state medium
    return _seal(words, disk.serial, disk.firmware, disk.model)


def _split(value: int) -> tuple[int, int]:
    return value & 0xFFFF, value >> 16 & 0xFFFF


def _transfer_modes(words: list[int], mode: int) -> None:
    words[63], words[88] = dma_words(mode)
    words[64] = _PIO_MODES_3_AND_4
    words[65:69] = [_CYCLE_NS] * 4
    words[93] = 0x600B  # hardware reset result: 80-conductor cable, device 0


def _serial_ata(words: list[int]) -> None:
    words[75] = QUEUE_DEPTH - 1
    words[76] = 0x0106  # NCQ, 1.5 and 3 Gb/s
    words[93] = 0


def _features(words: list[int], disk: DiskIdentity) -> None:
    words[80] = _ATA4_TO_ATA8
    words[82] = 0x0061  # SMART, write cache, look-ahead
    words[83] = _VALID | 0x3400  # LBA48, FLUSH CACHE, FLUSH CACHE EXT
    words[84] = _VALID | 0x0040  # WRITE DMA FUA EXT
    words[85] = 0x0001 | (0x20 if disk.write_cache else 0) | (0x40 if disk.look_ahead else 0)
    words[86], words[87] = words[83] & ~_VALID, words[84]
    if not disk.readonly:
        words[105] = 8  # blocks of 512 bytes a DATA SET MANAGEMENT command
        words[169] = 1  # TRIM


def identify_packet_device(*, serial: str, model: str, firmware: str, mode: int, serial_ata: bool) -> bytes:
    """IDENTIFY PACKET DEVICE data of a CD drive with 12-byte packets."""
    words = [0] * WORDS
    words[0] = 0x85C0  # ATAPI, CD-ROM, removable, DRQ within 50 µs, 12 bytes
    words[49] = 0x0F00
    words[50] = _VALID
    words[53] = 0x0006
    _transfer_modes(words, mode)
    if serial_ata:
        words[76], words[93] = 0x0006, 0
    words[80] = 0x01F0
    words[82] = 0x4210  # NOP, DEVICE RESET, PACKET
    words[83] = _VALID
    words[84] = _VALID
    words[85], words[86], words[87] = words[82], 0, _VALID
    return _seal(words, serial, firmware, model)


def _seal(words: list[int], serial: str, firmware: str, model: str) -> bytes:
    """Put in the names and the checksum of word 255."""
    raw = bytearray(struct.pack(f"<{WORDS}H", *words))
    raw[20:40] = ata_text(serial, 20)
    raw[46:54] = ata_text(firmware, 8)
    raw[54:94] = ata_text(model, 40)
    raw[510] = 0xA5
    raw[511] = -sum(raw[:511]) & 0xFF
    return bytes(raw)

"""The SMART pages of a disk that has nothing to complain about.

Reference: ATA8-ACS r6a §7.53 "SMART"; the attribute table is the vendors' custom, revision 16.
"""

from __future__ import annotations

SMART_SIGNATURE = 0xC24F
"""What LBA mid and high must hold, and what RETURN STATUS leaves there while the disk is well."""
_REVISION = 16
_CAN_ENABLE_AUTOSAVE = 0x03
_PAGE = 512


def _seal(page: bytearray) -> bytes:
    """The bytes of a page add up to zero."""
    page[511] = -sum(page[:511]) & 0xFF
    return bytes(page)


def smart_data() -> bytes:
    """READ DATA: no attributes, no self-test."""
    page = bytearray(_PAGE)
    page[0] = _REVISION
    page[368] = _CAN_ENABLE_AUTOSAVE
    return _seal(page)


def smart_thresholds() -> bytes:
    """READ THRESHOLDS: none."""
    page = bytearray(_PAGE)
    page[0] = _REVISION
    return _seal(page)

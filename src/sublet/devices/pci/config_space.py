"""A function's configuration space: bytes, which of their bits the guest may write, and capabilities.

Reference: PCI Local Bus 3.0 §6.1 "Configuration Space Organization", §6.7 "Capabilities List".
"""

from __future__ import annotations

CONFIG_SIZE = 256
"""Bytes; no device here has extended capabilities, so bytes 256 to 4095 read as zero."""

VENDOR_ID = 0x00
DEVICE_ID = 0x02
COMMAND = 0x04
STATUS = 0x06
REVISION_ID = 0x08
CLASS_CODE = 0x09
HEADER_TYPE = 0x0E
BAR0 = 0x10
SUBSYSTEM_VENDOR_ID = 0x2C
SUBSYSTEM_ID = 0x2E
EXPANSION_ROM = 0x30
CAPABILITIES_POINTER = 0x34
INTERRUPT_LINE = 0x3C
INTERRUPT_PIN = 0x3D

HEADER_MULTIFUNCTION = 0x80
COMMAND_IO = 1 << 0
COMMAND_MEMORY = 1 << 1
COMMAND_MASTER = 1 << 2
COMMAND_INTX_DISABLE = 1 << 10
COMMAND_WRITABLE = 0x0547
STATUS_INTERRUPT = 1 << 3
STATUS_CAPABILITIES = 1 << 4

_FIRST_CAPABILITY = 0x40


class ConfigSpace:
    """256 bytes, little-endian. Bits outside the write mask never change by a guest's write."""

    def __init__(self) -> None:
        self._bytes = bytearray(CONFIG_SIZE)
        self._writable = bytearray(CONFIG_SIZE)
        self._last_capability = CAPABILITIES_POINTER
        self._next_capability = _FIRST_CAPABILITY

    def define(self, offset: int, size: int, value: int, writable: int = 0) -> None:
        """Set a register's value and the bits of it that the guest may write."""
        self._bytes[offset : offset + size] = value.to_bytes(size, "little")
        self._writable[offset : offset + size] = writable.to_bytes(size, "little")

    def get(self, offset: int, size: int) -> int:
        """A register's value."""
        return int.from_bytes(self._bytes[offset : offset + size], "little")

    def set(self, offset: int, size: int, value: int) -> None:
        """Set a register whether or not the guest may write it."""
        self._bytes[offset : offset + size] = value.to_bytes(size, "little")

    def add_capability(self, capability_id: int, body: bytes, writable: bytes = b"") -> int:
        """Append to the capability list.

        Args:
            capability_id: 8-bit identifier.
            body: What follows the identifier and the next pointer.
            writable: Write mask of ``body``; missing bytes are read-only.

        Returns:
            Offset of the capability (of its identifier), a multiple of 4.
        """
        offset = self._next_capability
        end = offset + 2 + len(body)
        self._bytes[offset:end] = bytes((capability_id, 0)) + body
        self._writable[offset + 2 : offset + 2 + len(writable)] = writable
        pointer = self._last_capability if self._last_capability == CAPABILITIES_POINTER else None
        self._bytes[pointer if pointer is not None else self._last_capability + 1] = offset
        self.set(STATUS, 2, self.get(STATUS, 2) | STATUS_CAPABILITIES)
        self._last_capability = offset
        self._next_capability = (end + 3) & ~3
        return offset

    def read(self, offset: int, size: int) -> int:
        """A guest's read; bytes past the space read as zero."""
        return int.from_bytes(self._bytes[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """A guest's write, through the mask; bytes past the space are ignored."""
        for index in range(offset, min(offset + size, CONFIG_SIZE)):
            mask = self._writable[index]
            self._bytes[index] = self._bytes[index] & ~mask | value & mask
            value >>= 8

    def save(self) -> bytes:
        """The bytes, for ``restore``."""
        return bytes(self._bytes)

    def restore(self, content: bytes) -> None:
        """Inverse of ``save``; ``content`` has 256 bytes. Read-only bits keep their values."""
        for index in range(CONFIG_SIZE):
            mask = self._writable[index]
            self._bytes[index] = self._bytes[index] & ~mask | content[index] & mask

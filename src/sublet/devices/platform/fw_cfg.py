"""fw_cfg: how the machine tells its firmware what it is, by numbered items and named files.

Reference: QEMU docs/specs/fw_cfg.rst "QEMU Firmware Configuration (fw_cfg) Device", x86 register locations
and DMA interface.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from sublet.errors import GuestError
from sublet.hw import GuestMemory

FW_CFG_PORT: Final = 0x510
FW_CFG_PORT_COUNT: Final = 12
"""Selector at +0 (16 bits, little-endian), data at +1, DMA address at +4 (64 bits, big-endian)."""

SIGNATURE: Final = 0x0000
ID: Final = 0x0001
UUID: Final = 0x0002
RAM_SIZE: Final = 0x0003
NO_GRAPHIC: Final = 0x0004
CPU_COUNT: Final = 0x0005
KERNEL_SIZE: Final = 0x0008
INITRD_SIZE: Final = 0x000B
BOOT_MENU: Final = 0x000E
MAXIMUM_CPUS: Final = 0x000F
KERNEL_DATA: Final = 0x0011
INITRD_DATA: Final = 0x0012
CMDLINE_SIZE: Final = 0x0014
CMDLINE_DATA: Final = 0x0015
SETUP_SIZE: Final = 0x0017
SETUP_DATA: Final = 0x0018
FILE_DIRECTORY: Final = 0x0019
FIRST_FILE: Final = 0x0020
IRQ0_OVERRIDE: Final = 0x8002

_ID_TRADITIONAL_AND_DMA: Final = 3
_DMA_SIGNATURE: Final = 0x51454D5520434647
_DMA_ERROR, _DMA_READ, _DMA_SKIP, _DMA_SELECT, _DMA_WRITE = 1, 2, 4, 8, 16
_NAME_SIZE: Final = 56
_CHUNK: Final = 1 << 20

Content = bytes | Callable[[], bytes]
"""An item's bytes, or what makes them when the item is selected."""


class _File(NamedTuple):
    number: int
    content: Content
    size: int | None
    on_write: Callable[[int, bytes], None] | None

    @property
    def length(self) -> int:
        """Bytes, as the directory says."""
        return len(_bytes_of(self.content)) if self.size is None else self.size


class FwCfg:
    """Items by number and files by name; read-only but for files that say who takes writes.

    Accesses come from any vCPU; the guest that races with itself gets bytes of the one or the other.

    Args:
        memory: For DMA.
    """

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self._items: dict[int, Content] = {
            SIGNATURE: b"QEMU",
            ID: struct.pack("<I", _ID_TRADITIONAL_AND_DMA),
            FILE_DIRECTORY: self._directory,
        }
        self._files: dict[str, _File] = {}
        self._writers: dict[int, _File] = {}
        self._dma_high = 0
        self._select(SIGNATURE)

    # Machine side

    def add_item(self, number: int, content: Content) -> None:
        """Define a numbered item."""
        self._items[number] = content

    def add_file(
        self,
        name: str,
        content: Content,
        *,
        size: int | None = None,
        on_write: Callable[[int, bytes], None] | None = None,
    ) -> None:
        """Define a file; its name has at most 55 ASCII characters. Content may be made when it is read.

        Args:
            name: What the firmware looks it up by.
            content: Its bytes, or what makes them.
            size: What the directory says of it; None: content is made to see.
            on_write: Given offset and bytes that the guest writes, inside ``size``.

        Raises:
            ValueError: The name is too long or taken.
        """
        if len(name) >= _NAME_SIZE or name in self._files:
            raise ValueError(f"fw_cfg cannot have a file {name!r}")
        number = FIRST_FILE + len(self._files)
        file = _File(number, content, size, on_write)
        self._files[name] = file
        self._items[number] = content
        if on_write is not None:
            self._writers[number] = file

    def _directory(self) -> bytes:
        """Count, then size, number and name of each file, sorted by name; big-endian."""
        entries = [
            struct.pack(">IHH", file.length, file.number, 0) + name.encode().ljust(_NAME_SIZE, b"\0")
            for name, file in sorted(self._files.items())
        ]
        return struct.pack(">I", len(entries)) + b"".join(entries)

    # Guest side

    def pio_read(self, offset: int, size: int) -> int:
        """Data port: the item's next bytes, zeroes past its end. DMA port: a signature."""
        if offset == 1:
            return int.from_bytes(self._take(size).ljust(size, b"\0"), "little")
        if offset >= 4:
            signature = _DMA_SIGNATURE.to_bytes(8, "big")
            return int.from_bytes(signature[offset - 4 : offset - 4 + size], "little")
        return 0

    def pio_write(self, offset: int, size: int, value: int) -> None:
        """Select an item, or start DMA by writing the low half of the address."""
        if offset == 0 and size >= 2:
            self._select(value & 0xFFFF)
        elif offset == 4 and size == 4:
            self._dma_high = _swap(value)
        elif offset == 8 and size == 4:
            address = self._dma_high << 32 | _swap(value)
            self._dma_high = 0
            self._transfer(address)

    def _select(self, number: int) -> None:
        self._selected = number
        self._data = _bytes_of(self._items.get(number, b""))
        self._position = 0

    def _take(self, size: int) -> bytes:
        data = self._data[self._position : self._position + size]
        self._position += size
        return data

    def _transfer(self, descriptor: int) -> None:
        """Carry out the command at ``descriptor``; a bad address is the guest's fault and ends it."""
        try:
            control, length, address = struct.unpack(">IIQ", self._memory.read(descriptor, 16))
            failed = self._execute(control, length, address)
            self._memory.write(descriptor, struct.pack(">I", _DMA_ERROR if failed else 0))
        except GuestError:
            return

    def _execute(self, control: int, length: int, address: int) -> bool:
        """Whether the command failed."""
        if control & _DMA_SELECT:
            self._select(control >> 16)
        if control & _DMA_READ:
            return self._copy(address, length)
        if control & _DMA_SKIP:
            self._position += length
        elif control & _DMA_WRITE:
            return self._write(address, length)
        return False

    def _write(self, address: int, length: int) -> bool:
        """Whether a write to the selected item fails: most take none."""
        file = self._writers.get(self._selected)
        if file is None or file.on_write is None or self._position + length > file.length:
            return True
        try:
            data = self._memory.read(address, length)
        except GuestError:
            return True
        file.on_write(self._position, data)
        self._position += length
        return False

    def _copy(self, address: int, length: int) -> bool:
        try:
            for done in range(0, length, _CHUNK):
                size = min(_CHUNK, length - done)
                self._memory.write(address + done, self._take(size).ljust(size, b"\0"))
        except GuestError:
            return True
        return False

    # Lifecycle

    def reset(self) -> None:
        """The signature is selected."""
        self._dma_high = 0
        self._select(SIGNATURE)

    def save_state(self) -> dict[str, Any]:
        """What is selected, and how far it was read."""
        return {
            "selected": self._selected,
            "data": self._data,
            "position": self._position,
            "dma_high": self._dma_high,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``save_state``."""
        self._selected = state["selected"]
        self._data, self._position = state["data"], state["position"]
        self._dma_high = state["dma_high"]


def transfer_command(item: int, size: int, gpa: int) -> bytes:
    """What a guest puts into memory to have ``size`` bytes of an item, from its start, copied to ``gpa``."""
    return struct.pack(">IIQ", item << 16 | _DMA_SELECT | _DMA_READ, size, gpa)


def _bytes_of(content: Content) -> bytes:
    return content if isinstance(content, bytes) else content()


def _swap(value: int) -> int:
    """Big-endian 32 bits as the port delivers them."""
    return int.from_bytes((value & 0xFFFF_FFFF).to_bytes(4, "little"), "big")

"""The two 8237A DMA controllers of the PC/AT and their page registers.

Devices move their bytes with `DmaChannel`; there is no memory-to-memory mode and no rotation of priorities,
since one transfer is over before another begins.

Reference: Intel 8237A "Register description"; IBM PC/AT Technical Reference, "Direct memory access".
"""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass
from typing import Any, Final

from sublet.errors import GuestError
from sublet.hw import GuestMemory

FIRST_PORTS: Final = (0x00, 16)
SECOND_PORTS: Final = (0xC0, 32)
PAGE_PORTS: Final = (0x80, 16)

_PAGE_REGISTERS: Final = {0: 0x7, 1: 0x3, 2: 0x1, 3: 0x2, 5: 0xB, 6: 0x9, 7: 0xA}
_MODE_DECREMENT, _MODE_AUTO_INIT = 0x20, 0x10
_TO_MEMORY, _FROM_MEMORY = 1, 2
_COMMAND_DISABLE = 0x04


@dataclass(slots=True)
class ChannelState:
    """The registers of one channel; counts are one less than what is left."""

    base_address: int = 0
    base_count: int = 0
    address: int = 0
    count: int = 0
    mode: int = 0
    masked: bool = True

    def load(self) -> None:
        """Begin again from the base registers."""
        self.address, self.count = self.base_address, self.base_count


class DmaController:
    """One 8237A: four channels. Its 16 registers lie one port apart, or two for the second controller.

    ``lock`` guards it; ports take it, and so do the channels.

    Args:
        stride: Ports between two registers: 1 or 2.
    """

    def __init__(self, stride: int) -> None:
        self.lock = threading.Lock()
        self._stride = stride
        self.channels = [ChannelState() for _ in range(4)]
        self._clear()

    def _clear(self) -> None:
        self.command = 0
        self.status = 0
        self._second_byte = False
        for channel in self.channels:
            channel.masked = True

    def pio_read(self, offset: int, size: int) -> int:
        """A register; wider reads get one byte."""
        with self.lock:
            register = offset // self._stride
            if register < 8:
                channel = self.channels[register // 2]
                return self._byte_of(channel.count if register & 1 else channel.address)
            if register == 8:
                status, self.status = self.status, self.status & 0xF0
                return status
            return 0xFF if register == 13 else 0

    def _byte_of(self, value: int) -> int:
        high, self._second_byte = self._second_byte, not self._second_byte
        return value >> 8 & 0xFF if high else value & 0xFF

    def pio_write(self, offset: int, size: int, value: int) -> None:
        """A register; wider writes give it one byte."""
        with self.lock:
            register, value = offset // self._stride, value & 0xFF
            if register < 8:
                self._write_channel(self.channels[register // 2], register & 1, value)
            else:
                self._write_control(register, value)

    def _write_channel(self, channel: ChannelState, count: int, value: int) -> None:
        high, self._second_byte = self._second_byte, not self._second_byte
        old = channel.base_count if count else channel.base_address
        new = old & 0xFF | value << 8 if high else old & 0xFF00 | value
        if count:
            channel.base_count = channel.count = new
        else:
            channel.base_address = channel.address = new

    def _write_control(self, register: int, value: int) -> None:
        if register == 8:
            self.command = value
        elif register == 10:
            self.channels[value & 3].masked = bool(value & 4)
        elif register == 11:
            self.channels[value & 3].mode = value & 0xFC
        elif register == 12:
            self._second_byte = False
        elif register == 13:
            self._clear()
        elif register in (14, 15):
            for index, channel in enumerate(self.channels):
                channel.masked = bool(value >> index & 1) and register == 15

    def reset(self) -> None:
        """Power-on state."""
        with self.lock:
            self.channels = [ChannelState() for _ in range(4)]
            self._clear()

    def save_state(self) -> dict[str, Any]:
        """Every register."""
        with self.lock:
            return {
                "channels": [asdict(channel) for channel in self.channels],
                "command": self.command,
                "status": self.status,
                "second_byte": self._second_byte,
            }

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``save_state``."""
        with self.lock:
            self.channels = [ChannelState(**saved) for saved in state["channels"]]
            self.command, self.status = state["command"], state["status"]
            self._second_byte = state["second_byte"]


class PageRegisters:
    """Sixteen bytes from port 0x80: upper address bits of the channels; the others keep what they get."""

    def __init__(self) -> None:
        self.values = bytearray(16)

    def pio_read(self, offset: int, size: int) -> int:
        """Bytes."""
        return int.from_bytes(self.values[offset : offset + size], "little")

    def pio_write(self, offset: int, size: int, value: int) -> None:
        """Bytes."""
        for index in range(offset, min(offset + size, 16)):
            self.values[index] = value >> 8 * (index - offset) & 0xFF


class IsaDma:
    """Both controllers, and the channels that devices use.

    Args:
        memory: Where channels move bytes to and from, below 16 MiB.
    """

    def __init__(self, memory: GuestMemory) -> None:
        self.first = DmaController(1)
        self.second = DmaController(2)
        self.pages = PageRegisters()
        self._memory = memory

    def channel(self, number: int) -> DmaChannel:
        """Channel 0 to 3, which moves bytes."""
        return DmaChannel(self.first, self.pages, self._memory, number)

    def reset(self) -> None:
        """Power-on state."""
        self.first.reset()
        self.second.reset()
        self.pages.values[:] = bytes(16)

    def save_state(self) -> dict[str, Any]:
        """Every register."""
        return {
            "first": self.first.save_state(),
            "second": self.second.save_state(),
            "pages": bytes(self.pages.values),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``save_state``."""
        self.first.load_state(state["first"])
        self.second.load_state(state["second"])
        self.pages.values[:] = state["pages"]


class DmaChannel:
    """A device's end of an 8-bit channel. Any thread.

    Bad input, by design: addresses wrap inside their 64 KiB page, bytes outside RAM are lost, and a masked
    channel moves nothing.
    """

    def __init__(
        self, controller: DmaController, pages: PageRegisters, memory: GuestMemory, number: int
    ) -> None:
        self._controller = controller
        self._pages = pages
        self._memory = memory
        self._number = number

    @property
    def _state(self) -> ChannelState:
        return self._controller.channels[self._number]

    @property
    def left(self) -> int:
        """Bytes until the terminal count; 0 while the channel is masked."""
        with self._controller.lock:
            off = self._state.masked or self._controller.command & _COMMAND_DISABLE
            return 0 if off else self._state.count + 1

    def to_memory(self, data: bytes) -> None:
        """Move ``data``, at most ``left`` bytes."""
        with self._controller.lock:
            kind = self._state.mode >> 2 & 3
            places = self._advance(len(data))
            for address, start, size in places if kind == _TO_MEMORY else ():
                self._store(address, data[start : start + size])

    def from_memory(self, size: int) -> bytes:
        """The next ``size`` bytes, at most ``left``."""
        with self._controller.lock:
            kind = self._state.mode >> 2 & 3
            data = bytearray(size)
            places = self._advance(size)
            for address, start, length in places if kind == _FROM_MEMORY else ():
                data[start : start + length] = self._load(address, length)
            return bytes(data)

    def _store(self, address: int, data: bytes) -> None:
        try:
            self._memory.write(address, data)
        except GuestError:
            return

    def _load(self, address: int, size: int) -> bytes:
        try:
            return self._memory.read(address, size)
        except GuestError:
            return b"\xff" * size

    def _advance(self, size: int) -> list[tuple[int, int, int]]:
        """Move the registers on; returns runs of (address, offset in the data, bytes)."""
        state = self._state
        page = self._pages.values[_PAGE_REGISTERS[self._number]] << 16
        places: list[tuple[int, int, int]] = []
        if state.mode & _MODE_DECREMENT:
            places = [(page | state.address - i & 0xFFFF, i, 1) for i in range(size)]
            state.address = state.address - size & 0xFFFF
        else:
            done = 0
            while done < size:
                run = min(size - done, 0x1_0000 - state.address)
                places.append((page | state.address, done, run))
                state.address = state.address + run & 0xFFFF
                done += run
        self._count_down(state, size)
        return places

    def _count_down(self, state: ChannelState, size: int) -> None:
        if size <= state.count:
            state.count -= size
            return
        state.count = 0xFFFF
        self._controller.status |= 1 << self._number
        if state.mode & _MODE_AUTO_INIT:
            state.load()
        else:
            state.masked = True

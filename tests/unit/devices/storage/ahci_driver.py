"""A driver of an AHCI controller, as AHCI 1.3.1 §10 "Software guidelines" tells a driver to work."""

from __future__ import annotations

import struct

from sublet.devices.pci import config_space as cs
from sublet.devices.storage import Ich9Ahci
from sublet.devices.storage.taskfile import Drive
from sublet.hw import Executor, GuestMemory
from sublet.testing import FakeGuestMemory, InlineExecutor, RecordingMsiSink

LIST, RECEIVED, TABLES, BUFFER = 0x1000, 0x2000, 0x4000, 0x40000
CLB, FB, IS, IE, CMD, TFD, SIG, SSTS, SCTL, SERR, SACT, CI = (
    *(0, 8, 0x10, 0x14, 0x18, 0x20),
    *(0x24, 0x28, 0x2C, 0x30, 0x34, 0x38),
)


class AhciDriver:
    """Port 0 unless another is said."""

    def __init__(
        self, *drives: Drive | None, executor: Executor | None = None, memory: GuestMemory | None = None
    ) -> None:
        self.memory = memory or FakeGuestMemory(1 << 20)
        self.msi = RecordingMsiSink()
        self.function = Ich9Ahci(drives, self.memory, self.msi, executor or InlineExecutor())
        self.pin = False
        self.function.connect_intx(self._set_pin)
        self.function.config_write(cs.COMMAND, 2, cs.COMMAND_MEMORY | cs.COMMAND_MASTER)

    def _set_pin(self, level: bool) -> None:
        self.pin = level

    def read(self, offset: int) -> int:
        return self.function.mmio_read(offset, 4)

    def write(self, offset: int, value: int) -> None:
        self.function.mmio_write(offset, 4, value)

    def port(self, register: int, port: int = 0) -> int:
        return self.read(0x100 + 0x80 * port + register)

    def set_port(self, register: int, value: int, port: int = 0) -> None:
        self.write(0x100 + 0x80 * port + register, value)

    def start(self) -> None:
        """Bring port 0 up, interrupts on."""
        self.write(4, 0x8000_0002)
        self.set_port(CLB, LIST)
        self.set_port(FB, RECEIVED)
        self.set_port(SERR, 0xFFFF_FFFF)
        self.set_port(IS, 0xFFFF_FFFF)
        self.set_port(IE, 0x7DC0_007F)
        self.set_port(CMD, 0x10)
        self.set_port(CMD, 0x11)

    def stop(self) -> None:
        self.set_port(CMD, 0x10)

    def prepare(
        self,
        command: int,
        *,
        slot: int = 0,
        lba: int = 0,
        count: int = 0,
        feature: int = 0,
        regions: tuple[tuple[int, int], ...] = (),
        packet: bytes | None = None,
        write: bool = False,
    ) -> None:
        """Fill a slot: header, frame, packet and regions."""
        table = TABLES + 0x1000 * slot
        low = struct.pack("<Q", lba)
        frame = bytes((0x27, 0x80, command, feature & 0xFF)) + low[:3] + b"\x40" + low[3:6]
        frame += bytes((feature >> 8 & 0xFF,)) + struct.pack("<H", count)
        self.memory.write(table, frame.ljust(0x80, b"\0"))
        if packet is not None:
            self.memory.write(table + 0x40, packet.ljust(16, b"\0"))
        for index, (address, size) in enumerate(regions):
            self.memory.write(table + 0x80 + 16 * index, struct.pack("<QII", address, 0, size - 1))
        flags = 5 | (0x20 if packet is not None else 0) | (0x40 if write else 0)
        self.memory.write(LIST + 32 * slot, struct.pack("<IIQ", flags | len(regions) << 16, 0, table))

    def issue(self, slots: int = 1) -> None:
        self.set_port(CI, slots)

    def moved(self, slot: int = 0) -> int:
        """Bytes that the controller says it has moved."""
        return self.memory.read_u32(LIST + 32 * slot + 4)

    def received(self, place: int, size: int = 20) -> bytes:
        return self.memory.read(RECEIVED + place, size)

    def acknowledge(self) -> int:
        """Clear the port's interrupt status, then the controller's; returns what the port's was."""
        status = self.port(IS)
        self.set_port(IS, status)
        self.write(8, 1)
        return status

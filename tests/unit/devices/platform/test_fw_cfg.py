"""fw_cfg through its ports and by DMA, as QEMU docs/specs/fw_cfg.rst has it."""

from __future__ import annotations

import struct

from sublet.devices.platform import fw_cfg as fc
from sublet.devices.platform.fw_cfg import FwCfg
from sublet.testing import FakeGuestMemory

ERROR, READ, SKIP, SELECT, WRITE = 1, 2, 4, 8, 16


class Driver:
    """A guest's firmware."""

    def __init__(self) -> None:
        self.memory = FakeGuestMemory(0x10000)
        self.device = FwCfg(self.memory)

    def read_item(self, number: int, size: int) -> bytes:
        self.device.pio_write(0, 2, number)
        return bytes(self.device.pio_read(1, 1) for _ in range(size))

    def dma(self, control: int, length: int, address: int, at: int = 0x100) -> int:
        """Carry out a command; returns the control field afterwards."""
        self.memory.write(at, struct.pack(">IIQ", control, length, address))
        high, low = struct.pack(">I", at >> 32), struct.pack(">I", at & 0xFFFF_FFFF)
        self.device.pio_write(4, 4, int.from_bytes(high, "little"))
        self.device.pio_write(8, 4, int.from_bytes(low, "little"))
        return int(struct.unpack(">I", self.memory.read(at, 4))[0])

    def files(self) -> dict[str, tuple[int, int]]:
        """Size and number by name."""
        count = struct.unpack(">I", self.read_item(fc.FILE_DIRECTORY, 4))[0]
        entries = [bytes(self.device.pio_read(1, 1) for _ in range(64)) for _ in range(count)]
        unpacked = [(entry[8:].rstrip(b"\0").decode(), struct.unpack(">IH", entry[:6])) for entry in entries]
        return {name: (size, number) for name, (size, number) in unpacked}


def test_the_signature_says_that_it_is_there_and_has_dma() -> None:
    driver = Driver()
    assert driver.read_item(fc.SIGNATURE, 4) == b"QEMU"
    assert driver.read_item(fc.ID, 4) == b"\x03\0\0\0"
    signature = driver.device.pio_read(4, 4).to_bytes(4, "little") + driver.device.pio_read(8, 4).to_bytes(
        4, "little"
    )
    assert signature == b"QEMU CFG"


def test_files_are_found_by_name_and_made_when_they_are_selected() -> None:
    driver = Driver()
    content = [b"one"]
    driver.device.add_file("etc/changing", lambda: content[0])
    driver.device.add_file("bootorder", b"\0")
    size, number = driver.files()["etc/changing"]
    assert size == 3
    content[0] = b"two"
    assert driver.read_item(number, 5) == b"two\0\0"


def test_dma_selects_skips_and_reads_zeroes_past_the_end() -> None:
    driver = Driver()
    driver.device.add_item(fc.CMDLINE_DATA, b"0123456789")
    driver.memory.write(0x1000, b"\xff" * 16)
    assert driver.dma(SELECT | fc.CMDLINE_DATA << 16 | SKIP, 6, 0) == 0
    assert driver.dma(READ, 8, 0x1000) == 0
    assert driver.memory.read(0x1000, 9) == b"6789\0\0\0\0\xff"


def test_dma_out_of_memory_and_writes_fail() -> None:
    driver = Driver()
    assert driver.dma(READ, 0xFFFF_FFFF, 0xFFF0) == ERROR
    assert driver.dma(WRITE, 4, 0x1000) == ERROR


def test_a_descriptor_outside_of_memory_is_ignored() -> None:
    driver = Driver()
    driver.device.pio_write(8, 4, 0xFFFF_FFFF)
    assert driver.read_item(fc.SIGNATURE, 4) == b"QEMU"


def test_a_file_that_takes_writes_takes_them_inside_its_size() -> None:
    driver, written = Driver(), []
    made: list[int] = []

    def make() -> bytes:
        made.append(1)
        return bytes(4)

    driver.device.add_file("etc/request", make, size=4, on_write=lambda at, data: written.append((at, data)))
    driver.memory.write(0x1000, b"abcdefgh")
    driver.read_item(fc.FILE_DIRECTORY, 4)
    assert made == [], "the directory does not ask for content of a known size"
    assert driver.dma(SELECT | fc.FIRST_FILE << 16 | WRITE, 3, 0x1000) == 0
    assert driver.dma(WRITE, 2, 0x1000) == ERROR
    assert driver.dma(WRITE, 1, 0x1003) == 0
    assert written == [(0, b"abc"), (3, b"d")]

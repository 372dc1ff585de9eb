"""The floppy controller: phases, DMA and programmed I/O, formats, the change line, errors, snapshots."""

from __future__ import annotations

import pytest

from sublet.devices.legacy.dma import IsaDma
from sublet.devices.storage import FloppyController, FloppyDrive
from sublet.devices.storage.floppy import format_of_size
from sublet.testing import FakeGuestMemory, InlineExecutor, ManualExecutor, RamDisk, RecordingIrqLine

BUFFER = 0x2_0000
SIZE_1440K = 80 * 2 * 18 * 512


class FloppyDriver:
    """Ports as the 82077AA's data sheet tells a driver to use them."""

    def __init__(self, *drives: FloppyDrive | None, executor: object = None) -> None:
        self.memory = FakeGuestMemory(1 << 20)
        self.dma = IsaDma(self.memory)
        self.irq = RecordingIrqLine()
        self.controller = FloppyController(
            drives,
            self.irq,
            self.dma.channel(2),
            executor or InlineExecutor(),  # type: ignore[arg-type]
        )

    def status(self) -> int:
        return self.controller.pio_read(4, 1)

    def reset(self) -> None:
        """Reset by the digital output register, motor A on; take the four interrupts of polling."""
        self.controller.pio_write(2, 1, 0x00)
        assert self.status() == 0
        self.controller.pio_write(2, 1, 0x1C)
        assert self.irq.level
        for drive in range(4):
            assert self.command(0x08)[0] == 0xC0 | drive
        assert not self.irq.level
        self.controller.direction.pio_write(0, 1, 0)
        self.command(0x03, 0xDF, 0x02)

    def send(self, *data: int) -> None:
        for value in data:
            assert self.status() & 0xC0 == 0x80
            self.controller.pio_write(5, 1, value)

    def results(self) -> bytes:
        data = bytearray()
        while self.status() & 0xD0 == 0xD0:
            data.append(self.controller.pio_read(5, 1))
        return bytes(data)

    def command(self, *data: int) -> bytes:
        self.send(*data)
        return self.results()

    def seek(self, cylinder: int, drive: int = 0) -> bytes:
        self.send(0x0F, drive, cylinder)
        assert self.irq.level
        return self.command(0x08)

    def set_dma(self, size: int, *, to_memory: bool, address: int = BUFFER) -> None:
        """Program channel 2 as the BIOS does."""
        first = self.dma.first
        first.pio_write(10, 1, 6)
        first.pio_write(12, 1, 0)
        first.pio_write(11, 1, 0x46 if to_memory else 0x4A)
        for value in (address & 0xFF, address >> 8 & 0xFF):
            first.pio_write(4, 1, value)
        for value in ((size - 1) & 0xFF, size - 1 >> 8):
            first.pio_write(5, 1, value)
        self.dma.pages.pio_write(1, 1, address >> 16)
        first.pio_write(10, 1, 2)

    def transfer(self, code: int, cylinder: int, head: int, sector: int, last: int = 18) -> bytes:
        """READ, WRITE or VERIFY; the seven bytes of the result."""
        return self.command(code, head << 2, cylinder, head, sector, 2, last, 0x1B, 0xFF)


@pytest.fixture
def image() -> RamDisk:
    disk = RamDisk(SIZE_1440K)
    for sector in range(SIZE_1440K // 512):
        disk.data[512 * sector : 512 * sector + 2] = sector.to_bytes(2, "little")
    return disk


@pytest.fixture
def floppy(image: RamDisk) -> FloppyDriver:
    driver = FloppyDriver(FloppyDrive(image))
    driver.reset()
    return driver


def test_seek_recalibrate_and_sense(floppy: FloppyDriver) -> None:
    assert floppy.seek(40) == bytes((0x20, 40))
    assert floppy.command(0x04, 0) == bytes((0x28,))
    floppy.command(0x07, 0)
    assert floppy.command(0x08) == bytes((0x20, 0))
    assert floppy.command(0x04, 0) == bytes((0x38,))
    assert floppy.command(0x08) == b"\x80"


def test_read_several_sectors_by_dma(floppy: FloppyDriver) -> None:
    floppy.seek(3)
    floppy.set_dma(1024, to_memory=True)
    assert floppy.transfer(0xE6, 3, 1, 5) == bytes((0x04, 0, 0, 3, 1, 7, 2))
    first = (3 * 2 + 1) * 18 + 4
    assert [floppy.memory.read_u16(BUFFER + 512 * i) for i in range(2)] == [first, first + 1]
    assert floppy.dma.first.pio_read(8, 1) & 4


def test_multi_track_goes_on_at_the_other_side(floppy: FloppyDriver) -> None:
    floppy.set_dma(36 * 512, to_memory=True)
    assert floppy.transfer(0xC6, 0, 0, 1) == bytes((0, 0, 0, 1, 0, 1, 2))
    assert floppy.memory.read_u16(BUFFER + 35 * 512) == 35


def test_the_end_of_a_track_before_the_terminal_count(floppy: FloppyDriver) -> None:
    floppy.set_dma(4096, to_memory=True)
    assert floppy.transfer(0x46, 0, 0, 17) == bytes((0x40, 0x80, 0, 1, 0, 1, 2))


def test_write_by_dma(floppy: FloppyDriver, image: RamDisk) -> None:
    floppy.memory.write(BUFFER, b"w" * 1024)
    floppy.set_dma(1024, to_memory=False)
    assert floppy.transfer(0x45, 0, 0, 2)[0] == 0
    assert image.data[512:1536] == b"w" * 1024
    assert floppy.irq.changes[-1] is False


def test_a_write_protected_disk() -> None:
    floppy = FloppyDriver(FloppyDrive(RamDisk(SIZE_1440K, readonly=True)))
    floppy.reset()
    assert floppy.command(0x04, 0)[0] & 0x40
    floppy.set_dma(512, to_memory=False)
    assert floppy.transfer(0x45, 0, 0, 1)[:3] == bytes((0x40, 0x02, 0))


@pytest.mark.parametrize(
    ("cylinder", "head", "sector", "status"),
    [(0, 0, 19, (0x04, 0)), (0, 0, 0, (0x04, 0)), (5, 0, 1, (0x04, 0x10))],
)
def test_sectors_that_there_are_not(
    floppy: FloppyDriver, cylinder: int, head: int, sector: int, status: tuple[int, int]
) -> None:
    floppy.set_dma(512, to_memory=True)
    result = floppy.transfer(0x46, cylinder, head, sector, last=36)
    assert (result[0] & 0xC0, result[1], result[2]) == (0x40, *status)


def test_the_wrong_data_rate_finds_no_mark(floppy: FloppyDriver) -> None:
    floppy.controller.direction.pio_write(0, 1, 2)
    floppy.set_dma(512, to_memory=True)
    assert floppy.transfer(0x46, 0, 0, 1)[1] == 0x01
    assert floppy.command(0x4A, 0)[:2] == bytes((0x40, 0x01))


def test_read_id(floppy: FloppyDriver) -> None:
    floppy.seek(7)
    assert floppy.command(0x4A, 4) == bytes((0x04, 0, 0, 7, 1, 1, 2))


def test_the_change_line(floppy: FloppyDriver) -> None:
    assert floppy.controller.direction.pio_read(0, 1) == 0x80
    floppy.seek(1)
    assert floppy.controller.direction.pio_read(0, 1) == 0
    drive = floppy.controller.drives[0]
    assert drive is not None
    drive.insert(None)
    floppy.seek(2)
    assert floppy.controller.direction.pio_read(0, 1) == 0x80
    drive.insert(RamDisk(SIZE_1440K))
    floppy.seek(1)
    assert floppy.controller.direction.pio_read(0, 1) == 0


def test_a_drive_that_there_is_not(floppy: FloppyDriver) -> None:
    assert floppy.seek(0, drive=1)[0] == 0x71
    floppy.set_dma(512, to_memory=True)
    assert floppy.command(0x46, 1, 0, 0, 1, 2, 18, 0x1B, 0xFF)[:2] == bytes((0x41, 0x01))


def test_format_a_track(floppy: FloppyDriver, image: RamDisk) -> None:
    identifiers = b"".join(bytes((0, 0, sector, 2)) for sector in range(1, 19))
    floppy.memory.write(BUFFER, identifiers)
    floppy.set_dma(len(identifiers), to_memory=False)
    assert floppy.command(0x4D, 0, 2, 18, 0x54, 0xF6)[0] == 0
    assert image.data[: 18 * 512] == b"\xf6" * (18 * 512)
    assert image.data[18 * 512] == 18


def test_programmed_input_ends_with_the_cylinder(floppy: FloppyDriver) -> None:
    floppy.command(0x03, 0xDF, 0x03)
    floppy.send(0x46, 0, 0, 0, 17, 2, 18, 0x1B, 0xFF)
    data = bytearray()
    while floppy.status() & 0x20:
        assert floppy.status() == 0xF0
        data.append(floppy.controller.pio_read(5, 1))
    assert len(data) == 1024
    assert (data[0], data[512]) == (16, 17)
    assert floppy.results()[:2] == bytes((0x40, 0x80))


def test_programmed_output(floppy: FloppyDriver, image: RamDisk) -> None:
    floppy.command(0x03, 0xDF, 0x03)
    floppy.send(0x45, 0, 0, 0, 18, 2, 18, 0x1B, 0xFF)
    for _ in range(512):
        assert floppy.status() == 0xB0
        floppy.controller.pio_write(5, 1, 0x5A)
    assert floppy.results()[:2] == bytes((0x40, 0x80))
    assert image.data[17 * 512 : 18 * 512] == b"\x5a" * 512


def test_a_failing_host_is_a_data_error(floppy: FloppyDriver, image: RamDisk) -> None:
    image.failure = OSError(5, "Input/output error")
    floppy.set_dma(512, to_memory=True)
    assert floppy.transfer(0x46, 0, 0, 1)[:2] == bytes((0x40, 0x20))


def test_settings_and_unknown_commands(floppy: FloppyDriver) -> None:
    assert floppy.command(0x10) == b"\x90"
    assert floppy.command(0x94) == b"\x10"
    floppy.command(0x13, 0, 0x57, 0)
    assert floppy.command(0x0E)[8] == 0x57
    assert floppy.command(0x1F) == b"\x80"


def test_a_masked_channel_overruns(floppy: FloppyDriver) -> None:
    floppy.dma.first.pio_write(10, 1, 6)
    assert floppy.transfer(0x46, 0, 0, 1)[1] == 0x10


def test_a_reset_forgets_what_is_under_way(image: RamDisk) -> None:
    executor = ManualExecutor()
    floppy = FloppyDriver(FloppyDrive(image), executor=executor)
    floppy.reset()
    floppy.set_dma(512, to_memory=True)
    floppy.send(0x46, 0, 0, 0, 1, 2, 18, 0x1B, 0xFF)
    assert floppy.status() == 0x10
    floppy.reset()
    executor.run()
    assert floppy.status() == 0x80
    assert not floppy.irq.level


def test_a_snapshot_in_the_result_phase(floppy: FloppyDriver, image: RamDisk) -> None:
    floppy.set_dma(512, to_memory=True)
    floppy.send(0x46, 0, 0, 0, 1, 2, 18, 0x1B, 0xFF)
    assert floppy.controller.pio_read(5, 1) == 0
    twin = FloppyDriver(FloppyDrive(image))
    twin.controller.load_state(floppy.controller.save_state())
    assert twin.results() == bytes((0, 0, 0, 0, 2, 2))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (368640, (40, 2, 9)),
        (737280, (80, 2, 9)),
        (1228800, (80, 2, 15)),
        (SIZE_1440K, (80, 2, 18)),
        (2949120, (80, 2, 36)),
        (512, (80, 2, 18)),
        (1474560 + 512, (80, 2, 36)),
    ],
)
def test_formats_by_size(size: int, expected: tuple[int, int, int]) -> None:
    layout = format_of_size(size)
    assert layout is not None
    assert (layout.cylinders, layout.heads, layout.sectors) == expected


def test_what_is_too_large_is_no_floppy() -> None:
    with pytest.raises(ValueError, match="3145728 bytes"):
        FloppyDrive(RamDisk(3 << 20))


def test_a_short_image_reads_as_zeroes_and_refuses_writes() -> None:
    floppy = FloppyDriver(FloppyDrive(RamDisk(512)))
    floppy.reset()
    floppy.memory.write(BUFFER, b"x" * 1024)
    floppy.set_dma(1024, to_memory=True)
    assert floppy.transfer(0x46, 0, 0, 1)[0] == 0
    assert floppy.memory.read(BUFFER, 1024) == bytes(1024)
    floppy.set_dma(512, to_memory=False)
    assert floppy.transfer(0x45, 0, 0, 2)[1] == 0x20

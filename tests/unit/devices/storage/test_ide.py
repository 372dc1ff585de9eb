"""IDE disks: registers, programmed I/O, DMA, errors, resets and snapshots."""

from __future__ import annotations

import struct

import pytest
from tests.unit.devices.storage.ide_driver import BUFFER, IdeDriver

from sublet.devices.storage import AtaDisk
from sublet.testing import ManualExecutor, RamDisk

SECTORS = 0x4000
READ, READ_EXT, WRITE, WRITE_EXT = 0x20, 0x24, 0x30, 0x34
READ_DMA, WRITE_DMA, WRITE_DMA_EXT, IDENTIFY, FLUSH = 0xC8, 0xCA, 0x35, 0xEC, 0xE7
DONE, FAILED = 0x50, 0x51
ABORTED, NOT_FOUND, UNCORRECTABLE = 0x04, 0x10, 0x40


def pattern(lba: int) -> bytes:
    return struct.pack("<I", lba ^ 0x5A5A_0000) * 128


@pytest.fixture
def image() -> RamDisk:
    disk = RamDisk(SECTORS * 512)
    for lba in range(0, SECTORS, 7):
        disk.data[512 * lba : 512 * lba + 512] = pattern(lba)
    return disk


@pytest.fixture
def ide(image: RamDisk) -> IdeDriver:
    return IdeDriver(AtaDisk(image, serial="S1"))


def test_signatures_tell_disk_from_empty_place(ide: IdeDriver) -> None:
    ide.reset()
    assert ide.signature(0) == (1, 1, 0, 0)
    assert ide.port(7) == DONE
    assert ide.signature(1) == (0, 0, 0, 0)
    assert ide.port(7) == 0


def test_registers_of_an_empty_channel_do_not_keep_values(ide: IdeDriver) -> None:
    second = ide.function.channels[1]
    second.pio_write(2, 1, 0x55)
    assert second.pio_read(2, 1) == 0
    assert second.pio_read(7, 1) == 0


def test_identify_names_the_disk(ide: IdeDriver) -> None:
    assert ide.command(IDENTIFY) & 0x08
    assert ide.irq.level
    assert ide.port(7) == 0x58
    assert not ide.irq.level
    raw = ide.read_block()
    words = struct.unpack("<256H", raw)
    assert sum(raw) % 256 == 0
    assert words[60] | words[61] << 16 == SECTORS
    assert words[100] == SECTORS
    assert words[49] & 0x300 == 0x300
    assert words[83] & 0x400
    assert b"".join(struct.pack(">H", word) for word in words[10:20]).strip() == b"S1"
    assert ide.alternate_status() == DONE


def test_pio_read_interrupts_for_each_sector(ide: IdeDriver) -> None:
    ide.command(READ, lba=7, count=8)
    for index in range(8):
        assert ide.irq.level
        assert ide.port(7) == 0x58
        assert (
            ide.read_block()[:4]
            == (pattern(7) if index == 0 else pattern(14) if index == 7 else bytes(4))[:4]
        )
    assert not ide.irq.level
    assert ide.port(7) == DONE
    assert ide.irq.edges == 8


def test_pio_write_interrupts_after_each_sector(ide: IdeDriver, image: RamDisk) -> None:
    ide.command(WRITE, lba=100, count=2)
    assert not ide.irq.level
    for lba in (100, 101):
        ide.write_block(pattern(lba))
        assert ide.irq.level
        ide.port(7)
    assert ide.alternate_status() == DONE
    assert image.data[51200 : 51200 + 1024] == pattern(100) + pattern(101)


def test_multiple_moves_several_sectors_a_request(ide: IdeDriver) -> None:
    assert ide.command(0xC4, lba=0, count=4) == FAILED
    assert ide.command(0xC6, count=8) == DONE
    ide.command(0xC4, lba=0, count=12)
    before = ide.irq.edges
    ide.port(7)
    assert ide.read_block(8 * 512)[:4] == pattern(0)[:4]
    assert ide.port(7) == 0x58
    assert ide.read_block(4 * 512)[:4] == bytes(4)
    assert ide.irq.edges == before + 1
    assert ide.command(0xC6, count=3) == FAILED


def test_count_of_zero_is_the_most(ide: IdeDriver) -> None:
    ide.command(READ, lba=0, count=0)
    for _ in range(256):
        ide.read_block()
    assert ide.port(7) == DONE


def test_chs_addresses(ide: IdeDriver) -> None:
    cylinder, head, sector = 3, 5, 7
    lba = (cylinder * 16 + head) * 63 + sector - 1
    ide.command(WRITE, lba=cylinder << 8 | sector, count=1, device=0xA0 | head)
    ide.write_block(pattern(lba))
    ide.command(READ, lba=lba, count=1)
    assert ide.read_block() == pattern(lba)
    assert ide.command(READ, lba=cylinder << 8, count=1, device=0xA0) == FAILED
    assert ide.port(1) == NOT_FOUND


def test_48_bit_commands_use_both_bytes(ide: IdeDriver, image: RamDisk) -> None:
    ide.command_ext(WRITE_EXT, lba=0x3FF0, count=1)
    ide.write_block(pattern(3))
    assert image.data[0x3FF0 * 512 : 0x3FF1 * 512] == pattern(3)
    assert ide.command_ext(READ_EXT, lba=0x0123_4567_89AB, count=1) == FAILED
    assert ide.port(1) == NOT_FOUND
    low = [ide.port(offset) for offset in (3, 4, 5)]
    ide.set_control(0x80)
    high = [ide.port(offset) for offset in (3, 4, 5)]
    assert bytes(low + high) == (0x0123_4567_89AB).to_bytes(6, "little")


def test_a_range_over_the_end_moves_nothing(ide: IdeDriver, image: RamDisk) -> None:
    assert ide.command(WRITE, lba=SECTORS - 1, count=2) == FAILED
    assert ide.port(1) == NOT_FOUND
    assert ide.port(3) | ide.port(4) << 8 | ide.port(5) << 16 == SECTORS


def test_dma_read_scatters_over_the_table(ide: IdeDriver) -> None:
    ide.set_table((BUFFER, 256), (BUFFER + 0x1000, 768))
    ide.command(READ_DMA, lba=7, count=2)
    assert not ide.irq.level
    ide.start_dma(to_memory=True)
    assert ide.irq.level
    assert ide.dma_status() & 7 == 4
    assert ide.memory.read(BUFFER, 256) + ide.memory.read(BUFFER + 0x1000, 256) == pattern(7)
    ide.stop_dma()
    ide.function.pio_write(2, 1, 4)
    assert ide.dma_status() & 7 == 0
    assert ide.port(7) == DONE


def test_dma_may_be_started_before_the_command(ide: IdeDriver, image: RamDisk) -> None:
    ide.memory.write(BUFFER, pattern(1) + pattern(2))
    ide.set_table((BUFFER, 1024))
    ide.start_dma(to_memory=False)
    assert ide.dma_status() & 1
    assert ide.command_ext(WRITE_DMA_EXT, lba=500, count=2) == DONE
    assert image.data[500 * 512 : 502 * 512] == pattern(1) + pattern(2)


def test_a_table_longer_than_the_transfer_stays_active(ide: IdeDriver) -> None:
    ide.set_table((BUFFER, 4096))
    ide.command(READ_DMA, lba=0, count=1)
    ide.start_dma(to_memory=True)
    assert ide.dma_status() & 7 == 5
    ide.stop_dma()
    assert ide.dma_status() & 7 == 4


def test_a_short_table_stops_without_an_interrupt(ide: IdeDriver) -> None:
    ide.set_table((BUFFER, 512))
    ide.command(READ_DMA, lba=0, count=2)
    ide.start_dma(to_memory=True)
    assert ide.dma_status() & 7 == 0
    assert ide.alternate_status() & 0x21 == 0
    assert not ide.irq.level
    ide.reset()
    assert ide.port(7) == DONE


def test_a_table_outside_memory_is_an_error(ide: IdeDriver) -> None:
    ide.set_table((0xFFFF_0000, 512))
    ide.command(READ_DMA, lba=0, count=1)
    ide.start_dma(to_memory=True)
    assert ide.dma_status() & 7 == 6
    assert ide.port(7) == FAILED


def test_an_endless_table_ends(ide: IdeDriver, image: RamDisk) -> None:
    ide.set_table(*[(BUFFER, 2)] * 100, last=False)
    ide.command(READ_DMA, lba=0, count=0)
    ide.start_dma(to_memory=True)
    ide.reset()
    assert ide.port(7) == DONE


def test_flush_reaches_the_image(ide: IdeDriver, image: RamDisk) -> None:
    assert ide.command(FLUSH) == DONE
    assert image.flushes == 1
    assert ide.irq.level


def test_trim_discards_ranges(ide: IdeDriver, image: RamDisk) -> None:
    ide.memory.write(BUFFER, struct.pack("<QQ", 8 << 48 | 100, 1 << 48 | 3).ljust(512, b"\0"))
    ide.set_table((BUFFER, 512))
    ide.command_ext(0x06, feature=1, count=1)
    ide.start_dma(to_memory=False)
    assert ide.port(7) == DONE
    assert image.discarded == [(51200, 4096), (1536, 512)]


def test_trim_past_the_end_discards_nothing(ide: IdeDriver, image: RamDisk) -> None:
    ide.memory.write(BUFFER, struct.pack("<QQ", 8 << 48 | 100, 1 << 48 | SECTORS).ljust(512, b"\0"))
    ide.set_table((BUFFER, 512))
    ide.command_ext(0x06, feature=1, count=1)
    ide.start_dma(to_memory=False)
    assert ide.port(7) == FAILED
    assert image.discarded == []


@pytest.mark.parametrize(
    ("feature", "count", "status"),
    [(0x03, 0x45, DONE), (0x03, 0x47, FAILED), (0x02, 0, DONE), (0x82, 0, DONE), (0x77, 0, FAILED)],
)
def test_set_features(ide: IdeDriver, feature: int, count: int, status: int) -> None:
    assert ide.command(0xEF, feature=feature, count=count) == status


def test_smart_says_that_the_disk_is_well(ide: IdeDriver) -> None:
    assert ide.command(0xB0, feature=0xDA, lba=0xC24F00) == DONE
    assert (ide.port(4), ide.port(5)) == (0x4F, 0xC2)
    ide.command(0xB0, feature=0xD0, lba=0xC24F00)
    assert sum(ide.read_block()) % 256 == 0
    assert ide.command(0xB0, feature=0xD0, lba=0) == FAILED


def test_native_max_is_the_last_sector(ide: IdeDriver) -> None:
    assert ide.command(0xF8) == DONE
    assert ide.port(3) | ide.port(4) << 8 | ide.port(5) << 16 == SECTORS - 1


@pytest.mark.parametrize("command", [0x00, 0x08, 0x60, 0xA0, 0xA1, 0xF5])
def test_unknown_commands_abort(ide: IdeDriver, command: int) -> None:
    assert ide.command(command) == FAILED
    assert ide.port(1) == ABORTED
    assert ide.irq.changes[0]


def test_a_failing_host_is_an_uncorrectable_sector(ide: IdeDriver, image: RamDisk) -> None:
    image.failure = OSError(5, "Input/output error")
    assert ide.command(READ, lba=9, count=1) == FAILED
    assert ide.port(1) == UNCORRECTABLE
    assert ide.port(3) == 9


def test_a_read_only_disk_aborts_writes() -> None:
    ide = IdeDriver(AtaDisk(RamDisk(1 << 20, readonly=True)))
    assert ide.command(WRITE, lba=0, count=1) == FAILED
    assert ide.port(1) == ABORTED


def test_interrupts_can_be_gated(ide: IdeDriver) -> None:
    ide.set_control(2)
    ide.command(FLUSH)
    assert not ide.irq.level
    ide.set_control(0)
    assert ide.irq.level


def test_the_second_disk_answers_for_itself(image: RamDisk) -> None:
    other = RamDisk(1 << 20)
    other.data[:4] = b"next"
    ide = IdeDriver(AtaDisk(image), AtaDisk(other))
    ide.command(READ, lba=0, count=1, device=0xF0)
    assert ide.read_block()[:4] == b"next"
    ide.command(0x90)
    assert ide.port(1) == 1
    assert ide.signature(1) == (1, 1, 0, 0)


def test_a_reset_forgets_the_command_in_flight(image: RamDisk) -> None:
    executor = ManualExecutor()
    ide = IdeDriver(AtaDisk(image), executor=executor)
    assert ide.command(READ, lba=0, count=1) & 0x80
    assert ide.command(FLUSH) & 0x80
    ide.reset()
    executor.run()
    assert ide.port(7) == DONE
    assert not ide.irq.level
    assert image.flushes == 0


def test_a_snapshot_in_the_middle_of_a_read(ide: IdeDriver, image: RamDisk) -> None:
    ide.command(READ, lba=7, count=3)
    first = ide.read_block(256)
    twin = IdeDriver(AtaDisk(image))
    twin.function.load_state(ide.function.save_state())
    rest = twin.read_block(256)
    assert first + rest == pattern(7)
    twin.read_block()
    twin.read_block()
    assert twin.port(7) == DONE


def test_a_snapshot_in_the_middle_of_a_write(ide: IdeDriver, image: RamDisk) -> None:
    ide.command(WRITE, lba=7, count=1)
    ide.write_block(pattern(99)[:100])
    twin = IdeDriver(AtaDisk(image))
    twin.function.load_state(ide.function.save_state())
    twin.write_block(pattern(99)[100:])
    assert image.data[7 * 512 : 8 * 512] == pattern(99)


class CoreReads:
    """What answers the data port before the device, as the core does (``hw.ReadAhead``)."""

    def __init__(self) -> None:
        self.data = b""

    def offer(self, data: bytes) -> None:
        self.data = data

    def take_back(self) -> int:
        left, self.data = len(self.data), b""
        return left

    def read(self, size: int) -> bytes | None:
        if len(self.data) <= size:
            return None
        taken, self.data = self.data[:size], self.data[size:]
        return taken


def read_sector(ide: IdeDriver, core: CoreReads) -> bytes:
    words = (core.read(2) or ide.channel.pio_read(0, 2).to_bytes(2, "little") for _ in range(256))
    return b"".join(words)


def test_the_core_may_answer_reads_of_the_data_port(image: RamDisk) -> None:
    core = CoreReads()
    ide = IdeDriver(AtaDisk(image), data_ports=(core, CoreReads()))
    ide.command(READ, lba=7, count=3)
    assert read_sector(ide, core) == pattern(7)
    assert ide.port(7) == 0x58
    assert read_sector(ide, core) == bytes(512)
    assert len(core.data) == 512
    core.read(2)
    state = ide.function.save_state()
    assert state["channels"][0]["position"] == 2
    ide.reset()
    assert core.data == b""
    ide.command(READ, lba=7, count=1)
    assert read_sector(ide, core) == pattern(7)
    assert ide.port(7) == DONE

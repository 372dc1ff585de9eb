"""A CD drive on IDE: packet commands by programmed I/O and DMA, sense, tray and raw sectors."""

from __future__ import annotations

import struct

import pytest
from tests.unit.devices.storage.ide_driver import BUFFER, IdeDriver

from sublet.devices.storage import AtapiCd
from sublet.testing import ManualExecutor, RamDisk

SECTORS = 400
DONE, FAILED = 0x40, 0x41


class CdDriver(IdeDriver):
    """Packets to device 0, as ATA/ATAPI-7 volume 2 §11.10 "PACKET command protocol" draws it."""

    def packet(self, *command: int, limit: int = 0xF800, dma: bool = False) -> bytes:
        """Send a packet, take the data by programmed I/O until none is offered."""
        self.set_port(6, 0xA0)
        for offset, value in ((1, int(dma)), (2, 0), (3, 0), (4, limit & 0xFF), (5, limit >> 8)):
            self.set_port(offset, value)
        self.set_port(7, 0xA0)
        assert self.port(2) & 3 == 1
        self.write_block(bytes(command).ljust(12, b"\0"))
        data = b""
        while not dma and self.alternate_status() & 0x88 == 0x08 and self.port(2) & 2:
            assert self.irq.level
            assert self.port(7) & 0x08
            assert self.port(2) & 3 == 2
            size = self.port(4) | self.port(5) << 8
            assert 0 < size <= limit
            data += self.read_block((size + 1) // 2 * 2)[:size]
        return data

    def sense(self) -> tuple[int, int]:
        """(key, code) of REQUEST SENSE."""
        data = self.packet(3, 0, 0, 0, 18)
        return data[2] & 15, data[12]

    def take_attention(self) -> None:
        self.packet(0)


def disc(sectors: int = SECTORS) -> RamDisk:
    image = RamDisk(sectors * 2048)
    for lba in range(sectors):
        image.data[2048 * lba : 2048 * lba + 4] = struct.pack("<I", lba | 0xCD00_0000)
    return image


@pytest.fixture
def cd() -> CdDriver:
    driver = CdDriver(AtapiCd(disc(), serial="CD1"))
    driver.take_attention()
    return driver


def test_the_signature_says_packet_device(cd: CdDriver) -> None:
    cd.reset()
    assert cd.signature() == (1, 1, 0x14, 0xEB)
    assert cd.port(7) == 0


@pytest.mark.parametrize("command", [0xEC, 0x20])
def test_a_disk_s_command_shows_the_signature(cd: CdDriver, command: int) -> None:
    assert cd.command(command) & 1
    assert (cd.port(4), cd.port(5)) == (0x14, 0xEB)


def test_device_reset_works_in_every_state(cd: CdDriver) -> None:
    cd.set_port(7, 0xA0)
    assert cd.alternate_status() & 8
    cd.set_port(7, 0x08)
    assert cd.signature() == (1, 1, 0x14, 0xEB)


def test_identify_packet_device(cd: CdDriver) -> None:
    cd.command(0xA1)
    words = struct.unpack("<256H", cd.read_block())
    assert words[0] >> 14 == 2
    assert words[0] >> 8 & 0x1F == 5
    assert words[0] & 3 == 0


def test_the_first_command_learns_of_the_reset() -> None:
    cd = CdDriver(AtapiCd(disc()))
    assert cd.packet(0) == b""
    assert cd.port(1) >> 4 == 6
    assert cd.sense() == (6, 0x29)
    cd.packet(0)
    assert cd.port(7) == DONE


def test_inquiry_and_capacity(cd: CdDriver) -> None:
    assert cd.packet(0x12, 0, 0, 0, 36)[:2] == b"\x05\x80"
    assert struct.unpack(">II", cd.packet(0x25)) == (SECTORS - 1, 2048)
    assert cd.port(7) == DONE
    assert cd.port(2) & 3 == 3


def test_read_in_pieces_of_the_host_s_limit(cd: CdDriver) -> None:
    data = cd.packet(0x28, 0, 0, 0, 0, 10, 0, 0, 5, limit=4096)
    assert [struct.unpack_from("<I", data, 2048 * i)[0] & 0xFFFF for i in range(5)] == [10, 11, 12, 13, 14]
    assert len(cd.packet(0xA8, 0, 0, 0, 0, 0, 0, 0, 0, 2, limit=0x7FF)) == 4096


def test_read_by_dma(cd: CdDriver) -> None:
    cd.set_table((BUFFER, 2048), (BUFFER + 0x8000, 2048))
    cd.packet(0x28, 0, 0, 0, 0, 3, 0, 0, 2, dma=True)
    cd.start_dma(to_memory=True)
    assert cd.irq.level
    assert cd.dma_status() & 7 == 4
    assert cd.memory.read_u32(BUFFER + 0x8000) == 0xCD00_0004
    assert cd.port(2) & 3 == 3
    assert cd.port(7) == DONE


def test_reading_past_the_end(cd: CdDriver) -> None:
    assert cd.packet(0x28, 0, 0, 0, SECTORS >> 8, SECTORS & 0xFF, 0, 0, 1) == b""
    assert cd.port(7) == FAILED
    assert cd.sense() == (5, 0x21)
    assert cd.sense() == (0, 0)


def test_unknown_commands(cd: CdDriver) -> None:
    cd.packet(0xFF)
    assert cd.port(1) == 0x54
    assert cd.sense() == (5, 0x20)


def test_table_of_contents(cd: CdDriver) -> None:
    data = cd.packet(0x43, 0, 0, 0, 0, 0, 0, 0, 100)
    assert data[:4] == bytes((0, 18, 1, 1))
    assert data[5:7] == b"\x14\x01"
    assert struct.unpack(">I", data[-4:]) == (SECTORS,)
    assert cd.packet(0x43, 2, 0, 0, 0, 0, 0xAA, 0, 100)[-4:] == bytes((0, 0, 7, 25))
    assert cd.packet(0x43, 0, 1, 0, 0, 0, 0, 0, 100)[:4] == bytes((0, 10, 1, 1))
    assert cd.packet(0x43, 0, 0, 0, 0, 0, 5, 0, 100) == b""
    assert len(cd.packet(0x43, 0, 0, 0, 0, 0, 0, 0, 5)) == 5


@pytest.mark.parametrize(
    ("packet", "length"),
    [
        ((0x46, 0, 0, 0, 0, 0, 0, 1, 0), None),
        ((0x4A, 1, 0, 0, 0x10, 0, 0, 0, 8), 8),
        ((0x51, 0, 0, 0, 0, 0, 0, 0, 34), 34),
        ((0x52, 1, 0, 0, 0, 1, 0, 0, 36), 36),
        ((0x5A, 0, 0x2A, 0, 0, 0, 0, 0, 60), 30),
        ((0x1A, 0, 0x3F, 0, 255), None),
        ((0xBD, 0, 0, 0, 0, 0, 0, 0, 0, 8), 8),
        ((0x42, 0, 0x40, 1, 0, 0, 0, 0, 16), 16),
    ],
)
def test_pages_say_their_own_length(cd: CdDriver, packet: tuple[int, ...], length: int | None) -> None:
    data = cd.packet(*packet)
    assert cd.port(7) == DONE
    assert len(data) == length or length is None
    if packet[0] == 0x46:
        assert struct.unpack_from(">I", data)[0] == len(data) - 4
        assert struct.unpack_from(">H", data, 6)[0] == 8
    if packet[0] == 0x1A:
        assert data[0] == len(data) - 1


def test_the_tray(cd: CdDriver) -> None:
    cd.packet(0x1E, 0, 0, 0, 1)
    cd.packet(0x1B, 0, 0, 0, 2)
    assert cd.sense() == (5, 0x53)
    cd.packet(0x1E)
    cd.packet(0x1B, 0, 0, 0, 2)
    assert cd.port(7) == DONE
    cd.packet(0)
    assert cd.sense() == (2, 0x3A)
    assert cd.packet(0x4A, 1, 0, 0, 0x10, 0, 0, 0, 8)[4:6] == b"\x03\x01"
    cd.packet(0x1B, 0, 0, 0, 3)
    cd.packet(0)
    assert cd.sense() == (6, 0x28)
    cd.packet(0)
    assert cd.port(7) == DONE


def test_another_disc(cd: CdDriver) -> None:
    drive = cd.channel._drives[0].drive  # type: ignore[union-attr]
    assert isinstance(drive, AtapiCd)
    drive.drive.insert(disc(10))
    assert cd.packet(0x25) == b""
    assert cd.sense() == (6, 0x28)
    assert struct.unpack(">II", cd.packet(0x25)) == (9, 2048)
    drive.drive.insert(None)
    cd.packet(0x25)
    assert cd.sense() == (2, 0x3A)


def test_raw_sectors(cd: CdDriver) -> None:
    data = cd.packet(0xBE, 0, 0, 0, 0, 7, 0, 0, 2, 0xF8)
    assert len(data) == 2 * 2352
    assert data[:12] == b"\0" + b"\xff" * 10 + b"\0"
    assert data[12:16] == bytes((0x00, 0x02, 0x07, 1))
    assert struct.unpack_from("<I", data, 2352 + 16) == (0xCD00_0008,)
    assert len(cd.packet(0xBE, 0, 0, 0, 0, 7, 0, 0, 2, 0x10)) == 4096


def test_a_disc_with_a_rest_is_padded() -> None:
    image = RamDisk(3 * 2048 + 512)
    image.data[-512:] = b"e" * 512
    cd = CdDriver(AtapiCd(image))
    cd.take_attention()
    assert struct.unpack(">II", cd.packet(0x25)) == (3, 2048)
    assert cd.packet(0x28, 0, 0, 0, 0, 3, 0, 0, 1) == b"e" * 512 + bytes(1536)


def test_a_failing_host_is_a_medium_error() -> None:
    image = disc()
    cd = CdDriver(AtapiCd(image))
    cd.take_attention()
    image.failure = OSError(5, "Input/output error")
    cd.packet(0x28, 0, 0, 0, 0, 0, 0, 0, 1)
    assert cd.port(7) == FAILED
    image.failure = None
    assert cd.sense() == (3, 0x11)


def test_mode_select_takes_its_bytes(cd: CdDriver) -> None:
    cd.packet(0x55, 0, 0, 0, 0, 0, 0, 0, 16)
    assert cd.port(2) & 3 == 0
    cd.write_block(bytes(16))
    assert cd.port(7) == DONE


def test_an_empty_tray() -> None:
    cd = CdDriver(AtapiCd(None))
    cd.take_attention()
    cd.packet(0x28, 0, 0, 0, 0, 0, 0, 0, 1)
    assert cd.sense() == (2, 0x3A)
    assert cd.packet(0x46, 0, 0, 0, 0, 0, 0, 0, 8)[6:8] == b"\0\0"


def test_a_snapshot_between_two_pieces() -> None:
    executor = ManualExecutor()
    cd = CdDriver(AtapiCd(disc()), executor=executor)
    cd.take_attention()
    cd.packet(0x28, 0, 0, 0, 0, 9, 0, 0, 2, limit=2048)
    executor.run()
    cd.read_block(1000)
    twin = CdDriver(AtapiCd(disc()))
    twin.function.load_state(cd.function.save_state())
    twin.read_block(1048)
    assert twin.irq.level
    assert twin.read_block(2048)[:4] == struct.pack("<I", 0xCD00_000A)
    assert twin.port(7) == DONE

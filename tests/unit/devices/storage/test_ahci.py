"""AHCI: ports, commands of every protocol, queues, errors, interrupts, resets and snapshots."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from tests.unit.devices.storage.ahci_driver import (
    BUFFER,
    CI,
    CMD,
    IS,
    LIST,
    RECEIVED,
    SACT,
    SCTL,
    SERR,
    SIG,
    SSTS,
    TABLES,
    TFD,
    AhciDriver,
)

from sublet.block import open_image
from sublet.devices.pci import config_space as cs
from sublet.devices.storage import AtaDisk, AtapiCd
from sublet.engine import Engine, RamBlock
from sublet.testing import ManualExecutor, RamDisk

SECTORS = 0x4000
IDENTIFY, READ_DMA, WRITE_DMA, FLUSH, READ_FPDMA, WRITE_FPDMA = 0xEC, 0x25, 0x35, 0xEA, 0x60, 0x61
D2H, PSS, SDBS, TFES, HBFS, OFS = 1, 2, 8, 1 << 30, 1 << 29, 1 << 24


@pytest.fixture
def image() -> RamDisk:
    disk = RamDisk(SECTORS * 512)
    for lba in range(SECTORS):
        disk.data[512 * lba : 512 * lba + 4] = struct.pack("<I", lba)
    return disk


@pytest.fixture
def ahci(image: RamDisk) -> AhciDriver:
    driver = AhciDriver(AtaDisk(image, serial="S1", serial_ata=True))
    driver.start()
    return driver


def test_what_the_ports_show(ahci: AhciDriver) -> None:
    assert ahci.read(0) & 0x1F == 5
    assert ahci.read(0x0C) == 0x3F
    assert ahci.port(SSTS) & 0xF0F == 0x103
    assert ahci.port(SIG) == 0x101
    assert ahci.port(TFD) == 0x150
    assert (ahci.port(SSTS, 1), ahci.port(SIG, 1), ahci.port(TFD, 1)) == (0, 0xFFFF_FFFF, 0x7F)
    assert ahci.port(CMD) & 0xC000 == 0xC000


def test_identify_ends_with_a_pio_setup_frame(ahci: AhciDriver) -> None:
    ahci.prepare(IDENTIFY, regions=((BUFFER, 512),))
    ahci.issue()
    assert ahci.port(CI) == 0
    assert ahci.port(IS) == PSS
    assert ahci.pin
    frame = ahci.received(0x20)
    assert (frame[0], frame[2], frame[15]) == (0x5F, 0x58, 0x50)
    words = struct.unpack("<256H", ahci.memory.read(BUFFER, 512))
    assert words[76] & 0x100
    assert words[75] == 31
    assert ahci.moved() == 512
    ahci.acknowledge()
    assert not ahci.pin


def test_dma_read_over_several_regions(ahci: AhciDriver) -> None:
    ahci.prepare(READ_DMA, lba=100, count=8, regions=((BUFFER, 1024), (BUFFER + 0x10000, 3072)))
    ahci.issue()
    assert ahci.acknowledge() == D2H
    assert ahci.memory.read_u32(BUFFER + 512) == 101
    assert ahci.memory.read_u32(BUFFER + 0x10000 + 2560) == 107
    frame = ahci.received(0x40)
    assert (frame[0], frame[2], frame[3]) == (0x34, 0x50, 0)


def test_the_core_moves_what_is_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "disk.raw").write_bytes(bytes(512) + b"abcd" * 256 + bytes(4096))
    vm = Engine("translate").create_vm()
    vm.set_memslot(0, 0, 1 << 20, RamBlock(1 << 20))
    drive = AtaDisk(open_image(tmp_path / "disk.raw", format="raw"), serial="S1", serial_ata=True)
    for name in ("read", "write"):
        monkeypatch.setattr(drive, name, lambda *_: pytest.fail("the bytes came by the drive"))
    ahci = AhciDriver(drive, memory=vm.memory)
    ahci.start()
    ahci.prepare(READ_DMA, lba=1, count=2, regions=((BUFFER + 2, 600), (BUFFER + 0x3000, 424)))
    ahci.issue()
    assert ahci.memory.read(BUFFER + 2, 600) + ahci.memory.read(BUFFER + 0x3000, 424) == b"abcd" * 256
    ahci.prepare(WRITE_DMA, lba=4, count=1, regions=((BUFFER + 0x3000, 400), (BUFFER + 2, 112)), write=True)
    ahci.issue()
    drive.close()
    written = (tmp_path / "disk.raw").read_bytes()[2048:2560]
    assert written == (b"abcd" * 256)[600:1000] + (b"abcd" * 28)


def test_dma_write_and_flush(ahci: AhciDriver, image: RamDisk) -> None:
    ahci.memory.write(BUFFER, b"w" * 512)
    ahci.prepare(WRITE_DMA, lba=5, count=1, regions=((BUFFER, 512),), write=True)
    ahci.prepare(FLUSH, slot=1)
    ahci.issue(3)
    assert image.data[2560:3072] == b"w" * 512
    assert image.flushes == 1
    assert ahci.port(CI) == 0


def test_queued_commands(ahci: AhciDriver) -> None:
    for slot in (0, 3, 31):
        region = (BUFFER + 0x1000 * (slot % 8), 1024)
        ahci.prepare(READ_FPDMA, slot=slot, lba=10 * slot, feature=2, count=slot << 3, regions=(region,))
    slots = 1 | 1 << 3 | 1 << 31
    ahci.set_port(SACT, slots)
    ahci.issue(slots)
    assert (ahci.port(SACT), ahci.port(CI)) == (0, 0)
    assert ahci.acknowledge() == SDBS
    assert ahci.received(0x58, 8) == bytes((0xA1, 0x40, 0x50, 0, 0, 0, 0, 0x80))
    assert ahci.memory.read_u32(BUFFER + 0x3000 + 512) == 31


def test_a_failed_command_stops_the_port(ahci: AhciDriver) -> None:
    ahci.prepare(READ_DMA, lba=SECTORS, count=1, regions=((BUFFER, 512),))
    ahci.prepare(FLUSH, slot=1)
    ahci.issue(3)
    assert ahci.port(IS) == D2H | TFES
    assert ahci.port(TFD) == 0x1051
    assert ahci.port(CI) == 3
    ahci.stop()
    assert ahci.port(CI) == 0
    assert not ahci.port(CMD) & 0x8000
    ahci.acknowledge()
    ahci.set_port(CMD, 0x11)
    ahci.issue(2)
    assert ahci.port(CI) == 0


def test_a_failed_queued_command_is_in_the_log(ahci: AhciDriver, image: RamDisk) -> None:
    image.failure = OSError(5, "Input/output error")
    ahci.prepare(READ_FPDMA, slot=4, lba=77, feature=1, count=4 << 3, regions=((BUFFER, 512),))
    ahci.set_port(SACT, 1 << 4)
    ahci.issue(1 << 4)
    assert ahci.acknowledge() == SDBS | TFES
    assert ahci.port(SACT) == 1 << 4
    image.failure = None
    ahci.stop()
    ahci.set_port(CMD, 0x11)
    ahci.prepare(0x2F, lba=0x10, count=1, regions=((BUFFER, 512),))
    ahci.issue()
    log = ahci.memory.read(BUFFER, 512)
    assert sum(log) % 256 == 0
    assert (log[0], log[3], log[4]) == (4, 0x40, 77)


def test_packet_commands() -> None:
    image = RamDisk(100 * 2048)
    image.data[2048 * 3 : 2048 * 3 + 4] = b"disc"
    ahci = AhciDriver(AtapiCd(image, serial_ata=True))
    ahci.start()
    assert ahci.port(SIG) == 0xEB14_0101
    ahci.prepare(0xA0, packet=bytes(12))
    ahci.issue()
    assert ahci.port(TFD) & 0xF001 == 0x6001
    ahci.stop()
    ahci.set_port(CMD, 0x11)
    ahci.acknowledge()
    ahci.prepare(0xA0, feature=1, packet=bytes((0x28, 0, 0, 0, 0, 3, 0, 0, 1)), regions=((BUFFER, 2048),))
    ahci.issue()
    assert ahci.acknowledge() == D2H
    assert ahci.memory.read(BUFFER, 4) == b"disc"
    assert ahci.received(0x40)[12] == 3


def test_a_table_too_short_is_an_overflow(ahci: AhciDriver) -> None:
    ahci.prepare(READ_DMA, lba=0, count=4, regions=((BUFFER, 512),))
    ahci.issue()
    assert ahci.port(IS) == D2H | OFS
    assert ahci.moved() == 512


@pytest.mark.parametrize("what", ["list", "table", "region", "frame type"])
def test_structures_outside_memory(ahci: AhciDriver, what: str) -> None:
    ahci.prepare(READ_DMA, lba=0, count=1, regions=((BUFFER if what != "region" else 1 << 40, 512),))
    if what == "list":
        ahci.set_port(0, 0xFFFF_FC00)
    if what == "table":
        ahci.memory.write(LIST + 8, struct.pack("<Q", 1 << 60))
    if what == "frame type":
        ahci.memory.write(TABLES, b"\xff")
    ahci.issue()
    assert ahci.port(IS) == HBFS
    ahci.stop()
    assert ahci.port(CI) == 0


def test_interrupts_by_message(ahci: AhciDriver) -> None:
    offset = ahci.function.config_read(cs.CAPABILITIES_POINTER, 1)
    while ahci.function.config_read(offset, 1) != 5:
        offset = ahci.function.config_read(offset + 1, 1)
    ahci.function.config_write(offset + 4, 4, 0xFEE0_0000)
    ahci.function.config_write(offset + 12, 2, 0x41)
    ahci.function.config_write(offset + 2, 2, 1)
    for _ in range(2):
        ahci.prepare(FLUSH)
        ahci.issue()
        ahci.acknowledge()
    assert ahci.msi.messages == [(0xFEE0_0000, 0x41)] * 2
    assert not ahci.pin


def test_software_reset(ahci: AhciDriver) -> None:
    for slot, control in ((0, 4), (1, 0)):
        frame = bytes((0x27, 0)) + bytes(13) + bytes((control,))
        ahci.memory.write(TABLES + 0x1000 * slot, frame.ljust(64, b"\0"))
        ahci.memory.write(LIST + 32 * slot, struct.pack("<IIQ", 5 | 0x500, 0, TABLES + 0x1000 * slot))
        ahci.issue(1 << slot)
        assert ahci.port(CI) == 0
    assert ahci.received(0x40)[:8] == bytes((0x34, 0, 0x50, 1, 1, 0, 0, 0))


def test_reset_of_the_link(ahci: AhciDriver) -> None:
    ahci.stop()
    ahci.set_port(SCTL, 1)
    assert ahci.port(TFD) & 0x80
    ahci.set_port(SCTL, 0)
    assert ahci.port(TFD) == 0x150
    assert ahci.port(SERR) & 1 << 26
    assert ahci.port(IS) & 1 << 6
    ahci.set_port(SERR, 1 << 26)
    assert not ahci.port(IS) & 1 << 6


def test_reset_of_the_controller(ahci: AhciDriver) -> None:
    ahci.prepare(FLUSH)
    ahci.issue()
    assert ahci.pin
    ahci.write(4, 1)
    assert not ahci.pin
    assert ahci.read(4) == 0x8000_0000
    assert ahci.port(CMD) == 0


def test_stopping_the_port_forgets_what_is_under_way(image: RamDisk) -> None:
    executor = ManualExecutor()
    ahci = AhciDriver(AtaDisk(image, serial_ata=True), executor=executor)
    ahci.start()
    ahci.prepare(WRITE_DMA, lba=5, count=1, regions=((BUFFER, 512),), write=True)
    ahci.issue()
    ahci.stop()
    assert ahci.port(CMD) & 0x8000
    executor.run()
    assert not ahci.port(CMD) & 0x8000
    assert image.data[2560] == 5
    assert ahci.port(IS) == 0


def test_a_snapshot(ahci: AhciDriver, image: RamDisk) -> None:
    ahci.prepare(FLUSH)
    ahci.issue()
    twin = AhciDriver(AtaDisk(image, serial_ata=True))
    twin.function.load_state(ahci.function.save_state())
    assert twin.pin
    assert twin.port(CMD) == ahci.port(CMD)
    twin.memory.ram[:] = ahci.memory.ram
    twin.acknowledge()
    twin.prepare(READ_DMA, lba=9, count=1, regions=((BUFFER, 512),))
    twin.issue()
    assert twin.memory.read_u32(BUFFER) == 9


def test_an_empty_port_takes_no_commands() -> None:
    ahci = AhciDriver(None)
    ahci.start()
    ahci.prepare(FLUSH)
    ahci.issue()
    assert ahci.port(CI) == 1
    assert ahci.memory.read(RECEIVED, 256) == bytes(256)

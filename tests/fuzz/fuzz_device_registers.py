"""Random guests against every device: register accesses, rings full of rubbish, resets, snapshots.

A guest may do anything; a device may do anything but raise, hang or grow. Runs for SUBLET_FUZZ_SECONDS
(20) with the seed in SUBLET_FUZZ_SEED (random); prints the seed and how to run it again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import resource
import struct
import sys
import time
import traceback
from collections.abc import Callable

from sublet.devices.legacy import I8042, KEYS, Serial
from sublet.devices.legacy.dma import IsaDma
from sublet.devices.pci import PciConfigPorts, PciEcam
from sublet.devices.platform import AcpiPm, Gpe0, PvPanic, ResetRegister
from sublet.devices.platform.hpet import FIRST_TIMER, HPET_SIZE, TIMER_SIZE, Hpet, LegacyLines
from sublet.devices.storage import AtaDisk, AtapiCd, FloppyController, FloppyDrive, Ich9Ahci, PiixIde
from sublet.devices.vga import TEXT_RAM_SIZE, WINDOW_SIZE, Vga, render, text_screen
from sublet.devices.virtio import VirtioDevice
from sublet.devices.virtio.block import VirtioBlock
from sublet.devices.virtio.console import VirtioConsole
from sublet.devices.virtio.net import VirtioNet
from sublet.devices.virtio.rng import VirtioRng
from sublet.net import NullSink
from sublet.testing import (
    FakeClock,
    FakeDeviceRam,
    FakeGuestMemory,
    InlineExecutor,
    RamDisk,
    RecordingIrqLine,
    RecordingMsiSink,
    VirtioDriver,
)
from sublet.testing.virtio_legacy import LegacyVirtioDriver

MEMORY_LIMIT_KIB = 512 * 1024
"""Resident set that the fuzzer may reach."""
STEPS_A_ROUND = 400
INTERESTING = (
    0,
    1,
    2,
    3,
    4,
    7,
    8,
    0xF,
    0x40,
    0x80,
    0xFF,
    0x1000,
    0xFFFF,
    0x8000_0000,
    0xFFFF_FFFF,
    2**63,
    2**64 - 1,
)

Step = Callable[[random.Random], None]


def draw(rng: random.Random, size: int) -> int:
    """A value of ``size`` bytes: an interesting one, a small one or any."""
    value = rng.choice((rng.choice(INTERESTING), rng.randrange(64), rng.getrandbits(64)))
    return value & ((1 << (8 * size)) - 1)


def poke_ports(device: object, ports: int) -> Step:
    """One random access to a port device; a read must fit its size."""

    def step(rng: random.Random) -> None:
        size = rng.choice((1, 2, 4))
        offset = rng.randrange(ports)
        if rng.random() < 0.5:
            value = device.pio_read(offset, size)  # type: ignore[attr-defined]
            assert 0 <= value < 1 << (8 * size), f"read of {size} bytes gave {value:#x}"
        else:
            device.pio_write(offset, size, draw(rng, size))  # type: ignore[attr-defined]

    return step


def poke_mmio(device: object, offsets: Callable[[random.Random], int]) -> Step:
    """One random access to an MMIO device."""

    def step(rng: random.Random) -> None:
        size = rng.choice((1, 2, 4, 8))
        offset = offsets(rng)
        if rng.random() < 0.5:
            value = device.mmio_read(offset, size)  # type: ignore[attr-defined]
            assert 0 <= value < 1 << (8 * size), f"read of {size} bytes at {offset:#x} gave {value:#x}"
        else:
            device.mmio_write(offset, size, draw(rng, size))  # type: ignore[attr-defined]

    return step


def platform_steps() -> list[Step]:
    """The devices at fixed ports."""
    serial = Serial(RecordingIrqLine(), lambda data: None, FakeClock())

    def type_text(rng: random.Random) -> None:
        serial.receive(rng.randbytes(rng.randrange(40)))
        serial.service()

    def snapshot(rng: random.Random) -> None:
        serial.load_state(serial.save_state())
        if rng.random() < 0.1:
            serial.reset()

    ports = [(serial, 8), (AcpiPm(RecordingIrqLine(), int), 6), (Gpe0(), 4), (PvPanic(int), 1)]
    pokes = [poke_ports(device, count) for device, count in ports]
    return [*pokes, poke_ports(ResetRegister(int), 1), type_text, snapshot]


def screen_steps() -> list[Step]:
    """A VGA, drawn now and then as it happens to be."""
    vga = Vga(FakeDeviceRam(1 << 20), FakeDeviceRam(TEXT_RAM_SIZE), FakeClock())

    def set_index_and_data(rng: random.Random) -> None:
        vga.registers.write(rng.choice((0x3C2, 0x3C0)), rng.randrange(256))
        port = rng.choice((0x3C4, 0x3CE, 0x3D4))
        vga.registers.write(port, rng.randrange(0x1A))
        vga.registers.write(port + 1, rng.randrange(256))

    def set_linear(rng: random.Random) -> None:
        vga.dispi.write(rng.randrange(11), rng.choice((draw(rng, 2), rng.choice((4, 8, 16, 24, 32, 0x41)))))

    def look(rng: random.Random) -> None:
        if rng.random() < 0.05:
            picture = render(vga, blink_on=rng.random() < 0.5)
            assert len(picture.rgb) == 3 * picture.width * picture.height
        screen = text_screen(vga)
        assert screen is None or len(screen.cells) == screen.columns * screen.rows

    def snapshot(rng: random.Random) -> None:
        if rng.random() < 0.1:
            vga.load_state(vga.save_state())
        if rng.random() < 0.02:
            vga.reset()

    pokes = [poke_ports(entry.device, entry.count) for entry in vga.ports()]
    window = poke_mmio(vga.window, lambda rng: rng.randrange(WINDOW_SIZE - 8))
    return [*pokes, window, window, set_index_and_data, set_index_and_data, set_linear, look, snapshot]


def input_steps() -> list[Step]:
    """A keyboard controller whose user types and moves the mouse."""
    i8042 = I8042(RecordingIrqLine(), RecordingIrqLine(), bool, int)
    keys = list(KEYS)

    def use(rng: random.Random) -> None:
        rng.choice((i8042.press, i8042.release))(rng.choice(keys))
        i8042.move_mouse(rng.randrange(-600, 600), rng.randrange(-600, 600), rng.randrange(-9, 9))
        i8042.set_mouse_buttons(rng.randrange(32))

    def command(rng: random.Random) -> None:
        rng.choice((i8042, i8042, i8042.command_port)).pio_write(0, 1, rng.randrange(0x100))

    def snapshot(rng: random.Random) -> None:
        i8042.load_state(i8042.save_state())
        if rng.random() < 0.1:
            i8042.reset()

    return [poke_ports(i8042, 1), poke_ports(i8042.command_port, 1), command, command, use, snapshot]


def make_virtio(rng: random.Random) -> VirtioDevice:
    """One of the virtio devices."""
    executor, clock = InlineExecutor(), FakeClock()
    makers: list[Callable[[], VirtioDevice]] = [
        lambda: VirtioBlock(
            RamDisk(1 << 16, readonly=rng.random() < 0.2), executor, queues=rng.choice((1, 3))
        ),
        lambda: VirtioConsole(lambda data: None, executor),
        lambda: VirtioNet(NullSink(), executor, mac=bytes.fromhex("525400123456")),
        lambda: VirtioRng(executor, clock, after=lambda delay, work: clock.advance(delay)),
    ]
    return rng.choice(makers)()


def virtio_steps(rng: random.Random) -> list[Step]:
    """A machine with one virtio device, mostly started, and every way into it."""
    driver = VirtioDriver(make_virtio(rng))
    ports = PciConfigPorts(driver.host, ResetRegister(int))

    def restart(rng: random.Random) -> None:
        driver.pci.enable()
        if rng.random() < 0.2:
            driver.host.reset()
            driver.pci.enable()
        if driver.read(0x0012, 2) < 8:  # else an earlier step moved the BAR away
            with contextlib.suppress(AssertionError):
                driver.start(msix=driver.pci.bar(2) > 0 and rng.random() < 0.5)

    def scribble(rng: random.Random) -> None:
        """Rubbish over the rings, most of it shaped like descriptors."""
        for _ in range(rng.randrange(1, 8)):
            gpa = 0x10000 * rng.randrange(1, 4) + rng.choice(
                (rng.randrange(0x80) * 16, rng.randrange(0x2000))
            )
            address = rng.choice((rng.randrange(1 << 20), draw(rng, 8)))
            length = rng.choice((rng.randrange(1 << 14), 16 * rng.randrange(8), draw(rng, 4)))
            raw = address.to_bytes(8, "little") + length.to_bytes(4, "little")
            raw += bytes((rng.choice((0, 1, 2, 3, 4, 5, 7)), 0)) + rng.randrange(12).to_bytes(2, "little")
            driver.memory.write(gpa, raw)

    def ask(rng: random.Random) -> None:
        """A request that is nearly right."""
        if not driver.queues:
            return
        index = rng.randrange(len(driver.queues))
        queue = driver.queues[index]
        spots = [(0x80000 + rng.randrange(0x1000), rng.choice((1, 16, 512, 70000))) for _ in range(4)]
        cut = rng.randrange(5)
        driver.memory.write(
            spots[0][0], rng.choice((0, 1, 4, 8, 11, 13, 77)).to_bytes(8, "little") + bytes(8)
        )
        if spots:
            rng.choice((queue.add, queue.add_indirect))(spots[:cut], spots[cut:])
        if queue._next_buffer > 0x70000:
            queue._next_buffer = 0x60000
        driver.function.mmio_write(0x3000 + 4 * index, 2, index)

    def notify(rng: random.Random) -> None:
        driver.function.mmio_write(0x3000 + 4 * rng.randrange(6), 2, 0)

    def from_outside(rng: random.Random) -> None:
        device = driver.device
        if isinstance(device, VirtioConsole):
            device.receive(rng.randbytes(rng.randrange(200)))
        elif isinstance(device, VirtioNet):
            device.receive([rng.randbytes(12 + rng.randrange(2000)) for _ in range(3)])

    def snapshot(rng: random.Random) -> None:
        driver.host.load_state(driver.host.save_state())

    def ecam_offset(rng: random.Random) -> int:
        return rng.choice((0, 1)) << 15 | rng.choice((rng.randrange(256), rng.randrange(4096)))

    def bar_offset(rng: random.Random) -> int:
        return rng.choice((rng.randrange(64), 0x1000, 0x2000 + rng.randrange(80), rng.randrange(0x4000)))

    common = poke_mmio(driver.function, bar_offset)
    return [
        common,
        common,
        poke_mmio(driver.function.msix, lambda rng: rng.randrange(0x1000)),
        poke_mmio(PciEcam(driver.host), ecam_offset),
        poke_ports(ports, 8),
        scribble,
        ask,
        ask,
        notify,
        from_outside,
        snapshot,
        *([restart] if rng.random() < 0.9 else []),
    ]


def make_drive(rng: random.Random, *, serial_ata: bool) -> AtaDisk | AtapiCd | None:
    """A disk, a CD drive with a disc or without, or nothing."""
    kind = rng.random()
    if kind < 0.1:
        return None
    image = RamDisk(1 << 20, readonly=rng.random() < 0.2)
    if rng.random() < 0.1:
        image.failure = OSError(5, "Input/output error")
    if kind < 0.6:
        return AtaDisk(image, serial_ata=serial_ata)
    return AtapiCd(image if rng.random() < 0.8 else None, serial_ata=serial_ata)


ATA_COMMANDS = (
    *(0x20, 0x24, 0x25, 0x29, 0x2F, 0x30, 0x35, 0x3D, 0x40, 0x06, 0x60, 0x61, 0x90, 0x91, 0xA0, 0xA0),
    *(0xA1, 0xB0, 0xC4, 0xC5, 0xC6, 0xC8, 0xCA, 0xE5, 0xE7, 0xEC, 0xEF, 0xF8, 0x08),
)
PACKETS = (
    0x00,
    0x03,
    0x12,
    0x1A,
    0x1B,
    0x1E,
    0x25,
    0x28,
    0x42,
    0x43,
    0x46,
    0x4A,
    0x51,
    0x55,
    0x5A,
    0xA8,
    0xBE,
)


def draw_packet(rng: random.Random) -> bytes:
    """A command packet, its lengths and addresses mostly small."""
    body = [rng.choice((0, 0, 0, rng.randrange(16), rng.randrange(256))) for _ in range(11)]
    return bytes((rng.choice(PACKETS), *body))


def scribble_regions(rng: random.Random, memory: FakeGuestMemory, start: int, entry: int) -> None:
    """Rubbish that looks like a table of memory regions, mostly in RAM."""
    for index in range(rng.randrange(1, 8)):
        address = rng.choice((rng.randrange(1 << 20), rng.randrange(1 << 20), draw(rng, 4)))
        length = rng.choice((512, 2048, rng.randrange(1 << 16), draw(rng, 4))) & 0xFFFF_FFFF
        memory.write(
            start + entry * index, address.to_bytes(entry - 4, "little") + length.to_bytes(4, "little")
        )


def ide_steps(rng: random.Random) -> list[Step]:
    """A PIIX3 with random drives on its first cable."""
    memory = FakeGuestMemory()
    drives = [make_drive(rng, serial_ata=False) for _ in range(2)]
    function = PiixIde(drives, [RecordingIrqLine(), RecordingIrqLine()], memory, InlineExecutor())
    channel = function.channels[0]

    def command(rng: random.Random) -> None:
        """Registers, then a command, then some of its data."""
        for register in range(1, 7):
            channel.pio_write(register, 1, rng.choice((0, 0, 1, 2, 0x40, 0xE0, rng.randrange(256))))
        channel.pio_write(7, 1, rng.choice(ATA_COMMANDS))
        if rng.random() < 0.5:
            for value in draw_packet(rng):
                channel.pio_write(0, 1, value)
        for _ in range(rng.choice((0, 8, 300))):
            channel.pio_read(0, 2)
            channel.pio_write(0, 2, rng.getrandbits(16))

    def start_dma(rng: random.Random) -> None:
        table = rng.choice((0x1000, 0xFFFF0, 0xFFFF_FFF8))
        if table == 0x1000:
            scribble_regions(rng, memory, table, 8)
        function.pio_write(4, 4, table)
        function.pio_write(0, 1, rng.choice((1, 9, 0)))

    def reset(rng: random.Random) -> None:
        channel.control.pio_write(0, 1, 4)
        channel.control.pio_write(0, 1, rng.choice((0, 2, 0x80)))
        if rng.random() < 0.2:
            function.reset()

    def snapshot(rng: random.Random) -> None:
        function.load_state(function.save_state())

    pokes = [poke_ports(channel, 8), poke_ports(channel.control, 1), poke_ports(function, 16)]
    return [*pokes, command, command, command, start_dma, start_dma, reset, snapshot]


def ahci_steps(rng: random.Random) -> list[Step]:
    """An ICH9 with random drives on its first ports."""
    memory = FakeGuestMemory()
    drives = [make_drive(rng, serial_ata=True) for _ in range(2)]
    function = Ich9Ahci(drives, memory, RecordingMsiSink(), InlineExecutor())

    def start(rng: random.Random) -> None:
        base = 0x100 + 0x80 * rng.randrange(2)
        for register, value in ((0, 0x1000), (8, 0x2000), (0x30, 0xFFFF_FFFF), (0x18, 0x10), (0x18, 0x11)):
            function.mmio_write(base + register, 4, value)
        function.mmio_write(4, 4, 0x8000_0002)

    def issue(rng: random.Random) -> None:
        """A command that is nearly right."""
        slot, base = rng.randrange(32), 0x100 + 0x80 * rng.randrange(2)
        table = 0x4000 + 0x1000 * (slot & 7)
        regions = rng.choice((0, 1, 3, 0xFFFF))
        flags = rng.choice((5, 0x45, 0x25, 0x505, rng.getrandbits(16)))
        memory.write(0x1000 + 32 * slot, struct.pack("<IIQ", flags | regions << 16, 0, table))
        small = [rng.choice((0, 0, 1, 8, rng.randrange(256))) for _ in range(18)]
        kind, control = rng.choice(((0x27, 0x80), (0x27, 0x80), (0x27, 0), (rng.randrange(256), 0x80)))
        memory.write(table, bytes((kind, control, rng.choice(ATA_COMMANDS), *small[3:])))
        memory.write(table + 0x40, draw_packet(rng))
        scribble_regions(rng, memory, table + 0x80, 16)
        if rng.random() < 0.3:
            function.mmio_write(base + 0x34, 4, 1 << slot)
        function.mmio_write(base + 0x38, 4, 1 << slot)

    def reset(rng: random.Random) -> None:
        function.mmio_write(4, 4, 1)
        if rng.random() < 0.2:
            function.reset()

    def snapshot(rng: random.Random) -> None:
        function.load_state(function.save_state())

    def offset(rng: random.Random) -> int:
        return rng.choice((rng.randrange(0x30), 0x100 + rng.randrange(0x100), rng.randrange(0xFF8)))

    return [poke_mmio(function, offset), start, start, issue, issue, issue, reset, snapshot]


def floppy_steps(rng: random.Random) -> list[Step]:
    """A floppy controller, its DMA channel, and a disk of some size."""
    dma = IsaDma(FakeGuestMemory())
    image = RamDisk(rng.choice((512, 368640, 1474560)), readonly=rng.random() < 0.2)
    drives = [FloppyDrive(image), FloppyDrive(None) if rng.random() < 0.5 else None]
    controller = FloppyController(drives, RecordingIrqLine(), dma.channel(2), InlineExecutor())

    def command(rng: random.Random) -> None:
        code = rng.choice((0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x0A, 0x0D, 0x0E, 0x0F, 0x13, 0x16))
        code |= rng.choice((0, 0x40, 0xC0, 0xE0)) if code in (2, 5, 6, 10, 13, 22) else 0
        for value in (code, *(rng.choice((0, 1, 2, 18, rng.randrange(256))) for _ in range(8))):
            controller.pio_write(5, 1, value)
        for _ in range(rng.choice((0, 7, 600))):
            controller.pio_read(5, 1)

    def program_dma(rng: random.Random) -> None:
        for port, value in ((12, 0), (4, 0), (4, 0x10), (5, 0xFF), (5, rng.randrange(64))):
            dma.first.pio_write(port, 1, value)
        dma.first.pio_write(11, 1, rng.choice((0x46, 0x4A, 0x56, 0x42, 0x66)))
        dma.first.pio_write(10, 1, 2)

    def enable(rng: random.Random) -> None:
        for value in (0, 0x1C):
            controller.pio_write(2, 1, value)
        controller.direction.pio_write(0, 1, rng.choice((0, 2)))

    def snapshot(rng: random.Random) -> None:
        controller.load_state(controller.save_state())
        dma.load_state(dma.save_state())
        if rng.random() < 0.1:
            controller.reset()

    pokes = [poke_ports(controller, 6), poke_ports(controller.direction, 1), poke_ports(dma.first, 16)]
    pokes += [poke_ports(dma.second, 32), poke_ports(dma.pages, 16)]
    return [*pokes, command, command, command, program_dma, program_dma, enable, snapshot]


def event_timer_steps() -> list[Step]:
    """An HPET, whose thread comes when it wants to, late or never."""
    clock = FakeClock()
    legacy = LegacyLines(RecordingIrqLine(), RecordingIrqLine())
    hpet = Hpet(clock, {20: RecordingIrqLine(), 21: RecordingIrqLine()}, legacy)

    def set_up(rng: random.Random) -> None:
        timer = FIRST_TIMER + TIMER_SIZE * rng.randrange(3)
        hpet.mmio_write(0x10, 8, rng.choice((0, 1, 1, 3)))
        hpet.mmio_write(timer, 8, rng.randrange(0x200) | rng.choice((20, 21, 2)) << 9)
        near = hpet.mmio_read(0xF0, 8) + rng.randrange(-1000, 1000)
        hpet.mmio_write(timer + 8, 8, rng.choice((near, draw(rng, 8))) & (1 << 64) - 1)

    def let_time_pass(rng: random.Random) -> None:
        clock.advance(rng.choice((0, 1e-6, 1e-3, 1, 3600)))
        wake = hpet.service()
        assert wake is None or wake > clock.now_ns(), "the thread would not sleep"

    def snapshot(rng: random.Random) -> None:
        hpet.load_state(hpet.save_state())
        if rng.random() < 0.1:
            hpet.reset()

    poke = poke_mmio(hpet, lambda rng: rng.choice((rng.randrange(0x180), rng.randrange(HPET_SIZE - 8))))
    return [poke, poke, set_up, set_up, let_time_pass, let_time_pass, snapshot]


def legacy_steps(rng: random.Random) -> list[Step]:
    """A transitional virtio device, by its legacy ports."""
    driver = LegacyVirtioDriver(make_virtio(rng))

    def restart(rng: random.Random) -> None:
        driver.start_legacy(driver_ok=rng.random() < 0.7)

    def access(rng: random.Random) -> None:
        offset, size = (
            rng.choice((0, 4, 8, 12, 14, 16, 18, 19, 20, 22, rng.randrange(64))),
            rng.choice((1, 2, 4)),
        )
        driver.input(offset, size)
        driver.output(offset, size, rng.choice((draw(rng, size), rng.randrange(8), 0x10 + rng.randrange(8))))

    def ask(rng: random.Random) -> None:
        """A request of random shape at a queue that was set up."""
        if driver.queues:
            index = rng.randrange(len(driver.queues))
            spots = [(0x80000 + rng.randrange(0x1000), rng.choice((1, 16, 512))) for _ in range(4)]
            cut = rng.randrange(5)
            driver.queues[index].add(spots[:cut], spots[cut:])
            driver.notify(index)

    return [restart, access, access, access, ask]


def user_steps(rng: random.Random) -> list[Step]:
    """What a user sees and touches."""
    return screen_steps() if rng.random() < 0.7 else input_steps()


def drive_steps(rng: random.Random) -> list[Step]:
    """What disks, CDs and floppies hang on."""
    return rng.choice((ide_steps, ahci_steps))(rng) if rng.random() < 0.8 else floppy_steps(rng)


def run_round(seed: int) -> None:
    """One machine, ``STEPS_A_ROUND`` random steps."""
    rng = random.Random(seed)
    kind = rng.random()
    makers = (
        (0.1, lambda _: event_timer_steps()),
        (0.2, lambda _: platform_steps()),
        (0.3, user_steps),
        (0.6, drive_steps),
        (0.7, legacy_steps),
        (1.0, virtio_steps),
    )
    steps = next(make(rng) for limit, make in makers if kind < limit)
    for _ in range(STEPS_A_ROUND):
        rng.choice(steps)(rng)


def main() -> int:
    """Fuzz until the time is up; 1 on a failure, after printing how to repeat it."""
    logging.disable()  # a device says once why the host failed it; there are thousands of devices
    seconds = float(os.environ.get("SUBLET_FUZZ_SECONDS", "20"))
    given = os.environ.get("SUBLET_FUZZ_SEED")
    seed = int(given) if given else random.SystemRandom().getrandbits(32)
    print(f"fuzz_device_registers: seed {seed}, {seconds:g} s", flush=True)
    deadline = time.monotonic() + seconds
    rounds = 0
    while rounds == 0 or time.monotonic() < deadline:
        try:
            run_round(seed + rounds)
        except Exception:
            traceback.print_exc()
            print(f"repeat with SUBLET_FUZZ_SEED={seed + rounds} SUBLET_FUZZ_SECONDS=0")
            return 1
        rounds += 1
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > MEMORY_LIMIT_KIB:
            print(f"more than {MEMORY_LIMIT_KIB} KiB resident after seed {seed + rounds}")
            return 1
    print(f"fuzz_device_registers: {rounds} rounds of {STEPS_A_ROUND} steps, nothing found")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Random guests against every device: register accesses, rings full of rubbish, resets, snapshots.

A guest may do anything; a device may do anything but raise, hang or grow. Runs for SUBLET_FUZZ_SECONDS
(20) with the seed in SUBLET_FUZZ_SEED (random); prints the seed and how to run it again.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import sys
import time
import traceback
from collections.abc import Callable

from sublet.devices.legacy import I8042, KEYS, Serial
from sublet.devices.pci import PciConfigPorts, PciEcam
from sublet.devices.platform import AcpiPm, Gpe0, PvPanic, ResetRegister
from sublet.devices.vga import TEXT_RAM_SIZE, WINDOW_SIZE, Vga, render, text_screen
from sublet.devices.virtio import VirtioDevice
from sublet.devices.virtio.block import VirtioBlock
from sublet.devices.virtio.console import VirtioConsole
from sublet.devices.virtio.net import VirtioNet
from sublet.devices.virtio.rng import VirtioRng
from sublet.net import NullSink
from sublet.testing import FakeClock, FakeDeviceRam, InlineExecutor, RamDisk, RecordingIrqLine, VirtioDriver

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


def user_steps(rng: random.Random) -> list[Step]:
    """What a user sees and touches."""
    return screen_steps() if rng.random() < 0.7 else input_steps()


def run_round(seed: int) -> None:
    """One machine, ``STEPS_A_ROUND`` random steps."""
    rng = random.Random(seed)
    kind = rng.random()
    steps = platform_steps() if kind < 0.2 else user_steps(rng) if kind < 0.3 else virtio_steps(rng)
    for _ in range(STEPS_A_ROUND):
        rng.choice(steps)(rng)


def main() -> int:
    """Fuzz until the time is up; 1 on a failure, after printing how to repeat it."""
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

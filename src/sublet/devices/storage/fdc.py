"""The floppy disk controller of the PC/AT: an 82077AA with two drives.

Deviation: heads move and disks turn at once; SCAN commands are unknown; sectors have 512 bytes alone.

Reference: Intel 82077AA (290166-007) §2 "Microprocessor interface", §4 "Controller phases", §5 "Commands".
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Final

from sublet.block import BlockDevice
from sublet.devices.legacy.dma import DmaChannel
from sublet.devices.storage import fdc_request as fr
from sublet.devices.storage.fdc_request import FdcRequest
from sublet.devices.storage.floppy import FloppyDrive
from sublet.devices.storage.medium import SECTOR
from sublet.devices.storage.serial_queue import SerialQueue
from sublet.hw import Executor, IrqLine

FIRST_PORT: Final = 0x3F0
PORT_COUNT: Final = 6
DIR_PORT: Final = 0x3F7
IRQ: Final = 6
DMA_CHANNEL: Final = 2
DRIVES: Final = 2

_SRA, _SRB, _DOR, _TDR, _MSR, _FIFO = range(6)
DOR_NOT_RESET, DOR_DMA = 0x04, 0x08
MSR_READY, MSR_TO_HOST, MSR_NON_DMA, MSR_BUSY = 0x80, 0x40, 0x20, 0x10
DSR_RESET: Final = 0x80
_VERSION: Final = 0x90
_LOCKED_DEFAULTS: Final = 0x20
"""CONFIGURE's second byte after a reset: FIFO off, polling on."""
_NOTHING, _COMMAND, _EXECUTION, _RESULT = "idle", "command", "execution", "result"

_DATA_COMMANDS: Final = {
    0x02: fr.READ,
    0x05: fr.WRITE,
    0x06: fr.READ,
    0x09: fr.WRITE,
    0x0C: fr.READ,
    0x16: fr.VERIFY,
}
"""READ TRACK, WRITE, READ, WRITE DELETED, READ DELETED, VERIFY; bits 5 to 7 are MT, MFM and SK."""
_LENGTHS: Final = dict.fromkeys(_DATA_COMMANDS, 9) | {0x0A: 2, 0x0D: 6}
"""Bytes of the commands that have flags, by their low five bits."""
_PLAIN_LENGTHS: Final = {
    0x03: 3,
    0x04: 2,
    0x07: 2,
    0x08: 1,
    0x0E: 1,
    0x0F: 3,
    0x10: 1,
    0x12: 2,
    0x13: 4,
    0x14: 1,
    0x94: 1,
    0x8F: 3,
    0xCF: 3,
}
_CHANGE_LIMIT_S = 10.0


class FloppyController:
    """Ports 3F0h to 3F5h; `direction` is port 3F7h.

    ``_lock`` guards it; host work runs on a worker without it. A reset makes what is under way an old
    ``_generation``, and its outcome is dropped.

    Bad input, by design: an unknown command's result is 80h; a transfer that cannot begin ends with the
    status of a real disk that lacks the sector; the data port out of turn reads as zero and takes nothing.

    Args:
        drives: Drive A and B; None where there is none.
        irq: IRQ 6 (edge).
        dma: Channel 2.
        executor: Where host work runs.
    """

    def __init__(
        self, drives: Sequence[FloppyDrive | None], irq: IrqLine, dma: DmaChannel, executor: Executor
    ) -> None:
        self.drives = tuple([*drives, None, None][:DRIVES])
        self._irq = irq
        self._dma = dma
        self._work = SerialQueue(executor)
        self._lock = threading.RLock()
        self.direction = DirectionPort(self)
        self._generation = 0
        self._dor = DOR_NOT_RESET | DOR_DMA
        self._rate = 2
        self._tape = 0
        self._commands = self._make_commands()
        self._locked = False
        self._soft_reset(interrupt=False)

    def _soft_reset(self, *, interrupt: bool) -> None:
        self._generation += 1
        self._phase = _NOTHING
        self._input = bytearray()
        self._output = bytearray()
        self._position = 0
        self._request: FdcRequest | None = None
        self._pending: list[int] = (
            [fr.ABNORMAL | fr.INVALID | drive for drive in range(4)] if interrupt else []
        )
        self._specify = bytes(2)
        self._perpendicular = 0
        if not self._locked:
            self._configure = bytes((_LOCKED_DEFAULTS, 0))
        self._set_irq(interrupt)

    def _set_irq(self, level: bool) -> None:
        self._interrupting = level
        self._irq.set_level(level and bool(self._dor & DOR_DMA))

    @property
    def _selected(self) -> FloppyDrive | None:
        return self._drive(self._dor & 3)

    def _drive(self, number: int) -> FloppyDrive | None:
        return self.drives[number] if number < DRIVES else None

    # Ports

    def pio_read(self, offset: int, size: int) -> int:
        """A port; wider reads get one byte."""
        with self._lock:
            if offset == _DOR:
                return self._dor
            if offset == _TDR:
                return self._tape
            if offset == _MSR:
                return self._main_status()
            if offset == _FIFO:
                return self._read_data()
            return (0x80 if self._interrupting else 0) if offset == _SRA else 0xC0 if offset == _SRB else 0

    def pio_write(self, offset: int, size: int, value: int) -> None:
        """A port; wider writes give it one byte."""
        with self._lock:
            value &= 0xFF
            if offset == _DOR:
                self._write_dor(value)
            elif offset == _TDR:
                self._tape = value & 3
            elif offset == _MSR:
                self._rate = value & 3
                if value & DSR_RESET:
                    self._soft_reset(interrupt=True)
            elif offset == _FIFO:
                self._write_data(value)

    def _write_dor(self, value: int) -> None:
        before, self._dor = self._dor, value
        if before & ~value & DOR_NOT_RESET:
            self._soft_reset(interrupt=False)
        elif value & ~before & DOR_NOT_RESET:
            self._soft_reset(interrupt=True)
        else:
            self._set_irq(self._interrupting)

    def read_direction(self) -> int:
        """Bit 7: the disk was changed, or there is none; only the selected drive with its motor on tells."""
        with self._lock:
            drive, motor = self._selected, self._dor >> 4 >> (self._dor & 3) & 1
            changed = drive is not None and (drive.changed or drive.medium is None)
            return 0x80 if motor and changed else 0

    def write_rate(self, value: int) -> None:
        """Configuration control: the data rate."""
        with self._lock:
            self._rate = value & 3

    def _main_status(self) -> int:
        if not self._dor & DOR_NOT_RESET:
            return 0
        if self._phase == _NOTHING:
            return MSR_READY
        if self._phase == _COMMAND:
            return MSR_READY | MSR_BUSY
        if self._phase == _RESULT:
            return MSR_READY | MSR_TO_HOST | MSR_BUSY
        return self._execution_status()

    def _execution_status(self) -> int:
        request, status = self._request, MSR_BUSY
        if request is None or not self._uses_pio:
            return status
        status |= MSR_NON_DMA
        if request.kind == fr.READ and self._output:
            return status | MSR_READY | MSR_TO_HOST
        return status | (MSR_READY if request.kind in (fr.WRITE, fr.FORMAT) and not self._output else 0)

    @property
    def _uses_pio(self) -> bool:
        """SPECIFY's last bit."""
        return bool(self._specify[1] & 1)

    # Data port

    def _write_data(self, value: int) -> None:
        if not self._dor & DOR_NOT_RESET:
            return
        if self._phase == _EXECUTION and self._main_status() & (MSR_READY | MSR_TO_HOST) == MSR_READY:
            self._take_byte(value)
        elif self._phase in (_NOTHING, _COMMAND):
            self._input.append(value)
            self._phase = _COMMAND
            if len(self._input) >= self._length(self._input[0]):
                command, self._input = bytes(self._input), bytearray()
                self._execute(command)

    def _length(self, code: int) -> int:
        return _PLAIN_LENGTHS.get(code) or _LENGTHS.get(code & 0x1F, 1)

    def _read_data(self) -> int:
        ready = MSR_READY | MSR_TO_HOST
        if self._main_status() & ready != ready:
            return 0
        value = self._output[self._position]
        self._position += 1
        if self._phase == _RESULT:
            self._set_irq(False)
        if self._position >= len(self._output):
            self._output, self._position = bytearray(), 0
            if self._phase == _RESULT:
                self._phase = _NOTHING
            elif self._request is not None:
                self._request.done += 1
                self._next_sector_for_host(self._request)
        return value

    def _answer(self, result: bytes, *, interrupt: bool = False) -> None:
        """Begin the result phase; a command without a result is over."""
        self._request = None
        self._output, self._position = bytearray(result), 0
        self._phase = _RESULT if result else _NOTHING
        if interrupt:
            self._set_irq(True)

    # Commands

    def _make_commands(self) -> dict[int, Callable[[bytes], None]]:
        return {
            0x03: self._run_specify,
            0x04: self._sense_drive,
            0x07: self._recalibrate,
            0x08: self._sense_interrupt,
            0x0E: self._dump_registers,
            0x0F: self._seek,
            0x10: self._version,
            0x12: self._set_perpendicular,
            0x13: self._run_configure,
            0x14: self._lock_settings,
            0x94: self._lock_settings,
            0x8F: self._relative_seek,
            0xCF: self._relative_seek,
        }

    def _execute(self, command: bytes) -> None:
        code = command[0]
        handler = self._commands.get(code)
        if handler is not None:
            handler(command)
        elif code & 0x1F in _DATA_COMMANDS:
            self._transfer(command)
        elif code & 0x1F == 0x0A:
            self._read_id(command)
        elif code & 0x1F == 0x0D:
            self._format(command)
        else:
            self._answer(bytes((fr.INVALID,)))

    def _run_specify(self, command: bytes) -> None:
        self._specify = command[1:3]
        self._answer(b"")

    def _run_configure(self, command: bytes) -> None:
        self._configure = command[2:4]
        self._answer(b"")

    def _set_perpendicular(self, command: bytes) -> None:
        self._perpendicular = command[1]
        self._answer(b"")

    def _lock_settings(self, command: bytes) -> None:
        self._locked = bool(command[0] & 0x80)
        self._answer(bytes((0x10 if self._locked else 0,)))

    def _version(self, command: bytes) -> None:
        self._answer(bytes((_VERSION,)))

    def _dump_registers(self, command: bytes) -> None:
        cylinders = [drive.cylinder if drive else 0 for drive in (*self.drives, None, None)]
        lock = 0x80 if self._locked else 0
        self._answer(
            bytes(cylinders) + self._specify + bytes((0, lock | self._perpendicular & 0x3F)) + self._configure
        )

    def _sense_drive(self, command: bytes) -> None:
        drive = self._drive(command[1] & 3)
        status = 0x28 | command[1] & 7
        if drive is not None:
            status |= (0x10 if not drive.cylinder else 0) | (0x40 if drive.write_protected else 0)
        self._answer(bytes((status,)))

    def _sense_interrupt(self, command: bytes) -> None:
        if not self._pending:
            self._answer(bytes((fr.INVALID,)))
            return
        status = self._pending.pop(0)
        self._set_irq(False)
        drive = self._drive(status & 3)
        self._answer(bytes((status, drive.cylinder if drive else 0)))

    def _recalibrate(self, command: bytes) -> None:
        self._step(command[1] & 3, 0)

    def _seek(self, command: bytes) -> None:
        self._step(command[1] & 3, command[2], command[1] & 4)

    def _relative_seek(self, command: bytes) -> None:
        drive = self._drive(command[1] & 3)
        distance = command[2] if command[0] & 0x40 else -command[2]
        self._step(command[1] & 3, max(0, (drive.cylinder if drive else 0) + distance), command[1] & 4)

    def _step(self, number: int, cylinder: int, head: int = 0) -> None:
        drive = self._drive(number)
        status = fr.SEEK_END | head | number
        if drive is not None:
            drive.step_to(cylinder)
        else:
            status |= fr.ABNORMAL | fr.EQUIPMENT_CHECK  # no drive ever signals track 0
        self._pending = [status]
        self._answer(b"", interrupt=True)

    def _read_id(self, command: bytes) -> None:
        number, head = command[1] & 3, command[1] >> 2 & 1
        drive = self._drive(number)
        if drive is None or drive.layout is None or self._rate not in drive.layout.rates:
            found = None
        else:
            found = drive.place(head, 1)
        status = (number | head << 2, 0) if found is not None else (fr.ABNORMAL | number | head << 2, 1)
        cylinder = drive.cylinder if drive else 0
        self._answer(bytes((*status, 0, cylinder, head, 1, fr.SIZE_512)), interrupt=True)

    # Transfers

    def _transfer(self, command: bytes) -> None:
        code, _, cylinder, head, sector, size_code, last = command[:7]
        kind = _DATA_COMMANDS[code & 0x1F]
        request = FdcRequest(
            kind,
            drive=command[1] & 3,
            physical_head=command[1] >> 2 & 1,
            cylinder=cylinder,
            head=head,
            sector=1 if code & 0x1F == 0x02 else sector,
            size_code=size_code,
            last=last,
            multi_track=bool(code & 0x80),
        )
        drive = self._drive(request.drive)
        if drive is not None and self._configure[0] & 0x40:  # implied seek
            drive.step_to(cylinder)
        self._begin(request)

    def _format(self, command: bytes) -> None:
        drive = self._drive(command[1] & 3)
        self._begin(
            FdcRequest(
                fr.FORMAT,
                drive=command[1] & 3,
                physical_head=command[1] >> 2 & 1,
                cylinder=drive.cylinder if drive else 0,
                head=command[1] >> 2 & 1,
                sector=1,
                size_code=command[2],
                last=command[3],
                multi_track=False,
                fill=command[5],
            )
        )

    def _begin(self, request: FdcRequest) -> None:
        drive = self._drive(request.drive)
        if drive is None:
            request.status1 |= fr.MISSING_MARK
        if drive is None or not request.check(drive, self._rate):
            self._answer(request.result(terminated=True), interrupt=True)
            return
        self._request = request
        self._phase = _EXECUTION
        self._output, self._position = bytearray(), 0
        if request.kind == fr.VERIFY:
            self._in_background(lambda: self._verify(request, drive), lambda: self._end(request, True))
        elif self._uses_pio:
            self._begin_pio(request)
        else:
            self._begin_dma(request, drive)

    def _verify(self, request: FdcRequest, drive: FloppyDrive) -> None:
        sectors = len(request.run())
        request.done = len(request.read(drive, sectors)) // SECTOR

    def _end(self, request: FdcRequest, terminated: bool) -> None:
        self._answer(request.result(terminated=terminated), interrupt=True)

    def change(self, number: int, image: BlockDevice | None) -> None:
        """Put another disk into a drive, or take it out with None, after what is under way.

        Returns once that is done, unless the host keeps the disk busy for longer than `_CHANGE_LIMIT_S`. Any
        thread but the worker's.

        Precondition: there is such a drive, and its kind takes an image of that size.
        """
        drive = self.drives[number]
        if drive is None:
            raise ValueError(f"there is no floppy drive {number}")

        def job() -> None:
            with self._lock:
                drive.insert(image)
            done.set()

        done = threading.Event()
        self._work.submit(job)
        done.wait(_CHANGE_LIMIT_S)

    def _in_background(self, work: Callable[[], None], then: Callable[[], None]) -> None:
        generation = self._generation

        def job() -> None:
            if generation != self._generation:
                return
            work()
            with self._lock:
                if generation == self._generation:
                    then()

        self._work.submit(job)

    def _begin_dma(self, request: FdcRequest, drive: FloppyDrive) -> None:
        """Move what both the channel and the track have, at most."""
        left = self._dma.left
        reach = 4 * request.last if request.kind == fr.FORMAT else len(request.run()) * SECTOR
        size = min(left, reach)
        if not size:
            request.status1 |= fr.OVERRUN
            self._end(request, True)
            return
        if request.kind == fr.READ:
            self._read_by_dma(request, drive, size, terminated=left <= reach)
            return
        data = self._dma.from_memory(size)
        write = request.format if request.kind == fr.FORMAT else request.write
        ended = left <= reach or request.kind == fr.FORMAT
        self._in_background(lambda: write(drive, data), lambda: self._end(request, ended))

    def _read_by_dma(self, request: FdcRequest, drive: FloppyDrive, size: int, *, terminated: bool) -> None:
        data: list[bytes] = []

        def move() -> None:
            self._dma.to_memory(data[0][:size])
            request.done = -(-min(size, len(data[0])) // SECTOR)
            self._end(request, terminated)

        self._in_background(lambda: data.append(request.read(drive, -(-size // SECTOR))), move)

    # Programmed I/O: a byte at a time, until the end of the cylinder

    def _begin_pio(self, request: FdcRequest) -> None:
        if request.kind == fr.READ:
            self._next_sector_for_host(request)
        else:
            self._set_irq(True)

    def _next_sector_for_host(self, request: FdcRequest) -> None:
        drive = self._drive(request.drive)
        if drive is None or request.done >= len(request.run()):
            self._end(request, False)
            return
        data: list[bytes] = []

        def present() -> None:
            self._output, self._position = bytearray(data[0]), 0
            if not self._output:
                self._end(request, False)
            else:
                self._set_irq(True)

        self._in_background(lambda: data.append(request.read(drive, 1)), present)

    def _take_byte(self, value: int) -> None:
        request = self._request
        drive = None if request is None else self._drive(request.drive)
        if request is None or drive is None:
            return
        self._input.append(value)
        wanted = 4 * request.last if request.kind == fr.FORMAT else SECTOR
        if len(self._input) < wanted:
            return
        data, self._input = bytes(self._input), bytearray()
        self._output = bytearray(b"\0")  # not ready until the sector is written
        write = request.format if request.kind == fr.FORMAT else request.write

        def go_on() -> None:
            self._output = bytearray()
            if request.status1 or request.kind == fr.FORMAT or request.done >= len(request.run()):
                self._end(request, request.kind == fr.FORMAT)
            else:
                self._set_irq(True)

        self._in_background(lambda: write(drive, data), go_on)

    # Lifecycle

    def reset(self) -> None:
        """Power-on state, after the host work in flight."""
        with self._lock:
            self._generation += 1
        self._work.drain()
        with self._lock:
            self._dor, self._rate, self._tape, self._locked = DOR_NOT_RESET | DOR_DMA, 2, 0, False
            for drive in self.drives:
                if drive is not None:
                    drive.reset()
            self._soft_reset(interrupt=False)

    def save_state(self) -> dict[str, Any]:
        """Registers, phase, and the transfer under way; the machine is paused."""
        self._work.drain()
        with self._lock:
            return {name: getattr(self, f"_{name}") for name in _SAVED} | {
                "input": bytes(self._input),
                "output": bytes(self._output),
                "pending": list(self._pending),
                "request": None if self._request is None else asdict(self._request),
                "drives": [drive and drive.save_state() for drive in self.drives],
            }

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``save_state``."""
        with self._lock:
            self._generation += 1
        self._work.drain()
        with self._lock:
            for name in _SAVED:
                setattr(self, f"_{name}", state[name])
            self._input, self._output = bytearray(state["input"]), bytearray(state["output"])
            self._pending = list(state["pending"])
            self._request = None if state["request"] is None else FdcRequest(**state["request"])
            for drive, saved in zip(self.drives, state["drives"], strict=True):
                if drive is not None:
                    drive.load_state(saved)
            self._set_irq(self._interrupting)

    def close(self) -> None:
        """Flush and close the disks."""
        for drive in self.drives:
            if drive is not None:
                drive.close()


_SAVED: Final = (
    "dor",
    "rate",
    "tape",
    "locked",
    "phase",
    "position",
    "specify",
    "perpendicular",
    "configure",
    "interrupting",
)


class DirectionPort:
    """Port 3F7h: the change line to read, the data rate to write."""

    def __init__(self, controller: FloppyController) -> None:
        self._controller = controller

    def pio_read(self, offset: int, size: int) -> int:
        """Digital input register."""
        return self._controller.read_direction()

    def pio_write(self, offset: int, size: int, value: int) -> None:
        """Configuration control register."""
        self._controller.write_rate(value)

"""One IDE channel: the ports of two drives, programmed I/O, and DMA through a bus master.

Reference: ATA/ATAPI-7 volume 2 §8 "Parallel interface transport protocol", §11 "Protocols".
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from sublet.devices.storage.bus_master import (
    STATUS_ERROR,
    STATUS_INTERRUPT,
    BusMaster,
    RegionTable,
    move_by_table,
)
from sublet.devices.storage.serial_queue import SerialQueue
from sublet.devices.storage.taskfile import (
    ABRT,
    BSY,
    DATA,
    DEVICE,
    DEVICE_SECOND,
    DRDY,
    DRQ,
    DSC,
    ERR,
    READY,
    REASON_COMMAND,
    REASON_TO_HOST,
    STATUS,
    AtaError,
    Direction,
    Drive,
    Registers,
    TaskFile,
    Transfer,
)
from sublet.errors import GuestError
from sublet.hw import Executor, GuestMemory, IrqLine, ReadAhead

COMMAND_PORTS = 8
CONTROL_PORTS = 1
READ_AHEAD = 1 << 16
"""Bytes that programmed I/O takes from the medium at once."""

CONTROL_NIEN, CONTROL_SRST, CONTROL_HOB = 0x02, 0x04, 0x80
CMD_DEVICE_RESET, CMD_DIAGNOSTIC = 0x08, 0x90


class IdeChannel:
    """Two drives on one cable. ``pio_read`` and ``pio_write`` are the command block's eight ports.

    ``_lock`` guards everything but the drives' media; it is never held over a drive's host work. A
    command in flight that a reset cuts off is known by its old ``_generation``, and is forgotten.

    Args:
        drives: Device 0 and device 1; None where there is none.
        irq: The channel's interrupt, ISA IRQ 14 or 15 (edge).
        memory: For DMA.
        executor: Where host work runs.
        data_port: Lets the guest read a block without this object; None: it takes part in every read.
    """

    def __init__(
        self,
        drives: Sequence[Drive | None],
        irq: IrqLine,
        memory: GuestMemory,
        executor: Executor,
        data_port: ReadAhead | None = None,
    ) -> None:
        self._drives = [None if drive is None else Registers(drive) for drive in drives]
        self._irq = irq
        self._memory = memory
        self._work = SerialQueue(executor)
        self._lock = threading.RLock()
        self.bus_master = BusMaster()
        self.control = ControlBlock(self)
        self._data_port = data_port
        self._offered = False
        self._buffer = bytearray()
        self._generation = 0
        self._interrupting = False
        self._power_on()

    def _power_on(self) -> None:
        self._selected = 0
        self._device_control = 0
        self._idle()
        self._sign()

    def _idle(self) -> None:
        """No command under way."""
        self._catch_up()
        self._generation += 1
        self._transfer: Transfer | None = None
        self._buffer = bytearray()
        self._position = 0
        self._ahead = b""
        self._waits_for_dma = False

    def _sign(self) -> None:
        for registers in self._drives:
            if registers is not None:
                registers.signature()

    # Ports

    def pio_read(self, offset: int, size: int) -> int:
        """A port of the command block; a wide access other than to the data port is split into bytes."""
        with self._lock:
            if offset == DATA:
                return self._read_data(size)
            return sum(self._read_register(offset + i) << 8 * i for i in range(size) if offset + i < 8)

    def pio_write(self, offset: int, size: int, value: int) -> None:
        """A port of the command block."""
        with self._lock:
            if offset == DATA:
                self._write_data(value.to_bytes(size, "little"))
                return
            for i in range(size):
                if offset + i < COMMAND_PORTS:
                    self._write_register(offset + i, value >> 8 * i & 0xFF)

    def _read_register(self, offset: int) -> int:
        if offset == STATUS:
            self._drive_irq(False)
            return self.status()
        registers = self._drives[self._selected >> 4]
        if registers is None:  # device 0 answers for device 1, with zeroes; nobody drives an empty cable
            return 0xA0 | self._selected if offset == DEVICE and any(self._drives) else 0
        if offset == DEVICE:
            return 0xA0 | registers.taskfile.device & 0x4F | self._selected
        taskfile = registers.taskfile
        return taskfile.shown(offset, older=bool(self._device_control & CONTROL_HOB))

    def status(self) -> int:
        """The selected drive's status; reading it here acknowledges nothing."""
        with self._lock:
            registers = self._drives[self._selected >> 4]
            return 0 if registers is None else registers.taskfile.status

    def _write_register(self, offset: int, value: int) -> None:
        if offset == STATUS:
            self._write_command(value)
        elif not self.status() & (BSY | DRQ):
            self._device_control &= ~CONTROL_HOB
            if offset == DEVICE:
                self._selected = value & DEVICE_SECOND
            for registers in self._drives:
                if registers is not None:
                    registers.taskfile.shift_in(offset, value)

    def write_control(self, value: int) -> None:
        """The device control port: interrupt gate, software reset, which byte of a 16-bit register."""
        with self._lock:
            before, self._device_control = self._device_control, value
            if value & ~before & CONTROL_SRST:
                self._begin_reset()
            elif before & ~value & CONTROL_SRST:
                self._sign()
            self._irq.set_level(self._interrupting and not value & CONTROL_NIEN)

    def _begin_reset(self) -> None:
        self._idle()
        self._drive_irq(False)
        self._selected = 0
        for registers in self._drives:
            if registers is not None:
                registers.drive.reset()
                registers.taskfile.status = BSY

    def _drive_irq(self, level: bool) -> None:
        if level:
            self.bus_master.status |= STATUS_INTERRUPT
        self._interrupting = level
        self._irq.set_level(level and not self._device_control & CONTROL_NIEN)

    # Commands

    def _write_command(self, command: int) -> None:
        registers = self._drives[self._selected >> 4]
        if registers is None:
            return
        if command == CMD_DEVICE_RESET:
            self._device_reset(registers)
            return
        if registers.taskfile.status & (BSY | DRQ):
            return
        self._drive_irq(False)
        if command == CMD_DIAGNOSTIC:
            self._diagnose()
            return
        registers.taskfile.command = command
        self._start(registers, lambda: registers.drive.start(replace(registers.taskfile)))

    def _device_reset(self, registers: Registers) -> None:
        """DEVICE RESET is a packet device's; a disk aborts it (ATA/ATAPI-7 volume 1 §6.11)."""
        if registers.drive.signature.status & DRDY:
            if not registers.taskfile.status & (BSY | DRQ):
                self._fail(registers, AtaError(ABRT))
            return
        self._idle()
        registers.drive.reset()
        registers.signature()

    def _diagnose(self) -> None:
        self._selected = 0
        self._sign()
        self._drive_irq(True)

    def _start(self, registers: Registers, begin: Callable[[], Transfer]) -> None:
        """Begin a command or the data phase of a packet."""
        try:
            transfer = begin()
        except AtaError as error:
            self._fail(registers, error)
            return
        self._transfer = transfer
        registers.taskfile.error = 0
        if transfer.direction is Direction.NONE:
            self._complete(registers, transfer, interrupt=True)
        elif transfer.dma:
            self._waits_for_dma = True
            registers.taskfile.status = READY | DRQ
            if self.bus_master.started:
                self._run_dma(registers, transfer)
        elif transfer.direction is Direction.TO_HOST:
            self._fetch_block(registers, transfer)
        else:
            self._ask_for_block(registers, transfer, interrupt=transfer.packet)

    def _complete(self, registers: Registers, transfer: Transfer, *, interrupt: bool) -> None:
        """All bytes have moved: let the drive carry the command out."""

        def finish() -> None:
            registers.drive.finish(transfer)

        def end() -> None:
            self._end(registers, transfer.taskfile, interrupt)

        if transfer.blocks_host:
            registers.taskfile.status = BSY
            self._in_background(registers, finish, end)
            return
        try:
            finish()
        except AtaError as error:
            self._fail(registers, error)
        else:
            end()

    def _end(self, registers: Registers, taskfile: TaskFile, interrupt: bool) -> None:
        packet = self._transfer is not None and (self._transfer.packet or self._transfer.wants_packet)
        self._idle()
        taskfile.status = READY if registers.drive.signature.status & DRDY else DRDY
        taskfile.error = 0
        if packet:
            taskfile.count = REASON_COMMAND | REASON_TO_HOST
        registers.taskfile = taskfile
        if interrupt:
            self._drive_irq(True)

    def _fail(self, registers: Registers, error: AtaError) -> None:
        packet = not registers.drive.signature.status & DRDY
        self._idle()
        if error.shows_signature:
            registers.signature()
        taskfile = registers.taskfile
        taskfile.error = error.error
        taskfile.status = DRDY | ERR | (0 if packet else DSC)
        if packet and not error.shows_signature:
            taskfile.count = REASON_COMMAND | REASON_TO_HOST
        if error.lba is not None:
            taskfile.put_lba(error.lba)
        self._drive_irq(True)

    def _in_background(
        self, registers: Registers, work: Callable[[], None], then: Callable[[], None]
    ) -> None:
        """Do a drive's host work on a worker, then go on under the lock, unless a reset came between."""
        generation = self._generation

        def job() -> None:
            if generation != self._generation:
                return
            failure = _outcome(work)
            with self._lock:
                if generation != self._generation:
                    return
                if failure is None:
                    then()
                elif isinstance(failure, AtaError):
                    self._fail(registers, failure)
                else:  # the regions are not in RAM
                    self.bus_master.status |= STATUS_ERROR
                    self.bus_master.stop()
                    self._fail(registers, AtaError(ABRT))

        self._work.submit(job)

    # Programmed I/O

    def _fetch_block(self, registers: Registers, transfer: Transfer) -> None:
        """Get the next block for the host; the medium is read ahead of the host."""
        size = min(transfer.block, transfer.left)

        def fetch() -> None:
            wanted = max(size, min(READ_AHEAD, transfer.left))
            self._ahead = registers.drive.read(transfer, transfer.done, wanted)

        def present() -> None:
            self._buffer[:] = self._ahead[:size]
            self._ahead = self._ahead[size:]
            self._offer()
            self._request_data(registers, transfer, REASON_TO_HOST, size, interrupt=True)

        if len(self._ahead) >= size:
            present()
        elif transfer.data is not None:
            fetch()
            present()
        else:
            registers.taskfile.status = BSY
            self._in_background(registers, fetch, present)

    def _offer(self) -> None:
        """Let the guest read the block without an exit for each of its words."""
        if self._data_port is not None:
            self._data_port.offer(bytes(self._buffer))
            self._offered = True

    def _catch_up(self) -> None:
        """Learn how much of the block the guest has read by itself."""
        if self._offered and self._data_port is not None:
            self._offered = False
            self._position = len(self._buffer) - self._data_port.take_back()

    def _ask_for_block(self, registers: Registers, transfer: Transfer, *, interrupt: bool) -> None:
        """Have the host send the next block."""
        self._buffer.clear()
        reason = REASON_COMMAND if transfer.wants_packet else 0
        size = min(transfer.block, transfer.left)
        self._request_data(registers, transfer, reason, size, interrupt=interrupt)

    def _request_data(
        self, registers: Registers, transfer: Transfer, reason: int, size: int, *, interrupt: bool
    ) -> None:
        taskfile = registers.taskfile
        self._position = 0
        taskfile.status = READY | DRQ
        if transfer.packet or transfer.wants_packet:
            taskfile.status = DRDY | DRQ
            taskfile.count = reason
        if transfer.packet:
            taskfile.lba = taskfile.lba & 0xFF | size << 8
        if interrupt:
            self._drive_irq(True)

    def _read_data(self, size: int) -> int:
        """The data port; without a block waiting it reads as zero."""
        transfer = self._transfer
        registers = self._drives[self._selected >> 4]
        if transfer is None or registers is None or not self._moving(registers, Direction.TO_HOST):
            return 0
        self._catch_up()
        start, self._position = self._position, self._position + size
        value = int.from_bytes(self._buffer[start : start + size], "little")
        if self._position >= len(self._buffer):
            transfer.done += len(self._buffer)
            if transfer.left:
                self._fetch_block(registers, transfer)
            else:
                self._complete(registers, transfer, interrupt=transfer.packet)
        return value

    def _moving(self, registers: Registers, direction: Direction) -> bool:
        transfer = self._transfer
        ready = transfer is not None and transfer.direction is direction and not transfer.dma
        return ready and bool(registers.taskfile.status & DRQ)

    def _write_data(self, data: bytes) -> None:
        transfer = self._transfer
        registers = self._drives[self._selected >> 4]
        if transfer is None or registers is None or not self._moving(registers, Direction.TO_DEVICE):
            return
        size = min(transfer.block, transfer.left)
        self._buffer += data
        if len(self._buffer) >= size:
            self._take_block(registers, transfer, bytes(self._buffer[:size]))

    def _take_block(self, registers: Registers, transfer: Transfer, block: bytes) -> None:
        """A block from the host is whole."""
        registers.taskfile.status = BSY
        if transfer.wants_packet:
            self._start(registers, lambda: registers.drive.packet(transfer, block))
            return

        def store() -> None:
            registers.drive.write(transfer, transfer.done, block)

        def go_on() -> None:
            transfer.done += len(block)
            if transfer.left:
                self._ask_for_block(registers, transfer, interrupt=True)
            else:
                self._complete(registers, transfer, interrupt=True)

        if transfer.data is not None:
            store()
            go_on()
        else:
            self._in_background(registers, store, go_on)

    # Bus master

    def read_bus_master(self, offset: int, size: int) -> int:
        """The bus master's registers, from offset 0."""
        with self._lock:
            return sum(self.bus_master.read(offset + i) << 8 * i for i in range(size))

    def write_bus_master(self, offset: int, size: int, value: int) -> None:
        """The bus master's registers; the start bit sets a waiting transfer going."""
        with self._lock:
            started = [self.bus_master.write(offset + i, value >> 8 * i & 0xFF) for i in range(size)]
            registers = self._drives[self._selected >> 4]
            if any(started) and self._waits_for_dma and self._transfer is not None and registers is not None:
                self._run_dma(registers, self._transfer)

    def _run_dma(self, registers: Registers, transfer: Transfer) -> None:
        self._waits_for_dma = False
        table = RegionTable(self._memory, self.bus_master.table)
        generation = self._generation

        def go_on() -> bool:
            return self._generation == generation and self.bus_master.started

        def end() -> None:
            if transfer.left:  # the table was too short, or the host stopped it: it may go on with another
                self._waits_for_dma = True
                self.bus_master.stop()
                return
            if table.used_up:
                self.bus_master.stop()
            self._complete(registers, transfer, interrupt=True)

        self._in_background(
            registers, lambda: move_by_table(registers.drive, transfer, table, self._memory, go_on), end
        )

    # Lifecycle

    def reset(self) -> None:
        """Power-on state, after the host work in flight."""
        with self._lock:
            self._idle()
        self._work.drain()
        with self._lock:
            for registers in self._drives:
                if registers is not None:
                    registers.drive.reset()
            self._power_on()
            self._drive_irq(False)
            self.bus_master.reset()

    def save_state(self) -> dict[str, Any]:
        """Registers, the command under way and its buffer; the machine is paused."""
        self._work.drain()
        with self._lock:
            self._catch_up()
            return {
                "drives": [registers and registers.save_state() for registers in self._drives],
                "selected": self._selected,
                "control": self._device_control,
                "interrupting": self._interrupting,
                "transfer": None if self._transfer is None else self._transfer.save_state(),
                "buffer": bytes(self._buffer),
                "position": self._position,
                "waits_for_dma": self._waits_for_dma,
                "bus_master": self.bus_master.save_state(),
            }

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``save_state``."""
        self._work.drain()
        with self._lock:
            self._idle()
            for registers, saved in zip(self._drives, state["drives"], strict=True):
                if registers is not None:
                    registers.load_state(saved)
            self._selected, self._device_control = state["selected"], state["control"]
            transfer = state["transfer"]
            self._transfer = None if transfer is None else Transfer.from_state(transfer)
            self._buffer = bytearray(state["buffer"])
            self._position = state["position"]
            self._waits_for_dma = state["waits_for_dma"]
            self.bus_master.load_state(state["bus_master"])
            self._interrupting = state["interrupting"]
            self._irq.set_level(self._interrupting and not self._device_control & CONTROL_NIEN)

    def close(self) -> None:
        """Flush and close the media."""
        for registers in self._drives:
            if registers is not None:
                registers.drive.close()


class ControlBlock:
    """The control block's one port: alternate status, and device control."""

    def __init__(self, channel: IdeChannel) -> None:
        self._channel = channel

    def pio_read(self, offset: int, size: int) -> int:
        """The status, without acknowledging the interrupt."""
        return self._channel.status()

    def pio_write(self, offset: int, size: int, value: int) -> None:
        """Device control."""
        self._channel.write_control(value & 0xFF)


def _outcome(work: Callable[[], None]) -> GuestError | None:
    try:
        work()
    except GuestError as error:
        return error
    return None

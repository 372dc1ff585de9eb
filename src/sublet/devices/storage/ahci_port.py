"""One port of an AHCI controller: registers, and the commands of its list.

Reference: AHCI 1.3.1 §3.3 "Port registers", §5.3 "HBA port state machine", §6.2 "Error recovery".
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sublet.devices.storage import fis
from sublet.devices.storage.ata import READ_FPDMA, WRITE_FPDMA
from sublet.devices.storage.bus_master import move_by_table
from sublet.devices.storage.serial_queue import SerialQueue
from sublet.devices.storage.taskfile import (
    ABRT,
    BSY,
    DRDY,
    DRQ,
    DSC,
    ERR,
    READY,
    AtaError,
    Direction,
    Drive,
    Registers,
    TaskFile,
    Transfer,
)
from sublet.errors import GuestError
from sublet.hw import Executor, GuestMemory

PORT_SIZE = 0x80
SLOTS = 32

CLB, CLBU, FB, FBU, IS, IE, CMD = 0x00, 0x04, 0x08, 0x0C, 0x10, 0x14, 0x18
TFD, SIG, SSTS, SCTL, SERR, SACT, CI = 0x20, 0x24, 0x28, 0x2C, 0x30, 0x34, 0x38

CMD_ST, CMD_CLO, CMD_FRE, CMD_FR, CMD_CR = 1 << 0, 1 << 3, 1 << 4, 1 << 14, 1 << 15
_CMD_WRITABLE = CMD_ST | 1 << 1 | 1 << 2 | CMD_FRE | 1 << 24
IS_D2H, IS_PIO_SETUP, IS_SET_BITS, IS_CONNECT = 1 << 0, 1 << 1, 1 << 3, 1 << 6
IS_OVERFLOW, IS_HOST_BUS, IS_TASK_FILE = 1 << 24, 1 << 29, 1 << 30
_IE_WRITABLE = 0x7DC0_007F
_IS_CLEARABLE = 0x7D80_00AF
_SSTS_PRESENT = 0x0123
"""Device there, 3 Gb/s, active."""
_SCTL_RESET, _SCTL_OFF = 1, 4
_SERR_EXCHANGED = 1 << 26
_TFD_NO_DEVICE = 0x7F
_SIG_NO_DEVICE = 0xFFFF_FFFF
_QUEUED = (READ_FPDMA, WRITE_FPDMA)


class AhciPort:
    """A port with a drive, or without.

    ``_lock`` guards the registers; it is never held over a drive's work. Commands run on a worker in the
    order in which the guest gave them. Each belongs to a ``_generation``: stopping the port or resetting
    the link ends it, and what is then still under way stops without a trace; CR stays set until it has.
    After a failed command the port does nothing until it is stopped (§6.2.2.1).

    Args:
        drive: What hangs on the link.
        memory: For command lists, received frames and data.
        executor: Where commands run.
        notify: Called when a bit of the interrupt status comes or goes; no lock of the caller's is held
            but this port's.
    """

    def __init__(
        self, drive: Drive | None, memory: GuestMemory, executor: Executor, notify: Callable[[], None]
    ) -> None:
        self._registers = None if drive is None else Registers(drive)
        self._memory = memory
        self._work = SerialQueue(executor)
        self._notify = notify
        self._lock = threading.RLock()
        self._generation = 0
        self._under_way = 0
        self._power_on()

    def _power_on(self) -> None:
        self._command_list = 0
        self._received = 0
        self._status = 0
        self._enable = 0
        self._command = 0
        self._control = 0
        self._serror = 0
        self._stop()
        self._sign()

    def _stop(self) -> None:
        self._generation += 1
        self._active = 0
        self._issued = 0
        self._queued = 0
        self._halted = False

    def _sign(self) -> None:
        """The device has just come up."""
        if self._registers is not None:
            self._registers.signature()
            self._serror |= _SERR_EXCHANGED

    # Registers

    @property
    def interrupting(self) -> bool:
        """Whether the port wants attention."""
        return bool(self._status & self._enable)

    def read(self, offset: int) -> int:
        """A 32-bit register."""
        with self._lock:
            return self._read(offset) & 0xFFFF_FFFF

    def _read(self, offset: int) -> int:
        simple = {
            CLB: self._command_list,
            CLBU: self._command_list >> 32,
            FB: self._received,
            FBU: self._received >> 32,
            IS: self._status,
            IE: self._enable,
            SCTL: self._control,
            SERR: self._serror,
            SACT: self._active,
            CI: self._issued,
        }
        if offset in simple:
            return simple[offset]
        if offset == CMD:
            return self._read_command()
        return self._read_device(offset)

    def _read_command(self) -> int:
        running = CMD_CR if self._command & CMD_ST or self._under_way else 0
        receiving = CMD_FR if self._command & CMD_FRE else 0
        return self._command | running | receiving

    def _read_device(self, offset: int) -> int:
        registers = self._registers
        if offset == SSTS:
            off = self._control & 15 == _SCTL_OFF
            return _SCTL_OFF if off else _SSTS_PRESENT if registers is not None else 0
        if offset == TFD:
            taskfile = None if registers is None else registers.taskfile
            return _TFD_NO_DEVICE if taskfile is None else taskfile.status | taskfile.error << 8
        if offset == SIG:
            if registers is None:
                return _SIG_NO_DEVICE
            signature = registers.drive.signature
            return signature.count & 0xFF | signature.lba << 8
        return 0

    def write(self, offset: int, value: int) -> None:
        """A 32-bit register."""
        with self._lock:
            self._write(offset, value)

    def _write(self, offset: int, value: int) -> None:
        if offset == CLB:
            self._command_list = self._command_list & ~0xFFFF_FFFF | value & ~0x3FF
        elif offset == CLBU:
            self._command_list = self._command_list & 0xFFFF_FFFF | value << 32
        elif offset == FB:
            self._received = self._received & ~0xFFFF_FFFF | value & ~0xFF
        elif offset == FBU:
            self._received = self._received & 0xFFFF_FFFF | value << 32
        elif offset == IS:
            self._status &= ~(value & _IS_CLEARABLE)
            self._notify()
        elif offset == IE:
            self._enable = value & _IE_WRITABLE
            self._notify()
        else:
            self._write_control(offset, value)

    def _write_control(self, offset: int, value: int) -> None:
        if offset == CMD:
            self._write_command(value)
        elif offset == SCTL:
            self._write_link(value)
        elif offset == SERR:
            self._serror &= ~value
            if not self._serror & _SERR_EXCHANGED:
                self._status &= ~IS_CONNECT
                self._notify()
        elif offset == SACT and self._command & CMD_ST:
            self._active |= value
        elif offset == CI and self._command & CMD_ST:
            self._issue(value)

    def _write_command(self, value: int) -> None:
        before = self._command
        self._command = value & _CMD_WRITABLE
        if before & ~value & CMD_ST:
            self._stop()
        if value & CMD_CLO and self._registers is not None:
            self._registers.taskfile.status &= ~(BSY | DRQ)
        if value & ~before & CMD_FRE and self._registers is not None:
            self._post(fis.RECEIVED_D2H, fis.device_to_host(self._registers.taskfile, interrupt=False))

    def _write_link(self, value: int) -> None:
        """COMRESET while DET is 1; the device comes up when it goes back to 0 (§10.4.2 "Port reset")."""
        before, self._control = self._control & 15, value & 0xFFF
        registers = self._registers
        if registers is None:
            return
        if value & 15 == _SCTL_RESET:
            self._stop()
            registers.drive.reset()
            registers.taskfile = TaskFile(status=_TFD_NO_DEVICE | BSY)
        elif before == _SCTL_RESET and not value & 15:
            self._sign()
            self._receive(fis.RECEIVED_D2H, fis.device_to_host(registers.taskfile, interrupt=False), 0)
            self._raise(IS_CONNECT)

    def _raise(self, bits: int) -> None:
        self._status |= bits
        self._notify()

    def _post(self, place: int, frame: bytes) -> bool:
        """Write a received frame, where the guest takes them; False when there is no RAM."""
        if self._command & CMD_FRE:
            try:
                self._memory.write(self._received + place, frame)
            except GuestError:
                return False
        return True

    def _receive(self, place: int, frame: bytes, bits: int) -> None:
        """A frame has come, which raises ``bits``."""
        self._raise(bits if self._post(place, frame) else IS_HOST_BUS)

    # Commands

    def _issue(self, slots: int) -> None:
        fresh = slots & ~self._issued
        self._issued |= fresh
        for slot in range(SLOTS):
            if fresh >> slot & 1:
                self._submit(slot)

    def _submit(self, slot: int) -> None:
        generation = self._generation
        self._under_way += 1

        def job() -> None:
            try:
                self._run(slot, generation)
            finally:
                with self._lock:
                    self._under_way -= 1

        self._work.submit(job)

    def _is_live(self, generation: int) -> bool:
        return generation == self._generation and not self._halted

    def _run(self, slot: int, generation: int) -> None:
        """One command from its slot to its end. Worker."""
        registers = self._registers
        if registers is None or not self._is_live(generation):
            return
        try:
            with self._lock:
                header = fis.CommandHeader.fetch(self._memory, self._command_list, slot)
                frame = header.frame(self._memory)
            if frame[0] != fis.HOST_TO_DEVICE:
                raise GuestError(f"a frame of type {frame[0]:#x} for a device")
            if not frame[1] & fis.IS_COMMAND:
                self._software_reset(registers, header, frame[15], slot)
                return
            self._execute(registers, header, fis.parse_command(frame), slot, generation)
        except GuestError:
            with self._lock:
                if self._is_live(generation):
                    self._halted = True
                    self._raise(IS_HOST_BUS)

    def _software_reset(
        self, registers: Registers, header: fis.CommandHeader, control: int, slot: int
    ) -> None:
        """Two frames: SRST set, then cleared (§10.4.1 "Software reset")."""
        with self._lock:
            self._issued &= ~(1 << slot)
            if control & fis.CONTROL_SRST:
                registers.drive.reset()
                if not header.clears_busy:
                    registers.taskfile.status |= BSY
                return
            registers.signature()
            self._receive(fis.RECEIVED_D2H, fis.device_to_host(registers.taskfile, interrupt=False), 0)

    def _execute(
        self,
        registers: Registers,
        header: fis.CommandHeader,
        taskfile: TaskFile,
        slot: int,
        generation: int,
    ) -> None:
        queued = taskfile.command in _QUEUED
        with self._lock:
            registers.taskfile.status = READY if queued else BSY
        try:
            transfer = self._carry_out(registers.drive, header, replace(taskfile), generation)
        except AtaError as error:
            with self._lock:
                if self._is_live(generation):
                    self._fail(registers, taskfile, error, queued)
            return
        with self._lock:
            if self._is_live(generation):
                self._finish(registers, transfer, slot, queued)

    def _carry_out(
        self, drive: Drive, header: fis.CommandHeader, taskfile: TaskFile, generation: int
    ) -> Transfer:
        transfer = drive.start(taskfile)
        if transfer.wants_packet:
            transfer = drive.packet(transfer, header.packet(self._memory)[: transfer.size])
        if transfer.direction is not Direction.NONE:
            regions = fis.CommandRegions(self._memory, header)
            move_by_table(drive, transfer, regions, self._memory, lambda: self._is_live(generation))
            header.report(self._memory, transfer.done)
        if self._is_live(generation):
            drive.finish(transfer)
        return transfer

    def _finish(self, registers: Registers, transfer: Transfer, slot: int, queued: bool) -> None:
        taskfile = transfer.taskfile
        taskfile.status, taskfile.error = (DRDY if transfer.packet else READY), 0
        if transfer.packet:
            taskfile.count = 3
        registers.taskfile = taskfile
        bit = 1 << slot
        self._issued &= ~bit
        if transfer.left:
            self._status |= IS_OVERFLOW
        if queued:
            self._active &= ~bit
            self._receive(fis.RECEIVED_SET_BITS, fis.set_device_bits(taskfile.status, 0, bit), IS_SET_BITS)
            return
        self._report(taskfile, transfer)

    def _report(self, taskfile: TaskFile, transfer: Transfer) -> None:
        """The frames at a command's end: a disk's PIO data for the host ends with their set-up frame."""
        to_host = transfer.direction is Direction.TO_HOST
        programmed = transfer.direction is not Direction.NONE and not transfer.dma and not transfer.packet
        if programmed:
            setup = fis.pio_setup(taskfile, before=READY | DRQ, size=transfer.block, to_host=to_host)
            self._receive(fis.RECEIVED_PIO_SETUP, setup, IS_PIO_SETUP if to_host else 0)
        if not (programmed and to_host):
            frame = fis.device_to_host(taskfile, interrupt=True)
            self._receive(fis.RECEIVED_D2H, frame, IS_D2H)

    def _fail(self, registers: Registers, taskfile: TaskFile, error: AtaError, queued: bool) -> None:
        if error.shows_signature:
            registers.signature()
            taskfile = registers.taskfile
        taskfile.status = DRDY | ERR | (DSC if registers.drive.signature.status & DRDY else 0)
        taskfile.error = error.error or ABRT
        if error.lba is not None:
            taskfile.put_lba(error.lba)
        registers.taskfile = taskfile
        self._halted = True
        if queued:
            registers.drive.note_queue_error(taskfile.count >> 3, taskfile)
            frame, place = fis.set_device_bits(taskfile.status, taskfile.error, 0), fis.RECEIVED_SET_BITS
            self._receive(place, frame, IS_SET_BITS | IS_TASK_FILE)
        else:
            frame = fis.device_to_host(taskfile, interrupt=True)
            self._receive(fis.RECEIVED_D2H, frame, IS_D2H | IS_TASK_FILE)

    # Lifecycle

    def reset(self) -> None:
        """Power-on state, after the command in flight."""
        with self._lock:
            self._stop()
        self._work.drain()
        with self._lock:
            if self._registers is not None:
                self._registers.drive.reset()
            self._power_on()

    def save_state(self) -> dict[str, Any]:
        """The registers, once every command given is over; the machine is paused."""
        self._work.drain()
        with self._lock:
            state = {name: getattr(self, f"_{name}") for name in _SAVED}
            if self._registers is not None:
                state["device"] = self._registers.save_state()
            return state

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``save_state``."""
        with self._lock:
            self._stop()
        self._work.drain()
        with self._lock:
            for name in _SAVED:
                setattr(self, f"_{name}", state[name])
            if self._registers is not None:
                self._registers.load_state(state["device"])

    def close(self) -> None:
        """Flush and close the medium."""
        if self._registers is not None:
            self._registers.drive.close()


_SAVED = (
    "command_list",
    "received",
    "status",
    "enable",
    "command",
    "control",
    "serror",
    "active",
    "issued",
    "halted",
)

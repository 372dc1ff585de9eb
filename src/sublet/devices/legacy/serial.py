"""16550A serial port.

Transmission is instantaneous, reception is paced like a line: the transmitter is always empty when
the guest looks, and at most ``LINE_RATE`` bytes a second reach the receiver FIFO after a first burst,
because a driver that does no flow control loses what outruns its buffers.

Reference: National Semiconductor PC16550D (June 1995) §8 "Registers".
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from sublet.hw import Clock, IrqLine

COM1_PORT = 0x3F8
COM1_GSI = 4
SERIAL_PORT_COUNT = 8

FIFO_SIZE = 16
"""Bytes in the receiver FIFO."""
INPUT_LIMIT = 256 * 1024
"""Bytes kept for the guest before ``receive`` accepts no more."""
OUTPUT_BATCH = 4096
"""Bytes collected before the transmitting vCPU flushes them itself."""
LINE_RATE = 16 * 1024
"""Bytes a second towards the guest, sustained (a real line at 115200 baud carries 11.5 KiB/s)."""
LINE_BURST = 2048
"""Bytes that may arrive at once after the line was idle."""
SERVICE_PERIOD_S = 0.002
"""How long output may wait in the batch, and how often input is topped up."""

IER_RX, IER_TX, IER_LINE, IER_MODEM = 1, 2, 4, 8
IIR_NONE, IIR_MODEM, IIR_TX, IIR_RX, IIR_LINE, IIR_TIMEOUT = 0x01, 0x00, 0x02, 0x04, 0x06, 0x0C
IIR_FIFOS = 0xC0
FCR_ENABLE, FCR_CLEAR_RX, FCR_CLEAR_TX = 1, 2, 4
LCR_DLAB = 0x80
MCR_DTR, MCR_RTS, MCR_OUT1, MCR_OUT2, MCR_LOOP = 1, 2, 4, 8, 0x10
LSR_DR, LSR_OE, LSR_THRE, LSR_TEMT = 1, 2, 0x20, 0x40
LSR_IDLE = LSR_THRE | LSR_TEMT
MSR_CTS, MSR_DSR, MSR_RI, MSR_DCD = 0x10, 0x20, 0x40, 0x80
MSR_CONNECTED = MSR_CTS | MSR_DSR | MSR_DCD
TRIGGER_LEVELS = (1, 4, 8, 14)


class Serial:
    """One 16550A port of eight registers.

    Any thread may call any method. ``_lock`` guards the registers and both buffers; ``_output_lock``
    keeps batches in order while they are written, and is taken before ``_lock``.

    Args:
        irq: The port's line (GSI 4 for COM1), driven as the chip's INTR pin gated by OUT2.
        write: Receives what the guest transmits; may block, which holds the guest back.
        clock: Paces reception.
    """

    def __init__(self, irq: IrqLine, write: Callable[[bytes], None], clock: Clock) -> None:
        self._irq = irq
        self._write = write
        self._clock = clock
        self._lock = threading.Lock()
        self._output_lock = threading.Lock()
        self._output = bytearray()
        self._input = bytearray()
        self._rx_fifo = bytearray()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._irq_level = False
        self._set_power_on_values()

    def _set_power_on_values(self) -> None:
        self._ier = 0
        self._fcr = 0
        self._lcr = 0
        self._mcr = 0
        self._overrun = 0
        self._msr_delta = 0
        self._scratch = 0
        self._divisor = 12
        self._tx_pending = False
        self._rts_used = False
        self._line_credit = LINE_BURST
        self._credit_time_ns = self._clock.now_ns()
        self._rx_fifo.clear()

    # Guest side

    def pio_read(self, offset: int, size: int) -> int:
        """Read a register; wider accesses than a byte read as all ones."""
        if offset == 5:
            return self._read_lsr() if size == 1 else (1 << (8 * size)) - 1
        if size != 1 or not 0 <= offset < SERIAL_PORT_COUNT:
            return (1 << (8 * size)) - 1
        with self._lock:
            return _READERS[offset](self)

    def pio_write(self, offset: int, size: int, value: int) -> None:
        """Write a register; wider accesses write their lowest byte."""
        if not 0 <= offset < SERIAL_PORT_COUNT:
            return
        with self._lock:
            _WRITERS[offset](self, value & 0xFF)
        if len(self._output) >= OUTPUT_BATCH or (self._output and self._thread is None):
            self.flush()

    def _read_data(self) -> int:
        if self._lcr & LCR_DLAB:
            return self._divisor & 0xFF
        if not self._rx_fifo:
            return 0
        byte = self._rx_fifo.pop(0)
        if not self._rx_fifo:
            self._fill_fifo()
        self._update_irq()
        return byte

    def _write_data(self, value: int) -> None:
        if self._lcr & LCR_DLAB:
            self._divisor = self._divisor & 0xFF00 | value
            return
        if self._mcr & MCR_LOOP:
            self._push_fifo(value)
        else:
            self._transmit(value)
        if self._ier & IER_TX:
            # The pin falls while the holding register is full: an edge-triggered input needs to see it.
            self._tx_pending = False
            self._update_irq()
            self._tx_pending = True
        self._update_irq()

    def _transmit(self, value: int) -> None:
        if not self._output:
            self._wake.set()
        self._output.append(value)

    def _read_ier(self) -> int:
        return self._divisor >> 8 if self._lcr & LCR_DLAB else self._ier

    def _write_ier(self, value: int) -> None:
        if self._lcr & LCR_DLAB:
            self._divisor = self._divisor & 0xFF | value << 8
            return
        if value & IER_TX and not self._ier & IER_TX:
            self._tx_pending = True
        self._ier = value & 0x0F
        self._update_irq()

    def _read_iir(self) -> int:
        source = self._interrupt_source()
        if source == IIR_TX:
            self._tx_pending = False
            self._update_irq()
        return source | (IIR_FIFOS if self._fcr & FCR_ENABLE else 0)

    def _write_fcr(self, value: int) -> None:
        if (value ^ self._fcr) & FCR_ENABLE or value & FCR_CLEAR_RX:
            self._rx_fifo.clear()
        self._fcr = value & 0xC9 if value & FCR_ENABLE else 0
        if value & FCR_ENABLE and value & FCR_CLEAR_TX and self._ier & IER_TX:
            self._tx_pending = True
        self._fill_fifo()
        self._update_irq()

    def _read_lcr(self) -> int:
        return self._lcr

    def _write_lcr(self, value: int) -> None:
        self._lcr = value

    def _read_mcr(self) -> int:
        return self._mcr

    def _write_mcr(self, value: int) -> None:
        before = self._modem_inputs()
        self._mcr = value & 0x1F
        self._rts_used |= bool(value & MCR_RTS)
        self._note_modem_change(before, self._modem_inputs())
        self._fill_fifo()
        self._update_irq()

    def _read_lsr(self) -> int:
        if not self._overrun:
            return LSR_IDLE | LSR_DR if self._rx_fifo else LSR_IDLE
        with self._lock:
            value = LSR_IDLE | self._overrun | (LSR_DR if self._rx_fifo else 0)
            self._overrun = 0
            self._update_irq()
            return value

    def _read_msr(self) -> int:
        value = self._modem_inputs() | self._msr_delta
        self._msr_delta = 0
        self._update_irq()
        return value

    def _read_scratch(self) -> int:
        return self._scratch

    def _write_scratch(self, value: int) -> None:
        self._scratch = value

    def _ignore_write(self, value: int) -> None:
        """LSR and MSR are read-only to drivers (PC16550D §8.4: writing is for factory testing)."""

    def _modem_inputs(self) -> int:
        """MSR bits 7:4: a connected peer, or in loopback MCR's outputs wired back."""
        if not self._mcr & MCR_LOOP:
            return MSR_CONNECTED
        mcr = self._mcr
        return (
            (MSR_CTS if mcr & MCR_RTS else 0)
            | (MSR_DSR if mcr & MCR_DTR else 0)
            | (MSR_RI if mcr & MCR_OUT1 else 0)
            | (MSR_DCD if mcr & MCR_OUT2 else 0)
        )

    def _note_modem_change(self, before: int, after: int) -> None:
        delta = (before ^ after) >> 4
        if not before & MSR_RI or after & MSR_RI:
            delta &= ~4  # TERI records only the trailing edge of RI
        self._msr_delta |= delta

    def _push_fifo(self, value: int) -> None:
        """A byte from loopback; a full receiver records an overrun (PC16550D §8.4 bit 1)."""
        if len(self._rx_fifo) < self._fifo_capacity():
            self._rx_fifo.append(value)
            return
        self._overrun = LSR_OE
        if not self._fcr & FCR_ENABLE:
            self._rx_fifo[-1] = value

    def _fifo_capacity(self) -> int:
        return FIFO_SIZE if self._fcr & FCR_ENABLE else 1

    def _fill_fifo(self) -> None:
        """Move waiting input into an empty receiver, as far as the line rate and RTS allow."""
        if not self._input or self._rx_fifo or self._mcr & MCR_LOOP or self._held_by_rts():
            return
        count = min(self._fifo_capacity(), self._line_credit)
        self._rx_fifo += self._input[:count]
        del self._input[:count]
        self._line_credit -= len(self._rx_fifo)

    def _held_by_rts(self) -> bool:
        """Whether a driver that has used RTS dropped it to be left alone; closing drops DTR too."""
        return self._rts_used and self._mcr & (MCR_RTS | MCR_DTR) == MCR_DTR

    def _interrupt_source(self) -> int:
        """The highest pending enabled source as IIR bits 3:0 (PC16550D table 4)."""
        ier = self._ier
        if self._overrun and ier & IER_LINE:
            return IIR_LINE
        if self._rx_fifo and ier & IER_RX:
            trigger = TRIGGER_LEVELS[self._fcr >> 6] if self._fcr & FCR_ENABLE else 1
            return IIR_RX if len(self._rx_fifo) >= trigger else IIR_TIMEOUT
        if self._tx_pending and ier & IER_TX:
            return IIR_TX
        return IIR_MODEM if self._msr_delta and ier & IER_MODEM else IIR_NONE

    def _update_irq(self) -> None:
        # Deviation: in loopback the chip forces OUT2 inactive, which gates the PC's INTR buffer;
        # drivers that test interrupts in loopback rely on boards that pass it, as QEMU's does.
        level = self._interrupt_source() != IIR_NONE
        if level != self._irq_level:
            self._irq_level = level
            self._irq.set_level(level)

    # Host side

    def receive(self, data: bytes) -> int:
        """Type ``data`` to the guest.

        Returns:
            How many bytes were accepted, 0 to ``len(data)``; offer the rest again later.
        """
        with self._lock:
            accepted = data[: max(INPUT_LIMIT - len(self._input), 0)]
            self._input += accepted
            self._earn_credit()
            self._fill_fifo()
            self._update_irq()
        self._wake.set()
        return len(accepted)

    def service(self) -> bool:
        """Flush output and top up the receiver.

        Returns:
            Whether input still waits, so that another call is due within ``SERVICE_PERIOD_S``.
        """
        self.flush()
        with self._lock:
            self._earn_credit()
            self._fill_fifo()
            self._update_irq()
            return bool(self._input)

    def _earn_credit(self) -> None:
        now_ns = self._clock.now_ns()
        earned = (now_ns - self._credit_time_ns) * LINE_RATE // 1_000_000_000
        if earned > 0:
            self._credit_time_ns = now_ns
            self._line_credit = min(LINE_BURST, self._line_credit + earned)

    def flush(self) -> None:
        """Write out what the guest has transmitted so far."""
        if not self._output:
            return
        with self._output_lock:
            with self._lock:
                batch = bytes(self._output)
                self._output.clear()
            if batch:
                self._write(batch)

    def start(self) -> None:
        """Batch output and pace input on a thread; without it ``service`` is the caller's to call."""
        self._closing = False
        self._thread = threading.Thread(target=self._serve, name="serial", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        busy = False
        while not self._closing:
            if not busy:
                self._wake.wait()
            self._wake.clear()
            time.sleep(SERVICE_PERIOD_S)
            busy = self.service()

    def close(self) -> None:
        """Flush and end the thread. Idempotent."""
        self._closing = True
        self._wake.set()
        thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        self.flush()

    # Lifecycle

    def reset(self) -> None:
        """Power-on state. Input that the guest has not seen yet is kept: the user typed it."""
        with self._lock:
            self._set_power_on_values()
            self._update_irq()

    def save_state(self) -> dict[str, Any]:
        """Registers and both receive buffers; output is flushed first."""
        self.flush()
        with self._lock:
            state: dict[str, Any] = {name: getattr(self, "_" + name) for name in _STATE_FIELDS}
            return state | {"rx_fifo": bytes(self._rx_fifo), "input": bytes(self._input)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``save_state``."""
        with self._lock:
            for name in _STATE_FIELDS:
                setattr(self, "_" + name, state[name])
            self._rx_fifo = bytearray(state["rx_fifo"])
            self._input = bytearray(state["input"])
            self._update_irq()
        self._wake.set()


_STATE_FIELDS = (
    "ier",
    "fcr",
    "lcr",
    "mcr",
    "overrun",
    "msr_delta",
    "scratch",
    "divisor",
    "tx_pending",
    "rts_used",
)

_READERS: tuple[Callable[[Serial], int], ...] = (
    Serial._read_data,
    Serial._read_ier,
    Serial._read_iir,
    Serial._read_lcr,
    Serial._read_mcr,
    Serial._read_lsr,
    Serial._read_msr,
    Serial._read_scratch,
)

_WRITERS: tuple[Callable[[Serial, int], None], ...] = (
    Serial._write_data,
    Serial._write_ier,
    Serial._write_fcr,
    Serial._write_lcr,
    Serial._write_mcr,
    Serial._ignore_write,
    Serial._ignore_write,
    Serial._write_scratch,
)

"""Running one machine from the user's command to its end."""

from __future__ import annotations

import gc
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any, Final

from sublet.devices.platform.acpi_pm import STS_PWRBTN
from sublet.engine import Engine, open_engine
from sublet.errors import InternalError, SubletError, UsageError
from sublet.machine import memory_map as mm
from sublet.machine.boot import check_files
from sublet.machine.config import MachineConfig
from sublet.machine.console import Console, InputRoute
from sublet.machine.control import Control, Message, Request
from sublet.machine.nonvolatile import Nonvolatile
from sublet.machine.power_cycle import PowerCycle
from sublet.machine.presence import Attach, presence
from sublet.machine.profile import Place
from sublet.machine.sleep import sleep_until_woken
from sublet.machine.statistics import Totals

MAXIMUM_CPUS: Final = 64
"""The translator keeps a bit for each vCPU with a page of code."""

EXIT_CODES: Final = {
    Request.POWEROFF: 0,
    Request.RESET: 80,
    Request.TRIPLE_FAULT: 81,
    Request.PANIC: 82,
    Request.LEFT: 130,
}
"""Exit codes of ends that are no errors; docs/guide/exit-codes.md explains them."""
_REBOOTS: Final = (Request.RESET, Request.TRIPLE_FAULT, Request.WAKE)
POWER_BUTTON_LIMIT_S: Final = 10.0
"""How long a guest may take to power off after SIGTERM before its machine is stopped."""
WAKING_S: Final = 3.0
"""How long a guest that SIGTERM woke has until the power button is pressed again, which only woke it."""


@dataclass(frozen=True)
class MachineResult:
    """How a run ended."""

    exit_code: int
    reason: str
    """A clause for people: "the guest powered off"."""
    statistics: dict[str, int]
    profile: Mapping[Place, int] = field(default_factory=dict)
    """Samples by place; empty unless asked for."""


def run_machine(config: MachineConfig, console: Console) -> MachineResult:
    """Boot the machine and keep it until it powers off, panics, fails, or the user leaves.

    Call it on the main thread: SIGINT and SIGHUP leave at once. The first SIGTERM presses the power
    button; a second one, a reset, or `POWER_BUTTON_LIMIT_S` without a power-off, leaves. On another
    thread it works without signals.

    Raises:
        UsageError: The definition asks for something impossible.
        HostRefused: The host cannot provide the engine, the memory or a file.
        ImageError: The kernel or a disk is not what it should be.
        InternalError: The machine failed by a bug of ours.
    """
    engine = _open(config)
    totals = Totals()
    control = Control()
    route = InputRoute()
    with _signals(control), presence(config) as attach:
        try:
            request = _power_on_until_done(engine, config, console, control, route, totals, attach)
        finally:
            console.stop()
    _give_back_memory()
    return MachineResult(EXIT_CODES[request], request.value, totals.as_dict(), totals.profile.counts())


def _open(config: MachineConfig) -> Engine:
    """Check what can be checked without building anything, then open the engine."""
    mm.layout(config.memory_mib)
    mm.check_host_memory(config.memory_mib)
    if not 1 <= config.cpus <= MAXIMUM_CPUS:
        raise UsageError(f"{config.cpus} vCPUs: a machine has 1 to {MAXIMUM_CPUS}")
    if config.kernel is not None:
        check_files(config.kernel, config.initrd, config.modules)
    return open_engine(config.engine)


def _power_on_until_done(
    engine: Engine,
    config: MachineConfig,
    console: Console,
    control: Control,
    route: InputRoute,
    totals: Totals,
    attach: Attach,
) -> Request:
    """Boot again after each reset, if the machine is to; returns how it ended."""
    started, told = False, False
    nonvolatile = Nonvolatile(config)
    while True:
        cycle = PowerCycle(engine, config, console.write, control, nonvolatile)
        nonvolatile.wake_reason = None
        try:
            if not started:
                console.start(route.offer)
                started = True
            cycle.start()
            attach(cycle.board.operations)
            route.connect(cycle.board.receive)
            console.show(cycle.board.screen)
            request = _wait_for_end(cycle, control, told=told)
        finally:
            attach(None)
            route.connect(None)
            console.show(None)
            cycle.close(totals)
        if request is Request.SUSPEND:
            request = _sleep(control, route, nonvolatile)
            told = nonvolatile.wake_reason == STS_PWRBTN
        elif not config.reboot:
            return request
        if request not in _REBOOTS:
            return request
        totals.count("machine.wakes" if request is Request.WAKE else "machine.resets")
        # A disk may be elsewhere by now: under an overlay, or moved.
        config = _as_now(cycle, config)
        del cycle
        _give_back_memory()


def _give_back_memory() -> None:
    """Free a closed cycle's RAM and devices, whose callbacks refer to the cycle and back."""
    gc.collect()


def _as_now(cycle: PowerCycle, config: MachineConfig) -> MachineConfig:
    """What a reset finds: disks where they are by now, and the media that lie in the drives."""
    board = cycle.board
    cdroms, floppies = board.media.paths("cdrom"), board.media.paths("floppy")
    return replace(config, disks=board.drives.now(config.disks), cdroms=cdroms, floppies=floppies)


def _sleep(control: Control, route: InputRoute, nonvolatile: Nonvolatile) -> Request:
    """Wait in S3; a key wakes the machine too, and is lost."""

    def press(data: bytes) -> int:
        control.post(Request.WAKE)
        return len(data)

    route.connect(press)
    try:
        request, reason = sleep_until_woken(control, nonvolatile.content())
    finally:
        route.connect(None)
    if request is Request.WAKE:
        nonvolatile.wake_reason = reason
    return request


def _wait_for_end(cycle: PowerCycle, control: Control, *, told: bool) -> Request:
    """Serve requests until one ends the cycle, or the guest ignores the power button for too long.

    Args:
        told: SIGTERM woke the machine: the button is pressed again once its system is back.
    """
    pressed = False
    deadline = time.monotonic() + WAKING_S if told else None
    while True:
        message = control.wait(None if deadline is None else max(deadline - time.monotonic(), 0))
        if message is None and pressed:
            return Request.LEFT
        message = message or Message(Request.POWER_BUTTON)
        request = message.request
        if request is Request.FAILED:
            raise _failure(message)
        starts_again = request in (Request.RESET, Request.TRIPLE_FAULT, Request.SUSPEND)
        if (told and starts_again) or (pressed and request is Request.POWER_BUTTON):
            # Told to end, it starts again (firmware with nothing to boot does) or sleeps: it would not end.
            return Request.LEFT
        if request is Request.POWER_BUTTON:
            told = pressed = True
            deadline = time.monotonic() + POWER_BUTTON_LIMIT_S
            cycle.board.press_power_button()
        elif request is not Request.WAKE:
            return request


def _failure(message: Message) -> Exception:
    """The error to raise on the owner's thread for one that a vCPU's thread met."""
    error = message.error
    if isinstance(error, SubletError):
        return error
    failure = InternalError(f"{type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure


@contextmanager
def _signals(control: Control) -> Iterator[None]:
    """Turn signals into requests for the time of a run; does nothing off the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    requests = {
        signal.SIGINT: Request.LEFT,
        signal.SIGHUP: Request.LEFT,
        signal.SIGTERM: Request.POWER_BUTTON,
    }
    before: dict[signal.Signals, Any] = {}
    try:
        for number, request in requests.items():
            before[number] = signal.signal(number, _poster(control, request))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _poster(control: Control, request: Request) -> Callable[[int, FrameType | None], None]:
    return lambda number, frame: control.post(request)

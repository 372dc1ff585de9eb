"""One run of a machine from power-on to power-off or reset."""

from __future__ import annotations

import threading
from collections.abc import Callable

from sublet.engine import Engine, Vcpu
from sublet.machine import cpuid
from sublet.machine import memory_map as mm
from sublet.machine.board import Board
from sublet.machine.boards import make_board
from sublet.machine.boot import BootState
from sublet.machine.chassis import Chassis
from sublet.machine.config import MachineConfig
from sublet.machine.control import Control, Request
from sublet.machine.memory import SystemMemory
from sublet.machine.nonvolatile import Nonvolatile
from sublet.machine.presence import add_information
from sublet.machine.profile import SAMPLES_A_SECOND
from sublet.machine.reset_log import ResetLog
from sublet.machine.runloop import VcpuRunner
from sublet.machine.statistics import Totals


class PowerCycle:
    """A fresh VM with its RAM, devices and vCPUs, booted as `MachineConfig` says.

    A reset makes a new one: nothing of the old guest can stay behind. `close` gives back everything,
    also when the constructor's work was cut short (it cleans up after itself then).

    Args:
        engine: Where to make the VM.
        config: The machine.
        write: Where the console's output goes.
        control: Who is told, once, how this cycle ended.
        nonvolatile: What the cycle before left, and this one leaves.

    Raises:
        SubletError: A file, the memory or the host does not allow it.
    """

    def __init__(
        self,
        engine: Engine,
        config: MachineConfig,
        write: Callable[[bytes], None],
        control: Control,
        nonvolatile: Nonvolatile,
    ) -> None:
        self._control = control
        self._lock = threading.Lock()
        self._ended = False
        self._reset_log = ResetLog()
        self._runners: list[VcpuRunner] = []
        self._vm = engine.create_vm()
        self._board: Board | None = None
        try:
            self._build(engine, config, write, nonvolatile)
        except BaseException:
            self.close()
            raise

    def _build(
        self, engine: Engine, config: MachineConfig, write: Callable[[bytes], None], nonvolatile: Nonvolatile
    ) -> None:
        memory = SystemMemory(self._vm, mm.layout(config.memory_mib, config.machine), nonvolatile.ram)
        self._vm.create_irqchip()
        self._vm.add_platform_timers()
        self._board = make_board(Chassis(config, memory, self._vm, write, self.end, nonvolatile))
        boot = self._board.boot()
        add_information(self._board.operations, config, engine.name)
        supported = cpuid.limit_address_bits(engine.supported_cpuid(), self._board.address_bits)
        for index in range(config.cpus):
            vcpu = self._vm.create_vcpu(index)
            vcpu.set_cpuid(cpuid.for_vcpu(supported, index, config.cpus))
            if index == 0 and boot is not None:
                _enter(vcpu, boot)
            if config.profile:
                vcpu.start_profile(SAMPLES_A_SECOND)
            self._runners.append(VcpuRunner(vcpu, index, self._board.buses, self.end))

    @property
    def board(self) -> Board:
        """The devices."""
        assert self._board is not None, "built by the constructor"
        return self._board

    def start(self) -> None:
        """Power on."""
        self.board.start()
        for runner in self._runners:
            runner.start()

    def end(self, request: Request, error: Exception | None = None) -> None:
        """Stop every vCPU and tell the owner why; only the first call of a cycle counts. Any thread."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
        self._reset_log.note(request)
        self.stop()
        self._control.post(request, error)

    def stop(self) -> None:
        """Stop every vCPU; returns at once."""
        for runner in self._runners:
            runner.stop()

    def close(self, totals: Totals | None = None) -> None:
        """Stop, add up the counters, and give back threads, files and RAM."""
        self._ended = True
        self.stop()
        joined = [runner.join() for runner in self._runners]
        if self._board is not None:
            self._board.close()
        if not all(joined):
            return  # a vCPU hangs in a host call: its memory must stay, and the process is about to end
        for runner in self._runners:
            runner.show_state(self._reset_log)
        if totals is not None:
            for runner in self._runners:
                totals.add(runner.statistics())
                runner.add_profile(totals.profile)
            totals.add(self._vm.statistics())
        self._runners.clear()
        for slot, *_ in self._vm.memory.slots():
            self._vm.remove_memslot(slot)


def _enter(vcpu: Vcpu, boot: BootState) -> None:
    """Put the boot processor where the kernel expects it."""
    vcpu.set_sregs(**(vcpu.get_sregs() | boot.sregs))
    vcpu.set_regs(**dict.fromkeys(vcpu.get_regs(), 0) | boot.regs)
    vcpu.set_msrs(boot.msrs)

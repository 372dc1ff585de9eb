"""The threads of vCPUs."""

from __future__ import annotations

import signal
from typing import cast

from sublet.engine import Vcpu
from sublet.machine.bus import Buses
from sublet.machine.control import Request
from sublet.machine.runloop import VcpuRunner


class FailingVcpu:
    """Notes which signals its thread leaves to others, then fails."""

    blocked: frozenset[int] = frozenset()

    def complete_read(self, value: int) -> None:
        raise AssertionError

    def run(self) -> None:
        self.blocked = frozenset(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        raise OSError("enough")


def test_signals_to_the_process_are_left_to_the_main_thread() -> None:
    vcpu = FailingVcpu()
    ends: list[Request] = []
    runner = VcpuRunner(cast(Vcpu, vcpu), 0, Buses(), lambda request, error: ends.append(request))
    runner.start()
    assert runner.join()
    assert ends == [Request.FAILED]
    assert vcpu.blocked >= {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCONT}
    assert not vcpu.blocked & {signal.SIGSEGV, signal.SIGFPE, signal.SIGRTMIN + 7}

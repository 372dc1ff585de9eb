"""Being found by other commands while a machine runs: its name and its control socket."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from sublet.control import Call, ControlServer, Operations, claim
from sublet.errors import HostRefused
from sublet.machine.config import MachineConfig

Attach = Callable[[Operations | None], None]
"""Says what the machine does on request from now on."""


@contextmanager
def presence(config: MachineConfig) -> Iterator[Attach]:
    """Hold the machine's name and serve its control socket.

    A host without a place for sockets keeps no machine from running, unless the user gave a name.

    Raises:
        UsageError: The name is taken, or is none.
        HostRefused: The user gave a name, and the socket cannot be made.
    """
    with ExitStack() as held:
        try:
            machine = held.enter_context(
                claim(config.name or config.suggested_name, exact=config.name is not None)
            )
        except HostRefused:
            if config.name is not None:
                raise
            yield _nobody
            return
        server = ControlServer(machine.socket)
        held.callback(server.close)
        yield server.attach


def _nobody(operations: Operations | None) -> None:
    """There is no socket."""


def add_information(operations: Operations, config: MachineConfig, engine: str) -> None:
    """Let the machine say what it is."""

    def information(parameters: dict[str, Any], call: Call) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "engine": engine,
            "cpus": config.cpus,
            "memory_mib": config.memory_mib,
        }

    operations.add("machine.info", information)

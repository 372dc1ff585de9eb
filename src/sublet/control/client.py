"""Calling a running machine."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from sublet.control import wire
from sublet.control.directory import check_name, running
from sublet.errors import HostRefused, UsageError


def call(
    machine: str,
    operation: str,
    *,
    on_progress: Callable[[int, int], None] | None = None,
    **parameters: Any,
) -> Any:
    """Let the machine of that name do something, and wait for its result.

    Args:
        machine: Its name (`sublet ps`).
        operation: Such as ``screen.png``.
        on_progress: Called with how much is done, and of how much.
        parameters: What JSON can hold; paths are absolute, as the machine's process opens them.

    Raises:
        UsageError: No such machine, or it cannot do that.
        SubletError: What the operation raised.
        HostRefused: The machine ended before it answered.
    """
    with _connect(machine) as connection, connection.makefile("rb") as stream:
        try:
            connection.sendall(wire.encode({"operation": operation, "parameters": parameters}))
            while (answer := wire.read(stream)) is not None:
                if "error" in answer:
                    raise wire.revive(answer["error"])
                if "result" in answer:
                    return answer["result"]
                if on_progress is not None and "progress" in answer:
                    on_progress(*answer["progress"])
        except OSError as error:
            raise _ended(machine) from error
    raise _ended(machine)


def _connect(name: str) -> socket.socket:
    check_name(name)
    machines = running()
    found = next((machine for machine in machines if machine.name == name), None)
    if found is None:
        names = ", ".join(machine.name for machine in machines)
        raise UsageError(
            f"no machine named {name!r} is running", remedy=f"Running now: {names}." if names else ""
        )
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(str(found.socket))
    except OSError as error:
        connection.close()
        raise _ended(name) from error
    return connection


def _ended(name: str) -> HostRefused:
    return HostRefused(f"the machine {name!r} ended, or does not answer")

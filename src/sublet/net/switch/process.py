"""The switch's process: ``python -m sublet.net.switch.process SOCKET DESCRIPTOR``."""

from __future__ import annotations

import os
import select
import socket
import sys
import time
from pathlib import Path

from sublet.net.switch.rendezvous import guard
from sublet.net.switch.server import SwitchServer


class MonotonicClock:
    """`sublet.hw.Clock` on CLOCK_MONOTONIC."""

    def now_ns(self) -> int:
        """Nanoseconds since an arbitrary point."""
        return time.monotonic_ns()


def main(path: Path, descriptor: int) -> None:
    """Go on in a child, so that who started it need not wait for it, and serve until nobody is left."""
    if os.fork():
        os._exit(0)
    os.chdir("/")
    name = path.stem.removeprefix("switch-")
    with socket.socket(fileno=descriptor) as listener:
        server = SwitchServer(listener, MonotonicClock(), lambda: _retire(path, name, listener))
        try:
            server.serve()
        finally:
            server.close()


def _retire(path: Path, name: str, listener: socket.socket) -> bool:
    """Remove the socket, unless somebody has connected meanwhile."""
    with guard(path.parent, name):
        if select.select([listener], [], [], 0)[0]:
            return False
        path.unlink(missing_ok=True)
        return True


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

"""Several queues of a network card at work, with as many vCPUs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import socket
import subprocess
import threading

import pytest
from tests.integration.guest import SUBLET_RUN, Guest

from sublet.guest import PreparedGuest

pytestmark = pytest.mark.guest

STREAMS = 4
SIZE = 2 << 20


class Echo:
    """A server that sends every stream back once it has all of it."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=STREAMS)
        self.port = self._listener.getsockname()[1]
        self.digests: list[str] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        for _ in range(STREAMS):
            connection, _ = self._listener.accept()
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream:
            data = stream.read(SIZE)
            self.digests.append(hashlib.sha1(data).hexdigest())
            connection.sendall(data)


@pytest.mark.parametrize("vcpus", [2, 4])
def test_parallel_streams_use_every_queue_and_lose_nothing(default_guest: PreparedGuest, vcpus: int) -> None:
    server = Echo()
    name = f"queues{vcpus}-{os.getpid()}"
    arguments = ["--cpus", str(vcpus), "--memory", "256M", "--net", "nat,host=on", "--name", name]
    with contextlib.closing(Guest(arguments)) as guest:
        guest.expect(r"# ")
        guest.run("until ip route | grep -q default; do sleep 1; done")
        guest.run(f"dd if=/dev/urandom of=/tmp/data bs=1M count={SIZE >> 20} 2>&-")
        sum_ = guest.run("sha1sum < /tmp/data").split()[0]
        one = f"nc 10.0.2.2 {server.port} < /tmp/data | sha1sum"
        guest.run(
            f"for i in 0 1 2 3; do taskset $((1 << i % $(nproc))) sh -c '{one} > /tmp/sum.'$i & done; wait"
        )
        assert guest.run("cat /tmp/sum.*").split()[::2] == [sum_] * STREAMS
        assert server.digests == [sum_] * STREAMS
        interrupts = guest.run("grep virtio /proc/interrupts")
        for pair in range(vcpus):
            line = next(line for line in interrupts.splitlines() if line.endswith(f"input.{pair}"))
            assert any(int(count) for count in re.findall(r" (\d+)(?= )", line)), interrupts
        words = [*SUBLET_RUN[:-1], "net", "stats", name, "--json"]
        (row,) = json.loads(subprocess.run(words, capture_output=True, check=True, timeout=60).stdout)
        assert row["sent.bytes"] >= STREAMS * SIZE
        assert row["received.bytes"] >= STREAMS * SIZE
        assert row["sent.packets"] == row["packets.from_guest"]
        assert row.get("dropped.guest_slow", 0) == row.get("dropped.size", 0) == 0

"""A guest on its serial console, as the benchmarks drive it."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

PROMPT: Final = b"~# "


class Console:
    """A guest's serial console."""

    def __init__(self, process: subprocess.Popen[bytes], limit_s: float) -> None:
        self._process = process
        self._timer = threading.Timer(limit_s, process.kill)
        self._timer.daemon = True
        self._timer.start()

    def read_until(self, mark: bytes) -> bytes:
        """Everything up to a mark; raises ``EOFError`` when the guest ends before it."""
        assert self._process.stdout is not None
        seen = b""
        while mark not in seen:
            data = os.read(self._process.stdout.fileno(), 65536)
            if not data:
                raise EOFError(f"the guest ended; last words: {seen[-300:].decode(errors='replace')}")
            seen += data
        return seen

    def run(self, command: str) -> int:
        """Run a shell command; its exit status."""
        self.type(command)
        return self.answer()[1]

    def type(self, command: str) -> None:
        """Have the guest's shell begin a command; ``answer`` waits for its end."""
        assert self._process.stdin is not None
        # The echo of what is typed must not look like the answer.
        self._process.stdin.write(f"{command}; echo sta''tus=$?.\n".encode())
        self._process.stdin.flush()

    def answer(self) -> tuple[bytes, int]:
        """What was printed up to the end of the command that was typed, and its exit status."""
        printed, _, number = self.read_until(b"status=").partition(b"status=")
        while b"." not in number:
            number += self.read_until(b".")
        return printed, int(number.partition(b".")[0])

    @property
    def pid(self) -> int:
        """The machine's process."""
        return self._process.pid

    def memory(self) -> float:
        """MiB of the host's memory that the machine's process holds, the guest's not counted (proc(5))."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) / 1024
        raise ValueError("this kernel does not tell of RssAnon")

    def close(self) -> None:
        """Kill the guest."""
        self._timer.cancel()
        self._process.kill()
        self._process.wait()


@contextmanager
def at_prompt(command: Sequence[str], limit_s: float) -> Iterator[Console]:
    """A guest at its shell's prompt; killed at the end, or after ``limit_s`` seconds."""
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, bufsize=0
        )
        console = Console(process, limit_s)
        try:
            console.read_until(PROMPT)
            yield console
        finally:
            console.close()

"""A running ``sublet run``, driven through its pipes."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import IO

_READ_SIZE = 65536
EXIT_TIMEOUT_S = 60.0


class Guest:
    """One child process: what it printed so far, and typing to it.

    Args:
        arguments: After ``sublet run``.
        stdin: False closes standard input.
        environment: Added to this process's.
    """

    def __init__(
        self, arguments: Sequence[str], *, stdin: bool = True, environment: dict[str, str] | None = None
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sublet", "run", *arguments],
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **(environment or {})},
        )
        self.output = b""
        self.errors = b""
        self._seen = 0
        self._changed = threading.Condition()
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._readers = [
            self._start_reader(self.process.stdout, "output"),
            self._start_reader(self.process.stderr, "errors"),
        ]

    def _start_reader(self, stream: IO[bytes], name: str) -> threading.Thread:
        thread = threading.Thread(target=self._collect, args=(stream, name), daemon=True)
        thread.start()
        return thread

    def _collect(self, stream: IO[bytes], name: str) -> None:
        while data := os.read(stream.fileno(), _READ_SIZE):
            with self._changed:
                setattr(self, name, getattr(self, name) + data)
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def expect(self, pattern: str, timeout_s: float = 120.0) -> re.Match[bytes]:
        """Wait until the output after the last match has ``pattern``; returns the match.

        Raises:
            AssertionError: It did not come in time, or the process ended without it.
        """
        regex = re.compile(pattern.encode(), re.MULTILINE)
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while (match := regex.search(self.output, self._seen)) is None:
                remaining = deadline - time.monotonic()
                assert remaining > 0, self.report(f"no {pattern!r} in time")
                assert self._readers[0].is_alive(), self.report(f"it ended without {pattern!r}")
                self._changed.wait(min(remaining, 1.0))
            self._seen = match.end()
            return match

    def type(self, text: str) -> None:
        """Type as a user does; lines end with a newline."""
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()

    def run(self, command: str, timeout_s: float = 120.0) -> str:
        """Run a shell command in the guest and return what it printed, between two marks.

        The marks are quoted where they are typed, so that the terminal's echo is not taken for them.
        """
        self.type(f"echo be''gin; {command}; echo en''d-$?\n")
        match = self.expect(r"(?s)begin\r?\n(.*?)^end-(\d+)", timeout_s)
        assert match.group(2) == b"0", self.report(f"{command!r} failed")
        return match.group(1).decode(errors="replace").replace("\r", "")

    def signal(self, number: int) -> None:
        """Send a signal to the process."""
        self.process.send_signal(number)

    def close_input(self) -> None:
        """End standard input."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def wait(self, timeout_s: float = EXIT_TIMEOUT_S) -> int:
        """Wait for the end; returns the exit code, with all output collected."""
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(self.report("still running")) from None
        for reader in self._readers:
            reader.join()
        return code

    def report(self, problem: str) -> str:
        """A message for a failed test: the problem, and the end of both streams."""
        return f"{problem}\n--- output\n{self.output[-3000:]!r}\n--- errors\n{self.errors[-2000:]!r}"

    def close(self) -> None:
        """Kill what still runs."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for reader in self._readers:
            reader.join()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None and not stream.closed:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

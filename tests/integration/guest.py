"""A running ``sublet run``, driven through its pipes or through a terminal."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Sequence

_READ_SIZE = 65536
EXIT_TIMEOUT_S = 60.0


SUBLET_RUN = (sys.executable, "-m", "sublet", "run")


class Guest:
    """One child process: what it printed so far, and typing to it.

    Args:
        arguments: After ``command``.
        stdin: False closes standard input.
        terminal: Give it a terminal of its own for standard input and output, in place of pipes.
        environment: Added to this process's.
        command: What to run: ``sublet run``, or another emulator with its console on standard output.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        stdin: bool = True,
        terminal: bool = False,
        environment: dict[str, str] | None = None,
        command: Sequence[str] = SUBLET_RUN,
    ) -> None:
        self.terminal: int | None = None
        """The descriptor of the terminal's slave side, kept open so that its settings can be read."""
        words, variables = [*command, *arguments], {**os.environ, **(environment or {})}
        if terminal:
            self._master, self.terminal = pty.openpty()
            self.process = _start_on_terminal(words, variables, self.terminal)
            source, self._sink = self._master, self._master
        else:
            self.process = _start_on_pipes(words, variables, stdin=stdin)
            assert self.process.stdout is not None
            source = self.process.stdout.fileno()
            self._sink = self.process.stdin.fileno() if self.process.stdin is not None else -1
        self.output = b""
        self.errors = b""
        self._seen = 0
        self._changed = threading.Condition()
        assert self.process.stderr is not None
        self._readers = [
            self._start_reader(source, "output"),
            self._start_reader(self.process.stderr.fileno(), "errors"),
        ]

    def _start_reader(self, descriptor: int, name: str) -> threading.Thread:
        thread = threading.Thread(target=self._collect, args=(descriptor, name), daemon=True)
        thread.start()
        return thread

    def _collect(self, descriptor: int, name: str) -> None:
        # A terminal whose other side is closed reads as EIO.
        with contextlib.suppress(OSError):
            while data := os.read(descriptor, _READ_SIZE):
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
        view = memoryview(text.encode())
        while view:
            view = view[os.write(self._sink, view) :]

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
        self._finish_reading()
        return code

    def report(self, problem: str) -> str:
        """A message for a failed test: the problem, and the end of both streams."""
        return f"{problem}\n--- output\n{self.output[-3000:]!r}\n--- errors\n{self.errors[-2000:]!r}"

    def _finish_reading(self) -> None:
        if self.terminal is not None:
            # What was printed last reaches the reader first; then nobody holds the terminal's slave side.
            termios.tcdrain(self.terminal)
            os.close(self.terminal)
            self.terminal = None
        for reader in self._readers:
            reader.join()

    def close(self) -> None:
        """Kill what still runs."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._finish_reading()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None and not stream.closed:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


def _start_on_pipes(
    words: Sequence[str], environment: dict[str, str], *, stdin: bool
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        words,
        stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )


def _start_on_terminal(
    words: Sequence[str], environment: dict[str, str], terminal: int
) -> subprocess.Popen[bytes]:
    """Start a session whose controlling terminal is ``terminal``."""
    return subprocess.Popen(
        words,
        stdin=terminal,
        stdout=terminal,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )

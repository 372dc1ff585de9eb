"""Requests that change whether a machine runs, from any thread to the one that owns it."""

from __future__ import annotations

import enum
import queue
from dataclasses import dataclass


class Request(enum.Enum):
    """What happened or was asked. Values are the reasons that users see."""

    POWEROFF = "the guest powered off"
    RESET = "the guest reset the machine"
    TRIPLE_FAULT = "the guest caused a triple fault"
    SUSPEND = "the guest went to sleep"
    WAKE = "a key was pressed"
    PANIC = "the guest panicked"
    LEFT = "interrupted"
    POWER_BUTTON = "the power button was pressed"
    FAILED = "the machine failed"


@dataclass(frozen=True, slots=True)
class Message:
    """A request, with the exception that explains `Request.FAILED`."""

    request: Request
    error: Exception | None = None


class Control:
    """A queue that signal handlers may use too (`queue.SimpleQueue.put` is reentrant)."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Message] = queue.SimpleQueue()

    def post(self, request: Request, error: Exception | None = None) -> None:
        """Hand a request to the owner; never blocks."""
        self._queue.put(Message(request, error))

    def wait(self, timeout_s: float | None = None) -> Message | None:
        """The next request, in order; None when none comes in time. Only the owner's thread calls this."""
        try:
            return self._queue.get(timeout=timeout_s)
        except queue.Empty:
            return None

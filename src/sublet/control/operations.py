"""What a running machine does on request, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from sublet.errors import UsageError


class Call(Protocol):
    """One request while it is being served."""

    def progress(self, done: int, total: int) -> None:
        """Tell the client how far it is, in units of the operation's own (bytes, say)."""

    def cancelled(self) -> bool:
        """Whether the client has gone: long work stops then, and undoes what it must."""


Handler = Callable[[dict[str, Any], Call], Any]
"""Takes the parameters as JSON has them, unchecked; returns what JSON can hold; raises SubletError."""


class Operations:
    """Handlers by name, such as ``screen.png``. Filled while a machine is built, then only read."""

    def __init__(self) -> None:
        self._handlers: dict[str, Handler] = {}

    def add(self, name: str, handler: Handler) -> None:
        """Let ``handler`` serve ``name``; it runs on a thread of its own, beside other handlers.

        Raises:
            ValueError: The name is taken.
        """
        if name in self._handlers:
            raise ValueError(f"operation {name} is there already")
        self._handlers[name] = handler

    def find(self, name: str) -> Handler:
        """The handler of ``name``.

        Raises:
            UsageError: This machine has no such operation.
        """
        handler = self._handlers.get(name)
        if handler is None:
            known = ", ".join(sorted(self._handlers)) or "nothing"
            raise UsageError(f"this machine cannot do {name!r}; it can do: {known}")
        return handler

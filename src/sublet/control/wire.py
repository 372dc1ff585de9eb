"""The control protocol: JSON texts, a line each, over a Unix stream socket.

The client sends one request, ``{"operation": NAME, "parameters": {...}}``. The server answers with any
number of ``{"progress": [DONE, TOTAL]}`` and then one ``{"result": VALUE}`` or
``{"error": {"kind": CLASS, "message": TEXT, "remedy": TEXT}}``. A client that leaves cancels.
"""

from __future__ import annotations

import json
from typing import IO, Any, Final

from sublet import errors
from sublet.errors import InternalError, SubletError, UsageError

LINE_LIMIT: Final = 64 << 20
"""Longest text in bytes; screenshots are the longest."""


def encode(value: dict[str, Any]) -> bytes:
    """One line."""
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def read(stream: IO[bytes]) -> dict[str, Any] | None:
    """The next text; None at the end of the stream.

    Raises:
        UsageError: It is too long, or not a JSON object.
    """
    line = stream.readline(LINE_LIMIT + 1)
    if not line:
        return None
    try:
        if len(line) > LINE_LIMIT:
            raise ValueError("too long")
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"not a request of the control protocol: {error}") from error
    if not isinstance(value, dict):
        raise UsageError("not a request of the control protocol: no JSON object")
    return value


def describe(error: Exception) -> dict[str, Any]:
    """The answer that carries ``error``."""
    if not isinstance(error, SubletError):
        error = InternalError(f"{type(error).__name__}: {error}")
    kind = type(error).__name__
    return {"error": {"kind": kind, "message": error.message, "remedy": error.remedy}}


def revive(answer: dict[str, Any]) -> SubletError:
    """The exception that `describe` was given, as one of ``sublet.errors``."""
    kind = getattr(errors, str(answer.get("kind")), InternalError)
    if not (isinstance(kind, type) and issubclass(kind, SubletError)):
        kind = InternalError
    return kind(str(answer.get("message", "")), remedy=str(answer.get("remedy", "")))

"""Recording a machine's packets while it runs, on request."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from sublet.control import Call
from sublet.errors import HostRefused, UsageError
from sublet.net.capture import Recorder
from sublet.net.capture.recorder import SNAP_LENGTH, Recorded

_LOOK_INTERVAL_S: Final = 0.25


def capture(
    parameters: dict[str, Any], call: Call, cables: Sequence[Recorded], ended: threading.Event
) -> dict[str, int]:
    """Record until the client leaves, the machine ends, or a limit is reached.

    Args:
        parameters: path (absolute), nics (names; none: all), filter, count, seconds, snap_length.
        call: The request.
        cables: The machine's.
        ended: Set when the machine ends.

    Returns:
        How many packets were ``recorded`` and ``missed``.

    Raises:
        UsageError: The filter or a card's name is wrong.
        HostRefused: The file cannot be written.
    """
    path = Path(str(parameters.get("path")))
    chosen = _choose(parameters.get("nics") or [], cables)
    try:
        recorder = Recorder(
            path.open("wb"),
            chosen,
            filter_text=str(parameters.get("filter") or ""),
            snap_length=_number(parameters, "snap_length") or SNAP_LENGTH,
            limit=_number(parameters, "count"),
        )
        try:
            _wait(recorder, float(_number(parameters, "seconds")), call, ended)
        finally:
            recorder.close()
    except OSError as error:
        raise HostRefused(f"cannot write {path}: {error.strerror or error}") from error
    return {"recorded": recorder.recorded, "missed": recorder.missed}


def _choose(names: object, cables: Sequence[Recorded]) -> list[Recorded]:
    if not isinstance(names, list):
        raise UsageError("nics is a list of names")
    known = [each.name for each in cables]
    for name in names:
        if name not in known:
            raise UsageError(
                f"there is no network card {name!r}", remedy=f"The machine has {', '.join(known) or 'none'}."
            )
    return [each for each in cables if not names or each.name in names]


def _number(parameters: dict[str, Any], name: str) -> int:
    value = parameters.get(name) or 0
    if not isinstance(value, int | float) or value < 0:
        raise UsageError(f"{name} is a number, not {value!r}")
    return int(value)


def _wait(recorder: Recorder, seconds: float, call: Call, ended: threading.Event) -> None:
    deadline = time.monotonic() + seconds if seconds else None
    while not recorder.finished.wait(_LOOK_INTERVAL_S):
        late = deadline is not None and time.monotonic() >= deadline
        if late or ended.is_set() or call.cancelled():
            return

"""What other commands can do with the disks of a running machine (``sublet disk live``).

The work itself is loaded when somebody asks for it: few machines ever need it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from sublet.block.live.job import Job
from sublet.control import Call, Operations
from sublet.errors import UsageError
from sublet.machine.disks import Drives, NamedDrive

_Work = Callable[[Job, dict[str, Any]], int]


def add_disk_operations(operations: Operations, drives: Drives) -> None:
    """Let the machine answer ``disk.list``, ``disk.snapshot`` and the other verbs."""

    def listing(parameters: dict[str, Any], call: Call) -> list[dict[str, Any]]:
        return [_describe(one) for one in drives.all]

    def snapshot(parameters: dict[str, Any], call: Call) -> dict[str, Any]:
        from sublet.block.live.overlay import snapshot as take

        drive = drives.find(_text(parameters, "disk"))
        take(drive, _path(parameters, "target"))
        return {"disk": parameters["disk"], "file": str(drive.image.path)}

    operations.add("disk.list", listing)
    operations.add("disk.snapshot", snapshot)
    for name, work in _WORK.items():
        operations.add(f"disk.{name}", _handler(drives, work))


def _handler(drives: Drives, work: _Work) -> Callable[[dict[str, Any], Call], dict[str, Any]]:
    def handle(parameters: dict[str, Any], call: Call) -> dict[str, Any]:
        drive = drives.find(_text(parameters, "disk"))
        rate = parameters.get("rate", 0)
        if not isinstance(rate, int) or rate < 0:
            raise UsageError(f"a rate of {rate!r} bytes a second")
        job = Job(drive, rate=rate, progress=call.progress, cancelled=call.cancelled)
        copied = work(job, parameters)
        return {"disk": parameters["disk"], "copied": copied, "file": str(drive.image.path)}

    return handle


def _commit(job: Job, parameters: dict[str, Any]) -> int:
    from sublet.block.live.merge import commit

    return commit(job)


def _stream(job: Job, parameters: dict[str, Any]) -> int:
    from sublet.block.live.merge import stream

    return stream(job)


def _mirror(job: Job, parameters: dict[str, Any]) -> int:
    from sublet.block.live.mirroring import mirror

    pivot = parameters.get("pivot") is True
    return mirror(job, _path(parameters, "target"), format=_text(parameters, "format"), pivot=pivot)


def _back_up(job: Job, parameters: dict[str, Any]) -> int:
    from sublet.block.live.backup import back_up

    previous = _path(parameters, "previous") if parameters.get("previous") is not None else None
    return back_up(
        job,
        _path(parameters, "target"),
        format=_text(parameters, "format"),
        bitmap=_text(parameters, "bitmap") if parameters.get("bitmap") is not None else None,
        previous=previous,
        previous_format=_text(parameters, "previous_format")
        if parameters.get("previous_format") is not None
        else None,
    )


_WORK: Final[dict[str, _Work]] = {
    "commit": _commit,
    "stream": _stream,
    "mirror": _mirror,
    "backup": _back_up,
}


def _describe(one: NamedDrive) -> dict[str, Any]:
    image = one.drive.image
    return {
        "disk": one.name,
        "file": str(image.path),
        "format": image.format,
        "size": image.size,
        "readonly": image.readonly,
        "job": one.drive.job,
    }


def _text(parameters: dict[str, Any], name: str) -> str:
    value = parameters.get(name)
    if not isinstance(value, str) or not value or "\0" in value:
        raise UsageError(f"{name} is missing, or no text")
    return value


def _path(parameters: dict[str, Any], name: str) -> Path:
    path = Path(_text(parameters, name))
    if not path.is_absolute():
        raise UsageError(f"{name}={path}: the machine's process needs an absolute path")
    return path

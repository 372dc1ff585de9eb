"""The value of ``--disk``: a file and how to attach it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sublet.errors import UsageError
from sublet.units import parse_size

if TYPE_CHECKING:
    from sublet.machine import DiskConfig


def parse_disk(text: str) -> DiskConfig:
    """Read ``FILE[,NAME=VALUE...]``; a doubled comma is one of the file's name.

    Raises:
        UsageError: A name or value is none of those that ``sublet run --help`` lists.
    """
    from pydantic import ValidationError

    from sublet.machine import DiskConfig

    file, *rest = (part.replace("\0", ",") for part in text.replace(",,", "\0").split(","))
    if not file:
        raise UsageError(f"--disk {text}: the file is missing")
    values: dict[str, Any] = {"path": Path(file)}
    for part in rest:
        name, value = _read(text, part)
        values[name] = value
    try:
        return DiskConfig(**values)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"--disk {text}: {first['loc'][0]}: {first['msg']}") from error


def _read(text: str, part: str) -> tuple[str, Any]:
    """One NAME=VALUE as (field of ``DiskConfig``, value)."""
    name, equals, value = part.partition("=")
    if name not in ("format", "readonly", "cache", "serial", "iops", "bps") or not equals:
        raise UsageError(
            f"--disk {text}: {part!r} is no option",
            remedy="Write format=, readonly=, cache=, serial=, iops= or bps=.",
        )
    if name == "readonly":
        if value not in ("on", "off"):
            raise UsageError(f"--disk {text}: readonly is on or off, not {value!r}")
        return name, value == "on"
    if name == "bps":
        try:
            return "bytes_per_second", parse_size(value)
        except ValueError as error:
            raise UsageError(f"--disk {text}: bps: {error}") from error
    return name, value

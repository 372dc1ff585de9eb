"""What options say of disks: the value of ``--disk``, the format that a name stands for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sublet.errors import UsageError
from sublet.units import parse_size

if TYPE_CHECKING:
    from sublet.machine import DiskConfig

_NAMES: Final = ("format", "readonly", "cache", "serial", "bus", "iops", "bps", "copy-on-read")


def parse_disk(text: str) -> DiskConfig:
    """Read ``FILE[,NAME=VALUE...]``; a doubled comma is one of the file's name.

    Raises:
        UsageError: A name or value is none of those that ``sublet run --help`` lists.
    """
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
    except UsageError as error:
        raise UsageError(f"--disk {text}: {error.message}") from error


def format_of(path: Path) -> str:
    """What the name of an image that is to be created says.

    Raises:
        UsageError: Nothing.
    """
    from sublet.block.registry import FORMATS, format_of_name

    name = format_of_name(path)
    if name is None:
        raise UsageError(
            f"the name {path.name} does not say a format", remedy=f"Say it: {', '.join(FORMATS)}."
        )
    return name


def _read(text: str, part: str) -> tuple[str, Any]:
    """One NAME=VALUE as (field of ``DiskConfig``, value)."""
    name, equals, value = part.partition("=")
    if name not in _NAMES or not equals:
        raise UsageError(
            f"--disk {text}: {part!r} is no option",
            remedy=f"Write {'=, '.join(_NAMES[:-1])}= or {_NAMES[-1]}=.",
        )
    if name in ("readonly", "copy-on-read"):
        if value not in ("on", "off"):
            raise UsageError(f"--disk {text}: {name} is on or off, not {value!r}")
        return name.replace("-", "_"), value == "on"
    if name == "iops":
        if not value.isdecimal():
            raise UsageError(f"--disk {text}: iops: {value!r} is no number of requests")
        return name, int(value)
    if name == "bps":
        try:
            return "bytes_per_second", parse_size(value)
        except ValueError as error:
            raise UsageError(f"--disk {text}: bps: {error}") from error
    return name, value

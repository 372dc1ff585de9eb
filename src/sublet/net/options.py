"""The value of ``--net``: a kind of network and its options.

    KIND[:VALUE][,NAME=VALUE...]      a comma in a value is written twice

Reference: docs/guide/networks.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from sublet.errors import UsageError
from sublet.units import parse_size

_TIME_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_RATE_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}
_MAX_RATE = 10**12


@dataclass(frozen=True)
class NetOptions:
    """One network card as the user wrote it; options may come several times and keep their order."""

    kind: str
    pairs: tuple[tuple[str, str], ...] = field(default=())
    text: str = ""
    """What the user wrote, for messages."""

    def check_names(self, known: Iterable[str]) -> None:
        """Raise ``UsageError`` for the first option that is not ``known``."""
        names = sorted(known)
        for name, _ in self.pairs:
            if name not in names:
                raise UsageError(
                    f"--net {self.text}: {self.kind} has no option {name!r}",
                    remedy=f"It has {', '.join(names)}.",
                )

    def all(self, name: str) -> list[str]:
        """Every value of an option, in order."""
        return [value for option, value in self.pairs if option == name]

    def get(self, name: str) -> str | None:
        """An option that may come once."""
        values = self.all(name)
        if len(values) > 1:
            raise self.error(name, "given more than once")
        return values[0] if values else None

    def required(self, name: str) -> str:
        """An option that must come."""
        value = self.get(name)
        if not value:
            raise self.error(name, "is missing")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """``on`` or ``off``."""
        value = self.get(name)
        if value not in (None, "on", "off"):
            raise self.error(name, f"is on or off, not {value!r}")
        return default if value is None else value == "on"

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        """A whole number from ``low`` to ``high``."""
        value = self.get(name)
        if value is None:
            return default
        if not value.isascii() or not value.isdigit() or not low <= int(value) <= high:
            raise self.error(name, f"is a number from {low} to {high}, not {value!r}")
        return int(value)

    def size(self, name: str, default: int) -> int:
        """Bytes, as in 1M."""
        value = self.get(name)
        try:
            return default if value is None else parse_size(value)
        except ValueError as error:
            raise self.error(name, str(error)) from error

    def fraction(self, name: str) -> float:
        """A percentage such as ``1%`` or ``0.5%``, as 0 to 1; 0 when it is not given."""
        value = self.get(name)
        if value is None:
            return 0.0
        number = _number(value.removesuffix("%"))
        if not value.endswith("%") or number is None or not 0 <= number <= 100:
            raise self.error(name, f"is a percentage such as 1%, not {value!r}")
        return number / 100

    def duration_ns(self, name: str, limit_s: float = 60.0) -> int:
        """A time such as ``20ms``, in nanoseconds; 0 when it is not given."""
        value = self.get(name)
        if value is None:
            return 0
        for unit in ("us", "ms", "s"):
            number = _number(value.removesuffix(unit)) if value.endswith(unit) else None
            if number is not None and 0 <= number * _TIME_UNITS[unit] <= limit_s:
                return round(number * _TIME_UNITS[unit] * 1e9)
        raise self.error(name, f"is a time such as 20ms, up to {limit_s:g}s, not {value!r}")

    def bit_rate(self, name: str) -> int:
        """Bits a second, as in ``100M``; 0, no limit, when it is not given."""
        value = self.get(name)
        if value is None:
            return 0
        unit = value[-1:] if value[-1:] in _RATE_UNITS else ""
        number = _number(value.removesuffix(unit))
        if number is None or not 1000 <= number * _RATE_UNITS[unit] <= _MAX_RATE:
            raise self.error(name, f"is bits a second such as 100M, from 1k to 1000G, not {value!r}")
        return round(number * _RATE_UNITS[unit])

    def address(self, name: str) -> bytes | None:
        """A unicast Ethernet address, six bytes."""
        value = self.get(name)
        if value is None:
            return None
        parts = value.split(":")
        try:
            address = bytes(int(part, 16) for part in parts if len(part) in (1, 2))
        except ValueError:
            address = b""
        if len(address) != 6 or len(parts) != 6 or address[0] & 1 or not any(address):
            raise self.error(name, f"is a unicast address such as 52:54:00:12:34:56, not {value!r}")
        return address

    def error(self, name: str, problem: str) -> UsageError:
        """The error that an option is wrong."""
        return UsageError(f"--net {self.text}: {name} {problem}")


def parse_net(text: str) -> NetOptions:
    """Read the value of ``--net``.

    Raises:
        UsageError: It is not of the form above. Names and values are checked by who uses them.
    """
    head, *rest = (part.replace("\0", ",") for part in text.replace(",,", "\0").split(","))
    kind, colon, value = head.partition(":")
    if not kind.isascii() or not kind.isalnum():
        raise UsageError(f"--net {text}: the kind of network is missing")
    pairs = [("path", value)] if colon else []
    for part in rest:
        name, equals, value = part.partition("=")
        if not equals or not name:
            raise UsageError(f"--net {text}: {part!r} is not of the form NAME=VALUE")
        pairs.append((name, value))
    return NetOptions(kind, tuple(pairs), text)


def _number(text: str) -> float | None:
    """A plain decimal number; no sign, exponent or infinity."""
    digits = text.replace(".", "", 1)
    return float(text) if digits.isascii() and digits.isdigit() else None

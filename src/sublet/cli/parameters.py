"""How a verb's signature says what it takes: ``Annotated`` with an `Argument` or an `Option`."""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Final, get_args, get_origin, get_type_hints

import click

OPTIONS_PANEL: Final = "Options"


@dataclass(frozen=True)
class Argument:
    """A word by its place; optional if the parameter has a default."""

    help: str = ""
    metavar: str | None = None
    """What help calls it; None: the parameter's name."""


class Option:
    """A word with ``--``. A ``bool`` is a flag; a ``list`` may be given several times; an enum is a choice.

    Args:
        names: As ``--format``, ``-f``, or ``--sync/--no-sync``; none: the parameter's name.
        help: What it does.
        metavar: What help calls the value; None: what its type is called.
        panel: The part of the help page that shows it.
        minimum: Of a number.
        maximum: Of a number.
    """

    def __init__(
        self,
        *names: str,
        help: str = "",
        metavar: str | None = None,
        panel: str = OPTIONS_PANEL,
        minimum: int | None = None,
        maximum: int | None = None,
    ) -> None:
        self.names = names
        self.help = help
        self.metavar = metavar
        self.panel = panel
        self.minimum = minimum
        self.maximum = maximum


class HelpedArgument(click.Argument):
    """An argument that help says something of."""

    def __init__(self, name: str, *, explanation: str, **attributes: Any) -> None:
        super().__init__([name], **attributes)
        self.explanation = explanation


class PanelOption(click.Option):
    """An option that knows its part of the help page."""

    def __init__(self, declarations: Sequence[str], *, panel: str, **attributes: Any) -> None:
        super().__init__(declarations, **attributes)
        self.panel = panel


class _EnumChoice(click.Choice[str]):
    """One of an enum's values; converts to the member."""

    def __init__(self, members: type[enum.StrEnum]) -> None:
        super().__init__([member.value for member in members])
        self._members = members

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> enum.StrEnum:
        return self._members(super().convert(str(value), param, ctx))


def read_parameters(function: Callable[..., object]) -> list[click.Parameter]:
    """What ``function`` takes, in its order.

    Raises:
        TypeError: A parameter has neither an ``Argument`` nor an ``Option``.
    """
    hints = get_type_hints(function, include_extras=True)
    parameters = inspect.signature(function).parameters.values()
    return [_read(parameter.name, hints[parameter.name], parameter.default) for parameter in parameters]


def _read(name: str, hint: Any, default: Any) -> click.Parameter:
    if get_origin(hint) is not Annotated:
        raise TypeError(f"the parameter {name} says nothing of how it is given")
    annotated, declared = get_args(hint)[:2]
    kind, several = _kind(annotated)
    required = default is inspect.Parameter.empty
    attributes: dict[str, Any] = {"required": required, "metavar": declared.metavar}
    if not required:
        attributes["default"] = default
    if isinstance(declared, Argument):
        kind_of = _type(kind, None, None)
        return HelpedArgument(name, explanation=declared.help, type=kind_of, **attributes)
    spelled = declared.names or ("--" + name.replace("_", "-"),)
    if kind is bool:
        attributes["is_flag"] = True
    else:
        attributes["type"] = _type(kind, declared.minimum, declared.maximum)
    return PanelOption(
        [name, *spelled], multiple=several, help=declared.help, panel=declared.panel, **attributes
    )


def _kind(annotated: Any) -> tuple[Any, bool]:
    """The type of one value, and whether there may be several; ``None`` beside a type is no type."""
    if isinstance(annotated, UnionType):
        (annotated,) = (part for part in get_args(annotated) if part is not NoneType)
    if get_origin(annotated) is list:
        return get_args(annotated)[0], True
    return annotated, False


def _type(kind: Any, minimum: int | None, maximum: int | None) -> click.ParamType[Any]:
    if kind is Path:
        return click.Path(path_type=Path)
    if kind is int:
        return click.IntRange(minimum, maximum)
    if kind is float:
        return click.FloatRange(minimum, maximum)
    if issubclass(kind, enum.StrEnum):
        return _EnumChoice(kind)
    return click.STRING

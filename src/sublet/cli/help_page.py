"""``--help``: what a command is for, and its words in panels."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import click
from rich.console import Console, RenderableType
from rich.markdown import Markdown
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from sublet.cli.parameters import OPTIONS_PANEL, HelpedArgument, PanelOption

_MARGIN = (1, 1, 0, 1)
"""Blank lines above, columns to the right, lines below, columns to the left."""


def render(context: click.Context) -> str:
    """The help page of the context's command, as wide as the terminal, coloured if it is one."""
    command = context.command
    console = Console()
    with console.capture() as page:
        usage = " ".join(command.collect_usage_pieces(context))
        console.print(Padding(Text(f"Usage: {context.command_path} {usage}", style="bold"), _MARGIN))
        console.print(Padding(Markdown(command.help or ""), (1, 1)))
        for panel in _panels(command, context):
            console.print(panel)
        if command.epilog:
            console.print(Padding(Markdown(command.epilog), _MARGIN))
    return page.get()


def _panels(command: click.Command, context: click.Context) -> Iterable[Panel]:
    parameters = command.get_params(context)
    arguments = [one for one in parameters if isinstance(one, HelpedArgument)]
    if arguments:
        yield _panel("Arguments", [_argument_row(one, context) for one in arguments])
    options = [one for one in parameters if isinstance(one, click.Option)]
    for title in dict.fromkeys((OPTIONS_PANEL, *map(_panel_of, options))):
        yield _panel(title, [_option_row(one, context) for one in options if _panel_of(one) == title])
    if isinstance(command, click.Group):
        verbs = [(name, command.get_command(context, name)) for name in command.list_commands(context)]
        yield _panel("Commands", [_verb_row(name, verb) for name, verb in verbs if verb is not None])


def _panel_of(option: click.Option) -> str:
    return option.panel if isinstance(option, PanelOption) else OPTIONS_PANEL


def _panel(title: str, rows: Sequence[Sequence[RenderableType]]) -> Panel:
    """Rows without the columns that all of them leave empty."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    filled = [any(map(_has_content, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        table.add_row(*itertools.compress(row, filled))
    return Panel(table, title=title, title_align="left", border_style="dim")


def _has_content(cell: RenderableType) -> bool:
    return not isinstance(cell, Text) or bool(cell.plain)


def _value_name(parameter: click.Parameter, context: click.Context) -> str:
    """What stands for a value; the page needs no brackets round a choice, and tells ranges in words."""
    name = parameter.make_metavar(context).removesuffix(" RANGE")
    given = isinstance(parameter, click.Option) and parameter.metavar is not None
    return name[1:-1] if not given and name.startswith("[") and name.endswith("]") else name


def _argument_row(argument: HelpedArgument, context: click.Context) -> Sequence[RenderableType]:
    name = _value_name(argument, context)
    return Text(name, style="bold cyan", no_wrap=True), Markdown(argument.explanation)


def _option_row(option: click.Option, context: click.Context) -> Sequence[RenderableType]:
    names = [*option.opts, *option.secondary_opts]
    long = ", ".join(name for name in names if name.startswith("--"))
    short = ", ".join(name for name in names if not name.startswith("--"))
    value = "" if option.is_flag else _value_name(option, context)
    return (
        Text(long, style="bold cyan", no_wrap=True),
        Text(short, style="bold green", no_wrap=True),
        Text(value, style="yellow"),
        Markdown(_option_help(option)),
    )


def _option_help(option: click.Option) -> str:
    notes = []
    if option.required:
        notes.append("required")
    if isinstance(option.type, click.IntRange | click.FloatRange):
        least, most = option.type.min, option.type.max
        notes += [f"at least {least}"] if least is not None else []
        notes += [f"at most {most}"] if most is not None else []
    if option.default and isinstance(option.default, int | float | str) and not option.is_flag:
        notes.append(f"default: {option.default}")
    return f"{option.help or ''} [{', '.join(notes)}]" if notes else option.help or ""


def _verb_row(name: str, verb: click.Command) -> Sequence[RenderableType]:
    first = (verb.help or "").partition("\n\n")[0]
    return Text(name, style="bold cyan", no_wrap=True), Markdown(first)

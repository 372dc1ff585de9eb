"""Verbs that are loaded when they are asked for: loading all of them takes longer than most of them run."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final

import click

from sublet.cli.parameters import read_parameters
from sublet.errors import UsageError

_SETTINGS: Final = {"help_option_names": ["-h", "--help"]}


class _HelpPage:
    """Shows a command's help as `sublet.cli.help_page` lays it out."""

    def get_help(self, ctx: click.Context) -> str:
        """The help page, for this terminal."""
        from sublet.cli.help_page import render

        return render(ctx)


class Verb(_HelpPage, click.Command):
    """A function that is called with what its signature says (`sublet.cli.parameters`)."""


class Group(_HelpPage, click.Group):
    """Verbs behind a word, or behind the program's own name.

    Args:
        name: The word.
        help: What they are for.
        verbs: Where each is, as ``module:name``: a function or a ``Group``. A function's module may have an
            ``EPILOG`` for its help.
    """

    def __init__(self, name: str, help: str, verbs: Mapping[str, str], **attributes: Any) -> None:
        super().__init__(name, help=help, context_settings=_SETTINGS, **attributes)
        self.verbs = verbs

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Show the help where no verb is given: that is wrong usage, but needs no complaint."""
        if not args and not ctx.resilient_parsing:
            click.echo(self.get_help(ctx))
            ctx.exit(UsageError.exit_code)
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs, in the order of help."""
        return list(self.verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load a verb; None if there is none of that name."""
        place = self.verbs.get(cmd_name)
        return None if place is None else _load(cmd_name, place)


def _load(verb: str, place: str) -> click.Command:
    module_name, _, name = place.partition(":")
    module = import_module(module_name)
    found: Any = getattr(module, name)
    if isinstance(found, click.Command):
        return found
    return Verb(
        verb,
        callback=found,
        params=read_parameters(found),
        help=inspect.cleandoc(found.__doc__),
        epilog=getattr(module, "EPILOG", None),
        context_settings=_SETTINGS,
    )

"""Verbs that are loaded when they are asked for: loading all of them takes longer than most of them run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import typer


@dataclass(frozen=True)
class Group:
    """Verbs behind a word, or behind the program's own name."""

    name: str
    help: str
    verbs: Mapping[str, str]
    """Where each is, as ``module:name``: a function, a ``Group`` or a ``typer.Typer``. A function's module
    may have an ``EPILOG`` for its help."""

    def build(self, words: Sequence[str]) -> typer.Typer:
        """The command with the verb that begins ``words``; with every verb if none does, as in ``--help``."""
        made = typer.Typer(
            name=self.name,
            help=self.help,
            no_args_is_help=True,
            rich_markup_mode="markdown",
            pretty_exceptions_enable=False,
            context_settings={"help_option_names": ["-h", "--help"]},
        )
        asked = [verb for verb in words[:1] if verb in self.verbs]
        for verb in asked or self.verbs:
            _add(made, verb, self.verbs[verb], words[1:])
        return made


def _add(group: typer.Typer, verb: str, place: str, words: Sequence[str]) -> None:
    module_name, _, name = place.partition(":")
    module = import_module(module_name)
    found: Any = getattr(module, name)
    if isinstance(found, Group):
        found = found.build(words)
    if isinstance(found, typer.Typer):
        group.add_typer(found, name=verb)
    else:
        group.command(verb, epilog=getattr(module, "EPILOG", None))(found)

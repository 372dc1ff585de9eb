"""Fixtures that start the command as a user does."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.integration.guest import Guest

from sublet.errors import SubletError
from sublet.guest import PreparedGuest, prepare_guest, silent

StartGuest = Callable[..., Guest]


@pytest.fixture
def start_guest() -> Iterator[StartGuest]:
    """``start_guest(*arguments, **options)`` runs ``sublet run`` as a `Guest`; all are killed at the end."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # Tests in a shell's background inherit that, and so would the command.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    started: list[Guest] = []

    def start(*arguments: str, **options: Any) -> Guest:
        started.append(Guest(arguments, **options))
        return started[-1]

    yield start
    for guest in started:
        guest.close()


@pytest.fixture(scope="session")
def default_guest() -> PreparedGuest:
    """The default guest's files; made on first use, then from the cache."""
    try:
        return prepare_guest("default", silent)
    except SubletError as error:
        pytest.fail(f"the default guest cannot be made here: {error.message} {error.remedy}")

"""Typing for a user who is not there: no faster than firmware and old systems can read."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from sublet.errors import WrongMoment
from sublet.machine.key_text import Chord

HOLD_S: Final = 0.012
"""How long a key stays down."""
GAP_S: Final = 0.018
"""Time from one key to the next: about 30 a second, as a fast typist's."""
_PATIENCE_S: Final = 5.0
"""How long a guest may leave codes unread before typing gives up."""
_POLL_S: Final = 0.005


class Keys(Protocol):
    """A keyboard (`sublet.devices.legacy.I8042`)."""

    @property
    def keys_waiting(self) -> bool: ...
    def press(self, key: str) -> bool: ...
    def release(self, key: str) -> bool: ...


def type_chords(
    keys: Keys,
    chords: Iterable[Chord],
    *,
    typed: Callable[[int], None] = lambda count: None,
    cancelled: Callable[[], bool] = lambda: False,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Press and release chord after chord; a BIOS keeps 15 keys, so each waits until it was read.

    Args:
        keys: The keyboard.
        chords: What to type.
        typed: Told how many chords are done.
        cancelled: Asked before each chord.
        sleep: Waits that many seconds.

    Returns:
        How many chords were typed.

    Raises:
        WrongMoment: The guest does not read its keyboard, or has switched it off.
    """
    count = 0
    for chord in chords:
        if cancelled():
            break
        down = [keys.press(key) for key in chord]
        sleep(HOLD_S)
        up = [keys.release(key) for key in reversed(chord)]
        _wait_until_read(keys, count, all(down + up), sleep)
        sleep(GAP_S)
        count += 1
        typed(count)
    return count


def _wait_until_read(keys: Keys, count: int, taken: bool, sleep: Callable[[float], None]) -> None:
    waited = 0.0
    while keys.keys_waiting and waited < _PATIENCE_S:
        sleep(_POLL_S)
        waited += _POLL_S
    if keys.keys_waiting or not taken:
        raise WrongMoment(
            f"the guest does not read its keyboard; it took {count} keys",
            remedy="Wait until its system is up; `sublet screenshot NAME --text` shows how far it is.",
        )

"""Typing for a user who is not there: no faster than firmware and old systems can read."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from sublet.errors import GuestError, WrongMoment
from sublet.hw import GuestMemory
from sublet.machine.key_text import Chord

HOLD_S: Final = 0.012
"""How long a key stays down."""
GAP_S: Final = 0.018
"""Time from one key to the next: about 30 a second, as a fast typist's."""
_PATIENCE_S: Final = 5.0
"""How long a guest may leave codes unread before typing gives up."""
_POLL_S: Final = 0.005
_MOST_AHEAD: Final = 4
"""Keys that may wait in the buffer of the BIOS, which has room for 15 and drops the rest."""

_BIOS_KEY_HEAD, _BIOS_KEY_TAIL = 0x41A, 0x41C
_BIOS_KEY_BUFFER: Final = range(0x1E, 0x3E, 2)
"""Offsets that head and tail may have; two bytes a key."""


def keys_ahead(memory: GuestMemory) -> int:
    """Keys that the BIOS has read and no program has taken; 0 where no BIOS is in charge.

    Reference: IBM Personal System/2 and Personal Computer BIOS Interface Technical Reference (1987),
    "BIOS Data Area", keyboard data area.
    """
    try:
        head, tail = memory.read_u16(_BIOS_KEY_HEAD), memory.read_u16(_BIOS_KEY_TAIL)
    except GuestError:
        return 0  # the machine is gone
    if head not in _BIOS_KEY_BUFFER or tail not in _BIOS_KEY_BUFFER:
        return 0
    return (tail - head) // 2 % len(_BIOS_KEY_BUFFER)


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
    ahead: Callable[[], int] = lambda: 0,
    typed: Callable[[int], None] = lambda count: None,
    cancelled: Callable[[], bool] = lambda: False,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Press and release chord after chord; a BIOS keeps 15 keys, so each waits until it was read.

    Args:
        keys: The keyboard.
        chords: What to type.
        ahead: How many keys the guest's BIOS keeps for a program (`keys_ahead`). A value that stays where
            it is for too long is none of a BIOS.
        typed: Told how many chords are done.
        cancelled: Whether to stop: the machine was reset, say, or nobody wants it any more.
        sleep: Waits that many seconds.

    Returns:
        How many chords were typed.

    Raises:
        WrongMoment: The guest does not read its keyboard, or has switched it off.
    """
    count = 0
    bios = True
    for chord in chords:
        if cancelled():
            break
        down = [keys.press(key) for key in chord]
        sleep(HOLD_S)
        up = [keys.release(key) for key in reversed(chord)]
        read = _wait(lambda: keys.keys_waiting and not cancelled(), sleep) and all(down + up)
        if not read and not cancelled():
            raise _not_read(count)
        sleep(GAP_S)
        bios = bios and _wait(lambda: ahead() > _MOST_AHEAD and not cancelled(), sleep)
        count += 1
        typed(count)
    return count


def _not_read(count: int) -> WrongMoment:
    return WrongMoment(
        f"the guest does not read its keyboard; it took {count} keys",
        remedy="Wait until its system is up; `sublet screenshot NAME --text` shows how far it is.",
    )


def _wait(while_true: Callable[[], bool], sleep: Callable[[float], None]) -> bool:
    """Wait for something to end; False when it does not in `_PATIENCE_S`."""
    waited = 0.0
    while while_true():
        if waited >= _PATIENCE_S:
            return False
        sleep(_POLL_S)
        waited += _POLL_S
    return True

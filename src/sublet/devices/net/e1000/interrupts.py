"""Causes, their mask, the pin, and how often it may rise.

Reference: Intel 317453-006 §13.4.17 "ICR" to §13.4.22 "ITR". Deviation: RDTR, RADV, TIDV and TADV, which
ask for more delay, are kept and not acted on; ITR is what bounds the rate.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final

from sublet.devices.net.e1000.registers import INT_ALL
from sublet.hw import Clock

_ITR_UNIT_NS: Final = 256
_NS: Final = 1_000_000_000


class Interrupts:
    """ICR, IMS and ITR. Any thread.

    After the pin has risen it rises again only when the throttle's interval is over: a thread, started
    with the first interrupt that comes too early, waits for that.

    Args:
        set_level: Drives the pin.
        clock: Time.
    """

    def __init__(self, set_level: Callable[[bool], None], clock: Clock) -> None:
        self._set_level = set_level
        self._clock = clock
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._causes = 0
        self._mask = 0
        self._interval_ns = 0
        self._level = False
        self._earliest_ns = 0
        self._waiting = False

    def raise_causes(self, causes: int) -> None:
        """Something happened."""
        with self._changed:
            self._causes |= causes & INT_ALL
            self._update()

    def read_and_clear(self) -> int:
        """ICR: reading it clears it."""
        with self._changed:
            causes, self._causes = self._causes, 0
            self._update()
            return causes

    def clear(self, causes: int) -> None:
        """Writing ones to ICR."""
        with self._changed:
            self._causes &= ~causes
            self._update()

    @property
    def mask(self) -> int:
        """IMS."""
        return self._mask

    def allow(self, causes: int) -> None:
        """Writing IMS."""
        with self._changed:
            self._mask |= causes & INT_ALL
            self._update()

    def forbid(self, causes: int) -> None:
        """Writing IMC."""
        with self._changed:
            self._mask &= ~causes
            self._update()

    def set_interval(self, value: int) -> None:
        """Writing ITR, in units of 256 ns; 0 for no throttling."""
        with self._changed:
            self._interval_ns = (value & 0xFFFF) * _ITR_UNIT_NS

    def _update(self) -> None:
        wanted = bool(self._causes & self._mask)
        if not wanted:
            self._waiting = False
        elif not self._level and self._clock.now_ns() < self._earliest_ns:
            self._wait_for_throttle()
            return
        self._drive(wanted)

    def _drive(self, level: bool) -> None:
        if level == self._level:
            return
        self._level = level
        if level:
            self._earliest_ns = self._clock.now_ns() + self._interval_ns
        self._set_level(level)

    def _wait_for_throttle(self) -> None:
        self._waiting = True
        if self._thread is None and not self._closed:
            self._thread = threading.Thread(target=self._serve, name="e1000", daemon=True)
            self._thread.start()
        self._changed.notify()

    def _serve(self) -> None:
        with self._changed:
            while not self._closed:
                if not self._waiting:
                    self._changed.wait()
                    continue
                remaining = self._earliest_ns - self._clock.now_ns()
                if remaining > 0:
                    self._changed.wait(remaining / _NS)
                    continue
                self._waiting = False
                self._drive(bool(self._causes & self._mask))

    def reset(self) -> None:
        """No cause, none allowed, the pin released."""
        with self._changed:
            self._causes = self._mask = self._interval_ns = self._earliest_ns = 0
            self._update()

    def close(self) -> None:
        """End the thread. Idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def save_state(self) -> dict[str, Any]:
        """Causes, mask and throttle."""
        return {"causes": self._causes, "mask": self._mask, "interval_ns": self._interval_ns}

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``save_state``."""
        with self._changed:
            self._causes, self._mask = state["causes"], state["mask"]
            self._interval_ns, self._earliest_ns = state["interval_ns"], 0
            self._update()

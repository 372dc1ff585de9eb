"""ICH9's chipset configuration registers: memory-mapped, where the LPC bridge's RCBA says.

What the board does not have (HPTC, GCS, the functions' disable bits, RTC and TCO bits) is kept as written,
so that firmware and drivers find what they left. The interrupt routes of the chipset's own functions count.

Reference: Intel ICH9 (316972) chapter 10 "Chipset Configuration Registers".
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final

ROOT_COMPLEX_SIZE: Final = 0x4000
GENERAL_CONTROL: Final = 0x3410
NO_REBOOT: Final = 1 << 5
"""GCS: the watchdog, which the board does not have, does not reset the machine."""

_ROUTES: Final = {31: 0x3140, 29: 0x3144, 28: 0x3146, 27: 0x3148, 26: 0x314C, 25: 0x3150}
"""Offset of DnnIR by slot: four bits a pin, of which three say the PIRQ."""
_DEFAULT_ROUTE: Final = 0x3210
_BRIDGE_SLOT: Final = 30


class RootComplexRegisters:
    """16 KiB of registers, and what wires the chipset's own functions to PIRQs.

    Args:
        on_wiring: Called when `pirq_of` answers otherwise than before.
    """

    def __init__(self, on_wiring: Callable[[], None]) -> None:
        self._on_wiring = on_wiring
        self._bytes = _power_on()

    def pirq_of(self, slot: int, pin: int) -> int:
        """The PIRQ, 0 for PIRQA, that a slot's pin (0 for INTA) drives; cards have PIRQE to H in turn."""
        if slot in _ROUTES:
            (route,) = struct.unpack_from("<H", self._bytes, _ROUTES[slot])
            return int(route >> 4 * pin & 7)
        return 4 + (pin if slot == _BRIDGE_SLOT else (slot + pin) % 4)

    def mmio_read(self, offset: int, size: int) -> int:
        """Bytes as written."""
        return int.from_bytes(self._bytes[offset : offset + size], "little")

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        """Keep the bytes, and follow the routes."""
        end = min(offset + size, ROOT_COMPLEX_SIZE)
        before = self._routes()
        self._bytes[offset:end] = value.to_bytes(size, "little")[: end - offset]
        if self._routes() != before:
            self._on_wiring()

    def _routes(self) -> bytes:
        return bytes(self._bytes[_ROUTES[31] : _ROUTES[25] + 2])

    def save_state(self) -> dict[str, Any]:
        """All registers."""
        return {"bytes": bytes(self._bytes)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of `save_state`; wires anew."""
        self._bytes = bytearray(state["bytes"])
        self._on_wiring()

    def reset(self) -> None:
        """Power-on state."""
        self._bytes = _power_on()
        self._on_wiring()


def _power_on() -> bytearray:
    registers = bytearray(ROOT_COMPLEX_SIZE)
    for offset in _ROUTES.values():
        struct.pack_into("<H", registers, offset, _DEFAULT_ROUTE)
    struct.pack_into("<I", registers, GENERAL_CONTROL, NO_REBOOT)
    return registers

"""The chipset's registers of system-management RAM: where it is, and who sees it.

Reference: Intel 82441FX (290549) §3.2 "SMRAM System Management RAM Control Register"; Intel 3 Series Express
Chipset (316966) §5.1 "SMRAM System Management RAM Control", "ESMRAMC Extended System Management RAM Control".
A TSEG of a size of the machine's own, behind the size that ESMRAMC reserves, is an extension that firmware
for virtual machines knows (QEMU, include/hw/pci-host/q35.h).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from sublet.devices.pci.config_space import ConfigSpace

DECODE_AND_BASE: Final = 0x02
"""The base segment that the register always names: A0000h."""
_ENABLE: Final = 1 << 3
_LOCK: Final = 1 << 4
_CLOSED: Final = 1 << 5
_OPEN: Final = 1 << 6
_WRITABLE: Final = _ENABLE | _LOCK | _CLOSED | _OPEN

_TSEG_ENABLE: Final = 1 << 0
_TSEG_SIZE_SHIFT: Final = 1
_CACHED: Final = 0x38
"""Bits that say SMRAM is cached; they read as ones."""
_HIGH_ENABLE: Final = 1 << 7
_EXTENDED_WRITABLE: Final = _TSEG_ENABLE | 3 << _TSEG_SIZE_SHIFT | _HIGH_ENABLE
_TSEG_MIB: Final = (1, 2, 8)
TSEG_EXTENDED_MIB: Final = 16
"""Size behind the reserved one."""
_QUERY: Final = 0xFFFF


class Smram(NamedTuple):
    """What the registers say."""

    low: bool
    """128 KiB at A0000h."""
    high: bool
    """The same RAM at FEDA0000h in place of A0000h."""
    opened: bool
    """Every processor sees it, in the mode or not."""
    tseg_size: int
    """Bytes below the end of low RAM, 0 for none."""


NO_SMRAM: Final = Smram(low=False, high=False, opened=False, tseg_size=0)


class SmramRegisters:
    """SMRAM and, on chipsets that have TSEG, ESMRAMC, in a host bridge's configuration space.

    D_CLS, which would send data accesses of the mode to video memory, is kept and has no effect.

    Args:
        config: Where they are.
        on_change: Given what they say when that changes.
        register: Offset of SMRAM.
        extended: Offsets of ESMRAMC and of the extension's size; None: no TSEG.
    """

    def __init__(
        self,
        config: ConfigSpace,
        on_change: Callable[[Smram], None],
        register: int,
        extended: tuple[int, int] | None = None,
    ) -> None:
        self._config = config
        self._on_change = on_change
        self._register = register
        self._extended = extended
        self._shown = NO_SMRAM
        self._define()

    def _define(self) -> None:
        """Power-on values."""
        self._config.define(self._register, 1, DECODE_AND_BASE, _WRITABLE)
        if self._extended is not None:
            control, size = self._extended
            self._config.define(control, 1, _CACHED, _EXTENDED_WRITABLE)
            self._config.define(size, 2, 0, 0xFFFF)

    @property
    def state(self) -> Smram:
        """What they say now."""
        value = self._config.get(self._register, 1)
        if not value & _ENABLE:
            return NO_SMRAM
        opened = bool(value & _OPEN)
        if self._extended is None:
            return Smram(low=True, high=False, opened=opened, tseg_size=0)
        control = self._config.get(self._extended[0], 1)
        high = bool(control & _HIGH_ENABLE)
        return Smram(low=not high, high=high, opened=opened, tseg_size=_tseg_size(control))

    def update(self) -> None:
        """After a write to configuration space: answer a query, lock, and tell of a change."""
        if self._extended is not None and self._config.get(self._extended[1], 2) == _QUERY:
            self._config.set(self._extended[1], 2, TSEG_EXTENDED_MIB)
        value = self._config.get(self._register, 1)
        if value & _LOCK:
            self._config.define(self._register, 1, value & ~_OPEN)
            if self._extended is not None:
                self._config.define(self._extended[0], 1, self._config.get(self._extended[0], 1))
        if self.state != self._shown:
            self._shown = self.state
            self._on_change(self._shown)

    def reset(self) -> None:
        """Unlocked, no SMRAM."""
        self._define()
        self.update()

    def unlock(self) -> None:
        """Let saved values be restored; `update` locks again if they say so."""
        self._define()


def _tseg_size(control: int) -> int:
    if not control & _TSEG_ENABLE:
        return 0
    code = control >> _TSEG_SIZE_SHIFT & 3
    return (_TSEG_MIB[code] if code < len(_TSEG_MIB) else TSEG_EXTENDED_MIB) << 20

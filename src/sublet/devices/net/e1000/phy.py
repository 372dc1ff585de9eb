"""The PHY, a Marvell 88E1011 that has negotiated 1000 Mb/s full duplex as soon as it is asked to.

Reference: IEEE 802.3 clause 22.2.4 "Management functions"; Intel 317453-006 §8.10, §13.4.8 "MDIC".
"""

from __future__ import annotations

from typing import Any, Final

CONTROL, STATUS, ID1, ID2, ADVERTISE, PARTNER, EXPANSION = range(7)
GIGABIT_CONTROL, GIGABIT_STATUS, EXTENDED_STATUS = 9, 10, 15
SPECIFIC_CONTROL, SPECIFIC_STATUS, EXTENDED_CONTROL = 16, 17, 20

_CONTROL_RESET, _CONTROL_RESTART = 1 << 15, 1 << 9
_STATUS_LINK, _STATUS_NEGOTIATED = 1 << 2, 1 << 5
_ADDRESS: Final = 1
_OP_WRITE, _OP_READ = 1, 2
_READY, _INTERRUPT, _ERROR = 1 << 28, 1 << 29, 1 << 30
_INITIAL: Final = {
    CONTROL: 0x1140,
    STATUS: 0x7949,
    ID1: 0x0141,
    ID2: 0x0C20,
    ADVERTISE: 0x01E1,
    PARTNER: 0x45E1,
    EXPANSION: 0x000F,
    GIGABIT_CONTROL: 0x0300,
    GIGABIT_STATUS: 0x3C00,
    EXTENDED_STATUS: 0x3000,
    SPECIFIC_CONTROL: 0x0060,
    EXTENDED_CONTROL: 0x0C60,
}
_READ_ONLY: Final = (STATUS, ID1, ID2, PARTNER, EXPANSION, GIGABIT_STATUS, EXTENDED_STATUS, SPECIFIC_STATUS)


class Phy:
    """32 registers of 16 bits, reached through MDIC."""

    def __init__(self) -> None:
        self.link_up = True
        self.reset()

    def reset(self) -> None:
        """Power-on state; the link is what the cable says."""
        self._registers = dict(_INITIAL)
        self._mdic = _READY

    @property
    def mdic(self) -> int:
        """The register MDIC: the last access, done."""
        return self._mdic

    def write_mdic(self, value: int) -> tuple[bool, bool]:
        """Access a register; returns (an interrupt was asked for, negotiation was restarted)."""
        register, address, operation = value >> 16 & 31, value >> 21 & 31, value >> 26 & 3
        restarted = False
        if address != _ADDRESS or operation not in (_OP_WRITE, _OP_READ):
            value |= _ERROR
        elif operation == _OP_READ:
            value = value & ~0xFFFF | self.read(register)
        else:
            restarted = self.write(register, value & 0xFFFF)
        self._mdic = value & 0xFFFF_FFFF | _READY
        return bool(value & _INTERRUPT), restarted

    def read(self, register: int) -> int:
        """A register; those that are not there read as zero."""
        if register == STATUS:
            return self._registers[STATUS] | (_STATUS_LINK | _STATUS_NEGOTIATED if self.link_up else 0)
        if register == SPECIFIC_STATUS:
            return 0xAC00 if self.link_up else 0x8000
        if register in (PARTNER, GIGABIT_STATUS) and not self.link_up:
            return 0
        return self._registers.get(register, 0)

    def write(self, register: int, value: int) -> bool:
        """Set a register; whether that restarted negotiation."""
        if register in _READ_ONLY:
            return False
        if register == CONTROL:
            if value & _CONTROL_RESET:
                self._registers = dict(_INITIAL)
                return True
            self._registers[CONTROL] = value & ~(_CONTROL_RESTART | _CONTROL_RESET)
            return bool(value & _CONTROL_RESTART)
        self._registers[register] = value
        return False

    def save_state(self) -> dict[str, Any]:
        """The registers."""
        return {"registers": dict(self._registers), "mdic": self._mdic}

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``save_state``."""
        self._registers = dict(state["registers"])
        self._mdic = state["mdic"]

"""What firmware and machine agree on about SMIs, through files of fw_cfg.

Reference: QEMU docs/specs/smi.rst is where the machine that firmware knows says so: hw/isa/lpc_ich9.c, files
``etc/smi/supported-features``, ``etc/smi/requested-features`` and ``etc/smi/features-ok``.
"""

from __future__ import annotations

import struct
from typing import Any, Final

from sublet.devices.platform.fw_cfg import FwCfg

BROADCAST: Final = 1 << 0
"""A command at the APM port interrupts every processor, not that which wrote it alone."""
_SUPPORTED: Final = BROADCAST
_SIZE: Final = 8


class SmiFeatures:
    """The firmware writes what it wants, then reads whether that holds; the first yes is final."""

    def __init__(self) -> None:
        self._requested = bytearray(_SIZE)
        self._agreed = 0
        self._done = False

    def add_files(self, fw_cfg: FwCfg) -> None:
        """Offer the three files."""
        fw_cfg.add_file("etc/smi/supported-features", struct.pack("<Q", _SUPPORTED))
        fw_cfg.add_file(
            "etc/smi/requested-features", lambda: bytes(self._requested), size=_SIZE, on_write=self._request
        )
        fw_cfg.add_file("etc/smi/features-ok", self._agree, size=1)

    @property
    def broadcast(self) -> bool:
        """Whether that was agreed on."""
        return bool(self._agreed & BROADCAST)

    def _request(self, offset: int, data: bytes) -> None:
        if not self._done:
            self._requested[offset : offset + len(data)] = data

    def _agree(self) -> bytes:
        requested = int.from_bytes(self._requested, "little")
        if not self._done and not requested & ~_SUPPORTED:
            self._agreed, self._done = requested, True
        return bytes((self._done,))

    def reset(self) -> None:
        """Nothing agreed on."""
        self._requested[:] = bytes(_SIZE)
        self._agreed, self._done = 0, False

    def save_state(self) -> dict[str, Any]:
        """What was requested and what was agreed on."""
        return {"requested": bytes(self._requested), "agreed": self._agreed, "done": self._done}

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``save_state``."""
        self._requested[:] = state["requested"]
        self._agreed, self._done = state["agreed"], state["done"]

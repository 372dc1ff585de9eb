"""Intel's 82540EM, "PRO/1000 MT", which systems have drivers for since 2002."""

from __future__ import annotations

from sublet.devices.net.e1000.device import E1000, OPTION_ROM

__all__ = ["E1000", "OPTION_ROM"]

"""Internal networks: a learning switch in a process of its own, shared by the machines of one user.

The first machine on a network starts the switch, the last one to leave ends it. A process in between,
rather than sockets from machine to machine, so that what one port may do is decided in one place that no
port can bypass, and a machine that dies takes nothing but its own port along.
"""

from __future__ import annotations

from sublet.net.switch.port import SwitchPort, open_internal

__all__ = ["SwitchPort", "open_internal"]

"""Which Ethernet addresses the machines of this user have on a network of the host's kernel.

One file a network; a machine holds a lock on the byte whose number is its address. The kernel lets go of the
lock when the machine ends, however it ends.

Reference: Linux man-pages 6.03 fcntl(2) "Open file description locks".
"""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path
from typing import Final

from sublet.errors import UsageError

_FLOCK: Final = struct.Struct("@hhqqi4x")
"""``struct flock``: type, whence, start, length, process."""


def claim_address(path: Path, mac: bytes, network: str) -> int:
    """Take an address until the descriptor that comes back is closed.

    Args:
        path: Of the network; made when first needed.
        mac: Six bytes.
        network: What people call it.

    Raises:
        UsageError: Another machine has it.
        OSError: The file cannot be had.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    request = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, int.from_bytes(mac, "big"), 1, 0)
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, request)
    except BlockingIOError:
        os.close(descriptor)
        raise UsageError(
            f"another machine has the address {mac.hex(':')} on {network}", remedy="Give another mac=."
        ) from None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor

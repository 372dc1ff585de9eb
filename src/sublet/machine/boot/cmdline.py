"""The kernel command line."""

from __future__ import annotations

from sublet.errors import UsageError
from sublet.hw import GuestMemory
from sublet.machine.memory_map import BOOT_CMDLINE, BOOT_CMDLINE_SIZE


def encode_cmdline(cmdline: str, limit: int) -> bytes:
    """The NUL-terminated command line; ``limit`` is the kernel's, in bytes without the NUL.

    Raises:
        UsageError: Too long, or it holds a NUL.
    """
    data = cmdline.encode("utf-8", "surrogateescape")
    limit = min(limit, BOOT_CMDLINE_SIZE - 1)
    if len(data) > limit:
        raise UsageError(f"the kernel command line has {len(data)} bytes, this kernel takes {limit}")
    if b"\0" in data:
        raise UsageError("the kernel command line contains a NUL byte")
    return data + b"\0"


def write_cmdline(memory: GuestMemory, cmdline: str, limit: int) -> None:
    """Write the command line where the kernel is told that it is; see `encode_cmdline`."""
    memory.write(BOOT_CMDLINE, encode_cmdline(cmdline, limit))

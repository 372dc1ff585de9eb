"""The kernel command line."""

from __future__ import annotations

from typing import Final

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


_VIDEO_MODES: Final = {"normal": 0xFFFF, "ext": 0xFFFE, "ask": 0xFFFD}


def video_mode(cmdline: str) -> int | None:
    """The video mode that ``vga=`` asks the boot loader for; None without one, or one that makes no sense.

    Reference: Linux 6.1 Documentation/x86/boot.rst "Special Command Line Options".
    """
    values = [word.removeprefix("vga=") for word in cmdline.split() if word.startswith("vga=")]
    if not values:
        return None
    text = values[-1].lower()
    if text in _VIDEO_MODES:
        return _VIDEO_MODES[text]
    try:
        # As C has it: 0x is hexadecimal, a leading 0 octal.
        octal = len(text) > 1 and text[0] == "0" and text[1:].isdigit()
        mode = int(text, 8 if octal else 0)
    except ValueError:
        return None
    return mode if 0 <= mode <= 0xFFFF else None


def write_cmdline(memory: GuestMemory, cmdline: str, limit: int) -> None:
    """Write the command line where the kernel is told that it is; see `encode_cmdline`."""
    memory.write(BOOT_CMDLINE, encode_cmdline(cmdline, limit))

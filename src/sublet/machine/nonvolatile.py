"""What a machine keeps over a reset, and, if it has a name, over the end of its run."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from sublet.engine import RamBlock
from sublet.errors import HostRefused
from sublet.machine.config import MachineConfig

_CLOCK_BYTES: Final = 0x0E
_SHUTDOWN_STATUS: Final = 0x0F
_RESUME: Final = 0xFE
"""What SeaBIOS and OVMF find there when the machine wakes from S3 (QEMU, hw/rtc/mc146818rtc.c)."""
_MEMORY_BYTES: Final = frozenset((*range(0x15, 0x19), *range(0x2E, 0x32), 0x34, 0x35, 0x5B, 0x5C, 0x5D))
"""What the machine says of itself with each start: sizes of memory, and the checksum."""


def state_directory() -> Path:
    """Where machines keep what is theirs: ``$XDG_STATE_HOME/sublet/machines``."""
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "sublet" / "machines"


class Nonvolatile:
    """CMOS RAM, UEFI variables and, until the power goes, RAM of one run.

    Args:
        config: The machine; its variables are kept on disk if the user named it.
    """

    def __init__(self, config: MachineConfig) -> None:
        self._path = None if config.name is None else state_directory() / config.name / "uefi-variables.fd"
        self._lock = threading.Lock()
        self._variables: bytes | None = None
        self._cmos: bytes | None = None
        self.ram: RamBlock | None = None
        """The machine's RAM over a reset; None: it starts with fresh RAM."""
        self.shadow: bytes | None = None
        """What the host bridge's attribute map says over a reset; None: ROM below 1 MiB."""
        self.chipset: tuple[int, ...] = ()
        """Registers that outlive S3, see `FirmwareBoard.sleep_registers`."""
        self.wake_reason: int | None = None
        """With what status bit the next cycle wakes from S3; None: it is no wake-up."""

    def variables(self, template: bytes) -> bytes:
        """The variable store as it was left, or the template.

        Raises:
            HostRefused: It is there and cannot be read.
        """
        if self._variables is None and self._path is not None and self._path.exists():
            try:
                self._variables = self._path.read_bytes()
            except OSError as error:
                raise HostRefused(f"cannot read {self._path}: {error.strerror}") from error
        kept = self._variables
        return kept if kept is not None and len(kept) == len(template) else template

    def keep_variables(self, content: bytes) -> None:
        """Keep the variable store; on disk the old one or the new one is there, never half of one.

        Raises:
            HostRefused: It cannot be written.
        """
        with self._lock:
            if content == self._variables:
                return
            self._variables = content
            if self._path is not None:
                _replace(self._path, content)

    def cmos(self) -> list[tuple[int, int]]:
        """Bytes of the CMOS RAM that the guest left, as (index, value)."""
        if self._cmos is None:
            return []
        kept = enumerate(self._cmos)
        values = [(i, value) for i, value in kept if i >= _CLOCK_BYTES and i not in _MEMORY_BYTES]
        return values if self.wake_reason is None else [*values, (_SHUTDOWN_STATUS, _RESUME)]

    def content(self) -> bytes:
        """All 128 bytes of the CMOS RAM as the guest left them, the clock's registers too."""
        return bytes(128) if self._cmos is None else self._cmos

    def keep_chipset(self, values: Sequence[int]) -> None:
        """Keep the chipset's registers until the next start; one that is 0 stays as it was kept before.

        Quirk: SeaBIOS, waking, turns extended configuration space off by means of it, and so cannot turn it
        on again.
        """
        before = self.chipset or (0,) * len(values)
        self.chipset = tuple(value or kept for value, kept in zip(values, before, strict=True))

    def keep_cmos(self, content: bytes) -> None:
        """Keep the CMOS RAM until the next start."""
        self._cmos = content


def _replace(path: Path, content: bytes) -> None:
    """Write a file whole, folders above it included."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".new")
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        raise HostRefused(f"cannot write {path}: {error.strerror}") from error

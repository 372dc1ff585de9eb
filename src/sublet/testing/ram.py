"""RAM of a device without a guest."""

from __future__ import annotations


class FakeRamWindow:
    """Remembers where it is shown (`hw.RamWindow`)."""

    def __init__(self, readonly: bool) -> None:
        self.readonly = readonly
        self.placed: tuple[int, int, int] | None = None
        """Address, size and offset; None while withdrawn."""

    def place(self, gpa: int, size: int, offset: int = 0) -> None:
        """Remember."""
        self.placed = (gpa, size, offset)

    def withdraw(self) -> None:
        """Forget."""
        self.placed = None


class FakeDeviceRam:
    """``size`` zero bytes (`hw.DeviceRam`); ``windows`` in the order they were asked for."""

    def __init__(self, size: int) -> None:
        self.buffer = memoryview(bytearray(size))
        self.windows: list[FakeRamWindow] = []

    def window(self, *, readonly: bool = False) -> FakeRamWindow:
        """A new window."""
        self.windows.append(FakeRamWindow(readonly))
        return self.windows[-1]

"""What the core raises: each class is also the class of ``sublet.errors`` that says what to do next.

Defined in Python and imported by the extension, so that a caller who handles ``sublet.errors`` need
not know of the core, and nothing has to be translated on the way.
"""

from __future__ import annotations

from sublet import errors


class NativeError(errors.SubletError):
    """Base of what the core raises."""


class InvalidError(NativeError, errors.UsageError):
    """The caller asked for something impossible."""


class HostError(NativeError, errors.HostRefused):
    """The host refused; ``errno`` says why."""

    def __init__(self, message: str, errno: int = 0, *, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.errno = errno


class UnsupportedError(NativeError, errors.HostRefused):
    """This engine or this host cannot do it."""


class InternalError(NativeError, errors.InternalError):
    """A bug of ours, a panic of the core among them."""


class GuestFault(NativeError, errors.GuestError):
    """The guest's driver broke a rule."""


class MemoryRangeError(NativeError, errors.GuestError):
    """A guest-physical range is not RAM; it came from the guest more often than not."""

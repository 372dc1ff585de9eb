"""Every error that sublet raises, classed by what the caller does next."""

from __future__ import annotations


class SubletError(Exception):
    """Base of all. ``remedy`` says what to do about it, in a sentence, or is empty."""

    exit_code = 1

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


class UsageError(SubletError):
    """The user asked for something impossible; the message names the value."""

    exit_code = 2


class HostRefused(SubletError):
    """The host would not: no permission, no space, no memory, no such device."""

    exit_code = 3


class ImageError(SubletError):
    """A kernel, initrd, disk or download is not what it says it is."""

    exit_code = 4


class UnsupportedImage(ImageError):
    """Well-formed, but of a kind that sublet does not read."""


class CorruptImage(ImageError):
    """Damaged, truncated, or failing its checksum or signature."""


class GuestError(SubletError):
    """The guest broke a rule (a driver's bad descriptor, say); never ends the machine by itself."""

    exit_code = 5


class WrongMoment(SubletError):
    """The operation does not fit the machine's state."""

    exit_code = 6


class InternalError(SubletError):
    """Our bug."""

    exit_code = 70

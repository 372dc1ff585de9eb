"""sublet: virtual machines for any x86-64 Linux host, with hardware virtualization or without."""

from __future__ import annotations

from sublet.errors import (
    CorruptImage,
    GuestError,
    HostRefused,
    ImageError,
    InternalError,
    SubletError,
    UnsupportedImage,
    UsageError,
    WrongMoment,
)

__all__ = [
    "CorruptImage",
    "GuestError",
    "HostRefused",
    "ImageError",
    "InternalError",
    "SubletError",
    "UnsupportedImage",
    "UsageError",
    "WrongMoment",
]

"""Guests that sublet makes from Debian's packages: fetched, verified, built and cached.

guest = prepare_guest("default")
guest.kernel, guest.initrd, guest.cmdline
"""

from __future__ import annotations

from sublet.guest.catalogue import GuestInfo, PreparedGuest, list_guests, prepare_guest
from sublet.guest.store import Progress, silent

__all__ = ["GuestInfo", "PreparedGuest", "Progress", "list_guests", "prepare_guest", "silent"]

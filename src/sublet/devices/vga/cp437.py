"""What the characters 0 to 255 of a PC's own font look like, in Unicode.

Reference: Unicode Consortium, MAPPINGS/VENDORS/MICSFT/PC/CP437.TXT and MAPPINGS/VENDORS/MISC/IBMGRAPH.TXT.
"""

from __future__ import annotations

_BELOW_SPACE = " ☺☻♥♦♣♠•◘○◙♂♀♪♫☼►◄↕‼¶§▬↨↑↓→←∟↔▲▼"

_ASCII = bytes(range(0x20, 0x7F)).decode("ascii")
_ABOVE_ASCII = bytes(range(0x80, 0xFF)).decode("cp437")

CHARACTERS = f"{_BELOW_SPACE}{_ASCII}⌂{_ABOVE_ASCII} "
"""256 characters; 0 and 255 are blank."""

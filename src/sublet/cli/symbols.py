"""Names for a guest's addresses: from ``/proc/kallsyms`` or a System.map, or from an ELF file."""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from sublet.errors import CorruptImage, HostRefused

_MOST_BYTES: Final = 1 << 30
_FARTHEST: Final = 1 << 20
"""An address so far behind the last symbol before it is in no function of that name."""
_SYMTAB: Final = 2
_FUNCTION: Final = 2


class Symbols:
    """Functions by address."""

    def __init__(self, functions: Iterable[tuple[int, str]]) -> None:
        known = sorted(functions)
        self._addresses = [address for address, _ in known]
        self._names = [name for _, name in known]

    def find(self, address: int) -> str | None:
        """The function that ``address`` is in, as far as can be told."""
        place = bisect_right(self._addresses, address) - 1
        if place < 0 or address - self._addresses[place] > _FARTHEST:
            return None
        return self._names[place]


def load_symbols(files: Sequence[Path]) -> Symbols:
    """The functions that these files name.

    Raises:
        HostRefused: One cannot be read.
        CorruptImage: One is neither a list of symbols nor an ELF file with a symbol table.
    """
    return Symbols(function for file in files for function in _load(file))


def _load(file: Path) -> list[tuple[int, str]]:
    try:
        with file.open("rb") as stream:
            content = stream.read(_MOST_BYTES)
    except OSError as error:
        raise HostRefused(f"cannot read {file}: {error.strerror or error}") from error
    try:
        found = list(_elf(content) if content.startswith(b"\x7fELF") else _listing(content))
    except (ValueError, IndexError, OverflowError, struct.error) as error:
        raise CorruptImage(f"{file}: no list of symbols: {error}") from error
    if not found:
        raise CorruptImage(
            f"{file} names no function", remedy="Give /proc/kallsyms of the guest, as root there."
        )
    return found


def _listing(content: bytes) -> Iterator[tuple[int, str]]:
    """Lines of address, type and name, as nm prints them; functions have type t or w."""
    for line in content.decode(errors="replace").splitlines():
        words = line.split()
        if len(words) >= 3 and words[1] in "tTwW" and int(words[0], 16):
            yield int(words[0], 16), words[2]


def _elf(content: bytes) -> Iterator[tuple[int, str]]:
    """Function symbols of a little-endian ELF64 file (System V ABI, "Symbol Table")."""
    (sections,) = struct.unpack_from("<Q", content, 0x28)
    size, count = struct.unpack_from("<HH", content, 0x3A)
    headers = [struct.unpack_from("<IIQQQQIIQQ", content, sections + i * size) for i in range(count)]
    for header in headers:
        kind, offset, length, link = header[1], header[4], header[5], header[6]
        if kind != _SYMTAB:
            continue
        names = headers[link][4]
        for at in range(offset, offset + length - 23, 24):
            name, info, _, section, value = struct.unpack_from("<IBBHQ", content, at)
            if info & 15 == _FUNCTION and section:
                end = content.index(b"\0", names + name)
                yield value, content[names + name : end].decode(errors="replace")

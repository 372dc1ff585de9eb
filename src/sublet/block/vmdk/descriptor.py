"""The text that describes a VMDK disk: header entries, extent lines and the disk database.

A descriptor is kept line by line as it was found. Changing an entry replaces its line alone, so that
comments, order and entries that we know nothing of survive.

Reference: VMware "Virtual Disk Format 5.0", "The Descriptor File".
"""

from __future__ import annotations

import enum
import re
from contextlib import suppress
from dataclasses import dataclass

from sublet.errors import CorruptImage, UnsupportedImage

MAX_SIZE = 1 << 20
"""Bytes of the longest descriptor that is read."""
NO_PARENT = 0xFFFF_FFFF
_MAX_LINES = 20_000
_MAX_LINE = 4096
_ENCODING = re.compile(rb"^encoding\s*=\s*\"([\w-]{1,20})\"", re.MULTILINE)
_ENCODINGS = ("windows-1252", "iso-8859-1", "shift_jis", "gbk", "big5", "euc-kr", "euc-jp")
"""What VMware's products write besides UTF-8; any other is taken for that."""
_HEADLINE = re.compile(rb"\A(?:\s|#[^\n]*\n)*#\s*disk descriptorfile\s*$", re.IGNORECASE | re.MULTILINE)
_ENTRY = re.compile(r"^\s*([A-Za-z][\w.]*)\s*=\s*(\"?)(.*?)\2\s*$")
_EXTENT = re.compile(
    r"^\s*(RW|RDONLY|NOACCESS)\s+(\d{1,18})\s+([A-Z]+)(?:\s+\"([^\"]*)\"(?:\s+(\d{1,18}))?)?", re.I
)


class ExtentType(enum.Enum):
    """Storage behind an extent."""

    FLAT = "FLAT"
    SPARSE = "SPARSE"
    ZERO = "ZERO"
    VMFS = "VMFS"
    VMFS_SPARSE = "VMFSSPARSE"
    SE_SPARSE = "SESPARSE"


@dataclass(frozen=True)
class ExtentLine:
    """One extent of the disk, in the disk's order."""

    access: str
    """``RW``, ``RDONLY`` or ``NOACCESS``."""
    sectors: int
    type: ExtentType
    filename: str = ""
    """Relative to the descriptor's folder, or absolute; empty for ``ZERO``."""
    offset: int = 0
    """Sectors into the file; ``FLAT`` alone has it."""

    def render(self) -> str:
        """The line, without its end."""
        if self.type is ExtentType.ZERO:
            return f"{self.access} {self.sectors} ZERO"
        tail = f" {self.offset}" if self.type is ExtentType.FLAT else ""
        return f'{self.access} {self.sectors} {self.type.value} "{self.filename}"{tail}'


class Descriptor:
    """A descriptor's lines.

    Raises:
        CorruptImage: No version, type or extent, or an extent line that makes no sense.
        UnsupportedImage: A raw device mapping, or another type of storage.
    """

    def __init__(self, text: str, name: str, encoding: str = "utf-8") -> None:
        self._name = name
        self._encoding = encoding
        self._lines = text.splitlines(keepends=True)
        if len(self._lines) > _MAX_LINES or any(len(line) > _MAX_LINE for line in self._lines):
            raise CorruptImage(f"{name}: the descriptor has too many lines, or too long ones")
        self._end = "\r\n" if "\r\n" in text else "\n"
        self.extents = self._parse_extents()
        if self.get("createType") is None:
            raise CorruptImage(f"{name}: the descriptor has no createType")

    @classmethod
    def decode(cls, data: bytes, name: str) -> Descriptor:
        """From a descriptor's bytes, up to the first NUL.

        Raises:
            CorruptImage: See the class.
        """
        data = data[:MAX_SIZE].partition(b"\0")[0]
        found = _ENCODING.search(data)
        named = found[1].decode().lower() if found else ""
        if named in _ENCODINGS:
            with suppress(UnicodeDecodeError):
                return cls(data.decode(named), name, named)
        return cls(data.decode("utf-8", "surrogateescape"), name)

    def encode(self) -> bytes:
        """The text as bytes; what was not changed comes out as it went in."""
        errors = "surrogateescape" if self._encoding == "utf-8" else "strict"
        return "".join(self._lines).encode(self._encoding, errors)

    def get(self, key: str) -> str | None:
        """The value of an entry, without its quotes."""
        found = self._find(key)
        return None if found is None else found[1][3]

    def set(self, key: str, value: str, *, quoted: bool = True) -> None:
        """Replace an entry's value, or add the entry: ``ddb.`` at the end, others after ``parentCID``."""
        found = self._find(key)
        if found is not None:
            line, match = found
            start, end = match.span(3)
            self._lines[line] = self._lines[line][:start] + value + self._lines[line][end:]
            return
        text = f'{key} = "{value}"' if key.startswith("ddb.") else f'{key}="{value}"'
        self._insert(self._place(key), [text if quoted else f"{key}={value}"])

    def remove(self, key: str) -> None:
        """Remove an entry, if it is there."""
        found = self._find(key)
        if found is not None:
            del self._lines[found[0]]

    def set_extents(self, extents: list[ExtentLine]) -> None:
        """Replace the extent lines."""
        at = next((i for i, line in enumerate(self._lines) if _EXTENT.match(line)), len(self._lines))
        self._lines = [line for line in self._lines if not _EXTENT.match(line)]
        self._insert(at, [extent.render() for extent in extents])
        self.extents = extents

    def _insert(self, at: int, lines: list[str]) -> None:
        if at and not self._lines[at - 1].endswith(("\n", "\r")):
            self._lines[at - 1] += self._end
        self._lines[at:at] = [line + self._end for line in lines]

    @property
    def create_type(self) -> str:
        """What the tool that made the disk calls its kind."""
        return self.get("createType") or ""

    @property
    def content_id(self) -> int:
        """``CID``: changes with the content."""
        return self._hex("CID", 0)

    @property
    def parent_content_id(self) -> int:
        """The parent's ``CID`` when the child was made, or ``NO_PARENT``."""
        return self._hex("parentCID", NO_PARENT)

    @property
    def parent_hint(self) -> str | None:
        """Path of the parent, relative to the descriptor's folder or absolute; None without a parent."""
        if self.parent_content_id == NO_PARENT:
            return None
        return self.get("parentFileNameHint") or ""

    @property
    def sectors(self) -> int:
        """Sectors of the disk."""
        return sum(extent.sectors for extent in self.extents)

    def _hex(self, key: str, default: int) -> int:
        text = self.get(key)
        if text is None:
            return default
        if not re.fullmatch(r"[0-9A-Fa-f]{1,8}", text):
            raise CorruptImage(f"{self._name}: {key} in the descriptor is not a 32-bit number")
        return int(text, 16)

    def _find(self, key: str) -> tuple[int, re.Match[str]] | None:
        for number, line in enumerate(self._lines):
            match = _ENTRY.match(line)
            if match and match[1].lower() == key.lower():
                return number, match
        return None

    def _place(self, key: str) -> int:
        if key.startswith("ddb."):
            return len(self._lines)
        after = self._find("parentCID") or self._find("CID") or self._find("version")
        return after[0] + 1 if after else len(self._lines)

    def _parse_extents(self) -> list[ExtentLine]:
        extents = [self._extent(match) for match in map(_EXTENT.match, self._lines) if match]
        if not extents:
            raise CorruptImage(f"{self._name}: the descriptor has no extents")
        return extents

    def _extent(self, match: re.Match[str]) -> ExtentLine:
        access, count, kind, filename, offset = match.groups()
        try:
            extent_type = ExtentType(kind.upper())
        except ValueError:
            raise UnsupportedImage(f"{self._name}: an extent of type {kind}") from None
        if extent_type is not ExtentType.ZERO and (not filename or "\0" in filename):
            raise CorruptImage(f"{self._name}: an extent without a file name: {match[0]}")
        return ExtentLine(access.upper(), int(count), extent_type, filename or "", int(offset or 0))


def probe(head: bytes) -> bool:
    """Whether ``head`` begins a descriptor: comments first, "Disk DescriptorFile" among them."""
    return _HEADLINE.search(head[:1024]) is not None


def make(
    create_type: str,
    extents: list[ExtentLine],
    *,
    content_id: int,
    parent_content_id: int = NO_PARENT,
    parent_hint: str | None = None,
    adapter: str = "ide",
    hardware_version: str = "4",
) -> Descriptor:
    """A new descriptor.

    Args:
        create_type: ``monolithicSparse``, say.
        extents: In the disk's order.
        content_id: Any 32-bit number but 0xFFFFFFFF and 0xFFFFFFFE.
        parent_content_id: The parent's, or ``NO_PARENT``.
        parent_hint: Path of the parent.
        adapter: ``ide``, ``buslogic``, ``lsilogic`` or ``legacyESX``; decides the geometry.
        hardware_version: VMware's virtual hardware version.
    """
    cylinders, heads, sectors = geometry(sum(extent.sectors for extent in extents), adapter)
    lines = [
        "# Disk DescriptorFile",
        "version=1",
        f"CID={content_id:08x}",
        f"parentCID={parent_content_id:08x}",
        f'createType="{create_type}"',
        *([f'parentFileNameHint="{parent_hint}"'] if parent_hint is not None else []),
        "",
        "# Extent description",
        *(extent.render() for extent in extents),
        "",
        "# The Disk Data Base",
        "#DDB",
        "",
        f'ddb.virtualHWVersion = "{hardware_version}"',
        f'ddb.geometry.cylinders = "{cylinders}"',
        f'ddb.geometry.heads = "{heads}"',
        f'ddb.geometry.sectors = "{sectors}"',
        f'ddb.adapterType = "{adapter}"',
    ]
    return Descriptor("\n".join(lines) + "\n", "the new descriptor")


def geometry(total: int, adapter: str) -> tuple[int, int, int]:
    """Cylinders, heads and sectors of a disk of ``total`` sectors."""
    heads, sectors = (16, 63) if adapter == "ide" else (255, 63)
    return min(total // (heads * sectors), 0xFFFF), heads, sectors

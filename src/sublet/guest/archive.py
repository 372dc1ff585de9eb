"""A Debian archive as sublet sees it: what packages there are, what they need, and how to get them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, cmp_to_key
from pathlib import Path
from typing import Final, Protocol

from sublet.errors import CorruptImage, UsageError

SUITE: Final = "bookworm"
"""The Debian release that guests are made from (Debian 12)."""

_RELATION: Final = re.compile(r"\s*([a-z0-9][a-z0-9+.-]*)(?::\w+)?\s*(?:\(\s*([<>=]+)\s*([^)\s]+)\s*\))?")


@dataclass(frozen=True)
class Package:
    """One version of one package, as an archive's index describes it; ``base`` is that archive's address."""

    fields: Mapping[str, str]
    base: str = ""

    @cached_property
    def name(self) -> str:
        return self._required("Package")

    @cached_property
    def version(self) -> str:
        return self._required("Version")

    @cached_property
    def sha256(self) -> str:
        return self._required("SHA256")

    @cached_property
    def filename(self) -> str:
        """Path below the archive's root, as in ``pool/main/b/bash/bash_5.2_amd64.deb``."""
        return self._required("Filename")

    @cached_property
    def size(self) -> int:
        """Bytes of the ``.deb``."""
        text = self._required("Size")
        if not text.isdigit():
            raise CorruptImage(f"the package index gives {self.name} the size {text!r}")
        return int(text)

    def depends(self) -> list[list[str]]:
        """Names that must be there, each with its alternatives, from Pre-Depends and Depends."""
        text = ",".join(self.fields.get(field, "") for field in ("Pre-Depends", "Depends"))
        return [_alternatives(clause) for clause in text.split(",") if clause.strip()]

    def provides(self) -> list[str]:
        """Names of the virtual packages that this one stands for."""
        return [
            name for clause in self.fields.get("Provides", "").split(",") for name in _alternatives(clause)
        ]

    def _required(self, field: str) -> str:
        value = self.fields.get(field)
        if value is None:
            name = self.fields.get("Package", "a package")
            raise CorruptImage(f"the package index gives {name} no {field}")
        return value


class PackageIndex:
    """The newest version of every package in one or several ``Packages`` files."""

    def __init__(self, packages: Iterable[Package]) -> None:
        self._packages: dict[str, Package] = {}
        for package in packages:
            held = self._packages.get(package.name)
            if held is None or compare_versions(package.version, held.version) > 0:
                self._packages[package.name] = package
        self._providers: dict[str, list[str]] = {}
        for name in sorted(self._packages):
            for virtual in self._packages[name].provides():
                self._providers.setdefault(virtual, []).append(name)

    def __contains__(self, name: str) -> bool:
        return name in self._packages

    def __getitem__(self, name: str) -> Package:
        try:
            return self._packages[name]
        except KeyError:
            message = f"there is no package {name!r} in Debian {SUITE}"
            raise UsageError(message, remedy="Check its name at packages.debian.org.") from None

    def with_priority(self, *priorities: str) -> list[str]:
        """Names of the packages of these priorities, sorted."""
        return sorted(n for n, p in self._packages.items() if p.fields.get("Priority") in priorities)

    def closure(self, names: Iterable[str]) -> list[Package]:
        """These packages and all that they depend on, sorted by name.

        Of alternatives the first that is already chosen counts, else the first that exists; versions are not
        compared, because one release of Debian is consistent in itself. Recommendations are left out.

        Raises:
            UsageError: A named package does not exist.
            CorruptImage: A dependency cannot be met from this index.
        """
        chosen: dict[str, Package] = {}
        waiting = [self[name] for name in dict.fromkeys(names)]
        chosen.update((package.name, package) for package in waiting)
        while waiting:
            package = waiting.pop(0)
            for alternatives in package.depends():
                needed = self._choose(alternatives, chosen, package.name)
                if needed.name not in chosen:
                    chosen[needed.name] = needed
                    waiting.append(needed)
        return [chosen[name] for name in sorted(chosen)]

    def _choose(self, alternatives: list[str], chosen: Mapping[str, Package], wanted_by: str) -> Package:
        candidates = [name for alternative in alternatives for name in self._named(alternative)]
        for name in candidates:
            if name in chosen:
                return chosen[name]
        if not candidates:
            raise CorruptImage(
                f"{wanted_by} needs {' | '.join(alternatives)}, which the archive does not have"
            )
        return self._packages[candidates[0]]

    def _named(self, name: str) -> list[str]:
        own = [name] if name in self._packages else []
        return own + [provider for provider in self._providers.get(name, ()) if provider != name]


class Archive(Protocol):
    """Where packages come from. Whatever it returns has been verified."""

    def index(self) -> PackageIndex:
        """What the archive has, its signature checked."""
        ...

    def fetch(self, packages: list[Package], directory: Path) -> list[Path]:
        """Put the packages' ``.deb`` files into ``directory``, checksums checked; paths in that order."""
        ...


def parse_packages(text: str, base: str = "") -> Iterator[Package]:
    """The stanzas of the ``Packages`` file of the archive at ``base``.

    Reference: deb822(5); Debian Policy 4.6 §5.1 "Syntax of control files".
    """
    for stanza in text.split("\n\n"):
        fields = parse_stanza(stanza)
        if fields:
            yield Package(fields, base)


def parse_stanza(stanza: str) -> dict[str, str]:
    """One stanza's fields; continued lines are joined by newlines."""
    fields: dict[str, str] = {}
    name = ""
    for line in stanza.splitlines():
        if line[:1] in (" ", "\t"):
            if name:
                fields[name] += "\n" + line.strip()
        elif not line.startswith("#"):
            name, colon, value = line.partition(":")
            if colon:
                fields[name] = value.strip()
    return fields


def compare_versions(left: str, right: str) -> int:
    """Negative, zero or positive as ``left`` is older than, the same as, or newer than ``right``.

    Reference: Debian Policy 4.6 §5.6.12 "Version".
    """
    left_epoch, left_rest = _split_epoch(left)
    right_epoch, right_rest = _split_epoch(right)
    if left_epoch != right_epoch:
        return left_epoch - right_epoch
    left_upstream, _, left_revision = left_rest.rpartition("-") if "-" in left_rest else (left_rest, "", "")
    right_upstream, _, right_revision = (
        right_rest.rpartition("-") if "-" in right_rest else (right_rest, "", "")
    )
    return _compare_part(left_upstream, right_upstream) or _compare_part(left_revision, right_revision)


version_key = cmp_to_key(compare_versions)


def _split_epoch(version: str) -> tuple[int, str]:
    epoch, colon, rest = version.partition(":")
    return (int(epoch), rest) if colon and epoch.isdigit() else (0, version)


def _compare_part(left: str, right: str) -> int:
    """Compare piece by piece: non-digits by rank, then digits as numbers."""
    for (left_text, left_number), (right_text, right_number) in zip(*_same_length(left, right), strict=True):
        if left_text != right_text:
            return 1 if left_text > right_text else -1
        if left_number != right_number:
            return left_number - right_number
    return 0


_Piece = tuple[list[int], int]


def _same_length(left: str, right: str) -> tuple[list[_Piece], list[_Piece]]:
    pieces = _pieces(left), _pieces(right)
    length = max(map(len, pieces))
    for half in pieces:
        half.extend([([0], 0)] * (length - len(half)))
    return pieces


def _pieces(text: str) -> list[_Piece]:
    found = re.findall(r"([^0-9]*)([0-9]*)", text)
    return [([*map(_rank, word), 0], int(number or 0)) for word, number in found if word or number]


def _rank(character: str) -> int:
    """A tilde sorts before the end (0), letters before all others."""
    if character == "~":
        return -1
    return ord(character) if character.isalpha() else ord(character) + 256


def _alternatives(clause: str) -> list[str]:
    return [match.group(1) for part in clause.split("|") if (match := _RELATION.match(part))]

"""The shell scripts that guests run first, which lie in ``scripts`` beside this module."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sublet.guest.store import cache_key

_FOLDER: Final = Path(__file__).with_name("scripts")


def script(name: str) -> bytes:
    """The content of one."""
    return (_FOLDER / name).read_bytes()


def scripts_digest() -> str:
    """Sixteen hexadecimal digits that differ when any of the scripts does."""
    files = sorted(_FOLDER.iterdir(), key=lambda file: file.name)
    return cache_key(*(f"{file.name}\n{file.read_text()}" for file in files))

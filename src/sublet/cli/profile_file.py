"""Writing a guest's profile for viewers: the JSON of speedscope, one stack a place.

A stack is the side (kernel, or a user program by its page tables), the function where symbols name it,
and the block. https://github.com/jlfwong/speedscope/wiki/Importing-from-custom-sources
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sublet.cli.symbols import Symbols
from sublet.errors import HostRefused
from sublet.machine import Place

_SCHEMA = "https://www.speedscope.app/file-format-schema.json"


def write_profile(file: Path, counts: Mapping[Place, int], symbols: Symbols) -> None:
    """Write the places, the most frequent first.

    Raises:
        HostRefused: The file cannot be written.
    """
    try:
        file.write_text(json.dumps(speedscope(counts, symbols)) + "\n")
    except OSError as error:
        raise HostRefused(f"cannot write {file}: {error.strerror or error}") from error


def speedscope(counts: Mapping[Place, int], symbols: Symbols) -> dict[str, Any]:
    """The document, see the module."""
    frames: dict[str, int] = {}
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    stacks = [
        [frames.setdefault(name, len(frames)) for name in _stack(place, symbols)] for place, _ in ordered
    ]
    weights = [count for _, count in ordered]
    profile = {
        "type": "sampled",
        "name": "guest",
        "unit": "none",
        "startValue": 0,
        "endValue": sum(weights),
        "samples": stacks,
        "weights": weights,
    }
    shared = {"frames": [{"name": name} for name in frames]}
    return {"$schema": _SCHEMA, "exporter": "sublet", "shared": shared, "profiles": [profile]}


def _stack(place: Place, symbols: Symbols) -> list[str]:
    """Names from the outermost to the block."""
    side = f"user {place.address_space:#x}" if place.privilege == 3 else "kernel"
    function = symbols.find(place.address)
    block = f"{place.address:#x}" if place.translated else f"{place.address:#x} (engine)"
    return [side, function, block] if function else [side, block]

"""Damage that follows what the parser's code does with it: libFuzzer's coverage guidance, through atheris.

An input is no image but a list of changes to one of the corpus, so that it stays small however large the
images are: corpus entry, file, then changes of 12 bytes each (size and kind, reach, offset, value).
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

Content = dict[Path, bytes]

_CHANGE = struct.Struct("<BBHQ")
_REACHES = (128, 600, 4096, 1 << 16)
_LARGEST_INPUT = 2 + 16 * _CHANGE.size


def available() -> bool:
    """Whether atheris is installed."""
    try:
        import atheris  # noqa: F401
    except ImportError:
        return False
    return True


def changed(corpus: Sequence[tuple[Path, Content]], data: bytes) -> tuple[Path, Content]:
    """The image that an input stands for: its path, and all files."""
    head = data[:2].ljust(2, b"\0")
    path, original = corpus[head[0] % len(corpus)]
    content = dict(original)
    names = sorted(content)
    victim = path if head[1] < 192 else names[head[1] % len(names)]
    image = bytearray(content[victim])
    for kind, reach, place, value in _CHANGE.iter_unpack(data[2 : 2 + (len(data) - 2) // 12 * 12]):
        if kind >= 250:
            del image[value % (len(image) + 1) :]
            continue
        size = 1 << (kind & 3)
        limit = min(len(image), _REACHES[reach & 3] if reach < 224 else len(image))
        offset = (place * (limit >> 16 or 1)) % max(1, limit)
        raw = value.to_bytes(8, "little")[:size]
        image[offset : offset + size] = (raw[::-1] if kind & 4 else raw)[: len(image) - offset]
    content[victim] = bytes(image)
    return path, content


def run(
    corpus: Sequence[tuple[Path, Content]], use: Callable[[Path, Content], None], seconds: float, seed: int
) -> None:
    """Fuzz for so long; ends the process, with code 77 on a finding, which is kept beside.

    ``use`` raises what it finds.
    """
    import atheris

    def one(data: bytes) -> None:
        if len(data) >= 2:
            use(*changed(corpus, data))

    for module in [module for name, module in sys.modules.items() if name.startswith("sublet.block")]:
        _instrument(atheris, module)
    options = [f"-max_total_time={int(seconds)}", f"-seed={seed % (1 << 31)}", f"-max_len={_LARGEST_INPUT}"]
    options += ["-rss_limit_mb=1024", "-verbosity=0", "-len_control=0", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *options], one)
    print("guided by coverage", flush=True)
    atheris.Fuzz()


def _instrument(atheris, module) -> None:  # type: ignore[no-untyped-def]
    """Have every function of a module, and of its classes, report where it goes."""
    for holder in [module, *(value for value in vars(module).values() if isinstance(value, type))]:
        if getattr(holder, "__module__", module.__name__) != module.__name__:
            continue
        for value in list(vars(holder).values()):
            function = getattr(value, "__func__", value)
            if hasattr(function, "__code__") and function.__module__ == module.__name__:
                atheris.instrument_func(function)

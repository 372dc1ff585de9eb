"""What a disk may hold after the host crashed, and every state that the host's files may then be in.

Between two flushes the host may have put any part of what was written on the disk, in any order, and the last
sectors of a write may be missing. After the crash each sector of the disk must read as at the last flush that
returned, or as one of the requests since then made it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sublet.block import Image
from sublet.testing.hostfile import Event, MemoryFiles, Recording, torn

SECTOR = 512
Content = dict[Path, bytearray]


@dataclass
class History:
    """What was asked of a disk, and when: times are counts of events that had reached the host."""

    recording: Recording
    disk: bytearray
    flushes: list[tuple[int, bytes]] = field(default_factory=list)
    requests: list[tuple[int, int, bytes | None]] = field(default_factory=list)
    """When, offset, and what the range then holds; None: nobody knows."""
    _flushed_requests: list[int] = field(default_factory=list)

    def now(self) -> int:
        """Events so far."""
        return len(self.recording.events)

    def write(self, image: Image, offset: int, data: bytes) -> None:
        """Write."""
        self.requests.append((self.now(), offset, data))
        self.disk[offset : offset + len(data)] = data
        image.write(offset, data)

    def write_zeroes(self, image: Image, offset: int, size: int, *, unmap: bool) -> None:
        """Zero."""
        self.requests.append((self.now(), offset, bytes(size)))
        self.disk[offset : offset + size] = bytes(size)
        image.write_zeroes(offset, size, unmap=unmap)

    def discard(self, image: Image, offset: int, size: int) -> None:
        """Discard; whole sectors of known content follow, as later reads must be predictable."""
        self.requests.append((self.now(), offset, None))
        self.requests.append((self.now(), offset, bytes([size // SECTOR % 251]) * size))
        image.discard(offset, size)
        self.write(image, offset, random.Random(size).randbytes(size))

    def resize(self, image: Image, size: int) -> None:
        """Resize; what is cut may be gone, what is new is zero."""
        old = len(self.disk)
        self.requests.append((self.now(), min(size, old), None))
        image.resize(size)
        self.disk[size:] = bytes(max(0, size - old))
        self.flushed()

    def revert(self, image: Image, name: str, content: bytes) -> None:
        """Revert to a snapshot of that content."""
        self.requests.append((self.now(), 0, content))
        self.disk[:] = content
        image.revert_snapshot(name)
        self.flushed()

    def flush(self, image: Image) -> None:
        """Flush."""
        image.flush()
        self.flushed()

    def flushed(self) -> None:
        """All that was asked for is on stable storage."""
        self.flushes.append((self.now(), bytes(self.disk)))
        self._flushed_requests.append(len(self.requests))

    def require_possible(self, when: int, disk: bytes) -> None:
        """Fail unless ``disk`` is what may be found after a crash at ``when``."""
        index = max(i for i, (time, _) in enumerate(self.flushes) if time <= when)
        before = self.flushes[index][1]
        since = [r for r in self.requests[self._flushed_requests[index] :] if r[0] <= when]
        for at in range(0, min(len(disk), len(before)), SECTOR):
            sector = disk[at : at + SECTOR]
            if sector != before[at : at + SECTOR] and not _explained(since, before, at, sector):
                raise AssertionError(f"the sector at {at} holds neither what was flushed nor what came since")


def _explained(since: list[tuple[int, int, bytes | None]], before: bytes, at: int, sector: bytes) -> bool:
    """Whether some of the requests, in their order, may have left this in a sector."""
    states = {before[at : at + SECTOR]}
    for _, offset, data in since:
        size = len(before) - offset if data is None else len(data)
        if offset >= at + SECTOR or offset + size <= at:
            continue
        if data is None:
            return True
        states |= {_overlaid(state, at, offset, data) for state in states}
    return sector in states


def _overlaid(state: bytes, at: int, offset: int, data: bytes) -> bytes:
    start, end = max(at, offset), min(at + SECTOR, offset + len(data))
    return state[: start - at] + data[start - offset : end - offset] + state[end - at :]


@dataclass(frozen=True)
class CrashState:
    """Files as the host may hold them after a crash.

    ``when`` counts the events of which nothing is left out but what ``what`` says.
    """

    when: int
    what: str
    content: Content


def crash_states(recording: Recording, rng: random.Random, *, maximum: int) -> Iterator[CrashState]:
    """Prefixes of what was recorded, and within each epoch writes left out and torn; at most ``maximum``."""
    plans = [plan for epoch in recording.epochs() for plan in _plans(recording, epoch, rng)]
    if len(plans) > maximum:
        plans = [plans[index] for index in sorted(rng.sample(range(len(plans)), maximum))]
    base, done = recording.after([]), 0
    for start, when, what, kept in plans:
        _apply(base, recording.events[done:start])
        done = start
        content = {path: bytearray(data) for path, data in base.items()}
        _apply(content, kept)
        yield CrashState(when, what, content)


def _plans(
    recording: Recording, epoch: tuple[int, int], rng: random.Random
) -> list[tuple[int, int, str, list[Event]]]:
    start, end = epoch
    events = recording.events[start:end]
    plans = [
        (start, start + count, f"the first {count} of {len(events)}", events[:count])
        for count in range(len(events))
    ]
    for _ in range(2 if len(events) > 1 else 0):
        kept = [event for event in events if event.kind == "flush" or rng.random() < 0.6]
        plans.append((start, end - 1, "some left out", kept))
    writes = [event for event in events if event.kind == "write" and len(event.data) > SECTOR]
    if writes:
        cut = rng.choice(writes)
        whole = [event for event in events if rng.random() < 0.8 or event is cut]
        sectors = rng.randrange(len(cut.data) // SECTOR)
        kept = [torn(event, sectors) if event is cut else event for event in whole]
        plans.append((start, end - 1, f"a write torn after {sectors} sectors", kept))
    return plans


def _apply(content: Content, events: list[Event]) -> None:
    files = MemoryFiles(content)
    for event in events:
        if event.kind == "create":
            content.setdefault(event.path, bytearray())
        elif event.kind == "remove":
            files.remove(event.path)
        elif event.path not in content:
            continue
        elif event.kind == "write":
            files.open(event.path, readonly=False).write(event.offset, event.data)
        elif event.kind == "truncate":
            files.open(event.path, readonly=False).truncate(event.offset)

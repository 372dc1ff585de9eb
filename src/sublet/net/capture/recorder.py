"""Writing what passes on some cables to a file, on a thread of its own."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, Final

from sublet.net.cable import Cable, Direction
from sublet.net.capture import pcapng
from sublet.net.capture.filter import compile_filter
from sublet.net.offload import complete
from sublet.net.packet import ALL_OFFLOADS, HEADER_SIZE, Offload

QUEUE_SIZE: Final = 4096
"""Packets that wait to be written; what comes beyond is not recorded, and counted."""
SNAP_LENGTH: Final = 262144
_FLUSH_INTERVAL_S: Final = 0.5
_DIRECTIONS: Final = {Direction.INBOUND: pcapng.INBOUND, Direction.OUTBOUND: pcapng.OUTBOUND}


@dataclass(frozen=True)
class Recorded:
    """One cable and how the file names it."""

    name: str
    description: str
    mac: bytes
    cable: Cable


class Recorder:
    """Records from construction until ``close``, or until its limit.

    Args:
        output: Binary; closed by ``close``.
        cables: What to record.
        filter_text: Which frames; see `compile_filter`.
        snap_length: Bytes of each frame that are kept.
        limit: Frames to record; 0 for no limit.

    Raises:
        UsageError: The filter is none.
    """

    def __init__(
        self,
        output: IO[bytes],
        cables: Sequence[Recorded],
        *,
        filter_text: str = "",
        snap_length: int = SNAP_LENGTH,
        limit: int = 0,
    ) -> None:
        self._wanted = compile_filter(filter_text)
        self._output = output
        self._snap_length = snap_length
        self._limit = limit
        self._queue: queue.Queue[tuple[int, int, bytes, int, Direction, str | None] | None]
        self._queue = queue.Queue(QUEUE_SIZE)
        self.recorded = 0
        self.missed = 0
        self.failure: OSError | None = None
        self.finished = threading.Event()
        """Set when the limit is reached, or the file cannot be written."""
        output.write(pcapng.section("sublet"))
        for each in cables:
            output.write(pcapng.interface(each.name, each.description, each.mac, snap_length, filter_text))
        self._thread = threading.Thread(target=self._write_all, name="capture", daemon=True)
        self._thread.start()
        self._observers = [(each.cable, _Observer(self._offer, number)) for number, each in enumerate(cables)]
        for cable, observer in self._observers:
            cable.watch(observer)

    def _offer(self, number: int, packet: bytes, direction: Direction, comment: str | None) -> None:
        """Keep a packet if it is wanted and there is room. Any thread; never blocks."""
        if self.finished.is_set():
            return
        made = complete(packet, ALL_OFFLOADS & ~Offload.CHECKSUM) if packet[0] and not packet[1] else [packet]
        frame = (made[0] if made else packet)[HEADER_SIZE:]
        if not self._wanted(frame):
            return
        kept = frame[: self._snap_length]
        try:
            self._queue.put_nowait((number, time.time_ns(), kept, len(frame), direction, comment))
        except queue.Full:
            self.missed += 1

    def _write_all(self) -> None:
        try:
            while True:
                try:
                    entry = self._queue.get(timeout=_FLUSH_INTERVAL_S)
                except queue.Empty:
                    self._output.flush()
                    continue
                if entry is None:
                    return
                self._write(*entry)
        except OSError as error:
            self.failure = error
            self.finished.set()

    def _write(
        self, number: int, when: int, kept: bytes, length: int, direction: Direction, comment: str | None
    ) -> None:
        if self._limit and self.recorded >= self._limit:
            return
        self._output.write(pcapng.packet(number, when, kept, length, _DIRECTIONS[direction], comment))
        self.recorded += 1
        if self.recorded == self._limit:
            self.finished.set()

    def close(self) -> None:
        """Record no more; write what waits, the statistics, and close the file.

        Raises:
            OSError: The file could not be written to its end.
        """
        for cable, observer in self._observers:
            cable.unwatch(observer)
        while self._thread.is_alive():
            try:
                self._queue.put(None, timeout=0.1)
                break
            except queue.Full:
                continue
        self._thread.join()
        with self._output:
            if self.failure is not None:
                raise self.failure
            now = time.time_ns()
            for number in range(len(self._observers)):
                self._output.write(pcapng.statistics(number, now, self.recorded + self.missed, self.missed))


class _Observer:
    """One cable's way into the recorder."""

    def __init__(self, offer: Callable[[int, bytes, Direction, str | None], None], number: int) -> None:
        self._offer = offer
        self._number = number

    def passed(self, direction: Direction, packets: Sequence[bytes]) -> None:
        for packet in packets:
            self._offer(self._number, packet, direction, None)

    def dropped(self, direction: Direction, packet: bytes, reason: str) -> None:
        self._offer(self._number, packet, direction, f"dropped: {reason}")

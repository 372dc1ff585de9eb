"""A guest that goes on writing to a drive, and knows what the disk must hold."""

from __future__ import annotations

import random
import threading

from sublet.block.live.drive import Drive

SECTOR = 512
_LARGEST = 256


class BusyGuest:
    """Two threads with a half of the disk each; every request is checked against plain bytes.

    Args:
        drive: The disk.
    """

    def __init__(self, drive: Drive, seed: int = 1) -> None:
        self._drive = drive
        self.disk = bytearray(drive.read(0, drive.size))
        self.requests = 0
        self._stop = threading.Event()
        self._errors: list[BaseException] = []
        half = drive.size // 2
        self._threads = [
            threading.Thread(target=self._work, args=(random.Random(seed + n), n * half, half), daemon=True)
            for n in range(2)
        ]

    def __enter__(self) -> BusyGuest:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        if self._errors:
            raise self._errors[0]

    def wait_for(self, requests: int) -> None:
        """Return once so many more requests were made."""
        goal = self.requests + requests
        while self.requests < goal and not self._errors:
            self._stop.wait(0.001)

    def _work(self, rng: random.Random, start: int, size: int) -> None:
        try:
            while not self._stop.is_set():
                self._request(rng, start, size)
                self.requests += 1
        except BaseException as error:
            self._errors.append(error)

    def _request(self, rng: random.Random, start: int, size: int) -> None:
        sectors = rng.randrange(1, _LARGEST)
        offset = start + rng.randrange(size // SECTOR - sectors) * SECTOR
        length = sectors * SECTOR
        choice = rng.random()
        if choice < 0.5:
            data = rng.randbytes(length)
            self._drive.write(offset, data)
            self.disk[offset : offset + length] = data
        elif choice < 0.6:
            self._drive.write_zeroes(offset, length)
            self.disk[offset : offset + length] = bytes(length)
        elif choice < 0.7:
            self._drive.flush()
        else:
            same = self._drive.read(offset, length) == self.disk[offset : offset + length]
            assert same, f"the guest reads something else at {offset}"

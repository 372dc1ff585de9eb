"""Machines with firmware whose guest programs every register at random, and resets, in turn.

Runs for SUBLET_FUZZ_SECONDS (20), at least one round. What a guest did is not to be repeated exactly, because
it starts from the time-stamp counter: the seeds of its boots are on its console.
"""

from __future__ import annotations

import itertools
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.guests.fuzzed_machine import fuzz_machine

from sublet.machine.firmware import find_image

_ROUND_S = 20.0
_IMAGES = {"bios": "bios-256k.bin", "uefi": "OVMF_CODE_4M.fd"}


def main() -> int:
    """Entry point."""
    seconds = float(os.environ.get("SUBLET_FUZZ_SECONDS", "20"))
    kinds = [firmware for firmware, image in _IMAGES.items() if find_image((image,)) is not None]
    if "uefi" in kinds and shutil.which("mformat") is None:
        kinds.remove("uefi")
    if not kinds:
        print("no firmware is installed: nothing was fuzzed")
        return 0
    started = time.monotonic()
    for number in itertools.count():
        firmware, machine = kinds[number % len(kinds)], ("pc", "q35")[number // 2 % 2]
        leave, cpus = ("key", "signal")[number // 4 % 2], 1 + number // 8 % 2
        with tempfile.TemporaryDirectory() as folder:
            boots = fuzz_machine(
                Path(folder), machine, firmware, cpus=cpus, seconds=min(seconds, _ROUND_S), leave=leave
            )
        print(f"{machine}, {firmware}, {cpus} vCPUs, left by {leave}: {boots} boots", flush=True)
        if time.monotonic() - started > seconds:
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())

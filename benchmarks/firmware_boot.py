"""Time from power-on to login of a disk that firmware boots: ours against QEMU's TCG, interleaved.

    scripts/make-debian-disk debian.img
    python benchmarks/firmware_boot.py debian.img --runs 5

Every run works on a copy of the disk. The two start one after the other, and the medians are compared; a
ratio below 1 is faster than TCG.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Final

from guest_benchmark import newest_qemu
from installed import compile_modules

from sublet.machine.firmware import find_image

TIME_LIMIT_S: Final = 300
MEMORY_MIB: Final = 512
_LOGIN: Final = b" login:"


def our_command(disk: Path, firmware: str) -> list[str]:
    """``sublet run`` with a virtio disk on the translator."""
    machine = "q35" if firmware == "uefi" else "pc"
    base = [sys.executable, "-m", "sublet", "run", "--engine", "translate", "--machine", machine]
    words = ["--firmware", firmware, "--memory", f"{MEMORY_MIB}M", "--net", "none"]
    return [*base, *words, "--disk", f"{disk},format=raw,bus=virtio"]


def qemu_command(disk: Path, firmware: str, machine: str = "", bus: str = "virtio") -> list[str]:
    """The same machine on TCG; or another one, with its own bus (``ide``, ``ahci``)."""
    machine = machine or ("q35" if firmware == "uefi" else "pc")
    qemu = newest_qemu() or "qemu-system-x86_64"
    base = [qemu, "-accel", "tcg", "-machine", machine, "-m", str(MEMORY_MIB), "-nographic"]
    interface = "virtio" if bus == "virtio" else "ide"
    drive = ["-net", "none", "-drive", f"file={disk},format=raw,if={interface}"]
    if firmware == "bios":
        return [*base, *drive]
    code, variables = find_image(("OVMF_CODE_4M.fd",)), find_image(("OVMF_VARS_4M.fd",))
    own = disk.with_suffix(".vars")
    shutil.copyfile(str(variables), own)
    flash = [f"if=pflash,format=raw,readonly=on,file={code}", f"if=pflash,format=raw,file={own}"]
    return [*base, "-drive", flash[0], "-drive", flash[1], *drive]


def seconds_to_login(command: list[str]) -> float:
    """Start a machine, wait for its login, kill it.

    Raises:
        RuntimeError: No login came in time.
    """
    started = time.monotonic()
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL) as process:
        timer = threading.Timer(TIME_LIMIT_S, process.kill)
        timer.start()
        try:
            assert process.stdout is not None
            tail = b""
            while data := process.stdout.read1(65536):
                tail = tail[-64:] + data
                if _LOGIN in tail:
                    return time.monotonic() - started
        finally:
            timer.cancel()
            process.kill()
    raise RuntimeError(f"no login within {TIME_LIMIT_S} s: {' '.join(command)}")


def measure(disk: Path, firmware: str, runs: int) -> dict[str, list[float]]:
    """Seconds of each run, ours and TCG's in turn."""
    seconds: dict[str, list[float]] = {"translate": [], "tcg": []}
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "disk.raw"
        for _ in range(runs):
            for name, command_of in (("translate", our_command), ("tcg", qemu_command)):
                subprocess.run(["cp", "--sparse=always", disk, copy], check=True)
                seconds[name].append(round(seconds_to_login(command_of(copy, firmware)), 2))
    return seconds


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("disk", type=Path, help="what scripts/make-debian-disk made")
    parser.add_argument("--firmware", choices=("bios", "uefi"), default="bios")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    compile_modules()
    seconds = measure(options.disk, options.firmware, options.runs)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = medians["translate"] / medians["tcg"]
    if options.json:
        print(json.dumps({"firmware": options.firmware, "seconds": seconds, "ratio": round(ratio, 3)}))
    else:
        for name, values in seconds.items():
            print(f"{name:10} {medians[name]:7.2f} s  ({', '.join(map(str, values))})")
        print(f"ratio      {ratio:7.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

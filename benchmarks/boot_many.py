"""Boot kernels many times and count the boots that reach a shell and power off without a warning.

    python benchmarks/boot_many.py --count 20

A boot counts when the shell answers, the exit code is 0, and the kernel's log has nothing at level warning
or above but what is listed in ``EXPECTED``: what QEMU's boot of the same guest prints as well.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sublet.errors import SubletError
from sublet.guest import prepare_guest

TIME_LIMIT_S: Final = 120
GUESTS: Final = ("default", "default-amd64")
EXPECTED: Final = re.compile(
    rb"device-mapper: core: CONFIG_IMA_DISABLE_HTABLE"
    rb"|tsc: (Unable to calibrate against PIT|PIT calibration deviates from PMTIMER)"
    rb"|\.\.MP-BIOS bug: 8254 timer not connected to IO-APIC"
)
"""All but the first: the host took the machine's thread off its processor while the kernel measured time."""
_PROMPT: Final = b"sublet:~# "
_COMMANDS: Final = b"dmesg -r | grep '^<[0-9]*[0-4]>'; echo shell-$((6 * 7)); poweroff\n"
_WARNING: Final = re.compile(rb"^<\d+>\[ *[\d.]+\] (.*?)\r?$", re.MULTILINE)


@dataclass(frozen=True)
class Boot:
    """How one boot went: seconds to the prompt, and what was wrong with it, if anything."""

    prompt_s: float
    problem: str


def boot_once(name: str, engine: str) -> Boot:
    """Boot a guest to its prompt, read its log, power it off."""
    command = [sys.executable, "-m", "sublet", "run", name, "--engine", engine, "--no-reboot"]
    started = time.monotonic()
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    timer = threading.Timer(TIME_LIMIT_S, process.kill)
    timer.start()
    try:
        output, prompt_s = _converse(process, started)
        code = process.wait()
    finally:
        timer.cancel()
        process.kill()
        process.wait()
    return Boot(prompt_s, _problem(output, code))


def _converse(process: subprocess.Popen[bytes], started: float) -> tuple[bytes, float]:
    """Answer the prompt once; returns all output and when the prompt came."""
    assert process.stdin is not None
    assert process.stdout is not None
    output, prompt_s = b"", 0.0
    with process.stdin, process.stdout:
        while data := process.stdout.read1(65536):
            output += data
            if not prompt_s and _PROMPT in output:
                prompt_s = time.monotonic() - started
                process.stdin.write(_COMMANDS)
                process.stdin.flush()
    return output, prompt_s


def _problem(output: bytes, code: int) -> str:
    if b"shell-42" not in output:
        return f"no answer from a shell (exit code {code})"
    if code != 0:
        return f"exit code {code}"
    found = [text for text in _WARNING.findall(output) if not EXPECTED.search(text)]
    return found[0].decode(errors="replace") if found else ""


def boot_many(name: str, count: int, engine: str) -> bool:
    """Boot ``count`` times and print a line of results; whether all went well."""
    boots = [boot_once(name, engine) for _ in range(count)]
    good = [boot for boot in boots if not boot.problem]
    times = [boot.prompt_s for boot in boots if boot.prompt_s] or [0.0]
    print(
        f"{name:<14} {len(good)} of {count}; seconds to the prompt: "
        f"median {statistics.median(times):.2f}, {min(times):.2f} to {max(times):.2f}",
        flush=True,
    )
    for number, boot in enumerate(boots, 1):
        if boot.problem:
            print(f"  boot {number}: {boot.problem}")
    return len(good) == count


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; 1 when a boot failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=3, help="boots of each guest (default 3)")
    parser.add_argument("--guests", type=lambda text: text.split(","), default=list(GUESTS))
    parser.add_argument("--engine", default="translate")
    options = parser.parse_args(arguments)
    try:
        for name in options.guests:
            prepare_guest(name).close()
    except SubletError as error:
        print(f"error: {error.message}. {error.remedy}".strip(), file=sys.stderr)
        return error.exit_code
    results = [boot_many(name, options.count, options.engine) for name in options.guests]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())

"""How long a request from outside waits while the guest does its worst to keep the vCPU in translated code.

Translated code looks whether something waits (an interrupt, a kick) at every branch back, at every indirect
branch and wherever it goes on in another page, and string instructions run on the host a page at a time. So
nothing waits longer than one page of guest code takes. Here a thread runs the vCPU, another kicks it at
random moments, and the time from the kick to the return of ``Vcpu.run`` is measured; ``spinning`` is what the
way through the host's threads and Python takes by itself.

    python benchmarks/interrupt_latency.py --kicks 500 --json result.json
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from exit_latency import make_vcpu

from sublet.engine import EXIT_INTERRUPTED, Engine, Vcpu
from sublet.errors import SubletError

CODE_BYTES: Final = 0x10_0000
_JUMP_BACK: Final = b"\xe9"


def _straight_line(instruction: str) -> bytes:
    """A mebibyte of one instruction, then a jump to its start."""
    body = bytes.fromhex(instruction) * (CODE_BYTES // len(bytes.fromhex(instruction)))
    return body + _JUMP_BACK + (-(len(body) + 5)).to_bytes(4, "little", signed=True)


GUESTS: Final = {
    "spinning": bytes.fromhex("ebfe"),
    "straight line: nop": _straight_line("90"),
    "straight line: div": _straight_line("31d2 f7f1".replace(" ", "")),
    "straight line: fsin": _straight_line("d9fe"),
    "straight line: rdrand": _straight_line("0fc7f0"),
    # again: mov esi,0x120000; mov edi,0x180000; mov ecx,0x40000; rep movsb; jmp again
    "rep movsb": bytes.fromhex("be00001200 bf00001800 b900000400 f3a4 ebed"),
    # again: mov edi,0x120000; mov ecx,0x80000; rep stosb; jmp again
    "rep stosb": bytes.fromhex("bf00001200 b900000800 f3aa ebf2"),
    # again: mov rax,[0x120ffd]; jmp again
    "loads across pages": bytes.fromhex("488b0425fd0f1200 ebf6"),
}


def latencies_us(vcpu: Vcpu, kicks: int) -> list[float]:
    """Microseconds from each kick to the return of ``run``."""
    returned = threading.Event()
    going = threading.Event()
    times: list[float] = []
    done = False

    def serve() -> None:
        while not done:
            going.set()
            reason = vcpu.run().reason
            times.append(time.perf_counter())
            if reason != EXIT_INTERRUPTED:
                raise RuntimeError(f"the guest left for another reason: {reason}")
            returned.set()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    waited = []
    chance = random.Random(1)
    for _ in range(kicks):
        going.wait()
        going.clear()
        time.sleep(chance.uniform(0.0005, 0.003))
        kicked = time.perf_counter()
        vcpu.kick()
        if not returned.wait(60):
            raise RuntimeError("a kick was never answered")
        returned.clear()
        waited.append((times[-1] - kicked) * 1e6)
    done = True
    vcpu.kick()
    thread.join(10)
    return waited


def measure(kicks: int) -> dict[str, dict[str, float]]:
    """Median, 99th percentile and maximum in µs, by guest."""
    engine = Engine("translate")
    rows = {}
    for name, program in GUESTS.items():
        vm, vcpu = make_vcpu(engine, program)
        vcpu.set_regs(rcx=7)
        waited = sorted(latencies_us(vcpu, kicks))
        rows[name] = {
            "median": statistics.median(waited),
            "p99": waited[len(waited) * 99 // 100],
            "maximum": waited[-1],
        }
        del vcpu, vm
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; exit status 1 when the engine cannot be had."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kicks", type=int, default=500, help="for each guest (default 500)")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    options = parser.parse_args(arguments)
    try:
        rows = measure(options.kicks)
    except SubletError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 1
    print(f"{'guest':24}{'median':>12}{'p99':>12}{'maximum':>12}")
    for name, row in rows.items():
        print(f"{name:24}" + "".join(f"{row[key]:9.1f} µs" for key in ("median", "p99", "maximum")))
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

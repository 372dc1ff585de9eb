"""TCP between a guest and its host through NAT: sublet, QEMU's TCG with slirp, QEMU's TCG with passt.

Each round boots every side once, in turn, from the same kernel and initramfs (the ``default`` guest), and has
a small static program in the guest talk to a server here. Times are by the host's clock, at the server.

    send, receive   one stream, MiB/s              echo      round trips of one byte, a second
    connect         connections, one after the     open      connections that are open at once, then
                    other, opened, used, closed              each is used and closed; a second

    python benchmarks/network.py --rounds 5 --json result.json
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from sublet.guest import PreparedGuest, prepare_guest

SOURCE: Final = Path(__file__).parent / "guest" / "network.c"
SIDES: Final = ("sublet", "slirp", "passt")
GATEWAY: Final = "10.0.2.2"
CHUNK: Final = bytes(1 << 18)
DESCRIPTORS: Final = 8192
MIB_TASKS: Final = ("send", "receive")
PROMPT: Final = b"~# "


@dataclass
class Server:
    """Serves the guest's program on loopback, and keeps the times of the task that runs."""

    began_s: float = 0.0
    ended_s: float = 0.0
    connections: int = 0
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def begin(self) -> None:
        """Forget the last task."""
        self.began_s = self.ended_s = 0.0
        self.connections = 0

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        self.began_s = self.began_s or time.monotonic()
        self.connections += 1
        with connection, suppress(ConnectionResetError):
            match connection.recv(1):
                case b"s":
                    self._drain(connection)
                case b"r":
                    self._pour(connection)
                case b"e":
                    while data := connection.recv(1):
                        connection.sendall(data)
            self.ended_s = time.monotonic()

    def _drain(self, connection: socket.socket) -> None:
        buffer = bytearray(len(CHUNK))
        self.began_s = time.monotonic()
        while connection.recv_into(buffer):
            pass
        self.ended_s = time.monotonic()
        connection.sendall(b"!")

    def _pour(self, connection: socket.socket) -> None:
        left = int.from_bytes(connection.recv(4, socket.MSG_WAITALL), "big") << 20
        self.began_s = time.monotonic()
        while left > 0:
            left -= connection.send(CHUNK[: min(left, len(CHUNK))])
        connection.recv(1)


class Console:
    """A guest's serial console."""

    def __init__(self, process: subprocess.Popen[bytes], limit_s: float) -> None:
        self._process = process
        self._timer = threading.Timer(limit_s, process.kill)
        self._timer.daemon = True
        self._timer.start()

    def read_until(self, mark: bytes) -> bytes:
        """Everything up to a mark; raises ``EOFError`` when the guest ends before it."""
        assert self._process.stdout is not None
        seen = b""
        while mark not in seen:
            data = os.read(self._process.stdout.fileno(), 65536)
            if not data:
                raise EOFError(f"the guest ended; last words: {seen[-300:].decode(errors='replace')}")
            seen += data
        return seen

    def run(self, command: str) -> int:
        """Run a shell command; its exit status."""
        assert self._process.stdin is not None
        # The echo of what is typed must not look like the answer.
        self._process.stdin.write(f"{command}; echo sta''tus=$?.\n".encode())
        self._process.stdin.flush()
        seen = self.read_until(b"status=")
        number = seen.partition(b"status=")[2]
        while b"." not in number:
            number += self.read_until(b".")
        return int(number.partition(b".")[0])

    def close(self) -> None:
        """Kill the guest."""
        self._timer.cancel()
        self._process.kill()
        self._process.wait()


def build_disk(directory: Path) -> Path:
    """The guest's program in a tar archive, which the guest reads from a disk."""
    program = directory / "network"
    subprocess.run(["gcc", "-O2", "-static", "-o", program, SOURCE], check=True)
    disk = directory / "work.tar"
    with tarfile.open(disk, "w", format=tarfile.USTAR_FORMAT) as archive:
        info = tarfile.TarInfo("network")
        info.mode, info.size = 0o755, program.stat().st_size
        archive.addfile(info, io.BytesIO(program.read_bytes()))
    return disk


def sublet_command(options: argparse.Namespace, guest: PreparedGuest, disk: Path) -> list[str]:
    """``sublet run`` with NAT that lets the guest reach the host."""
    run = [sys.executable, "-m", "sublet", "run", "--engine", options.engine, "--no-reboot"]
    boot = ["--kernel", str(guest.kernel), "--initrd", str(guest.initrd), "--append", guest.cmdline]
    devices = ["--disk", f"{disk},format=raw,readonly=on", "--net", "nat,host=on"]
    return [*run, *boot, "--memory", f"{options.memory}M", *devices]


def qemu_command(options: argparse.Namespace, guest: PreparedGuest, disk: Path, netdev: str) -> list[str]:
    """QEMU with the same devices."""
    machine = ["-accel", "tcg", "-cpu", "max", "-m", str(options.memory), "-nodefaults", "-no-reboot"]
    boot = ["-kernel", str(guest.kernel), "-initrd", str(guest.initrd), "-append", guest.cmdline]
    devices = ["-drive", f"file={disk},format=raw,if=virtio,readonly=on"]
    devices += ["-netdev", f"{netdev},id=n", "-device", "virtio-net-pci,netdev=n,romfile="]
    return [options.qemu, *machine, "-display", "none", "-serial", "stdio", *boot, *devices]


@contextmanager
def side_command(
    options: argparse.Namespace, side: str, guest: PreparedGuest, disk: Path
) -> Iterator[list[str]]:
    """What starts a side, while what it needs runs."""
    if side == "sublet":
        yield sublet_command(options, guest, disk)
    elif side == "slirp":
        yield qemu_command(options, guest, disk, "user")
    else:
        with tempfile.TemporaryDirectory() as directory:
            path = f"{directory}/passt"
            network = ["-a", "10.0.2.15", "-n", "24", "-g", GATEWAY]
            command = [
                "passt",
                "-f",
                "-1",
                "-s",
                path,
                *network,
                *(["--runas", "0"] if os.geteuid() == 0 else []),
            ]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                time.sleep(1)
                address = f"stream,server=off,addr.type=unix,addr.path={path}"
                yield qemu_command(options, guest, disk, address)
            finally:
                process.kill()
                process.wait()


def run_side(options: argparse.Namespace, side: str, server: Server, disk: Path) -> dict[str, float]:
    """Boot a side, run the tasks in it; rates by task. A task that loses something has no rate."""
    guest = prepare_guest("default")
    rates: dict[str, float] = {}
    with side_command(options, side, guest, disk) as command, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, bufsize=0
        )
        console = Console(process, options.limit)
        try:
            console.read_until(PROMPT)
            console.run("until ip route | grep -q default; do sleep 1; done")
            console.run("mkdir -p /work && tar -xf /dev/vda -C /work")
            for task in options.tasks:
                rate = run_task(options, task, console, server)
                if rate is None:
                    server.problems.append(f"{side} {task} failed")
                else:
                    rates[task] = rate
        except (EOFError, ValueError) as error:
            server.problems.append(f"{side}: {error}")
        finally:
            console.close()
            guest.close()
    return rates


def run_task(options: argparse.Namespace, task: str, console: Console, server: Server) -> float | None:
    """One task; its rate in MiB or times a second."""
    amount = getattr(options, task)
    server.begin()
    status = console.run(f"/work/network {GATEWAY} {server.port} {task} {amount}")
    time.sleep(0.2)
    if status != 0:
        return None
    if task in ("connect", "open") and server.connections != amount:
        return None
    return float(amount / (server.ended_s - server.began_s))


def choose_sides(options: argparse.Namespace) -> list[str]:
    """The sides that were asked for and can run here."""
    sides = list(options.sides)
    if not options.qemu:
        sides = [side for side in sides if side == "sublet"]
    if "passt" in sides and shutil.which("passt") is None:
        print("passt is left out: it is not installed", file=sys.stderr)
        sides.remove("passt")
    return sides


def summarize(rounds: Sequence[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Median of each task, by side."""
    table: dict[str, dict[str, float]] = {}
    for side in SIDES:
        for task in {task for each in rounds for task in each.get(side, {})}:
            values = [each[side][task] for each in rounds if task in each.get(side, {})]
            table.setdefault(task, {})[side] = statistics.median(values)
    return table


def print_table(table: dict[str, dict[str, float]], tasks: Sequence[str]) -> None:
    """Rates, and how many times QEMU's they are."""
    print(f"{'task':10} {'unit':6} " + " ".join(f"{side:>12}" for side in SIDES))
    for task in tasks:
        row = table.get(task, {})
        cells = " ".join(f"{row[side]:12,.1f}" if side in row else f"{'-':>12}" for side in SIDES)
        print(f"{task:10} {'MiB/s' if task in MIB_TASKS else '1/s':6} {cells}")


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    tasks = ("send", "receive", "echo", "connect", "open")
    parser.add_argument("--tasks", nargs="+", choices=tasks, default=tasks)
    for task, amount in zip(tasks, (256, 256, 3000, 10_000, 2000), strict=True):
        parser.add_argument(f"--{task}", type=int, default=amount)
    parser.add_argument("--memory", type=int, default=512, help="MiB of guest memory")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds for one boot and its tasks")
    parser.add_argument("--engine", default="translate")
    parser.add_argument("--qemu", default=shutil.which("qemu-system-x86_64"))
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def raise_descriptor_limit() -> None:
    """The sides inherit it: slirp and passt have a socket for each connection too."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def main() -> int:
    """Run the rounds, print the table; 1 when something was lost."""
    options = parse_options()
    raise_descriptor_limit()
    server = Server()
    rounds: list[dict[str, dict[str, float]]] = []
    with tempfile.TemporaryDirectory() as directory:
        disk = build_disk(Path(directory))
        for number in range(options.rounds):
            rounds.append({side: run_side(options, side, server, disk) for side in choose_sides(options)})
            print(f"round {number + 1}: {json.dumps(rounds[-1])}", file=sys.stderr, flush=True)
    table = summarize(rounds)
    print_table(table, options.tasks)
    for problem in server.problems:
        print(f"problem: {problem}")
    if options.json:
        host = {"kernel": platform.release(), "cpus": os.cpu_count()}
        result = {"host": host, "medians": table, "rounds": rounds, "problems": server.problems}
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 1 if server.problems else 0


if __name__ == "__main__":
    sys.exit(main())

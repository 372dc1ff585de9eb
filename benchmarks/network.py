"""TCP between a guest and its host, or another guest, under sublet and under QEMU's TCG.

    sublet, slirp, passt    to the host through NAT: ours, QEMU with its own, QEMU with passt
    tap, qemu-tap           to the host over a TAP device on a bridge: ours, QEMU (vhost off); as root
    internal                from guest to guest on an internal network, ours

Each round boots every side once, in turn, from the same kernel and initramfs (the ``default`` guest), and has
a small static program in the guest talk to a server here. Times are by the host's clock, at the server; those
of ``internal``, which only sends, from when the command is typed until it ends.

    send, receive   one stream, MiB/s              echo      round trips of one byte, a second
    connect         connections, one after the     open      connections that are open at once, then
                    other, opened, used, closed              each is used and closed; a second

Beside the rate of ``connect`` and ``open`` is told what memory of its own the machine's process held before,
and holds a second after: what connections take is to come back. QEMU's has the guest's memory in it.

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
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from console import Console, at_prompt
from guest_benchmark import newest_qemu

from sublet.guest import PreparedGuest, prepare_guest

SOURCE: Final = Path(__file__).parent / "guest" / "network.c"
SIDES: Final = ("sublet", "slirp", "passt", "tap", "qemu-tap", "internal")
TAP_SIDES: Final = ("tap", "qemu-tap")
GATEWAY: Final = "10.0.2.2"
LOOPBACK: Final = "127.0.0.1"
BRIDGE_HOST: Final = "192.168.213.1"
INTERNAL_PORT: Final = 5001
CHUNK: Final = bytes(1 << 18)
DESCRIPTORS: Final = 8192
MIB_TASKS: Final = ("send", "receive")


@dataclass
class Server:
    """Serves the guest's program at an address, and keeps the times of the task that runs."""

    address: str
    began_s: float = 0.0
    ended_s: float = 0.0
    connections: int = 0

    def __post_init__(self) -> None:
        self._listener = socket.create_server((self.address, 0), backlog=1024)
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


def sublet_command(options: argparse.Namespace, guest: PreparedGuest, disk: Path, net: str) -> list[str]:
    """``sublet run`` with a network."""
    run = [sys.executable, "-m", "sublet", "run", "--engine", options.engine, "--no-reboot"]
    boot = ["--kernel", str(guest.kernel), "--initrd", str(guest.initrd), "--append", guest.cmdline]
    devices = ["--disk", f"{disk},format=raw,readonly=on", "--net", net]
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
        yield sublet_command(options, guest, disk, "nat,host=on")
    elif side == "slirp":
        yield qemu_command(options, guest, disk, "user")
    elif side == "passt":
        with passt() as path:
            address = f"stream,server=off,addr.type=unix,addr.path={path}"
            yield qemu_command(options, guest, disk, address)
    else:
        with tap() as name:
            ours = sublet_command(options, guest, disk, f"tap,interface={name}")
            theirs = f"tap,ifname={name},script=no,downscript=no,vhost=off"
            yield ours if side == "tap" else qemu_command(options, guest, disk, theirs)


@contextmanager
def passt() -> Iterator[str]:
    """The program passt; the socket that it listens on."""
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/passt"
        network = ["-a", "10.0.2.15", "-n", "24", "-g", GATEWAY]
        root = ["--runas", "0"] if os.geteuid() == 0 else []
        command = ["passt", "-f", "-1", "-s", path, *network, *root]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            time.sleep(1)
            yield path
        finally:
            process.kill()
            process.wait()


@contextmanager
def tap() -> Iterator[str]:
    """A TAP device on a bridge with the host's address; gone afterwards."""
    bridge, name = f"slbr{os.getpid()}", f"sltap{os.getpid()}"
    try:
        for words in (
            f"link add {bridge} type bridge",
            f"addr add {BRIDGE_HOST}/24 dev {bridge}",
            f"tuntap add dev {name} mode tap vnet_hdr",
            f"link set {name} master {bridge} up",
            f"link set {bridge} up",
        ):
            subprocess.run(["ip", *words.split()], check=True)
        yield name
    finally:
        for interface in (name, bridge):
            subprocess.run(["ip", "link", "del", interface], stderr=subprocess.DEVNULL)


@contextmanager
def booted(command: Sequence[str], limit_s: float) -> Iterator[Console]:
    """A guest at its prompt, with the program in /work."""
    with at_prompt(command, limit_s) as console:
        console.run("mkdir -p /work && tar -xf /dev/vda -C /work")
        yield console


def run_side(options: argparse.Namespace, side: str, problems: list[str], disk: Path) -> dict[str, float]:
    """Boot a side, run the tasks in it; rates by task. A task that loses something has no rate."""
    guest = prepare_guest("default")
    try:
        if side == "internal":
            return run_internal(options, guest, disk)
        with side_command(options, side, guest, disk) as command:
            server = Server(BRIDGE_HOST if side in TAP_SIDES else LOOPBACK)
            with booted(command, options.limit) as console:
                join_network(console, side)
                rates = {task: run_task(options, task, console, server, side) for task in options.tasks}
    except (EOFError, ValueError) as error:
        problems.append(f"{side}: {error}")
        return {}
    finally:
        guest.close()
    problems += [f"{side} {task} failed" for task, rate in rates.items() if rate is None]
    return {task: rate for task, rate in rates.items() if rate is not None}


def join_network(console: Console, side: str) -> None:
    """Wait for the router, or take an address on the bridge."""
    if side in TAP_SIDES:
        set_address(console, BRIDGE_HOST.removesuffix(".1") + ".2")
        console.run(f"until ping -c 1 -W 1 {BRIDGE_HOST} > /dev/null; do :; done")
    else:
        console.run("until ip route | grep -q default; do sleep 1; done")


def set_address(console: Console, address: str) -> None:
    """Have an address where nobody gives one."""
    console.run(
        f"killall udhcpc; ip addr flush dev eth0; ip addr add {address}/24 dev eth0; ip link set eth0 up"
    )


def run_internal(options: argparse.Namespace, guest: PreparedGuest, disk: Path) -> dict[str, float]:
    """One guest sends to another; the rate by task.

    Raises:
        ValueError: Something was lost.
    """
    if "send" not in options.tasks:
        return {}
    command = sublet_command(options, guest, disk, f"internal,name=bench{os.getpid()}")
    with booted(command, options.limit) as receiver, booted(command, options.limit) as sender:
        for number, console in enumerate((receiver, sender), 1):
            set_address(console, f"10.9.0.{number}")
        receiver.run(f"/work/network 10.9.0.1 {INTERNAL_PORT} serve 1 & true")
        sender.run("until ping -c 1 -W 1 10.9.0.1 > /dev/null; do :; done")
        began_s = time.monotonic()
        if sender.run(f"/work/network 10.9.0.1 {INTERNAL_PORT} send {options.send}") != 0:
            raise ValueError("send failed")
        return {"send": options.send / (time.monotonic() - began_s)}


def run_task(
    options: argparse.Namespace, task: str, console: Console, server: Server, side: str
) -> float | None:
    """One task; its rate in MiB or times a second."""
    amount = getattr(options, task)
    server.begin()
    target = BRIDGE_HOST if side in TAP_SIDES else GATEWAY
    before = console.memory()
    status = console.run(f"/work/network {target} {server.port} {task} {amount}")
    if task in ("connect", "open"):
        time.sleep(1)
        print(f"{side} {task}: {before:.1f} MiB before, {console.memory():.1f} MiB after", flush=True)
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
        sides = [side for side in sides if side in ("sublet", "tap", "internal")]
    if os.geteuid() != 0 and set(sides) & set(TAP_SIDES):
        print("TAP devices are left out: only root can make them", file=sys.stderr)
        sides = [side for side in sides if side not in TAP_SIDES]
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
    parser.add_argument("--qemu", default=newest_qemu())
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
    problems: list[str] = []
    rounds: list[dict[str, dict[str, float]]] = []
    with tempfile.TemporaryDirectory() as directory:
        disk = build_disk(Path(directory))
        for number in range(options.rounds):
            rounds.append({side: run_side(options, side, problems, disk) for side in choose_sides(options)})
            print(f"round {number + 1}: {json.dumps(rounds[-1])}", file=sys.stderr, flush=True)
    table = summarize(rounds)
    print_table(table, options.tasks)
    for problem in problems:
        print(f"problem: {problem}")
    if options.json:
        host = {"kernel": platform.release(), "cpus": os.cpu_count()}
        result = {"host": host, "medians": table, "rounds": rounds, "problems": problems}
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

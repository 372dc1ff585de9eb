"""Programs that others wrote, in a Debian guest behind NAT, against services on a LAN of network namespaces.

curl, dig, iperf3, nc, ssh, nmap, tracepath, ping, systemd-networkd and dhclient judge the router; a web
server, dnsmasq, iperf3's and OpenSSH's servers answer them from another namespace. Nothing leaves this host.
Run by hand, as root, from the top of the repository (a minute; the host's iperf3 and openssh-server answer
where they are installed):

    python -m tests.judges.network_tools --json result.json
    python -m tests.judges.network_tools --only nmap --verbose

Each row is a command and what it must say. The exit status is 1 when one says something else.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from tests.guests.debian import log_in, sublet_flags, write_file
from tests.guests.lan import NEIGHBOUR, NEIGHBOUR_V6, OTHER, Lan, lan
from tests.integration.guest import Guest

from sublet.guest import prepare_guest

PACKAGES: Final = (
    "bind9-dnsutils",
    "curl",
    "iperf3",
    "iputils-ping",
    "iputils-tracepath",
    "isc-dhcp-client",
    "netcat-openbsd",
    "nmap",
    "openssh-client",
)
FILE_SIZE: Final = 16 << 20
NARROW: Final = "192.0.2.4"
"""A neighbour behind a way of 1,400 bytes."""
GATEWAY, RESOLVER = "10.0.2.2", "10.0.2.3"
GATEWAY_V6: Final = "fd73:626c:6574::2"
_NET: Final = f"nat,resolver={OTHER},forward=8080-:8000"
_LONG_TEXT: Final = ["x" * 250] * 8
"""Strings of a TXT record that does not fit a datagram."""
_UDP_ECHO: Final = """
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as service:
    service.bind(("0.0.0.0", 7))
    while True:
        data, peer = service.recvfrom(65536)
        service.sendto(data, peer)
"""
_CARD: Final = "$(ls /sys/class/net | grep -v lo)"
_STATUS: Final = f"SYSTEMD_COLORS=0 networkctl --no-pager status {_CARD}"
_ALONE: Final = f"systemctl stop systemd-networkd.socket systemd-networkd; ip -4 addr flush dev {_CARD}"
"""Nobody else configures the card."""
_LOSSLESS: Final = r"\b0% packet loss"
_SUM: Final = r"SUM..%s[^\n]*?([\d.]+ Mbits/sec) +receiver"
_BOTH: Final = f"{_SUM % 'TX'}[^$]*{_SUM % 'RX'}"
_RATE: Final = r"([\d.]+ Mbits/sec) +receiver"


@dataclass(frozen=True)
class Row:
    """A command in the guest and a pattern of what it must say; the pattern's groups go into the table."""

    name: str
    command: str
    says: str
    needs: str = ""
    """A service that this host may not have."""


def rows(digest: str) -> list[Row]:
    """All rows; ``digest`` is of the web server's file."""
    ssh = "ssh -i /root/key -o StrictHostKeyChecking=no -o BatchMode=yes -o LogLevel=ERROR"
    data = "head -c 1000000 /dev/urandom > /tmp/data"
    same = "cmp - /tmp/data && echo same"
    same_after_hello = f"tail -c +7 | {same}"
    three_ports = "79/tcp closed[^$]*80/tcp open[^$]*81/tcp closed"
    return [
        Row("ping the router", f"ping -c 3 -i 0.2 {GATEWAY}", _LOSSLESS),
        Row("ping the router, IPv6", f"ping -c 3 -i 0.2 {GATEWAY_V6}", _LOSSLESS),
        Row("ping a neighbour", f"ping -c 3 -i 0.2 {NEIGHBOUR}", _LOSSLESS, "ping"),
        Row("ping a neighbour, 4,000 bytes", f"ping -c 3 -i 0.2 -s 4000 {NEIGHBOUR}", _LOSSLESS, "ping"),
        Row("ping a neighbour, IPv6", f"ping -c 3 -i 0.2 {NEIGHBOUR_V6}", _LOSSLESS, "ping"),
        Row("ping nobody", "ping -c 1 -W 5 192.0.2.99", "icmp_seq=1 (Destination Host Unreachable)", "ping"),
        Row("curl, 16 MiB", f"curl -sS http://{NEIGHBOUR}:8000/file | sha256sum", digest),
        Row("curl, by name", "curl -sS http://judge.test:8000/file | sha256sum", digest),
        Row("curl, IPv6", f"curl -sS 'http://[{NEIGHBOUR_V6}]:8000/file' | sha256sum", digest),
        Row("curl, refused", f"curl -sS -m 10 http://{NEIGHBOUR}:81/", "(Couldn't connect)"),
        Row("dig A", "dig +short judge.test A", re.escape(NEIGHBOUR)),
        Row("dig AAAA", "dig +short judge.test AAAA", NEIGHBOUR_V6),
        Row("dig over TCP", "dig +tcp +short judge.test A", re.escape(NEIGHBOUR)),
        Row("dig, a long answer", "dig +short long.test TXT | tr -cd x | wc -c", r"\b2000\b"),
        Row("dig -x of this machine", "dig +short -x 10.0.2.15", r"sublet\.internal"),
        Row("dig, no such name", "dig nothing.test A", "status: (NXDOMAIN)"),
        Row("dig at another resolver", f"dig +short @{OTHER} judge.test A", re.escape(NEIGHBOUR)),
        Row("iperf3, guest sends", f"iperf3 -c {NEIGHBOUR} -t 3 -f m", _RATE, "iperf3"),
        Row("iperf3, guest receives", f"iperf3 -c {NEIGHBOUR} -t 3 -f m -R", _RATE, "iperf3"),
        Row("iperf3, IPv6", f"iperf3 -6 -c {NEIGHBOUR_V6} -t 3 -f m", _RATE, "iperf3"),
        Row("iperf3, 4 both ways", f"iperf3 -c {NEIGHBOUR} -t 3 -f m -P 4 --bidir", _BOTH, "iperf3"),
        Row("iperf3, UDP 20 Mbit/s", f"iperf3 -c {NEIGHBOUR} -t 3 -u -b 20M", r"(0%)\) +receiver", "iperf3"),
        Row("nc, 1 MB each way", f"{data}; nc -N {NEIGHBOUR} 80 < /tmp/data | {same_after_hello}", "same"),
        Row("nc, UDP", f"echo datagram | nc -u -w 2 {NEIGHBOUR} 7", "datagram"),
        Row("nc, refused", f"nc -v -z -w 10 {NEIGHBOUR} 81", "refused"),
        Row("ssh, a command", f"{ssh} {NEIGHBOUR} echo at home", "at home", "sshd"),
        Row("ssh, 1 MB each way", f"{data}; {ssh} {NEIGHBOUR} cat < /tmp/data | {same}", "same", "sshd"),
        Row("nmap, who is here", "nmap -n -sn 10.0.2.0/24", r"\((3 hosts up)\)"),
        Row("nmap, ports of the router", f"nmap -n -p 1-1024 {GATEWAY}", "1024 closed tcp ports .reset."),
        Row("nmap, ports of the resolver", f"nmap -n -p 1-1024 {RESOLVER}", r"53/tcp open"),
        Row("nmap -sT, a neighbour", f"nmap -n -Pn -sT -p 79-81 {NEIGHBOUR}", three_ports),
        Row("nmap -sS, a neighbour", f"nmap -n -Pn -sS -p 79-81 {NEIGHBOUR}", three_ports),
        Row("nmap -sU, the router", f"nmap -n -sU -p 1000 {GATEWAY}", "1000/udp (closed|filtered)"),
        Row("tracepath", f"tracepath -n {NEIGHBOUR}", r"Resume: (pmtu 1500 hops \d+)"),
        Row("tracepath, IPv6", f"tracepath -n {NEIGHBOUR_V6}", r"Resume: (pmtu 1500 hops \d+)"),
        Row("tracepath, a narrow way", f"tracepath -n {NARROW}", r"Resume: (pmtu 1400)"),
        Row("systemd-networkd", _STATUS, r"Address: 10\.0\.2\.15 \((DHCP4 via 10\.0\.2\.2)\)"),
        Row("systemd-networkd, its state", _STATUS, r"State: (routable) \(configured\)"),
        Row("dhclient", f"{_ALONE}; dhclient -v -1 {_CARD}", r"bound to (10\.0\.2\.15) -- renewal"),
        Row("dhclient, again", f"dhclient -v -1 {_CARD}", r"DHCPREQUEST[^$]*bound to (10\.0\.2\.15)"),
        Row("dhclient, release", f"dhclient -v -r {_CARD}", "(DHCPRELEASE) of 10"),
        Row("dhclient, IPv6", f"timeout 60 dhclient -6 -S -v -1 {_CARD}", "(Reply)"),
        Row("dhclient, after it all", f"dhclient -v -1 {_CARD}; ping -c 3 -i 0.2 {GATEWAY}", _LOSSLESS),
    ]  # fmt: skip


@dataclass(frozen=True)
class Result:
    """What became of a row: ``pass``, ``fail`` or ``left out``, and a figure or a reason."""

    name: str
    verdict: str
    said: str


def judge(guest: Guest, row: Row, missing: Sequence[str], *, verbose: bool) -> Result:
    """Run a row."""
    if row.needs in missing:
        return Result(row.name, "left out", f"this host has no {row.needs}")
    output = guest.run(f"(timeout 90 sh -c {quoted(row.command)}) 2>&1; true", 120)
    if verbose:
        print(output, file=sys.stderr)
    match = re.search(row.says, output)
    if match is None:
        return Result(row.name, "fail", " / ".join(output.split("\n"))[-300:])
    return Result(row.name, "pass", " and ".join(match.groups()))


def quoted(command: str) -> str:
    """For a shell."""
    return "'" + command.replace("'", "'\\''") + "'"


@contextmanager
def services(it: Lan, directory: Path, missing: list[str]) -> Iterator[None]:
    """Everything that the rows ask of the neighbour, beside what the LAN has itself."""
    commands = [
        [sys.executable, "-m", "http.server", "8000", "--bind", "::", "--directory", str(directory / "web")],
        [sys.executable, "-c", _UDP_ECHO],
        [*("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts"),
         *("--bind-interfaces", f"--listen-address={OTHER}", "--user=root", "--pid-file=", "--local=/test/"),
         *(f"--address=/judge.test/{NEIGHBOUR}", f"--address=/judge.test/{NEIGHBOUR_V6}"),
         f"--txt-record=long.test,{','.join(_LONG_TEXT)}"],
    ]  # fmt: skip
    makers: dict[str, Callable[[], list[str]]] = {
        "iperf3": lambda: ["iperf3", "-s"],
        "sshd": lambda: sshd(directory),
    }
    for name, make in makers.items():
        if shutil.which(name) is None:
            missing.append(name)
        else:
            commands.append(make())
    if not allow_ping(it):
        missing.append("ping")
    with ExitStack() as stack:
        for command in commands:
            words = ["ip", "netns", "exec", it.neighbour, *command]
            process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.kill)
        yield


def sshd(directory: Path) -> list[str]:
    """A server that lets in who has ``directory/key``."""
    for name in ("host", "key"):
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(directory / name)]
        subprocess.run(words, check=True)
    Path("/run/sshd").mkdir(exist_ok=True)
    given = {"HostKey": "host", "AuthorizedKeysFile": "key.pub", "PidFile": "pid"}
    options = [f"{name}={directory / file}" for name, file in given.items()]
    options += [
        "StrictModes=no",
        "UsePAM=no",
        "PermitRootLogin=prohibit-password",
        "PasswordAuthentication=no",
    ]
    program = shutil.which("sshd") or "sshd"
    return [program, "-D", "-f", "/dev/null", *(word for option in options for word in ("-o", option))]


def allow_ping(it: Lan) -> bool:
    """Let programs in the host's namespace send echo requests; false where nobody may change that."""
    write = "echo 0 2147483647 > /proc/sys/net/ipv4/ping_group_range"
    return subprocess.run(it.on_host("sh", "-c", write), capture_output=True).returncode == 0


def run_rows(options: argparse.Namespace, directory: Path) -> list[Result]:
    """Boot the guest and run what was asked for."""
    web = directory / "web"
    web.mkdir()
    (web / "file").write_bytes(os.urandom(FILE_SIZE))
    digest = hashlib.sha256((web / "file").read_bytes()).hexdigest()
    missing: list[str] = []
    prepared = prepare_guest("debian", packages=PACKAGES)
    flags = [*sublet_flags(prepared), "--engine", options.engine, "--net", _NET]
    with lan() as it, services(it, directory, missing):
        for words in (
            ["-n", it.neighbour, "address", "add", f"{NARROW}/24", "dev", "lan"],
            ["-n", it.host, "route", "add", NARROW, "dev", "lan", "mtu", "1400"],
        ):
            subprocess.run(["ip", *words], check=True)
        guest = Guest(flags, command=it.sublet_run())
        try:
            log_in(guest)
            guest.run(
                "until ip -6 route | grep -q default && grep -q nameserver /etc/resolv.conf; do sleep 1; done"
            )
            if "sshd" not in missing:
                write_file(guest, "/root/key", (directory / "key").read_text())
                guest.run("chmod 600 /root/key")
            wanted = [row for row in rows(digest) if options.only in row.name]
            results = [say(judge(guest, row, missing, verbose=options.verbose)) for row in wanted]
            return [*results, say(forwarded(guest, it))]
        finally:
            guest.close()
            prepared.close()


def forwarded(guest: Guest, it: Lan) -> Result:
    """A port of the host that leads to nc in the guest."""
    guest.run("(echo from the guest | timeout 60 nc -N -l -p 8000) > /dev/null 2>&1 & sleep 1")
    said = it.connect_from_host(8080).strip()
    return Result("nc -l, forwarded port", "pass" if said == "from the guest" else "fail", "")


def say(result: Result) -> Result:
    """Print a row as soon as it is there."""
    text = "" if re.fullmatch("[0-9a-f]{64}", result.said) else result.said
    print(f"| {result.name} | {result.verdict} | {text} |", flush=True)
    return result


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", default="", help="rows with this in their names")
    parser.add_argument("--engine", default="translate")
    parser.add_argument("--verbose", action="store_true", help="print what the programs say")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print("| row | verdict | |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as directory:
        results = run_rows(options, Path(directory))
    if options.json:
        options.json.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
    return 1 if any(result.verdict == "fail" for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())

"""Work in one booted Debian, its results checked: packages, a compiler, arithmetic, cryptography, stress."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.guests import debian
from tests.guests.kernel_log import warnings
from tests.integration.guest import Guest

from sublet.guest import prepare_guest, silent
from sublet.guest.build import open_archive
from sublet.guest.store import Store, cache_directory

pytestmark = [pytest.mark.guest, pytest.mark.timeout(900)]

PACKAGES = ("gcc", "libc6-dev", "openssl", "python3", "stress-ng")
FROM_REPOSITORY = "jq"
STRESS_SECONDS = 3


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ext4 disk image with a flat package repository: `FROM_REPOSITORY` and all it depends on."""
    mke2fs = shutil.which("mke2fs", path="/usr/sbin:/sbin:/usr/bin")
    if mke2fs is None:
        pytest.skip("there is no mke2fs to make a disk with")
    image = tmp_path_factory.mktemp("repository") / "repository.raw"
    command = [mke2fs, "-q", "-t", "ext4", "-d", str(cached_repository()), str(image), "128M"]
    subprocess.run(command, check=True, capture_output=True)
    return image


def cached_repository() -> Path:
    """The repository's directory, fetched once and kept in the cache of guests."""
    store = Store(cache_directory())
    directory = store.directory("tests", f"repository-{FROM_REPOSITORY}")
    listing = directory / "Packages"
    if not listing.exists():
        archive = open_archive(store, silent)
        packages = archive.index().closure([FROM_REPOSITORY])
        paths = archive.fetch(packages, directory)
        stanzas = []
        for package, path in zip(packages, paths, strict=True):
            fields = {**package.fields, "Filename": f"./{path.name}"}
            stanzas.append("".join(f"{name}: {value}\n" for name, value in fields.items()))
        listing.write_text("\n".join(stanzas).replace("\n\n\n", "\n\n"))
    return directory


@pytest.fixture(scope="module")
def guest(repository: Path) -> Iterator[Guest]:
    """Debian with a compiler and tests' programs on vda, the repository on vdb, logged in."""
    prepared = prepare_guest("debian", silent, packages=PACKAGES)
    flags = [*debian.sublet_flags(prepared), "--disk", str(repository), "--engine", "translate"]
    machine = Guest(flags)
    try:
        debian.log_in(machine)
        machine.run("dmesg -n 1")
        yield machine
    finally:
        machine.close()
        prepared.close()


@pytest.fixture(autouse=True)
def kernel_has_nothing_to_say(guest: Guest) -> Iterator[None]:
    """Whatever a test does, it adds no warning to the kernel's log."""
    before = warnings(guest)
    yield
    assert warnings(guest) == before


def test_apt_installs_from_a_second_disk(guest: Guest) -> None:
    guest.run("mount -r /dev/vdb /mnt")
    guest.run(
        "rm -f /etc/apt/sources.list.d/* && echo 'deb [trusted=yes] file:/mnt ./' > /etc/apt/sources.list"
    )
    guest.run("apt-get -qq update 2>&1")
    printed = guest.run(f"DEBIAN_FRONTEND=noninteractive apt-get install -y {FROM_REPOSITORY} 2>&1", 240)
    assert f"Setting up {FROM_REPOSITORY}" in printed
    assert guest.run("""echo '{"a": [1, 2, 3]}' | jq -M '.a | add'""").strip() == "6"
    assert guest.run("dpkg --audit") == ""


PROGRAM = r"""
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static sigjmp_buf back;
static void caught(int number) { siglongjmp(back, number); }

static int compare(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

int main(void) {
    static uint32_t values[100000];
    uint32_t state = 1;
    for (int i = 0; i < 100000; i++) {
        state = state * 1664525 + 1013904223;
        values[i] = state;
    }
    qsort(values, 100000, sizeof *values, compare);
    printf("sorted %u %u %u\n", values[0], values[50000], values[99999]);
    double sum = 0;
    for (int i = 1; i < 1000000; i++)
        sum += sqrt(i) / (i + 0.5);
    printf("sum %a\n", sum);
    printf("long double %La\n", sqrtl(2.0L) / 3.0L);
    int numbers[] = {SIGILL, SIGSEGV, SIGFPE};
    volatile uintptr_t nowhere = 8;
    for (int i = 0; i < 3; i++) {
        signal(numbers[i], caught);
        int number = sigsetjmp(back, 1);
        if (number == 0) {
            volatile int zero = 0;
            if (i == 0) __asm__ volatile("ud2");
            if (i == 1) *(volatile char *)nowhere = 1;
            if (i == 2) zero = 1 / zero;
        }
        printf("signal %d\n", number);
    }
    return 0;
}
"""


def test_gcc_builds_a_program_that_computes_what_it_does_here(guest: Guest, tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler to compare with")
    (tmp_path / "program.c").write_text(PROGRAM)
    flags = "-O2 -Wall -ffp-contract=off -o program program.c -lm"
    subprocess.run([compiler, *flags.split()], cwd=tmp_path, check=True)
    expected = subprocess.run([tmp_path / "program"], capture_output=True, text=True, check=True).stdout
    debian.write_file(guest, "/root/program.c", PROGRAM)
    assert guest.run(f"cd /root && gcc {flags}") == ""
    assert guest.run("/root/program") == expected


LINEAR_ALGEBRA = '''
import math
from fractions import Fraction

def solve(n):
    """Gaussian elimination with partial pivoting on a matrix of square roots."""
    a = [[math.sqrt(1 + (i * 31 + j * 17) % 101) / (1 + i + j) for j in range(n)] + [1.0] for i in range(n)]
    for k in range(n):
        pivot = max(range(k, n), key=lambda i: abs(a[i][k]))
        a[k], a[pivot] = a[pivot], a[k]
        for i in range(k + 1, n):
            f = a[i][k] / a[k][k]
            for j in range(k, n + 1):
                a[i][j] -= f * a[k][j]
    x = [0.0] * n
    for k in range(n - 1, -1, -1):
        x[k] = (a[k][n] - sum(a[k][j] * x[j] for j in range(k + 1, n))) / a[k][k]
    return x

print([value.hex() for value in solve(40)])
print(math.fsum(1 / (i * math.sqrt(i)) for i in range(1, 100000)).hex())
print(float(sum(Fraction(1, i) for i in range(1, 400))).hex(), pow(3, 10**5, 10**40 + 7))
'''


def test_python_computes_what_it_does_here(
    guest: Guest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only operations that IEEE 754 rounds exactly: every Python has the same result, to the last bit."""
    exec(compile(LINEAR_ALGEBRA, "linear algebra", "exec"), {})
    expected = capsys.readouterr().out
    debian.write_file(guest, "/root/algebra.py", LINEAR_ALGEBRA)
    assert guest.run("python3 /root/algebra.py") == expected


DIGESTS = ("md5", "sha1", "sha256", "sha512", "sha3_256", "blake2b512")


def test_openssl_computes_known_results(guest: Guest) -> None:
    data = bytes(range(256)) * 4096
    guest.run('python3 -c \'open("/root/data","wb").write(bytes(range(256))*4096)\'')
    for name in DIGESTS:
        algorithm = name.replace("_", "-")
        expected = hashlib.new(name, data).hexdigest()
        assert guest.run(f"openssl dgst -{algorithm} -r /root/data").split()[0] == expected, name
    for cipher in ("aes-128-cbc", "aes-256-ctr", "chacha20", "camellia-256-cbc"):
        key = "-K $(printf %064d 7) -iv $(printf %032d 3)" if "128" not in cipher else "-K 07 -iv 03"
        encrypt = f"openssl enc -{cipher} {key}"
        pipeline = f"{encrypt} -in /root/data 2>/dev/null | {encrypt} -d 2>/dev/null | sha256sum"
        assert guest.run(pipeline).split()[0] == hashlib.sha256(data).hexdigest(), cipher


SPEED_TESTS = (
    "md5 sha256 sha512",
    "-evp aes-256-gcm",
    "-evp chacha20-poly1305",
    "rsa2048 ecdsap256",
    "ed25519",
)


@pytest.mark.parametrize("algorithms", SPEED_TESTS)
def test_openssl_speed(guest: Guest, algorithms: str) -> None:
    sizes = "" if re.search("rsa|ed25519", algorithms) else "-bytes 8192"
    printed = guest.run(f"openssl speed -seconds 1 {sizes} {algorithms} 2>&1 | grep -v ^compiler:", 240)
    assert printed.count("Doing ") >= len(algorithms.replace("-evp ", "").split())
    assert not re.search(r"(?i)error|fail|abort", printed), printed


STRESSORS = {
    "cpu": "--cpu 1",
    "vm": "--vm 1 --vm-bytes 64M",
    "matrix": "--matrix 1",
    "fp": "--fp 1",
    "vecmath": "--vecmath 1",
    "int128": "--cpu 1 --cpu-method int128",
    "bitops": "--cpu 1 --cpu-method bitops",
    "sigsegv": "--sigsegv 1",
    "fault": "--fault 1",
    "context": "--context 1",
}
"""``int128`` and ``bitops`` are methods of the cpu stressor in Debian 12's stress-ng."""


@pytest.mark.parametrize("name", STRESSORS)
def test_stress_ng_verifies(guest: Guest, name: str) -> None:
    flags = f"--verify --timeout {STRESS_SECONDS}s --oomable"
    printed = guest.run(f"stress-ng {flags} {STRESSORS[name]} 2>&1", 240)
    assert "successful run completed" in printed, printed
    assert not re.search(r"(?i)\bfail|\berror|mismatch", printed), printed


def test_the_system_is_still_well(guest: Guest) -> None:
    """Last, for all of the tests share one boot."""
    assert guest.run("sync; systemctl is-system-running").strip() == "running"

"""A Debian mirror as an archive, for hosts without a fitting apt: fetched and verified by ourselves.

The chain of trust: the archive keyring, the signature of ``InRelease`` (by ``gpgv``), the checksum of
``Packages.xz``, the checksum of each ``.deb``. A link that does not hold ends it;
there is no way to go on regardless.
"""

from __future__ import annotations

import hashlib
import http.client
import lzma
import os
import re
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Final

from sublet.errors import CorruptImage, HostRefused, UsageError
from sublet.guest.archive import SUITE, Package, PackageIndex, parse_packages
from sublet.guest.store import Progress, file_sha256, host_errors

EXAMPLE_MIRROR: Final = "https://mirror.example/debian"
KEYRINGS: Final = (
    Path("/usr/share/keyrings/debian-archive-keyring.gpg"),
    Path("/usr/share/keyrings/debian-archive-keyring.pgp"),
)

_MAX_RELEASE_SIZE: Final = 4 << 20
_MAX_INDEX_SIZE: Final = 64 << 20
_MAX_UNPACKED_INDEX_SIZE: Final = 512 << 20
_OTHER_MIRROR: Final = "Try again, or name another mirror in SUBLET_MIRROR."
_CHUNK: Final = 1 << 18
_TIMEOUT_S: Final = 60
_SHA256_LINE: Final = re.compile(r"^ ([0-9a-f]{64})\s+(\d+)\s+(\S+)$", re.MULTILINE)


class MirrorArchive:
    """Packages from an ``http``, ``https`` or ``file`` address that has ``dists`` and ``pool`` below it."""

    def __init__(
        self, mirror: str, progress: Progress, keyring: Path | None = None, *, architecture: str = "amd64"
    ) -> None:
        if not mirror.startswith(("http://", "https://", "file:///")):
            remedy = f"Give an address such as {EXAMPLE_MIRROR}."
            raise UsageError(f"{mirror!r} is not the address of a mirror", remedy=remedy)
        self._mirror = mirror.rstrip("/")
        self._progress = progress
        self._keyring = keyring
        self._architecture = architecture

    def index(self) -> PackageIndex:
        keyring = self._keyring or find_keyring()
        packages = list(self._read_suite(self._mirror, SUITE, keyring))
        if self._mirror.endswith("/debian"):
            packages += self._read_security(f"{self._mirror}-security", keyring)
        return PackageIndex(packages)

    def _read_security(self, base: str, keyring: Path) -> list[Package]:
        """Security updates, which mirrors keep beside the release; not every mirror has them."""
        try:
            return list(self._read_suite(base, f"{SUITE}-security", keyring))
        except HostRefused as refusal:
            self._progress(f"going on without security updates: {refusal.message}")
            return []

    def _read_suite(self, base: str, suite: str, keyring: Path) -> Iterator[Package]:
        """The packages of one suite of the archive at ``base``, verified from its signature down."""
        self._progress(f"fetching the package lists of {base}")
        folder = f"{base}/dists/{suite}"
        release = verify_inline_signature(_get(f"{folder}/InRelease", _MAX_RELEASE_SIZE), keyring)
        if not re.search(rf"^(?:Codename|Suite): {suite}$", release, re.MULTILINE):
            raise CorruptImage(f"{folder}/InRelease is the release file of something else")
        name = f"main/binary-{self._architecture}/Packages.xz"
        digest, size = _listed_checksum(release, name)
        packed = _get(f"{folder}/{name}", min(size, _MAX_INDEX_SIZE))
        if hashlib.sha256(packed).hexdigest() != digest:
            raise CorruptImage(f"{folder}/{name} fails its checksum", remedy=_OTHER_MIRROR)
        return parse_packages(_unpack_index(packed, name), base)

    def fetch(self, packages: list[Package], directory: Path) -> list[Path]:
        total = sum(package.size for package in packages)
        done = 0
        paths: list[Path] = []
        for package in packages:
            self._progress(f"downloading {package.name}", done, total)
            paths.append(self._fetch_one(package, directory))
            done += package.size
        self._progress("downloading packages", total, total)
        return paths

    def _fetch_one(self, package: Package, directory: Path) -> Path:
        if ".." in package.filename.split("/"):
            raise CorruptImage(f"the package index puts {package.name} at {package.filename!r}")
        path = directory / package.filename.rpartition("/")[2]
        url = f"{package.base}/{package.filename}"
        with host_errors(f"cannot write {path}"):
            try:
                with path.open("wb") as stream:
                    _download(url, package.size, stream.write)
            except BaseException:
                path.unlink(missing_ok=True)
                raise
        if file_sha256(path) != package.sha256:
            path.unlink(missing_ok=True)
            raise CorruptImage(f"{url} fails its checksum", remedy=_OTHER_MIRROR)
        return path


def _get(url: str, limit: int) -> bytes:
    """The whole of a small file; ``limit`` in bytes."""
    data = bytearray()
    _download(url, limit, data.extend)
    return bytes(data)


def find_keyring(environ: Mapping[str, str] = os.environ) -> Path:
    """The keyring to check release files against: ``SUBLET_KEYRING``, or Debian's where the host has it.

    Raises:
        HostRefused: There is none. Going on without would mean trusting whoever answers.
    """
    named = environ.get("SUBLET_KEYRING", "")
    for path in (Path(named),) if named else KEYRINGS:
        if path.is_file():
            return path
    remedy = "Install the package debian-archive-keyring, or name a keyring file in SUBLET_KEYRING."
    missing = (
        f"the keyring {named} does not exist" if named else "this host has no keyring of Debian's archive"
    )
    raise HostRefused(missing, remedy=remedy)


def verify_inline_signature(signed: bytes, keyring: Path) -> str:
    """The text that an inline-signed file signs, once ``gpgv`` has found a good signature by the keyring.

    Raises:
        CorruptImage: No good signature.
        HostRefused: ``gpgv`` is not installed.
    """
    gpgv = shutil.which("gpgv")
    if gpgv is None:
        raise HostRefused(
            "gpgv is needed to verify the archive's signature", remedy="Install the package gpgv."
        )
    with tempfile.TemporaryDirectory() as directory:
        source, text = Path(directory, "InRelease"), Path(directory, "Release")
        source.write_bytes(signed)
        command = [gpgv, "--keyring", str(keyring.resolve()), "--output", str(text), str(source)]
        result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if result.returncode != 0 or not text.is_file():
            said = (result.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise CorruptImage(f"the archive's signature does not verify ({said})")
        return text.read_text(errors="replace")


def _listed_checksum(release: str, name: str) -> tuple[str, int]:
    """The SHA-256 and the size in bytes that a release file gives ``name``."""
    _, _, section = release.partition("\nSHA256:")
    for digest, size, listed in _SHA256_LINE.findall(section):
        if listed == name:
            return digest, int(size)
    raise CorruptImage(f"the release file does not list {name}")


def _unpack_index(packed: bytes, name: str) -> str:
    """Unpack xz, to a limit: a signature says who made a file, not that it is small."""
    decompressor = lzma.LZMADecompressor()
    try:
        text = decompressor.decompress(packed, _MAX_UNPACKED_INDEX_SIZE)
    except lzma.LZMAError as error:
        raise CorruptImage(f"{name} is damaged") from error
    if not decompressor.eof:
        raise CorruptImage(f"{name} is cut short or unreasonably large")
    return text.decode(errors="replace")


def _download(url: str, limit: int, write: Callable[[bytes], object]) -> None:
    """Read ``url`` to its end; more than ``limit`` bytes, or an end before the announced one, is an error."""
    remedy = "Check the network, or name another mirror in SUBLET_MIRROR."
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response:
            _copy_limited(response, limit, url, write)
    except http.client.HTTPException as error:
        raise HostRefused(f"{url}: the download broke off", remedy=remedy) from error
    except urllib.error.URLError as error:
        raise HostRefused(f"{url} cannot be fetched: {error.reason}", remedy=remedy) from error
    except (TimeoutError, ConnectionError) as error:
        raise HostRefused(f"{url}: the download broke off ({error})", remedy=remedy) from error


def _copy_limited(response: IO[bytes], limit: int, url: str, write: Callable[[bytes], object]) -> None:
    copied = 0
    while chunk := response.read(_CHUNK):
        copied += len(chunk)
        if copied > limit:
            raise CorruptImage(f"{url} is longer than the {limit} bytes that it may have")
        write(chunk)
    announced = getattr(response, "headers", {}).get("Content-Length", "")
    if announced.isdigit() and copied != int(announced):
        raise HostRefused(f"{url}: the download broke off after {copied} of {announced} bytes")

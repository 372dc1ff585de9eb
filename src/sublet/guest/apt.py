"""The host's own apt as an archive, in a private state directory: no root, and the host's settings untouched.

apt verifies the archive's signatures and the packages' checksums itself.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Final

from sublet.errors import CorruptImage, HostRefused
from sublet.guest.archive import SUITE, Package, PackageIndex, parse_packages, parse_stanza
from sublet.guest.store import Progress, file_sha256, host_errors

_SUITES: Final = frozenset({SUITE, f"{SUITE}-updates", f"{SUITE}-security"})
_ETC_APT: Final = Path("/etc/apt")
_BATCH: Final = 40
_TIME_LIMIT_S: Final = 1800


def host_sources(etc_apt: Path = _ETC_APT, suites: Set[str] = _SUITES) -> str:
    """The entries of the host's apt sources that name these suites, as deb822; empty when there are none."""
    files = [etc_apt / "sources.list", *sorted((etc_apt / "sources.list.d").glob("*"))]
    stanzas: list[str] = []
    for path in files:
        if path.suffix == ".sources" and path.is_file():
            stanzas.extend(_deb822_entries(path.read_text(errors="replace"), suites))
        elif path.suffix == ".list" and path.is_file():
            stanzas.extend(_one_line_entries(path.read_text(errors="replace"), suites))
    return "\n".join(stanzas)


def apt_is_usable(etc_apt: Path = _ETC_APT) -> bool:
    """Whether this host has apt and its sources name the release that guests are made from."""
    return shutil.which("apt-get") is not None and SUITE in re.split(r"\s", host_sources(etc_apt))


class AptArchive:
    """Packages through ``apt-get``, with its lists, cache and configuration below ``directory``.

    Args:
        directory: Of this object alone: one an architecture.
        architecture: Debian's name for it: ``amd64`` or ``i386``, whatever the host's is.
    """

    def __init__(self, directory: Path, progress: Progress, architecture: str = "amd64") -> None:
        self._directory = directory
        self._architecture = architecture
        self._progress = progress
        self._config = directory / "apt.conf"

    def index(self) -> PackageIndex:
        self._write_configuration()
        self._progress("updating the package lists with the host's apt")
        self._update()
        lists = sorted((self._directory / "lists").glob("*_Packages"))
        if not lists:
            raise HostRefused(
                "apt-get update brought no package lists", remedy="Run apt-get update to see why."
            )
        return PackageIndex(
            package for path in lists for package in parse_packages(path.read_text(errors="replace"))
        )

    def _update(self) -> None:
        """Fetch the lists; go on without the security updates' where only that archive refuses."""
        try:
            self._apt("update", "--error-on=any")
        except HostRefused as refusal:
            if f"{SUITE}-security" not in refusal.message:
                raise
            self._progress(f"going on without security updates: {refusal.message}")
            self._write_sources(_SUITES - {f"{SUITE}-security"})
            self._apt("update", "--error-on=any")

    def fetch(self, packages: list[Package], directory: Path) -> list[Path]:
        total = sum(package.size for package in packages)
        done = 0
        paths: list[Path] = []
        for start in range(0, len(packages), _BATCH):
            batch = packages[start : start + _BATCH]
            self._progress("downloading packages", done, total)
            self._apt("download", *(f"{package.name}={package.version}" for package in batch), cwd=directory)
            paths.extend(_downloaded(package, directory) for package in batch)
            done += sum(package.size for package in batch)
        self._progress("downloading packages", total, total)
        return paths

    def _write_configuration(self) -> None:
        base = self._directory
        with host_errors(f"cannot write apt's configuration to {base}"):
            for name in ("lists/partial", "cache/archives/partial", "parts", "log"):
                (base / name).mkdir(parents=True, exist_ok=True)
            (base / "status").touch()
            self._write_sources(_SUITES)
            self._config.write_text("\n".join([*_host_settings(), *self._own_settings()]) + "\n")

    def _write_sources(self, suites: Set[str]) -> None:
        (self._directory / "host.sources").write_text(host_sources(suites=suites))

    def _own_settings(self) -> Iterator[str]:
        base = self._directory
        settings = {
            "Dir::State": base,
            "Dir::State::lists": base / "lists",
            "Dir::State::status": base / "status",
            "Dir::Cache": base / "cache",
            "Dir::Log": base / "log",
            "Dir::Etc::main": "/dev/null",
            "Dir::Etc::parts": base / "parts",
            "Dir::Etc::sourcelist": base / "host.sources",
            "Dir::Etc::sourceparts": base / "parts",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": base / "parts",
            "APT::Architecture": self._architecture,
            "APT::Sandbox::User": "root",
            "Acquire::GzipIndexes": "false",
            "Acquire::Languages": "none",
            "Acquire::Retries": "2",
        }
        yield f'#clear APT::Architectures; APT::Architectures {{ "{self._architecture}"; }};'
        for name, value in settings.items():
            yield f'{name} "{value}";'

    def _apt(self, *arguments: str, cwd: Path | None = None) -> None:
        environment = {**os.environ, "APT_CONFIG": str(self._config), "LC_ALL": "C.UTF-8"}
        command = ["apt-get", "-q", "-q", "-y", *arguments]
        try:
            result = subprocess.run(
                command,
                cwd=cwd or self._directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_TIME_LIMIT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise HostRefused(f"apt-get {arguments[0]} took more than {_TIME_LIMIT_S} s") from error
        except OSError as error:
            raise HostRefused(f"apt-get cannot be run: {error}") from error
        if result.returncode != 0:
            raise _apt_failure(arguments[0], result.stderr)


def _apt_failure(verb: str, output: str) -> Exception:
    """apt's own words, classed: a bad signature or checksum is the archive's fault, all else the host's."""
    lines = [line.removeprefix("E: ") for line in output.splitlines() if line.startswith(("E: ", "W: "))]
    said = lines[0] if lines else "it gave no reason"
    if re.search(r"signature|NO_PUBKEY|not signed|[Hh]ash [Ss]um|checksum", output):
        return CorruptImage(f"apt-get {verb} does not trust what it got: {said}")
    if re.search(r"[Nn]o space left|not have enough free space", output):
        remedy = "Free some space there, or set XDG_CACHE_HOME to a directory on a larger disk."
        return HostRefused("no space left for packages", remedy=remedy)
    return HostRefused(
        f"apt-get {verb} failed: {said}", remedy="Check the network, or name a mirror in SUBLET_MIRROR."
    )


def _downloaded(package: Package, directory: Path) -> Path:
    """The file that apt made of a package, its checksum compared once more."""
    version = package.version.replace(":", "%3a")
    for path in directory.glob(f"{package.name}_{version}_*.deb"):
        if file_sha256(path) == package.sha256:
            return path
    raise CorruptImage(f"{package.name} {package.version} fails its checksum")


def _host_settings() -> Iterator[str]:
    """The host's ``Acquire::`` settings (proxies among them), as lines of a configuration file."""
    result = subprocess.run(
        ["apt-config", "dump"], capture_output=True, text=True, errors="replace", check=False
    )
    for line in result.stdout.splitlines():
        if line.startswith("Acquire::") and line.endswith('";'):
            yield line


def _deb822_entries(text: str, wanted: Set[str]) -> Iterator[str]:
    for stanza in re.split(r"\n\s*\n", text):
        fields = parse_stanza(stanza)
        suites = [suite for suite in fields.get("Suites", "").split() if suite in wanted]
        if (
            suites
            and "deb" in fields.get("Types", "").split()
            and fields.get("Enabled", "yes").lower() != "no"
        ):
            fields.pop("Architectures", None)  # the host's choice, not the guest's
            yield _stanza({**fields, "Types": "deb", "Suites": " ".join(suites)})


def _one_line_entries(text: str, wanted: Set[str]) -> Iterator[str]:
    """Entries of the one-line form, ``deb [option=value …] uri suite component …``, as deb822 stanzas."""
    for line in text.splitlines():
        match = re.match(r"\s*deb\s+(?:\[([^]]*)\]\s+)?(\S+)\s+(\S+)\s+([^#]+)", line)
        if match and match.group(3) in wanted:
            options, uri, suite, components = match.groups()
            fields = {"Types": "deb", "URIs": uri, "Suites": suite, "Components": components.strip()}
            for option in (options or "").split():
                name, _, value = option.partition("=")
                if name.lower() in ("signed-by", "trusted", "check-valid-until"):
                    fields[name.title()] = value
            yield _stanza(fields)


def _stanza(fields: Mapping[str, str]) -> str:
    """A deb822 stanza; a key given inline keeps its continued lines."""
    lines = [f"{name}: {value}".replace("\n", "\n ") for name, value in fields.items()]
    return "\n".join(lines) + "\n"

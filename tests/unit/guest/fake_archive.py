"""A Debian archive of three tiny packages in a folder, signed by a key of its own."""

from __future__ import annotations

import hashlib
import io
import lzma
import shutil
import subprocess
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

KERNEL = "linux-image-6.1.0-1-cloud-amd64"
RELEASE = "6.1.0-1-cloud-amd64"


def make_tar(files: dict[str, bytes], mode: int = 0o644) -> bytes:
    """A tar of regular files, and of links where the content starts with ``->``."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.mode = mode
            if data.startswith(b"->"):
                info.type, info.linkname, data = tarfile.SYMTYPE, data[2:].decode(), b""
            elif name.endswith("/"):
                info.type = tarfile.DIRTYPE
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def make_ar(members: dict[str, bytes]) -> bytes:
    """An ``ar`` archive."""
    out = b"!<arch>\n"
    for name, data in members.items():
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode()
        out += data + b"\n" * (len(data) % 2)
    return out


def make_deb(control: str, files: dict[str, bytes], scripts: dict[str, bytes] | None = None) -> bytes:
    """A ``.deb`` with xz members."""
    control_files = {"./control": control.encode(), **(scripts or {})}
    return make_ar(
        {
            "debian-binary": b"2.0\n",
            "control.tar.xz": lzma.compress(make_tar(control_files)),
            "data.tar.xz": lzma.compress(make_tar(files)),
        }
    )


def make_module(name: str, depends: str = "", alias: str = "") -> bytes:
    """As much of a kernel module as ``sublet.guest.modules`` looks at."""
    parts = [b"\x7fELF", f"name={name}".encode(), f"depends={depends}".encode()]
    return b"\0".join([*parts, f"alias={alias}".encode(), b""])


@dataclass
class FakeArchive:
    """Writes ``dists`` and ``pool`` below ``root``; ``keyring`` is what its signature verifies against."""

    root: Path
    gpg_home: Path
    stanzas: list[str] = field(default_factory=list)

    @property
    def keyring(self) -> Path:
        return self.gpg_home / "keyring.gpg"

    @property
    def url(self) -> str:
        return f"file://{self.root}"

    @property
    def index_path(self) -> Path:
        return self.root / "dists/bookworm/main/binary-amd64/Packages.xz"

    @property
    def release_path(self) -> Path:
        return self.root / "dists/bookworm/InRelease"

    def deb_path(self, name: str) -> Path:
        return self.root / f"pool/{name}_1.0_amd64.deb"

    def add(self, name: str, files: dict[str, bytes], fields: str = "") -> None:
        """Add version 1.0 of a package."""
        control = f"Package: {name}\nVersion: 1.0\nArchitecture: amd64\n{fields}"
        data = make_deb(control, files)
        path = self.deb_path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        where = f"Filename: pool/{path.name}\nSize: {len(data)}\nSHA256: {digest}\n"
        self.stanzas.append(f"{control}{where}")

    def publish(self) -> None:
        """Write and sign the index."""
        packed = lzma.compress("\n".join(self.stanzas).encode())
        self.index_path.parent.mkdir(parents=True, exist_ok=True)
        self.index_path.write_bytes(packed)
        digest = hashlib.sha256(packed).hexdigest()
        listed = f" {digest} {len(packed)} main/binary-amd64/Packages.xz"
        plain = self.gpg_home / "Release"
        plain.write_text(f"Origin: Debian\nCodename: bookworm\nSHA256:\n{listed}\n")
        self.release_path.unlink(missing_ok=True)
        self._gpg("--clearsign", "--output", str(self.release_path), str(plain))

    def make_key(self) -> None:
        """Make the signing key and export its keyring."""
        self.gpg_home.mkdir(mode=0o700)
        self._gpg("--passphrase", "", "--quick-gen-key", "test@example.org", "ed25519", "sign", "never")
        self._gpg("--output", str(self.keyring), "--export")

    def stop(self) -> None:
        """End the key agent that gpg started for us."""
        command = ["gpgconf", "--homedir", str(self.gpg_home), "--kill", "all"]
        subprocess.run(command, capture_output=True, check=False)

    def _gpg(self, *arguments: str) -> None:
        command = ["gpg", "--batch", "--yes", "--quiet", "--homedir", str(self.gpg_home), *arguments]
        subprocess.run(command, check=True, capture_output=True)


def add_default_guest(archive: FakeArchive) -> None:
    """What the guest ``default`` is made from, in miniature."""
    folder = f"lib/modules/{RELEASE}/kernel/drivers"
    archive.add("linux-image-cloud-amd64", {}, f"Depends: {KERNEL} (= 1.0)\n")
    archive.add(
        KERNEL,
        {
            f"boot/vmlinuz-{RELEASE}": b"a kernel",
            f"{folder}/virtio.ko": make_module("virtio"),
            f"{folder}/virtio_blk.ko": make_module("virtio_blk", "virtio", "virtio:d00000002v*"),
            f"{folder}/unwanted.ko": make_module("unwanted"),
        },
    )
    archive.add("busybox-static", {"bin/busybox": b"a busybox"})


def have_gpg() -> bool:
    """Whether this host can sign an archive."""
    return shutil.which("gpg") is not None and shutil.which("gpgv") is not None

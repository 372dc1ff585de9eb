"""LUKS version 1 in a QCOW2 image: unlocking with a passphrase, and clusters that are encrypted in place.

Ciphers: AES-128 and AES-256 in XTS mode with 64-bit sector numbers ("aes", "xts-plain64"), which is what QEMU
and cryptsetup make by default. Sectors are numbered from the start of the file, not of the disk.

Reference: "LUKS1 On-Disk Format Specification" 1.2.3; "QCOW2 image format" (QEMU 7.2) § "Data encryption".
"""

from __future__ import annotations

import hashlib
import os
import struct
import threading
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sublet.block.contract import BlockStatus, Extent
from sublet.block.hostfile import Bytes, HostFile
from sublet.core import AesXts
from sublet.errors import CorruptImage, HostRefused, UnsupportedImage, UsageError

SECRET_VARIABLE: Final = "SUBLET_DISK_SECRET"
"""Environment variable: path of a file that holds the passphrase, up to its first newline."""
MAGIC: Final = b"LUKS\xba\xbe"
SECTOR: Final = 512
_HEADER: Final = struct.Struct(">6sH32s32s32sII20s32sI40s")
_SLOT: Final = struct.Struct(">II32sII")
_SLOTS: Final = 8
_ACTIVE, _INACTIVE = 0x00AC71F3, 0x0000DEAD
_STRIPES: Final = 4000
_ITERATIONS_MAXIMUM: Final = 20_000_000
_ITERATIONS: Final = 600_000
_HASHES: Final = ("sha1", "sha256", "sha512")
_SECRET_MAXIMUM: Final = 8192


def read_secret() -> bytes:
    """The passphrase that the user's environment names.

    Raises:
        UsageError: It names none.
        HostRefused: The file cannot be read.
    """
    name = os.environ.get(SECRET_VARIABLE)
    if not name:
        raise UsageError(
            "the disk is encrypted", remedy=f"Set {SECRET_VARIABLE} to a file that holds the passphrase."
        )
    try:
        with Path(name).open("rb") as file:
            return file.read(_SECRET_MAXIMUM).split(b"\n")[0]
    except OSError as error:
        raise HostRefused(f"cannot read the passphrase in {name}: {error.strerror}") from error


@dataclass(frozen=True)
class _Slot:
    iterations: int
    salt: bytes
    offset: int
    stripes: int


def unlock(header: bytes, secret: bytes) -> bytes:
    """The master key.

    Args:
        header: The whole LUKS header with its key material.

    Raises:
        UsageError: The passphrase opens no key slot.
        UnsupportedImage: Another version or cipher.
        CorruptImage: A field is out of its range.
    """
    if len(header) < _HEADER.size + _SLOTS * _SLOT.size or header[:6] != MAGIC:
        raise CorruptImage("LUKS header: no magic number")
    fields = _HEADER.unpack_from(header)
    _, version, cipher, mode, hash_name, _, key_size, digest, digest_salt, digest_iterations, _ = fields
    hash_ = hash_name.rstrip(b"\0").decode("ascii", "replace")
    names = (cipher.rstrip(b"\0"), mode.rstrip(b"\0"))
    if version != 1 or names != (b"aes", b"xts-plain64") or hash_ not in _HASHES or key_size not in (32, 64):
        raise UnsupportedImage(f"LUKS header: version {version}, {names}, {hash_}, {key_size} bytes of key")
    _check_iterations(digest_iterations)
    for number in range(_SLOTS):
        active, *rest = _SLOT.unpack_from(header, _HEADER.size + number * _SLOT.size)
        if active != _ACTIVE:
            continue
        key = _open_slot(header, _Slot(rest[0], rest[1], rest[2] * SECTOR, rest[3]), secret, hash_, key_size)
        if hashlib.pbkdf2_hmac(hash_, key, digest_salt, digest_iterations, 20) == digest:
            return key
    raise UsageError("the passphrase does not open the disk")


def _check_iterations(count: int) -> None:
    if not 0 < count <= _ITERATIONS_MAXIMUM:
        raise CorruptImage(f"LUKS header: {count} iterations")


def _open_slot(header: bytes, slot: _Slot, secret: bytes, hash_: str, key_size: int) -> bytes:
    """What the slot holds if the passphrase is its own, else rubbish."""
    _check_iterations(slot.iterations)
    size = slot.stripes * key_size
    if not 0 < slot.stripes <= 2 * _STRIPES or slot.offset + size > len(header):
        raise CorruptImage(f"LUKS header: key material of {slot.stripes} stripes at {slot.offset}")
    derived = hashlib.pbkdf2_hmac(hash_, secret, slot.salt, slot.iterations, key_size)
    padded = -(-size // SECTOR) * SECTOR
    material = header[slot.offset : slot.offset + padded].ljust(padded, b"\0")
    return _merge(AesXts(derived).decrypt(0, material)[:size], slot.stripes, hash_)


def _merge(material: bytes, stripes: int, hash_: str) -> bytes:
    """Put the anti-forensic stripes together (§ 2.4 "Anti-forensic splitter")."""
    size = len(material) // stripes
    value = bytes(size)
    for number in range(stripes - 1):
        value = _diffuse(_xor(value, material[number * size : (number + 1) * size]), hash_)
    return _xor(value, material[-size:])


def _split(key: bytes, hash_: str) -> bytes:
    """The stripes that ``_merge`` puts together."""
    parts = [os.urandom(len(key)) for _ in range(_STRIPES - 1)]
    value = bytes(len(key))
    for part in parts:
        value = _diffuse(_xor(value, part), hash_)
    return b"".join((*parts, _xor(value, key)))


def _xor(one: bytes, other: bytes) -> bytes:
    return (int.from_bytes(one, "big") ^ int.from_bytes(other, "big")).to_bytes(len(one), "big")


def _diffuse(value: bytes, hash_: str) -> bytes:
    step = hashlib.new(hash_).digest_size
    pieces = [value[start : start + step] for start in range(0, len(value), step)]
    return b"".join(
        hashlib.new(hash_, struct.pack(">I", number) + piece).digest()[: len(piece)]
        for number, piece in enumerate(pieces)
    )


def make_header(secret: bytes, *, iterations: int = 0) -> tuple[bytes, bytes]:
    """A new LUKS header with its key material in the first slot, and the master key."""
    iterations = iterations or _ITERATIONS
    key, digest_salt, slot_salt = os.urandom(64), os.urandom(32), os.urandom(32)
    material_sectors = -(-_STRIPES * len(key) // 4096) * 8
    derived = hashlib.pbkdf2_hmac("sha256", secret, slot_salt, iterations, len(key))
    digest = hashlib.pbkdf2_hmac("sha256", key, digest_salt, iterations, 20)
    payload = 8 + _SLOTS * material_sectors
    identity = str(uuid.uuid4()).encode()
    parts = _HEADER.pack(
        MAGIC, 1, b"aes", b"xts-plain64", b"sha256", payload, 64, digest, digest_salt, iterations, identity
    )
    for number in range(_SLOTS):
        offset = 8 + number * material_sectors
        used = (_ACTIVE, iterations, slot_salt) if number == 0 else (_INACTIVE, 0, bytes(32))
        parts += _SLOT.pack(*used, offset, _STRIPES)
    header = bytearray(payload * SECTOR)
    header[: len(parts)] = parts
    material = _split(key, "sha256")
    header[4096 : 4096 + len(material)] = AesXts(derived).encrypt(0, material)
    return bytes(header), key


class EncryptedFile:
    """The clusters of an encrypted image as plain bytes (``HostFile``). Flushing and closing are the file's.

    The passphrase is asked for by the first access: looking at the image's own tables needs none.

    Args:
        header: The LUKS header with its key material.
    """

    def __init__(self, file: HostFile, header: bytes) -> None:
        self._file = file
        self._header = header
        self._unlocked: AesXts | None = None
        self._lock = threading.Lock()
        self.path = file.path
        self.readonly = file.readonly
        self.block_size = file.block_size
        self.identity = file.identity

    @property
    def _cipher(self) -> AesXts:
        with self._lock:
            if self._unlocked is None:
                self._unlocked = AesXts(unlock(self._header, read_secret()))
            return self._unlocked

    def size(self) -> int:
        """Bytes."""
        return self._file.size()

    def allocated(self) -> int:
        """None beyond those of the file itself."""
        return 0

    def read(self, offset: int, size: int) -> bytes:
        """Decrypt the sectors that hold the range."""
        start = offset // SECTOR * SECTOR
        end = -(-(offset + size) // SECTOR) * SECTOR
        plain = self._cipher.decrypt(start // SECTOR, self._file.read(start, end - start))
        return plain[offset - start : offset - start + size]

    def readinto(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Fill ``buffer``."""
        view = memoryview(buffer).cast("B")
        view[:] = self.read(offset, len(view))

    def write(self, offset: int, data: Bytes) -> None:
        """Encrypt; at odd ends the rest of the sector is read first."""
        view = memoryview(data).cast("B")
        start = offset // SECTOR * SECTOR
        end = -(-(offset + len(view)) // SECTOR) * SECTOR
        if start != offset or end != offset + len(view):
            whole = bytearray(self.read(start, end - start))
            whole[offset - start : offset - start + len(view)] = view
            view = memoryview(whole)
        self._file.write(start, self._cipher.encrypt(start // SECTOR, view))

    def write_zeroes(self, offset: int, size: int, *, unmap: bool = True) -> None:
        """Write encrypted zeroes."""
        self.write(offset, bytes(size))

    def discard(self, offset: int, size: int) -> None:
        """Give the storage back."""
        self._file.discard(offset, size)

    def extent(self, offset: int, size: int) -> Extent:
        """Nothing is known to be zero."""
        return Extent(offset, size, BlockStatus.DATA)

    def truncate(self, size: int) -> None:
        """Make the file longer or shorter."""
        self._file.truncate(size)

    def flush(self) -> None:
        """The file's own flush follows."""

    def close(self) -> None:
        """The file's own close follows."""

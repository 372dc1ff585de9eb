"""QCOW2, QEMU's disk format, versions 2 and 3."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from sublet.block.chain import Chain
from sublet.block.description import BackingReference
from sublet.block.format import Image, ImageFormat
from sublet.block.hostfile import HostFile, HostFiles, read_structure
from sublet.block.qcow2 import layout as q
from sublet.block.qcow2.create import OPTIONS, create
from sublet.block.qcow2.image import Qcow2Image
from sublet.errors import CorruptImage, UnsupportedImage


class Qcow2Format:
    """QCOW2 (``ImageFormat``)."""

    name = "qcow2"
    extensions = (".qcow2", ".qcow", ".q2")
    options = OPTIONS

    def probe(self, head: bytes, tail: bytes, size: int) -> bool:
        """The magic number, and a version that is not QCOW's first."""
        return head[:4] == q.MAGIC and int.from_bytes(head[4:8], "big") >= 2

    def open(self, path: Path, *, readonly: bool, chain: Chain, check: bool = False) -> Image:
        """Open; for writing, repair what was not closed cleanly."""
        file = chain.open_file(path, readonly=readonly)
        opened: list[HostFile | Image] = [file]
        try:
            header = q.read_header(file)
            _refuse(file, header, readonly=readonly, check=check)
            data = _open_data_file(file, header, readonly, chain)
            opened.extend([data] if data else [])
            backing = _open_backing(file, header, chain)
            opened.extend([backing] if backing else [])
            image = Qcow2Image(file, header, readonly=readonly, data=data, backing=backing)
            if not readonly:
                image.begin_writing(repair=not check)
            return image
        except BaseException:
            for one in reversed(opened):
                one.close()
            raise

    def create(
        self,
        path: Path,
        size: int,
        *,
        options: Mapping[str, str],
        backing: BackingReference | None,
        files: HostFiles,
    ) -> None:
        """Create an empty image."""
        create(path, size, options, backing, files)


def _refuse(file: HostFile, header: q.Header, *, readonly: bool, check: bool) -> None:
    if header.crypt_method == q.CRYPT_AES:
        raise UnsupportedImage(f"{file.path}: crypt_method 1, the broken AES encryption of old images")
    if header.crypt_method == q.CRYPT_LUKS and header.has_data_file:
        raise UnsupportedImage(f"{file.path}: encrypted, with a data file")
    if header.incompatible & q.INCOMPATIBLE_CORRUPT and not readonly and not check:
        raise CorruptImage(
            f"{file.path} is marked as corrupt", remedy="Repair it with 'sublet disk check --repair'."
        )


def _open_data_file(file: HostFile, header: q.Header, readonly: bool, chain: Chain) -> HostFile | None:
    if header.crypt_method == q.CRYPT_LUKS:
        return _decrypted(file, header)
    if not header.has_data_file:
        return None
    name = header.extension(q.EXTENSION_DATA_FILE)
    if not name:
        raise CorruptImage(f"{file.path}: its data is in another file, but no name is given")
    path = chain.resolve(file.path, name.decode("utf-8", "surrogateescape"))
    data = chain.open_file(path, readonly=readonly)
    if data.identity == file.identity:
        data.close()
        raise CorruptImage(f"{file.path}: it names itself as its data file")
    return data


def _decrypted(file: HostFile, header: q.Header) -> HostFile:
    # Imported where it is needed: the cipher library takes longer to load than an image to open.
    from sublet.block.qcow2.luks import EncryptedFile

    place = header.extension(q.EXTENSION_ENCRYPTION)
    if place is None or len(place) != 16:
        raise CorruptImage(f"{file.path}: encrypted, but no header extension says where its keys are")
    offset, size = int.from_bytes(place[:8], "big"), int.from_bytes(place[8:], "big")
    if size > q.LUKS_BYTES_MAXIMUM:
        raise CorruptImage(f"{file.path}: the encryption header has {size} bytes")
    return EncryptedFile(file, read_structure(file, offset, size, "encryption header"))


def _open_backing(file: HostFile, header: q.Header, chain: Chain) -> Image | None:
    if header.backing is None:
        return None
    name = header.extension(q.EXTENSION_BACKING_FORMAT)
    return chain.open_parent(file, header.backing, name.decode("utf-8", "replace") if name else None)


FORMAT: Final[ImageFormat] = Qcow2Format()

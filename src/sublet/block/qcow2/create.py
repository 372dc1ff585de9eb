"""Creating QCOW2 images."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from sublet.block.description import BackingReference
from sublet.block.format import CreateOption, read_flag, read_options
from sublet.block.hostfile import HostFile, HostFiles, new_file
from sublet.block.qcow2 import layout as q
from sublet.block.qcow2.refcounts import RefcountBlock
from sublet.errors import UsageError
from sublet.units import parse_size

OPTIONS: Final = (
    CreateOption("compat", "1.1", "1.1: version 3; 0.10: version 2, for very old readers"),
    CreateOption("cluster_size", "64K", "allocation unit, 512B to 2M, a power of two; 128K with extended_l2"),
    CreateOption("compression_type", "zlib", "zlib or zstd, for clusters written compressed"),
    CreateOption("extended_l2", "off", "on: allocate in 1/32 of a cluster"),
    CreateOption("lazy_refcounts", "off", "on: let writers postpone reference counts"),
    CreateOption("refcount_bits", "16", "1, 2, 4, 8, 16, 32 or 64"),
    CreateOption("encryption", "off", "luks: with the passphrase in the file that SUBLET_DISK_SECRET names"),
    CreateOption("data_file", "", "keep the data in this raw file, created if it is not there"),
    CreateOption("data_file_raw", "off", "on: the data file is a raw image by itself"),
)


def create(
    path: Path, size: int, options: Mapping[str, str], backing: BackingReference | None, files: HostFiles
) -> None:
    """Write an empty image.

    Raises:
        UsageError: An option, or the combination of them, is none that the format has.
    """
    header = plan_header(size, read_options("qcow2", OPTIONS, options), backing)
    with ExitStack() as made:
        data_file = header.extension(q.EXTENSION_DATA_FILE)
        if data_file is not None:
            made.enter_context(new_file(files, path.parent / data_file.decode())).truncate(size)
        file = made.enter_context(new_file(files, path))
        write_empty(file, header)
        file.flush()


def plan_header(size: int, values: Mapping[str, str], backing: BackingReference | None) -> q.Header:
    """The header of an image with these options, its tables not yet placed."""
    version = _choice("compat", values["compat"], {"1.1": 3, "v3": 3, "0.10": 2, "v2": 2})
    extended = read_flag("extended_l2", values["extended_l2"])
    header = q.Header(version, size, _cluster_bits(values["cluster_size"], extended), 0, 0, 0, 1)
    header.refcount_order = _choice("refcount_bits", values["refcount_bits"], _REFCOUNT_ORDERS)
    header.compression = _choice("compression_type", values["compression_type"], {"zlib": 0, "zstd": 1})
    lazy = read_flag("lazy_refcounts", values["lazy_refcounts"])
    header.compatible = q.COMPATIBLE_LAZY_REFCOUNTS if lazy else 0
    header.incompatible = q.INCOMPATIBLE_COMPRESSION if header.compression else 0
    header.incompatible |= q.INCOMPATIBLE_EXTENDED_L2 if extended else 0
    header.crypt_method = _choice("encryption", values["encryption"], {"off": 0, "luks": q.CRYPT_LUKS})
    if values["data_file"]:
        header.incompatible |= q.INCOMPATIBLE_DATA_FILE
        header.set_extension(q.EXTENSION_DATA_FILE, values["data_file"].encode())
    raw = read_flag("data_file_raw", values["data_file_raw"])
    header.autoclear = q.AUTOCLEAR_DATA_FILE_RAW if raw else 0
    _refuse_combinations(header, raw, backing)
    if backing is not None:
        header.backing = backing.path
        if len(backing.path.encode()) > q.NAME_MAXIMUM:
            raise UsageError(f"the parent's name is longer than {q.NAME_MAXIMUM} bytes")
        if backing.format:
            header.set_extension(q.EXTENSION_BACKING_FORMAT, backing.format.encode())
    return header


_REFCOUNT_ORDERS: Final = {str(1 << order): order for order in range(7)}


def _refuse_combinations(header: q.Header, raw: bool, backing: BackingReference | None) -> None:
    if header.version == 2 and (
        header.incompatible
        or header.compatible
        or header.autoclear
        or header.crypt_method
        or header.refcount_order != 4
    ):
        raise UsageError("compat=0.10 has none of the other options but cluster_size")
    if raw and not header.has_data_file:
        raise UsageError("data_file_raw=on needs data_file")
    if header.crypt_method and header.has_data_file:
        raise UsageError("encryption=luks does not go with data_file")
    if raw and backing is not None:
        raise UsageError("with data_file_raw=on the image cannot have a parent")


def _choice(name: str, value: str, known: Mapping[str, int]) -> int:
    if value not in known:
        raise UsageError(f"{name}={value}: it can be {', '.join(known)}")
    return known[value]


def _cluster_bits(text: str, extended: bool) -> int:
    try:
        size = parse_size(f"{text}B" if text.isdecimal() else text)
    except ValueError as error:
        raise UsageError(f"cluster_size: {error}") from error
    least = 16384 if extended else 512
    if size & (size - 1) or not least <= size <= 2 << 20:
        raise UsageError(f"cluster_size={text}: it must be a power of two from {least} to 2M")
    return size.bit_length() - 1


def _make_keys() -> bytes:
    from sublet.block.qcow2.luks import make_header, read_secret

    return make_header(read_secret())[0]


def write_empty(file: HostFile, header: q.Header) -> None:
    """Place the tables of an empty image and write it: refcount block(s) and table, L1 table, header.

    The header follows a flush: until it is there, the file is no image, and then all of it is.
    """
    size = header.cluster_size
    header.l1_entries = max(1, header.l1_needed)
    if header.l1_entries * 8 > q.L1_BYTES_MAXIMUM:
        raise UsageError(
            f"a disk of {header.size} bytes needs larger clusters than {size} bytes",
            remedy="Choose a larger cluster_size, up to 2M.",
        )
    keys = _make_keys() if header.crypt_method else b""
    l1_clusters = max(1, -(-header.l1_entries * 8 // size))
    key_clusters = -(-len(keys) // size)
    per_block = size * 8 >> header.refcount_order
    blocks, table_clusters = 1, 1
    while (used := 1 + table_clusters + blocks + l1_clusters + key_clusters) > blocks * per_block or (
        blocks > table_clusters * size // 8
    ):
        blocks = -(-used // per_block)
        table_clusters = max(1, -(-blocks * 8 // size))
    header.reftable_offset, header.reftable_clusters = size, table_clusters
    header.l1_offset = (1 + table_clusters + blocks) * size
    table = array("Q", bytes(table_clusters * size))
    for number in range(blocks):
        table[number] = (1 + table_clusters + number) * size
        block = RefcountBlock(bytearray(size), header.refcount_order)
        block.fill(0, max(0, min(per_block, used - number * per_block)))
        file.write(table[number], bytes(block.data))
    file.write(header.reftable_offset, q.table_to_bytes(table))
    file.write(header.l1_offset, bytes(l1_clusters * size))
    if keys:
        place = header.l1_offset + l1_clusters * size
        file.write(place, keys.ljust(key_clusters * size, b"\0"))
        header.set_extension(q.EXTENSION_ENCRYPTION, struct.pack(">QQ", place, len(keys)))
    try:
        packed = header.pack()
    except Exception as error:
        raise UsageError(str(error)) from error
    file.flush()
    file.write(0, packed + bytes(size - len(packed)))

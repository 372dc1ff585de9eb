"""Descriptors: what is in them, and that changes touch nothing else."""

from __future__ import annotations

import pytest

from sublet.block.vmdk.descriptor import (
    NO_PARENT,
    Descriptor,
    ExtentLine,
    ExtentType,
    geometry,
    make,
    probe,
)
from sublet.errors import CorruptImage, UnsupportedImage

TEXT = """# Disk DescriptorFile
version=1
encoding="windows-1252"
CID=fffffffe
parentCID=0123abcd
isNativeSnapshot="no"
createType="twoGbMaxExtentSparse"
parentFileNameHint="base.vmdk"
# Extent description
RW 4192256 SPARSE "disk-s001.vmdk"
RW 2048 FLAT "a name.vmdk" 63
RDONLY 10 ZERO

# The Disk Data Base
#DDB

ddb.adapterType = "lsilogic"
ddb.comment = "kept \\ as = it is"
"""


def parse(text: str = TEXT) -> Descriptor:
    return Descriptor.decode(text.encode(), "disk.vmdk")


def test_entries_and_extents_are_read() -> None:
    found = parse()
    assert found.content_id == 0xFFFF_FFFE
    assert (found.parent_content_id, found.parent_hint) == (0x0123_ABCD, "base.vmdk")
    assert found.create_type == "twoGbMaxExtentSparse"
    assert found.get("ddb.adaptertype") == "lsilogic"
    assert found.extents == [
        ExtentLine("RW", 4192256, ExtentType.SPARSE, "disk-s001.vmdk"),
        ExtentLine("RW", 2048, ExtentType.FLAT, "a name.vmdk", 63),
        ExtentLine("RDONLY", 10, ExtentType.ZERO),
    ]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_an_untouched_descriptor_comes_out_as_it_went_in(end: str) -> None:
    text = TEXT.replace("\n", end)
    assert parse(text).encode() == text.encode()


def test_names_are_in_the_encoding_that_the_descriptor_says() -> None:
    data = TEXT.replace("a name", "Größe").encode("windows-1252")
    found = Descriptor.decode(data, "disk.vmdk")
    assert found.extents[1].filename == "Größe.vmdk"
    assert found.encode() == data


@pytest.mark.parametrize("encoding", ["UTF-8", "unicode_escape", "zlib"])
def test_bytes_of_no_encoding_are_kept(encoding: str) -> None:
    data = TEXT.replace("windows-1252", encoding).encode().replace(b"a name", b"\xff\\x41")
    assert Descriptor.decode(data, "disk.vmdk").encode() == data


def test_a_change_touches_one_line() -> None:
    found = parse()
    found.set("CID", "00000001", quoted=False)
    assert found.encode().decode() == TEXT.replace("CID=fffffffe", "CID=00000001")


def test_new_entries_go_where_they_belong() -> None:
    found = parse()
    found.remove("parentFileNameHint")
    found.set("parentFileNameHint", "other.vmdk")
    found.set("ddb.toolsVersion", "1")
    lines = found.encode().decode().splitlines()
    assert lines[lines.index("parentCID=0123abcd") + 1] == 'parentFileNameHint="other.vmdk"'
    assert lines[-1] == 'ddb.toolsVersion = "1"'


def test_extents_are_replaced_in_place() -> None:
    found = parse()
    found.set_extents([ExtentLine("RW", 5, ExtentType.SPARSE, "x.vmdk")])
    lines = found.encode().decode().splitlines()
    assert lines[lines.index("# Extent description") + 1] == 'RW 5 SPARSE "x.vmdk"'
    assert parse(found.encode().decode()).sectors == 5


def test_text_after_nul_is_padding() -> None:
    assert Descriptor.decode(TEXT.encode() + b"\0\0CID=1", "x").content_id == 0xFFFF_FFFE


@pytest.mark.parametrize(
    ("old", "new", "error", "word"),
    [
        ("createType", "type", CorruptImage, "createType"),
        ("fffffffe", "xyz", CorruptImage, "CID"),
        ("ZERO", "VMFSRDM", UnsupportedImage, "VMFSRDM"),
        ('SPARSE "disk-s001.vmdk"', "SPARSE", CorruptImage, "file name"),
        ("version=1", "x" * 5000, CorruptImage, "too long"),
        ("version=1", "x\n" * 30000, CorruptImage, "too many"),
    ],
)
def test_nonsense_is_refused_by_name(old: str, new: str, error: type[Exception], word: str) -> None:
    with pytest.raises(error, match=word):
        _ = parse(TEXT.replace(old, new)).content_id


def test_a_descriptor_without_extents_is_refused() -> None:
    with pytest.raises(CorruptImage, match="no extents"):
        parse("# Disk DescriptorFile\ncreateType=x\n")


def test_probe_wants_the_first_line() -> None:
    assert probe(TEXT.encode())
    assert probe(b"# a comment\n\n#disk descriptorfile\n")
    assert not probe(b"#!/bin/sh\n# Disk DescriptorFile is a name")
    assert not probe(b"text\n# Disk DescriptorFile\n")


def test_a_new_descriptor_reads_back() -> None:
    made = make("monolithicFlat", [ExtentLine("RW", 2048, ExtentType.FLAT, "x-flat.vmdk")], content_id=7)
    again = parse(made.encode().decode())
    assert (again.content_id, again.parent_content_id, again.parent_hint) == (7, NO_PARENT, None)
    assert again.sectors == 2048


def test_geometry_is_bounded() -> None:
    assert geometry(16 * 63 * 10, "ide") == (10, 16, 63)
    assert geometry(1 << 40, "lsilogic") == (0xFFFF, 255, 63)

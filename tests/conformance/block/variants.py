"""The writable formats in the shapes that the block conformance tests run over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Variant:
    """A format with options.

    Attributes:
        parent: Name of the parent's format, for an overlay.
        parent_options: And its options.
        qemu: What QEMU calls the format; empty where it cannot read the variant.
    """

    format: str
    options: Mapping[str, str] = field(default_factory=dict)
    parent: str = ""
    parent_options: Mapping[str, str] = field(default_factory=dict)
    qemu: str = ""
    checkable: bool = True
    """Whether ``qemu-img check`` knows the format."""


VARIANTS = {
    "raw": Variant("raw", qemu="raw", checkable=False),
    "qcow2": Variant("qcow2", {"cluster_size": "4K"}, qemu="qcow2"),
    "qcow2 lazy": Variant("qcow2", {"cluster_size": "4K", "lazy_refcounts": "on"}, qemu="qcow2"),
    "qcow2 extended": Variant("qcow2", {"cluster_size": "16K", "extended_l2": "on"}, qemu="qcow2"),
    "qcow2 overlay": Variant("qcow2", {"cluster_size": "4K"}, parent="raw"),
    "vdi": Variant("vdi", qemu="vdi"),
    "vdi static": Variant("vdi", {"static": "on"}, qemu="vdi"),
    "vdi overlay": Variant("vdi", parent="vdi"),
    "vmdk": Variant("vmdk", qemu="vmdk"),
    "vmdk split": Variant("vmdk", {"subformat": "twoGbMaxExtentSparse"}, qemu="vmdk"),
    "vmdk stream": Variant("vmdk", {"subformat": "streamOptimized"}, qemu="vmdk"),
    "vmdk overlay": Variant("vmdk", {"zeroed_grain": "on"}, parent="vmdk"),
    "vhd": Variant("vhd", {"block_size": "64K"}, qemu="vpc", checkable=False),
    "vhd fixed": Variant("vhd", {"subformat": "fixed"}, qemu="vpc", checkable=False),
    "vhd overlay": Variant("vhd", {"block_size": "64K"}, parent="vhd"),
    "vhdx": Variant("vhdx", {"block_size": "1M"}, qemu="vhdx"),
    "vhdx 4k sectors": Variant("vhdx", {"block_size": "1M", "logical_sector_size": "4096"}),
    "vhdx overlay": Variant("vhdx", {"block_size": "1M"}, parent="vhdx", parent_options={"block_size": "1M"}),
}

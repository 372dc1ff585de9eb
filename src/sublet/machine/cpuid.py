"""CPUID of one vCPU: what the engine supports, with the machine's topology in it.

One package, one thread a core, one core a vCPU; APIC ID = vCPU index.
Reference: Intel SDM vol. 2A "CPUID"; AMD APM vol. 3 appendix E.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

CpuidEntry = tuple[int, int, bool, int, int, int, int]
_Registers = tuple[int, int, int, int]

_ADDRESS_SIZES: Final = 0x8000_0008
_HTT: Final = 1 << 28
_CMP_LEGACY: Final = 1 << 1
_CPUS_IN_ONE_BYTE: Final = 255
_TOPOLOGY_LEAVES: Final = (0xB, 0x1F)
_LEVEL_SMT: Final = 1
_LEVEL_CORE: Final = 2


def for_vcpu(supported: Iterable[CpuidEntry], index: int, cpus: int) -> list[CpuidEntry]:
    """Entries for vCPU ``index`` of ``cpus``; leaves that say nothing of topology pass unchanged."""
    entries = [_adapt(entry, index, cpus) for entry in supported if entry[0] not in _TOPOLOGY_LEAVES]
    highest = max((entry[3] for entry in entries if entry[0] == 0), default=0)
    for leaf in _TOPOLOGY_LEAVES:
        if leaf <= highest:
            entries += _extended_topology(leaf, index, cpus)
    return entries


def limit_address_bits(entries: Iterable[CpuidEntry], bits: int) -> list[CpuidEntry]:
    """Leaf 0x80000008 with at most ``bits`` bits of physical address.

    UEFI maps all that the processor can address, with pages of 2 MiB: 48 bits take more memory for page
    tables than most machines have.
    """
    return [
        (*entry[:3], (entry[3] & ~0xFF) | min(entry[3] & 0xFF, bits), *entry[4:])
        if entry[0] == _ADDRESS_SIZES
        else entry
        for entry in entries
    ]


def _adapt(entry: CpuidEntry, index: int, cpus: int) -> CpuidEntry:
    leaf, subleaf, has_subleaf, *registers = entry
    rule = _RULES.get(leaf)
    if rule is None:
        return entry
    eax, ebx, ecx, edx = registers
    return leaf, subleaf, has_subleaf, *rule((eax, ebx, ecx, edx), index, cpus)


def _features(registers: _Registers, index: int, cpus: int) -> _Registers:
    eax, ebx, ecx, edx = registers
    count = min(cpus, _CPUS_IN_ONE_BYTE)
    ebx = (ebx & 0xFFFF) | count << 16 | (index & 0xFF) << 24
    edx = edx | _HTT if cpus > 1 else edx & ~_HTT
    return eax, ebx, ecx, edx


def _cache(registers: _Registers, index: int, cpus: int) -> _Registers:
    """Leaves 4 and 0x8000001d: caches of level 3 are shared by all, the others by nobody."""
    eax, ebx, ecx, edx = registers
    if not eax & 0x1F:
        return registers
    sharing = cpus - 1 if eax >> 5 & 7 >= 3 else 0
    return (eax & 0x3FFF) | (sharing & 0xFFF) << 14, ebx, ecx, edx


def _intel_cache(registers: _Registers, index: int, cpus: int) -> _Registers:
    eax, ebx, ecx, edx = _cache(registers, index, cpus)
    return (eax | min(cpus - 1, 63) << 26 if eax & 0x1F else eax), ebx, ecx, edx


def _amd_features(registers: _Registers, index: int, cpus: int) -> _Registers:
    eax, ebx, ecx, edx = registers
    return eax, ebx, (ecx | _CMP_LEGACY if cpus > 1 else ecx & ~_CMP_LEGACY), edx


def _amd_sizes(registers: _Registers, index: int, cpus: int) -> _Registers:
    eax, ebx, ecx, edx = registers
    return eax, ebx, (ecx & ~0xF0FF) | min(cpus - 1, 0xFF) | (cpus - 1).bit_length() << 12, edx


def _amd_topology(registers: _Registers, index: int, cpus: int) -> _Registers:
    return index, index & 0xFF, 0, 0


_RULES: Final[dict[int, Callable[[_Registers, int, int], _Registers]]] = {
    0x1: _features,
    0x4: _intel_cache,
    0x8000_0001: _amd_features,
    0x8000_0008: _amd_sizes,
    0x8000_001D: _cache,
    0x8000_001E: _amd_topology,
}


def _extended_topology(leaf: int, index: int, cpus: int) -> list[CpuidEntry]:
    shift = (cpus - 1).bit_length()
    return [
        (leaf, 0, True, 0, 1, _LEVEL_SMT << 8, index),
        (leaf, 1, True, shift, cpus, _LEVEL_CORE << 8 | 1, index),
        (leaf, 2, True, 0, 0, 2, index),
    ]

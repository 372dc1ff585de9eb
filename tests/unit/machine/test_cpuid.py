"""CPUID topology: what one vCPU of several says of itself."""

from __future__ import annotations

import pytest

from sublet.machine.cpuid import CpuidEntry, for_vcpu, limit_address_bits

SUPPORTED: list[CpuidEntry] = [
    (0, 0, False, 0x1F, 1, 2, 3),
    (1, 0, False, 0xA20F10, 0x0C100800, 0xFFFF, 0x1FFF_FFFF),
    (4, 0, True, 0x3C01C121, 1, 2, 3),
    (4, 3, True, 0x3C01C163, 1, 2, 3),
    (4, 4, True, 0, 0, 0, 0),
    (7, 0, True, 1, 2, 3, 4),
    (0xB, 0, True, 9, 9, 9, 9),
    (0x8000_0008, 0, False, 0x3030, 0, 0xF00F, 0),
]


def leaf(entries: list[CpuidEntry], function: int, index: int = 0) -> tuple[int, ...]:
    (found,) = [entry[3:] for entry in entries if entry[:2] == (function, index)]
    return found


@pytest.mark.parametrize(("index", "cpus"), [(0, 1), (0, 2), (3, 4), (254, 255)])
def test_identity_and_counts(index: int, cpus: int) -> None:
    entries = for_vcpu(SUPPORTED, index, cpus)
    _, ebx, _, edx = leaf(entries, 1)
    assert (ebx >> 24, ebx >> 16 & 0xFF) == (index, cpus)
    assert bool(edx & 1 << 28) == (cpus > 1)
    assert leaf(entries, 0xB, 0) == (0, 1, 0x100, index)
    shift, count, level, identity = leaf(entries, 0xB, 1)
    assert (count, level, identity) == (cpus, 0x201, index)
    assert 1 << shift >= cpus
    assert leaf(entries, 0x8000_0008)[2] & 0xFF == cpus - 1


def test_what_says_nothing_of_topology_is_unchanged() -> None:
    assert leaf(for_vcpu(SUPPORTED, 1, 2), 7) == (1, 2, 3, 4)


def test_only_the_last_level_cache_is_shared() -> None:
    entries = for_vcpu(SUPPORTED, 0, 4)
    sharing = [leaf(entries, 4, level)[0] >> 14 & 0xFFF for level in (0, 3)]
    assert sharing == [0, 3]
    assert leaf(entries, 4, 4) == (0, 0, 0, 0)


def test_address_bits_are_limited_and_the_rest_stays() -> None:
    entries = [(0x8000_0008, 0, False, 0x3030, 1, 2, 3), (1, 0, False, 0x3030, 0, 0, 0)]
    assert limit_address_bits(entries, 40) == [
        (0x8000_0008, 0, False, 0x3028, 1, 2, 3),
        (1, 0, False, 0x3030, 0, 0, 0),
    ]

"""Package indexes: versions, dependencies, the host's apt sources."""

from __future__ import annotations

from pathlib import Path

import pytest

from sublet.errors import CorruptImage, UsageError
from sublet.guest.apt import host_sources
from sublet.guest.archive import PackageIndex, compare_versions, parse_packages


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("1.0", "1.1"),
        ("1.9", "1.10"),
        ("1.0~rc1", "1.0"),
        ("1.0", "1.0+b1"),
        ("9.9", "1:0.1"),
        ("1.0-1", "1.0-1+deb12u1"),
        ("1.0a", "1.0+"),
        ("6.1.176-1", "6.1.192-2"),
    ],
)
def test_versions_are_ordered_as_policy_says(older: str, newer: str) -> None:
    """Debian Policy 4.6 §5.6.12."""
    assert compare_versions(older, newer) < 0
    assert compare_versions(newer, older) > 0
    assert compare_versions(older, older) == 0


def index(text: str) -> PackageIndex:
    stanzas = [f"{stanza}\nVersion: 1" for stanza in text.strip().split("\n\n")]
    return PackageIndex(parse_packages("\n\n".join(stanzas)))


def names(found: list) -> list[str]:  # type: ignore[type-arg]
    return [package.name for package in found]


def test_closure_follows_depends_and_pre_depends() -> None:
    packages = index(
        "Package: a\nDepends: b (>= 1), c:any\n\nPackage: b\nPre-Depends: d\n\nPackage: c\n\nPackage: d"
    )
    assert names(packages.closure(["a"])) == ["a", "b", "c", "d"]


def test_alternative_already_chosen_counts() -> None:
    packages = index("Package: a\nDepends: x | y\n\nPackage: x\n\nPackage: y")
    assert names(packages.closure(["a"])) == ["a", "x"]
    assert names(packages.closure(["a", "y"])) == ["a", "y"]


def test_virtual_package_is_provided() -> None:
    packages = index("Package: a\nDepends: mta\n\nPackage: postfix\nProvides: mta (= 2)")
    assert names(packages.closure(["a"])) == ["a", "postfix"]


def test_missing_dependency_is_the_archives_fault() -> None:
    with pytest.raises(CorruptImage, match="a needs b"):
        index("Package: a\nDepends: b").closure(["a"])


def test_unknown_package_is_the_users_fault() -> None:
    with pytest.raises(UsageError, match="'z'"):
        index("Package: a").closure(["z"])


def test_newest_version_wins() -> None:
    packages = PackageIndex(
        parse_packages("Package: a\nVersion: 2\n\nPackage: a\nVersion: 10\n\nPackage: a\nVersion: 9")
    )
    assert packages["a"].version == "10"


def test_incomplete_stanza_is_refused_when_used() -> None:
    with pytest.raises(CorruptImage, match="SHA256"):
        index("Package: a")["a"].sha256  # noqa: B018


def test_only_our_release_is_taken_from_the_hosts_sources(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text(
        "deb [signed-by=/k.gpg] http://m/debian bookworm main\n# deb http://m/debian bookworm main\n"
        "deb http://m/debian trixie main\n"
    )
    (tmp_path / "sources.list.d/other.sources").write_text(
        "Types: deb\nURIs: http://o\nSuites: other\nComponents: main\n\n"
        "Types: deb\nURIs: http://m/debian-security\nSuites: bookworm-security\nComponents: main\n"
    )
    text = host_sources(tmp_path)
    assert "Signed-By: /k.gpg" in text
    assert "bookworm-security" in text
    assert "trixie" not in text
    assert "http://o" not in text
    assert text.count("Types: deb") == 2

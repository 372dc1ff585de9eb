"""Fixtures for guests: a small signed archive, and a cache of its own for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.guest.fake_archive import FakeArchive, add_default_guest, have_gpg


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeArchive]:
    """A published archive that the keyring of this test's environment trusts."""
    if not have_gpg():
        pytest.skip("gpg and gpgv are needed to sign an archive and to verify it")
    made = FakeArchive(tmp_path / "mirror", tmp_path / "gpg")
    made.make_key()
    add_default_guest(made)
    made.publish()
    monkeypatch.setenv("SUBLET_KEYRING", str(made.keyring))
    monkeypatch.setenv("SUBLET_MIRROR", made.url)
    yield made
    made.stop()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """An empty cache directory."""
    return tmp_path / "cache"

"""One machine for each address of a network."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sublet.errors import UsageError
from sublet.net.tap.claim import claim_address

MAC, OTHER = bytes.fromhex("525400000001"), bytes.fromhex("fe5400000001")


def test_an_address_is_one_machines_until_it_lets_go(tmp_path: Path) -> None:
    path = tmp_path / "addresses"
    held, beside = claim_address(path, MAC, "br0"), claim_address(path, OTHER, "br0")
    with pytest.raises(UsageError, match="52:54:00:00:00:01 on br0") as refused:
        claim_address(path, MAC, "br0")
    assert "mac=" in refused.value.remedy
    os.close(held)
    os.close(claim_address(path, MAC, "br0"))
    os.close(beside)


def test_networks_do_not_know_of_each_other(tmp_path: Path) -> None:
    for name in ("one", "two"):
        claim_address(tmp_path / name, MAC, name)

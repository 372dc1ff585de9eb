"""Fixtures of the tests that run real guests."""

from __future__ import annotations

from tests.integration.conftest import StartGuest, default_guest, start_guest

__all__ = ["StartGuest", "default_guest", "start_guest"]

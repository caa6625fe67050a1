"""Fixtures: who is who, and both kinds of addresses."""

from __future__ import annotations

import pytest

import keynet
import support


@pytest.fixture(params=["127.0.0.1", "[::1]"], ids=["ipv4", "ipv6"])
def host(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where nodes are, in a test that does not say it: modules use this by `pytestmark`."""
    monkeypatch.setattr(support, "HOST", request.param)
    return request.param


@pytest.fixture(scope="session")
def identities() -> list[keynet.Identity]:
    return [keynet.Identity.generate() for _ in range(3)]


@pytest.fixture
def alice(identities: list[keynet.Identity]) -> keynet.Identity:
    """She calls."""
    return identities[0]


@pytest.fixture
def bob(identities: list[keynet.Identity]) -> keynet.Identity:
    """He serves."""
    return identities[1]


@pytest.fixture
def mallory(identities: list[keynet.Identity]) -> keynet.Identity:
    """Nobody knows her."""
    return identities[2]

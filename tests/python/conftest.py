"""Fixtures: who is who, and both kinds of addresses."""

from __future__ import annotations

import os
import platform

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


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In `make test` and in CI a test that cannot run is a failure: "passed" must mean that all of them ran."""
    if "KEYNET_NO_SKIPS" not in os.environ and os.environ.get("CI") != "true":
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = [str(report.longrepr) for report in reporter.stats.get("skipped", ())]
    if platform.machine() != "x86_64":  # no wheel elsewhere
        skipped = [why for why in skipped if "libtorrent" not in why]
    if platform.system() != "Linux":  # no network namespaces elsewhere
        skipped = [why for why in skipped if "transmission" not in why]
    if skipped:
        reporter.write_line(f"{len(skipped)} skipped, and none may be here:", red=True)
        for why in sorted(set(skipped)):
            reporter.write_line(f"  {why}", red=True)
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED

"""What holds for every session of pytest, whichever tests it runs."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from pathlib import Path

import pytest

import surroundings

ROOT = Path(__file__).resolve().parents[1]

# before any module of tests is read
surroundings.take_over(os.environ)


@pytest.fixture(scope="session", autouse=True)
def no_home_of_the_user() -> Iterator[None]:
    """For fixtures of modules and sessions, which run before those of a test."""
    with surroundings.fresh() as folders:
        os.environ.update(folders)
        yield


@pytest.fixture(autouse=True)
def surrounded(no_home_of_the_user: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test has a home and a runtime folder of its own."""
    with surroundings.fresh() as folders:
        for name, value in folders.items():
            monkeypatch.setenv(name, value)
        yield


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test over IPv6, by its parameters or its marker, is left out where there is none."""
    if surroundings.has_ipv6():
        return
    params = getattr(item, "callspec", None)
    values = () if params is None else (params.id, *map(str, params.params.values()))
    if item.get_closest_marker("ipv6") or any("ipv6" in value or value.strip("[]") == "::1" for value in values):
        pytest.skip("this machine has no IPv6")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI a test that cannot run is a failure: "passed" must mean that all of them ran. `make test` names them."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", ()) if reporter else ()
    why = [(report.nodeid, _reason(report)) for report in skipped]
    if path := os.environ.get("KEYNET_NOT_RUN"):
        with open(path, "a", encoding="utf-8") as lines:
            lines.writelines(f"{test}\t{' '.join(reason.split())}\n" for test, reason in why)
    if os.environ.get("CI") != "true":
        return
    if platform.machine() != "x86_64":  # no wheel elsewhere
        why = [(test, reason) for test, reason in why if "libtorrent" not in reason]
    if platform.system() != "Linux":  # no network namespaces elsewhere
        elsewhere = ("transmission", "network namespaces")
        why = [(test, reason) for test, reason in why if not any(word in reason for word in elsewhere)]
    if why:
        reporter.write_line(f"{len(why)} skipped, and none may be in CI:", red=True)
        for reason in sorted({reason for _, reason in why}):
            reporter.write_line(f"  {reason}", red=True)
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """What a skipped test said, without the place in its source."""
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ")

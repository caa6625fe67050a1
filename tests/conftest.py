"""What holds for every session of pytest, whichever tests it runs."""

from __future__ import annotations

import os
import platform

import pytest


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In `make test` and in CI a test that cannot run is a failure: "passed" must mean that all of them ran."""
    if "KEYNET_NO_SKIPS" not in os.environ and os.environ.get("CI") != "true":
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = [str(report.longrepr) for report in reporter.stats.get("skipped", ())]
    if platform.machine() != "x86_64":  # no wheel elsewhere
        skipped = [why for why in skipped if "libtorrent" not in why]
    if platform.system() != "Linux":  # no network namespaces elsewhere
        skipped = [why for why in skipped if "transmission" not in why and "network namespaces" not in why]
    if skipped:
        reporter.write_line(f"{len(skipped)} skipped, and none may be here:", red=True)
        for why in sorted(set(skipped)):
            reporter.write_line(f"  {why}", red=True)
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED

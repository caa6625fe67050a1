"""The interop tests need programs that may be missing: where everything must run, that is a failure and no skip."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


@pytest.mark.parametrize(("ci", "code"), [("true", 1), ("", 0)])
def test_a_missing_bridge(ci: str, code: int, tmp_path: Path):
    """Only CI takes it for a failure; `make test` gets the names of what did not run."""
    not_run = tmp_path / "not-run"
    environment = {**os.environ, "CI": ci, "KEYNET_UTP_BRIDGE": "/nonexistent", "KEYNET_NOT_RUN": str(not_run)}
    which = [str(HERE / "test_core_and_pure.py"), "-k", "test_the_core_answers_pings"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *which],
        cwd=HERE.parents[2],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "2 skipped" in done.stdout
    lines = not_run.read_text().splitlines()
    assert len(lines) == 2
    assert all("test_the_core_answers_pings" in line and "\tcargo build --example utp_bridge" in line for line in lines)

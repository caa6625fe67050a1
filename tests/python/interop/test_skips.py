"""The interop tests need programs that may be missing: where everything must run, that is a failure and no skip."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


@pytest.mark.parametrize(("variable", "code"), [("CI", 1), ("KEYNET_NO_SKIPS", 1), ("", 0)])
def test_a_missing_bridge(variable: str, code: int):
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "KEYNET_NO_SKIPS")}
    environment |= {"KEYNET_UTP_BRIDGE": "/nonexistent"} | ({variable: "true"} if variable else {})
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

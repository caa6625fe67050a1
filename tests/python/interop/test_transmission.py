"""Our uTP against libutp, as transmission-daemon has it: both dial, both end first, clean and over a bad network, by
IPv4 and IPv6. Only UDP leads from one to the other, and transmission says itself that it is uTP."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import transmission
from programs import HANG, needs_bridge

# a network of its own, and an end for every process in it when the first one ends; whoever is not root asks for a user
# of its own as well
APART = ["unshare", "--net", "--pid", "--fork", "--kill-child", *(["--map-root-user"] if os.geteuid() else [])]


def why_not() -> str:
    """What is missing, and how to get it; nothing when all is there."""
    for command, package in (
        (transmission.DAEMON, "transmission-daemon"),
        ("unshare", "util-linux"),
        ("ip", "iproute2"),
    ):
        if not shutil.which(command):
            return f"{command} for the test of transmission: apt-get install {package}"
    tried = subprocess.run([*APART, "true"], capture_output=True, text=True, check=False)
    return tried.stderr and f"no network namespace for transmission, run as root: {tried.stderr.strip()}"


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    if why := why_not():
        pytest.skip(why)
    done = subprocess.run(
        [*APART, sys.executable, transmission.__file__, str(tmp_path_factory.mktemp("transmission") / "daemon")],
        env={**os.environ, "PYTHONPATH": str(Path(transmission.__file__).parent)},
        capture_output=True,
        text=True,
        timeout=3 * HANG,
        check=False,
    )
    sys.stderr.write(done.stderr)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line["case"]: line["outcome"] for line in lines}


@needs_bridge
@pytest.mark.slow
@pytest.mark.parametrize("case", transmission.CASES, ids=lambda case: case.name)
def test_the_core_and_transmission(case: transmission.Case, outcomes: dict[str, str]):
    assert outcomes.get(case.name, "it did not end") == "ok"

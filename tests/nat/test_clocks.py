"""A clock on the wall that is wrong keeps no nodes apart, and an identity that has expired ends all the same."""

from __future__ import annotations

import datetime
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from driver import Node
from lab import Lab
from meeting import Meeting

import keynet

SOURCE = Path(__file__).with_name("clock.c")
DAY = 86_400
YEARS = 365 * DAY
MORE = pytest.mark.matrix
# of the dialler and of the other node, in seconds
CLOCKS = [
    (11 * YEARS, -2 * DAY),
    *(pytest.param(*pair, marks=MORE) for pair in ((2 * DAY, 0), (-2 * DAY, 0), (0, 11 * YEARS), (0, 2 * DAY))),
    pytest.param(-2 * DAY, 11 * YEARS, marks=MORE),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What sets a program's clock. There is no namespace for that one."""
    if not (compiler := shutil.which("cc")):
        pytest.skip("cc is missing (gcc)")
    made = tmp_path_factory.mktemp("clock") / "clock.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(made), str(SOURCE), "-ldl"], check=True)
    return str(made)


def make() -> Lab:
    lab = Lab(rtt_ms=20)
    lab.server("server")
    for name in "ab":
        lab.host(name, "port-restricted")
    return lab


def at(lab: Lab, name: str, library: str, seconds: int) -> Node:
    """A node whose clock is off by so many seconds."""
    node = Node(lab.hosts[name], LD_PRELOAD=library, KEYNET_TEST_CLOCK=str(seconds))
    told = float(node.ask("clock")["time"]) - time.time()
    assert abs(told - seconds) < 60, "the clock was set"
    return node


@pytest.mark.parametrize(("a", "b"), CLOCKS)
def test_nodes_with_wrong_clocks_meet(a: int, b: int, library: str):
    with make() as lab:
        meeting = Meeting(lab.hosts["server"], own_relay=True)
        nodes = [at(lab, name, library, off) for name, off in (("a", a), ("b", b))]
        for node in nodes:
            meeting.start(node)
        meeting.settle(*nodes)
        for node, other in (nodes, nodes[::-1]):
            answer = node.ask("connect", node=other.node_id)
            assert answer.get("echoed"), answer


@pytest.mark.parametrize("off", [0, pytest.param(2 * DAY, marks=MORE)])
def test_an_identity_that_has_expired_ends(off: int, library: str, tmp_path: Path):
    old = tmp_path / "old.pem"
    keynet.Identity.generate(now=datetime.datetime(1990, 1, 1, tzinfo=datetime.timezone.utc)).save(old)
    with make() as lab:
        meeting = Meeting(lab.hosts["server"], own_relay=True)
        a, b = at(lab, "a", library, off), at(lab, "b", library, 0)
        meeting.start(a)
        meeting.start(b, identity=str(old))
        meeting.settle(a)
        answer = a.ask("connect", node=b.node_id)
        assert answer["status"] != 200, answer
        refused = [event for event in b.ask("events")["events"] if event["event"] == "RendezvousLost"]
        assert any("its dates" in event["error"] for event in refused), refused

"""Two nodes that do not begin together: one starts later, or hears later from the rendezvous that it is wanted."""

from __future__ import annotations

import time

import pytest
from driver import Node
from lab import Lab
from meeting import Meeting

SKEW_SECONDS = 2.0
PAIRS = [("port-restricted", "port-restricted"), ("linux-masquerade", "symmetric-seq")]


@pytest.fixture(params=PAIRS, ids="-".join)
def lab(request: pytest.FixtureRequest) -> Lab:
    lab = Lab(rtt_ms=20)
    lab.server("server")
    for name, kind in zip("ab", request.param, strict=True):
        lab.host(name, kind)
    return lab


@pytest.mark.matrix
@pytest.mark.parametrize("first", ["a", "b"], ids=["dialler first", "acceptor first"])
def test_one_registers_later(first: str, lab: Lab):
    with lab:
        meeting = Meeting(lab.hosts["server"])
        nodes = {name: Node(lab.hosts[name]) for name in "ab"}
        for name in sorted(nodes, key=lambda name: name != first):
            meeting.start(nodes[name])
            meeting.settle(nodes[name])
            time.sleep(SKEW_SECONDS if name == first else 0)
        connects(nodes["a"], nodes["a"].begin("connect", node=nodes["b"].node_id))


@pytest.mark.matrix
@pytest.mark.parametrize("late", ["a", "b"], ids=["dialler", "acceptor"])
def test_one_hears_later(late: str, lab: Lab):
    """The dialler hears the answer when the other one is punching already; or the other one hears late of both."""
    with lab:
        server = lab.hosts["server"]
        meeting = Meeting(server)
        a, b = (Node(lab.hosts[name]) for name in "ab")
        for node in (a, b):
            meeting.start(node)
        meeting.settle(a, b)
        lab.hosts[late].cut(f"ip saddr {server.address}")
        dial = a.begin("connect", node=b.node_id)
        time.sleep(SKEW_SECONDS)
        lab.hosts[late].mend()
        connects(a, dial)


def connects(node: Node, dial: int) -> None:
    """The dial leads to a connection that works."""
    answer = node.answer(dial)
    assert answer["status"] == 200, answer
    assert answer["echoed"]
    print(f"from CONNECT to 200: {answer['ms']:.0f} ms")

"""Pairs that no punching brings together, over a relay."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from driver import Node
from lab import Lab
from meeting import Meeting
from relay import Coturn, why_no_coturn


@pytest.fixture(autouse=True)
def coturn() -> None:
    if why := why_no_coturn():
        if os.environ.get("CI") or os.environ.get("KEYNET_NO_SKIPS"):
            pytest.fail(why)
        pytest.skip(why)


@pytest.fixture
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    a, b, rtt_ms = request.param
    lab = Lab(rtt_ms=rtt_ms)
    lab.server("server")
    lab.server("relay")
    lab.host("a", a)
    lab.host("b", b)
    yield lab


@pytest.mark.parametrize("lab", [("symmetric", "symmetric", 40)], indirect=True, ids=lambda p: " x ".join(p[:2]))
def test_two_symmetric_nats_meet_over_a_relay(lab: Lab):
    with lab:
        relay = Coturn(lab.hosts["relay"])
        meeting = Meeting(lab.hosts["server"], relays=[relay.uris])
        a, b = Node(lab.hosts["a"]), Node(lab.hosts["b"])
        meeting.start(b)
        meeting.settle(b)
        meeting.start(a)
        meeting.settle(a)
        answer = a.ask("connect", node=b.node_id)
        assert answer["status"] == 200, answer
        assert answer["echoed"]
        peer = a.peer(b.node_id)
        assert [path["relayed"] for path in peer["paths"]] == [True] * len(peer["paths"]), peer
        print(f"{answer['ms']:.0f} ms")

"""Pairs that no punching brings together, over a relay."""

from __future__ import annotations

import os

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
def lab(request: pytest.FixtureRequest) -> Lab:
    a, b, rtt_ms = request.param
    lab = Lab(rtt_ms=rtt_ms)
    lab.server("server")
    lab.server("relay")
    lab.host("a", a)
    lab.host("b", b)
    return lab


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


BLOCKED = [("udp-blocked", "none", 40), ("none", "udp-blocked", 40), ("udp-blocked", "udp-blocked", 40), ("udp-blocked", "symmetric", 40)]


@pytest.mark.parametrize("lab", BLOCKED, indirect=True, ids=lambda p: " x ".join(p[:2]))
def test_a_node_without_udp_is_reached_and_reaches_others(lab: Lab):
    with lab:
        relay = Coturn(lab.hosts["relay"])
        meeting = Meeting(lab.hosts["server"], relays=[relay.uris])
        a, b = Node(lab.hosts["a"]), Node(lab.hosts["b"])
        for node in (b, a):
            meeting.start(node, relays=relay.static(node.host))
            assert node.ask("registered")["registered"], node.ask("status")
        answer = a.ask("connect", node=b.node_id)
        assert answer["status"] == 200, answer
        assert answer["echoed"]
        print(f"{answer['ms']:.0f} ms")

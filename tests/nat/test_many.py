"""Several at once: searches for a way through a symmetric NAT take turns, and none fails for want of sockets."""

from __future__ import annotations

import pytest
from driver import Node
from lab import Lab
from meeting import Meeting

PEERS = 3


@pytest.mark.parametrize("calls", ["outward", "inward"])
def test_several_meet_a_node_behind_a_symmetric_nat_at_once(calls: str) -> None:
    """Without a relay: what each of them opens in its NAT stays open until it is its turn at the other end."""
    lab = Lab(rtt_ms=40)
    lab.server("server")
    lab.host("a", "symmetric")
    for n in range(PEERS):
        lab.host(f"b{n}", "port-restricted")
    with lab:
        meeting = Meeting(lab.hosts["server"])
        node, *others = (Node(lab.hosts[name]) for name in ("a", *(f"b{n}" for n in range(PEERS))))
        for one in (node, *others):
            meeting.start(one)
        meeting.settle(node, *others)
        pairs = [(node, other) if calls == "outward" else (other, node) for other in others]
        begun = [(caller, caller.begin("connect", node=called.node_id)) for caller, called in pairs]
        answers = [caller.answer(number) for caller, number in begun]
        assert [answer["status"] for answer in answers] == [200] * PEERS, answers
        assert all(answer["echoed"] for answer in answers), answers

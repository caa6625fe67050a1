"""Several at once: nobody is left out, however many there are."""

from __future__ import annotations

import pytest
from driver import Node
from lab import Lab
from many import callers, everybody
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


def test_every_pair_of_a_crowd_meets_at_once() -> None:
    """`python tests/nat/many.py 60` is the same for a greater one, with the figures."""
    dials, _ = everybody(20)
    assert len(dials) == 20 * 19 // 2
    assert [dial for dial in dials if not dial.get("echoed")] == []


def test_a_crowd_behind_few_addresses_dials_one_node_at_once() -> None:
    """More of each address than may shake hands at a time: the others wait, and nobody is turned away."""
    dials, _ = callers(160)
    assert [dial for dial in dials if not dial.get("echoed")] == []

"""Idle nodes and idle connections stay reachable behind NATs that forget soon, and what that costs.

Packets are counted where they pass, on the router between the NATs; how many there are is printed (`pytest -rP`).
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from driver import Node
from lab import Lab
from lab.nodes import Counter
from meeting import Meeting

# a third of what the NATs remember, so that one ping may get lost
INTERVAL, MAPPING = 2.0, 6
IDLE_INTERVALS = 10
LIMITS = {"ping_idle": INTERVAL}
# a ping or its pong in each interval; the other side's own in every fourth; and one more of each that falls into the
# time of counting, and a keep-alive of the connection
EACH_WAY = IDLE_INTERVALS + IDLE_INTERVALS // 4 + 3
# a registered node and its rendezvous talk gRPC: now and then an HTTP/2 ping and its acknowledgements
REGISTRATION = 4 * (IDLE_INTERVALS + 1)
# IP, UDP, STUN with a key: no payload of anybody
SMALL = 200
# until nothing of what went before is counted: the pings of a path that counts as active for 45 s
QUIET = 60.0

Record = Callable[[str, object], None]


@pytest.fixture
def lab() -> Lab:
    lab = Lab(rtt_ms=20)
    lab.server("server")
    for name in "ab":
        lab.host(name, f"port-restricted:timeout={MAPPING}")
    return lab


def start(lab: Lab) -> tuple[Node, Node]:
    """Both nodes, registered."""
    meeting = Meeting(lab.hosts["server"])
    a, b = Node(lab.hosts["a"]), Node(lab.hosts["b"])
    for node in (b, a):
        meeting.start(node, limits=LIMITS, stream=node is b)
    meeting.settle(a, b)
    return a, b


@pytest.mark.matrix
def test_an_idle_node_is_reachable(lab: Lab):
    """Long after its NAT would have forgotten it, at the first attempt; and an idle connection lives as long."""
    with lab:
        a, b = start(lab)
        time.sleep(INTERVAL * IDLE_INTERVALS)
        answer = a.ask("connect", node=b.node_id, hold=True)
        assert answer["status"] == 200, answer
        assert answer["echoed"]
        time.sleep(INTERVAL * IDLE_INTERVALS)
        assert a.ask("use_held")["echoed"]
        print(f"reached after {INTERVAL * IDLE_INTERVALS:.0f} s of silence in {answer['ms']:.0f} ms")


@pytest.mark.matrix
def test_what_idling_costs(lab: Lab, record_property: Record):
    """In every interval a packet each way between the nodes, and no more than a ping and a pong to the rendezvous."""
    with lab:
        a, b = start(lab)
        assert a.ask("connect", node=b.node_id, hold=True)["echoed"]
        time.sleep(QUIET)
        one, server = lab.hosts["a"], lab.hosts["server"]
        counters = {"connection": one.count(lab.hosts["b"]), "registration": one.count(server)}
        time.sleep(INTERVAL * IDLE_INTERVALS)
        for (what, counter), most in zip(counters.items(), (EACH_WAY, REGISTRATION), strict=True):
            judge(what, counter, most, record_property)
        assert a.ask("use_held")["echoed"]


def judge(what: str, counter: Counter, most: int, record: Record) -> None:
    """So many packets at most each way, and small ones."""
    for way, (packets, size) in zip(("out", "in"), counter.read(), strict=True):
        print(f"idle {what}, {way}: {packets} packets, {size} bytes in {IDLE_INTERVALS} intervals")
        record(f"idle {what}, {way}: packets", packets)
        assert 0 < packets <= most
        assert size <= SMALL * packets

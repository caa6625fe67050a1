"""A rendezvous that starts again, and the relay in its process with it: what its nodes lose."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from driver import HANG, Node
from lab import Lab
from meeting import Meeting
from own_relay import OwnRelay
from test_relay_ways import CLOUD, over_a_relay, relays
from test_survival import Flow

Record = Callable[[str, object], None]
# a relay that is started by hand
AWAY_SECONDS = 2.0
HOW = pytest.mark.parametrize("how", ["told", pytest.param("killed", marks=pytest.mark.matrix)])


def start_again(meeting: Meeting, how: str) -> float:
    """When it was there again."""
    if how == "told":
        meeting.rendezvous.end()
    else:
        meeting.rendezvous.kill()
    meeting.rendezvous.start()
    return time.monotonic()


def until_it_dials(a: Node, b: Node) -> None:
    """Waits until a new connection carries a payload."""
    deadline = time.monotonic() + HANG
    while not (found := a.ask("connect", node=b.node_id)).get("echoed"):
        assert time.monotonic() < deadline, found
        time.sleep(0.1)


@HOW
def test_relayed_nodes_reach_each_other_again(how: str, record_property: Record):
    lab = Lab(rtt_ms=20)
    server = lab.server("server")
    for name in "ab":
        lab.host(name, "symmetric")
    with lab:
        meeting = Meeting(server, own_relay=True)
        a, b = meeting.pair(lab.hosts["a"], lab.hosts["b"])
        until_it_dials(a, b)
        over_a_relay(a, b)
        there = start_again(meeting, how)
        until_it_dials(a, b)
        took = time.monotonic() - there
        print(f"{how}: a dial worked {took:.1f} s after the rendezvous was there again")
        record_property(f"{how}: dial after s", round(took, 1))
        over_a_relay(a, b)
        assert relays(a)
        assert relays(b)


@pytest.mark.matrix
@HOW
def test_a_direct_call_does_not_notice(how: str, record_property: Record):
    lab = Lab(rtt_ms=20)
    lab.server("server")
    for name in "ab":
        lab.host(name, "port-restricted")
    with lab:
        flow = Flow(lab, record_property, Meeting(lab.hosts["server"], own_relay=True))
        flow.survives(f"rendezvous {how}", lambda: start_again(flow.meeting, how))
        flow.meeting.settle(flow.a, flow.b, again=True)
        flow.ends_well()


@pytest.mark.matrix
def test_the_nat_of_a_rendezvous_loses_its_mappings(record_property: Record):
    lab = Lab(rtt_ms=20)
    host = lab.host("server", CLOUD)
    for name in "ab":
        lab.host(name, "symmetric")
    with lab:
        meeting = Meeting(host, own_relay=True)
        a, b = meeting.pair(lab.hosts["a"], lab.hosts["b"])
        until_it_dials(a, b)
        a.ask("connect", node=b.node_id, hold=True)
        host.nat.forget()
        there = time.monotonic()
        assert a.ask("use_held")["echoed"], "the connection lives"
        until_it_dials(a, b)
        took = time.monotonic() - there
        print(f"a dial worked {took:.1f} s after the mappings were lost")
        record_property("dial after s", round(took, 1))


@HOW
@pytest.mark.slow
@pytest.mark.parametrize("relays", [1, pytest.param(2, marks=pytest.mark.matrix)], ids=["alone", "one of two"])
def test_a_relayed_call_outlives_its_relay(relays: int, how: str, record_property: Record):
    """It goes on when the relay is there again, or over the other one."""
    lab = Lab(rtt_ms=20)
    server = lab.server("server")
    hosts = [lab.server(f"relay{n}") for n in range(relays)]
    for name in "ab":
        lab.host(name, "symmetric")
    with lab:
        running = [OwnRelay(host) for host in hosts]
        flow = Flow(lab, record_property, Meeting(server, relays=[relay.uris for relay in running]))
        over_a_relay(flow.a, flow.b)
        for relay in running:

            def again(relay: OwnRelay = relay) -> None:
                (relay.end if how == "told" else relay.kill)()
                time.sleep(AWAY_SECONDS)
                relay.start()

            flow.survives(f"relay {how}", again)
        flow.ends_well()

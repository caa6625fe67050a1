"""Pairs that no punching brings together, over a relay."""

from __future__ import annotations

import time
from typing import Any

import pytest
from coturn import Coturn, why_no_coturn
from driver import HANG, Node
from lab import Host, Lab
from meeting import Meeting
from test_survival import Flow, Record


@pytest.fixture(autouse=True)
def coturn() -> None:
    if why := why_no_coturn():
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


BLOCKED = [
    ("udp-blocked", "none", 40),
    ("none", "udp-blocked", 40),
    ("udp-blocked", "udp-blocked", 40),
    ("udp-blocked", "symmetric", 40),
]


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


@pytest.mark.parametrize("lab", BLOCKED, indirect=True, ids=lambda p: " x ".join(p[:2]))
def test_the_relay_of_the_rendezvous_is_enough(lab: Lab):
    """Nobody was told of a relay: who has no UDP finds the one beside the rendezvous, which also names it to nodes."""
    with lab:
        meeting = Meeting(lab.hosts["server"], own_relay=True)
        a, b = meeting.pair(lab.hosts["a"], lab.hosts["b"])
        answer = a.ask("connect", node=b.node_id)
        assert answer["status"] == 200, answer
        assert answer["echoed"]
        print(f"{answer['ms']:.0f} ms")


@pytest.mark.slow
@pytest.mark.parametrize("lab", [("port-restricted", "port-restricted", 20)], indirect=True, ids=["port-restricted"])
def test_a_rendezvous_that_was_reached_over_a_relay_is_reached_without_once_udp_gets_through(lab: Lab):
    with lab:
        meeting = Meeting(lab.hosts["server"], own_relay=True)
        a, b = Node(lab.hosts["a"]), Node(lab.hosts["b"])
        lab.hosts["a"].cut("meta l4proto udp")
        for node in (b, a):
            meeting.start(node)
            assert node.ask("registered")["registered"], node.ask("status")
        assert [one["observed"] for one in a.ask("status")["status"]["rendezvous"]] == [None]
        lab.hosts["a"].mend()
        # and what leads to the relay goes by UDP again, too
        wanted = [("udp", False)]
        deadline = time.monotonic() + HANG
        while True:
            status = a.ask("status")["status"]
            ways = [(one["transport"], one["introduction"]) for one in status["relays"]]
            if status["rendezvous"][0]["observed"] is not None and ways == wanted:
                break
            assert time.monotonic() < deadline, status
            time.sleep(0.1)
        meeting.settle(a, b)
        assert b.ask("connect", node=a.node_id)["status"] == 200
        assert any(path["in_use"] and not path["relayed"] for path in b.peer(a.node_id)["paths"]), b.peer(a.node_id)


def between(lab: Lab) -> str:
    """Packets from the outside of one of the two to the outside of the other, for nftables."""
    outside = ", ".join(lab.hosts[name].nat.outermost.address for name in "ab")
    return f"ip saddr {{ {outside} }} ip daddr {{ {outside} }}"


def relayed(flow: Flow) -> bool:
    """Whether a relay carries the stream now."""
    paths = flow.a.peer(flow.b.node_id)["paths"]
    return any(path["in_use"] and path["relayed"] for path in paths)


def until(flow: Flow, wanted: bool) -> None:
    """Waits until a relay carries the stream, or none does."""
    deadline = time.monotonic() + HANG
    while relayed(flow) is not wanted:
        assert time.monotonic() < deadline, flow.story()
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("lab", [("port-restricted", "port-restricted", 20)], indirect=True, ids=["port-restricted"])
def test_a_stream_goes_from_relay_to_direct_and_back_and_to_another_relay(lab: Lab, record_property: Record):
    second = lab.server("second")
    with lab:
        relays = {relay.host.address: relay for relay in (Coturn(lab.hosts["relay"]), Coturn(second))}
        meeting = Meeting(lab.hosts["server"], relays=[relay.uris for relay in relays.values()])
        lab.hosts["a"].cut(between(lab))
        flow = Flow(lab, record_property, meeting)
        assert relayed(flow), flow.story()
        lab.hosts["a"].mend()
        flow.survives("relay to direct", lambda: until(flow, False))
        flow.survives("direct path cut", lambda: (lab.hosts["a"].cut(between(lab)), until(flow, True)))
        used = next(path for path in flow.a.peer(flow.b.node_id)["paths"] if path["in_use"])
        flow.survives("relay killed", relay_of(flow, used, relays).kill)
        assert relayed(flow), flow.a.peer(flow.b.node_id)
        flow.ends_well()


@pytest.mark.slow
@pytest.mark.parametrize("lab", [("symmetric", "symmetric", 20)], indirect=True, ids=["symmetric"])
def test_another_network_beside_the_one_in_use_ends_no_way_over_a_relay(lab: Lab, record_property: Record):
    """It leads nowhere, so the relay is not asked anew, and what goes over it goes on."""
    with lab:
        relay = Coturn(lab.hosts["relay"])
        flow = Flow(lab, record_property, Meeting(lab.hosts["server"], relays=[relay.uris]))
        assert relayed(flow), flow.story()
        used = next(path for path in flow.a.peer(flow.b.node_id)["paths"] if path["in_use"])
        # whose relay it is: either side's is enough
        node = flow.a if used["socket"] in sockets(flow.a) else flow.b
        (before,) = sockets(node)
        flow.survives("a second interface", lambda: (second_interface(node.host), time.sleep(NOTICED_SECONDS)))
        assert relayed(flow), flow.story()
        assert sockets(node) == [before], flow.story()
        kinds = {event["event"] for event in node.ask("events")["events"]}
        assert "RelayLost" not in kinds, flow.story()
        flow.ends_well()


# more than a change of interfaces takes to be noticed and to settle, and the relay to be asked
NOTICED_SECONDS = 5.0


def second_interface(host: Host) -> None:
    """Of a network that leads nowhere: all that was there works on."""
    host.run("ip", "link", "add", "second", "type", "veth", "peer", "name", "nowhere")
    host.run("ip", "address", "add", "10.77.0.1/24", "dev", "second")
    for device in ("second", "nowhere"):
        host.run("ip", "link", "set", device, "up")


def sockets(node: Node) -> list[int]:
    """The relays that a node uses, by the numbers of their sockets."""
    return [one["socket"] for one in node.ask("status")["status"]["relays"] if one["socket"] is not None]


def relay_of(flow: Flow, path: dict[str, Any], relays: dict[str | None, Coturn]) -> Coturn:
    """The relay that a path goes over: the dialler's own, or the one that has the address."""
    for status in flow.a.ask("status")["status"]["relays"]:
        if status["socket"] == path["socket"]:
            return relays[status["relay"]]
    return relays[path["address"].rpartition(":")[0]]


@pytest.mark.parametrize("lab", [("symmetric", "symmetric", 0)], indirect=True, ids=["symmetric"])
@pytest.mark.parametrize("who", ["a", "b"], ids=["dialler", "acceptor"])
def test_who_wants_direct_paths_only_is_not_relayed_and_the_refusal_says_so(lab: Lab, who: str):
    with lab:
        relay = Coturn(lab.hosts["relay"])
        meeting = Meeting(lab.hosts["server"], relays=[relay.uris])
        nodes = {name: Node(lab.hosts[name]) for name in "ab"}
        for name, node in nodes.items():
            meeting.start(node, direct_only=name == who)
        meeting.settle(*nodes.values())
        answer = nodes["a"].ask("connect", node=nodes["b"].node_id)
        assert (answer["status"], answer["reason"]) == (502, "both_symmetric"), answer
        assert "direct_only" in answer["message"]
        assert "direct_only" in answer["explanation"]

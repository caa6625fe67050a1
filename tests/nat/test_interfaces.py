"""Interfaces come and go: nodes stay reachable, directly where they were, whatever a machine does to its interfaces.

A node that has never been dialled is the hard case: nothing but what it tells of itself leads to it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from driver import Node
from lab import Box, Host, Lab
from meeting import Meeting
from test_searches import becomes_direct
from test_survival import ROAMED, Flow, Record

# longer than a change takes to be noticed and told
SETTLED_SECONDS = 1.0
# an address that is away for longer than several readings of the interfaces
AWAY_SECONDS = 6.0
# a link that flaps
FLAP_SECONDS = 1.2

Story = Callable[[Host], None]


def docker(host: Host) -> None:
    """Docker starts, and with it a container."""
    host.run("ip", "link", "add", "docker0", "type", "bridge")
    host.run("ip", "addr", "add", "172.17.0.1/16", "dev", "docker0")
    host.run("ip", "link", "add", "veth1", "type", "veth", "peer", "name", "veth2")
    host.run("ip", "link", "set", "veth1", "master", "docker0", "up")
    host.run("ip", "link", "set", "veth2", "up")
    host.run("ip", "link", "set", "docker0", "up")


def docker_ends(host: Host) -> None:
    """And both go again."""
    docker(host)
    time.sleep(SETTLED_SECONDS)
    host.run("ip", "link", "del", "docker0")
    host.run("ip", "link", "del", "veth1")


def second_address(host: Host) -> None:
    """A second IPv4 address, which nothing is sent from."""
    host.run("ip", "addr", "add", "10.99.0.5/24", "dev", "eth0")


def local_ipv6(host: Host) -> None:
    """IPv6 that leads nowhere (a unique local address, RFC 4193)."""
    host.run("ip", "-6", "addr", "add", "fd00:1::5/64", "dev", "eth0", "nodad")


def dead_link(host: Host) -> None:
    """A card without a cable."""
    host.run("ip", "link", "add", "eth9", "type", "veth", "peer", "name", "eth8")
    host.run("ip", "addr", "add", "192.168.250.2/24", "dev", "eth9")
    host.run("ip", "link", "set", "eth9", "up")


def routes_again(host: Host, device: str = "eth0") -> None:
    """What a network manager does after a link has come up."""
    for line in host.lab.uplink_routes(host, 0):
        host.run("ip", *line.replace("eth0", device).split())


def link_flaps(host: Host) -> None:
    """The cable falls out, and is put in again."""
    host.run("ip", "link", "set", "eth0", "down")
    time.sleep(FLAP_SECONDS)
    host.run("ip", "link", "set", "eth0", "up")
    routes_again(host)


def address_flaps(host: Host) -> None:
    """The lease ends, and is had again."""
    host.run("ip", "addr", "flush", "dev", "eth0")
    time.sleep(AWAY_SECONDS)
    if host.has_ipv4:
        host.run("ip", "addr", "add", f"{host.address}/{host.nat.lan.prefixlen}", "dev", "eth0")
    routes_again(host)


def another_address(host: Host) -> None:
    """The lease is for another address."""
    host.run("ip", "addr", "flush", "dev", "eth0")
    if host.has_ipv4:
        host.run("ip", "addr", "add", f"{host.nat.lan[77]}/{host.nat.lan.prefixlen}", "dev", "eth0")
        routes_again(host)
    elif host.nat.lan6:
        host.run("ip", "addr", "add", f"{host.nat.lan6[77]}/64", "dev", "eth0", "nodad")
        host.run("ip", "route", "replace", "::/0", "via", str(host.nat.lan6[1]), "dev", "eth0")


def renamed(host: Host) -> None:
    """The interface gets another name."""
    host.run("ip", "link", "set", "eth0", "down")
    host.run("ip", "link", "set", "eth0", "name", "wan0")
    host.run("ip", "link", "set", "wan0", "up")
    routes_again(host, "wan0")


def other_metric(host: Host) -> None:
    """The same way out, with another metric."""
    if host.has_ipv4:
        host.run("ip", "route", "add", "default", "via", host.nat.gateway, "dev", "eth0", "metric", "50")
        host.run("ip", "route", "del", "default", "metric", "0")
    elif host.nat.lan6:
        host.run("ip", "-6", "route", "add", "default", "via", str(host.nat.lan6[1]), "dev", "eth0", "metric", "50")
        host.run("ip", "-6", "route", "del", "default", "metric", "1024")


def vpn_to_a_company(host: Host) -> None:
    """A VPN to networks that no node is in."""
    host.run("ip", "link", "add", "wg0", "type", "veth", "peer", "name", "far")
    host.run("ip", "addr", "add", "10.9.0.2/24", "dev", "wg0")
    host.run("ip", "link", "set", "far", "up")
    host.run("ip", "link", "set", "wg0", "up")
    host.run("ip", "route", "add", "10.0.0.0/8", "dev", "wg0")


# `make test` has time for two of each sort
MORE = pytest.mark.matrix
NOTHING = [
    docker,
    *(pytest.param(story, marks=MORE) for story in (docker_ends, second_address, local_ipv6)),
    *(pytest.param(story, marks=MORE) for story in (dead_link, vpn_to_a_company)),
]
SOMETHING = [
    link_flaps,
    *(pytest.param(story, marks=MORE) for story in (address_flaps, another_address, renamed, other_metric)),
]
IPV6 = "firewall:ipv4=no,ipv6=yes"
NATS = [
    ("port-restricted", "port-restricted"),
    *(pytest.param(*pair, marks=MORE) for pair in (("full-cone", "port-restricted"), ("symmetric", "full-cone"))),
    # a plain Linux router; one that needs a search, behind a relay; and firewalls without a NAT
    pytest.param("linux-masquerade", "port-restricted", marks=MORE),
    pytest.param("symmetric", "port-restricted", marks=MORE),
    pytest.param(IPV6, IPV6, marks=MORE),
]


def seen_as(box: Box) -> str:
    """What matters of it to a dial."""
    if box.mapping == "address-and-port-dependent":
        return "symmetric"
    return "strict" if box.filtering == "address-and-port-dependent" else "open"


class Pair:
    """Two nodes that have never dialled each other."""

    def __init__(self, lab: Lab) -> None:
        self.meeting = Meeting(lab.hosts["server"], own_relay=True)
        self.nodes = [Node(lab.hosts[name]) for name in "ab"]
        for node in self.nodes:
            self.meeting.start(node)
        self.meeting.settle(*self.nodes)
        # the call goes over a relay until the search has found a way
        kinds = [seen_as(nat.box) for nat in (node.host.nat for node in self.nodes)]
        self._searches = sorted(kinds) == ["strict", "symmetric"]

    def outside(self, node: Node) -> set[str]:
        """What the node tells of where the internet sees it."""
        addresses = node.ask("status")["status"]["addresses"]
        kinds = ("server-reflexive", "host") if node.host.nat.box.engine == "firewall" else ("server-reflexive",)
        found = {one["address"] for one in addresses if one["kind"] in kinds}
        return {one for one in found if one.startswith("[2001:")} if not node.host.has_ipv4 else found

    def dials(self, story: str) -> None:
        """A call each way, and the path that they take."""
        for node, other in (self.nodes, reversed(self.nodes)):
            answer = node.ask("connect", node=other.node_id)
            words = node.ask("explain", node=other.node_id)["explanation"]
            assert answer["status"] == 200, f"{answer}\n{words}\n{node.ask('events')}"
            assert answer["echoed"]
            print(f"{story}, {node.host.name} dials: {answer['ms']:.0f} ms")
            if self._searches:
                becomes_direct(node, other)
            path = next(path for path in node.peer(other.node_id)["paths"] if path["in_use"])
            assert not path["relayed"], f"{path}\n{words}"

    def changes(self) -> list[str]:
        """The changes of network that the nodes have told of."""
        events = [event for node in self.nodes for event in node.ask("events")["events"]]
        return [event["event"] for event in events if event["event"] == "NetworkChanged"]


def make(a: str, b: str) -> Lab:
    lab = Lab(rtt_ms=40)
    lab.server("server")
    lab.host("a", a)
    lab.host("b", b)
    return lab


@pytest.mark.parametrize("story", NOTHING)
@pytest.mark.parametrize(("a", "b"), NATS)
def test_interfaces_that_lead_nowhere_change_nothing(a: str, b: str, story: Story):
    with make(a, b) as lab:
        pair = Pair(lab)
        before = [pair.outside(node) for node in pair.nodes]
        for node in pair.nodes:
            story(node.host)
        time.sleep(SETTLED_SECONDS)
        assert [pair.outside(node) for node in pair.nodes] == before
        assert pair.changes() == []
        pair.dials(story.__name__)


@pytest.mark.parametrize("story", SOMETHING)
@pytest.mark.parametrize(("a", "b"), NATS)
def test_after_a_change_of_the_way_out_both_are_reached_directly(a: str, b: str, story: Story):
    with make(a, b) as lab:
        pair = Pair(lab)
        for node in pair.nodes:
            story(node.host)
        time.sleep(SETTLED_SECONDS)
        for node in pair.nodes:
            assert pair.outside(node), node.ask("status")
        pair.dials(story.__name__)


@pytest.mark.slow
def test_a_vpn_comes_and_goes_under_a_stream(record_property: Record):
    """The old way out stays up: what comes by it says nothing about what is sent."""
    lab = Lab(rtt_ms=40)
    lab.server("server")
    home, vpn = lab.nat("home", "port-restricted"), lab.nat("vpn", "port-restricted")
    host = lab.host("a", behind=[home, vpn])
    lab.host("b", "port-restricted")
    with lab:
        flow = Flow(lab, record_property)
        before = flow.path

        def up() -> None:
            host.run("ip", "link", "set", "eth1", "up")
            host.run("ip", "route", "replace", "default", "via", vpn.gateway, "dev", "eth1")

        def down() -> None:
            host.run("ip", "link", "set", "eth1", "down")
            routes_again(host)

        flow.survives(f"{ROAMED}: VPN up", up)
        flow.survives(f"{ROAMED}: VPN down", down)
        assert flow.path == before
        flow.ends_well()

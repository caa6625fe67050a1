"""Hosts with more than one way out: whom a packet is for says which it takes. Nodes meet as directly as with one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from lab import Host
from test_interfaces import Pair
from test_moves import make
from test_survival import Flow, Record

Routes = Callable[[Host], None]


def route(host: Host, verb: str, network: str, which: int, *more: str) -> None:
    """A route of the host through the box of one of its uplinks."""
    host.run("ip", "route", verb, network, "via", host.uplinks[which].gateway, "dev", f"eth{which}", *more)


def metrics(host: Host) -> None:
    """A second default route that is dearer."""
    route(host, "add", "default", 1, "metric", "100")


def _nexthops(host: Host, policy: str) -> None:
    host.run("sysctl", "-qw", f"net.ipv4.fib_multipath_hash_policy={policy}")
    hops = [f"nexthop via {nat.gateway} dev eth{n}".split() for n, nat in enumerate(host.uplinks)]
    host.run("ip", "route", "replace", "default", *[word for hop in hops for word in hop])


def by_address(host: Host) -> None:
    """Equal ways, of which each pair of addresses has one (ECMP)."""
    _nexthops(host, "0")


def by_port(host: Host) -> None:
    """Equal ways, of which each pair of addresses and ports has one."""
    _nexthops(host, "1")


def split_servers(host: Host) -> None:
    """The servers by one uplink, everybody else by the other."""
    route(host, "add", "203.0.113.0/24", 1)


def split_peers(host: Host) -> None:
    """Everybody by one uplink, the servers by the other: a company's VPN that does not carry all."""
    route(host, "add", "198.51.100.0/24", 1)


def halves(host: Host) -> None:
    """A VPN that leaves the default route alone and has two more specific ones, as OpenVPN and WireGuard do."""
    route(host, "add", "0.0.0.0/1", 1)
    route(host, "add", "128.0.0.0/1", 1)


MORE = pytest.mark.matrix
ROUTES = [
    by_port,
    split_servers,
    *(pytest.param(routes, marks=MORE) for routes in (metrics, by_address, halves)),
]
# of the second uplink
SECOND = ["port-restricted", pytest.param("linux-masquerade", marks=MORE), pytest.param("full-cone", marks=MORE)]


def bring_up(host: Host, routes: Routes) -> None:
    """All uplinks of the host at once, and what leads where."""
    for n in range(len(host.uplinks)):
        host.run("ip", "link", "set", f"eth{n}", "up")
    routes(host)


@pytest.mark.parametrize("second", SECOND)
@pytest.mark.parametrize("routes", ROUTES)
def test_two_ways_out_of_one(routes: Routes, second: str):
    with make(["port-restricted", second], ["port-restricted"]) as lab:
        bring_up(lab.hosts["a"], routes)
        pair = Pair(lab)
        pair.dials(routes.__name__)


@pytest.mark.matrix
@pytest.mark.parametrize("second", ["symmetric", "udp-blocked"])
def test_the_nat_that_peers_see_counts(second: str):
    """The servers are reached by another uplink, with a worse box."""
    with make(["port-restricted", second], ["port-restricted"]) as lab:
        bring_up(lab.hosts["a"], split_servers)
        pair = Pair(lab)
        pair.dials(second)


@pytest.mark.matrix
@pytest.mark.parametrize("other", ["full-cone", "port-restricted"])
def test_a_way_by_which_no_server_can_be_asked(other: str):
    """Whoever lets in strangers is met directly. Nobody can tell anybody else where to send to: that is relayed."""
    with make(["port-restricted", "port-restricted"], [other]) as lab:
        bring_up(lab.hosts["a"], split_peers)
        pair = Pair(lab)
        if other == "full-cone":
            pair.dials(other)
            return
        for node, peer in (pair.nodes, reversed(pair.nodes)):
            answer = node.ask("connect", node=peer.node_id)
            assert answer.get("echoed"), answer


@pytest.mark.matrix
@pytest.mark.parametrize("routes", [metrics, by_address, by_port, split_servers, halves])
def test_two_ways_out_of_both(routes: Routes):
    kinds = ["port-restricted", "linux-masquerade"]
    with make(kinds, kinds) as lab:
        for name in "ab":
            bring_up(lab.hosts[name], routes)
        pair = Pair(lab)
        pair.dials(routes.__name__)


@pytest.mark.matrix
def test_the_default_route_moves_under_a_stream(record_property: Record):
    """Metrics change places, as a network manager has them when it likes another link better; both links stay up."""
    with make(["port-restricted", "linux-masquerade"], ["port-restricted"]) as lab:
        host = lab.hosts["a"]
        bring_up(host, metrics)
        flow = Flow(lab, record_property)

        def prefer(which: int) -> None:
            route(host, "add", "default", which, "metric", "10" if which else "5")
            if which:
                host.run("ip", "route", "del", "default", "metric", "0")

        flow.survives("metric: the second", lambda: prefer(1))
        flow.survives("metric: the first again", lambda: prefer(0))
        flow.ends_well()

"""Pairs that need more than their addresses: ports of a small block, or with parity; a long round trip; a carrier."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from driver import HANG, Node, Program
from lab import Lab
from meeting import Meeting
from pairs import UPGRADE_SECONDS, Case, Expected, run

MAPPER = Path(__file__).with_name("port_mapper.py")
MORE = pytest.mark.matrix
STRICT = "port-restricted"
# the first ones may be foretold; what is not is searched
SMALL = [
    ("symmetric:block=512", STRICT),
    pytest.param("symmetric:block=64", STRICT, marks=MORE),
    pytest.param("symmetric:ports=parity", STRICT, marks=MORE),
    pytest.param(STRICT, "symmetric:ports=parity", marks=MORE),
    pytest.param(STRICT, "symmetric:block=64", marks=MORE),
]


def direct(node: Node, other: Node) -> bool:
    """Whether the path in use is no relay's."""
    used = [path for path in node.peer(other.node_id)["paths"] if path["in_use"]]
    return bool(used) and not any(path["relayed"] for path in used)


def becomes_direct(node: Node, other: Node) -> None:
    """Waits until it is."""
    deadline = time.monotonic() + UPGRADE_SECONDS
    while not direct(node, other):
        words = node.ask("explain", node=other.node_id)["explanation"]
        assert time.monotonic() < deadline, words
        time.sleep(0.1)


@pytest.mark.parametrize(("a", "b"), SMALL)
def test_ports_of_a_small_block_or_with_parity_are_found(a: str, b: str):
    lab = Lab(rtt_ms=40)
    server = lab.server("server")
    lab.host("a", a)
    lab.host("b", b)
    with lab:
        meeting = Meeting(server, own_relay=True)
        one, other = meeting.pair(lab.hosts["a"], lab.hosts["b"])
        answer = one.ask("connect", node=other.node_id)
        assert answer.get("echoed"), answer
        becomes_direct(one, other)


@pytest.mark.matrix
def test_two_that_are_as_far_apart_as_by_satellite_meet_directly():
    result = run(Case(STRICT, STRICT, 600), 3)
    assert result.expected == Expected("direct", "plainly")
    print([f"{outcome.outcome} {outcome.ms:.0f} ms" for outcome in result.outcomes])
    assert not result.misses, result.misses


@pytest.mark.parametrize("kind", ["symmetric", pytest.param("full-cone", marks=MORE)])
def test_two_homes_of_one_carrier_meet_at_ports_that_their_routers_opened(kind: str):
    """The carrier's box turns nothing round, so their addresses in its network (RFC 6598) are the only direct way."""
    lab = Lab(rtt_ms=40)
    server = lab.server("server")
    carrier = lab.nat("carrier", kind)
    homes = [lab.nat(f"home-{name}", "linux-masquerade", outer=carrier) for name in "ab"]
    for name, home in zip("ab", homes, strict=True):
        lab.host(name, behind=[home])
    with lab:
        for home in homes:
            opener = Program(home, sys.executable, str(MAPPER), home.address, home.gateway)
            assert opener.read() == {"event": "ready"}
        meeting = Meeting(server, own_relay=True)
        nodes = [Node(lab.hosts[name]) for name in "ab"]
        for node, home in zip(nodes, homes, strict=True):
            meeting.start(node)
            until_mapped(node, home.address)
        meeting.settle(*nodes)
        answer = nodes[0].ask("connect", node=nodes[1].node_id)
        assert answer.get("echoed"), answer
        becomes_direct(nodes[0], nodes[1])
        assert nodes[0].ask("path", node=nodes[1].node_id)["path"].startswith(f"{homes[1].address}:")


def until_mapped(node: Node, outside: str) -> None:
    """Waits until its router has opened a port."""
    deadline = time.monotonic() + HANG
    while not any(
        one["kind"] == "port-mapped" and one["address"].startswith(f"{outside}:")
        for one in node.ask("status")["status"]["addresses"]
    ):
        assert time.monotonic() < deadline, node.ask("status")
        time.sleep(0.1)

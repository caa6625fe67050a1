"""Each attack, with the honest beside it: what they lose is nothing, and what strangers make a node spend is bounded.

The short form of each is a few seconds; `make test-adversary` has the long one, with more sources, keys and rounds.
"""

from __future__ import annotations

import re

import pytest
from arena import HERE, LONG, SHORT, Ground, Outcome, Scale

pytestmark = pytest.mark.slow
PROTOCOL = HERE.parents[1] / "docs" / "protocol.md"

scales = pytest.mark.parametrize(
    "scale", [pytest.param(SHORT, id="short"), pytest.param(LONG, id="long", marks=pytest.mark.long)]
)

INTRODUCED = ("fresh", "keyed", "introduced")
STREAM = 64 << 10
"""Bytes that a connection may make a node hold before its peer is let in (docs/protocol.md section 10)."""
OF_A_SOURCE, OF_STRANGERS = 32 + 224, 768 + 1024
"""Connections of one source, and of all strangers together (the same section)."""
INVITATIONS = 40 << 20
"""Bytes of invitations that wait, at their largest (section 7)."""
PING = 112 + 28
"""A packet to an address that peers name, with its IP and UDP headers."""


def formula(what: str, seconds: float) -> float:
    """Packets that protocol.md lets a node send in so much time, by the row of its table that begins so."""
    row = re.search(rf"\| {re.escape(what)}.*?\| ([\d,]+) \+ ([\d,]+) \*t\* \|", PROTOCOL.read_text(encoding="utf-8"))
    assert row is not None, what
    at_once, a_second = (int(number.replace(",", "")) for number in row.groups())
    return at_once + a_second * seconds


@scales
@pytest.mark.parametrize(
    ("says", "per_network"), [("a byte", 1), ("a promise", 8), ("nothing", 1)], ids=["byte", "promise", "nothing"]
)
def test_places_for_handshakes(ground: Ground, scale: Scale, says: str, per_network: int) -> None:
    with ground.arena() as arena:
        outcome = arena.under("handshakes", scale, says=says, per_network=per_network)
    assert outcome.counts["answers"] > 0
    outcome.costs_nobody_anything(min(scale.sources * OF_A_SOURCE, OF_STRANGERS) * STREAM)


@scales
@pytest.mark.parametrize("genuine", [False, True], ids=["garbage", "genuine"])
def test_invitations_without_end(ground: Ground, scale: Scale, genuine: bool) -> None:
    with ground.arena(INTRODUCED) as arena:
        outcome = arena.under("invitations", scale, genuine=genuine)
    assert outcome.counts["sent"] > scale.rounds
    assert outcome.counts["answers"] == 0, "no stranger learns where the node is"
    outcome.costs_nobody_anything(INVITATIONS)


@scales
@pytest.mark.parametrize("asks", [None, 0.0], ids=["list", "function"])
def test_a_stranger_aims_at_nobody(ground: Ground, scale: Scale, asks: float | None) -> None:
    """Also one that was refused before, and so has a key and a proven path with the node."""
    with ground.arena(INTRODUCED, asks=asks) as arena:
        outcome = arena.under("aims", scale, symmetric=True, known=True)
    assert outcome.counts["sent"] > 0
    assert outcome.counts["answers"] == 0
    assert outcome.third["aimed"] == (0, 0)
    outcome.costs_nobody_anything(INVITATIONS)


@scales
@pytest.mark.parametrize("many", [False, True], ids=["one", "many"])
def test_a_peer_aims_at_third_parties(ground: Ground, scale: Scale, many: bool) -> None:
    """Peers on the list lie about where they are."""
    with ground.arena(INTRODUCED, allowed_strangers=4) as arena:
        outcome = arena.under("aims", scale, symmetric=True, many=many, keys=4)
    assert outcome.counts["goes"] > 0
    packets, size = outcome.third["aimed"]
    assert packets > 0, "or the attack is none"
    row = "all addresses that peers name" if many else "one IPv4 address or IPv6 /64 that peers name"
    assert packets <= formula(row, outcome.seconds)
    assert size <= packets * PING
    outcome.costs_nobody_anything(INVITATIONS)


@scales
@pytest.mark.parametrize("sources", [1, 0], ids=["one-host", "many"])
def test_a_rendezvous_that_is_filled(ground: Ground, scale: Scale, sources: int) -> None:
    with ground.arena(INTRODUCED, rendezvous=["--max-nodes", "300"]) as arena:
        outcome = arena.under("registrations", scale, **({"sources": sources} if sources else {}))
    assert outcome.counts["registered"] > 0
    outcome.costs_nobody_anything(0)


@scales
def test_a_full_rendezvous_gives_way_where_it_is_most_crowded(ground: Ground, scale: Scale) -> None:
    """Some networks take every place; whoever comes from another one has one all the same, and theirs go."""
    networks, sockets = min(scale.sources // 4, 16), 8
    places = networks * sockets * 4 - 8
    with ground.arena(INTRODUCED, rendezvous=["--max-nodes", str(places)]) as arena:
        # one place is the node's own
        outcome = arena.under("crowds", scale, sources=networks, sockets=sockets, full=places - 4)
    assert outcome.counts["most_there"] >= places - 4
    assert outcome.counts["gave_way"] > 0
    outcome.costs_nobody_anything(0)


@scales
def test_a_function_that_is_asked_without_end(ground: Ground, scale: Scale) -> None:
    with ground.arena(asks=0.1) as arena:
        outcome = arena.under("questions", scale)
    assert outcome.counts["200"] == 0
    assert outcome.counts["403"] > 0
    outcome.costs_nobody_anything(OF_STRANGERS * STREAM)


@scales
def test_fresh_keys_of_peers(ground: Ground, scale: Scale) -> None:
    most = 16
    with ground.arena(allowed_strangers=2, limits={"max_streams_per_node": most}) as arena:
        outcome = arena.under("chains", scale)
    assert 0 < outcome.counts["most_held"] <= 2 * most
    outcome.costs_nobody_anything(2 * most * (2 << 20))


@scales
@pytest.mark.parametrize("many", [False, True], ids=["one", "many"])
def test_a_mirror(ground: Ground, scale: Scale, many: bool) -> None:
    """What is answered to a third party is never more than what came in its name."""
    with ground.arena() as arena:
        outcome = arena.under("mirrors", scale, many=many)
    _mirrors_nothing_larger(outcome)
    outcome.costs_nobody_anything(OF_STRANGERS * STREAM)


def _mirrors_nothing_larger(outcome: Outcome) -> None:
    (packets, size), (came, came_bytes) = outcome.third["aimed"], outcome.third["claimed"]
    assert came > 0
    assert packets <= came
    assert size <= came_bytes


@scales
def test_garbage_from_everywhere(ground: Ground, scale: Scale) -> None:
    with ground.arena() as arena:
        outcome = arena.under("garbage", scale)
    assert outcome.counts["sent"] > 0
    outcome.costs_nobody_anything(OF_STRANGERS * STREAM)


@scales
def test_forged_packets_of_a_peer(ground: Ground, scale: Scale) -> None:
    """Off the path, by guessing: RESET, FIN, DATA in the name of the honest. Their ports are known, at worst."""
    with ground.arena() as arena:
        ports = arena.ports_of_the_honest()
        outcome = arena.under("forgeries", scale, claimed=ground.honest.seen_as, ports=ports)
    assert outcome.counts["sent"] > 0
    outcome.costs_nobody_anything(OF_STRANGERS * STREAM)

"""Attacks of a rendezvous that lies, an observer, peers that are let go, pages of browsers, clients of a relay."""

from __future__ import annotations

import re

import pytest
from arena import LONG, Ground, Scale, until
from test_adversaries import INTRODUCED, OF_STRANGERS, STREAM, scales

import keynet

pytestmark = pytest.mark.slow
ELSEWHERE = "198.51.100.200"
# bytes that are more than what was under way
AGAIN = 1 << 17
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


@scales
def test_a_rendezvous_that_lies_without_end(ground: Ground, scale: Scale) -> None:
    """Forged answers to whoever looks for somebody there; what it says steers neither terminals nor logs."""
    with ground.arena(INTRODUCED, lied_to=True) as arena:
        nobody = keynet.Identity.generate().node_id
        arena.victim.ask("dial_for_ever", node=nobody)
        arena.begin("nothing", scale)
        arena.liar.ask("flood", rate=scale.rate)
        arena.go_on(scale)
        outcome = arena.end()
        said, lines = arena.liar.ask("counts")["counts"], arena.logged()
    assert said["heard"] > 0, "somebody looked for a node there"
    assert said["signal 2"] > 0
    outcome.costs_nobody_anything(40 << 20)
    assert outcome.third["aimed"] == (0, 0)
    assert [line for line in lines if CONTROL.search(line) or line.startswith("forged")] == []


@scales
def test_an_observer_who_repeats_everything(ground: Ground, scale: Scale) -> None:
    """Old pings and packets, from everywhere and in the name of the peer."""
    with ground.arena(strangers_at=ground.internet, honest_at=ground.roaming) as arena:
        outcome = arena.under("replays", scale, claimed=ground.home.address)
    assert outcome.counts["sent"] > 0
    outcome.costs_nobody_anything(OF_STRANGERS * STREAM)


@pytest.mark.long
def test_an_observer_who_repeats_everything_while_the_peer_moves(ground: Ground) -> None:
    """The honest get another address meanwhile. How long they take to follow is not asserted, but that they do."""
    with ground.arena(strangers_at=ground.internet, honest_at=ground.roaming) as arena:
        usual = ground.home.address
        try:
            arena.begin("replays", LONG, claimed=usual)
            until(lambda: arena.strangers.ask("counts")["counts"].get("ping", 0) > 8, "pings to repeat")
            arena.honest.ask("phase", name="moving")
            ground.home.set_address(ELSEWHERE)
            came = arena.honest.ask("received")["received"]["victim"]
            until(lambda: arena.honest.ask("received")["received"]["victim"] > came + AGAIN, "the stream goes on")
            arena.honest.ask("phase", name="during")
            arena.go_on(LONG)
            outcome = arena.end()
        finally:
            ground.home.set_address(usual)
    assert outcome.phases["moving"]["failed"] == []
    outcome.costs_nobody_anything(OF_STRANGERS * STREAM)


@scales
def test_peers_that_are_let_go(ground: Ground, scale: Scale) -> None:
    """They hold what they can, with fresh keys; off the list they lose all of it, and nobody else loses anything."""
    with ground.arena(allowed_strangers=2) as arena:
        arena.begin("chains", scale, begun_at=8)
        arena.victim.ask("admit", allow=arena.friends)
        friends = set(arena.friends)
        until(lambda: set(arena.victim.ask("connections")["of"]) <= friends, "their connections end")
        until(lambda: arena.strangers.ask("counts")["counts"]["held"] == 0, "they hear of it")
        arena.go_on(scale)
        outcome = arena.end()
    assert outcome.counts["most_held"] >= 8
    assert outcome.counts["held"] == 0
    assert outcome.counts["403"] > 0
    outcome.costs_nobody_anything(OF_STRANGERS * STREAM)


@scales
def test_pages_of_other_sites(ground: Ground, scale: Scale) -> None:
    with ground.arena(strangers_at=ground.victim) as arena:
        target = {"node": arena.beside, "addresses": [f"{ground.bystander.address}:7400"]}
        ports = arena.victim.ask("forward", **target)["ports"]
        outcome = arena.under("pages", scale, ports=ports)
    assert all(outcome.counts[f"refused {name}"] > 0 for name in ports)
    assert [name for name in outcome.counts if name.startswith("reached")] == [], outcome.counts
    outcome.costs_nobody_anything(0)


@scales
def test_a_relay_that_is_asked_without_end(ground: Ground, scale: Scale) -> None:
    with ground.arena(("fresh", "relayed"), relayed=True) as arena:
        addresses = {name: arena.relays[name] for name in ("udp", "tls")}
        outcome = arena.under("relayed", scale, claimed=ground.honest.seen_as, **addresses)
    assert outcome.counts["forged"] > 0
    assert outcome.counts["tls"] + outcome.counts["tls refused"] > 0
    outcome.costs_nobody_anything(0)


def test_nobody_is_the_node_of_a_key_that_anyone_can_sign_with() -> None:
    """Points of small order, in each spelling, at each place where a name comes in."""
    orders = (0, 1, (1 << 255) - 20, (1 << 255) - 19, (1 << 255) - 18, _EIGHT, (1 << 255) - 19 - _EIGHT)
    keys = {(y | sign << 255).to_bytes(32, "little") for y in orders for sign in (0, 1)}
    own = keynet.Identity.generate()
    for key in keys:
        with pytest.raises(ValueError):
            keynet.NodeId.from_public_key(key)
        name = "v" + _base32(key)
        with pytest.raises(ValueError):
            keynet.NodeId(name)
        for options in (
            {"allow": [name], "services": {1: "127.0.0.1:1"}},
            {"rendezvous": [f"{name}@127.0.0.1:1"]},
            {"direct_only": [name]},
        ):
            with pytest.raises((ValueError, keynet.KeynetError)):
                keynet.sync.Proxy(own, **options)  # type: ignore[arg-type]
    proxy = keynet.sync.Proxy(own, listen="127.0.0.1:0")
    with proxy:
        for key in keys:
            with pytest.raises((ValueError, keynet.KeynetError)):
                proxy.add_peer("v" + _base32(key), ["127.0.0.1:1"])


# y of a point of order 8 (K. Chalkias, F. Garillot, V. Nikolaenko, "Taming the many EdDSAs", table 1)
_EIGHT = int.from_bytes(bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little")


def _base32(key: bytes) -> str:
    digits = "0123456789abcdefghijklmnopqrstuv"
    bits = int.from_bytes(key, "big") << 4
    return "".join(digits[bits >> 5 * at & 31] for at in reversed(range(52)))

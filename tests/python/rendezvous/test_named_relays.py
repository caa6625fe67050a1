"""Relays that a rendezvous names to its nodes, or runs itself."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from typing import Any

import pytest

import keynet
import keynet.rendezvous
from keynet.rendezvous._relays import credentials
from keynet.rendezvous.v1 import rendezvous_pb2 as pb
from nodes import registered, until
from support import proxy


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


async def relays_of(node: keynet.Proxy) -> list[keynet.RelayStatus]:
    for _ in range(6000):
        used = [relay for relay in node.status().relays if relay.socket is not None]
        if used:
            return used
        await asyncio.sleep(0.01)
    raise AssertionError(f"no relay came into use: {node.status()}")


def test_credentials_are_those_of_coturn() -> None:
    # printf '100:node' | openssl dgst -sha1 -hmac s -binary | base64
    assert credentials("s", "node", 100.9) == ("100:node", "xzRHuNRmpuz+NlR4qUQXh018rzQ=")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"uris": "turn:a", "secret": "s"}, "list"),
        ({"uris": [], "secret": "s"}, "1 to 4"),
        ({"uris": ["stun:a"], "secret": "s"}, "turn:HOST"),
        ({"uris": ["turn:a"], "secret": ""}, "secret"),
        ({"uris": ["turn:a"], "secret": "s", "seconds": 1}, "60 at least"),
        ({"uris": ["turn:a"], "secret": "s", "weight": -1}, "0 to 65535"),
        ({"uris": ["turn:a"], "secret": "s", "weight": 65_536}, "0 to 65535"),
    ],
)
def test_what_cannot_be_named_is_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(keynet.InvalidArgument, match=why):
        keynet.rendezvous.Relay(**options)


@pytest.mark.parametrize(
    ("relay", "why"),
    [
        ("turn:relay.example.org", "credentials"),
        ("turn://u:p@relay.example.org", "slashes"),
        ("stun:u:p@relay.example.org", "scheme"),
        ("turn:u:p@relay.example.org:0", "port"),
    ],
)
def test_a_relay_that_cannot_be_read_is_an_error(alice: keynet.Identity, relay: str, why: str) -> None:
    with pytest.raises(keynet.InvalidArgument, match=why) as caught:
        keynet.Proxy(alice, relays=[relay])
    assert "u:p" not in str(caught.value), "passwords are not shown"


async def test_the_relay_of_a_rendezvous_comes_into_use(
    alice: keynet.Identity, bob: keynet.Identity, mallory: keynet.Identity
) -> None:
    port = free_port()
    relay = {"listen": f"127.0.0.1:{port}", "allowed_peers": ["127.0.0.0/8"]}
    async with keynet.rendezvous.Server(mallory, listen="127.0.0.1:0", relay=relay) as server:
        options: dict[str, Any] = {"rendezvous": [server.address], "port_mapping": False}
        serving: dict[str, Any] = {"services": {7: "127.0.0.1:9"}, "allow": keynet.ANYONE, "direct_only": True}
        async with proxy(alice, **options) as node, proxy(bob, **serving, **options) as other:
            events = node.events()
            (used,) = await relays_of(node)
            assert (used.relay, used.transport, used.introduction) == ("127.0.0.1", "udp", False)
            told = {address.address for address in node.status().addresses if address.kind == "relayed"}
            assert told == set(used.addresses)
            assert server.stats()["relay_allocations"] >= 1
            kinds = set()
            while keynet.RelayConnected not in kinds:
                kinds.add(type(await asyncio.wait_for(anext(events), 60)))
            await relays_of(other)
            await until(lambda: server.nodes_on_relays() == {f"turn::{port}": 2})
            await node.ping(other.node_id, timeout=60)
            meeting = node.explain(other.node_id).meeting
            assert meeting is not None
            assert meeting.direct_only
            assert not any(one.kind == "relayed" for one in meeting.peer_candidates)
        for _ in range(1000):
            if server.stats()["relay_allocations"] == 0:
                break
            await asyncio.sleep(0.01)
        assert server.stats()["relay_allocations"] == 0, "nodes that close give their addresses back"
        await until(lambda: server.nodes_on_relays() == {f"turn::{port}": 0})


async def test_a_relay_that_many_nodes_use_is_named_with_less_weight(
    alice: keynet.Identity, bob: keynet.Identity, mallory: keynet.Identity
) -> None:
    relays = [
        keynet.rendezvous.Relay(["turn:one.example", "turns:one.example:443"], "s", weight=50),
        keynet.rendezvous.Relay(["turn:two.example"], "s", weight=50),
        keynet.rendezvous.Relay(["turn:spare.example"], "s", weight=0),
    ]
    async with keynet.rendezvous.Server(mallory, listen="127.0.0.1:0", relays=relays) as server:
        async with registered(server, alice) as first:
            named = (await first.read()).relays.relays
            assert [(one.uris[0], one.weight) for one in named] == [
                ("turn:one.example", 50),
                ("turn:two.example", 50),
                ("turn:spare.example", 0),
            ]
            assert all(one.HasField("weight") for one in named), "a node takes it for the usual one otherwise"
            for _ in range(2):  # what it says takes the place of what it said before
                used = ["turn:one.example", "turn:one.example", "turn:unknown.example"]
                await first.call.write(pb.NodeMessage(uses=pb.Uses(relays=used)))
            await until(lambda: server.nodes_on_relays()["turn:one.example"] == 1)
            async with registered(server, bob) as second:
                weights = [one.weight for one in (await second.read()).relays.relays]
                assert weights[0] < weights[1] == 50
                assert weights[2] == 0
        await until(lambda: set(server.nodes_on_relays().values()) == {0})


@pytest.mark.parametrize(
    ("turn", "said"),
    [
        ("turn:a,weight=", b"one weight"),
        ("turn:a,weight=1,weight=2", b"one weight"),
        ("turn:a,weight=70000", b"0 to 65535"),
        ("weight=7", b"1 to 4"),
    ],
)
async def test_weights_on_the_command_line(turn: str, said: bytes) -> None:
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-m", "keynet", "rendezvous", "--listen", "127.0.0.1:0", "--turn", turn],
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "KEYNET_TURN_SECRET": "s"},
    )
    _, errors = await process.communicate()
    assert process.returncode == 2
    assert said in errors


async def test_the_command_line_runs_one() -> None:
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-m", "keynet", "rendezvous", "--listen", "127.0.0.1:0", "--relay-tls", "127.0.0.1:1"],
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await process.communicate()
    assert process.returncode == 2
    assert b"need --relay" in said


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("turn:user:pw@relay.example", "no user and password"),
        ("turn:relay.example:3478?weight=3", "parameters transport and key"),
        ("http://relay.example", "not another scheme"),
    ],
)
def test_what_no_node_could_use_is_refused_at_once(uri: str, why: str) -> None:
    with pytest.raises(keynet.InvalidArgument, match=why):
        keynet.rendezvous.Relay([uri], "secret")

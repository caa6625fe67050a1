"""Relays that a rendezvous names to its nodes, or runs itself."""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import Any

import pytest

import keynet
import keynet.rendezvous
from keynet.rendezvous._relays import credentials
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


async def test_the_command_line_runs_one() -> None:
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-m", "keynet", "rendezvous", "--listen", "127.0.0.1:0", "--relay-tls", "127.0.0.1:1"],
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await process.communicate()
    assert process.returncode == 2
    assert b"need --relay" in said

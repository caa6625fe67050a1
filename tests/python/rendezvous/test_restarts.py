"""What a rendezvous, and the relay in its process, cost their nodes by being started anew."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

import keynet
import keynet.rendezvous
from keynet.rendezvous._relays import OwnRelay
from keynet.rendezvous.v1 import rendezvous_pb2 as pb
from nodes import PATIENCE, registered, until
from support import proxy

WEEK = 7 * 86_400


def free_port() -> int:
    """Free over TCP and over UDP."""
    for _ in range(100):
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            tcp.bind(("127.0.0.1", 0))
            port = int(tcp.getsockname()[1])
            try:
                udp.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")


def ways(identity: keynet.Identity, options: dict[str, Any], listen: str = "[::]:7348") -> list[list[str]]:
    return [list(relay.uris) for relay in OwnRelay(identity, options, listen=listen).named]


def test_every_way_to_the_relay_of_a_rendezvous_is_named(alice: keynet.Identity) -> None:
    key = f"?key={alice.node_id}"
    assert ways(alice, {}) == [["turn::3478", "turn::3478?transport=tcp"]]
    both = {"listen": ["0.0.0.0:3478", "[::]:3478"]}
    assert ways(alice, both) == [["turn::3478", "turn::3478?transport=tcp"]]
    one_port = {"listen": ["0.0.0.0:3478", "0.0.0.0:443"], "tls": ["0.0.0.0:443"]}
    assert ways(alice, one_port) == [["turn::3478", "turn::443", "turn::3478?transport=tcp", f"turns::443{key}"]]
    many = {"listen": ["0.0.0.0:3478", "0.0.0.0:80"], "tls": ["0.0.0.0:443", "0.0.0.0:5349"]}
    named = ways(alice, many)
    assert [len(uris) for uris in named] == [4, 2], "a relay has 4 ways in a message"
    assert [uri for uris in named for uri in uris] == [
        *["turn::3478", "turn::80", "turn::3478?transport=tcp", "turn::80?transport=tcp"],
        *[f"turns::443{key}", f"turns::5349{key}"],
    ]
    assert len({relay.counted_as for relay in OwnRelay(alice, many).named}) == 1, "it is one relay"


@pytest.mark.parametrize(
    ("listen", "relay", "external", "named"),
    [
        ("0.0.0.0:7348", "192.0.2.7:443", [], ""),
        ("192.0.2.7:7348", "192.0.2.7:443", [], ""),
        ("192.0.2.7:7348", "0.0.0.0:443", [], ""),
        ("192.0.2.7:7348", "192.0.2.8:443", [], "192.0.2.8"),
        ("192.0.2.7:7348", "192.0.2.8:443", ["198.51.100.8"], "198.51.100.8"),
        ("[2001:db8::7]:7348", "[2001:db8::8]:443", [], "[2001:db8::8]"),
    ],
)
def test_a_relay_at_another_address_than_its_rendezvous_is_named_by_that(
    alice: keynet.Identity, listen: str, relay: str, external: list[str], named: str
) -> None:
    ((first, *_),) = ways(alice, {"listen": relay, "external_addresses": external}, listen)
    assert first == f"turn:{named}:443"


def test_secrets_follow_from_the_identity_and_change_every_week(alice: keynet.Identity, bob: keynet.Identity) -> None:
    now = 100 * WEEK + 5.0

    def at(identity: keynet.Identity, moment: float) -> str:
        return OwnRelay(identity, {}).named[0].message("v", moment, 100).password

    def taken(identity: keynet.Identity, moment: float) -> set[str]:
        lasting = OwnRelay(identity, {})._lasting
        assert lasting is not None
        return set(lasting.taken(moment))

    again = keynet.Identity.from_pem(alice.to_pem())
    assert at(alice, now) == at(again, now)
    assert at(alice, now) != at(bob, now)
    secret = OwnRelay(alice, {}).named[0].secret_at
    for moment in (now, now - 86_400, now + 86_400):
        assert secret(moment) in taken(again, now), "names are good for a day"
    assert secret(now - 2 * WEEK) not in taken(again, now)
    assert not taken(alice, now) & taken(bob, now)
    assert OwnRelay(alice, {"secret": "told"}).named[0].secret_at(now) == "told"


async def test_credentials_from_before_a_restart_are_good_after_it(
    alice: keynet.Identity, mallory: keynet.Identity
) -> None:
    aioice_turn = pytest.importorskip("aioice.turn")
    port = free_port()
    relay = {"listen": f"127.0.0.1:{port}", "allowed_peers": ["127.0.0.0/8"]}
    server = keynet.rendezvous.Server(mallory, listen="127.0.0.1:0", relay=relay)
    async with server, registered(server, alice) as node:
        (named,) = (await node.read()).relays.relays
    again = keynet.Identity.from_pem(mallory.to_pem())
    async with keynet.rendezvous.Server(again, listen="127.0.0.1:0", relay=relay) as server:
        endpoint, _ = await aioice_turn.create_turn_endpoint(
            asyncio.DatagramProtocol,
            server_addr=("127.0.0.1", port),
            username=named.username,
            password=named.password,
            transport="udp",
        )
        assert server.stats()["relay_allocations"] == 1
        assert server.stats()["relay_auth_failures"] == 0
        endpoint.close()


async def test_a_node_and_its_relay_come_back_with_their_rendezvous(
    alice: keynet.Identity, mallory: keynet.Identity
) -> None:
    port, listen = free_port(), f"127.0.0.1:{free_port()}"
    relay = {"listen": f"127.0.0.1:{port}", "allowed_peers": ["127.0.0.0/8"]}

    def used(node: keynet.Proxy) -> set[str]:
        return {address for one in node.status().relays for address in one.addresses if not one.introduction}

    async with keynet.rendezvous.Server(mallory, listen=listen, relay=relay) as server:
        node = proxy(alice, rendezvous=[server.address], port_mapping=False)
        await node.start()
        try:
            await until(lambda: used(node) != set())
            await server.close()
            async with keynet.rendezvous.Server(mallory, listen=listen, relay=relay) as second:
                await until(lambda: second.stats()["registered"] == 1)
                await until(lambda: second.stats()["relay_allocations"] >= 1 and used(node) != set())
                assert second.stats()["relay_auth_failures"] == 0, "its credentials were good"
        finally:
            await node.close()


async def test_a_rendezvous_that_goes_tells_its_nodes(alice: keynet.Identity, mallory: keynet.Identity) -> None:
    async with keynet.rendezvous.Server(mallory, listen="127.0.0.1:0") as server, registered(server, alice) as node:
        closing = asyncio.create_task(server.close())
        message = await node.read()
        assert message.WhichOneof("kind") == "going"
        assert message.going.spread <= 10_000
        await node.refresh()  # it has no other
        code, detail = await node.ended()
        assert (code.name, "going away" in detail) == ("UNAVAILABLE", True)
        await asyncio.wait_for(closing, PATIENCE)


async def test_nodes_with_another_rendezvous_have_moved_before_one_ends(
    alice: keynet.Identity, bob: keynet.Identity, mallory: keynet.Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = keynet.rendezvous.Server(mallory, listen="127.0.0.1:0")
    second = keynet.rendezvous.Server(bob, listen="127.0.0.1:0")
    async with first, second, proxy(alice, rendezvous=[first.address, second.address], port_mapping=False):
        await until(lambda: first.stats()["registered"] == second.stats()["registered"] == 1)
        # as long as it takes on a slow machine: what is waited for is the node, not the time
        monkeypatch.setattr(keynet.rendezvous._server, "_FAREWELL", PATIENCE)
        left: list[int] = []
        ends = first._service.close
        monkeypatch.setattr(first._service, "close", lambda: (left.append(first.stats()["registered"]), ends()))
        await first.close()
        assert left[0] == 0, "it had gone by itself"
        assert second.stats()["registered"] == 1


def test_an_old_node_skips_what_it_does_not_know() -> None:
    # the field is one that no message before had
    raw = pb.RendezvousMessage(going=pb.Going(spread=1)).SerializeToString()
    assert raw[0] >> 3 == 6

"""aioice's TURN client against the relay; its first request is smaller than its answer."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from typing import Any

import pytest

import keynet
from keynet.relay import credentials
from turn_clients import HANG, PASSWORD, USER, echo, loopback_relay, port_of

aioice = pytest.importorskip("aioice")
aioice_turn = pytest.importorskip("aioice.turn")


class Received(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.queue: asyncio.Queue[tuple[bytes, Any]] = asyncio.Queue()

    def datagram_received(self, data: bytes, address: Any) -> None:
        self.queue.put_nowait((data, address))


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.mark.parametrize("transport", ["udp", "tcp", "tls"])
@pytest.mark.parametrize("one_port", [False, True], ids=["two ports", "one port"])
async def test_datagrams_come_back(transport: str, one_port: bool, alice: keynet.Identity) -> None:
    listen = f"127.0.0.1:{free_port() if one_port else 0}"
    async with echo("127.0.0.1") as peer, loopback_relay(listen=listen, tls=listen, identity=alice) as relay:
        address = relay.tls_addresses[0] if transport == "tls" else relay.addresses[0]
        context: ssl.SSLContext | None = None
        if transport == "tls":
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        endpoint, protocol = await aioice_turn.create_turn_endpoint(
            Received,
            server_addr=("127.0.0.1", port_of(address)),
            username=USER,
            password=PASSWORD,
            ssl=context,
            transport="udp" if transport == "udp" else "tcp",
        )
        assert endpoint.get_extra_info("sockname")[0] == "127.0.0.1"
        for size in (1, 3, 4, 1_200):
            endpoint.sendto(bytes(size), ("127.0.0.1", peer.port))
            data, sender = await asyncio.wait_for(protocol.queue.get(), HANG)
            assert (len(data), sender) == (size, ("127.0.0.1", peer.port))
        endpoint.close()
        stats = relay.stats()
        assert stats["datagrams_to_peers"] == stats["datagrams_to_clients"] == 4
        # over UDP the first request has 36 bytes, and its answer 52
        assert stats["unanswered"] == (1 if transport == "udp" else 0)


async def test_names_that_end() -> None:
    async with echo("127.0.0.1") as peer, loopback_relay(users={}, secret="shared") as relay:
        for expires, secret, good in (
            (time.time() + 100, "shared", True),
            (time.time() - 1, "shared", False),
            (time.time() + 100, "guessed", False),
        ):
            name, password = credentials(secret, "somebody", int(expires))
            made = aioice_turn.create_turn_endpoint(
                Received,
                server_addr=("127.0.0.1", port_of(relay.addresses[0])),
                username=name,
                password=password,
            )
            if not good:
                with pytest.raises(aioice.stun.TransactionFailed, match="401"):
                    await made
                continue
            endpoint, protocol = await made
            endpoint.sendto(b"hello", ("127.0.0.1", peer.port))
            assert (await asyncio.wait_for(protocol.queue.get(), HANG))[0] == b"hello"
            endpoint.close()
        assert relay.stats()["auth_failures"] >= 2

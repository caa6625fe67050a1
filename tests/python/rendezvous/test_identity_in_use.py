"""One identity at two programs: the newer session counts, once, and the older one says why it ended."""

from __future__ import annotations

import asyncio
import socket

import pytest

import keynet
from nodes import rendezvous, until


def proxy(identity: keynet.Identity, address: str, **options: object) -> keynet.Proxy:
    return keynet.Proxy(identity, listen="127.0.0.1:0", rendezvous=[address], port_mapping=False, **options)  # type: ignore[arg-type]


async def wait_for(events: keynet.EventStream, kind: type[keynet.Event]) -> keynet.Event:  # type: ignore[valid-type]
    async def look() -> keynet.Event:
        async for event in events:
            if isinstance(event, kind):
                return event
        raise AssertionError(f"no {kind}")

    return await asyncio.wait_for(look(), 60)


async def test_the_newer_wins_once_and_the_older_stops_trying(alice: keynet.Identity, bob: keynet.Identity) -> None:
    async with rendezvous() as server, proxy(alice, server.address) as older:
        events = older.events()
        if not older.status().rendezvous[0].connected:
            await wait_for(events, keynet.RendezvousConnected)
        # the same key in another program, as far as a rendezvous can tell
        async with proxy(keynet.Identity.from_pem(alice.to_pem()), server.address) as newer:
            lost = await wait_for(events, keynet.RendezvousLost)
            assert isinstance(lost, keynet.RendezvousLost)
            assert isinstance(lost.error, keynet.IdentityInUse)
            assert lost.error.reason == "identity_in_use"
            assert "identity of its own" in lost.error.advice
            (status,) = older.status().rendezvous
            assert not status.connected
            assert isinstance(status.error, keynet.IdentityInUse)
            with pytest.raises(keynet.IdentityInUse):
                await older.ping(bob.node_id, timeout=20)
            # longer than the first pauses between two attempts: nobody knocks the newer one off
            await asyncio.sleep(2.5)
            assert newer.status().rendezvous[0].connected
            assert server.stats()["registrations"] == 2
            assert server.stats()["replaced"] == 1
            # with a key of its own it is another node
            older.rotate(keynet.Identity.generate())
            await wait_for(events, keynet.RendezvousConnected)
            await newer.close(drain=False)
        await older.close(drain=False)


@pytest.mark.parametrize("kind", ["closed", "silent", "nameless"])
async def test_a_rendezvous_that_does_not_answer_has_its_own_text_while_it_is_tried(
    kind: str, alice: keynet.Identity, bob: keynet.Identity, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        if kind == "closed":
            taken.close()
        host = "no-such-host.invalid" if kind == "nameless" else "127.0.0.1"
        wanted = {"closed": f"UDP port {port} of 127.0.0.1 is closed", "silent": "nothing comes back", "nameless": host}
        async with proxy(alice, f"{bob.node_id}@{host}:{port}") as node:
            lost = await wait_for(node.events(), keynet.RendezvousLost)
            assert isinstance(lost, keynet.RendezvousLost)
            assert wanted[kind] in lost.error.detail
            assert lost.error.reason != "peer_offline"
            # the event and the line come by ways of their own
            await until(lambda: "no rendezvous" in caplog.text)
            with pytest.raises(keynet.DialError) as caught:
                await node.ping(bob.node_id, timeout=4)
            assert caught.value.reason != "peer_offline"
            await node.close(drain=False)

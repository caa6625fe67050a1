"""Nodes register at a rendezvous and signal each other, by plain gRPC over keynet."""

from __future__ import annotations

import asyncio
import os

import grpc
import grpc.aio
import pytest

import keynet
import keynet.grpc
import support
from keynet.rendezvous import SERVICE_PORT
from keynet.rendezvous._limits import MAX_BODY, Rate
from keynet.rendezvous.v1 import rendezvous_pb2 as pb
from nodes import Node, registered, rendezvous, stub, until

FAST = {"sender": Rate(1e6, 1e6), "pair": Rate(1e6, 1e6), "receiver": Rate(1e6, 1e6), "refusal_pause": 1e-6}


async def test_two_nodes(alice: keynet.Identity, bob: keynet.Identity) -> None:
    async with rendezvous() as server, registered(server, alice) as a, registered(server, bob) as b:
        assert a.welcome.refresh_seconds == 60
        assert a.welcome.observed.startswith("127.0.0.1:")
        assert a.welcome.observed != b.welcome.observed
        exchange = await a.send(b.key, b"offer")
        signal = await b.signal()
        assert (signal.node, signal.exchange, signal.body) == (a.key, exchange, b"offer")
        await b.send(signal.node, b"answer", exchange)
        signal = await a.signal()
        assert (signal.node, signal.exchange, signal.body) == (b.key, exchange, b"answer")
        # counted when gRPC has taken it, which the receiver may notice first
        await until(lambda: server.stats()["signals_delivered"] == 2)
        assert (server.stats()["registered"], server.stats()["signals"]) == (2, 2)


async def test_the_largest_body(alice: keynet.Identity, bob: keynet.Identity) -> None:
    async with rendezvous() as server, registered(server, alice) as a, registered(server, bob) as b:
        body = os.urandom(MAX_BODY)
        await a.send(b.key, body)
        assert (await b.signal()).body == body


async def test_stun_servers_are_in_the_welcome(alice: keynet.Identity) -> None:
    server = keynet.rendezvous.Server(
        keynet.Identity.generate(),
        listen="127.0.0.1:0",
        public_stun=["stun.example.org:3478"],
        settings=keynet.rendezvous.Settings(max_nodes=10, refresh=20),
    )
    async with server, registered(server, alice) as a:
        assert list(a.welcome.stun) == ["stun.example.org:3478"]
        assert a.welcome.refresh_seconds == 20


@pytest.mark.parametrize("node", [b"", b"k" * 31, b"k" * 33, b"k" * 30_000], ids=len)
async def test_a_name_of_wrong_size(node: bytes, alice: keynet.Identity) -> None:
    async with rendezvous() as server, registered(server, alice) as a:
        exchange = await a.send(node)
        assert await a.undelivered(exchange) == pb.CAUSE_INVALID


@pytest.mark.parametrize("exchange", [b"", b"e" * 15, b"e" * 17], ids=len)
async def test_an_exchange_of_wrong_size(exchange: bytes, alice: keynet.Identity, bob: keynet.Identity) -> None:
    async with rendezvous() as server, registered(server, alice) as a, registered(server, bob) as b:
        await a.send(b.key, exchange=exchange)
        assert await a.undelivered(exchange[:16]) == pb.CAUSE_INVALID


async def test_a_body_that_is_too_long(alice: keynet.Identity, bob: keynet.Identity) -> None:
    async with rendezvous() as server, registered(server, alice) as a, registered(server, bob) as b:
        exchange = await a.send(b.key, b"b" * (MAX_BODY + 1))
        assert await a.undelivered(exchange) == pb.CAUSE_INVALID
        await a.send(b.key, b"b" * (MAX_BODY + 100_000))
        assert (await a.ended())[0] == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert server.stats()["refused_invalid"] == 1


async def test_every_name_of_32_bytes_is_taken(alice: keynet.Identity) -> None:
    async with rendezvous(**FAST) as server, registered(server, alice) as a:
        for key in (bytes(32), b"\xff" * 32, *(os.urandom(32) for _ in range(20))):
            exchange = await a.send(key)
            assert await a.undelivered(exchange) == pb.CAUSE_OFFLINE
        assert server.stats()["refused_offline"] == 22


async def test_a_node_that_has_gone_is_offline(alice: keynet.Identity, bob: keynet.Identity) -> None:
    async with rendezvous() as server, registered(server, alice) as a:
        async with registered(server, bob) as b:
            await a.send(b.key)
            await b.signal()
        await until(lambda: server.stats()["registered"] == 1)
        exchange = await a.send(b.key)
        assert await a.undelivered(exchange) == pb.CAUSE_OFFLINE


async def test_a_node_that_finishes_is_answered_ok(alice: keynet.Identity) -> None:
    async with rendezvous() as server, registered(server, alice) as a:
        await a.call.done_writing()
        assert (await a.ended())[0] == grpc.StatusCode.OK


async def test_registering_again_replaces(alice: keynet.Identity, bob: keynet.Identity) -> None:
    async with rendezvous() as server, registered(server, alice) as a, registered(server, bob) as first:
        async with registered(server, bob) as second:
            code, detail = await first.ended()
            assert code == grpc.StatusCode.ABORTED
            assert detail
            await a.send(bob.node_id.public_key)
            assert (await second.signal()).node == a.key
            # the end of the first stream took nothing from the second
            await a.send(bob.node_id.public_key)
            assert (await second.signal()).node == a.key
        stats = server.stats()
        assert (stats["replaced"], stats["registrations"]) == (1, 3)


@pytest.mark.parametrize(
    "first", [pb.NodeMessage(refresh=pb.Refresh()), pb.NodeMessage(), pb.NodeMessage(signal=pb.Signal())], ids=str
)
async def test_the_first_message_must_be_a_hello(first: pb.NodeMessage, alice: keynet.Identity) -> None:
    async with rendezvous() as server, stub(server, alice) as made:
        node = Node(alice, made)
        await node.call.write(first)
        assert (await node.ended())[0] == grpc.StatusCode.INVALID_ARGUMENT
        assert server.stats()["registered"] == 0


async def test_a_hello_must_come(alice: keynet.Identity) -> None:
    async with rendezvous(hello_timeout=0.2) as server, stub(server, alice) as made:
        node = Node(alice, made)
        assert (await node.ended())[0] == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_second_hello_is_refused(alice: keynet.Identity) -> None:
    async with rendezvous() as server, registered(server, alice) as a:
        await a.call.write(pb.NodeMessage(hello=pb.Hello()))
        assert (await a.ended())[0] == grpc.StatusCode.INVALID_ARGUMENT


async def test_who_says_nothing_expires_and_who_refreshes_stays(alice: keynet.Identity, bob: keynet.Identity) -> None:
    async with rendezvous(refresh=1, expire_after=3) as server, registered(server, alice) as a:
        async with registered(server, bob) as b:
            silent = asyncio.create_task(b.ended())
            while not silent.done():
                await a.refresh()
                await asyncio.sleep(0.2)
            assert silent.result()[0] == grpc.StatusCode.DEADLINE_EXCEEDED
        exchange = await a.send(b.key)
        assert await a.undelivered(exchange) == pb.CAUSE_OFFLINE
        assert server.stats()["expired"] == 1


async def test_a_node_that_does_not_read(alice: keynet.Identity, bob: keynet.Identity) -> None:
    """What the connection holds is delivered, the queue fills, the sender is told of each, and the stream ends."""
    settings = {**FAST, "queue": 4, "in_flight": 1000, "write_timeout": 3.0}
    async with rendezvous(**settings) as server, registered(server, alice) as a, registered(server, bob) as b:
        causes: list[int] = []
        sent = 0

        async def listen() -> None:
            while True:
                causes.append((await a.read()).undelivered.cause)

        listening = asyncio.create_task(listen())
        while server.stats()["stuck"] == 0:
            await a.send(b.key, b"b" * MAX_BODY)
            sent += 1
            await asyncio.sleep(0.01)
        await until(lambda: server.stats()["signals_delivered"] + len(causes) == sent)
        listening.cancel()
        assert set(causes) == {pb.CAUSE_RECEIVER_BUSY, pb.CAUSE_OFFLINE}
        assert server.stats()["registered"] == 1
        assert server._registry.totals.queued_bytes == 0


async def test_the_rate_of_a_pair(alice: keynet.Identity, bob: keynet.Identity) -> None:
    settings = {**FAST, "pair": Rate(0.001, 5)}
    async with rendezvous(**settings) as server, registered(server, alice) as a, registered(server, bob) as b:
        exchanges = [await a.send(b.key) for _ in range(8)]
        assert [(await b.signal()).exchange for _ in range(5)] == exchanges[:5]
        for exchange in exchanges[5:]:
            assert await a.undelivered(exchange) == pb.CAUSE_RATE_LIMITED
        # another receiver is another pair
        assert await a.undelivered(await a.send(bytes(32))) == pb.CAUSE_OFFLINE


async def test_a_flood_harms_nobody_else(
    alice: keynet.Identity, bob: keynet.Identity, mallory: keynet.Identity
) -> None:
    """Thousands from one node: each is answered, few arrive, and another node's all do."""
    flood = 3000
    async with (
        rendezvous(refusal_pause=1e-6) as server,
        registered(server, alice) as a,
        registered(server, bob) as b,
        registered(server, mallory) as m,
    ):
        refused: list[int] = []

        async def shout() -> None:
            for _ in range(flood):
                await m.send(b.key)

        async def listen() -> None:
            while True:
                refused.append((await m.read()).undelivered.cause)

        tasks = [asyncio.create_task(shout()), asyncio.create_task(listen())]
        arrived = {a.key: 0, m.key: 0}
        for _ in range(10):
            exchange = await a.send(b.key)
            while True:
                signal = await b.signal()
                arrived[signal.node] += 1
                if signal.exchange == exchange:
                    break
        await tasks[0]
        await until(lambda: server.stats()["signals"] == flood + 10)
        await until(lambda: server.stats()["signals_delivered"] + len(refused) == flood + 10)
        tasks[1].cancel()
        assert arrived[a.key] == 10
        assert set(refused) == {pb.CAUSE_RATE_LIMITED}
        assert len(refused) > flood / 2


async def test_names_cannot_be_borrowed(alice: keynet.Identity, bob: keynet.Identity, mallory: keynet.Identity) -> None:
    """Whatever a sender writes into `node` is the receiver; the sender in a signal is the key that TLS proved."""
    async with rendezvous() as server, registered(server, bob) as b, registered(server, mallory) as m:
        await m.send(b.key, b"I am alice")
        assert (await b.signal()).node == m.key
        # and nothing in a Hello registers another's name
        exchange = await b.send(alice.node_id.public_key)
        assert await b.undelivered(exchange) == pb.CAUSE_OFFLINE


async def test_a_rotated_node_has_its_old_name_too(alice: keynet.Identity, bob: keynet.Identity) -> None:
    rotated = bob.rotate()
    async with rendezvous() as server, registered(server, alice) as a, registered(server, bob) as before:
        async with registered(server, rotated) as after:
            assert (await before.ended())[0] == grpc.StatusCode.ABORTED
            for name in rotated.node_ids:
                await a.send(name.public_key)
                assert (await after.signal()).node == a.key
            await after.send(a.key)
            assert (await a.signal()).node == rotated.node_id.public_key
            assert (server.stats()["registered"], server.stats()["names"]) == (2, 3)
        await until(lambda: server.stats()["names"] == 1)


async def test_a_full_rendezvous(alice: keynet.Identity, bob: keynet.Identity) -> None:
    async with rendezvous(max_nodes=1) as server, registered(server, alice) as a, stub(server, bob) as made:
        node = Node(bob, made)
        await node.call.write(pb.NodeMessage(hello=pb.Hello()))
        assert (await node.ended())[0] == grpc.StatusCode.RESOURCE_EXHAUSTED
        # who is there may come again
        async with registered(server, alice):
            assert (await a.ended())[0] == grpc.StatusCode.ABORTED


async def test_registering_too_often(alice: keynet.Identity) -> None:
    async with rendezvous(registrations=Rate(0.001, 2)) as server, stub(server, alice) as made:
        for _ in range(2):
            await Node(alice, made).hello()
        node = Node(alice, made)
        await node.call.write(pb.NodeMessage(hello=pb.Hello()))
        assert (await node.ended())[0] == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert server.stats()["registrations_refused"] == 1


async def test_nodes_of_one_network_that_register_too_often_are_told_so(
    alice: keynet.Identity, bob: keynet.Identity, mallory: keynet.Identity
) -> None:
    """New keys cost an attacker nothing; another network would not suffer."""
    async with rendezvous(network_registrations=Rate(0.001, 2)) as server:
        async with registered(server, alice), registered(server, bob), stub(server, mallory) as made:
            node = Node(mallory, made)
            await node.call.write(pb.NodeMessage(hello=pb.Hello()))
            code, detail = await node.ended()
        assert (code, "of this network" in detail) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True)


async def test_only_who_comes_through_keynet_is_served() -> None:
    async with rendezvous() as server, grpc.aio.insecure_channel(server._backend) as channel:
        from keynet.rendezvous.v1 import rendezvous_pb2_grpc as rpc

        node = Node(keynet.Identity.generate(), rpc.RendezvousStub(channel))
        assert (await node.ended())[0] == grpc.StatusCode.UNAUTHENTICATED


async def test_closing_tells_the_nodes(alice: keynet.Identity) -> None:
    async with rendezvous() as server, registered(server, alice) as a:
        closing = asyncio.create_task(server.close())
        assert (await a.ended())[0] == grpc.StatusCode.UNAVAILABLE
        await closing
        await server.close()


@pytest.mark.parametrize("greets", [False, True], ids=["at once", "after a Hello"])
async def test_what_is_no_message_is_refused_and_makes_no_noise(
    greets: bool, alice: keynet.Identity, caplog: pytest.LogCaptureFixture
) -> None:
    """A stranger writes no tracebacks into the log of a rendezvous."""
    async with rendezvous() as server:
        name, _, address = server.address.partition("@")
        async with support.proxy(alice) as proxy:
            proxy.add_peer(name, [address])
            async with keynet.grpc.aio_channel(proxy, name, SERVICE_PORT) as channel:
                method = "/keynet.rendezvous.v1.Rendezvous/Register"
                call = channel.stream_stream(method, request_serializer=bytes, response_deserializer=bytes)()
                if greets:
                    await call.write(pb.NodeMessage(hello=pb.Hello()).SerializeToString())
                    assert await call.read()
                await call.write(b"\xff\xff\xff")
                assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
            await proxy.close(drain=False)
    assert [record.message for record in caplog.records if record.levelname in ("ERROR", "WARNING")] == []

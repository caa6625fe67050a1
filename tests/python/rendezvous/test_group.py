"""Several rendezvous that a real NATS server joins to a group."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pathlib
import signal
from collections.abc import AsyncIterator, Iterator

import pytest
from nats.aio.client import Client

import keynet
from keynet.demo.run import Process
from keynet.rendezvous import Server, Settings, _group
from keynet.rendezvous._limits import MAX_BODY, Rate
from keynet.rendezvous.v1 import rendezvous_pb2 as pb
from nodes import NatsServer, Node, nats_server, registered, rendezvous, until

RATES = {"sender": Rate(1e6, 1e6), "pair": Rate(1e6, 1e6), "receiver": Rate(1e6, 1e6)}


@pytest.fixture
def nats(tmp_path: pathlib.Path) -> Iterator[NatsServer]:
    with nats_server(tmp_path) as server:
        yield server


@contextlib.asynccontextmanager
async def group(nats: NatsServer, count: int) -> AsyncIterator[list[Server]]:
    async with contextlib.AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(rendezvous(nats.url, **RATES)) for _ in range(count)]
        await connected(*servers)
        yield servers


async def connected(*servers: Server) -> None:
    await until(lambda: all(server.stats()["group_connected"] for server in servers))


async def meet(server: Server, sender: Node, receiver: Node) -> None:
    """Signals until one arrives: that a node has registered takes a moment to be known everywhere."""
    while True:
        before = server.stats()
        exchange = await sender.send(receiver.key, b"b" * MAX_BODY)
        await until(lambda before=before: settled(server.stats()) > settled(before))
        if server.stats()["signals_delivered"] > before["signals_delivered"]:
            arrived = await receiver.signal()
            assert (arrived.exchange, arrived.node) == (exchange, sender.key)
            return
        assert await sender.undelivered(exchange) in (pb.CAUSE_OFFLINE, pb.CAUSE_UNAVAILABLE)
        await asyncio.sleep(0.05)


def settled(stats: dict[str, int]) -> int:
    return sum(count for name, count in stats.items() if name == "signals_delivered" or name.startswith("refused_"))


async def test_three_instances(
    nats: NatsServer, alice: keynet.Identity, bob: keynet.Identity, mallory: keynet.Identity, tmp_path: pathlib.Path
) -> None:
    """Nodes at different instances meet; when one instance is killed its node is offline, and the others go on."""
    flags = ["--identity", str(tmp_path / "three.pem"), "--listen", "127.0.0.1:0", "--nats", nats.url, "--json"]
    async with group(nats, 2) as (one, two), registered(one, alice) as a, registered(two, bob) as b:
        with Process("keynet", "rendezvous", *flags) as three:
            where = three.expect("ready")["rendezvous"]
            async with registered(where, mallory) as c:
                for server, sender, receiver in ((one, a, b), (two, b, a), (one, a, c), (two, b, c)):
                    await meet(server, sender, receiver)
                await c.send(a.key, b"from three")
                assert (await a.signal()).node == c.key
                assert two.stats()["signals_from_group"] >= 1
                # nobody has this one
                assert await a.undelivered(await a.send(bytes(32))) == pb.CAUSE_OFFLINE
                os.kill(three.pid, signal.SIGKILL)
                await until(lambda: three._process.poll() is not None)
                # NATS sees its socket closed a moment later
                while (cause := await a.undelivered(await a.send(c.key))) != pb.CAUSE_OFFLINE:
                    assert cause == pb.CAUSE_UNAVAILABLE
        await meet(one, a, b)
        # its node finds another instance
        async with registered(two, mallory) as again:
            await meet(one, a, again)
            await meet(two, again, a)


async def test_a_node_at_two_instances(nats: NatsServer, alice: keynet.Identity, bob: keynet.Identity) -> None:
    """Each of its registrations gets the signal, and the sender hears nothing of a failure."""
    async with (
        group(nats, 3) as (one, two, three),
        registered(one, alice) as a,
        registered(two, bob) as first,
        registered(three, bob) as second,
    ):
        for server in (two, three):
            await until(lambda server=server: len(server._group._subscriptions) == 1)
            await server._group._client.flush()
        exchange = await a.send(bob.node_id.public_key)
        assert (await first.signal()).exchange == exchange
        assert (await second.signal()).exchange == exchange
        await until(lambda: one.stats()["signals_delivered"] == 1)


async def test_nats_dies_and_comes_back(
    nats: NatsServer, alice: keynet.Identity, bob: keynet.Identity, mallory: keynet.Identity
) -> None:
    async with (
        group(nats, 2) as (one, two),
        registered(one, alice) as a,
        registered(two, bob) as b,
        registered(one, mallory) as c,
    ):
        await meet(one, a, b)
        nats.kill()
        await until(lambda: not one.stats()["group_connected"])
        assert await a.undelivered(await a.send(b.key)) == pb.CAUSE_UNAVAILABLE
        # nodes of one instance do not need it
        await meet(one, a, c)
        await meet(one, c, a)
        nats.start()
        await connected(one, two)
        await meet(one, a, b)
        await meet(two, b, c)


async def test_nodes_that_come_and_go_while_nats_is_away(
    nats: NatsServer, alice: keynet.Identity, bob: keynet.Identity, mallory: keynet.Identity
) -> None:
    async with group(nats, 2) as (one, two), registered(one, alice) as a:
        async with registered(two, mallory) as c:
            await meet(one, a, c)
            nats.kill()
            await until(lambda: not two.stats()["group_connected"])
        async with registered(two, bob) as b:
            await until(lambda: two.stats()["registered"] == 1)
            nats.start()
            await connected(one, two)
            await meet(one, a, b)
            assert await a.undelivered(await a.send(c.key)) == pb.CAUSE_OFFLINE


async def test_without_nats_from_the_start(nats: NatsServer, alice: keynet.Identity, bob: keynet.Identity) -> None:
    nats.kill()
    async with rendezvous(nats.url, **RATES) as one, registered(one, alice) as a:
        async with registered(one, bob) as b:
            await meet(one, a, b)
        await until(lambda: one.stats()["registered"] == 1)
        assert await a.undelivered(await a.send(b.key)) == pb.CAUSE_UNAVAILABLE
        nats.start()
        await connected(one)
        async with rendezvous(nats.url, **RATES) as two, registered(two, bob) as b:
            await connected(two)
            await meet(one, a, b)


async def test_a_client_that_has_given_up_is_replaced(
    nats: NatsServer, alice: keynet.Identity, bob: keynet.Identity
) -> None:
    async with group(nats, 2) as (one, two), registered(one, alice) as a, registered(two, bob) as b:
        await meet(one, a, b)
        given_up = two._group._client
        await given_up.close()
        await until(lambda: two._group._client is not given_up)
        await connected(two)
        await meet(one, a, b)
        await meet(two, b, a)


async def test_closing_while_it_connects(nats: NatsServer) -> None:
    for turns in range(60):
        joining = _group.Group(nats.url, Settings(), lambda *_: None)
        joining.start()
        for _ in range(turns):
            await asyncio.sleep(0)
        await asyncio.wait_for(joining.close(), 30)
        assert not joining.is_connected


async def test_an_instance_that_does_not_answer(nats: NatsServer, alice: keynet.Identity, bob: keynet.Identity) -> None:
    silent = await _client(nats)
    await silent.subscribe(_group.PREFIX + bob.node_id, cb=_nothing)
    await silent.flush()
    async with rendezvous(nats.url, group_timeout=0.2, **RATES) as one, registered(one, alice) as a:
        await connected(one)
        assert await a.undelivered(await a.send(bob.node_id.public_key)) == pb.CAUSE_UNAVAILABLE
        assert one._group._requests == 0
    await silent.close()


async def test_the_number_of_requests_is_bounded(
    nats: NatsServer, alice: keynet.Identity, bob: keynet.Identity
) -> None:
    silent = await _client(nats)
    await silent.subscribe(_group.PREFIX + bob.node_id, cb=_nothing)
    await silent.flush()
    async with rendezvous(nats.url, max_group_requests=3, **RATES) as one, registered(one, alice) as a:
        await connected(one)
        exchanges = [await a.send(bob.node_id.public_key) for _ in range(4)]
        # the fourth finds no room, and is answered before those that wait
        assert await a.undelivered(exchanges[3]) == pb.CAUSE_UNAVAILABLE
        for exchange in exchanges[:3]:
            assert await a.undelivered(exchange) == pb.CAUSE_UNAVAILABLE
    await silent.close()


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"nonsense",
        b"\xff" * 100,
        pb.Signal(node=b"n" * 31, exchange=b"e" * 16).SerializeToString(),
        pb.Signal(node=b"n" * 32, exchange=b"e" * 15).SerializeToString(),
        pb.Signal(node=b"n" * 32, exchange=b"e" * 16, body=bytes(MAX_BODY + 1)).SerializeToString(),
        pb.Signal(node=b"n" * 32, exchange=b"e" * 16, body=bytes(400_000)).SerializeToString(),
    ],
    ids=len,
)
async def test_what_is_no_signal_is_refused(payload: bytes, nats: NatsServer, bob: keynet.Identity) -> None:
    hostile = await _client(nats)
    async with group(nats, 1) as (one,), registered(one, bob) as b:
        await until(lambda: len(one._group._subscriptions) == 1)
        await one._group._client.flush()
        subject = _group.PREFIX + bob.node_id
        await hostile.publish(subject, payload)
        answer = await hostile.request(subject, payload, timeout=10)
        assert pb.Undelivered.FromString(answer.data).cause == pb.CAUSE_INVALID
        good = pb.Signal(node=b"n" * 32, exchange=os.urandom(16), body=b"b")
        answer = await hostile.request(subject, good.SerializeToString(), timeout=10)
        assert pb.Undelivered.FromString(answer.data).cause == pb.CAUSE_UNSPECIFIED
        # the one that was fine is all that arrives
        assert await b.signal() == good
    await hostile.close()


@pytest.mark.parametrize(
    "answer", [b"nonsense", bytes(2000), pb.Undelivered(detail="x" * 5000).SerializeToString()], ids=len
)
async def test_nonsense_for_an_answer(
    answer: bytes, nats: NatsServer, alice: keynet.Identity, bob: keynet.Identity
) -> None:
    hostile = await _client(nats)

    async def reply(message: object) -> None:
        await message.respond(answer)

    await hostile.subscribe(_group.PREFIX + bob.node_id, cb=reply)
    await hostile.flush()
    async with group(nats, 1) as (one,), registered(one, alice) as a:
        assert await a.undelivered(await a.send(bob.node_id.public_key)) == pb.CAUSE_UNAVAILABLE
    await hostile.close()


@pytest.mark.parametrize("url", ["", "localhost", "http://host:1", "nats://", "nats://host:x", "nats://host:99999"])
def test_wrong_urls(url: str) -> None:
    with pytest.raises(keynet.InvalidArgument, match="nats://host:4222"):
        Server(keynet.Identity.generate(), nats=url)


async def _client(nats: NatsServer) -> Client:
    client = Client()
    await client.connect(nats.url)
    return client


async def _nothing(message: object) -> None:
    """Takes it and says nothing."""


class FakeNats:
    """As much of a NATS server as a client needs to say who it is."""

    def __init__(self, **info: object) -> None:
        self.heard: list[str] = []
        self._info = {
            "server_id": "X",
            "version": "2.10.0",
            "max_payload": 1 << 20,
            "headers": True,
            "proto": 1,
            **info,
        }
        self._reject = False
        self._writers: list[asyncio.StreamWriter] = []
        self.connections = 0

    @contextlib.asynccontextmanager
    async def serve(self, port: int = 0) -> AsyncIterator[int]:
        server = await asyncio.start_server(self._talk, "127.0.0.1", port)
        async with server:
            yield server.sockets[0].getsockname()[1]

    def reject(self) -> None:
        self._reject = True

    def hang_up(self) -> None:
        for writer in self._writers:
            writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.append(writer)
        with contextlib.suppress(OSError):
            writer.write(b"INFO " + json.dumps(self._info).encode() + b"\r\n")
            while line := await reader.readline():
                self.heard.append(line.decode(errors="replace"))
                if line.startswith(b"PING"):
                    writer.write(b"-ERR 'Authorization Violation'\r\n" if self._reject else b"PONG\r\n")
        writer.close()


@pytest.mark.parametrize("info", [{"auth_required": True}, {"auth_required": True, "tls_required": False}])
async def test_what_is_to_go_over_tls_never_goes_in_clear(
    info: dict[str, object], alice: keynet.Identity, caplog: pytest.LogCaptureFixture
) -> None:
    fake = FakeNats(**info)
    async with fake.serve() as port:
        url = f"tls://alice:top-secret-word@127.0.0.1:{port}"
        async with Server(alice, listen="127.0.0.1:0", nats=url) as server:
            await until(lambda: fake.connections >= 2)
            group = server.group
            assert group is not None
            assert not group.connected
            assert "no TLS" in str(group.error)
            assert group.nats == f"127.0.0.1:{port}"
    assert not fake.heard
    assert "top-secret" not in caplog.text


async def test_tls_that_is_offered_is_taken(alice: keynet.Identity) -> None:
    fake = FakeNats(tls_available=True)
    async with fake.serve() as port, Server(alice, listen="127.0.0.1:0", nats=f"tls://a:top-secret@127.0.0.1:{port}"):
        await until(lambda: bool(fake.heard) or fake.connections >= 2)
    # a ClientHello, if anything: nothing that could be read
    assert not any("CONNECT" in line or "top-secret" in line for line in fake.heard)


async def test_trouble_with_nats_is_said_once_when_it_begins_and_once_when_it_ends(
    alice: keynet.Identity, caplog: pytest.LogCaptureFixture
) -> None:
    def said() -> list[str]:
        return [text for _, level, text in caplog.record_tuples if level >= 30 and text.startswith("NATS")]

    fake = FakeNats(auth_required=True)
    fake.reject()
    async with (
        fake.serve() as port,
        Server(alice, listen="127.0.0.1:0", nats=f"nats://a:wrong-password@127.0.0.1:{port}") as server,
    ):
        await until(lambda: fake.connections >= 3)
        assert server.group is not None
        assert not server.group.connected
        assert "check the user and the password" in str(server.group.error)
        assert len(said()) == 1
        fake._reject = False
        await until(lambda: server.group is not None and server.group.connected)
        await until(lambda: len(said()) >= 2)
        assert "reached again" in said()[1]
        assert server.group.error is None
    assert len(said()) == 2
    assert "wrong-password" not in caplog.text


async def test_a_complaint_of_nats_while_connected_does_not_hide_an_outage(
    alice: keynet.Identity, caplog: pytest.LogCaptureFixture
) -> None:
    def said() -> list[str]:
        return [text for _, level, text in caplog.record_tuples if level >= 30 and text.startswith("NATS")]

    fake = FakeNats()
    async with (
        fake.serve() as port,
        Server(alice, listen="127.0.0.1:0", nats=f"nats://127.0.0.1:{port}") as server,
    ):
        await until(lambda: server.group is not None and server.group.connected)
        assert server._group is not None
        await server._group._failed(ValueError("slow consumer"))
        assert server.group is not None
        assert server.group.error is None
        before = len(said())
        assert "slow consumer" in said()[-1]
        fake.reject()
        fake.hang_up()
        await until(lambda: len(said()) > before)
        assert "it is tried again" in said()[before]


async def test_ready_does_not_claim_a_group_that_is_not_reached(tmp_path: pathlib.Path) -> None:
    arguments = ["--identity", str(tmp_path / "r.pem"), "--listen", "127.0.0.1:0", "--nats", "nats://127.0.0.1:9"]
    with Process("keynet", "rendezvous", *arguments, "--json") as process:
        group = process.expect("ready")["group"]
        process._process.send_signal(signal.SIGTERM)
        process.finish()
    assert (group["nats"], group["connected"]) == ("127.0.0.1:9", False)
    assert group["error"]

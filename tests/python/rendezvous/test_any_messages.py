"""Whatever nodes say, in whatever order: the rendezvous raises nothing, holds no more than it may, and serves others.

The service runs whole, on streams that a seed writes. `KEYNET_CASES` asks for more seeds, a thousandth of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
from typing import Any

import grpc
import pytest
from google.protobuf.message import DecodeError

import keynet
from keynet.rendezvous._limits import MAX_BODY, Rate, Settings, network_of
from keynet.rendezvous._registry import Registration, Registry
from keynet.rendezvous._router import Router
from keynet.rendezvous._service import Service
from keynet.rendezvous._stats import Stats
from keynet.rendezvous.v1 import rendezvous_pb2 as pb

SEEDS = max(12, int(os.environ.get("KEYNET_CASES", "0")) // 1000)
STEPS = 300
# for the loop to take every step that is possible
TURNS = 12
SETTINGS = Settings(
    max_nodes=40,
    network_least=5,
    queue=20,
    queue_bytes=100_000,
    queue_of_sender=8,
    total_queue_bytes=120_000,
    in_flight=16,
    max_exchanges=200,
    max_buckets=100,
    receiver=Rate(1e6, 1e6),
    refusal_pause=1e-6,
    # nothing here waits for the clock of the machine
    hello_timeout=3600.0,
    write_timeout=3600.0,
)
KEYS = [number.to_bytes(32, "big") for number in range(1000, 1030)]
"""Names of nodes."""


class Aborted(Exception):
    """How gRPC ends a handler."""


class Stream:
    """One stream of a node, as gRPC gives it to the service."""

    def __init__(self, key: bytes, older: list[bytes], address: str) -> None:
        self.names = tuple(keynet.NodeId.from_public_key(one) for one in (key, *older))
        self.node_ids, self.node_id, self.remote_address = self.names, self.names[0], address
        self.inbox: asyncio.Queue[Any] = asyncio.Queue()
        self.outbox: list[pb.RendezvousMessage] = []
        self.reads, self.ended = asyncio.Event(), ""
        self.reads.set()

    async def read(self) -> Any:
        message = await self.inbox.get()
        if isinstance(message, Exception):
            raise message
        return message

    async def write(self, message: pb.RendezvousMessage) -> None:
        await self.reads.wait()
        self.outbox.append(message)

    async def abort(self, code: grpc.StatusCode, details: str = "") -> None:
        self.ended = f"{code.name}: {details}"
        raise Aborted


class Broken(grpc.RpcError):
    """The network has ended a stream."""


class Play:
    """A rendezvous and its nodes, for one seed."""

    def __init__(self, seed: int) -> None:
        self.random, self.now = random.Random(seed), 0.0
        self.names: set[keynet.NodeId] = set()
        self.registry = Registry(SETTINGS, appeared=self.names.add, gone=self.names.discard)
        self.router = Router(SETTINGS, self.registry, Stats(), lambda: self.now, None)
        service: Any = Service(
            SETTINGS,
            self.registry,
            self.router,
            Stats(),
            stun=[],
            clock=lambda: self.now,
            peer=lambda context: context,  # type: ignore[arg-type, return-value]
        )
        self.service: Service = service
        self.streams: dict[asyncio.Task[None], Stream] = {}
        self.exchanges = [self.random.randbytes(16) for _ in range(8)]

    def opens(self, stream: Stream) -> Stream:
        self.streams[asyncio.create_task(self.service.Register(None, stream))] = stream  # type: ignore[arg-type]
        return stream

    async def settle(self) -> None:
        for _ in range(TURNS):
            await asyncio.sleep(0)
        for task in [task for task in self.streams if task.done()]:
            del self.streams[task]
            # nothing but what gRPC itself raises
            with contextlib.suppress(Aborted):
                task.result()

    async def close(self) -> None:
        self.service.close()
        for stream in self.streams.values():
            stream.inbox.put_nowait(grpc.aio.EOF)
            stream.reads.set()
        await self.settle()
        for task in self.streams:
            task.cancel()
        await asyncio.gather(*self.streams, return_exceptions=True)

    def anybody(self) -> bytes:
        # a few have the most company
        kinds = [
            self.random.choice(KEYS[: self.random.choice([2, 4, 30])]),
            self.random.randbytes(32),
            bytes(32),
            self.random.randbytes(31),
            b"",
        ]
        return self.random.choices(kinds, [20, 2, 1, 1, 1])[0]

    def message(self) -> Any:
        """What a node may say, and what it may not."""
        draw = self.random
        exchange = draw.choice([*self.exchanges, draw.randbytes(16), draw.randbytes(draw.randrange(40))])
        size = draw.choice([0, 1, 100, 700, 5_000, MAX_BODY, MAX_BODY + 1])
        signal = pb.Signal(node=self.anybody(), exchange=exchange, body=bytes(size), observed=draw.choice(["", "x"]))
        relays = ["turn:" + "x" * draw.choice([0, 1, 1_000])] * draw.choice([0, 1, 8, 500])
        said = draw.choices(
            [
                pb.NodeMessage(signal=signal),
                pb.NodeMessage(refresh=pb.Refresh()),
                pb.NodeMessage(uses=pb.Uses(relays=relays)),
                pb.NodeMessage(hello=pb.Hello(agent="\x1b[2J\n" * 100)),
                pb.NodeMessage(),
            ],
            [30, 3, 2, 1, 1],
        )[0]
        return said if draw.random() < 0.7 else self.mutated(said)

    def mutated(self, message: pb.NodeMessage) -> Any:
        """The same with some bytes changed, or cut: as protobuf still reads it, or does not."""
        raw = bytearray(message.SerializeToString())
        for _ in range(self.random.randint(1, 4)):
            if raw:
                raw[self.random.randrange(min(len(raw), 60))] = self.random.getrandbits(8)
        try:
            return pb.NodeMessage.FromString(bytes(raw[: self.random.randint(0, len(raw))]))
        except DecodeError:
            return DecodeError()

    def newcomer(self) -> None:
        draw = self.random
        address = f"192.0.{draw.randrange(4)}.{draw.randrange(3)}:{draw.randrange(1, 4)}"
        key, *older = draw.sample(KEYS[: draw.choice([4, 30])], draw.choice([1, 1, 2, 4]))
        stream = self.opens(Stream(key, older, address))
        hello = pb.NodeMessage(hello=pb.Hello(agent="x"))
        stream.inbox.put_nowait(hello if draw.random() < 0.9 else self.message())

    def step(self) -> None:
        draw = self.random
        self.now += draw.choice([0, 0.001, 0.1, 1.0, 1.0, 1.0, 40.0]) if draw.random() < 0.5 else 0
        streams = list(self.streams.values())[2:]  # the honest come first
        if not streams or draw.random() < 0.2:
            self.newcomer()
            return
        stream = draw.choice(streams)
        what = draw.random()
        if what < 0.75:
            stream.inbox.put_nowait(self.message())
        elif what < 0.85:
            # without end to one
            flood = pb.Signal(node=draw.choice(KEYS[:2]), body=bytes(draw.choice([10, 3_000, 30_000])))
            for _ in range(40):
                flood.exchange = draw.randbytes(16)
                copy = pb.NodeMessage()
                copy.signal.CopyFrom(flood)
                stream.inbox.put_nowait(copy)
        elif what < 0.87:
            stream.inbox.put_nowait(draw.choice([grpc.aio.EOF, Broken(), asyncio.InvalidStateError(), DecodeError()]))
        elif what < 0.97:
            # it reads no more, or goes on
            if draw.random() < 0.8:
                stream.reads.clear()
            else:
                stream.reads.set()
        else:
            self.service.expire()

    def holds_no_more_than_it_may(self) -> None:
        nodes = list(self.registry)
        assert len(nodes) <= SETTINGS.max_nodes
        networks = [network_of(node.observed) for node in nodes]
        assert all(networks.count(one) <= SETTINGS.max_nodes_per_network for one in set(networks))
        sockets = [node.observed for node in nodes]
        assert all(sockets.count(one) <= SETTINGS.max_nodes_per_socket for one in set(sockets))
        for node in nodes:
            assert_bounded(node)
        waiting = sum(node._bytes for node in nodes)
        assert self.registry.totals.queued_bytes == waiting, "what is counted is what waits"
        # beyond the total one signal waits for a node at most
        assert waiting <= SETTINGS.total_queue_bytes + len(nodes) * MAX_BODY
        assert self.names == set(self.registry._names), "who has come and gone is told"
        assert len(self.router._exchanges) <= SETTINGS.max_exchanges
        tables = (self.router._senders, self.router._pairs, self.service._arrivals, self.service._networks)
        assert all(len(table) <= SETTINGS.max_buckets for table in tables)


def assert_bounded(node: Registration) -> None:
    assert 0 <= node.in_flight <= SETTINGS.in_flight
    assert node._count == sum(map(len, node._parcels.values())) <= SETTINGS.queue
    assert node._bytes <= SETTINGS.queue_bytes
    assert all(0 < len(waiting) <= SETTINGS.queue_of_sender for waiting in node._parcels.values())
    # an answer for each signal that is under way, what it may have in its own queue, and what it is told at the start
    assert len(node._replies) <= 2 * SETTINGS.in_flight + 4


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_no_order_of_messages_breaks_anything(seed: int, caplog: pytest.LogCaptureFixture) -> None:
    play = Play(seed)
    try:
        with caplog.at_level(logging.WARNING, "keynet.rendezvous"):
            await _run(play, f"seed {seed}")
    finally:
        await play.close()
    assert caplog.messages == [], f"seed {seed}"
    assert len(play.registry) == 0
    assert play.registry.totals.queued_bytes == 0


async def _run(play: Play, seed: str) -> None:
    # of a network where nobody else is, with keys that nobody else has
    one, two = (play.opens(Stream(bytes([7, n]) + bytes(30), [], f"198.51.100.{n}:1")) for n in (1, 2))
    for stream in (one, two):
        stream.inbox.put_nowait(pb.NodeMessage(hello=pb.Hello(agent="honest")))
    await play.settle()
    for number in range(STEPS):
        play.step()
        await play.settle()
        play.holds_no_more_than_it_may()
        # they say something now and then, within their own rates; and that they are there
        if number % 10 == 0:
            play.now += 1.0
            exchange = number.to_bytes(16, "big")
            for sender, receiver in ((one, two), (two, one)):
                sender.inbox.put_nowait(pb.NodeMessage(refresh=pb.Refresh()))
                signal = pb.Signal(node=receiver.names[0].public_key, exchange=exchange, body=b"honest")
                sender.inbox.put_nowait(pb.NodeMessage(signal=signal))
            await play.settle()
            for stream in (one, two):
                assert stream.ended == "", f"{seed}, step {number}"
                got = [message.signal.exchange for message in stream.outbox]
                assert exchange in got, f"{seed}, step {number}: {stream.outbox[-3:]}"
                stream.outbox.clear()

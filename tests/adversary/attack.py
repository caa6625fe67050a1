"""What attacks have in common."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import itertools
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import grpc
import grpc.aio

import keynet
import keynet.grpc
from keynet.rendezvous.v1 import rendezvous_pb2 as pb
from keynet.rendezvous.v1 import rendezvous_pb2_grpc as rpc

TICK = 0.02
RENDEZVOUS_PORT = 7348


@dataclasses.dataclass(frozen=True)
class Where:
    """Whom it is against: the node, its UDP address, and a rendezvous as `rendezvous=` wants it."""

    node: str
    address: str
    rendezvous: str

    @property
    def key(self) -> bytes:
        return keynet.NodeId(self.node).public_key

    @property
    def socket(self) -> tuple[str, int]:
        return host_and_port(self.address)


class Attack:
    """`run` until `stop`; what it has done and met is in `counts`."""

    def __init__(
        self,
        where: Where,
        liked: Sequence[keynet.Identity],
        *,
        sources: int,
        keys: int,
        rate: int,
        rounds: int,
        seconds: float,
        **options: Any,
    ) -> None:
        self.where, self.liked, self.options = where, liked, options
        self.sources, self.keys, self.rate = sources, keys, rate
        self.begun, self.stop = asyncio.Event(), asyncio.Event()
        self.counts: collections.Counter[str] = collections.Counter()

    async def run(self) -> None:
        raise NotImplementedError

    async def paced(self) -> AsyncIterator[int]:
        """Numbers, `rate` a second, until the end; a machine that is too slow gives fewer."""
        numbers, began, given = itertools.count(), time.monotonic(), 0
        while not self.stop.is_set():
            due = int((time.monotonic() - began) * self.rate)
            # what was missed is not made up for at once
            for _ in range(min(due - given, max(1, int(self.rate * TICK * 4)))):
                yield next(numbers)
            given = due
            self.begun.set()
            await asyncio.sleep(TICK)

    async def together(self, works: Sequence[Any]) -> None:
        """Several at once; the first error of any is the attack's."""
        await asyncio.gather(*works)


class Nothing(Attack):
    """Somebody else attacks."""

    async def run(self) -> None:
        self.begun.set()
        await self.stop.wait()


def addresses(networks: int, each: int) -> Iterator[str]:
    """Source addresses of the strangers: `each` in so many IPv4 /24."""
    for network in range(networks):
        for host in range(each):
            yield f"20.{1 + network // 250}.{network % 250}.{1 + host}"


def host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


@contextlib.asynccontextmanager
async def tunnel(identity: keynet.Identity, where: Where, source: str) -> AsyncIterator[rpc.RendezvousStub]:
    """A way to the rendezvous, from an address of the strangers."""
    name, _, address = where.rendezvous.partition("@")
    async with keynet.Proxy(identity, listen=f"{source}:0", port_mapping=False) as proxy:
        proxy.add_peer(name, [address])
        async with keynet.grpc.aio_channel(proxy, name, RENDEZVOUS_PORT) as channel:
            yield rpc.RendezvousStub(channel)
        await proxy.close(drain=False)


class Session:
    """A registration of somebody who then says what he likes."""

    def __init__(self, stub: rpc.RendezvousStub) -> None:
        self.call = stub.Register()

    async def hello(self) -> None:
        """Raises `AioRpcError`, or `EOFError`, if the rendezvous has no place."""
        await self.call.write(pb.NodeMessage(hello=pb.Hello(agent="stranger")))
        if await self.call.read() is grpc.aio.EOF:
            raise EOFError(await self.call.details())

    async def say(self, to: bytes, exchange: bytes, body: bytes) -> None:
        # at the end of an attack the stream may have ended meanwhile
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await self.call.write(pb.NodeMessage(signal=pb.Signal(node=to, exchange=exchange, body=body)))

    async def heard(self) -> AsyncIterator[pb.RendezvousMessage]:
        """What comes, until the stream ends."""
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while (message := await self.call.read()) is not grpc.aio.EOF:
                yield message

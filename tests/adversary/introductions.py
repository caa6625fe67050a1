"""Attacks of who is registered at a rendezvous, or wants to be."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random

import grpc
import grpc.aio
from attack import RENDEZVOUS_PORT, Attack, Session, addresses, tunnel
from wire import ANSWER, INVITE, Introduction, whereabouts

import keynet
import keynet.grpc
from keynet.rendezvous.v1 import rendezvous_pb2_grpc as rpc

CANDIDATES = 16
# nodes at one address and port (`max_nodes_per_socket`)
OF_A_SOCKET = 4
# registrations that one socket tries at a time
UNDER_WAY = 64
# or gRPC would use the connection of the key before
OWN = [("grpc.use_local_subchannel_pool", 1)]


class Registered(Attack):
    """`keys` nodes that are registered, each from a network of its own; those that the node likes come first."""

    async def run(self) -> None:
        identities = [*self.liked, *(keynet.Identity.generate() for _ in range(self.keys - len(self.liked)))]
        sources = addresses(len(identities), 1)
        ready = asyncio.Semaphore(8)
        self._waiting = len(identities)

        async def one(identity: keynet.Identity, source: str) -> None:
            async with contextlib.AsyncExitStack() as stack:
                async with ready:
                    session = Session(await stack.enter_async_context(tunnel(identity, self.where, source)))
                    await session.hello()
                self.counts["registered"] += 1
                await self.attacks(identity, session, source)
                session.call.cancel()

        await self.together([one(*pair) for pair in zip(identities, sources, strict=True)])

    async def attacks(self, identity: keynet.Identity, session: Session, source: str) -> None:
        raise NotImplementedError

    async def every(self, seconds: float) -> None:
        """Waits, and no longer than until the end."""
        self.begun.set()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.stop.wait(), seconds)


class Invitations(Registered):
    """Invites without end: garbage of eight bytes, or (`genuine`) with a chain and a signature that hold."""

    async def attacks(self, identity: keynet.Identity, session: Session, source: str) -> None:
        listening = asyncio.create_task(self._listen(session))
        while not self.stop.is_set():
            if self.options.get("genuine"):
                invitation = Introduction(identity, self.where.key)
                exchange, body = invitation.exchange, invitation.invite
            else:
                exchange, body = os.urandom(16), bytes([INVITE]) + os.urandom(7)
            await session.say(self.where.key, exchange, body)
            self.counts["sent"] += 1
            await self.every(self.keys / self.rate)
        listening.cancel()

    async def _listen(self, session: Session) -> None:
        async for message in session.heard():
            kind = message.WhichOneof("kind")
            answered = kind == "signal" and message.signal.body[:1] == bytes([ANSWER])
            self.counts["answers" if answered else f"{kind}s"] += 1


class Aims(Registered):
    """Whoever is answered says that it is where a third party is, in as many meetings as it can have.

    `symmetric`: and that ports have to be searched for there. `known`: they have shaken hands with the node before.
    """

    async def attacks(self, identity: keynet.Identity, session: Session, source: str) -> None:
        if self.options.get("known"):
            # refused, and so a path to it is proven
            async with keynet.Proxy(identity, listen=f"{source}:0", port_mapping=False) as proxy:
                proxy.add_peer(self.where.node, [self.where.address])
                with contextlib.suppress(keynet.KeynetError):
                    await proxy.ping(self.where.node)
                await proxy.close(drain=False)
        open_: dict[bytes, Introduction] = {}
        listening = asyncio.create_task(self._listen(session, open_))
        while not self.stop.is_set():
            made = Introduction(identity, self.where.key)
            open_[made.exchange] = made
            await session.say(self.where.key, made.exchange, made.invite)
            self.counts["sent"] += 1
            await self.every(self.keys / self.rate)
        listening.cancel()

    async def _listen(self, session: Session, open_: dict[bytes, Introduction]) -> None:
        async for message in session.heard():
            signal = message.signal
            if message.WhichOneof("kind") != "signal" or signal.body[:1] != bytes([ANSWER]):
                continue
            self.counts["answers"] += 1
            made = open_.pop(signal.exchange, None)
            if made is not None:
                await session.say(self.where.key, made.exchange, made.go(signal.body, self._lie()))
                self.counts["goes"] += 1

    def _lie(self) -> bytes:
        hosts = [f"21.0.{n}.1" for n in range(CANDIDATES)] if self.options.get("many") else ["21.0.0.1"] * CANDIDATES
        candidates = [(host, random.randint(1024, 65535)) for host in hosts]
        return whereabouts(candidates, symmetric=bool(self.options.get("symmetric")))


class Registrations(Attack):
    """New keys without end: from `sources` networks, all of one network over one UDP socket each.

    Each stays for as long as it is let; those that give way and come again are counted.
    """

    async def run(self) -> None:
        await self.together([self._network(source) for source in addresses(self.sources, 1)])

    async def _network(self, source: str) -> None:
        name, _, address = self.where.rendezvous.partition("@")
        first = keynet.Identity.generate()
        async with keynet.Proxy(first, listen=f"{source}:0", port_mapping=False) as proxy:
            proxy.add_peer(name, [address])
            streams: set[asyncio.Task[None]] = set()
            while not self.stop.is_set():
                # what it has no answer to yet is bounded, or the attacker would fall over first
                if len(streams) < UNDER_WAY:
                    proxy.rotate(keynet.Identity.generate())
                    stream = asyncio.create_task(self._stay(proxy, name))
                    streams.add(stream)
                    stream.add_done_callback(streams.discard)
                    self.counts["tried"] += 1
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self.stop.wait(), self.sources / self.rate)
            for stream in streams:
                stream.cancel()
            await asyncio.gather(*streams, return_exceptions=True)
            await proxy.close(drain=False)

    async def _stay(self, proxy: keynet.Proxy, name: str) -> None:
        try:
            async with keynet.grpc.aio_channel(proxy, name, RENDEZVOUS_PORT, options=OWN) as channel:
                session = Session(rpc.RendezvousStub(channel))
                await session.hello()
                self.counts["registered"] += 1
                self.counts["there"] += 1
                self.begun_with_one()
                try:
                    async for _ in session.heard():
                        pass
                finally:
                    self.counts["there"] -= 1
                self.counts["gave_way"] += 1
        except (grpc.aio.AioRpcError, EOFError):
            self.counts["refused"] += 1
            self.begun_with_one()

    def begun_with_one(self) -> None:
        """The first answer of the rendezvous is when it begins."""
        self.begun.set()


class Crowds(Registrations):
    """Every place of a rendezvous is taken, by `sockets` in each of `sources` networks, with four nodes on each.

    Begins to count as an attack when `full` of them are there.
    """

    def begun_with_one(self) -> None:
        """It begins when everything is full."""

    async def run(self) -> None:
        per_network = int(self.options["sockets"])
        # a few at a time, so that the handshakes of one host do not wait for each other
        self._ready = asyncio.Semaphore(8)
        await self.together([self._network(source) for source in addresses(self.sources, per_network)])

    async def _network(self, source: str) -> None:
        name, _, address = self.where.rendezvous.partition("@")
        async with keynet.Proxy(keynet.Identity.generate(), listen=f"{source}:0", port_mapping=False) as proxy:
            proxy.add_peer(name, [address])
            streams: set[asyncio.Task[None]] = set()
            while not self.stop.is_set():
                if len(streams) < OF_A_SOCKET:
                    async with self._ready:
                        there = self.counts["registered"] + self.counts["refused"]
                        proxy.rotate(keynet.Identity.generate())
                        stream = asyncio.create_task(self._stay(proxy, name))
                        streams.add(stream)
                        stream.add_done_callback(streams.discard)
                        while self.counts["registered"] + self.counts["refused"] == there and not self.stop.is_set():
                            await asyncio.sleep(0.01)
                    self.counts["most_there"] = max(self.counts["most_there"], self.counts["there"])
                if self.counts["there"] < int(self.options["full"]):
                    await asyncio.sleep(0.01)
                else:
                    self.begun.set()
                    await asyncio.sleep(0.5)
            for stream in streams:
                stream.cancel()
            await asyncio.gather(*streams, return_exceptions=True)
            await proxy.close(drain=False)


ATTACKS: dict[str, type[Attack]] = {
    "invitations": Invitations,
    "aims": Aims,
    "registrations": Registrations,
    "crowds": Crowds,
}

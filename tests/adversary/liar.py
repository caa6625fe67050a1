"""A rendezvous that lies to its nodes, beside an honest one: a program to be commanded, as `node.py` is."""

from __future__ import annotations

import asyncio
import collections
import os
import random
from collections.abc import Callable
from typing import Any

from node import obey
from wire import ANSWER, DECLINED, GO, INVITE

import keynet
from keynet.rendezvous import Server
from keynet.rendezvous.v1 import rendezvous_pb2 as pb

# what a terminal would do: another title, a cleared screen, a line that looks like one of the log
STEERS = "\x1b]0;owned\x07\x1b[2J\r\nforged line\x85\u2028forged line\u202e\x9b31m"
TICK = 0.02


class Liar:
    """Each public coroutine is a command."""

    def __init__(self) -> None:
        self._server: Server | None = None
        self._flooding: asyncio.Task[None] | None = None
        self._exchanges: collections.deque[tuple[bytes, bytes]] = collections.deque(maxlen=64)
        self._counts: collections.Counter[str] = collections.Counter()

    async def start(self) -> dict[str, Any]:
        """Where it is, as `rendezvous=` wants it."""
        self._server = Server(keynet.Identity.generate(), listen="0.0.0.0:4433")
        await self._server.start()
        router: Any = self._server._router
        router._send = self._heard
        return {"node_id": str(self._server.node_id)}

    async def flood(self, rate: int) -> dict[str, Any]:
        """From now on it says so much a second to everybody."""
        self._flooding = asyncio.create_task(self._flood(rate))
        return {}

    async def counts(self) -> dict[str, Any]:
        """What it said, by kind."""
        return {"counts": dict(self._counts)}

    async def close(self) -> dict[str, Any]:
        """Nothing to end: the process ends."""
        return {}

    def _heard(self, receiver: keynet.NodeId, signal: pb.Signal, settle: Callable[..., None]) -> None:
        settle(None, "")
        self._counts["heard"] += 1
        # whoever sent it hears the answers of somebody else
        self._exchanges.append((signal.exchange, receiver.public_key))

    async def _flood(self, rate: int) -> None:
        assert self._server is not None
        while True:
            for node in list(self._server._registry):
                # what it does not read is not kept for it
                for _ in range(min(int(rate * TICK), 1000 - len(node._replies))):
                    kind, message = self._lie()
                    node.reply(message)
                    self._counts[kind] += 1
            await asyncio.sleep(TICK)

    def _lie(self) -> tuple[str, pb.RendezvousMessage]:
        exchange, other = os.urandom(16), os.urandom(32)
        if self._exchanges and random.random() < 0.8:
            exchange, other = random.choice(self._exchanges)
        which = random.choice((INVITE, ANSWER, ANSWER, ANSWER, GO, DECLINED, 0))
        if which == 0:
            cause = random.choice(list(pb.Cause.values()))
            told = pb.Undelivered(node=other, exchange=exchange, cause=cause, detail=STEERS)
            return "undelivered", pb.RendezvousMessage(undelivered=told)
        body = bytes([which]) + os.urandom(random.choice((0, 1, 100, 700, 2_000)))
        signal = pb.Signal(node=other, exchange=exchange, body=body)
        return f"signal {which}", pb.RendezvousMessage(
            signal=signal, observed=random.choice(("", STEERS, "21.0.0.1:9"))
        )


if __name__ == "__main__":
    asyncio.run(obey(Liar()))

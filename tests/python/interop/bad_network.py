"""pure_python endpoints on a network that loses, doubles and delays, and transfers over them."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random

from pure_python import utp
from pure_python.stream import Stream
from pure_python.utp import Endpoint


class Network(Endpoint):
    """An endpoint whose outgoing datagrams are lost, doubled and held back, by a seed."""

    loss = doubling = holding = 0.0
    rng = random.Random(0)

    def _send_raw(self, data: bytes, remote: utp.Address) -> None:
        if self.rng.random() < self.loss:
            return
        for _ in range(2 if self.rng.random() < self.doubling else 1):
            if self.rng.random() < self.holding:
                delay = self.rng.uniform(0.001, 0.02)
                asyncio.get_running_loop().call_later(delay, self._late, data, remote)
            else:
                super()._send_raw(data, remote)

    def _late(self, data: bytes, remote: utp.Address) -> None:
        with contextlib.suppress(ValueError):
            super()._send_raw(data, remote)


@contextlib.asynccontextmanager
async def pair(host: str = "127.0.0.1", capable: tuple[bool, bool] = (True, True), **conditions: float):
    """Two connected streams and their endpoints: (dialler, acceptor, a, b)."""
    a, b = (Network((host, 0), capable=c) for c in capable)
    for endpoint in (a, b):
        endpoint.rng = random.Random(1)
        for name, value in conditions.items():
            setattr(endpoint, name, value)
    try:
        dialler = await a.connect(host, b.address[1])
        yield dialler, await asyncio.wait_for(b.accept(), 10), a, b
    finally:
        a.close()
        b.close()


async def send(s: Stream, data: bytes, chunk: int = 50_000) -> None:
    for at in range(0, len(data), chunk):
        s.write(data[at : at + chunk])
        await s.drain()
    s.write_eof()


async def receive(s: Stream) -> bytes:
    data = bytearray()
    while more := await s.read():
        data += more
    return bytes(data)


async def exchange(x: Stream, y: Stream, sizes: tuple[int, int]) -> None:
    there, back = (random.Random(n).randbytes(n) for n in sizes)
    _, _, got_there, got_back = await asyncio.wait_for(
        asyncio.gather(send(x, there), send(y, back), receive(y), receive(x)), 60
    )
    assert hashlib.sha256(got_there).digest() == hashlib.sha256(there).digest()
    assert hashlib.sha256(got_back).digest() == hashlib.sha256(back).digest()

"""A UDP relay on loopback that loses, doubles and reorders: a bad network between programs that cannot be changed."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import Callable
from dataclasses import dataclass

SEED = 7
# the kernel's own losses, which no seed decides, stay away: a batch of the core is 64 KiB
SOCKET_BUFFER = 4 << 20
LARGEST = 1 << 16
# a held datagram is overtaken by up to so many, as by several queues of a router; it comes after a moment anyway
OVERTAKEN, MOMENT = 8, 0.02
# programs retry from the socket they have; nobody in these tests comes from more
MAX_CLIENTS = 8


@dataclass(frozen=True)
class Faults:
    """What happens in each direction, as shares of its datagrams."""

    loss: float = 0.0
    doubling: float = 0.0
    holding: float = 0.0
    delay: float = 0.0  # seconds, for every datagram


class Way:
    """One direction: its n-th datagram meets the same fate in every run."""

    def __init__(self, name: str, faults: Faults, send: Callable[[bytes], object]) -> None:
        self._faults, self._send = faults, send
        self._rng = random.Random(f"{SEED} {name}")
        self._held: dict[int, tuple[int, bytes]] = {}  # by number: which one may go before it
        self.seen = self.lost = 0

    def carry(self, data: bytes) -> None:
        self.seen += 1
        lost, held, doubled = (self._rng.random() for _ in range(3))
        overtaken = self._rng.randint(1, OVERTAKEN)
        if lost < self._faults.loss:
            self.lost += 1
        elif held < self._faults.holding:
            self._held[self.seen] = (self.seen + overtaken, data)
            asyncio.get_running_loop().call_later(MOMENT, self._release, self.seen)
        else:
            self._out(data)
            if doubled < self._faults.doubling:
                self._out(data)
        for number in [number for number, (until, _) in self._held.items() if until <= self.seen]:
            self._release(number)

    def _release(self, number: int) -> None:
        _, data = self._held.pop(number, (0, None))
        if data is not None:
            self._out(data)

    def _out(self, data: bytes) -> None:
        if self._faults.delay:
            asyncio.get_running_loop().call_later(self._faults.delay, self._arrive, data)
        else:
            self._arrive(data)

    def _arrive(self, data: bytes) -> None:
        with contextlib.suppress(OSError):  # nobody listens any more, or the relay has ended
            self._send(data)


class Relay:
    """Who sends to `port` talks to the target, as if from `source`."""

    def __init__(self, host: str, target: tuple[str, int], faults: Faults, source: str) -> None:
        self._target, self._faults, self._source = target, faults, source
        self._front = self._listen(host, self._from_clients)
        self._sockets = [self._front]
        self._ways: dict[tuple, Way] = {}
        self.port: int = self._front.getsockname()[1]

    @property
    def lost(self) -> int:
        return sum(way.lost for way in self._ways.values())

    def _listen(self, host: str, ready: Callable[[socket.socket], None]) -> socket.socket:
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        sock.setblocking(False)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER)
        sock.bind((host, 0))
        asyncio.get_running_loop().add_reader(sock, ready, sock)
        return sock

    def _from_clients(self, front: socket.socket) -> None:
        with contextlib.suppress(OSError):
            data, client = front.recvfrom(LARGEST)
            way = self._ways.get(client) or self._meet(client)
            if way:
                way.carry(data)

    def _meet(self, client: tuple) -> Way | None:
        number = len(self._sockets)
        if number > MAX_CLIENTS:
            return None
        back = Way(f"back {number}", self._faults, lambda data: self._front.sendto(data, client))

        def from_target(sock: socket.socket) -> None:
            with contextlib.suppress(OSError):
                back.carry(sock.recv(LARGEST))

        sock = self._listen(self._source, from_target)
        sock.connect(self._target)
        self._sockets.append(sock)
        there = Way(f"there {number}", self._faults, sock.send)
        self._ways |= {client: there, (number,): back}
        return there

    def close(self) -> None:
        for sock in self._sockets:
            asyncio.get_running_loop().remove_reader(sock)
            sock.close()


@contextlib.asynccontextmanager
async def relay(host: str, target: tuple[str, int], faults: Faults, source: str = ""):
    between = Relay(host, target, faults, source or host)
    try:
        yield between
    finally:
        between.close()

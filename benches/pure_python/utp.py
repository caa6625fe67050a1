"""The UDP socket of a node: dials and accepts uTP streams, and answers pings.

Acknowledgements go out once for each batch of datagrams read.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import time

from . import packet as wire
from . import stun
from .packet import RESET, SYN, Packet
from .stream import Address, Stream, now_micros

SOCKET_BUFFER = 4 << 20
# The waits between SYNs, then each second (docs/protocol.md section 2).
SYN_SCHEDULE = (0.033, 0.034, 0.066, 0.134, 0.266, 0.534, 1.066)
CONNECT_TIMEOUT, HALF_OPEN = 15.0, 10.0
BATCH = 64  # datagrams read before acknowledgements go out
MAX_HALF_OPEN, MAX_STREAMS = 256, 8192
RESETS_PER_SECOND = 100


class Endpoint:
    """One UDP socket: dials, accepts, and answers pings."""

    def __init__(self, listen: tuple[str, int], capable: bool = True) -> None:
        family = socket.AF_INET6 if ":" in listen[0] else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        if family == socket.AF_INET6:
            self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            self._socket.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER)
        self._socket.bind(listen)
        self.capable = capable
        self.sessions: dict[str, stun.PingKeys] = {}
        self._streams: dict[tuple[Address, int], Stream] = {}
        self._half_open: dict[Stream, float] = {}
        self._accepted: asyncio.Queue[Stream] = asyncio.Queue()
        self._pings: dict[bytes, tuple[Address, stun.PingKeys | None, asyncio.Future[tuple[str, int]]]] = {}
        self._reset_second, self._resets = 0.0, 0
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket, self._handle_readable)

    @property
    def address(self) -> tuple[str, int]:
        name = self._socket.getsockname()
        return name[0], name[1]

    async def resolve(self, host: str, port: int) -> Address:
        """The first address of a name, in the form that this socket takes (RFC 4291 section 2.5.5.2)."""
        found = await self._loop.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
        for family, _, _, _, address in found:
            if family == self._socket.family:
                return address  # type: ignore[return-value]
            if family == socket.AF_INET:
                return f"::ffff:{address[0]}", int(address[1]), 0, 0
        raise OSError(f"no usable address for {host}")

    async def connect(self, host: str, port: int, timeout: float = CONNECT_TIMEOUT) -> Stream:
        remote = await self.resolve(host, port)
        receive_id = random.randrange(0x10000)
        while (remote, receive_id) in self._streams:
            receive_id = random.randrange(0x10000)
        stream = Stream(self, remote, receive_id, receive_id + 1, None)
        self._streams[remote, stream.receive_id] = stream
        try:
            await asyncio.wait_for(self._dial(stream), timeout)
        except asyncio.TimeoutError as e:
            raise TimeoutError(f"no uTP answer from {host}:{port} in {timeout:.0f} s") from e
        finally:
            if not stream.connected.done():
                stream.fail(ConnectionAbortedError("given up"))
        return stream

    async def _dial(self, stream: Stream) -> None:
        for attempt in range(1000):
            stream.send_syn()
            wait = SYN_SCHEDULE[attempt] if attempt < len(SYN_SCHEDULE) else 1.0
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(asyncio.shield(stream.connected), wait)
                return

    async def accept(self) -> Stream:
        return await self._accepted.get()

    async def ping(
        self, host: str, port: int, keys: stun.PingKeys | None = None, timeout: float = 2.0
    ) -> tuple[str, int]:
        """The address under which the other side sees us."""
        remote, transaction = await self.resolve(host, port), os.urandom(12)
        future: asyncio.Future[tuple[str, int]] = self._loop.create_future()
        self._pings[transaction] = (remote, keys, future)
        try:
            self._send_raw(stun.ping(transaction, keys), remote)
            return await asyncio.wait_for(future, timeout)
        finally:
            del self._pings[transaction]

    def close(self) -> None:
        for stream in list(self._streams.values()):
            stream.reset()
        self._loop.remove_reader(self._socket)
        self._socket.close()

    def confirm(self, stream: Stream) -> None:
        self._half_open.pop(stream, None)
        self._accepted.put_nowait(stream)

    def forget(self, stream: Stream) -> None:
        self._half_open.pop(stream, None)
        self._streams.pop((stream.remote, stream.receive_id), None)

    def send(self, p: Packet, remote: Address) -> None:
        self._send_raw(p.encode(), remote)

    def _send_raw(self, data: bytes, remote: Address) -> None:
        with contextlib.suppress(OSError):  # a datagram that cannot be sent is a lost one
            self._socket.sendto(data, remote)

    def _handle_readable(self) -> None:
        touched: dict[Stream, None] = {}
        now = time.monotonic()
        for _ in range(BATCH):
            try:
                data, source = self._socket.recvfrom(2048)
            except OSError:
                break
            if stun.is_stun(data):
                self._handle_stun(data, source)
            elif p := wire.decode(data):
                stream = self._find(p, source, now)
                if stream:
                    stream.handle(p, now)
                    touched[stream] = None
        for stream in touched:
            stream.flush(now)

    def _find(self, p: Packet, source: Address, now: float) -> Stream | None:
        if p.kind == SYN:
            known = self._streams.get((source, p.connection_id + 1 & 0xFFFF))
            if known is None:
                self._accept(p, source, now)
            return known
        stream = self._streams.get((source, p.connection_id))
        if p.kind == RESET:  # may carry either of the two ids (UTP.md 2.2)
            for receive_id in (p.connection_id + 1 & 0xFFFF, p.connection_id - 1 & 0xFFFF):
                other = self._streams.get((source, receive_id))
                stream = stream or (other if other and other.send_id == p.connection_id else None)
        elif stream is None:
            self._send_reset(p, source, now)
        return stream

    def _accept(self, p: Packet, source: Address, now: float) -> None:
        for stream, since in list(self._half_open.items()):
            if now - since < HALF_OPEN and len(self._half_open) < MAX_HALF_OPEN:
                break
            stream.fail(TimeoutError("the dialler fell silent"))
        if len(self._streams) >= MAX_STREAMS:
            return
        stream = Stream(self, source, p.connection_id + 1, p.connection_id, p)
        self._streams[source, stream.receive_id] = stream
        self._half_open[stream] = now
        stream.send_syn_ack()

    def _send_reset(self, p: Packet, source: Address, now: float) -> None:
        if now - self._reset_second > 1:
            self._reset_second, self._resets = now, 0
        self._resets += 1
        if self._resets <= RESETS_PER_SECOND:
            reset = Packet(RESET, p.connection_id, now_micros(), 0, 0, random.randrange(0x10000), p.seq)
            self._send_raw(reset.encode(), source)

    def _handle_stun(self, data: bytes, source: Address) -> None:
        answer = stun.pong(data, (source[0], source[1]), self.sessions)
        if answer:
            self._send_raw(answer, source)
        elif (message := stun.decode(data)) and (seen := stun.observed(message)):
            remote, keys, future = self._pings.get(message.transaction, (None, None, None))
            if future and remote == source and not future.done() and (keys is None or message.signed_with(keys.key)):
                future.set_result(seen)

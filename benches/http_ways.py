"""The same HTTP requests by four ways: directly, over a static forward, with whole URLs, and by CONNECT.

    .venv/bin/python benches/http_ways.py [ROUNDS]

Two nodes on this machine, a plain asyncio server behind one of them, a client of raw sockets: what differs is the way
alone. The ways take turns in each round, so that what else the machine does meets all of them; each figure is the
median of the rounds.
"""

from __future__ import annotations

import asyncio
import base64
import multiprocessing
import socket
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

import keynet

PORT = 8000
SMALL, NEW, BIG = 200, 40, 64 << 20


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    block = bytes(1 << 18)
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            size = BIG if b" /big " in head else 16
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
            while size:
                part = block[:size]
                writer.write(part)
                await writer.drain()
                size -= len(part)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


def serve(tell: Connection) -> None:
    async def main() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        tell.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


class Client:
    """One way to the server."""

    def __init__(self, address: tuple[str, int], prefix: str = "", fields: str = "", opening: bytes = b"") -> None:
        self.address, self.prefix, self.fields, self.opening = address, prefix, fields, opening

    def connect(self) -> socket.socket:
        stream = socket.create_connection(self.address)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.opening:
            stream.sendall(self.opening)
            assert b" 200 " in stream.recv(4096)
        return stream

    def ask(self, stream: socket.socket, path: str, size: int) -> None:
        stream.sendall(f"GET {self.prefix}{path} HTTP/1.1\r\nHost: a\r\n{self.fields}\r\n".encode())
        got = b""
        while b"\r\n\r\n" not in got:
            got += stream.recv(4096)
        left = size - (len(got) - got.index(b"\r\n\r\n") - 4)
        buffer = bytearray(1 << 18)
        while left > 0:
            left -= stream.recv_into(buffer)

    def small(self) -> float:
        """Microseconds a request on one connection."""
        with self.connect() as stream:
            self.ask(stream, "/", 16)
            begin = time.perf_counter()
            for _ in range(SMALL):
                self.ask(stream, "/", 16)
            return (time.perf_counter() - begin) / SMALL * 1e6

    def new(self) -> float:
        """Microseconds a request, each on a connection of its own."""
        begin = time.perf_counter()
        for _ in range(NEW):
            with self.connect() as stream:
                self.ask(stream, "/", 16)
        return (time.perf_counter() - begin) / NEW * 1e6

    def big(self) -> float:
        """MB a second."""
        with self.connect() as stream:
            self.ask(stream, "/", 16)
            begin = time.perf_counter()
            self.ask(stream, "/big", BIG)
            return BIG / (time.perf_counter() - begin) / 1e6


def ways(near: keynet.sync.Proxy, far: keynet.sync.Proxy, forward: str, port: int) -> dict[str, Client]:
    def split(address: str) -> tuple[str, int]:
        return address.rsplit(":", 1)[0], int(address.rsplit(":", 1)[1])

    authority = f"{far.node_id}.keynet:{PORT}"
    token = base64.b64encode(":".join(near.credentials).encode()).decode()
    field = f"Proxy-Authorization: Basic {token}\r\n"
    opening = f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{field}\r\n".encode()
    proxy = split(near.forward_address)
    return {
        "direct": Client(("127.0.0.1", port)),
        "static forward": Client(split(forward)),
        "whole URLs": Client(proxy, prefix=f"http://{authority}", fields=field),
        "CONNECT": Client(proxy, opening=opening),
    }


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    hear, tell = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(tell,), daemon=True)
    server.start()
    port = hear.recv()
    one, two = keynet.Identity.generate(), keynet.Identity.generate()
    here = {"listen": "127.0.0.1:0", "forward": "127.0.0.1:0"}
    with (
        keynet.sync.Proxy(two, services={PORT: f"127.0.0.1:{port}"}, allow=[one.node_id], **here) as far,
        keynet.sync.Proxy(one, **here) as near,
    ):
        near.add_peer(far.node_id, [far.proxy_address])
        clients = ways(near, far, near.forward(far.node_id, PORT).address, port)
        measures: dict[str, Callable[[Client], float]] = {"small": Client.small, "new": Client.new, "big": Client.big}
        found: dict[tuple[str, str], list[float]] = {}
        for _ in range(rounds):
            for measure, run in measures.items():
                for way, client in clients.items():
                    found.setdefault((way, measure), []).append(run(client))
        print("| way | µs a small request | µs with a new connection | MB/s of one large answer |\n|---|---|---|---|")
        for way in clients:
            middle = [statistics.median(found[way, measure]) for measure in measures]
            ratios = [
                now / statistics.median(found["static forward", m]) for now, m in zip(middle, measures, strict=True)
            ]
            cells = [f"{now:,.0f} ({ratio:.2f})" for now, ratio in zip(middle, ratios, strict=True)]
            print(f"| {way} | {' | '.join(cells)} |")
        near.close(drain=False)
        far.close(drain=False)
    server.terminate()


if __name__ == "__main__":
    main()

"""A keynet node to be commanded by a test: a JSON object a line on standard input, an answer a line on standard output.

    {"id": 1, "do": "start", "listen": "[::]:0", "rendezvous": ["<node id>@203.0.113.11:4433"]}
    {"id": 2, "do": "connect", "node": "v...", "port": 7}
    {"id": 3, "do": "events"}

An answer has the `id` of its command, and `error` if the command could not be done; a connection that fails is an
answer like any other. Commands do not wait for each other. After `close` the same process can `start` another node, so
that many nodes cost one interpreter. The service behind a node echoes: raw bytes on TCP (7), a gRPC stream (8).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import json
import logging
import os
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import keynet

ECHO, STREAM = 7, 8
PAYLOAD = 4096
POLL = 0.02
LOG = "%(asctime)s %(name)s %(levelname)s %(message)s"


class Node:
    """The proxy, and the commands: each public coroutine is one."""

    def __init__(self) -> None:
        self.proxy: keynet.Proxy | None = None
        self._happened: list[dict[str, Any]] = []
        self._has_lost = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._servers: list[Any] = []
        self._stream: Any = None
        self._held: Any = None

    @property
    def _running(self) -> keynet.Proxy:
        if self.proxy is None:
            raise RuntimeError("start first")
        return self.proxy

    async def start(self, identity: str = "", stream: bool = False, **options: Any) -> dict[str, Any]:
        """Starts a node, with a new identity unless a file is named; `stream` offers the gRPC service too."""
        key = keynet.Identity.load_or_create(identity) if identity else keynet.Identity.generate()
        echoing = await asyncio.start_server(echo, "127.0.0.1", 0)
        self._servers = [echoing]
        services = {ECHO: "{}:{}".format(*echoing.sockets[0].getsockname())}
        if stream:
            import stream as streams

            server, services[STREAM] = await streams.serve()
            self._servers.append(server)
        self.proxy = keynet.Proxy(key, services=services, allow=keynet.ANYONE, **options)
        await self.proxy.start()
        self._happened, self._has_lost = [], False
        self.spawn(self._follow(self.proxy.events()))
        return {"node_id": self.proxy.node_id, "proxy_address": self.proxy.proxy_address}

    async def tell(self, node: str, addresses: list[str]) -> dict[str, Any]:
        """Tells where a node is."""
        self._running.add_peer(node, addresses)
        return {}

    async def expect(self, node: str, timeout: float = 15.0) -> dict[str, Any]:
        """Opens our NAT for a node; says which address it sees of us."""
        return dataclasses.asdict(await self._running.expect(node, timeout=timeout))

    async def registered(self, again: bool = False, timeout: float = 30.0) -> dict[str, Any]:
        """Waits until a rendezvous has this node and it knows what its NAT does, for so long at most; says whether.

        `again`: it must have lost a rendezvous since it started. Whether it is registered is asked and not followed,
        because the event may come before anybody reads events.
        """
        deadline = time.monotonic() + timeout
        while not self._is_registered() or (again and not self._has_lost):
            if time.monotonic() > deadline:
                return {"registered": False}
            await asyncio.sleep(POLL)
        return {"registered": True}

    def _is_registered(self) -> bool:
        status = self._running.status()
        return status.nat is not None and any(rendezvous.connected for rendezvous in status.rendezvous)

    async def connect(self, node: str, port: int = ECHO, hold: bool = False) -> dict[str, Any]:
        """A CONNECT: how long until the answer, whether a payload comes back, and by which path; or why not.

        `hold` leaves the connection open, for `use_held`.
        """
        proxy = self._running
        host, _, forward = proxy.forward_address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(forward))
        try:
            began = time.perf_counter()
            writer.write(_head(node, port, proxy.credentials))
            answer = (await reader.readuntil(b"\r\n\r\n")).decode()
            took = (time.perf_counter() - began) * 1000
            status = int(answer.split()[1])
            found: dict[str, Any] = {"status": status, "ms": took}
            if status != 200:
                hold = False
                return {**found, "answer": answer, **await self.explain(node)}
            self._held = reader, writer
            client = "{}:{}".format(*writer.get_extra_info("sockname"))
            info = proxy.connection_by_client(client)
            return {**found, **await self.use_held(), "path": info and info.remote_address}
        finally:
            if not hold:
                writer.close()

    async def use_held(self) -> dict[str, Any]:
        """Whether a payload comes back through the last connection."""
        reader, writer = self._held
        payload = os.urandom(PAYLOAD)
        writer.write(payload)
        return {"echoed": await reader.readexactly(PAYLOAD) == payload}

    async def explain(self, node: str) -> dict[str, Any]:
        """How a node is reached, and why the last connection to it failed."""
        explanation = str(self._running.explain(node))
        error = self._running.last_error(node)
        if error is None:
            return {"reason": None, "explanation": explanation}
        fields = {"reason": error.reason, "stage": error.stage, "detail": error.detail, "message": str(error)}
        return {**fields, "explanation": explanation}

    async def events(self) -> dict[str, Any]:
        """What has happened since this was asked last."""
        happened, self._happened = self._happened, []
        return {"events": happened}

    async def status(self) -> dict[str, Any]:
        """All that the node says of itself."""
        return {"status": dataclasses.asdict(self._running.status())}

    async def path(self, node: str) -> dict[str, Any]:
        """The address by which a node is reached now."""
        for peer in self._running.status().peers:
            if peer.node_id == node and peer.path:
                return {"path": peer.path.address}
        return {"path": ""}

    async def clock(self) -> dict[str, Any]:
        """What this process takes for the time."""
        return {"time": time.time()}

    async def stats(self) -> dict[str, Any]:
        """The counters."""
        return {"stats": self._running.stats()}

    async def stream(self, node: str, **options: Any) -> dict[str, Any]:
        """Begins a gRPC stream at full rate; `progress` and `finish` tell about it."""
        import stream as streams

        self._stream = streams.Stream(self._running, node, STREAM, **options)
        return {}

    async def progress(self) -> dict[str, Any]:
        """How far the stream is."""
        return dict(self._stream.report())

    async def finish(self) -> dict[str, Any]:
        """Ends the stream in good order; tells what came of it."""
        return dict(await self._stream.finish())

    async def close(self) -> dict[str, Any]:
        """Ends the node."""
        proxy, self.proxy = self.proxy, None
        if proxy is not None:
            await proxy.close(drain=False)
        for server in self._servers:
            # of asyncio or of gRPC
            if stop := getattr(server, "stop", None):
                await stop(None)
            else:
                server.close()
        return {}

    def spawn(self, work: Awaitable[None]) -> None:
        """Runs something beside everything else."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _follow(self, events: keynet.EventStream) -> None:
        async for event in events:
            name = type(event).__name__
            fields = {field.name: str(getattr(event, field.name)) for field in dataclasses.fields(event)}
            self._happened.append({"event": name, "at": time.time(), **fields})
            self._has_lost |= name == "RendezvousLost"


def _head(node: str, port: int, credentials: tuple[str, str]) -> bytes:
    basic = base64.b64encode(":".join(credentials).encode()).decode()
    target = f"{node}.keynet:{port}"
    return f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nProxy-Authorization: Basic {basic}\r\n\r\n".encode()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Sends back what comes."""
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def _answer(node: Any, line: str) -> None:
    command = json.loads(line)
    number, name = command.pop("id"), command.pop("do")
    try:
        work: Callable[..., Awaitable[dict[str, Any]]] = getattr(node, name)
        answer = await work(**command)
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps({"id": number, **answer}, default=str), flush=True)


async def obey(node: Any) -> None:
    """Does what standard input says, until it ends: each public coroutine of `node` is a command."""
    if prefix := os.environ.get("KEYNET_LAB_LOG"):
        # what the core says, a file for each process
        logging.basicConfig(filename=f"{prefix}-{os.getpid()}.log", level=logging.DEBUG, format=LOG)
    loop = asyncio.get_running_loop()
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    tasks: set[asyncio.Task[None]] = set()
    while line := (await commands.readline()).decode():
        task = asyncio.create_task(_answer(node, line))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await node.close()


if __name__ == "__main__":
    asyncio.run(obey(Node()))

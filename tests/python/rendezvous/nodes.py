"""A rendezvous and its nodes on this machine: plain gRPC clients that reach it through keynet."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pathlib
import socket
import subprocess
import sysconfig
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc
import grpc.aio

import keynet
import keynet.grpc
import support
from keynet.rendezvous import SERVICE_PORT, Server, Settings
from keynet.rendezvous.v1 import rendezvous_pb2 as pb
from keynet.rendezvous.v1 import rendezvous_pb2_grpc as rpc

PATIENCE = 30.0


class Node:
    """One stream of one node."""

    def __init__(self, identity: keynet.Identity, stub: rpc.RendezvousStub) -> None:
        self.identity = identity
        self.call = stub.Register()
        self.welcome = pb.Welcome()

    @property
    def key(self) -> bytes:
        return self.identity.node_id.public_key

    async def hello(self) -> Node:
        await self.call.write(pb.NodeMessage(hello=pb.Hello(agent="test/1")))
        self.welcome = (await self.read()).welcome
        return self

    async def read(self) -> pb.RendezvousMessage:
        message = await asyncio.wait_for(self.call.read(), PATIENCE)
        if message is grpc.aio.EOF:
            code, detail = await self.call.code(), await self.call.details()
            raise EOFError(f"{code.name}: {detail}")
        return message

    async def ended(self) -> tuple[grpc.StatusCode, str]:
        """How the rendezvous ends the stream; messages before that are dropped."""
        with contextlib.suppress(grpc.aio.AioRpcError):
            while await asyncio.wait_for(self.call.read(), PATIENCE) is not grpc.aio.EOF:
                pass
        return await self.call.code(), await self.call.details()

    async def refresh(self) -> None:
        await self.call.write(pb.NodeMessage(refresh=pb.Refresh()))

    async def send(self, to: bytes, body: bytes = b"hello", exchange: bytes | None = None) -> bytes:
        exchange = os.urandom(16) if exchange is None else exchange
        await self.call.write(pb.NodeMessage(signal=pb.Signal(node=to, exchange=exchange, body=body)))
        return exchange

    async def undelivered(self, exchange: bytes) -> pb.Cause:
        """The cause that the next message gives for this exchange."""
        message = await self.read()
        assert message.WhichOneof("kind") == "undelivered", message
        assert message.undelivered.exchange == exchange
        assert message.undelivered.detail
        return message.undelivered.cause

    async def signal(self) -> pb.Signal:
        message = await self.read()
        assert message.WhichOneof("kind") == "signal", message
        return message.signal


@contextlib.asynccontextmanager
async def stub(server: Server | str, identity: keynet.Identity) -> AsyncIterator[rpc.RendezvousStub]:
    """A node with a tunnel to the rendezvous; a text is what a rendezvous prints for nodes."""
    name, _, address = (server if isinstance(server, str) else server.address).partition("@")
    async with support.proxy(identity) as proxy:
        proxy.add_peer(name, [address])
        async with keynet.grpc.aio_channel(proxy, name, SERVICE_PORT) as channel:
            yield rpc.RendezvousStub(channel)
        await proxy.close(drain=False)


@contextlib.asynccontextmanager
async def registered(server: Server | str, identity: keynet.Identity) -> AsyncIterator[Node]:
    async with stub(server, identity) as made:
        node = Node(identity, made)
        yield await node.hello()
        node.call.cancel()


@contextlib.asynccontextmanager
async def rendezvous(nats: str | None = None, **settings: Any) -> AsyncIterator[Server]:
    identity = keynet.Identity.generate()
    settings.setdefault("max_nodes", 100)
    async with Server(identity, listen="127.0.0.1:0", nats=nats, settings=Settings(**settings)) as server:
        yield server


async def until(condition: Callable[[], bool]) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PATIENCE
    while not condition():
        assert loop.time() < deadline, "waited for too long"
        await asyncio.sleep(0.01)


class NatsServer:
    """A NATS server of this machine's own, on a free port, that can be killed and started again."""

    def __init__(self, folder: pathlib.Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"nats://127.0.0.1:{self.port}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        program = pathlib.Path(sysconfig.get_path("scripts"), "nats-server")
        with open(self._folder / "nats.log", "ab") as log:
            self._process = subprocess.Popen(
                [program, "-a", "127.0.0.1", "-p", str(self.port)], cwd=self._folder, stdout=log, stderr=log
            )
        deadline = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", self.port)):
                return
            assert time.monotonic() < deadline, (self._folder / "nats.log").read_text()
            time.sleep(0.01)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(PATIENCE)
            self._process = None


@contextlib.contextmanager
def nats_server(folder: pathlib.Path) -> Iterator[NatsServer]:
    server = NatsServer(folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()

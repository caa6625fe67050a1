"""What the tests of the Python package share. Everything runs on the loopback of this machine."""
# ruff: noqa: N802 - gRPC names methods so

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from concurrent import futures
from typing import Any

import grpc
import grpc.aio

import keynet
import keynet.grpc
from keynet.demo import greeter_pb2 as pb
from keynet.demo import greeter_pb2_grpc as rpc
from keynet.demo.server import Greeter

SERVICE = 50051
# where nodes are unless a test says otherwise: the fixture `host` sets it
HOST = "127.0.0.1"


class AskingGreeter(Greeter):
    """Tells each caller who it is."""

    def caller(self, context: Any) -> str:
        return keynet.grpc.peer(context).node_id

    def Countdown(self, request: Any, context: Any) -> Iterator[Any]:
        for number in super().Countdown(request, context):
            keynet.grpc.peer(context)
            yield number

    def Sum(self, request_iterator: Iterator[Any], context: Any) -> Any:
        keynet.grpc.peer(context)
        return super().Sum(request_iterator, context)


class AioGreeter(rpc.GreeterServicer):
    """The same on asyncio."""

    async def SayHello(self, request: Any, context: Any) -> Any:
        return pb.HelloReply(message=f"Hello, {request.name}!", caller=keynet.grpc.peer(context).node_id)

    async def Countdown(self, request: Any, context: Any) -> AsyncIterator[Any]:
        for value in range(request.count, 0, -1):
            keynet.grpc.peer(context)
            yield pb.Number(value=value, payload=b"\0" * request.payload_size)

    async def Sum(self, request_iterator: Any, context: Any) -> Any:
        keynet.grpc.peer(context)
        total = size = 0
        async for number in request_iterator:
            total += number.value
            size += len(number.payload)
        return pb.SumReply(sum=total, bytes=size)

    async def Chat(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        async for request in request_iterator:
            yield pb.HelloReply(message=f"Hello, {request.name}!", caller=keynet.grpc.peer(context).node_id)


@contextlib.contextmanager
def greeter(address: str, *interceptors: grpc.ServerInterceptor, servicer: Any = None) -> Iterator[str]:
    """A plain gRPC server; gives its address."""
    server = grpc.server(futures.ThreadPoolExecutor(8), interceptors=interceptors)
    rpc.add_GreeterServicer_to_server(servicer or AskingGreeter(), server)
    port = server.add_insecure_port(address)
    server.start()
    try:
        yield address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"
    finally:
        server.stop(None).wait()


@contextlib.asynccontextmanager
async def aio_greeter(address: str, *interceptors: grpc.aio.ServerInterceptor) -> AsyncIterator[str]:
    server = grpc.aio.server(interceptors=interceptors)
    rpc.add_GreeterServicer_to_server(AioGreeter(), server)
    port = server.add_insecure_port(address)
    await server.start()
    try:
        yield f"{address.rpartition(':')[0]}:{port}"
    finally:
        await server.stop(None)


def sync_proxy(identity: keynet.Identity, host: str | None = None, **options: Any) -> keynet.sync.Proxy:
    host = host or HOST
    return keynet.sync.Proxy(identity, listen=f"{host}:0", forward=f"{host}:0", **options)


def proxy(identity: keynet.Identity, host: str | None = None, **options: Any) -> keynet.Proxy:
    host = host or HOST
    return keynet.Proxy(identity, listen=f"{host}:0", forward=f"{host}:0", **options)


@contextlib.contextmanager
def sync_pair(
    caller: keynet.Identity, server: keynet.Identity, backend: str, host: str | None = None, **options: Any
) -> Iterator[tuple[keynet.sync.Proxy, keynet.sync.Proxy]]:
    """Two nodes in this process; the first knows where the second is."""
    options.setdefault("allow", [caller.node_id])
    with sync_proxy(server, host, services={SERVICE: backend}, **options) as second, sync_proxy(caller, host) as first:
        first.add_peer(second.node_id, [second.proxy_address])
        yield first, second
        first.close(drain=False)
        second.close(drain=False)


@contextlib.asynccontextmanager
async def pair(
    caller: keynet.Identity, server: keynet.Identity, backend: str, host: str | None = None, **options: Any
) -> AsyncIterator[tuple[keynet.Proxy, keynet.Proxy]]:
    options.setdefault("allow", [caller.node_id])
    async with (
        proxy(server, host, services={SERVICE: backend}, **options) as second,
        proxy(caller, host) as first,
    ):
        first.add_peer(second.node_id, [second.proxy_address])
        yield first, second
        await first.close(drain=False)
        await second.close(drain=False)


async def say_hello(caller: keynet.Proxy, node_id: keynet.NodeId) -> str:
    """One call of the greeter behind a node."""
    async with keynet.grpc.aio_channel(caller, node_id, SERVICE) as channel:
        call = rpc.GreeterStub(channel).SayHello(pb.HelloRequest(name="Ada"), timeout=60)
        return str((await call).message)

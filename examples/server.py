"""A gRPC server that only the nodes on its list can call, from wherever they are.

    python examples/server.py --rendezvous v…@HOST:7348 --allow v…

It is a plain grpc.aio server on a port of the loopback. The node beside it, in the same process, lets callers in by
their keys. Ctrl-C ends it. docs/tutorial.md goes through it on two machines.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio

import keynet
from keynet.demo import greeter_pb2 as pb
from keynet.demo import greeter_pb2_grpc as rpc

PORT = 50051
"""The name of the service for callers; the server itself listens on any free port of 127.0.0.1."""


class Greeter(rpc.GreeterServicer):
    """The service: your own code would stand here."""

    async def SayHello(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:  # noqa: N802
        """One answer to one request. The caller has proved that it holds the key of its node id."""
        caller = keynet.grpc.peer(context).node_id
        print(f"{request.name} calls from {caller}", flush=True)
        return pb.HelloReply(message=f"Hello, {request.name}!", caller=caller)

    async def Countdown(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """Many answers to one request."""
        for value in range(request.count, 0, -1):
            yield pb.Number(value=value)


async def main() -> None:
    """Runs the server and its node until Ctrl-C."""
    parser = argparse.ArgumentParser(description="A gRPC server for the nodes that it allows.")
    parser.add_argument("--identity", default="server.pem", help="made if it is not there (default: server.pem)")
    parser.add_argument("--rendezvous", required=True, help="what `keynet rendezvous` printed: v…@HOST:7348")
    parser.add_argument("--allow", action="append", required=True, metavar="NODE", help="who may call; repeatable")
    options = parser.parse_args()

    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)

    # with this interceptor a call that did not come through keynet is refused
    server = grpc.aio.server(interceptors=[keynet.grpc.aio_server_interceptor()])
    rpc.add_GreeterServicer_to_server(Greeter(), server)
    backend = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()

    identity = keynet.Identity.load_or_create(options.identity)
    async with keynet.Proxy(
        identity, services={PORT: backend}, allow=options.allow, rendezvous=[options.rendezvous]
    ) as proxy:
        print(f"this node is {proxy.node_id}", flush=True)
        telling = asyncio.create_task(tell(proxy))
        await ended.wait()
        telling.cancel()
        await server.stop(grace=5)


async def tell(proxy: keynet.Proxy) -> None:
    """Prints what happens to the node: registered, a peer connected, a caller refused."""
    events = proxy.events()  # of what happens from now on; it may have registered before
    if any(rendezvous.connected for rendezvous in proxy.status().rendezvous):
        print("ready: registered at the rendezvous", flush=True)
    async for event in events:
        match event:
            case keynet.RendezvousConnected():
                print("ready: registered at the rendezvous", flush=True)
            case keynet.ConnectionRefused(error=error):
                print(f"refused: {error}", flush=True)
            case keynet.PeerConnected() | keynet.PeerLost():
                print(event, flush=True)


if __name__ == "__main__":
    asyncio.run(main())

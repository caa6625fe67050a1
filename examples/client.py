"""Calls the gRPC server of examples/server.py, knowing only its node id.

    python examples/client.py --rendezvous v…@HOST:7348 v… Ada

docs/tutorial.md goes through it on two machines.
"""

from __future__ import annotations

import argparse
import asyncio
import sys

import grpc
import grpc.aio

import keynet
from keynet.demo import greeter_pb2 as pb
from keynet.demo import greeter_pb2_grpc as rpc

PORT = 50051
"""Of the service, as the server's node offers it."""


async def main() -> int:
    """Makes two calls; returns the exit code."""
    parser = argparse.ArgumentParser(description="Calls the greeter of another node.")
    parser.add_argument("--identity", default="client.pem", help="made if it is not there (default: client.pem)")
    parser.add_argument("--rendezvous", required=True, help="what `keynet rendezvous` printed: v…@HOST:7348")
    parser.add_argument("server", help="the node id that the server printed: v…")
    parser.add_argument("name", nargs="?", default="Ada", help="who is to be greeted")
    options = parser.parse_args()

    identity = keynet.Identity.load_or_create(options.identity)
    async with keynet.Proxy(identity, rendezvous=[options.rendezvous]) as proxy:
        async with keynet.grpc.aio_channel(proxy, options.server, PORT) as channel:
            greeter = rpc.GreeterStub(channel)
            try:
                reply = await greeter.SayHello(pb.HelloRequest(name=options.name), timeout=30)
                print(reply.message)
                print(f"the server knows this node as {reply.caller}")
                async for number in greeter.Countdown(pb.CountdownRequest(count=3), timeout=30):
                    print(number.value)
            except grpc.aio.AioRpcError as error:
                # gRPC says little more than UNAVAILABLE; the node knows what went wrong, and what to try
                print(keynet.grpc.explain(error, proxy, options.server), file=sys.stderr)
                return 1
        print(f"by way of {proxy.explain(options.server).text.splitlines()[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))

"""The demo's gRPC server. It knows nothing of keynet: it listens on a TCP port of this machine, without TLS."""

from __future__ import annotations

import argparse
import json
import signal
import threading
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc

from . import greeter_pb2 as pb
from . import greeter_pb2_grpc as rpc


class Greeter(rpc.GreeterServicer):
    """All four kinds of calls."""

    def caller(self, context: Any) -> str:
        """Who calls, as far as this server asks; the tests' server asks keynet."""
        return ""

    def SayHello(self, request: Any, context: Any) -> Any:  # noqa: N802
        return pb.HelloReply(message=f"Hello, {request.name}!", caller=self.caller(context))

    def Countdown(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        payload = b"\0" * request.payload_size
        for value in range(request.count, 0, -1):
            yield pb.Number(value=value, payload=payload)

    def Sum(self, request_iterator: Iterator[Any], context: Any) -> Any:  # noqa: N802
        total = size = 0
        for number in request_iterator:
            total += number.value
            size += len(number.payload)
        return pb.SumReply(sum=total, bytes=size)

    def Chat(self, request_iterator: Iterator[Any], context: Any) -> Iterator[Any]:  # noqa: N802
        for request in request_iterator:
            yield pb.HelloReply(message=f"Hello, {request.name}!", caller=self.caller(context))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--address", default="127.0.0.1:0")
    options = parser.parse_args()
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
    rpc.add_GreeterServicer_to_server(Greeter(), server)
    port = server.add_insecure_port(options.address)
    server.start()
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    host, _, _ = options.address.rpartition(":")
    print(json.dumps({"event": "ready", "address": f"{host}:{port}"}), flush=True)
    ended.wait()
    server.stop(grace=1).wait()


if __name__ == "__main__":
    main()

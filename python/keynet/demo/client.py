"""The demo's gRPC client. All it knows of keynet is the URL of an HTTP proxy and the name of a node."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from . import greeter_pb2 as pb
from . import greeter_pb2_grpc as rpc

_CHUNK = 64 * 1024


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--target", required=True)
    parser.add_argument("--proxy", help="URL of an HTTP proxy; without it the client goes directly")
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--mebibytes", type=int, default=64)
    options = parser.parse_args()
    channel_options = [] if options.proxy is None else [("grpc.http_proxy", options.proxy)]
    with grpc.insecure_channel(options.target, options=channel_options) as channel:
        stub = rpc.GreeterStub(channel)
        for report in (
            _first_call(stub),
            _countdown(stub),
            _sum(stub),
            _chat(stub),
            _latency(stub, options.calls),
            _download(stub, options.mebibytes),
            _upload(stub, options.mebibytes),
        ):
            print(json.dumps(report), flush=True)


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def _first_call(stub: rpc.GreeterStub) -> dict[str, Any]:
    reply, seconds = _timed(lambda: stub.SayHello(pb.HelloRequest(name="first"), timeout=30))
    return {"call": "unary", "said": reply.message, "seconds": seconds, "includes": "connecting"}


def _countdown(stub: rpc.GreeterStub) -> dict[str, Any]:
    values, seconds = _timed(lambda: [n.value for n in stub.Countdown(pb.CountdownRequest(count=5), timeout=30)])
    return {"call": "server stream", "said": values, "seconds": seconds}


def _sum(stub: rpc.GreeterStub) -> dict[str, Any]:
    reply, seconds = _timed(lambda: stub.Sum((pb.Number(value=n) for n in range(1, 101)), timeout=30))
    return {"call": "client stream", "said": reply.sum, "seconds": seconds}


def _chat(stub: rpc.GreeterStub) -> dict[str, Any]:
    names = ["Ada", "Grace", "Barbara"]
    requests = (pb.HelloRequest(name=name) for name in names)
    replies, seconds = _timed(lambda: [reply.message for reply in stub.Chat(requests, timeout=30)])
    return {"call": "both streams", "said": replies, "seconds": seconds}


def _latency(stub: rpc.GreeterStub, calls: int) -> dict[str, Any]:
    request = pb.HelloRequest(name="again")
    times = sorted(_timed(lambda: stub.SayHello(request, timeout=30))[1] for _ in range(calls))
    return {
        "measured": "unary calls",
        "count": calls,
        "median": statistics.median(times),
        "p99": times[int(calls * 0.99)],
    }


def _download(stub: rpc.GreeterStub, mebibytes: int) -> dict[str, Any]:
    request = pb.CountdownRequest(count=mebibytes * 16, payload_size=_CHUNK)
    size, seconds = _timed(lambda: sum(len(n.payload) for n in stub.Countdown(request, timeout=600)))
    return {"measured": "download", "bytes": size, "seconds": seconds}


def _upload(stub: rpc.GreeterStub, mebibytes: int) -> dict[str, Any]:
    payload = b"\0" * _CHUNK

    def numbers() -> Iterator[Any]:
        for value in range(mebibytes * 16):
            yield pb.Number(value=value, payload=payload)

    reply, seconds = _timed(lambda: stub.Sum(numbers(), timeout=600))
    return {"measured": "upload", "bytes": reply.bytes, "seconds": seconds}


if __name__ == "__main__":
    main()

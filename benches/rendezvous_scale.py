"""How much a registered node costs a rendezvous: memory, CPU, and the time of a signal under that load (Linux).

    python benches/rendezvous_scale.py real 1000       # keynet nodes: a socket, a tunnel and a gRPC channel each
    python benches/rendezvous_scale.py plain 10000     # the service alone, over its UNIX socket, by plain gRPC streams

Nodes are in processes of their own, so that the server's memory is the server's.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import pathlib
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

import keynet
import keynet.grpc
from keynet.rendezvous import SERVICE_PORT, Settings
from keynet.rendezvous._registry import Registry
from keynet.rendezvous._router import Router
from keynet.rendezvous._service import Service
from keynet.rendezvous._stats import Stats
from keynet.rendezvous.v1 import rendezvous_pb2 as pb
from keynet.rendezvous.v1 import rendezvous_pb2_grpc as rpc

NODES_PER_PROCESS = 2500
"""Each holds about six open files."""
AT_ONCE = 20
"""Nodes of one process that register at the same time."""
SIGNALS = 500
REFRESH = 60.0
QUIET = 20.0
"""Seconds over which the CPU of an idle server is measured: longer than the keep-alive of 15 s."""


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("real", "plain", "server", "nodes"))
    parser.add_argument("nodes", type=int)
    parser.add_argument("--where", help=argparse.SUPPRESS)
    options = parser.parse_args()
    raise_open_files()
    if options.kind == "server":
        await plain_server(options.where)
    elif options.kind == "nodes":
        await nodes(options.where, options.nodes)
    else:
        await measure(options.kind, options.nodes)


async def measure(kind: str, count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        if kind == "real":
            flags = ["--identity", f"{folder}/r.pem", "--listen", "127.0.0.1:0", "--json"]
            server = await child("-m", "keynet", "rendezvous", *flags)
        else:
            server = await child(__file__, "server", "0", "--where", f"unix:{folder}/grpc")
        clients = []
        try:
            ready = await said(server)
            before = resident(server.pid)
            started, cpu = time.monotonic(), processor(server.pid)
            processes = -(-count // NODES_PER_PROCESS)
            for n in range(processes):
                share = count // processes + (n < count % processes)
                clients.append(await child(__file__, "nodes", str(share), "--where", ready["rendezvous"]))
            registered = [await said(client) for client in clients]
            seconds, busy = time.monotonic() - started, processor(server.pid) - cpu
            made = sum(answer["registered"] for answer in registered)
            each = 1000 * busy / made
            print(f"{made} of {count} nodes ({kind}) registered in {seconds:.0f} s, {each:.1f} ms of CPU each")
            grown = resident(server.pid) - before
            each = grown / made / 1024
            print(f"server: {before / 2**20:.0f} MiB, grown by {grown / 2**20:.0f} MiB: {each:.1f} KiB a node")
            started, cpu = time.monotonic(), processor(server.pid)
            await asyncio.sleep(QUIET)
            busy = (processor(server.pid) - cpu) / (time.monotonic() - started)
            print(f"server, nobody signals: {100 * busy:.1f} % of a core")
            cpu = processor(server.pid)
            clients[0].stdin.write(b"signal\n")
            times = (await said(clients[0]))["times"]
            busy = processor(server.pid) - cpu
            median, late = 1000 * statistics.median(times), 1000 * times[len(times) * 99 // 100]
            print(f"{len(times)} signals one by one: median {median:.2f} ms, 99 % {late:.2f} ms")
            print(f"server: {1e6 * busy / len(times):.0f} us of CPU for each of them")
            for client in clients:
                client.stdin.write(b"count\n")
            left = sum([(await said(client))["registered"] for client in clients])
            print(f"{left} nodes are still registered")
        finally:
            for process in (*clients, server):
                process.kill()
                await process.wait()


def raise_open_files() -> None:
    """To what 10,000 nodes need, which takes root where the hard limit is lower; children inherit it."""
    for limit in (65_536, resource.getrlimit(resource.RLIMIT_NOFILE)[1]):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(
                resource.RLIMIT_NOFILE, (limit, max(limit, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
            )
            return


# -- the nodes -----------------------------------------------------------------------------------------------------


async def nodes(where: str, count: int) -> None:
    """Registers them, and on request sends signals between random ones of them."""
    gate = asyncio.Semaphore(AT_ONCE)
    calls: list[tuple[bytes, Any]] = []
    kept: list[Any] = []

    async def register() -> None:
        async with gate:
            identity = keynet.Identity.generate()
            stub = await (_plain_stub if where.startswith("unix:") else _real_stub)(where, identity, kept)
            call = stub.Register(metadata=(("node", identity.node_id),))
            await call.write(pb.NodeMessage(hello=pb.Hello(agent="scale")))
            assert (await call.read()).WhichOneof("kind") == "welcome"
            calls.append((identity.node_id.public_key, call))

    results = await asyncio.gather(*(register() for _ in range(count)), return_exceptions=True)
    failures = [result for result in results if isinstance(result, BaseException)]
    if failures:
        print(f"{len(failures)} failed, the first: {failures[0]!r}"[:2000], file=sys.stderr)
    print(json.dumps({"registered": len(calls)}), flush=True)

    async def refresh() -> None:
        while True:
            # spread over the time, as those of nodes on their own are
            for _, call in tuple(calls):
                await asyncio.sleep(REFRESH / len(calls))
                if not call.done():
                    await call.write(pb.NodeMessage(refresh=pb.Refresh()))

    refreshing = asyncio.create_task(refresh())
    async for line in _lines():
        calls = [(key, call) for key, call in calls if not call.done()]
        if line == b"count\n":
            print(json.dumps({"registered": len(calls)}), flush=True)
            continue
        times = []
        for _ in range(SIGNALS):
            (_, sender), (key, receiver) = random.sample(calls, 2)
            started = time.perf_counter()
            await sender.write(pb.NodeMessage(signal=pb.Signal(node=key, exchange=os.urandom(16), body=bytes(1024))))
            assert (await receiver.read()).WhichOneof("kind") == "signal"
            times.append(time.perf_counter() - started)
        print(json.dumps({"times": sorted(times)}), flush=True)
    refreshing.cancel()


async def _real_stub(where: str, identity: keynet.Identity, kept: list[Any]) -> rpc.RendezvousStub:
    node, _, address = where.partition("@")
    proxy = keynet.Proxy(identity, listen="127.0.0.1:0")
    await proxy.start()
    proxy.add_peer(node, [address])
    channel = keynet.grpc.aio_channel(proxy, node, SERVICE_PORT)
    kept += [proxy, channel]
    return rpc.RendezvousStub(channel)


async def _plain_stub(where: str, identity: keynet.Identity, kept: list[Any]) -> rpc.RendezvousStub:
    # each its own connection, as through keynet
    channel = grpc.aio.insecure_channel(where, [("grpc.use_local_subchannel_pool", 1)])
    kept.append(channel)
    return rpc.RendezvousStub(channel)


async def _lines() -> AsyncIterator[bytes]:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        yield line


# -- the service without keynet ------------------------------------------------------------------------------------


class _Caller:
    """Stands for the ConnectionInfo of a node, which says in its metadata who it is."""

    def __init__(self, context: Any) -> None:
        self.node_id = keynet.NodeId(dict(context.invocation_metadata())["node"])
        self.node_ids = (self.node_id,)
        self.remote_address = "127.0.0.1:1"


async def plain_server(where: str) -> None:
    settings, stats = Settings(), Stats()
    registry = Registry(settings, appeared=lambda name: None, gone=lambda name: None)
    router = Router(settings, registry, stats, time.monotonic, None)
    peer: Any = _Caller
    service = Service(settings, registry, router, stats, stun=[], clock=time.monotonic, peer=peer)
    server = grpc.aio.server()
    rpc.add_RendezvousServicer_to_server(service, server)
    server.add_insecure_port(where)
    await server.start()
    print(json.dumps({"rendezvous": where}), flush=True)
    await server.wait_for_termination()


# -- processes -----------------------------------------------------------------------------------------------------


async def child(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, limit=1 << 24
    )


async def said(process: asyncio.subprocess.Process) -> dict[str, Any]:
    assert process.stdout is not None
    answer: dict[str, Any] = json.loads(await process.stdout.readline())
    return answer


def resident(pid: int) -> int:
    """Bytes of memory that the process holds."""
    pages = pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize()


def processor(pid: int) -> float:
    """Seconds of CPU that the process has used."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    asyncio.run(main())

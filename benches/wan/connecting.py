"""How many round trips a tunnel takes from CONNECT to 200, over the emulated link: `make bench-connect`.

cold: a node that never spoke to the other. warm: the same node again, with a session of TLS to resume and a path whose
pings have a key. The round trip is the link's; what the nodes compute comes on top.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from lab import ROOT, B, Impossible, Lab, Wan, prepare

import keynet

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from rows import TCP_SERVICE, connect_head  # noqa: E402


async def serve(identity: str) -> None:
    """A node in front of a server that greets whoever connects."""

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"!")
        await writer.drain()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    service = "{}:{}".format(*server.sockets[0].getsockname())
    node = keynet.Identity.load_or_create(identity)
    async with keynet.Proxy(node, listen=f"{B}:4433", services={TCP_SERVICE: service}, allow=keynet.ANYONE) as proxy:
        print(proxy.node_id, flush=True)
        await asyncio.Event().wait()


async def connect(proxy: keynet.Proxy, node: str) -> float:
    """Seconds from CONNECT to 200."""
    host, _, port = proxy.forward_address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    start = time.perf_counter()
    writer.write(connect_head(node, proxy.credentials))
    head = await reader.readuntil(b"\r\n\r\n")
    took = time.perf_counter() - start
    if not head.startswith(b"HTTP/1.1 200 "):
        raise RuntimeError(head.decode())
    await reader.readexactly(1)
    writer.close()
    return took


async def dial(directory: str, node: str, rounds: int) -> None:
    cold, warm = [], []
    for n in range(rounds):
        identity = keynet.Identity.load_or_create(f"{directory}/{n}.pem")
        async with keynet.Proxy(identity, listen="0.0.0.0:0") as proxy:
            proxy.add_peer(node, [f"{B}:4433"])
            cold.append(await connect(proxy, node))
            # the first pings under the key go both ways
            await asyncio.sleep(1)
            warm += [await connect(proxy, node) for _ in range(3)]
    print(json.dumps({"cold": cold, "warm": warm}))


def main() -> None:
    match sys.argv[1:]:
        case ["serve", identity]:
            asyncio.run(serve(identity))
        case ["dial", directory, node, rounds]:
            asyncio.run(dial(directory, node, int(rounds)))
        case []:
            measure()
        case _:
            sys.exit(__doc__)


def measure() -> None:
    try:
        prepare()
        print("| link | cold, ms | round trips | warm, ms | round trips |\n|---|---|---|---|---|")
        for path in (Wan(100, 50), Wan(100, 100)):
            with Lab(path) as lab, tempfile.TemporaryDirectory() as directory:
                server = lab.popen(1, sys.executable, __file__, "serve", f"{directory}/server.pem")
                assert server.stdout
                node = server.stdout.readline().strip()
                client = lab.popen(0, sys.executable, __file__, "dial", directory, node, "7")
                times = json.loads(client.communicate(timeout=120)[0])
            cells = [statistics.median(times[kind]) * 1000 for kind in ("cold", "warm")]
            shown = " | ".join(f"{cell:.1f} | {cell / path.rtt_ms:.2f}" for cell in cells)
            print(f"| {path} | {shown} |", flush=True)
    except Impossible as e:
        sys.exit(f"{Path(__file__).relative_to(ROOT)}: {e}")


if __name__ == "__main__":
    main()

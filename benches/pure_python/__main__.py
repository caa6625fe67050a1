"""Runs one node until its standard input closes: `python -m pure_python IDENTITY [--service
PORT=HOST:PORT]...`.

Prints one line of JSON when it is up; then each line read is a peer to add: `NODE HOST PORT`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path

from . import identity
from .node import Node


async def run(arguments: argparse.Namespace) -> None:
    path = Path(arguments.identity)
    if not path.exists():
        identity.create(path)
    services = {}
    for text in arguments.service:
        port, _, address = text.partition("=")
        host, _, target = address.rpartition(":")
        services[int(port)] = host, int(target)
    node = await Node.start(path, services, listen=(arguments.listen, 0), capable=not arguments.plain)
    facts = {
        "node": node.node_id,
        "proxy": node.proxy_address,
        "forward": node.forward_address,
        "credentials": node.credentials,
    }
    print(json.dumps(facts), flush=True)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        peer, host, port = line.decode().split()
        node.add_peer(peer, (host, int(port)))
        print("added", flush=True)
    await node.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="pure_python", description=__doc__)
    parser.add_argument("identity")
    parser.add_argument("--listen", default="127.0.0.1")
    parser.add_argument("--service", action="append", default=[])
    parser.add_argument("--plain", action="store_true", help="plain BEP 29, without keynet's capability extension")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()

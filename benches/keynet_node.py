"""Runs one keynet node for the benchmarks; same arguments, same lines as `python -m pure_python`."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys

import keynet


async def run(arguments: argparse.Namespace) -> None:
    services = {int(port): address for port, _, address in (text.partition("=") for text in arguments.service)}
    identity = keynet.Identity.load_or_create(arguments.identity)
    offer = {"services": services, "allow": keynet.ANYONE} if services else {}
    async with keynet.Proxy(identity, listen="127.0.0.1:0", **offer) as proxy:
        facts = {
            "node": proxy.node_id,
            "proxy": split(proxy.proxy_address),
            "forward": split(proxy.forward_address),
            "credentials": proxy.credentials,
        }
        print(json.dumps(facts), flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            node, host, port = line.split()
            proxy.add_peer(node, [f"{host}:{port}"])
            print("added", flush=True)
        await proxy.close(drain=False)


def split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("identity")
    parser.add_argument("--service", action="append", default=[])
    asyncio.run(run(parser.parse_args()))

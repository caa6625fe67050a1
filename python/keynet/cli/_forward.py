"""`keynet forward`: a local port for one service of one node."""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

from .._proxy import Proxy
from ._common import add_finding, add_identity, duration, finding, load_identity, node_id, port
from ._output import Output
from ._ping import check_findable
from ._run import follow


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "forward",
        parents=[common],
        help="a local port for one service of a node, for clients without CONNECT support",
        description="Listens locally and carries every connection to one service of one node, until Ctrl-C. "
        "The listener asks for no password: who reaches it uses the service.",
    )
    parser.add_argument("node", metavar="NODE", type=node_id, help="its node id")
    parser.add_argument("port", metavar="PORT", type=port, help="the service port it offers")
    parser.add_argument(
        "--address",
        "-a",
        metavar="ADDRESS",
        action="append",
        default=[],
        help='the node\'s UDP address "host:port"; repeatable; none is needed with a rendezvous',
    )
    parser.add_argument(
        "--local",
        default="127.0.0.1:0",
        metavar="ADDRESS",
        help='where to listen: "host:port" or "unix:/path"',
    )
    parser.add_argument(
        "--browser-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a host by which pages in a browser may ask for the service, and from which they may come, beside "
        "addresses and localhost; repeatable, * for all",
    )
    parser.add_argument("--listen", default="[::]:0", metavar="ADDRESS", help="our UDP address (default [::]:0)")
    parser.add_argument(
        "--patience",
        metavar="SECONDS",
        type=duration,
        help="seconds of silence of the node that connections outlive (default 75)",
    )
    add_finding(parser)
    add_identity(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, out: Output) -> int:
    settings = finding(options)
    check_findable(options.address, settings, "--address HOST:PORT")
    proxy = Proxy(load_identity(options.identity), listen=options.listen, patience=options.patience, **settings)

    async def work() -> None:
        async with proxy:
            if options.address:
                proxy.add_peer(options.node, options.address)
            hosts = options.browser_host
            forward = await proxy.forward(options.node, options.port, local=options.local, browser_hosts=hosts)
            ready = {
                "event": "ready",
                "local": forward.address,
                "node_id": proxy.node_id,
                "proxy_address": proxy.proxy_address,
            }
            text = f"{forward.address} -> service {options.port} of {options.node.short}; Ctrl-C ends it\nready"
            await follow(proxy, out, lambda: out.result(ready, text))

    asyncio.run(work())
    return 0

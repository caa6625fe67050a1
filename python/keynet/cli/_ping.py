"""`keynet ping`: is the node there, is it the node, and how far is it?"""

from __future__ import annotations

import argparse
import time
from typing import Any

from .. import sync
from .._identity import Identity
from .._info import PingReport
from ..errors import DialError
from ._common import add_finding, add_identity, count, finding, invalid, load_identity, node_id, positive
from ._output import Output, milliseconds


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "ping",
        parents=[common],
        help="reach a node: path, round trip, TLS; or the stage that failed",
        description="Connects to a node as a client would, up to the TLS handshake, and tells what it took or "
        "at which stage it failed. "
        "Without --identity it goes under a new name, made for the occasion.",
    )
    parser.add_argument("node", metavar="NODE", type=node_id, help="its node id")
    parser.add_argument(
        "address",
        metavar="ADDRESS",
        nargs="*",
        help='its UDP address "host:port"; several may be given; none is needed with a rendezvous',
    )
    parser.add_argument("--count", "-c", type=count, default=1, metavar="N", help="so many times, a second apart")
    parser.add_argument("--timeout", type=positive, default=15.0, metavar="SECONDS", help="for each (default 15)")
    add_finding(parser)
    add_identity(parser, throw_away=True)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, out: Output) -> int:
    settings = finding(options)
    check_findable(options.address, settings, "an ADDRESS")
    identity = Identity.generate() if options.identity is None else load_identity(options.identity)
    # whoever is turned away has to tell the other side this name
    made = "made for this run" if options.identity is None else str(options.identity)
    out.common["own_node_id"] = identity.node_id
    own = f"{identity.node_id} ({made})"
    where = ", ".join(options.address) or "an address to be found out"
    with sync.Proxy(identity, **settings) as proxy:
        if options.address:
            proxy.add_peer(options.node, options.address)
        for n in range(options.count):
            if n:
                time.sleep(1)
            try:
                with out.progress(f"reaching {options.node.short} at {where}"):
                    report = proxy.ping(options.node, timeout=options.timeout)
            except BaseException as error:
                # also of Ctrl-C: whoever has waited long wants to know as whom
                out.note(f"this is {own}")
                if isinstance(error, DialError) and settings.get("rendezvous"):
                    # the error names the reason; this is how it came to it
                    out.note(proxy.explain(options.node).text)
                raise
            _show(report, options.node, own, out)
        # nothing is left that could end by itself
        proxy.close(drain=False)
    return 0


def check_findable(addresses: list[str], settings: dict[str, Any], what: str) -> None:
    """Refuses a node that nobody could find."""
    if not (addresses or settings.get("rendezvous") or settings.get("lan")):
        raise invalid(f"nobody says where the node is: give {what}, --rendezvous NODE@HOST:PORT, or --lan")


def _show(report: PingReport, wanted: str, own: str, out: Output) -> None:
    text = [
        f"{report.node_id.short} at {report.address}: round trip {milliseconds(report.rtt)}",
        f"  path and uTP  {milliseconds(report.utp)}",
        f"  TLS           {milliseconds(report.tls)}  {report.tls_version} {report.tls_suite} {report.tls_group}"
        + (" (resumed)" if report.resumed else ""),
    ]
    text.append(f"  this node     {own}")
    if report.node_id != wanted:
        text.append(f"  the node has rotated its key; its newest id is {report.node_id}")
    out.result({"ping": report}, "\n".join(text))

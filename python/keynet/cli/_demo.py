"""`keynet demo`: see it work."""

from __future__ import annotations

import argparse
from typing import Any

from .._extras import install, needed_by
from ._common import count, invalid
from ._output import Output


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "demo",
        parents=[common],
        help="run two nodes, a gRPC server and a gRPC client on this machine",
        description="Starts four processes: a plain gRPC server, two keynet nodes and a plain gRPC client; "
        "makes all four kinds of calls "
        f"through them, measures, and shows what happened. Needs: {install('demo')}.",
    )
    parser.add_argument("--calls", type=count, default=500, metavar="N", help="unary calls to measure (default 500)")
    parser.add_argument("--mebibytes", type=count, default=64, metavar="N", help="MiB to stream each way (default 64)")
    parser.add_argument("--ipv6", action="store_true", help="over ::1 instead of 127.0.0.1")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, out: Output) -> int:
    try:
        with needed_by("the demo", "demo"):
            from ..demo import client  # noqa: F401
    except ImportError as missing:
        raise invalid(str(missing)) from None
    from ..demo.run import Demo

    return Demo(out, calls=options.calls, mebibytes=options.mebibytes, ipv6=options.ipv6).run()

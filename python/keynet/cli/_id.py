"""`keynet id`: make, show, renew, rotate an identity."""

from __future__ import annotations

import argparse
import os
import pathlib
from typing import Any

from .._identity import Identity
from ._common import default_identity, load_identity, make_room, shown_default
from ._output import Output


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "id",
        parents=[common],
        help="make or show this node's identity",
        description="Shows the node id of an identity file; makes the file (mode 0600) if there is none. Give "
        "the node id to "
        "others; keep the file to yourself.",
    )
    parser.add_argument("file", nargs="?", type=pathlib.Path, help=f"default: {shown_default()}")
    change = parser.add_mutually_exclusive_group()
    change.add_argument("--show", action="store_true", help="fail if the file does not exist instead of making it")
    change.add_argument("--renew", action="store_true", help="new dates for the same key")
    change.add_argument(
        "--rotate",
        action="store_true",
        help="a new key, certified by the old one, so that peers who know the old node id still accept it",
    )
    parser.add_argument("--quiet", "-q", action="store_true", help="print the node id only")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, out: Output) -> int:
    wanted: pathlib.Path | None = options.file
    if options.show or options.renew or options.rotate:
        path = wanted or default_identity() or make_room(None)
        identity, action = Identity.load(path), "read"
    else:
        path = make_room(wanted)
        # also a link that leads nowhere is something
        action = "read" if os.path.lexists(path) else "made"
        identity = load_identity(wanted)
    if options.renew:
        identity, action = identity.renew(), "renewed"
    elif options.rotate:
        identity, action = identity.rotate(), "rotated"
    if options.renew or options.rotate:
        identity.save(path)
    fields = {
        "node_id": identity.node_id,
        "older_node_ids": list(identity.node_ids[1:]),
        "valid_to": identity.not_after,
        "file": str(path),
        "action": action,
    }
    out.result(fields, identity.node_id if options.quiet else None)
    return 0

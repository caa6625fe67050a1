"""`keynet rendezvous`: where nodes find each other."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import os
import time
from typing import TYPE_CHECKING, Any

from .. import _keynet
from .._access import ANYONE
from .._extras import install
from .._text import whole
from ._common import add_identity, allowed, count, invalid, load_identity
from ._output import Output
from ._run import show, tell_stats, until_signal

if TYPE_CHECKING:
    from ..rendezvous import Relay as TurnRelay
    from ..rendezvous import Server
    from ..rendezvous._group import GroupStatus


_GROUP_PATIENCE = 2.0
"""Seconds that `ready` waits for NATS at most: it is in the same data centre, as a rule."""


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "rendezvous",
        parents=[common],
        help="run a rendezvous: nodes that register there find each other by their node ids",
        description="Runs a rendezvous until Ctrl-C, and prints what nodes are to be told: NODE@HOST:PORT. With -v it "
        f"also prints what happens, and counters every minute. Needs: {install('rendezvous')}.",
    )
    add_identity(parser)
    parser.add_argument("--listen", default="[::]:7348", metavar="ADDRESS", help="UDP address (default [::]:7348)")
    parser.add_argument(
        "--stun",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="answer STUN at this UDP address, too; repeatable",
    )
    parser.add_argument(
        "--public-stun",
        action="append",
        default=[],
        metavar="HOST:PORT",
        help="a STUN server to recommend to nodes; repeatable",
    )
    parser.add_argument(
        "--nats",
        metavar="URL",
        help="the NATS server that joins several rendezvous: nats://host:4222; one with a password is better given "
        "as KEYNET_NATS in the environment, which other users do not see",
    )
    parser.add_argument(
        "--turn",
        action="append",
        default=[],
        metavar="URI",
        help="a relay to name to nodes, by all its URIs with commas between them: turn:HOST:3478,turns:HOST:443; "
        "weight=N among them (default 100) says how often it is taken among relays that are about as near; repeatable. "
        "The secret that it shares with this rendezvous is KEYNET_TURN_SECRET in the environment",
    )
    parser.add_argument(
        "--relay",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="run a relay (TURN server), too, over UDP and TCP at this address, and name it to nodes; repeatable for "
        "IPv6. Port 3478 lets nodes whose UDP is blocked reach this rendezvous",
    )
    parser.add_argument(
        "--relay-tls",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="the same over TLS; port 443 passes nearly every firewall",
    )
    parser.add_argument(
        "--relay-external",
        action="append",
        default=[],
        metavar="IP",
        help="the public address of this machine, where a NAT gives it one of its own (1:1)",
    )
    parser.add_argument(
        "--relay-weight",
        type=_weight,
        metavar="N",
        help="how often nodes take this relay among those that are about as near (default 100; see --turn)",
    )
    parser.add_argument(
        "--relay-allow-peer",
        action="append",
        default=[],
        metavar="NETWORK",
        help="let the relay carry to addresses that are not of the open internet: 192.168.0.0/16; repeatable",
    )
    parser.add_argument(
        "--allow", action="append", default=[], metavar="NODE", help='who may register: node ids, or "anyone" (default)'
    )
    parser.add_argument("--max-nodes", type=count, metavar="N", help="nodes registered at once (default 100000)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, out: Output) -> int:
    try:
        from ..rendezvous import Server, Settings
    except ImportError as missing:
        raise invalid(str(missing)) from None

    settings = Settings()
    if options.max_nodes is not None:
        settings = dataclasses.replace(settings, max_nodes=options.max_nodes)
    secret = os.environ.get("KEYNET_TURN_SECRET", "")
    if options.turn and not secret:
        raise invalid("--turn needs the secret that the relay shares with this rendezvous: set KEYNET_TURN_SECRET")
    relays = [_turn(text, secret) for text in options.turn]
    relay = _relay(options)
    identity = load_identity(options.identity)
    allow = allowed(options.allow, identity.node_id) or ANYONE

    async def work() -> None:
        server = Server(
            identity,
            listen=options.listen,
            allow=allow,
            stun=options.stun,
            public_stun=options.public_stun,
            relays=relays,
            relay=relay,
            nats=(os.environ.get("KEYNET_NATS") or None) if options.nats is None else options.nats,
            settings=settings,
        )
        async with server:
            telling = [_events(server, out), tell_stats(server.stats, out)] if options.verbose > 0 else []
            await _group_settled(server)
            await until_signal(lambda: _ready(server, out), telling)
        out.result({"event": "closed", **server.stats()}, "closed")

    asyncio.run(work())
    return 0


async def _group_settled(server: Server) -> None:
    """Gives the connection to NATS a moment, so that `ready` says how it stands with the group."""
    deadline = time.monotonic() + _GROUP_PATIENCE
    while (group := server.group) is not None and not group.connected and group.error is None:
        if time.monotonic() >= deadline:
            return
        await asyncio.sleep(0.05)


def _turn(text: str, secret: str) -> TurnRelay:
    from ..rendezvous import Relay

    parts = text.split(",")
    weights = [part.removeprefix("weight=") for part in parts if part.startswith("weight=")]
    uris = [part for part in parts if not part.startswith("weight=")]
    if not weights:
        return Relay(uris, secret)
    weight = whole(weights[0])
    if len(weights) > 1 or weight is None:
        raise invalid(f"--turn: a relay has one weight, and that is a number: weight=50, not {weights}")
    return Relay(uris, secret, weight=weight)


def _weight(text: str) -> int:
    value = whole(text)
    if value is not None and len(text) < 6:
        return value
    raise argparse.ArgumentTypeError(f"'{_keynet.excerpt(text)}' is not a whole number")


def _relay(options: argparse.Namespace) -> dict[str, Any] | None:
    if not options.relay:
        more = [options.relay_tls, options.relay_external, options.relay_allow_peer]
        if any(more) or options.relay_weight is not None:
            raise invalid("--relay-tls, --relay-external, --relay-weight and --relay-allow-peer need --relay")
        return None
    port = options.listen.rpartition(":")[2]
    hosts = [f"[{ip}]" if ":" in ip else ip for ip in options.relay_external]
    weight = {} if options.relay_weight is None else {"weight": options.relay_weight}
    return {
        **weight,
        "listen": options.relay,
        "tls": options.relay_tls,
        "external_addresses": options.relay_external,
        "allowed_peers": options.relay_allow_peer,
        "introduction_peers": [f"{host}:{port}" for host in hosts],
    }


def _ready(server: Server, out: Output) -> None:
    fields: dict[str, Any] = {
        "event": "ready",
        "node_id": server.node_id,
        "proxy_address": server.proxy.proxy_address,
        "rendezvous": server.address,
        "pid": os.getpid(),
    }
    group = server.group
    if group is not None:
        fields["group"] = group._asdict()
    lines = [
        f"node id     {server.node_id}",
        f"listens on  {server.proxy.proxy_address} (UDP)",
        f"tell nodes  {server.address}",
        *([] if group is None else [f"group       {_group_words(group)}"]),
        "ready",
    ]
    out.result(fields, "\n".join(lines))


def _group_words(group: GroupStatus) -> str:
    if group.connected:
        return f"NATS at {group.nats}: connected"
    return f"NATS at {group.nats}: not connected ({group.error or 'no answer yet'}); it is tried again"


async def _events(server: Server, out: Output) -> None:
    async for event in server.proxy.events():
        show(event, out)

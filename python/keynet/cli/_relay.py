"""`keynet relay`: a TURN server for nodes that no hole can be punched for."""

from __future__ import annotations

import argparse
import asyncio
import os
import pathlib
import socket
import stat
from collections.abc import Mapping
from typing import Any

from .. import _keynet
from .._text import whole
from ..relay import PORT, RelayLimits, RelayServer
from ._common import add_identity, count, invalid, load_identity, pairs, secret_file
from ._output import Output
from ._run import summary, tell_stats, until_signal


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "relay",
        parents=[common],
        help="run a relay (TURN server) for nodes that cannot reach each other directly",
        description="Runs a TURN server (RFC 8656) until Ctrl-C, and prints where it serves. What it carries stays "
        "encrypted from node to node. With -v it also prints counters every minute.",
    )
    parser.add_argument(
        "--listen",
        action="append",
        default=[],
        metavar="ADDRESS",
        help=f"UDP and TCP address (default 0.0.0.0:{PORT}, and [::]:{PORT} where the machine has IPv6); repeatable",
    )
    parser.add_argument(
        "--tls", action="append", default=[], metavar="ADDRESS", help="address for TURN over TLS; repeatable"
    )
    parser.add_argument(
        "--certificate",
        nargs=2,
        type=pathlib.Path,
        metavar=("CHAIN", "KEY"),
        help="PEM files for TLS (default: the certificate of the identity, which clients know by its key)",
    )
    add_identity(parser)
    parser.add_argument(
        "--user",
        action="append",
        default=[],
        metavar="NAME=PASSWORD",
        help="who may use it; repeatable. Other users of this machine see flags: KEYNET_RELAY_USERS in the "
        "environment, with commas between several, is not seen",
    )
    parser.add_argument(
        "--secret-file",
        type=pathlib.Path,
        metavar="FILE",
        help="a secret shared with whoever gives out names that end (coturn's use-auth-secret); or "
        "KEYNET_RELAY_SECRET. With several lines: the one in use, then those before it whose names have not ended yet",
    )
    _add_bounds(parser)
    parser.set_defaults(run=run)


def _add_bounds(parser: argparse.ArgumentParser) -> None:
    """Where relayed addresses are, where they lead, and what all may cost."""
    parser.add_argument("--realm", metavar="NAME", help="named to clients (default keynet)")
    parser.add_argument(
        "--external",
        action="append",
        default=[],
        metavar="IP",
        help="the public address, behind a NAT that gives this machine one of its own (1:1); one for each family",
    )
    parser.add_argument(
        "--relay-address", action="append", default=[], metavar="IP", help="where relayed addresses are bound"
    )
    parser.add_argument(
        "--ports", metavar="FIRST-LAST", type=_ports, help="ports of relayed addresses (default 49152-65535)"
    )
    parser.add_argument(
        "--allow-peer",
        action="append",
        default=[],
        metavar="NETWORK",
        help="addresses that may be reached although they are not of the open internet, as 10.0.0.0/8; repeatable",
    )
    parser.add_argument(
        "--introduction-peer",
        action="append",
        default=[],
        metavar="ADDRESS",
        help='a rendezvous node that anybody may reach, with name and password "keynet"; repeatable',
    )
    parser.add_argument("--max-allocations", type=count, metavar="N", help="clients at once (default 4096)")
    parser.add_argument(
        "--rate", type=count, metavar="BYTES", help="bytes relayed a second over all clients (default 125000000)"
    )
    parser.add_argument(
        "--rate-per-client", type=count, metavar="BYTES", help="the same for one client (default 62500000)"
    )


def run(options: argparse.Namespace, out: Output) -> int:
    users, secret = _users(options.user, os.environ), _secret(options.secret_file, os.environ)
    if not (users or secret or options.introduction_peer):
        raise invalid(
            "nobody could use this relay: give --user NAME=PASSWORD (or KEYNET_RELAY_USERS), --secret-file FILE, or "
            "--introduction-peer ADDRESS"
        )
    if options.certificate and not options.tls:
        raise invalid("--certificate without --tls: nothing is served over TLS")
    relay = RelayServer(
        listen=options.listen or _everywhere(),
        tls=options.tls,
        certificate=_certificate(options.certificate),
        identity=load_identity(options.identity) if options.tls and not options.certificate else None,
        realm=options.realm,
        users=users,
        secret=secret,
        introduction_peers=options.introduction_peer,
        allowed_peers=options.allow_peer,
        relay_addresses=options.relay_address,
        external_addresses=options.external,
        ports=options.ports,
        limits=_limits(options),
    )
    asyncio.run(_work(relay, out, talkative=options.verbose > 0))
    return 0


async def _work(relay: RelayServer, out: Output, *, talkative: bool) -> None:
    async with relay:
        await until_signal(lambda: _ready(relay, out), [tell_stats(relay.stats, out)] if talkative else [])
    out.result({"event": "closed", **relay.stats()}, f"closed: {summary(relay.stats())}")


def _ready(relay: RelayServer, out: Output) -> None:
    fields = {
        "event": "ready",
        "addresses": relay.addresses,
        "tls_addresses": relay.tls_addresses,
        "relayed_addresses": relay.relayed_addresses,
        "pid": os.getpid(),
    }
    lines = [
        f"serves      {', '.join(relay.addresses)} (UDP and TCP)",
        *([f"with TLS    {', '.join(relay.tls_addresses)}"] if relay.tls_addresses else []),
        f"relays at   {', '.join(relay.relayed_addresses)}",
        "ready",
    ]
    out.result(fields, "\n".join(lines))


def _everywhere() -> list[str]:
    # with a socket of each family, as IPv4 has the same port to itself then
    return [f"0.0.0.0:{PORT}", f"[::]:{PORT}"] if _has_ipv6() else [f"0.0.0.0:{PORT}"]


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::", 0))
    except OSError:
        return False
    return True


def _users(flags: list[str], environment: Mapping[str, str]) -> dict[str, str]:
    texts = list(filter(None, environment.get("KEYNET_RELAY_USERS", "").split(",")))
    users = pairs(flags, "NAME=PASSWORD (--user)", secret=True)
    for name, password in pairs(texts, "NAME=PASSWORD (KEYNET_RELAY_USERS)", secret=True).items():
        users.setdefault(name, password)
    return users


def _secret(file: pathlib.Path | None, environment: Mapping[str, str]) -> list[str] | None:
    if file is None:
        given = environment.get("KEYNET_RELAY_SECRET")
        return [given] if given else None
    # several, one a line, while one takes the place of another
    return [line.strip() for line in secret_file("--secret-file", file).splitlines() if line.strip()]


def _certificate(files: list[pathlib.Path] | None) -> tuple[pathlib.Path, pathlib.Path] | None:
    if files is None:
        return None
    chain, key = files
    for file in (chain, key):
        try:
            found = file.stat().st_mode
        except OSError as error:
            raise invalid(f"--certificate: {file} cannot be read: {error.strerror}") from None
        if not stat.S_ISREG(found):
            raise invalid(f"--certificate: {file} is no file, but a folder, a pipe or a device")
        mode = stat.S_IMODE(found)
    if mode & 0o007:
        raise invalid(f"--certificate: {key} has mode {mode:04o}, so every user can read it; run: chmod o= {key}")
    return chain, key


def _limits(options: argparse.Namespace) -> RelayLimits:
    limits: RelayLimits = {}
    if options.max_allocations is not None:
        limits["max_allocations"] = options.max_allocations
    if options.rate is not None:
        limits["bytes_per_second"] = options.rate
    if options.rate_per_client is not None:
        limits["bytes_per_second_per_allocation"] = options.rate_per_client
    return limits


def _ports(text: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    lowest, highest = whole(first), whole(last)
    if dash and lowest is not None and highest is not None and 0 < lowest <= highest < 65536:
        return lowest, highest
    raise argparse.ArgumentTypeError(f"'{_keynet.excerpt(text)}' is not of the form FIRST-LAST, like 49152-65535")

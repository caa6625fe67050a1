"""`keynet up`: run a node."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import pathlib
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .._extras import install
from .._node import NodeId
from .._proxy import Proxy
from .._status_server import StatusServer
from ..errors import BindError, DialError, ProxyClosedError
from ._common import add_finding, add_identity, allowed, duration, finding, invalid, load_identity, pairs, port, split
from ._config import read_config
from ._output import Output
from ._run import follow
from ._words import painted

if TYPE_CHECKING:
    from ..metrics import MetricsServer

_TOML = """\
the configuration file (TOML); flags override it, repeatable ones add to it:

  identity = "node.pem"
  listen = "[::]:4433"                 # UDP, for peers
  forward = "127.0.0.1:8080"           # HTTP and SOCKS5 for local clients
  allow = ["v...", "v..."]             # who may use the services, or ["anyone"]
  controller = "bbr"                   # or "cubic", "ledbat"
  rendezvous = ["v...@198.51.100.1:7348"]
  stun = ["stun.example.org:3478"]     # further servers
  lan = true                           # false unless given
  port_mapping = false                 # true unless given
  search_ports = false                 # true unless given
  relays = ["turns:user:password@relay.example.org:443"]
  direct_only = true                   # or ["v..."]: no relays with these nodes
  metrics = "127.0.0.1:9464"           # for Prometheus
  metrics_hosts = ["node1.example"]    # names by which it asks, beside
                                       # addresses and this machine's own
  patience = 300                       # seconds of silence that connections
                                       # outlive; 75 unless given
  [services]
  50051 = "127.0.0.1:50051"            # or "unix:/run/greeter.sock"
  8000 = "127.0.0.1:8000,patience=300" # its connections are more patient
  [peers]
  "v..." = ["198.51.100.7:4433"]
  [limits]                             # as keynet.Limits, times in seconds
  dial_timeout = 10

The password of the forward proxy is random unless
KEYNET_CREDENTIALS="user:password" is in the environment (a flag would show it
to every user of this machine), and is printed with the "ready" line.
"""


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "up",
        parents=[common],
        help="run a node until Ctrl-C",
        description="Runs a node: the HTTP and SOCKS5 proxy for local clients, the services for peers. Ctrl-C or "
        "SIGTERM ends it and "
        "lets open connections finish; a second one cuts them off.",
        epilog=_TOML,
    )
    parser.add_argument("--config", metavar="FILE", type=pathlib.Path, help="read options from a TOML file")
    add_identity(parser)
    parser.add_argument("--listen", metavar="ADDRESS", help="our UDP address (default [::]:0)")
    parser.add_argument("--forward", metavar="ADDRESS", help="the forward proxy's TCP address (default 127.0.0.1:0)")
    parser.add_argument(
        "--service",
        metavar="PORT=BACKEND",
        action="append",
        default=[],
        help="offer a service: 50051=127.0.0.1:50051 or =unix:/path; with ,patience=SECONDS behind it, its connections "
        "outlive so much silence",
    )
    parser.add_argument(
        "--allow",
        metavar="NODE",
        action="append",
        default=[],
        help='who may use the services: a node id, or "anyone"',
    )
    parser.add_argument(
        "--peer",
        metavar="NODE=ADDRESS",
        action="append",
        default=[],
        help="where a node is found; repeat it for more addresses",
    )
    parser.add_argument(
        "--expect",
        metavar="NODE",
        action="append",
        default=[],
        help="open our NAT for a node that will dial us at an address it knows (needs its --peer); a rendezvous does "
        "that by itself",
    )
    add_finding(parser)
    _add_metrics(parser)
    parser.add_argument(
        "--patience",
        metavar="SECONDS",
        type=duration,
        help="seconds of silence of a peer that connections outlive (default 75)",
    )
    parser.set_defaults(run=run)


def _add_metrics(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--metrics", metavar="ADDRESS", help=f"answer Prometheus at this TCP address ({install('metrics')})"
    )
    parser.add_argument(
        "--metrics-host",
        metavar="NAME",
        action="append",
        default=[],
        help="a name by which Prometheus asks, beside addresses and the name of this machine; repeatable, * for any",
    )


def run(options: argparse.Namespace, out: Output) -> int:
    settings = _settings(options)
    peers: dict[NodeId, list[str]] = settings.pop("peers")
    metrics: str | None = settings.pop("metrics")
    hosts: list[str] = settings.pop("metrics_hosts")
    expected = [NodeId(node) for node in options.expect]
    found = bool(settings.get("rendezvous") or settings.get("lan"))
    for node in expected:
        if node not in peers and not found:
            raise invalid(f"--expect {node}: no address of it is known; name one with --peer {node}=HOST:PORT")
    identity = load_identity(settings.pop("identity"))
    settings["allow"] = allowed(settings["allow"], identity.node_id)
    proxy = Proxy(identity, **settings)

    async def work() -> None:
        async with proxy:
            # at once: on a near rendezvous it is registered before the rest is done
            events = proxy.events()
            for node, addresses in peers.items():
                proxy.add_peer(node, addresses)
            punching = [asyncio.create_task(_expect(proxy, node)) for node in expected]
            status = StatusServer(proxy)
            measured = _measure(proxy, metrics, hosts)
            try:
                await _offer(status, out)
                await follow(proxy, out, lambda: _ready(proxy, settings, status, out), events)
            finally:
                for task in punching:
                    task.cancel()
                await status.close()
                if measured is not None:
                    await asyncio.to_thread(measured.close)

    asyncio.run(work())
    return 0


def _measure(proxy: Proxy, listen: str | None, hosts: list[str]) -> MetricsServer | None:
    if listen is None:
        return None
    try:
        from .. import metrics
    except ImportError as missing:
        raise invalid(f"--metrics: {missing}") from None
    return metrics.serve(listen, metrics.ProxyCollector(proxy), hosts=hosts)


async def _offer(status: StatusServer, out: Output) -> None:
    try:
        await status.start()
    except BindError as error:
        # a node that cannot be looked at is still a node
        out.note(f"`keynet status` will not find this node: {error.detail}")


async def _expect(proxy: Proxy, node: NodeId) -> None:
    """Keeps our NAT open for the node until it has come, and again when it is lost."""
    with contextlib.suppress(ProxyClosedError):
        while True:
            try:
                await proxy.expect(node, timeout=60)
            except DialError:
                pause = 1.0
            else:
                pause = 30.0
            await asyncio.sleep(pause)


def _ready(proxy: Proxy, settings: dict[str, Any], status: StatusServer, out: Output) -> None:
    # later ones are told as events
    registered = [f"{one.node_id}@{one.address}" for one in proxy.status().rendezvous if one.connected]
    fields = {
        "event": "ready",
        "node_id": proxy.node_id,
        "proxy_address": proxy.proxy_address,
        "forward_address": proxy.forward_address,
        "forward_url": proxy.forward_url,
        "services": settings.get("services", {}),
        "rendezvous": settings["rendezvous"],
        "registered": registered,
        "status_socket": None if status.path is None else str(status.path),
        "pid": os.getpid(),
    }
    lines = [
        f"node id   {proxy.node_id}",
        f"proxy     {proxy.proxy_address} (UDP, for peers)",
        f"forward   {proxy.forward_url} (HTTP and SOCKS5 proxy, for clients here)",
        *(f"service   {port} -> {backend}" for port, backend in fields["services"].items()),
        *(
            f"rendezvous {address} ({'registered' if address in registered else 'connecting'})"
            for address in settings["rendezvous"]
        ),
        painted("ready", "green", sys.stdout),
    ]
    out.result(fields, "\n".join(lines))


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of Proxy, plus `identity` (a path or None) and `peers`."""
    table = read_config(options.config) if options.config is not None else {}
    settings: dict[str, Any] = {"identity": options.identity}
    if settings["identity"] is None and "identity" in table:
        # relative to the file that names it
        settings["identity"] = options.config.parent / str(table["identity"])
    for name in ("listen", "forward", "controller", "limits"):
        value = getattr(options, name, None)
        if value is None:
            value = table.get(name)
        if value is not None:
            settings[name] = value
    patience = options.patience if options.patience is not None else table.get("patience")
    if patience is not None:
        settings["patience"] = patience
    services = _services(table.get("services", {}), "services")
    services.update(_services(pairs(options.service, "PORT=BACKEND"), "--service"))
    settings["services"] = services
    settings.update(finding(options, table))
    if "search_ports" in table:
        settings["search_ports"] = table["search_ports"]
    settings["metrics"] = table.get("metrics") if options.metrics is None else options.metrics
    settings["metrics_hosts"] = [*table.get("metrics_hosts", []), *options.metrics_host]
    settings["allow"] = [*table.get("allow", []), *options.allow]
    if services and not settings["allow"]:
        raise invalid("--service needs --allow: who may use it? A node id, or --allow anyone (`allow` in the file)")
    if credentials := os.environ.get("KEYNET_CREDENTIALS"):
        user, colon, password = credentials.partition(":")
        if not colon:
            raise invalid('KEYNET_CREDENTIALS is not of the form "user:password"')
        settings["credentials"] = (user, password)
    peers = {NodeId(node): list(addresses) for node, addresses in table.get("peers", {}).items()}
    for node, address in (split(item, "NODE=ADDRESS") for item in options.peer):
        peers.setdefault(NodeId(node), []).append(address)
    settings["peers"] = peers
    return settings


def _services(texts: Mapping[str, str], what: str) -> dict[int, str]:
    """Backends by port; 080 and 80 are one port, which has one backend."""
    found: dict[int, str] = {}
    for text, backend in texts.items():
        number = _port(text)
        if number in found:
            raise invalid(f"{what}: port {number} is there twice, as PORT=BACKEND")
        found[number] = backend
    return found


def _port(text: str) -> int:
    try:
        return port(text)
    except argparse.ArgumentTypeError as error:
        raise invalid(str(error)) from None

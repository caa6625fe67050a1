"""`Server`: a keynet node that offers the rendezvous service."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import pathlib
import resource
import socket
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import grpc
import grpc.aio

from .. import grpc as keynet_grpc
from .._access import ANYONE, Allow
from .._identity import Identity
from .._info import Limits
from .._lifetime import Runs
from .._node import NodeId
from .._proxy import Proxy
from .._repr import shown
from ._group import Group, GroupStatus
from ._limits import MAX_MESSAGE, Settings, port_of
from ._registry import Registry
from ._relays import OwnRelay, Relay
from ._router import Router
from ._service import Service
from ._stats import Stats
from ._stun import StunServer, start_stun
from .v1 import rendezvous_pb2_grpc as rpc

__all__ = ["SERVICE_PORT", "Server", "serve"]

_log = logging.getLogger("keynet.rendezvous")

SERVICE_PORT = 7348
"""The service port of a rendezvous among its keynet services, and by default its UDP port."""

_STREAMS_PER_NODE = 4
"""A node needs one; it may hold an old one while it moves to another network, or have a second process."""
_FILES_PER_NODE = 2
"""Both ends of the socket between keynet and gRPC are in this process."""
_SPARE_STREAMS = 256
"""Streams beside those of the registered nodes: newcomers, who have 10 s for their Hello, and those to be refused."""
_SPARE_FILES = 512
"""Open files beside those of streams: Python, gRPC, NATS and the core have a few dozen."""
_FAREWELL = 0.5
"""Seconds in which nodes that are told may move to another rendezvous: a round trip, and the exchange under way."""
_GRACE = 1.0
"""Seconds in which the streams' last words are written on closing."""


class Server(Runs):
    """A rendezvous: a `keynet.Proxy` whose one service introduces nodes to each other.

        async with keynet.rendezvous.Server(identity) as server: ...

    - `listen`: the UDP address.
    - `allow`: who may use it, as for `keynet.Proxy`; anyone unless given.
    - `stun`: UDP addresses "host:port" at which it answers STUN; two ports let nodes find out what their NAT does.
    - `public_stun`: "host:port" of other STUN servers that it recommends.
    - `relays`: TURN servers that it names to nodes, with credentials for each.
    - `relay`: run one in this process, and name it: options of `keynet.relay.RelayServer` (an empty mapping will do).
      Nodes whose UDP is blocked reach the rendezvous through it, by TCP and TLS.
    - `nats`: the NATS server that joins it with others to a group, "nats://host:4222".
    - `settings`: its bounds.
    """

    def __init__(
        self,
        identity: Identity,
        *,
        listen: str = f"[::]:{SERVICE_PORT}",
        allow: Allow = ANYONE,
        stun: Sequence[str] = (),
        public_stun: Sequence[str] = (),
        relays: Sequence[Relay] = (),
        relay: Mapping[str, Any] | None = None,
        nats: str | None = None,
        settings: Settings | None = None,
    ) -> None:
        self._settings = _fitting(settings or Settings())
        self._stun_addresses = list(stun)
        self._recommended = [f":{port_of(address, 'stun')}" for address in stun] + list(public_stun)
        for address in public_stun:
            port_of(address, "public_stun")
        self._own_relay = None if relay is None else OwnRelay(identity, relay, listen=listen)
        if self._own_relay is not None:
            relays = [*relays, *self._own_relay.named]
        self._folder = tempfile.TemporaryDirectory(prefix="keynet-rendezvous-")
        self._backend = f"unix:{pathlib.Path(self._folder.name, 'grpc')}"
        self._proxy = Proxy(
            identity,
            services={SERVICE_PORT: self._backend},
            allow=allow,
            listen=listen,
            limits=_proxy_limits(self._settings),
        )
        self._stats = Stats()
        self._group = None if nats is None else Group(nats, self._settings, self._deliver)
        self._registry = Registry(self._settings, appeared=self._appeared, gone=self._gone)
        self._router = Router(self._settings, self._registry, self._stats, time.monotonic, self._group)
        self._service = Service(
            self._settings,
            self._registry,
            self._router,
            self._stats,
            stun=self._recommended,
            relays=tuple(relays),
            clock=time.monotonic,
        )
        self._grpc: grpc.aio.Server | None = None
        self._sweeping: asyncio.Task[None] | None = None
        self._stun: StunServer | None = None

    @property
    def proxy(self) -> Proxy:
        """The node itself."""
        return self._proxy

    @property
    def node_id(self) -> NodeId:
        """The name of the rendezvous."""
        return self._proxy.node_id

    @property
    def address(self) -> str:
        """What nodes are told: "<node id>@host:port".

        Listening everywhere, the host is the address of this machine that leads outside, as it knows it itself: behind
        a NAT put the NAT's in its place.
        """
        host, _, port = self._proxy.proxy_address.rpartition(":")
        return f"{self.node_id}@{_outside(host)}:{port}"

    def __repr__(self) -> str:
        return shown(self, self.address if self._proxy.is_running else f"{self.node_id} not running")

    def stats(self) -> dict[str, int]:
        """Counters since the start, and how many nodes are registered now."""
        group = {} if self._group is None else {"group_connected": int(self._group.is_connected)}
        relay = {} if self._own_relay is None else self._own_relay.stats()
        stun = {} if self._stun is None else {f"stun_{name}": count for name, count in self._stun.stats().items()}
        return {
            "registered": len(self._registry),
            "names": self._registry.names,
            **self._stats.snapshot(),
            **group,
            **stun,
            **relay,
        }

    @property
    def group(self) -> GroupStatus | None:
        """How it stands with the group over NATS; None: it is in none."""
        if self._group is None:
            return None
        return GroupStatus(self._group.place, self._group.is_connected, self._group.trouble)

    def nodes_on_relays(self) -> dict[str, int]:
        """How many registered nodes use each of the relays that are named to them, by its first URI."""
        return self._service.nodes_on_relays()

    async def start(self) -> None:
        """Binds the sockets and begins. Raises `BindError`, `InvalidArgument`."""
        self._stun = await start_stun(self._stun_addresses)
        try:
            self._grpc = grpc.aio.server(
                # of this proxy alone: another node of this process vouches for nobody here
                interceptors=[keynet_grpc.aio_server_interceptor(self._proxy)],
                options=[
                    ("grpc.max_receive_message_length", MAX_MESSAGE),
                    ("grpc.max_concurrent_streams", _STREAMS_PER_NODE),
                    # headers of strangers: ours have none
                    ("grpc.max_metadata_size", 4096),
                ],
            )
            rpc.add_RendezvousServicer_to_server(self._service, self._grpc)
            self._grpc.add_insecure_port(self._backend)
            await self._grpc.start()
            await self._proxy.start()
            if self._own_relay is not None:
                await self._own_relay.start(_reached_at(self._proxy.proxy_address))
            if self._group is not None:
                self._group.start()
            self._sweeping = asyncio.create_task(self._sweep())
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Ends it: registered nodes are told, and find another rendezvous. May be called again."""
        await self._service.farewell(_FAREWELL)
        self._service.close()
        if self._sweeping is not None:
            self._sweeping.cancel()
        if self._grpc is not None:
            await self._grpc.stop(_GRACE)
        if self._group is not None:
            await self._group.close()
        if self._stun is not None:
            await self._stun.close()
        if self._own_relay is not None:
            await self._own_relay.close()
        await self._proxy.close(drain=False)
        self._folder.cleanup()

    async def _sweep(self) -> None:
        """Looks for expired registrations, often enough that they are late by a quarter of their time at most."""
        while True:
            await asyncio.sleep(self._settings.refresh * self._settings.expire_after / 4)
            self._service.expire()
            if self._own_relay is not None:
                self._own_relay.refresh()

    # the registry and the group know each other through these only
    def _appeared(self, name: NodeId) -> None:
        if self._group is not None:
            self._group.appeared(name)

    def _gone(self, name: NodeId) -> None:
        if self._group is not None:
            self._group.gone(name)

    def _deliver(self, *parcel: object) -> None:
        self._router.from_group(*parcel)  # type: ignore[arg-type]


async def serve(
    identity: Identity,
    *,
    listen: str = f"[::]:{SERVICE_PORT}",
    allow: Allow = ANYONE,
    stun: Sequence[str] = (),
    public_stun: Sequence[str] = (),
    relays: Sequence[Relay] = (),
    relay: Mapping[str, Any] | None = None,
    nats: str | None = None,
    settings: Settings | None = None,
) -> None:
    """Runs a `Server` until the task is cancelled."""
    server = Server(
        identity,
        listen=listen,
        allow=allow,
        stun=stun,
        public_stun=public_stun,
        relays=relays,
        relay=relay,
        nats=nats,
        settings=settings,
    )
    async with server:
        await asyncio.Event().wait()


def _proxy_limits(settings: Settings) -> Limits:
    streams = settings.max_nodes + _SPARE_STREAMS
    return {
        "max_streams": streams,
        "max_streams_per_node": _STREAMS_PER_NODE,
        "max_connections": streams,
        "max_peers": streams,
        # with as many again for those that come, and for nodes seen at two addresses
        "max_remotes": 2 * streams,
    }


def _fitting(settings: Settings) -> Settings:
    """Takes the open files that so many nodes need; with fewer nodes if the system does not let this process.

    Full is something that nodes can be told; a process without a file left can tell nobody.
    """
    wanted = _files(settings.max_nodes)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return settings
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    except (ValueError, OSError):
        limit = soft
    if limit >= wanted:
        return settings
    nodes = max(1, (limit - _files(0)) // _FILES_PER_NODE)
    _log.warning("%d open files are enough for %d nodes, not %d (ulimit -Hn)", limit, nodes, settings.max_nodes)
    return dataclasses.replace(settings, max_nodes=nodes)


def _files(nodes: int) -> int:
    return _FILES_PER_NODE * (nodes + _SPARE_STREAMS) + _SPARE_FILES


def _outside(host: str) -> str:
    if host not in ("[::]", "0.0.0.0"):
        return host
    return next(iter(_routed()), socket.gethostname())


def _routed() -> list[str]:
    """The addresses of this machine that lead outside."""
    found = []
    # connecting a UDP socket sends nothing: the system only looks up its route (to an address for documentation)
    for family, far in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((far, 9))
            address = probe.getsockname()[0]
            found.append(f"[{address}]" if family == socket.AF_INET6 else str(address))
    return found


def _reached_at(proxy_address: str) -> list[str]:
    """Where nodes reach the rendezvous, as this machine knows it: "host:port"."""
    host, _, port = proxy_address.rpartition(":")
    hosts = _routed() if host in ("[::]", "0.0.0.0") else [host]
    return [f"{host}:{port}" for host in hosts if host != "" and not (proxy_address[0] == "0" and host[0] == "[")]

"""What a proxy tells about itself and its connections: frozen dataclasses."""

from __future__ import annotations

import dataclasses
import datetime
from typing import Any, TypedDict

from ._node import NodeId
from ._reasons import Reason, _Name

__all__ = ["ConnectionInfo", "Limits", "PathInfo", "PingReport", "Priority", "ProxyStats", "Role"]


class Role(_Name):
    """Which side of a connection this node is on."""

    FORWARD = "forward"
    """A local client asked for it."""
    REVERSE = "reverse"
    """A peer asked for it; it ends at a local service."""


class Priority(_Name):
    """How what a connection sends shares the path with everything else."""

    INTERACTIVE = "interactive"
    """Takes its share, as TCP does."""
    BACKGROUND = "background"
    """Yields to everything else."""


@dataclasses.dataclass(frozen=True)
class ConnectionInfo:
    """One connection: a CONNECT, its uTP connection and TLS session, and the service's connection.

    The addresses carry the names of the picture in the documentation: client, forward, proxy, reverse, server.
    """

    id: int
    """Unique in its proxy."""
    role: Role
    node_id: NodeId
    """The peer: the key that it proved to hold (the leaf of its chain)."""
    node_ids: tuple[NodeId, ...]
    """Every name the peer answers to, newest first."""
    service_port: int
    priority: Priority
    """Of what this node sends."""
    client_address: str | None
    """forward: the local client as the forward proxy sees it."""
    reverse_address: str | None
    """reverse: what the service sees as its peer."""
    server_address: str | None
    """reverse: the service."""
    proxy_address: str
    """Our UDP socket."""
    remote_address: str
    """The peer's UDP address in use."""
    opened: datetime.datetime
    closed: datetime.datetime | None
    reason: Reason | None
    """Why it ended; None while it is open."""
    bytes_in: int
    """Payload from the peer."""
    bytes_out: int
    """Payload to the peer."""
    rtt: float | None
    """Round trip time of the path in seconds."""
    relayed: bool = False
    """A relay carried it when it opened."""
    stages: tuple[tuple[str, float], ...] = ()
    """forward: how long each stage of opening it took, in seconds: "find" (rendezvous, punching, relays), "utp", "tls",
    "open" (the peer's access list, and dialling the service)."""

    @property
    def is_open(self) -> bool:
        """Whether it has not ended yet."""
        return self.closed is None


@dataclasses.dataclass(frozen=True)
class PathInfo:
    """A path that a peer has answered on."""

    address: str
    """The peer's UDP address."""
    rtt: float
    """Round trip time in seconds."""
    observed: str | None
    """Our own address as the peer sees it (behind a NAT: the NAT's)."""


@dataclasses.dataclass(frozen=True)
class PingReport:
    """What `Proxy.ping` measured. Times are in seconds."""

    address: str
    """The address that answered."""
    node_id: NodeId
    """The key that the peer proved to hold; differs from the one asked for after a rotation."""
    rtt: float
    """Round trip time of the path."""
    utp: float
    """Until the uTP connection stood, counted from the start (punching included)."""
    tls: float
    """The TLS handshake."""
    tls_version: str
    tls_suite: str
    tls_group: str
    """The key exchange."""
    resumed: bool
    """Whether the TLS session was resumed from an earlier one."""


ProxyStats = dict[str, int]
"""Counters of a proxy by name, since its start."""


class Limits(TypedDict, total=False):
    """What a proxy may spend. Whatever is left out keeps the core's default (rust/src/config.rs gives the reasons).

    Times are in seconds.
    """

    max_clients: int
    max_streams: int
    max_streams_per_node: int
    max_dials_per_node: int
    max_handshakes: int
    max_handshakes_per_source: int
    max_handshakes_per_network: int
    max_peers: int
    max_addresses: int
    max_connections: int
    max_half_open: int
    max_remotes: int
    max_head_bytes: int
    head_timeout: float
    dial_timeout: float
    service_timeout: float
    open_timeout: float
    handshake_timeout: float
    hello_timeout: float
    linger: float
    other_addresses_after: float
    drain_timeout: float
    tombstone: float
    max_tombstones: int
    splice_buffer_bytes: int
    send_buffer_bytes: int
    receive_buffer_bytes: int
    event_queue: int
    patience: float
    lost_after: float
    ping_active: float
    ping_idle: float
    max_chain: int
    relay_bytes_per_second: int
    relay_bytes_per_second_per_peer: int


def _connection(raw: dict[str, Any]) -> ConnectionInfo:
    """From the dict that the core gives."""
    raw = dict(raw)
    raw["role"] = Role(raw["role"])
    raw["priority"] = Priority(raw["priority"])
    raw["node_id"] = NodeId(raw["node_id"])
    raw["node_ids"] = tuple(NodeId(text) for text in raw["node_ids"])
    raw["opened"] = _moment(raw["opened"])
    raw["closed"] = None if raw["closed"] is None else _moment(raw["closed"])
    raw["stages"] = tuple(raw["stages"])
    raw["reason"] = None if raw["reason"] is None else Reason(raw["reason"])
    return ConnectionInfo(**raw)


def _ping_report(raw: dict[str, Any]) -> PingReport:
    return PingReport(**{**raw, "node_id": NodeId(raw["node_id"])})


def _moment(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)

"""What a proxy reports while it runs: frozen dataclasses, made to be matched.

async for event in proxy.events():
    match event:
        case keynet.PeerLost(node_id=node, reason=reason): ...
        case keynet.ConnectionOpened(connection): ...
"""

from __future__ import annotations

import dataclasses
from typing import Any, Union

from ._info import ConnectionInfo, Role, _connection
from ._node import NodeId
from ._reasons import Reason
from .errors import KeynetError

__all__ = [
    "Closed",
    "ConnectionClosed",
    "ConnectionOpened",
    "ConnectionRefused",
    "Event",
    "EventsDropped",
    "MeetingFailed",
    "NetworkChanged",
    "PathChanged",
    "PeerConnected",
    "PeerLost",
    "RelayConnected",
    "RelayLost",
    "RendezvousConnected",
    "RendezvousLost",
]


@dataclasses.dataclass(frozen=True)
class PeerConnected:
    """A path to an authenticated peer stands."""

    node_id: NodeId
    address: str
    relayed: bool
    """A relay carries what goes there."""


@dataclasses.dataclass(frozen=True)
class PeerLost:
    """The peer does not answer (`peer_lost`), has started anew (`peer_restarted`), or has ended (`peer_gone`).

    In the first case its connections wait for it, for as long as `patience=` says, and `PeerConnected` tells of its
    return. In the others they have ended. A peer without connections is watched for 45 s after its last traffic; one
    that goes away later is not reported, nor is its return.
    """

    node_id: NodeId
    address: str
    reason: Reason


@dataclasses.dataclass(frozen=True)
class PathChanged:
    """The peer is now reached on another path (it roamed, its NAT rebound, or a better path was found)."""

    node_id: NodeId
    before: str
    after: str
    relayed: bool
    """A relay carries the traffic from now on."""


@dataclasses.dataclass(frozen=True)
class ConnectionOpened:
    """A connection stands from client to service."""

    connection: ConnectionInfo


@dataclasses.dataclass(frozen=True)
class ConnectionClosed:
    """A connection has ended; `connection.reason` says why."""

    connection: ConnectionInfo


@dataclasses.dataclass(frozen=True)
class ConnectionRefused:
    """A connection did not come about: a local client's or a peer's request failed."""

    node_id: NodeId | None
    """The peer, as far as it is known; None for a stranger."""
    address: str | None
    """Who asked: a local client's TCP address or a remote UDP address; None for a client on a UNIX socket."""
    service_port: int | None
    error: KeynetError
    role: Role
    """`Role.FORWARD`: a local client's; `Role.REVERSE`: a peer's."""


@dataclasses.dataclass(frozen=True)
class RendezvousConnected:
    """This node is registered at a rendezvous: others find it there by its key."""

    node_id: NodeId
    """The rendezvous."""
    address: str
    observed: str | None
    """This node's own UDP address as the rendezvous sees it."""


@dataclasses.dataclass(frozen=True)
class RendezvousLost:
    """This node is not registered at the rendezvous any more, or could not register; it goes on trying."""

    node_id: NodeId
    """The rendezvous."""
    address: str
    error: KeynetError


@dataclasses.dataclass(frozen=True)
class NetworkChanged:
    """This machine sends from another address or by another gateway, has come online or gone offline, or has slept.

    What depends on it is found out anew. Interfaces and addresses that nothing is sent from make no event.
    """

    addresses: tuple[str, ...]
    """Those it can be reached at as far as is known at this moment; what servers saw before is asked for again."""


@dataclasses.dataclass(frozen=True)
class MeetingFailed:
    """A meeting with a node, arranged by a rendezvous, found no path; `proxy.explain(node_id)` says more."""

    node_id: NodeId
    error: KeynetError


@dataclasses.dataclass(frozen=True)
class RelayConnected:
    """A relay keeps addresses for this node: peers that reach it in no other way do so there."""

    relay: str
    """Its host."""
    addresses: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class RelayLost:
    """A relay is gone, or carries nothing more for this node. Another is used, if there is one."""

    relay: str
    error: KeynetError


@dataclasses.dataclass(frozen=True)
class EventsDropped:
    """The reader of the events was too slow: so many of the oldest were dropped before this one."""

    count: int


@dataclasses.dataclass(frozen=True)
class Closed:
    """The proxy has closed; the last event."""


Event = Union[  # noqa: UP007 - isinstance() and get_args() of a Union work alike on every supported Python
    PeerConnected,
    PeerLost,
    PathChanged,
    ConnectionOpened,
    ConnectionClosed,
    ConnectionRefused,
    RendezvousConnected,
    RendezvousLost,
    NetworkChanged,
    MeetingFailed,
    RelayConnected,
    RelayLost,
    EventsDropped,
    Closed,
]


def _event(kind: str, raw: dict[str, Any]) -> Event:
    """From what the core gives: the name of the event and its fields."""
    if raw.get("node_id") is not None:
        raw["node_id"] = NodeId(raw["node_id"])
    match kind:
        case "peer_connected":
            return PeerConnected(**raw)
        case "peer_lost":
            return PeerLost(raw["node_id"], raw["address"], Reason(raw["reason"]))
        case "path_changed":
            return PathChanged(**raw)
        case "connection_opened":
            return ConnectionOpened(_connection(raw["connection"]))
        case "connection_closed":
            return ConnectionClosed(_connection(raw["connection"]))
        case "connection_refused":
            return ConnectionRefused(**{**raw, "role": Role(raw["role"])})
        case "rendezvous_connected":
            return RendezvousConnected(**raw)
        case "rendezvous_lost":
            return RendezvousLost(**raw)
        case "network_changed":
            return NetworkChanged(tuple(raw["addresses"]))
        case "meeting_failed":
            return MeetingFailed(**raw)
        case "relay_connected":
            return RelayConnected(raw["relay"], tuple(raw["addresses"]))
        case "relay_lost":
            return RelayLost(**raw)
        case "events_dropped":
            return EventsDropped(raw["count"])
        case "closed":
            return Closed()
        case _:
            raise AssertionError(f"the core sent an event that this package does not know: {kind}")

"""What a node is doing now, and why it is, or is not, connected to another: frozen dataclasses.

print(proxy.status().nat)
print(proxy.explain(node_id))
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from . import _explain
from ._info import _moment
from ._node import NodeId
from .errors import KeynetError, _from_core

__all__ = [
    "Answer",
    "Candidate",
    "LastDial",
    "Meeting",
    "NatBehaviour",
    "OwnAddress",
    "PacketSize",
    "PathExplanation",
    "PathStatus",
    "PeerStatus",
    "RelayStatus",
    "RendezvousStatus",
    "Status",
]


T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Candidate:
    """An address at which a node may be reached (RFC 8445)."""

    kind: str
    """ "host", "server-reflexive" (as a STUN server or a rendezvous saw it), "peer-reflexive" (as a peer saw it),
    "port-mapped" (a port that the router forwards) or "relayed"."""
    address: str


@dataclasses.dataclass(frozen=True)
class NatBehaviour:
    """What the NATs between a node and the internet do, taken together, in the words of RFC 4787."""

    summary: str
    """All of it in one line."""
    mapping: str
    """Of what the external port depends: "endpoint-independent", "address-dependent", "address-and-port-dependent"
    (the last two are called symmetric), "unknown"."""
    filtering: str
    """Who is let in through it; the same words."""
    ports: str
    """How external ports are chosen: "preserved", "sequential (...)", "block (...)", "uniform" or "unknown"; the
    parentheses have the numbers."""
    udp_blocked: bool
    """No STUN server answered."""
    translated: bool | None
    """Whether there is a NAT at all; None: not known."""
    external: str | None
    """The IP address that STUN servers saw."""
    learned: datetime.datetime | None = None
    """When this was found out."""
    elsewhere: bool = False
    """It was found out in the network before this one, and not yet anew."""

    def __str__(self) -> str:
        return _explain.nat(self.summary)


@dataclasses.dataclass(frozen=True)
class OwnAddress:
    """Where the internet sees this node, by one IP version, and since when that is known, or is not."""

    family: str
    """ "IPv4" or "IPv6"."""
    known: bool
    """A server has seen this node there, and the last question was answered."""
    since: datetime.datetime
    """Since when it is known, or is unknown."""
    addresses: tuple[str, ...]
    """The newest first. When it is unknown, what it was before; peers are still told of it."""
    confirmed: datetime.datetime | None
    """When a server last saw this node there."""
    asked: datetime.datetime | None
    """When servers were last asked."""
    servers: int
    """So many were asked then."""
    answers: int
    """So many of them answered."""


@dataclasses.dataclass(frozen=True)
class PathStatus:
    """An address of a peer, and what is known of the way there."""

    address: str
    in_use: bool
    proven: bool
    """The peer has answered there with a key that only it has."""
    rtt: float | None
    """Round trip time in seconds."""
    heard: float
    """Seconds since something came from there."""
    local: bool
    """It is an address of a local network, not of the internet."""
    socket: int
    """0: the node's own socket; others were opened to search among the ports of a symmetric NAT, and from
    32768 on they are relays of this node."""
    relayed: bool
    """A relay carries what goes this way, one of this node's or one of the peer's (then `address` is at the relay)."""
    chosen: datetime.datetime | None = None
    """Since when it is the one in use."""


@dataclasses.dataclass(frozen=True)
class PeerStatus:
    """A peer that there are paths to."""

    node_id: NodeId
    paths: tuple[PathStatus, ...]
    connections: int
    """Open now."""
    bytes_in: int
    """Payload from the peer, of the connections that are open now."""
    bytes_out: int
    """Payload to the peer, likewise."""
    direct_in: int
    """Bytes of datagrams from the peer that came directly, of all connections since it was last unknown."""
    direct_out: int
    relayed_in: int
    """The same for what a relay carried, this node's or the peer's."""
    relayed_out: int

    @property
    def path(self) -> PathStatus | None:
        """The one in use."""
        return next((path for path in self.paths if path.in_use), None)


@dataclasses.dataclass(frozen=True)
class RendezvousStatus:
    """A rendezvous that this node was given."""

    node_id: NodeId
    address: str
    connected: bool
    """Registered there."""
    observed: str | None
    """This node's own UDP address as the rendezvous sees it."""
    rtt: float | None
    """Round trip time in seconds."""
    clock_ahead: float | None
    """Seconds by which its clock was ahead of this machine's at the registration; None: not known."""
    error: KeynetError | None
    """Why it is not connected."""
    since: datetime.datetime | None = None
    """When this node registered there; None: it is not connected."""
    lost: datetime.datetime | None = None
    """When the last session ended; None: there was none, or there is one."""
    next_try: datetime.datetime | None = None
    """When it is tried again; None: it is connected, or just being tried."""


@dataclasses.dataclass(frozen=True)
class RelayStatus:
    """A relay that this node knows: a TURN server (RFC 8656)."""

    relay: str
    """Its host."""
    socket: int | None
    """`PathStatus.socket` of paths through it; None: it is not in use."""
    transport: str | None
    """How this node speaks to it: "udp", "tcp" or "tls"."""
    proxy: str | None
    """host:port of the HTTP proxy (`https_proxy`) that it is reached through; None: it is reached without."""
    addresses: tuple[str, ...]
    """What it keeps for this node."""
    rtt: float | None
    """Round trip time to it in seconds."""
    introduction: bool
    """It carries to a rendezvous and to nobody else."""
    bytes_in: int
    """Carried to this node, uTP and pings included."""
    bytes_out: int
    dropped: int
    """Datagrams that a full queue or a rule of the relay let fall."""
    peers: int
    """Addresses that it carries to and from."""
    error: KeynetError | None
    """Why it is not in use, or was lost."""
    since: datetime.datetime | None = None
    """Since when it is in use."""
    failed: datetime.datetime | None = None
    """When it was not reached, or was lost."""
    next_try: datetime.datetime | None = None

    @property
    def way(self) -> str:
        """`transport` and `proxy` in words."""
        through = "" if self.proxy is None else f" through the HTTP proxy {self.proxy}"
        return f"{self.transport}{through}"


@dataclasses.dataclass(frozen=True)
class Status:
    """A node at one moment, from `BaseProxy.status`."""

    node_id: NodeId
    proxy_address: str
    forward_address: str
    addresses: tuple[Candidate, ...]
    """Where it tells peers that it is."""
    nat: NatBehaviour | None
    """None: not known yet, or there is no server to ask."""
    rendezvous: tuple[RendezvousStatus, ...]
    relays: tuple[RelayStatus, ...]
    peers: tuple[PeerStatus, ...]
    own_addresses: tuple[OwnAddress, ...] = ()
    """Where the internet sees it, by IPv4 and IPv6; empty: there is no server that could tell."""
    when: datetime.datetime | None = None
    """The moment."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """An address that answered in a meeting."""

    address: str
    rtt: float
    """Round trip time in seconds."""


@dataclasses.dataclass(frozen=True)
class Meeting:
    """How two nodes that a rendezvous introduced tried to find a path: the last time they did."""

    when: datetime.datetime
    role: str
    """ "dialler": this node wanted to reach the other; "invited": the other one asked."""
    took: float | None
    """Seconds; None while it goes on."""
    outcome: str
    """ "met", "failed" or "running"."""
    relayed: bool
    """They met on a path over a relay. A direct one may have been found since."""
    direct_only: bool
    """One side uses no relays."""
    outlook: str | None
    """What both NATs let expect: "direct", "prediction" (of a NAT's next ports), "search" (among its ports) or
    "both_symmetric"; None: the other had not answered yet."""
    own_nat: str | None
    """`NatBehaviour.summary` of this node then."""
    peer_nat: str | None
    """What the other said of itself."""
    own_candidates: tuple[Candidate, ...]
    peer_candidates: tuple[Candidate, ...]
    tried: tuple[str, ...]
    """Addresses that this node pinged."""
    answered: tuple[Answer, ...]
    """Those that answered."""
    heard: tuple[str, ...]
    """Addresses that pings of the other came from."""
    pings: int
    """So many were sent."""
    error: KeynetError | None


@dataclasses.dataclass(frozen=True)
class PacketSize:
    """What the path in use carries (its MTU), as open connections have found out, in bytes of UDP payload."""

    carried: int
    """So much arrives whole."""
    unproven: bool
    """It is the least that full packets have: nothing shows that routers do not cut it into fragments."""
    lost: int | None
    """The smallest that is known to be lost; None: nothing is."""


@dataclasses.dataclass(frozen=True)
class LastDial:
    """How the last connection to a node began."""

    when: datetime.datetime
    error: KeynetError | None
    """None: well."""


@dataclasses.dataclass(frozen=True)
class PathExplanation:
    """Why a node is reached as it is, or is not: `print(proxy.explain(node_id))`."""

    node_id: NodeId
    known_addresses: tuple[str, ...]
    """Told by `add_peer`, or found in the local network."""
    paths: tuple[PathStatus, ...]
    connected: bool
    meeting: Meeting | None
    """The last one, if a rendezvous ever arranged one."""
    last_error: KeynetError | None
    """Why the last connection to it failed; None if it did not."""
    relays: tuple[RelayStatus, ...] = ()
    """Those of this node."""
    rendezvous: tuple[RendezvousStatus, ...] = ()
    """Those that this node was given, as they are now."""
    addresses: tuple[Candidate, ...] = ()
    """Where this node tells peers that it is, now."""
    own_addresses: tuple[OwnAddress, ...] = ()
    """Where the internet sees this node."""
    nat: NatBehaviour | None = None
    """What this node's NAT does."""
    packet_size: PacketSize | None = None
    """None: no connection is open."""
    heard: datetime.datetime | None = None
    """The other node's last sign of life."""
    last_dial: LastDial | None = None
    when: datetime.datetime | None = None
    """The moment of all this."""

    @property
    def relay(self) -> RelayStatus | None:
        """The one of this node that the path in use goes over; None, too, where only the other node's is in between."""
        sockets = [path.socket for path in self.paths if path.in_use and path.relayed]
        return next((relay for relay in self.relays if relay.socket in sockets), None)

    @property
    def cause(self) -> KeynetError | None:
        """What keeps the two apart now, if something does."""
        if self.connected:
            return None
        return (self.meeting.error if self.meeting is not None else None) or self.last_error

    @property
    def text(self) -> str:
        """All of it in words: the facts with their age, what was tried and what answered, why this path, what to do."""
        return _explain.describe(self)

    def __str__(self) -> str:
        return self.text


# From the dicts that the core gives, or that come out of JSON. Keys that are not known are left to later versions.


def _status(raw: Mapping[str, Any]) -> Status:
    return Status(
        node_id=NodeId(raw["node_id"]),
        proxy_address=raw["proxy_address"],
        forward_address=raw["forward_address"],
        addresses=_candidates(raw["addresses"]),
        nat=_nat(raw["nat"]),
        rendezvous=tuple(_rendezvous(one) for one in raw["rendezvous"]),
        relays=tuple(_relay(one) for one in raw["relays"]),
        peers=tuple(_peer(one) for one in raw["peers"]),
        own_addresses=_own_addresses(raw),
        when=_when(raw.get("when")),
    )


def _explanation(raw: Mapping[str, Any]) -> PathExplanation:
    return PathExplanation(
        node_id=NodeId(raw["node_id"]),
        known_addresses=tuple(raw["known_addresses"]),
        paths=_paths(raw["paths"]),
        connected=raw["connected"],
        meeting=None if raw["meeting"] is None else _meeting(raw["meeting"]),
        last_error=_error(raw["last_error"]),
        # a node of an earlier version does not name them
        relays=tuple(_relay(one) for one in raw.get("relays", ())),
        rendezvous=tuple(_rendezvous(one) for one in raw.get("rendezvous", ())),
        addresses=_candidates(raw.get("addresses", ())),
        own_addresses=_own_addresses(raw),
        nat=_nat(raw.get("nat")),
        packet_size=None if raw.get("packet_size") is None else _plain(PacketSize, raw["packet_size"]),
        heard=_when(raw.get("heard")),
        last_dial=_last_dial(raw.get("last_dial")),
        when=_when(raw.get("when")),
    )


def _peer(raw: Mapping[str, Any]) -> PeerStatus:
    return PeerStatus(
        node_id=NodeId(raw["node_id"]),
        paths=_paths(raw["paths"]),
        connections=raw["connections"],
        bytes_in=raw["bytes_in"],
        bytes_out=raw["bytes_out"],
        direct_in=raw["direct_in"],
        direct_out=raw["direct_out"],
        relayed_in=raw["relayed_in"],
        relayed_out=raw["relayed_out"],
    )


def _rendezvous(raw: Mapping[str, Any]) -> RendezvousStatus:
    node_id, error = NodeId(raw["node_id"]), _error(raw["error"])
    raw = {"clock_ahead": None, **raw}  # a node of an older version does not say it
    return _plain(RendezvousStatus, raw, node_id=node_id, error=error, **_moments(raw, "since", "lost", "next_try"))


def _relay(raw: Mapping[str, Any]) -> RelayStatus:
    moments = _moments(raw, "since", "failed", "next_try")
    raw = {"proxy": None, **raw}  # a node of an older version does not say it
    return _plain(RelayStatus, raw, addresses=tuple(raw["addresses"]), error=_error(raw["error"]), **moments)


def _nat(raw: Mapping[str, Any] | None) -> NatBehaviour | None:
    return None if raw is None else _plain(NatBehaviour, raw, **_moments(raw, "learned"))


def _own_addresses(raw: Mapping[str, Any]) -> tuple[OwnAddress, ...]:
    def one(own: Mapping[str, Any]) -> OwnAddress:
        addresses = tuple(own["addresses"])
        return _plain(OwnAddress, own, addresses=addresses, **_moments(own, "since", "confirmed", "asked"))

    return tuple(one(own) for own in raw.get("own_addresses", ()))


def _last_dial(raw: Mapping[str, Any] | None) -> LastDial | None:
    return None if raw is None else _plain(LastDial, raw, error=_error(raw["error"]), **_moments(raw, "when"))


def _meeting(raw: Mapping[str, Any]) -> Meeting:
    return _plain(
        Meeting,
        raw,
        **_moments(raw, "when"),
        own_candidates=_candidates(raw["own_candidates"]),
        peer_candidates=_candidates(raw["peer_candidates"]),
        tried=tuple(raw["tried"]),
        answered=tuple(_plain(Answer, one) for one in raw["answered"]),
        heard=tuple(raw["heard"]),
        error=_error(raw["error"]),
    )


def _paths(raw: Sequence[Mapping[str, Any]]) -> tuple[PathStatus, ...]:
    return tuple(_plain(PathStatus, one, **_moments(one, "chosen")) for one in raw)


def _candidates(raw: Sequence[Mapping[str, Any]]) -> tuple[Candidate, ...]:
    return tuple(_plain(Candidate, one) for one in raw)


def _error(raw: KeynetError | Mapping[str, Any] | None) -> KeynetError | None:
    if raw is None or isinstance(raw, KeynetError):
        return raw
    return _from_core(raw["reason"], raw["stage"], raw["node_id"], raw["address"], raw["detail"], raw["message"])


def _moments(raw: Mapping[str, Any], *names: str) -> dict[str, datetime.datetime | None]:
    return {name: _when(raw.get(name)) for name in names}


def _when(raw: float | str | None) -> datetime.datetime | None:
    """A moment as the core gives it, or as it comes out of JSON."""
    if raw is None:
        return None
    return datetime.datetime.fromisoformat(raw) if isinstance(raw, str) else _moment(raw)


def _plain(kind: type[T], raw: Mapping[str, Any], **converted: Any) -> T:
    given = {**raw, **converted}
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    # what has a default, a node of an earlier version does not say
    wanted = [field.name for field in fields if field.name in given or field.default is dataclasses.MISSING]
    return kind(**{name: given[name] for name in wanted})

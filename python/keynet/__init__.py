"""keynet: gRPC between two machines behind NATs, knowing only the other's public key.

    identity = keynet.Identity.load_or_create("node.pem")
    async with keynet.Proxy(identity, rendezvous=["v…@rendezvous.example.org:7348"]) as proxy:
        async with keynet.grpc.aio_channel(proxy, friend) as channel: ...

`keynet.sync.Proxy` is the blocking twin; `keynet.grpc` (needs grpcio) has the helpers for clients and servers;
`keynet.relay`, `keynet.rendezvous`, `keynet.metrics` and `keynet.tracing` are loaded when they are first used.
"""

import importlib as _importlib
import typing as _typing

from . import _early as _early  # before everything that takes time
from . import sync
from ._access import ANYONE, AccessRequest, Allow, Anyone
from ._events import (
    Closed,
    ConnectionClosed,
    ConnectionOpened,
    ConnectionRefused,
    Event,
    EventsDropped,
    MeetingFailed,
    NetworkChanged,
    PathChanged,
    PeerConnected,
    PeerLost,
    RelayConnected,
    RelayLost,
    RendezvousConnected,
    RendezvousLost,
)
from ._identity import Identity
from ._info import ConnectionInfo, Limits, PathInfo, PingReport, Priority, ProxyStats, Role
from ._keynet import __version__
from ._node import NodeId
from ._proxy import BaseProxy, EventStream, Forward, Proxy
from ._reasons import Culprit, Reason, Stage
from ._service import Service
from ._status import (
    Answer,
    Candidate,
    LastDial,
    Meeting,
    NatBehaviour,
    OwnAddress,
    PacketSize,
    PathExplanation,
    PathStatus,
    PeerStatus,
    RelayStatus,
    RendezvousStatus,
    Status,
)
from ._status_server import StatusServer
from .errors import (
    AccessDenied,
    AccessRevoked,
    BindError,
    BothSymmetric,
    CertificateError,
    CertificateExpired,
    ChainError,
    ConnectionLost,
    DialError,
    DialRefused,
    DialTimeout,
    Finished,
    ForkedError,
    IdentityError,
    IdentityExposed,
    IdentityInUse,
    IdentityMismatch,
    InternalError,
    InvalidArgument,
    KeynetError,
    LocalResetError,
    OperationCancelled,
    PeerBusy,
    PeerClosedError,
    PeerGoneError,
    PeerLostError,
    PeerOffline,
    PeerResetError,
    PeerRestartedError,
    ProtocolError,
    ProxyClosedError,
    RejectedByPeer,
    RelayGone,
    RelayRefused,
    RelayUnreachable,
    RendezvousBusy,
    RendezvousUnreachable,
    RequestError,
    ServiceError,
    ServiceNotFound,
    ServiceRefused,
    ServiceTimeout,
    TlsError,
    UdpBlocked,
    UnknownNode,
    Unreachable,
)

if _typing.TYPE_CHECKING:
    from . import grpc as grpc
    from . import metrics as metrics
    from . import relay as relay
    from . import rendezvous as rendezvous
    from . import tracing as tracing

# They need packages of others, or are for few programs: `keynet.grpc` is loaded when it is first used.
_LAZY = frozenset({"grpc", "metrics", "relay", "rendezvous", "tracing"})


def __getattr__(name: str) -> object:
    if name in _LAZY:
        return _importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    # a node
    "ANYONE",
    "AccessRequest",
    "Allow",
    "Anyone",
    "BaseProxy",
    "Forward",
    "Identity",
    "Limits",
    "NodeId",
    "Proxy",
    "Service",
    "sync",
    # what it tells
    "Answer",
    "Candidate",
    "ConnectionInfo",
    "Culprit",
    "LastDial",
    "Meeting",
    "NatBehaviour",
    "OwnAddress",
    "PacketSize",
    "PathExplanation",
    "PathInfo",
    "PathStatus",
    "PeerStatus",
    "PingReport",
    "ProxyStats",
    "Reason",
    "Priority",
    "RendezvousStatus",
    "Role",
    "Stage",
    "Status",
    "StatusServer",
    # events
    "Closed",
    "ConnectionClosed",
    "ConnectionOpened",
    "ConnectionRefused",
    "Event",
    "EventStream",
    "EventsDropped",
    "MeetingFailed",
    "NetworkChanged",
    "PathChanged",
    "PeerConnected",
    "PeerLost",
    "RelayConnected",
    "RelayGone",
    "RelayLost",
    "RelayStatus",
    "RendezvousConnected",
    "RendezvousLost",
    # errors
    "AccessDenied",
    "AccessRevoked",
    "BindError",
    "BothSymmetric",
    "CertificateError",
    "CertificateExpired",
    "ChainError",
    "ConnectionLost",
    "DialError",
    "DialRefused",
    "DialTimeout",
    "Finished",
    "ForkedError",
    "IdentityError",
    "IdentityExposed",
    "IdentityInUse",
    "IdentityMismatch",
    "InternalError",
    "InvalidArgument",
    "KeynetError",
    "LocalResetError",
    "OperationCancelled",
    "PeerBusy",
    "PeerClosedError",
    "PeerGoneError",
    "PeerLostError",
    "PeerOffline",
    "PeerResetError",
    "PeerRestartedError",
    "ProtocolError",
    "ProxyClosedError",
    "RejectedByPeer",
    "RelayRefused",
    "RelayUnreachable",
    "RendezvousBusy",
    "RendezvousUnreachable",
    "RequestError",
    "ServiceError",
    "ServiceNotFound",
    "ServiceRefused",
    "ServiceTimeout",
    "TlsError",
    "UdpBlocked",
    "UnknownNode",
    "Unreachable",
    "__version__",
]

"""keynet: gRPC between two machines behind NATs, knowing only the other's public key.

    identity = keynet.Identity.load_or_create("node.pem")
    async with keynet.Proxy(identity, services={50051: "127.0.0.1:50051"}, allow=[friend]) as proxy:
        proxy.add_peer(friend, ["198.51.100.7:4433"])
        async with keynet.grpc.aio_channel(proxy, friend) as channel: ...

`keynet.sync.Proxy` is the blocking twin; `keynet.grpc` (needs grpcio) has the helpers for clients and servers.
"""

from . import sync
from ._access import ANYONE, AccessRequest, Allow, Anyone
from ._events import (
    Closed,
    ConnectionClosed,
    ConnectionOpened,
    ConnectionRefused,
    Event,
    EventsDropped,
    PathChanged,
    PeerConnected,
    PeerLost,
)
from ._identity import Identity
from ._info import ConnectionInfo, Limits, PathInfo, PingReport, Priority, ProxyStats, Role
from ._keynet import __version__
from ._node import NodeId
from ._proxy import BaseProxy, EventStream, Forward, Proxy
from ._reasons import Culprit, Reason, Stage
from .errors import (
    AccessDenied,
    BindError,
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
    IdentityMismatch,
    InternalError,
    InvalidArgument,
    KeynetError,
    LocalResetError,
    OperationCancelled,
    PeerBusy,
    PeerClosedError,
    PeerLostError,
    PeerResetError,
    ProtocolError,
    ProxyClosedError,
    RejectedByPeer,
    RequestError,
    ServiceError,
    ServiceNotFound,
    ServiceRefused,
    ServiceTimeout,
    TlsError,
    UnknownNode,
    Unreachable,
)

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
    "sync",
    # what it tells
    "ConnectionInfo",
    "Culprit",
    "PathInfo",
    "PingReport",
    "ProxyStats",
    "Reason",
    "Priority",
    "Role",
    "Stage",
    # events
    "Closed",
    "ConnectionClosed",
    "ConnectionOpened",
    "ConnectionRefused",
    "Event",
    "EventStream",
    "EventsDropped",
    "PathChanged",
    "PeerConnected",
    "PeerLost",
    # errors
    "AccessDenied",
    "BindError",
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
    "IdentityMismatch",
    "InternalError",
    "InvalidArgument",
    "KeynetError",
    "LocalResetError",
    "OperationCancelled",
    "PeerBusy",
    "PeerClosedError",
    "PeerLostError",
    "PeerResetError",
    "ProtocolError",
    "ProxyClosedError",
    "RejectedByPeer",
    "RequestError",
    "ServiceError",
    "ServiceNotFound",
    "ServiceRefused",
    "ServiceTimeout",
    "TlsError",
    "UnknownNode",
    "Unreachable",
    "__version__",
]

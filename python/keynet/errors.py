"""The exceptions of keynet: one tree, at its root `KeynetError`.

Every `Reason` has exactly one class. Catch the class for what you want to do about it, read `error.reason` for what it
was. Where Python has a class for the same thing (`TimeoutError`, `ConnectionError`, `ValueError` ...) the class is
that too.

    KeynetError
    ├── InvalidArgument (ValueError)       ├── ProxyClosedError (RuntimeError)
    ├── ForkedError (RuntimeError)         ├── OperationCancelled
    ├── BindError (OSError)                ├── InternalError
    ├── IdentityError (ValueError)         IdentityExposed (PermissionError), IdentityInUse
    ├── RequestError                       a client of the forward proxy asked wrongly
    ├── DialError                          a connection did not come about
    │   ├── UnknownNode (LookupError)      ├── DialTimeout (TimeoutError)
    │   ├── DialRefused (ConnectionRefusedError), Unreachable
    │   ├── RendezvousUnreachable, RendezvousBusy, PeerOffline, UdpBlocked, BothSymmetric
    │   ├── RelayUnreachable, RelayRefused, RelayGone
    │   ├── TlsError ─ IdentityMismatch, RejectedByPeer, CertificateError ─ CertificateExpired, ChainError
    │   ├── AccessDenied (PermissionError)
    │   ├── ServiceError ─ ServiceNotFound (LookupError), ServiceRefused (ConnectionRefusedError),
    │   │                  ServiceTimeout (TimeoutError)
    │   └── PeerBusy, ProtocolError
    └── ConnectionLost (ConnectionError)   a connection that stood has ended
        ├── AccessRevoked (PermissionError)
        └── PeerLostError, PeerResetError, PeerClosedError, PeerRestartedError, PeerGoneError, LocalResetError,
            Finished
"""

from __future__ import annotations

from ._keynet import without_keys
from ._node import NodeId
from ._reasons import Culprit, Reason, Stage
from ._text import printable

__all__ = [
    "KeynetError",
    "InvalidArgument",
    "ProxyClosedError",
    "ForkedError",
    "OperationCancelled",
    "BindError",
    "InternalError",
    "IdentityError",
    "IdentityExposed",
    "IdentityInUse",
    "RequestError",
    "DialError",
    "UnknownNode",
    "DialTimeout",
    "DialRefused",
    "Unreachable",
    "RendezvousUnreachable",
    "PeerOffline",
    "UdpBlocked",
    "BothSymmetric",
    "RendezvousBusy",
    "RelayUnreachable",
    "RelayRefused",
    "RelayGone",
    "TlsError",
    "IdentityMismatch",
    "RejectedByPeer",
    "CertificateError",
    "CertificateExpired",
    "ChainError",
    "AccessDenied",
    "ServiceError",
    "ServiceNotFound",
    "ServiceRefused",
    "ServiceTimeout",
    "PeerBusy",
    "ProtocolError",
    "ConnectionLost",
    "PeerLostError",
    "PeerRestartedError",
    "PeerGoneError",
    "PeerResetError",
    "PeerClosedError",
    "AccessRevoked",
    "LocalResetError",
    "Finished",
]


_MAX_DETAIL = 2_100
"""Characters; as rust/src/error.rs has it, so that what the core says is not cut again."""
_MAX_MESSAGE = 4_096


def _encodable(text: str) -> str:
    """A name of a file that is not UTF-8 has surrogates in it, which the core does not take."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


class KeynetError(Exception):
    """A failure with what one needs to act on it.

    `str(error)` says it all in one line; its wording is not API, `reason` and `stage` are.
    """

    reason: Reason
    """Why."""
    stage: Stage
    """Where on the road."""
    node_id: NodeId | None
    """With which peer, if one was named yet."""
    address: str | None
    """At which address ("host:port"), if one was tried yet."""
    detail: str
    """What exactly, in words; may be empty."""

    def __init__(
        self,
        message: str = "",
        *,
        reason: Reason | None = None,
        stage: Stage = Stage.SETUP,
        node_id: NodeId | None = None,
        address: str | None = None,
        detail: str = "",
    ) -> None:
        if reason is None:
            # raised by Python with a plain text
            reason, detail = _default_reason(type(self)), detail or message
        # both may quote what others say (a peer's refusal), and keys in the place of names of files
        detail = printable(without_keys(_encodable(detail)), _MAX_DETAIL)
        message = printable(without_keys(_encodable(message)), _MAX_MESSAGE)
        address = None if address is None else printable(address)
        super().__init__(message or _sentence(reason, stage, node_id, address, detail))
        self.reason, self.stage, self.node_id, self.address, self.detail = (
            reason,
            stage,
            node_id,
            address,
            detail,
        )

    def __str__(self) -> str:
        # OSError formats itself from errno and friends; these errors always have their one sentence
        return str(self.args[0])

    def __repr__(self) -> str:
        facts = [f"reason={str(self.reason)!r}", f"stage={str(self.stage)!r}"]
        facts += [f"{name}={str(value)!r}" for name in ("node_id", "address") if (value := getattr(self, name))]
        return f"{type(self).__name__}({str(self)!r}, {', '.join(facts)})"

    def __reduce__(self) -> tuple[object, ...]:
        return (
            _rebuild,
            (type(self), str(self), self.reason, self.stage, self.node_id, self.address, self.detail),
        )

    @property
    def advice(self) -> str:
        """What to try."""
        return self.reason.advice

    @property
    def culprit(self) -> Culprit:
        """Who has to act."""
        return self.reason.culprit


class InvalidArgument(KeynetError, ValueError):
    """An option or an argument is out of range or makes no sense."""


class ProxyClosedError(KeynetError, RuntimeError):
    """The proxy was closed, or never started."""


class ForkedError(KeynetError, RuntimeError):
    """The process forked after the object was made; the child has none of the threads that it needs."""


class OperationCancelled(KeynetError):
    """The work was cancelled by the one who asked for it (a remote or shared dial; an `await` raises
    CancelledError)."""


class BindError(KeynetError, OSError):
    """A socket could not be bound."""


class InternalError(KeynetError):
    """A broken promise of keynet's own code; worth a report."""


class IdentityError(KeynetError, ValueError):
    """An identity file cannot be read or does not hold a key and its certificates."""


class IdentityExposed(IdentityError, PermissionError):
    """Others can read the identity file, or put another in its place; `detail` says how to mend it."""


class IdentityInUse(IdentityError):
    """Another program runs with this identity: here with the same file, or elsewhere, as a rendezvous noticed."""


class RequestError(KeynetError):
    """A client of the forward proxy sent something else than a good request, or too many of them."""


class DialError(KeynetError):
    """A connection to a node did not come about."""


class UnknownNode(DialError, LookupError):
    """No address of the node is known, and no rendezvous to ask: give the proxy `rendezvous=`, or `add_peer`."""


class DialTimeout(DialError, TimeoutError):
    """The node did not answer in time; `stage` says how far it went."""


class DialRefused(DialError, ConnectionRefusedError):
    """Something at the address refused the connection."""


class Unreachable(DialError):
    """The datagrams could not be sent at all."""


class RendezvousUnreachable(DialError):
    """None of the rendezvous nodes answers, so nobody can be asked for the node."""


class PeerOffline(DialError):
    """The node is registered at none of the rendezvous nodes: it does not run, or uses others."""


class UdpBlocked(DialError):
    """No UDP comes back from anywhere: this network blocks it."""


class BothSymmetric(DialError):
    """Both NATs take another, unpredictable port for each destination: neither side can know where to send."""


class RendezvousBusy(DialError):
    """The rendezvous takes no more from this node for now."""


class RelayUnreachable(DialError):
    """No relay can be reached."""


class RelayRefused(DialError):
    """The relay, or the HTTP proxy before it, does not let this node do that: its credentials, a quota, a rule."""


class RelayGone(DialError):
    """A relay that was in use is gone."""


class TlsError(DialError):
    """The TLS handshake failed, or the peer is not who it should be."""


class IdentityMismatch(TlsError):
    """Another node answered at the address."""


class RejectedByPeer(TlsError):
    """The peer judged this node's certificate and turned it away."""


class CertificateError(TlsError):
    """The peer's certificate is missing, unreadable or breaks a rule of docs/protocol.md."""


class CertificateExpired(CertificateError):
    """The peer's certificate is outside its dates."""


class ChainError(CertificateError):
    """The peer's chain of rotated keys is broken or too long."""


class AccessDenied(DialError, PermissionError):
    """This node is not on the peer's access list."""


class ServiceError(DialError):
    """The service behind the peer cannot be had, or does not speak HTTP where a client asked in HTTP."""


class ServiceNotFound(ServiceError, LookupError):
    """The peer offers no service at this port."""


class ServiceRefused(ServiceError, ConnectionRefusedError):
    """The service behind the peer refused the connection: its server does not run."""


class ServiceTimeout(ServiceError, TimeoutError):
    """The service behind the peer did not answer in time."""


class PeerBusy(DialError):
    """The peer holds as many connections as it may."""


class ProtocolError(DialError):
    """The peer's answer breaks the protocol."""


class ConnectionLost(KeynetError, ConnectionError):
    """A connection that stood has ended."""


class PeerLostError(ConnectionLost):
    """Nothing was heard from the peer for too long."""


class PeerResetError(ConnectionLost, ConnectionResetError):
    """The peer reset the connection."""


class AccessRevoked(ConnectionLost, PermissionError):
    """The node was taken off the access list of the other, or disconnected by it, while it was connected."""


class PeerClosedError(ConnectionLost):
    """The peer said that it is shutting down."""


class PeerRestartedError(ConnectionLost):
    """The peer's process has started anew, and knows nothing of the connection."""


class PeerGoneError(ConnectionLost):
    """The peer has ended: it said so, or its machine says that nobody is there."""


class LocalResetError(ConnectionLost, ConnectionResetError):
    """The program at one of the two ends broke its connection."""


class Finished(ConnectionLost):
    """Both directions ended in order; no failure, but a reason like the others."""


_CLASSES: dict[Reason, type[KeynetError]] = {
    Reason.INVALID_ARGUMENT: InvalidArgument,
    Reason.PROXY_CLOSED: ProxyClosedError,
    Reason.IDENTITY_INVALID: IdentityError,
    Reason.IDENTITY_EXPOSED: IdentityExposed,
    Reason.IDENTITY_IN_USE: IdentityInUse,
    Reason.BIND_FAILED: BindError,
    Reason.FORKED: ForkedError,
    Reason.CANCELLED: OperationCancelled,
    Reason.BAD_REQUEST: RequestError,
    Reason.BAD_TARGET: RequestError,
    Reason.METHOD_NOT_ALLOWED: RequestError,
    Reason.CREDENTIALS_REQUIRED: RequestError,
    Reason.HEAD_TOO_LARGE: RequestError,
    Reason.HEAD_TIMEOUT: RequestError,
    Reason.TOO_MANY_CONNECTIONS: RequestError,
    Reason.UNKNOWN_NODE: UnknownNode,
    Reason.PUNCH_TIMEOUT: DialTimeout,
    Reason.CONNECT_TIMEOUT: DialTimeout,
    Reason.CONNECT_REFUSED: DialRefused,
    Reason.UNREACHABLE: Unreachable,
    Reason.RENDEZVOUS_UNREACHABLE: RendezvousUnreachable,
    Reason.PEER_OFFLINE: PeerOffline,
    Reason.UDP_BLOCKED: UdpBlocked,
    Reason.BOTH_SYMMETRIC: BothSymmetric,
    Reason.RENDEZVOUS_BUSY: RendezvousBusy,
    Reason.RELAY_UNREACHABLE: RelayUnreachable,
    Reason.RELAY_REFUSED: RelayRefused,
    Reason.RELAY_LOST: RelayGone,
    Reason.TLS_FAILED: TlsError,
    Reason.TLS_TIMEOUT: DialTimeout,
    Reason.IDENTITY_MISMATCH: IdentityMismatch,
    Reason.CERTIFICATE_MISSING: CertificateError,
    Reason.CERTIFICATE_INVALID: CertificateError,
    Reason.CERTIFICATE_EXPIRED: CertificateExpired,
    Reason.CHAIN_BROKEN: ChainError,
    Reason.CHAIN_TOO_LONG: ChainError,
    Reason.NAME_MISMATCH: CertificateError,
    Reason.REJECTED_BY_PEER: RejectedByPeer,
    Reason.ACCESS_DENIED: AccessDenied,
    Reason.SERVICE_NOT_FOUND: ServiceNotFound,
    Reason.SERVICE_REFUSED: ServiceRefused,
    Reason.SERVICE_TIMEOUT: ServiceTimeout,
    Reason.PEER_BUSY: PeerBusy,
    Reason.PROTOCOL_VIOLATION: ProtocolError,
    Reason.OPEN_TIMEOUT: DialTimeout,
    Reason.PEER_LOST: PeerLostError,
    Reason.PEER_RESET: PeerResetError,
    Reason.PEER_CLOSED: PeerClosedError,
    Reason.ACCESS_REVOKED: AccessRevoked,
    Reason.PEER_RESTARTED: PeerRestartedError,
    Reason.PEER_GONE: PeerGoneError,
    Reason.FINISHED: Finished,
    Reason.CLIENT_RESET: LocalResetError,
    Reason.SERVICE_RESET: LocalResetError,
    Reason.SERVICE_PROTOCOL_ERROR: ServiceError,
    Reason.INTERNAL: InternalError,
}


_KINDS: dict[type[KeynetError], Reason] = {
    TlsError: Reason.TLS_FAILED,
    ServiceError: Reason.SERVICE_REFUSED,
    DialError: Reason.UNREACHABLE,
    ConnectionLost: Reason.PEER_LOST,
    DialTimeout: Reason.CONNECT_TIMEOUT,
    LocalResetError: Reason.CLIENT_RESET,
    CertificateError: Reason.CERTIFICATE_INVALID,
    KeynetError: Reason.INTERNAL,
}
"""The reason of a class that stands for none, or for several, when an error is made without one."""


def _default_reason(kind: type[KeynetError]) -> Reason:
    """That of the class, or of the nearest class above it."""
    for one in kind.__mro__:
        found = _KINDS.get(one) or next((reason for reason, known in _CLASSES.items() if known is one), None)
        if found is not None:
            return found
    return Reason.INTERNAL


def _from_core(
    reason: str, stage: str, node_id: str | None, address: str | None, detail: str, message: str = ""
) -> KeynetError:
    """Builds the exception for an error of the core; the extension module calls this."""
    why = Reason(reason)
    return _CLASSES[why](
        message,
        reason=why,
        stage=Stage(stage),
        node_id=None if node_id is None else NodeId(node_id),
        address=address,
        detail=detail,
    )


def _rebuild(
    cls: type[KeynetError],
    message: str,
    reason: Reason,
    stage: Stage,
    node_id: NodeId | None,
    address: str | None,
    detail: str,
) -> KeynetError:
    return cls(message, reason=reason, stage=stage, node_id=node_id, address=address, detail=detail)


def _sentence(reason: Reason, stage: Stage, node_id: NodeId | None, address: str | None, detail: str) -> str:
    """The same form as `Display` of the core's Error."""
    text = reason.value.replace("_", " ") + (f": {detail}" if detail else "")
    where = [f"stage {stage}"]
    if node_id is not None:
        where.append(f"node {node_id}")
    if address is not None:
        where.append(f"address {address}")
    return f"{text} [{', '.join(where)}]; {reason.advice}"

"""Reason, Stage and Culprit: the closed sets of the core (rust/src/error.rs), with names that type checkers see.

The members are written out for their sake; `tests/python/test_errors.py` holds them equal to what the core exports.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple

from . import _keynet

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Culprit", "Reason", "Stage"]


class _Facts(NamedTuple):
    code: int
    culprit: str
    http_status: int
    proxy_status: str
    advice: str


_FACTS = {row[0]: _Facts(*row[1:]) for row in _keynet.reasons()}


class _Name(str, enum.Enum):
    """A member is its name: it compares equal to the string, formats as it and goes into JSON as it."""

    def __new__(cls, value: str) -> Self:
        member = str.__new__(cls, value)
        member._value_ = value
        return member

    def __str__(self) -> str:
        return str(self.value)

    def __format__(self, spec: str) -> str:
        return format(str(self.value), spec)


class Culprit(_Name):
    """Who has to act when a reason occurs."""

    CALLER = "caller"
    CLIENT = "client"
    PEER = "peer"
    NETWORK = "network"
    SERVICE = "service"
    KEYNET = "keynet"


class Stage(_Name):
    """Where on the road of a connection something failed, in order."""

    SETUP = "setup"
    REQUEST = "request"
    RENDEZVOUS = "rendezvous"
    RELAY = "relay"
    PUNCH = "punch"
    UTP = "utp"
    TLS = "tls"
    OPEN = "open"
    SERVICE = "service"
    STREAM = "stream"


class Reason(_Name):
    """Why something failed or ended. Names are stable; the same set is used in events, errors, logs and on the wire."""

    INVALID_ARGUMENT = "invalid_argument"
    PROXY_CLOSED = "proxy_closed"
    IDENTITY_INVALID = "identity_invalid"
    IDENTITY_EXPOSED = "identity_exposed"
    BIND_FAILED = "bind_failed"
    FORKED = "forked"
    CANCELLED = "cancelled"
    IDENTITY_IN_USE = "identity_in_use"

    BAD_REQUEST = "bad_request"
    BAD_TARGET = "bad_target"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    CREDENTIALS_REQUIRED = "credentials_required"
    HEAD_TOO_LARGE = "head_too_large"
    HEAD_TIMEOUT = "head_timeout"
    TOO_MANY_CONNECTIONS = "too_many_connections"

    UNKNOWN_NODE = "unknown_node"
    PUNCH_TIMEOUT = "punch_timeout"
    CONNECT_TIMEOUT = "connect_timeout"
    CONNECT_REFUSED = "connect_refused"
    UNREACHABLE = "unreachable"

    RENDEZVOUS_UNREACHABLE = "rendezvous_unreachable"
    PEER_OFFLINE = "peer_offline"
    UDP_BLOCKED = "udp_blocked"
    BOTH_SYMMETRIC = "both_symmetric"
    RENDEZVOUS_BUSY = "rendezvous_busy"
    RELAY_UNREACHABLE = "relay_unreachable"
    RELAY_REFUSED = "relay_refused"
    RELAY_LOST = "relay_lost"

    TLS_FAILED = "tls_failed"
    TLS_TIMEOUT = "tls_timeout"
    IDENTITY_MISMATCH = "identity_mismatch"
    CERTIFICATE_MISSING = "certificate_missing"
    CERTIFICATE_INVALID = "certificate_invalid"
    CERTIFICATE_EXPIRED = "certificate_expired"
    CHAIN_BROKEN = "chain_broken"
    CHAIN_TOO_LONG = "chain_too_long"
    NAME_MISMATCH = "name_mismatch"
    REJECTED_BY_PEER = "rejected_by_peer"

    ACCESS_DENIED = "access_denied"
    SERVICE_NOT_FOUND = "service_not_found"
    SERVICE_REFUSED = "service_refused"
    SERVICE_TIMEOUT = "service_timeout"
    PEER_BUSY = "peer_busy"
    PROTOCOL_VIOLATION = "protocol_violation"
    OPEN_TIMEOUT = "open_timeout"

    PEER_LOST = "peer_lost"
    PEER_RESET = "peer_reset"
    PEER_CLOSED = "peer_closed"
    FINISHED = "finished"
    CLIENT_RESET = "client_reset"
    SERVICE_RESET = "service_reset"
    PEER_RESTARTED = "peer_restarted"
    ACCESS_REVOKED = "access_revoked"
    PEER_GONE = "peer_gone"

    SERVICE_PROTOCOL_ERROR = "service_protocol_error"

    INTERNAL = "internal"

    @property
    def code(self) -> int:
        """Its number on the wire (docs/protocol.md section 5)."""
        return _FACTS[self.value].code

    @property
    def culprit(self) -> Culprit:
        """Who has to act."""
        return Culprit(_FACTS[self.value].culprit)

    @property
    def http_status(self) -> int:
        """The status that the forward proxy answers a CONNECT with (RFC 9110)."""
        return _FACTS[self.value].http_status

    @property
    def proxy_status(self) -> str:
        """The error type in the answer's `Proxy-Status` field (RFC 9209 section 2.3)."""
        return _FACTS[self.value].proxy_status

    @property
    def advice(self) -> str:
        """What a person can do about it."""
        return _FACTS[self.value].advice

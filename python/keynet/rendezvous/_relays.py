"""Relays that a rendezvous names: TURN servers (RFC 8656), with credentials that end by themselves."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import hmac
from collections.abc import Sequence

from ._limits import invalid
from .v1 import rendezvous_pb2 as pb

__all__ = ["Relay", "credentials"]

_MAX_URIS = 4
"""rendezvous.proto."""


@dataclasses.dataclass(frozen=True)
class Relay:
    """A TURN server that shares a secret with the rendezvous (`use-auth-secret` of coturn, `secret=` of `RelayServer`).

    Each node gets a name and a password of its own, made from the secret: the relay needs to be told nothing.
    """

    uris: Sequence[str]
    """Ways to one server: "turn:host:3478", "turn:host:3478?transport=tcp", "turns:host:443"; 4 at most. Without a host,
    "turn::3478", it is the host of the rendezvous."""
    secret: str = dataclasses.field(repr=False)
    seconds: int = 86_400
    """How long the credentials let a node make new allocations; fresh ones come in time."""

    def __post_init__(self) -> None:
        if isinstance(self.uris, str) or not 0 < len(self.uris) <= _MAX_URIS:
            raise invalid(f"a relay has 1 to {_MAX_URIS} URIs, in a list")
        for uri in self.uris:
            if not uri.startswith(("turn:", "turns:")):
                raise invalid(f"a relay is turn:HOST or turns:HOST, not {uri!r}")
        if not self.secret:
            raise invalid("a relay needs the secret that it shares with the rendezvous")
        if self.seconds < 60:
            raise invalid(f"credentials that are good for {self.seconds} s are over before they are used; 60 at least")

    def message(self, node_id: str, now: float) -> pb.Relay:
        """What a node is told. `now`: Unix time in seconds."""
        username, password = credentials(self.secret, node_id, now + self.seconds)
        return pb.Relay(uris=list(self.uris), username=username, password=password, seconds=self.seconds)


def credentials(secret: str, node_id: str, until: float) -> tuple[str, str]:
    """User and password by the scheme that coturn calls `use-auth-secret`: good until `until`, Unix time in seconds."""
    username = f"{int(until)}:{node_id}"
    digest = hmac.digest(secret.encode(), username.encode(), hashlib.sha1)
    return username, base64.b64encode(digest).decode()

"""Relays that a rendezvous names: TURN servers (RFC 8656), with credentials that end by themselves."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from .._identity import Identity
from ..relay import PORT, RelayServer, _several, credentials
from ._limits import invalid, port_of
from .v1 import rendezvous_pb2 as pb

__all__ = ["OwnRelay", "Relay", "credentials"]

_MAX_URIS = 4
"""rendezvous.proto."""
_PARAMETERS = ("transport", "key")
"""What the URI of a relay says to a node: RFC 7065, and the name of the certificate's key."""
_MAX_WEIGHT = 65_535
"""RFC 2782."""


@dataclasses.dataclass(frozen=True)
class Relay:
    """A TURN server that shares a secret with the rendezvous (`use-auth-secret` of coturn, `secret=` of `RelayServer`).

    Each node gets a name and a password of its own, made from the secret: the relay needs to be told nothing.
    """

    uris: Sequence[str]
    """Ways to one server: "turn:host:3478", "turn:host:3478?transport=tcp", "turns:host:443"; 4 at most. Without a
    host, "turn::3478", it is the host of the rendezvous."""
    secret: str = dataclasses.field(repr=False)
    seconds: int = 86_400
    """How long the credentials let a node make new allocations; fresh ones come in time."""
    weight: int = 100
    """Of relays that are about as near to a node, one with twice the weight is taken twice as often (RFC 2782); 0: only
    if no other answers. The rendezvous takes some off while more of its nodes use this relay than their weights say."""

    def __post_init__(self) -> None:
        if isinstance(self.uris, str) or not 0 < len(self.uris) <= _MAX_URIS:
            raise invalid(f"a relay has 1 to {_MAX_URIS} URIs, in a list: turn:HOST or turns:HOST, not {self.uris!r}")
        for uri in self.uris:
            if not uri.startswith(("turn:", "turns:")):
                raise invalid(f"a relay is turn:HOST or turns:HOST, not {uri!r}")
            if "@" in uri:
                raise invalid(
                    f"a relay that a rendezvous names has no user: names are made from the secret, not {uri!r}"
                )
            parameters = [one.partition("=")[0] for one in uri.partition("?")[2].split("&")] if "?" in uri else []
            if unknown := [name for name in parameters if name not in _PARAMETERS]:
                raise invalid(f"a relay's URI has {' and '.join(_PARAMETERS)}, not {', '.join(unknown)}: {uri!r}")
        if not self.secret:
            raise invalid("a relay needs the secret that it shares with the rendezvous")
        if self.seconds < 60:
            raise invalid(f"credentials that are good for {self.seconds} s are over before they are used; 60 at least")
        if not 0 <= self.weight <= _MAX_WEIGHT:
            raise invalid(f"a relay weighs 0 to {_MAX_WEIGHT}, not {self.weight}")

    def message(self, node_id: str, now: float, weight: int) -> pb.Relay:
        """What a node is told. `now`: Unix time in seconds."""
        username, password = credentials(self.secret, node_id, now + self.seconds)
        return pb.Relay(uris=list(self.uris), username=username, password=password, seconds=self.seconds, weight=weight)


class OwnRelay:
    """A relay in the process of the rendezvous, which shares a secret with it that nobody else needs to know.

    `options` are those of `keynet.relay.RelayServer`, and `weight`; TLS shows the certificate of `identity` unless they
    have another.
    """

    def __init__(self, identity: Identity, options: Mapping[str, Any]) -> None:
        options = {"identity": identity, "secret": secrets.token_urlsafe(32), **options}
        self._told = list(options.pop("introduction_peers", ()))
        weight = options.pop("weight", Relay.weight)
        self._options = options
        self._server: RelayServer | None = None
        listen, tls = _several(options.get("listen", f"0.0.0.0:{PORT}")), _several(options.get("tls", ()))
        plain = port_of(listen[0]) if listen else PORT
        uris = [f"turn::{plain}", f"turn::{plain}?transport=tcp"]
        key = "" if options.get("certificate") else f"?key={identity.node_id}"
        uris += [f"turns::{port_of(address)}{key}" for address in tls[:1]]
        self.named = Relay(uris, options["secret"], weight=weight)

    async def start(self, rendezvous: Sequence[str]) -> None:
        """Binds its sockets. `rendezvous`: the addresses of the rendezvous, to which it carries for everybody."""
        # what nodes are told may be another address than this machine knows (behind a 1:1 NAT)
        self._server = RelayServer(**self._options, introduction_peers=[*self._told, *rendezvous])
        await self._server.start()

    def stats(self) -> dict[str, int]:
        """Counters since the start, by name, with `relay_` in front."""
        found = {} if self._server is None else self._server.stats()
        return {f"relay_{name}": count for name, count in found.items()}

    async def close(self) -> None:
        """Ends all allocations. May be called again."""
        if self._server is not None:
            await self._server.close()

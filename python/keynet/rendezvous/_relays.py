"""Relays that a rendezvous names: TURN servers (RFC 8656), with credentials that end by themselves."""

from __future__ import annotations

import dataclasses
import ipaddress
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .._identity import Identity
from .._keynet import excerpt
from ..errors import InvalidArgument
from ..relay import PORT, RelayServer, _several, credentials
from ._limits import invalid, port_of
from .v1 import rendezvous_pb2 as pb

__all__ = ["OwnRelay", "Relay", "credentials"]

_MAX_URIS = 4
"""rendezvous.proto."""
_PARAMETERS = ("transport", "key")
"""What the URI of a relay says to a node: RFC 7065, and the name of the certificate's key."""
_SERVER = re.compile(r"(?:[\w.-]*|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?")
"""Host and port; the host may be missing."""
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
            raise invalid(f"a relay has 1 to {_MAX_URIS} URIs, in a list: turn:HOST or turns:HOST")
        for uri in self.uris:
            if not uri.startswith(("turn:", "turns:")):
                raise invalid("a relay is turn:HOST or turns:HOST, not another scheme")
            # the URI is not shown: a password may be in it
            if "@" in uri:
                raise invalid("a relay that a rendezvous names has no user and password: they are made from the secret")
            if not _SERVER.fullmatch(uri.partition(":")[2].partition("?")[0]):
                raise invalid("a relay is turn:HOST[:PORT] or turns:HOST[:PORT]; without a host, turn::PORT")
            parameters = [one.partition("=")[0] for one in uri.partition("?")[2].split("&")] if "?" in uri else []
            if [name for name in parameters if name not in _PARAMETERS]:
                raise invalid(f"a relay's URI has the parameters {' and '.join(_PARAMETERS)}, and no others")
            if "key" in parameters and not uri.startswith("turns:"):
                raise invalid("a relay's key= is that of its certificate: it means nothing without TLS (turns:)")
        if not self.secret:
            raise invalid("a relay needs the secret that it shares with the rendezvous")
        if self.seconds < 60:
            raise invalid(f"credentials that are good for {self.seconds} s are over before they are used; 60 at least")
        if not 0 <= self.weight <= _MAX_WEIGHT:
            raise invalid(f"a relay weighs 0 to {_MAX_WEIGHT}, not {self.weight}")

    @property
    def counted_as(self) -> str:
        """The name by which nodes on this server are counted."""
        return self.uris[0]

    def secret_at(self, now: float) -> str:
        """The secret to make names with. `now`: Unix time in seconds."""
        return self.secret

    def message(self, node_id: str, now: float, weight: int) -> pb.Relay:
        """What a node is told. `now`: Unix time in seconds."""
        username, password = credentials(self.secret_at(now), node_id, now + self.seconds)
        return pb.Relay(uris=list(self.uris), username=username, password=password, seconds=self.seconds, weight=weight)


@dataclasses.dataclass(frozen=True)
class _Beside(Relay):
    """Ways to the relay of the rendezvous itself, whose secret changes with time."""

    server: str = ""
    lasting: _Lasting | None = None

    @property
    def counted_as(self) -> str:
        return self.server

    def secret_at(self, now: float) -> str:
        return self.secret if self.lasting is None else self.lasting.secret(now)


class _Lasting:
    """Secrets that follow from an identity: the same after a restart, so that what was given out before is still good.

    There is another in each period of a week. The relay takes those of the period before as well, whose names have not
    ended yet, and of the one after: the clock may have been set back.
    """

    def __init__(self, identity: Identity) -> None:
        self._identity = identity

    def secret(self, now: float) -> str:
        return self._of(int(now // _PERIOD))

    def taken(self, now: float) -> list[str]:
        """What the relay takes: the one in use first."""
        period = int(now // _PERIOD)
        return [self._of(one) for one in (period, period - 1, period + 1) if one >= 0]

    def _of(self, period: int) -> str:
        return self._identity._core.derive("relay", period)


class OwnRelay:
    """A relay in the process of the rendezvous, which shares a secret with it that nobody else needs to know.

    `options` are those of `keynet.relay.RelayServer`, and `weight`; TLS shows the certificate of `identity` unless they
    have another. `listen` is where the rendezvous listens.
    """

    def __init__(
        self,
        identity: Identity,
        options: Mapping[str, Any],
        *,
        listen: str = "[::]:7348",
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._lasting = None if "secret" in options else _Lasting(identity)
        self._wall = wall
        self._told = list(options.get("introduction_peers", ()))
        weight = options.get("weight", Relay.weight)
        left_out = ("introduction_peers", "weight")
        self._options = {"identity": identity, **{k: v for k, v in options.items() if k not in left_out}}
        self._server: RelayServer | None = None
        self._taken: list[str] = []
        uris = _ways(identity, self._options, listen)
        secret = options.get("secret", "made when it is needed")
        self.named = [
            _Beside(uris[at : at + _MAX_URIS], secret, weight=weight, server=uris[0], lasting=self._lasting)
            for at in range(0, len(uris), _MAX_URIS)
        ]
        """As many of them as there are four ways each."""

    async def start(self, rendezvous: Sequence[str]) -> None:
        """Binds its sockets. `rendezvous`: the addresses of the rendezvous, to which it carries for everybody."""
        options = dict(self._options)
        if self._lasting is not None:
            options["secret"] = self._taken = self._lasting.taken(self._wall())
        # what nodes are told may be another address than this machine knows (behind a 1:1 NAT)
        self._server = RelayServer(**options, introduction_peers=[*self._told, *rendezvous])
        try:
            await self._server.start()
        except InvalidArgument as error:
            raise invalid(f"relay: {error.detail}") from None

    def refresh(self) -> None:
        """Goes on to the next secret when it is time; to be called more often than a period is long."""
        if self._lasting is None or self._server is None:
            return
        taken = self._lasting.taken(self._wall())
        if taken != self._taken:
            self._server.set_secret(taken)
            self._taken = taken

    def stats(self) -> dict[str, int]:
        """Counters since the start, by name, with `relay_` in front."""
        found = {} if self._server is None else self._server.stats()
        return {f"relay_{name}": count for name, count in found.items()}

    async def close(self) -> None:
        """Ends all allocations. May be called again."""
        if self._server is not None:
            await self._server.close()


def _ways(identity: Identity, options: Mapping[str, Any], listen: str) -> list[str]:
    """Every way to the relay that its options open: by UDP and TCP at each address, and by TLS."""
    external = [_ip(str(text)) for text in options.get("external_addresses", ())]
    key = "" if options.get("certificate") else f"?key={identity.node_id}"
    tls = _several(options.get("tls", ()))
    uris = []
    for address in _several(options.get("listen", f"0.0.0.0:{PORT}")):
        place = f"{_named_host(address, listen, external)}:{port_of(address, 'relay: listen')}"
        uris.append(f"turn:{place}")
        # one port for both: what comes by TCP there and is not TLS is served, but TLS is what such a port is opened for
        if address not in tls:
            uris.append(f"turn:{place}?transport=tcp")
    uris += [f"turns:{_named_host(address, listen, external)}:{port_of(address, 'relay: tls')}{key}" for address in tls]
    # UDP first: nodes count the relay by the first, and take no more than their cap
    uris.sort(key=lambda uri: (uri.startswith("turns:"), "?transport=tcp" in uri))
    return list(dict.fromkeys(uris))


def _ip(text: str) -> str:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        raise invalid(f"relay: external_addresses: '{excerpt(text)}' is not an IP address") from None
    return text


def _named_host(address: str, rendezvous: str, external: Sequence[str]) -> str:
    """The host of a way; empty where it is the one by which nodes know the rendezvous.

    It is another one where the rendezvous listens on one address of this machine alone, and the relay on another.
    """
    own, beside = (text.rpartition(":")[0].strip("[]") for text in (address, rendezvous))
    try:
        ip, other = ipaddress.ip_address(own), ipaddress.ip_address(beside)
    except ValueError:
        return ""
    if ip.is_unspecified or other.is_unspecified or ip == other or ip.version != other.version:
        return ""
    named = [text for text in external if ipaddress.ip_address(text).version == ip.version] or [str(ip)]
    return f"[{named[0]}]" if ip.version == 6 else named[0]


_PERIOD = 7 * 86_400
"""Seconds in which the secret of the own relay stays the same: longer than the credentials that are made with it."""

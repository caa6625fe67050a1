"""A relay: a TURN server (RFC 8656) for nodes that no hole can be punched for.

    async with keynet.relay.RelayServer(users={"alice": "a long password"}) as relay: ...

What it carries stays encrypted from node to node. Any TURN client can use it.
"""

from __future__ import annotations

import base64
import hmac
import pathlib
import resource
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from . import _keynet
from ._identity import Identity
from ._lifetime import Runs
from ._reasons import Reason, Stage
from ._repr import shown
from ._runtime import call
from .errors import InvalidArgument, ProxyClosedError

__all__ = ["PORT", "TLS_PORT", "RelayLimits", "RelayServer", "credentials"]

PORT = 3478
"""The port of TURN over UDP and TCP (RFC 8656)."""

TLS_PORT = 5349
"""The port of TURN over TLS."""


class RelayLimits(TypedDict, total=False):
    """What a relay may spend. Whatever is left out keeps the core's default (rust/src/config.rs gives the reasons).

    Times are in seconds.
    """

    max_allocations: int
    max_allocations_per_user: int
    max_allocations_per_network: int
    max_introductions: int
    max_permissions: int
    max_channels: int
    default_lifetime: float
    max_lifetime: float
    nonce_lifetime: float
    bytes_per_second: int
    bytes_per_second_per_allocation: int
    bytes_per_second_per_introduction: int
    answers_per_second: int
    answers_per_second_per_network: int
    max_connections: int
    max_connections_per_network: int
    handshakes_per_second_per_network: int
    connection_timeout: float
    write_queue: int


class RelayServer(Runs):
    """A TURN server. At least one of `users`, `secret` and `introduction_peers` says who may use it.

    - `listen`: "host:port", or several; UDP and TCP.
    - `tls`: "host:port", or several, for TURN over TLS. It shows `certificate`, the files of a certificate chain and of
      its key (PEM); without that it shows the one of `identity`, which clients know by its key.
    - `users`: passwords by name.
    - `secret`: whoever knows it can make names that end, as coturn's use-auth-secret has it: the name is
      "<seconds since 1970>:<whom>", the password base64(HMAC-SHA1(secret, name)). Several, 4 at most: the one in use
      first, then those before it whose names have not ended yet.
    - `introduction_peers`: "host:port" of rendezvous nodes. With the public name and password "keynet" they can be
      reached through this relay, and nothing else.
    - `allowed_peers`: networks ("192.168.0.0/16") whose addresses may be reached although they are not of the open
      internet. Without it no client gets at loopback, private or link-local addresses through the relay.
    - `relay_addresses`: where relayed addresses are bound; one of each family at most.
    - `external_addresses`: what peers call them, where a NAT gives this machine an address of its own (1:1).
    - `ports`: the first and the last port of relayed addresses.
    - `realm`: named to clients. Up to 8 characters keep the answers to strangers short.
    """

    def __init__(
        self,
        *,
        listen: str | Sequence[str] = f"0.0.0.0:{PORT}",
        tls: str | Sequence[str] = (),
        certificate: tuple[str | pathlib.Path, str | pathlib.Path] | None = None,
        identity: Identity | None = None,
        realm: str | None = None,
        users: Mapping[str, str] | None = None,
        secret: str | Sequence[str] | None = None,
        introduction_peers: Sequence[str] = (),
        allowed_peers: Sequence[str] = (),
        relay_addresses: Sequence[str] = (),
        external_addresses: Sequence[str] = (),
        ports: tuple[int, int] | None = None,
        limits: RelayLimits | None = None,
    ) -> None:
        if not users and not _secrets(secret) and not introduction_peers:
            raise _invalid("nobody could use this relay: give users=, secret= or introduction_peers=")
        self._identity = identity
        self._core: _keynet.RelayServer | None = None
        self._closed = False
        self._settings: dict[str, Any] = {
            "listen": _several(listen),
            "tls": _several(tls),
            "certificate": None if certificate is None else tuple(map(_contents, certificate)),
            "realm": realm,
            "users": dict(users or {}),
            "secrets": _secrets(secret),
            "introduction_peers": list(introduction_peers),
            "allowed_peers": list(allowed_peers),
            "relay_addresses": list(relay_addresses),
            "external_addresses": list(external_addresses),
            "ports": ports,
            "limits": dict(limits or {}),
        }

    @property
    def addresses(self) -> list[str]:
        """Where it serves clients over UDP and TCP: "host:port"."""
        return self._started().bound()[0]

    @property
    def tls_addresses(self) -> list[str]:
        """Where it serves clients over TLS: "host:port"."""
        return self._started().bound()[1]

    @property
    def relayed_addresses(self) -> list[str]:
        """The IP addresses that clients get ports of, as peers call them."""
        return self._started().bound()[2]

    def __repr__(self) -> str:
        # before it starts nobody has judged what was given: it may hold a password by mistake
        listen = map(_keynet.excerpt, self._settings["listen"]) if self._core is None else self.addresses
        state = "not started" if self._core is None else "closed" if self._closed else "running"
        return shown(self, ",".join(listen), state)

    def stats(self) -> dict[str, int]:
        """Counters since the start by name; `allocations` and `connections` are those of now."""
        return self._started().stats()

    def set_users(
        self,
        users: Mapping[str, str] | None = None,
        *,
        secret: str | Sequence[str] | None = None,
        introduction_peers: Sequence[str] = (),
    ) -> None:
        """Replaces all accounts. Allocations live on until their clients refresh them."""
        self._started().set_users(dict(users or {}), _secrets(secret), list(introduction_peers))

    def set_secret(self, secret: str | Sequence[str]) -> None:
        """Other secrets, the one in use first; raises `InvalidArgument` for more than 4.

        Unlike `set_users` it leaves allocations alone that were made with a secret before: they live on for as long as
        they are refreshed.
        """
        self._started().set_secrets(_secrets(secret))

    async def start(self) -> None:
        """Binds the sockets and begins. Raises `BindError`, `InvalidArgument`."""
        if self._core is not None:
            raise _invalid("this relay was started before")
        _take_files()
        self._core = await call(lambda loop: _keynet.RelayServer.bind(self._settings, _core(self._identity), loop))

    async def close(self) -> None:
        """Ends all allocations. May be called again."""
        if self._core is not None:
            self._closed = True
            await call(self._core.close)

    def _started(self) -> _keynet.RelayServer:
        if self._core is None:
            raise ProxyClosedError(reason=Reason.PROXY_CLOSED, stage=Stage.SETUP, detail="this relay was not started")
        return self._core


def credentials(secret: str, whom: str, expires: float) -> tuple[str, str]:
    """Name and password for `whom` (a node id, say) that end at `expires`, in seconds since 1970.

    For relays that know `secret`: `RelayServer(secret=)`, coturn with use-auth-secret.
    """
    name = f"{int(expires)}:{whom}"
    # the scheme says SHA-1, which is sound in an HMAC
    password = base64.b64encode(hmac.digest(secret.encode(), name.encode(), "sha1")).decode()
    return name, password


def _core(identity: Identity | None) -> _keynet.Identity | None:
    return None if identity is None else identity._core


def _several(addresses: str | Sequence[str]) -> list[str]:
    return [addresses] if isinstance(addresses, str) else list(addresses)


def _secrets(secret: str | Sequence[str] | None) -> list[str]:
    return [] if secret is None else _several(secret)


def _contents(file: str | pathlib.Path) -> bytes:
    try:
        return pathlib.Path(file).read_bytes()
    except OSError as error:
        raise _invalid(f"certificate: {file} cannot be read: {error.strerror}") from None


def _invalid(detail: str) -> InvalidArgument:
    return InvalidArgument(reason=Reason.INVALID_ARGUMENT, stage=Stage.SETUP, detail=detail)


def _take_files() -> None:
    """An allocation is a socket, and a client on TCP another: takes all open files that the system gives."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard and soft != resource.RLIM_INFINITY:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (ValueError, OSError):
            return

"""The STUN servers of a rendezvous."""

from __future__ import annotations

from collections.abc import Sequence

from .. import _keynet
from .._runtime import call

__all__ = ["StunServer", "start_stun"]


class StunServer:
    """What `start_stun` gives: a server of each address family."""

    def __init__(self, servers: Sequence[_keynet.StunServer]) -> None:
        self._servers = servers

    @property
    def addresses(self) -> list[str]:
        """Where it listens: "host:port"."""
        return [address for server in self._servers for address in server.addresses()]

    def stats(self) -> dict[str, int]:
        """Counters since the start, by name."""
        total: dict[str, int] = {}
        for server in self._servers:
            for name, count in server.stats().items():
                total[name] = total.get(name, 0) + count
        return total

    async def close(self) -> None:
        """Closes its sockets. May be called again."""
        for server in self._servers:
            await call(server.close)


async def start_stun(addresses: Sequence[str]) -> StunServer | None:
    """Answers STUN (RFC 8489, RFC 5780) at these UDP addresses; None for none. Raises `BindError`, `InvalidArgument`.

    Two ports let nodes find out what their NAT does; two IP addresses, with two ports each, let them find out all. IPv4
    and IPv6 are servers of their own, of four addresses each at most.
    """
    if not addresses:
        return None
    families = [[address for address in addresses if address.startswith("[") == ipv6] for ipv6 in (False, True)]
    servers: list[_keynet.StunServer] = []
    try:
        for family in filter(None, families):
            servers += [await _bind(family)]
    except BaseException:
        await StunServer(servers).close()
        raise
    return StunServer(servers)


async def _bind(addresses: list[str]) -> _keynet.StunServer:
    return await call(lambda loop: _keynet.StunServer.bind(addresses, loop))

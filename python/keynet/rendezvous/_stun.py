"""The STUN servers of a rendezvous."""

from __future__ import annotations

from collections.abc import Sequence

from .. import _keynet
from .._runtime import call

__all__ = ["StunServer", "start_stun"]


class StunServer:
    """What `start_stun` gives."""

    def __init__(self, core: _keynet.StunServer) -> None:
        self._core = core

    @property
    def addresses(self) -> list[str]:
        """Where it listens: "host:port"."""
        return self._core.addresses()

    def stats(self) -> dict[str, int]:
        """Counters since the start, by name."""
        return self._core.stats()

    async def close(self) -> None:
        """Closes its sockets. May be called again."""
        await call(self._core.close)


async def start_stun(addresses: Sequence[str]) -> StunServer | None:
    """Answers STUN (RFC 8489, RFC 5780) at these UDP addresses; None for none. Raises `BindError`, `InvalidArgument`.

    Two ports let nodes find out what their NAT does; two IP addresses, with two ports each, let them find out all.
    """
    if not addresses:
        return None
    listed = list(addresses)
    return StunServer(await call(lambda loop: _keynet.StunServer.bind(listed, loop)))

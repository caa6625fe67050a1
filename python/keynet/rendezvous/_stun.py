"""The STUN servers of a rendezvous."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ._limits import invalid

__all__ = ["StunServer", "start_stun"]


class StunServer(Protocol):
    """What `start_stun` gives."""

    async def close(self) -> None:
        """Closes its sockets."""


async def start_stun(addresses: Sequence[str]) -> StunServer | None:
    """Answers STUN (RFC 8489, RFC 5780) at these UDP addresses; None for none."""
    if not addresses:
        return None
    raise invalid("the STUN server is not built yet: recommend one of others with --public-stun")

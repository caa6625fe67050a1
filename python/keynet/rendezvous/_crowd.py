"""Where registered nodes come from, so that one network does not take every place. Nothing here waits."""

from __future__ import annotations

import collections
from typing import Protocol, TypeVar

from ._limits import Settings, network_of

__all__ = ["Crowd"]


class Placed(Protocol):
    """What is counted: somebody at an "ip:port"."""

    @property
    def observed(self) -> str:
        """Where from."""


T = TypeVar("T", bound=Placed)


class Crowd(dict[str, dict[T, None]]):
    """Members by network, the newest last, with the largest network at hand. Every step takes constant time."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._settings = settings
        self._sockets: collections.Counter[str] = collections.Counter()
        # networks by how many members they have
        self._sizes: dict[int, dict[str, None]] = {}
        self._largest = 0

    def join(self, member: T) -> None:
        """Counts one more."""
        network = network_of(member.observed)
        members = self.setdefault(network, {})
        members[member] = None
        self._sockets[member.observed] += 1
        self._resize(network, len(members) - 1, len(members))

    def leave(self, member: T) -> None:
        """Counts one less; it must have joined."""
        network = network_of(member.observed)
        members = self[network]
        del members[member]
        self._sockets[member.observed] -= 1
        if not self._sockets[member.observed]:
            del self._sockets[member.observed]
        self._resize(network, len(members) + 1, len(members))
        if not members:
            del self[network]

    def refusal(self, observed: str, *, full: bool) -> str | None:
        """Why nobody more may come from there; `full`: there is a place only where somebody gives way."""
        settings = self._settings
        neighbours = len(self.get(network_of(observed), ()))
        if neighbours >= settings.max_nodes_per_network:
            return "this rendezvous has as many nodes of this network as it takes"
        if self._sockets[observed] >= settings.max_nodes_per_socket:
            return "this rendezvous has as many nodes at this address and port as it takes"
        if full and self._largest <= neighbours + 1:
            return "this rendezvous is full"
        return None

    def newest_of_largest(self) -> T | None:
        """Who gives way: whoever came last from the network that has the most."""
        network = next(iter(self._sizes.get(self._largest, ())), None)
        return None if network is None else next(reversed(self[network]))

    def _resize(self, network: str, before: int, after: int) -> None:
        if before:
            same = self._sizes[before]
            del same[network]
            if not same:
                del self._sizes[before]
        if after:
            self._sizes.setdefault(after, {})[network] = None
        # one step at a time, so the largest is this one or where it was
        self._largest = max(self._largest, after) if self._largest in self._sizes or after > before else after

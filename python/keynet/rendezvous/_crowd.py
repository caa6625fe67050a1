"""Where registered nodes come from, so that one network does not take every place. Nothing here waits."""

from __future__ import annotations

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
        # members at each address and port, the oldest first
        self._sockets: dict[str, dict[T, None]] = {}
        # networks by how many members they have
        self._sizes: dict[int, dict[str, None]] = {}
        self._largest = 0

    def join(self, member: T) -> None:
        """Counts one more."""
        network = network_of(member.observed)
        members = self.setdefault(network, {})
        members[member] = None
        self._sockets.setdefault(member.observed, {})[member] = None
        self._resize(network, len(members) - 1, len(members))

    def leave(self, member: T) -> None:
        """Counts one less; it must have joined."""
        network = network_of(member.observed)
        members = self[network]
        del members[member]
        del self._sockets[member.observed][member]
        if not self._sockets[member.observed]:
            del self._sockets[member.observed]
        self._resize(network, len(members) + 1, len(members))
        if not members:
            del self[network]

    def refusal(self, observed: str, *, full: bool) -> str | None:
        """Why nobody more may come from there; `full`: there is a place only where somebody gives way."""
        neighbours = len(self.get(network_of(observed), ()))
        if neighbours >= self._settings.max_nodes_per_network:
            return "this rendezvous has as many nodes of this network as it takes"
        if full and self._largest <= neighbours + 1 and self._crowding(observed) is None:
            return "this rendezvous is full"
        return None

    def giving_way(self, observed: str, *, full: bool) -> T | None:
        """Who goes when somebody comes from there.

        At one address and port that has its share, whoever came first: it is one program, and its newest key counts.
        Else, where everything is full, whoever came last from the network that has the most.
        """
        if (crowding := self._crowding(observed)) is not None or not full:
            return crowding
        network = next(iter(self._sizes.get(self._largest, ())), None)
        return None if network is None else next(reversed(self[network]))

    def _crowding(self, observed: str) -> T | None:
        at_socket = self._sockets.get(observed, {})
        return next(iter(at_socket)) if len(at_socket) >= self._settings.max_nodes_per_socket else None

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

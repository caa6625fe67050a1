"""Who is registered, under which names, and what waits for them. Nothing here waits, and the time is an argument."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import math
from collections.abc import Callable, Iterator

import grpc

from .._node import NodeId
from ._crowd import Crowd
from ._limits import Pace, Settings, network_of
from .v1 import rendezvous_pb2 as pb

__all__ = ["GONE", "Parcel", "Registration", "Registry"]

GONE = "the node went away before it took the signal"
CROWDED = "too many signals wait for that node, and most of them are of this one"

Settle = Callable[["pb.Cause | None", str], None]


@dataclasses.dataclass(slots=True)
class Parcel:
    """A signal on its way to a node of this instance. `settle` is called once: None, or why it was not delivered."""

    signal: pb.Signal
    settle: Settle
    observed: str = ""
    """Where its sender is seen, if the receiver may know that."""

    @property
    def sender(self) -> bytes:
        """The key of whoever sent it."""
        return self.signal.node


class Registration:
    """A node for as long as its stream stands, with what is to be written to that stream."""

    __slots__ = (
        "_bytes",
        "_count",
        "_parcels",
        "_replies",
        "_room",
        "_totals",
        "_turns",
        "_wake",
        "ending",
        "heard",
        "in_flight",
        "names",
        "observed",
        "pace",
        "relays_due",
        "uses",
    )

    def __init__(self, names: tuple[NodeId, ...], now: float, totals: Totals, observed: str = "") -> None:
        self.names = names
        # "ip:port" as it is seen from here
        self.observed = observed
        self.pace = Pace(totals.settings.receiver)
        self.heard = now
        self.in_flight = 0
        # when the credentials for relays are half over
        self.relays_due = math.inf
        # relays that it has said it uses
        self.uses: frozenset[str] = frozenset()
        self.ending: tuple[grpc.StatusCode, str] | None = None
        self._totals = totals
        # by sender, and whose turn it is
        self._parcels: dict[bytes, collections.deque[Parcel]] = {}
        self._turns: collections.deque[bytes] = collections.deque()
        self._count = 0
        self._replies: collections.deque[pb.RendezvousMessage] = collections.deque()
        self._bytes = 0
        self._wake: asyncio.Event = asyncio.Event()
        self._room: asyncio.Event | None = None

    @property
    def leaf(self) -> NodeId:
        """The key that the node proved to hold."""
        return self.names[0]

    def end(self, code: grpc.StatusCode, detail: str) -> None:
        """The stream is to end so. The first call counts."""
        if self.ending is None:
            self.ending = (code, detail)
        self._wake.set()
        if self._room is not None:
            self._room.set()

    def offer(self, parcel: Parcel) -> bool:
        """Queues a signal; False at one of the bounds.

        Where this queue is full, the newest signals of whoever has the most in it give way to one who has less.
        """
        size, settings = len(parcel.signal.body), self._totals.settings
        own = len(self._parcels.get(parcel.sender, ()))
        if own >= settings.queue_of_sender or size > settings.queue_bytes:
            return False
        while self._count >= settings.queue or self._bytes + size > settings.queue_bytes:
            crowded = max(self._parcels, key=lambda sender: len(self._parcels[sender]))
            if len(self._parcels[crowded]) <= own + 1:
                return False
            self._pop_newest(crowded).settle(pb.CAUSE_RECEIVER_BUSY, CROWDED)
        if self._count and self._totals.queued_bytes + size > settings.total_queue_bytes:
            return False
        self._push(parcel)
        return True

    def reply(self, message: pb.RendezvousMessage) -> None:
        """Queues what the node itself is told. Bounded by what it may have in flight, and by `room`."""
        self._replies.append(message)
        self._wake.set()

    async def room(self) -> None:
        """Waits until the node has read most of its replies: who does not read is not read from."""
        while len(self._replies) >= self._totals.settings.in_flight and self.ending is None:
            self._room = asyncio.Event()
            await self._room.wait()
        self._room = None

    async def take(self) -> Parcel | pb.RendezvousMessage | None:
        """The next to be written, replies first; None when the stream is to end."""
        while True:
            if self.ending is not None:
                return None
            if self._replies:
                if self._room is not None:
                    self._room.set()
                return self._replies.popleft()
            if self._count:
                return self._pop()
            self._wake.clear()
            await self._wake.wait()

    def inherit(self, earlier: Registration) -> None:
        """Takes over the signals that wait for the stream that this one replaces, as many as one may have: a node can
        take the places of several, by its older names."""
        while earlier._count:
            parcel = earlier._pop()
            if not self.offer(parcel):
                parcel.settle(pb.CAUSE_RECEIVER_BUSY, CROWDED)

    def drop(self, cause: pb.Cause, detail: str) -> None:
        """Gives back every signal that was not written."""
        while self._count:
            self._pop().settle(cause, detail)

    def _push(self, parcel: Parcel) -> None:
        waiting = self._parcels.get(parcel.sender)
        if waiting is None:
            waiting = self._parcels[parcel.sender] = collections.deque()
            self._turns.append(parcel.sender)
        waiting.append(parcel)
        self._account(1, parcel)
        self._wake.set()

    def _pop(self) -> Parcel:
        """The oldest of the sender whose turn it is."""
        sender = self._turns.popleft()
        waiting = self._parcels[sender]
        parcel = waiting.popleft()
        if waiting:
            self._turns.append(sender)
        else:
            del self._parcels[sender]
        self._account(-1, parcel)
        return parcel

    def _pop_newest(self, sender: bytes) -> Parcel:
        waiting = self._parcels[sender]
        parcel = waiting.pop()
        if not waiting:
            del self._parcels[sender]
            self._turns.remove(sender)
        self._account(-1, parcel)
        return parcel

    def _account(self, sign: int, parcel: Parcel) -> None:
        size = sign * len(parcel.signal.body)
        self._count += sign
        self._bytes += size
        self._totals.queued_bytes += size


@dataclasses.dataclass(slots=True)
class Totals:
    """What all registrations share."""

    settings: Settings
    queued_bytes: int = 0


class Registry:
    """The registered nodes by name.

    A name belongs to whoever registered it last. A registration whose newest name is taken is replaced; one that loses
    an older name (a node and its rotated twin at the same time) keeps the others, and gets it back by a Refresh once
    it is free.
    """

    def __init__(
        self, settings: Settings, *, appeared: Callable[[NodeId], None], gone: Callable[[NodeId], None]
    ) -> None:
        self._settings = settings
        self._appeared, self._gone = appeared, gone
        self._names: dict[NodeId, Registration] = {}
        # by leaf, the longest unheard first
        self._nodes: collections.OrderedDict[NodeId, Registration] = collections.OrderedDict()
        self._crowd: Crowd[Registration] = Crowd(settings)
        self.totals = Totals(settings)

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[Registration]:
        return iter(tuple(self._nodes.values()))

    @property
    def names(self) -> int:
        """How many names lead to a node."""
        return len(self._names)

    def find(self, name: NodeId) -> Registration | None:
        """The node of this name."""
        return self._names.get(name)

    def by_leaf(self, leaf: NodeId) -> Registration | None:
        """The registration whose newest name this is."""
        return self._nodes.get(leaf)

    def refusal(self, names: tuple[NodeId, ...], observed: str) -> str | None:
        """Why `add` may not be called for a node that comes from there. Who moves between networks needs room."""
        own = self._own(names)
        if any(network_of(one.observed) == network_of(observed) for one in own):
            return None
        return self._crowd.refusal(observed, full=not own and len(self._nodes) >= self._settings.max_nodes)

    def giving_way(self, names: tuple[NodeId, ...], observed: str) -> Registration | None:
        """Who has to go before `add`, as `Crowd.giving_way` says."""
        own = self._own(names)
        if any(one.observed == observed for one in own):
            return None
        return self._crowd.giving_way(observed, full=not own and len(self._nodes) >= self._settings.max_nodes)

    def _own(self, names: tuple[NodeId, ...]) -> list[Registration]:
        """What a node with these names replaces."""
        return [self._nodes[name] for name in names if name in self._nodes]

    def add(self, new: Registration) -> list[Registration]:
        """Registers; returns those it replaces, which get no more signals."""
        replaced = self._own(new.names)
        for earlier in replaced:
            self._leave(earlier)
            new.inherit(earlier)
        self._nodes[new.leaf] = new
        self._crowd.join(new)
        for name in new.names:
            if name not in self._names:
                self._appeared(name)
            self._names[name] = new
        for earlier in replaced:
            self._release(earlier)
        return replaced

    def heard(self, registration: Registration, now: float) -> None:
        """A message came from the node."""
        registration.heard = now
        if self._nodes.get(registration.leaf) is registration:
            self._nodes.move_to_end(registration.leaf)

    def reclaim(self, registration: Registration) -> None:
        """Takes back names that have become free."""
        if self._nodes.get(registration.leaf) is not registration:
            return
        for name in registration.names:
            if name not in self._names:
                self._names[name] = registration
                self._appeared(name)

    def remove(self, registration: Registration) -> None:
        """The stream has ended. May be called again, and for one that was replaced."""
        if self._nodes.get(registration.leaf) is registration:
            self._leave(registration)
        self._release(registration)
        registration.drop(pb.CAUSE_OFFLINE, GONE)

    def expired(self, now: float) -> list[Registration]:
        """Those that have not been heard for too long; the caller removes them."""
        patience = self._settings.refresh * self._settings.expire_after
        found = []
        for registration in self._nodes.values():
            if now - registration.heard < patience:
                break
            found.append(registration)
        return found

    def _leave(self, registration: Registration) -> None:
        del self._nodes[registration.leaf]
        self._crowd.leave(registration)

    def _release(self, registration: Registration) -> None:
        for name in registration.names:
            if self._names.get(name) is registration:
                del self._names[name]
                self._gone(name)

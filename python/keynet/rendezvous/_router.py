"""What becomes of a signal: refused with a cause, queued for a node of this instance, or handed to the group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from .._node import NodeId
from ._exchanges import Exchanges
from ._limits import EXCHANGE_BYTES, MAX_BODY, NODE_BYTES, Buckets, Settings
from ._registry import Parcel, Registration, Registry, Settle
from ._stats import Stats
from .v1 import rendezvous_pb2 as pb

__all__ = ["Others", "Router"]


class Others(Protocol):
    """The other instances, as the router sees them."""

    def send(self, receiver: NodeId, signal: pb.Signal, settle: Settle) -> None:
        """Hands a signal to whoever has the receiver; `settle` is called once, now or later."""


class Router:
    """Judges signals and sends them on. Never waits."""

    def __init__(
        self, settings: Settings, registry: Registry, stats: Stats, clock: Callable[[], float], others: Others | None
    ) -> None:
        self._registry, self._stats, self._clock, self._others = registry, stats, clock, others
        self._in_flight = settings.in_flight
        self._senders = Buckets(settings.sender, settings.max_buckets)
        self._pairs = Buckets(settings.pair, settings.max_buckets)
        self._exchanges = Exchanges(settings)

    def from_node(self, sender: Registration, signal: pb.Signal) -> bool:
        """A signal from a node of this instance. False: it was refused at once, and the node was told."""
        self._stats.add("signals")
        receiver_key, exchange = signal.node, signal.exchange

        def undelivered(cause: pb.Cause, detail: str) -> None:
            self._stats.refused(cause)
            told = self._registry.by_leaf(sender.leaf)  # it may have registered again meanwhile
            if told is not None:
                # what is too long is not sent back: an answer is no larger than the question
                answer = pb.Undelivered(
                    node=receiver_key[:NODE_BYTES], exchange=exchange[:EXCHANGE_BYTES], cause=cause, detail=detail
                )
                told.reply(pb.RendezvousMessage(undelivered=answer))

        if (refusal := self._judge(sender, signal)) is not None:
            undelivered(*refusal)
            return False
        try:
            receiver = NodeId.from_public_key(receiver_key)
        except ValueError:  # a key that anyone can sign with: nobody is registered under it
            undelivered(pb.CAUSE_OFFLINE, "no node can have this name")
            return False
        signal.node = sender.leaf.public_key
        sender.in_flight += 1
        failed = False

        def settle(cause: pb.Cause | None, detail: str) -> None:
            nonlocal failed
            sender.in_flight -= 1
            if cause is None:
                self._stats.add("signals_delivered")
            else:
                failed = True
                undelivered(cause, detail)

        self._send(receiver, signal, settle)
        return not failed

    def from_group(self, receiver: NodeId, signal: pb.Signal, settle: Settle) -> None:
        """A signal from another instance, whose sender that instance has judged."""
        self._stats.add("signals_from_group")
        if (wrong := malformed(signal)) is not None:
            settle(pb.CAUSE_INVALID, wrong)
            return
        registration = self._registry.find(receiver)
        if registration is not None:
            self._exchanges.arrived(signal.exchange, signal.node, registration.names)
        self._deliver(receiver, signal, settle)

    def _judge(self, sender: Registration, signal: pb.Signal) -> tuple[pb.Cause, str] | None:
        now = self._clock()
        # whoever is answered knows the other; before that nobody learns from here where a node is
        goes_on = self._exchanges.goes_on(signal.exchange, sender.names, signal.node)
        signal.observed = sender.observed if goes_on else ""
        if not goes_on and not self._senders.take(sender.leaf.encode(), now):
            return pb.CAUSE_RATE_LIMITED, "too many exchanges begun by this node"
        if (wrong := malformed(signal)) is not None:
            return pb.CAUSE_INVALID, wrong
        if sender.in_flight >= self._in_flight:
            return pb.CAUSE_RATE_LIMITED, "too many signals of this node are still on their way"
        if not self._pairs.take(sender.leaf.encode() + signal.node, now):
            return pb.CAUSE_RATE_LIMITED, "too many signals from this node to that one"
        if not goes_on:
            self._exchanges.begin(signal.exchange, sender.leaf.public_key, signal.node)
        return None

    def _send(self, receiver: NodeId, signal: pb.Signal, settle: Settle) -> None:
        if self._registry.find(receiver) is not None or self._others is None:
            self._deliver(receiver, signal, settle)
            return
        self._stats.add("signals_to_group")
        self._others.send(receiver, signal, settle)

    def _deliver(self, receiver: NodeId, signal: pb.Signal, settle: Settle) -> None:
        registration = self._registry.find(receiver)
        if registration is None:
            settle(pb.CAUSE_OFFLINE, "no node of this name is registered")
            return
        observed, signal.observed = signal.observed, ""
        if not registration.offer(Parcel(signal, settle, observed)):
            settle(pb.CAUSE_RECEIVER_BUSY, "too many signals wait for that node")


def malformed(signal: pb.Signal) -> str | None:
    """Which rule of rendezvous.proto a signal breaks."""
    if len(signal.node) != NODE_BYTES:
        return f"node has {len(signal.node)} bytes, not {NODE_BYTES}"
    if len(signal.exchange) != EXCHANGE_BYTES:
        return f"exchange has {len(signal.exchange)} bytes, not {EXCHANGE_BYTES}"
    if len(signal.body) > MAX_BODY:
        return f"body has {len(signal.body)} bytes, more than {MAX_BODY}"
    return None

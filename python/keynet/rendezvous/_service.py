"""The gRPC service: one stream for each registered node."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from .. import grpc as keynet_grpc
from .._info import ConnectionInfo
from .._text import printable
from ._limits import MAX_AGENT, MAX_USES, Buckets, Settings, network_of
from ._loads import Loads
from ._registry import GONE, Parcel, Registration, Registry
from ._relays import Relay
from ._router import Router
from ._stats import Stats
from .v1 import rendezvous_pb2 as pb
from .v1 import rendezvous_pb2_grpc as rpc

__all__ = ["Service"]

_log = logging.getLogger("keynet.rendezvous")

Context = grpc.aio.ServicerContext["pb.NodeMessage", "pb.RendezvousMessage"]


class Service(rpc.RendezvousServicer):
    """Registers nodes and reads and writes their streams; what becomes of a signal is the router's."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        router: Router,
        stats: Stats,
        *,
        stun: list[str],
        relays: Sequence[Relay] = (),
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float],
        peer: Callable[[Context], ConnectionInfo] = keynet_grpc.peer,
    ) -> None:
        self._settings, self._registry, self._router, self._stats = settings, registry, router, stats
        self._stun, self._clock, self._peer = stun, clock, peer
        self._relays, self._wall = relays, wall
        self._loads = Loads({relay.counted_as: relay.weight for relay in relays})
        self._arrivals = Buckets(settings.registrations, settings.max_buckets)
        self._networks = Buckets(settings.network_registrations, settings.max_buckets)
        self._closing = False
        self._staying: set[Registration] = set()
        self._heard = asyncio.Event()

    async def Register(self, request_iterator: Any, context: Context) -> None:  # noqa: N802
        """A coroutine that reads and writes by itself: gRPC's other form needs two more tasks a stream."""
        info = self._peer(context)
        hello = await self._hello(context)
        if hello is None:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the first message must be a Hello, and come soon")
        refusal = self._refusal(info)
        if refusal is not None:
            self._stats.add("registrations_refused")
            await context.abort(*refusal)
        registration = Registration(info.node_ids, self._clock(), self._registry.totals, info.remote_address)
        self._make_room(registration)
        self._welcome(registration, info.remote_address)
        reading = asyncio.create_task(self._read(context, registration))
        try:
            await self._write(context, registration)
        finally:
            reading.cancel()
            self._registry.remove(registration)
            self._staying.discard(registration)
            self._heard.set()
            registration.uses = self._loads.change(registration.uses, ())
            with contextlib.suppress(asyncio.CancelledError):
                await reading
        code, detail = registration.ending or (grpc.StatusCode.CANCELLED, "")
        _log.debug("node %s has gone: %s %s", registration.leaf, code.name, detail)
        if code is not grpc.StatusCode.OK:
            await context.abort(code, detail)

    def nodes_on_relays(self) -> dict[str, int]:
        """How many nodes say that they use each of the relays, by its first URI."""
        return self._loads.nodes()

    def expire(self) -> None:
        """Ends the registrations that have not been heard for too long; to be called every so often."""
        for registration in self._registry.expired(self._clock()):
            self._stats.add("expired")
            self._registry.remove(registration)
            registration.end(grpc.StatusCode.DEADLINE_EXCEEDED, "no Refresh came for too long")

    async def farewell(self, patience: float) -> None:
        """Tells every node that this rendezvous goes; lets nobody register again.

        Waits until each has left for another rendezvous, or said that it has none (by a Refresh): `patience` seconds
        at most.
        """
        self._closing = True
        spread = min(_MOST_SPREAD, int(len(self._registry) * _SPREAD_A_NODE))
        for registration in list(self._registry):
            registration.reply(pb.RendezvousMessage(going=pb.Going(spread=spread)))
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._all_have_heard(), patience)

    async def _all_have_heard(self) -> None:
        while any(one not in self._staying for one in self._registry):
            self._heard.clear()
            await self._heard.wait()

    def close(self) -> None:
        """Ends every stream, and lets nobody register again."""
        self._closing = True
        for registration in self._registry:
            registration.end(grpc.StatusCode.UNAVAILABLE, _GOING)

    async def _hello(self, context: Context) -> pb.Hello | None:
        try:
            first = await asyncio.wait_for(context.read(), self._settings.hello_timeout)
        except (asyncio.TimeoutError, DecodeError, grpc.RpcError, asyncio.InvalidStateError):
            # what a stranger sends, or breaks off, is no error of this program: gRPC would log a traceback of it
            return None
        if not isinstance(first, pb.NodeMessage) or first.WhichOneof("kind") != "hello":
            return None
        _log.debug("hello from %r", first.hello.agent[:MAX_AGENT])
        return first.hello

    def _refusal(self, info: ConnectionInfo) -> tuple[grpc.StatusCode, str] | None:
        if self._closing:
            return grpc.StatusCode.UNAVAILABLE, _GOING
        if not self._arrivals.take(info.node_id.encode(), self._clock()):
            return grpc.StatusCode.RESOURCE_EXHAUSTED, "this node registers too often"
        if not self._networks.take(network_of(info.remote_address).encode(), self._clock()):
            return grpc.StatusCode.RESOURCE_EXHAUSTED, "too many nodes of this network register at once"
        crowded = self._registry.refusal(info.node_ids, info.remote_address)
        return None if crowded is None else (grpc.StatusCode.RESOURCE_EXHAUSTED, crowded)

    def _make_room(self, newcomer: Registration) -> None:
        """Somebody gives way where one address and port has its share, or everything is full."""
        crowding = self._registry.giving_way(newcomer.names, newcomer.observed)
        if crowding is not None:
            self._stats.add("gave_way")
            self._registry.remove(crowding)
            detail = "the place is another node's: this address and port, or this network, has too many here"
            crowding.end(grpc.StatusCode.RESOURCE_EXHAUSTED, detail)

    def _welcome(self, registration: Registration, observed: str) -> None:
        # first in its queue: signals may wait already for the stream that this one replaces
        welcome = pb.Welcome(
            observed=observed,
            refresh_seconds=self._settings.refresh,
            stun=self._stun,
            unix_milliseconds=int(time.time() * 1000),
        )
        registration.reply(pb.RendezvousMessage(welcome=welcome))
        self._name_relays(registration)
        self._stats.add("registrations")
        for earlier in self._registry.add(registration):
            self._stats.add("replaced")
            earlier.end(
                grpc.StatusCode.ABORTED,
                "the node has registered again, and that stream counts (an identity is for one program at a time)",
            )
        _log.debug("node %s at %s", registration.leaf, observed)

    async def _read(self, context: Context, registration: Registration) -> None:
        try:
            while registration.ending is None:
                message = await context.read()
                if not isinstance(message, pb.NodeMessage):
                    registration.end(grpc.StatusCode.OK, "the node has finished")
                    return
                self._registry.heard(registration, self._clock())
                match message.WhichOneof("kind"):
                    case "signal":
                        if not self._router.from_node(registration, message.signal):
                            await asyncio.sleep(self._settings.refusal_pause)
                        await registration.room()
                    case "refresh":
                        self._registry.reclaim(registration)
                        if self._closing:
                            self._staying.add(registration)
                            self._heard.set()
                        if self._clock() >= registration.relays_due:
                            self._name_relays(registration)
                    case "uses":
                        registration.uses = self._loads.change(registration.uses, message.uses.relays[:MAX_USES])
                        await asyncio.sleep(self._settings.refusal_pause)
                    case _:
                        detail = "neither a Signal nor a Refresh nor a Uses"
                        registration.end(grpc.StatusCode.INVALID_ARGUMENT, detail)
        except asyncio.CancelledError:
            raise
        except DecodeError:
            registration.end(grpc.StatusCode.INVALID_ARGUMENT, "a message that is none of rendezvous.proto")
        except Exception as error:
            # gRPC raises various things when the stream has broken; anything else must not leave a stream unread
            level = logging.DEBUG if isinstance(error, grpc.RpcError | asyncio.InvalidStateError) else logging.WARNING
            _log.log(level, "reading from node %s failed: %s", registration.leaf, printable(error))
            registration.end(grpc.StatusCode.INTERNAL, "reading failed")

    def _name_relays(self, registration: Registration) -> None:
        """With credentials that are good for twice as long as it takes until the next ones."""
        if not self._relays:
            return
        now, weights = self._wall(), self._loads.weights()
        relays = [relay.message(registration.leaf, now, weights[relay.counted_as]) for relay in self._relays]
        registration.reply(pb.RendezvousMessage(relays=pb.Relays(relays=relays)))
        registration.relays_due = self._clock() + min(relay.seconds for relay in self._relays) / 2

    async def _write(self, context: Context, registration: Registration) -> None:
        while (item := await registration.take()) is not None:
            written = False
            try:
                if isinstance(item, Parcel):
                    message = pb.RendezvousMessage(signal=item.signal, observed=item.observed)
                    if (pause := registration.pace.delay(self._clock())) > 0:
                        await asyncio.sleep(pause)
                else:
                    message = item
                await asyncio.wait_for(context.write(message), self._settings.write_timeout)
                written = True
            except asyncio.TimeoutError:
                self._stats.add("stuck")
                registration.end(grpc.StatusCode.RESOURCE_EXHAUSTED, "the node does not read")
            finally:
                if isinstance(item, Parcel):
                    item.settle(*((None, "") if written else (pb.CAUSE_OFFLINE, GONE)))


_SPREAD_A_NODE = 0.5
"""Milliseconds: what a registration costs this process, twice over."""
_MOST_SPREAD = 10_000
"""rendezvous.proto."""
_GOING = "this rendezvous is going away"

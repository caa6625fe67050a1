"""A group of rendezvous over NATS: one subject a name, so that presence is what NATS calls interest.

A signal for a node that is not registered here is a request to the node's subject. Nobody listens there: the node is
offline. Whoever has the node answers with what became of the signal. A node that is registered at several instances
gets it from each; the first answer counts, and nodes drop what they have seen (by its exchange).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import urllib.parse
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from google.protobuf.message import DecodeError

from .._extras import needed_by
from .._node import NodeId
from .._text import printable
from ._limits import MAX_MESSAGE, Settings, invalid
from ._registry import Settle
from ._stats import cause_name
from .v1 import rendezvous_pb2 as pb

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription

__all__ = ["Group", "GroupStatus"]

_log = logging.getLogger("keynet.rendezvous")

PREFIX = "keynet.rdv."
_RECONNECT_PAUSE = 1
"""Seconds between two attempts to reach a server: a restarted one is found soon, and one that is gone costs little."""
_PING_INTERVAL = 5
"""Seconds; two unanswered pings are a lost server. Until then requests end by their own timeout."""
_MAX_ANSWER = 1024
"""Bytes of an answer of another instance: an Undelivered with a sentence."""
_CLOSE_TIMEOUT = 2.0
_PORT = 4222
"""Of NATS, unless the URL names one."""


class GroupStatus(NamedTuple):
    """How it stands with the group."""

    nats: str
    """The NATS server: "host:port"."""
    connected: bool
    error: str | None
    """Why it is not connected, once that is known."""


class Group:
    """This instance's connection to NATS. Without a server it keeps trying, and says UNAVAILABLE."""

    def __init__(self, url: str, settings: Settings, deliver: Callable[[NodeId, pb.Signal, Settle], None]) -> None:
        self._url, self._settings, self._deliver = _checked(url), settings, deliver
        self._place = _place(url)
        # why the group cannot be reached, from when that begins until it ends
        self._trouble: str | None = None
        self._client: Client | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._requests = 0
        self._closing = False
        # names as the registry has them, and the subscriptions that stand for them
        self._wanted: set[NodeId] = set()
        self._subscriptions: dict[NodeId, Subscription] = {}
        self._changed = asyncio.Event()
        self._changes: dict[NodeId, None] = {}

    @property
    def is_connected(self) -> bool:
        """Whether signals can be handed over now."""
        return self._client is not None and self._client.is_connected

    @property
    def place(self) -> str:
        """The server, as "host:port"."""
        return self._place

    @property
    def trouble(self) -> str | None:
        """Why it is not connected, once that is known."""
        return None if self.is_connected else self._trouble

    def start(self) -> None:
        """Begins to connect; returns at once."""
        self._connecting = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Leaves the group."""
        self._closing = True
        tasks = [*self._tasks, *([self._connecting] if self._connecting else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            # not for ever: the client for NATS may swallow a cancellation while it connects
            await asyncio.wait(tasks, timeout=_CLOSE_TIMEOUT)
        if self._client is not None:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(self._client.close(), _CLOSE_TIMEOUT)

    def appeared(self, name: NodeId) -> None:
        """A node of this name is registered here."""
        self._wanted.add(name)
        self._note(name)

    def gone(self, name: NodeId) -> None:
        """No node of this name is registered here any more."""
        self._wanted.discard(name)
        self._note(name)

    def send(self, receiver: NodeId, signal: pb.Signal, settle: Settle) -> None:
        """Asks whoever has the receiver to take the signal."""
        if not self.is_connected:
            settle(pb.CAUSE_UNAVAILABLE, "not registered here, and the others of the group cannot be reached")
        elif self._requests >= self._settings.max_group_requests:
            settle(pb.CAUSE_UNAVAILABLE, "too many signals wait for the others of the group")
        else:
            self._requests += 1
            self._spawn(self._request(receiver, signal.SerializeToString(), settle))

    async def _request(self, receiver: NodeId, payload: bytes, settle: Settle) -> None:
        from nats import errors

        outcome: tuple[pb.Cause | None, str] = (pb.CAUSE_UNAVAILABLE, "the rendezvous is going away")
        try:
            assert self._client is not None
            message = await self._client.request(PREFIX + receiver, payload, timeout=self._settings.group_timeout)
            outcome = _outcome(message.data)
        except errors.NoRespondersError:
            outcome = (pb.CAUSE_OFFLINE, "no node of this name is registered")
        except errors.TimeoutError:
            outcome = (pb.CAUSE_UNAVAILABLE, "no answer from the others of the group")
        except errors.Error as error:
            outcome = (pb.CAUSE_UNAVAILABLE, f"the group cannot be reached: {type(error).__name__}")
        finally:
            self._requests -= 1
            settle(*outcome)

    # -- the connection and its subscriptions ----------------------------------------------------------------------

    async def _run(self) -> None:
        """Keeps a connection, however long it takes to get one, and the subscriptions equal to the names."""
        import nats.errors

        while not self._closing:
            try:
                client = await self._connect()
                # the client resubscribes by itself when it reconnects, not when it has given up
                self._client, self._subscriptions = client, {}
                self._changes = dict.fromkeys(self._wanted)
                while not (client.is_closed or self._closing):
                    while self._changes:
                        name = next(iter(self._changes))
                        del self._changes[name]
                        await self._follow(name)
                    await self._changed.wait()
                    self._changed.clear()
            except (OSError, asyncio.TimeoutError, nats.errors.Error) as error:
                await self._failed(error)
            await asyncio.sleep(_RECONNECT_PAUSE)

    async def _connect(self) -> Client:
        from ._nats import client_for

        async def closed() -> None:
            self._changed.set()

        # a client that has given up cannot be used again
        client = client_for(self._url)
        try:
            await client.connect(
                servers=[self._url],
                name="keynet rendezvous",
                allow_reconnect=True,
                max_reconnect_attempts=-1,
                reconnect_time_wait=_RECONNECT_PAUSE,
                ping_interval=_PING_INTERVAL,
                connect_timeout=_PING_INTERVAL,
                error_cb=self._failed,
                closed_cb=closed,
                disconnected_cb=self._lost,
                reconnected_cb=self._connected,
            )
        except BaseException:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(client.close(), _CLOSE_TIMEOUT)
            raise
        await self._connected()
        return client

    async def _lost(self) -> None:
        await self._failed(ConnectionError("the connection is lost"))

    async def _failed(self, error: Exception) -> None:
        """Says that the group is out of reach when that begins, and not at each attempt."""
        why = _reason(error, self._url)
        if self._closing:
            return
        if self.is_connected:
            # a subscription that is refused, a slow reader: no outage, and one that follows is still to be told
            level = logging.DEBUG if _ends_connection(error) else logging.WARNING
            _log.log(level, "NATS at %s: %s", self._place, why)
            return
        if self._trouble is None:
            what = "nodes of the other rendezvous are not found until it is reached; it is tried again"
            _log.warning("NATS at %s: %s; %s", self._place, why, what)
        else:
            _log.debug("NATS at %s: %s", self._place, why)
        self._trouble = why

    async def _connected(self) -> None:
        """The same for the end of it."""
        if self._trouble is not None:
            _log.warning("NATS at %s is reached again", self._place)
        else:
            _log.info("connected to NATS at %s", self._place)
        self._trouble = None

    async def _follow(self, name: NodeId) -> None:
        """Subscribes or unsubscribes, in the order in which names come and go."""
        assert self._client is not None
        subscription = self._subscriptions.get(name)
        if name in self._wanted and subscription is None:
            self._subscriptions[name] = await self._client.subscribe(
                PREFIX + name,
                cb=functools.partial(self._receive, name),
                pending_msgs_limit=self._settings.queue,
                pending_bytes_limit=self._settings.queue_bytes,
            )
        elif name not in self._wanted and subscription is not None:
            del self._subscriptions[name]
            await subscription.unsubscribe()

    async def _receive(self, name: NodeId, message: Msg) -> None:
        """A signal from another instance. Its bytes are taken for hostile, though only the group can send them."""
        if not message.reply:
            return  # nobody waits for what becomes of it, so it is none of ours

        def settle(cause: pb.Cause | None, detail: str) -> None:
            answer = pb.Undelivered(cause=pb.CAUSE_UNSPECIFIED if cause is None else cause, detail=detail)
            self._spawn(self._answer(message, answer.SerializeToString()))

        signal = _parsed(message.data)
        if signal is None:
            settle(pb.CAUSE_INVALID, "not a signal")
        else:
            self._deliver(name, signal, settle)

    async def _answer(self, message: Msg, payload: bytes) -> None:
        # if it is lost, the sender's instance says so after its timeout
        with contextlib.suppress(Exception):
            await message.respond(payload)

    def _note(self, name: NodeId) -> None:
        self._changes[name] = None
        self._changed.set()

    def _spawn(self, work: object) -> None:
        task = asyncio.ensure_future(work)  # type: ignore[call-overload]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _checked(url: str) -> str:
    """Refuses what is no address of a NATS server, and tells if the client for it is missing."""
    try:
        with needed_by("a group of rendezvous nodes", "rendezvous"):
            import nats  # noqa: F401
    except ImportError as missing:
        raise invalid(str(missing)) from None
    try:
        parts = urllib.parse.urlsplit(url)
        valid = parts.scheme in ("nats", "tls") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    if not valid:
        raise invalid('nats is of the form "nats://host:4222" or "tls://host:4222"')
    return url


def _parsed(data: bytes) -> pb.Signal | None:
    if len(data) > MAX_MESSAGE:
        return None
    try:
        return pb.Signal.FromString(data)
    except DecodeError:
        return None


def _outcome(data: bytes) -> tuple[pb.Cause | None, str]:
    """What another instance says became of a signal."""
    try:
        answer = pb.Undelivered.FromString(data) if len(data) <= _MAX_ANSWER else None
    except DecodeError:
        answer = None
    if answer is None or answer.cause not in pb.Cause.values():
        return pb.CAUSE_UNAVAILABLE, "the others of the group answered with nonsense"
    if answer.cause == pb.CAUSE_UNSPECIFIED:
        return None, ""
    return answer.cause, answer.detail or cause_name(answer.cause)


def _place(url: str) -> str:
    """The server without what may be a password."""
    parts = urllib.parse.urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{host}:{parts.port or _PORT}"


def _ends_connection(error: Exception) -> bool:
    """Whether the client for NATS says next that the connection is lost."""
    from nats import errors

    return isinstance(error, (OSError, errors.StaleConnectionError))


def _reason(error: Exception, url: str) -> str:
    """In words, without the user and the password of the URL."""
    text = printable(error) or type(error).__name__
    if "uthorization" in text:
        return "not authorized: check the user and the password"
    userinfo = urllib.parse.urlsplit(url).netloc.rpartition("@")[0]
    secrets = {userinfo, *(urllib.parse.unquote(part) for part in userinfo.split(":")), *userinfo.split(":")}
    if any(secret and secret in text for secret in secrets):
        return type(error).__name__
    return text.removeprefix("nats: ").strip("'\"").removeprefix("'")

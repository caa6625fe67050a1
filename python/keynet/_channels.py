"""Channels that a program left open: they end with the proxy that they go through, and do not hold it up.

An idle gRPC channel keeps its connection for ever, so a proxy that drains would wait for it until its time is over. A
channel that `keynet.grpc` made is closed instead as soon as no call is on it. Nothing here needs grpcio.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, Protocol

_CALLS_MAY_TAKE = 3600.0
"""Seconds for the calls of an asyncio channel. The proxy's `drain_timeout` is over long before, and ends them."""


class Channel(Protocol):
    """What is needed of a channel of either kind."""

    def close(self) -> Any:
        """Ends it, and the calls that are on it."""


class Drains:
    """The channels through one proxy; they are held weakly, so that dropping one still closes it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._channels: weakref.WeakKeyDictionary[Channel, Callable[[Any], None]] = weakref.WeakKeyDictionary()

    def add(self, channel: Channel, drain: Callable[[Any], None]) -> None:
        """Remembers a channel, and what to call with it when the proxy drains."""
        with self._lock:
            self._channels[channel] = drain

    def begin(self) -> None:
        """The proxy drains: each channel ends when no call is on it any more. Does not wait.

        In a forked child the channels are the parent's: gRPC must not be touched there.
        """
        if os.getpid() != self._process:
            return
        with self._lock:
            channels = list(self._channels.items())
            self._channels.clear()
        for channel, drain in channels:
            drain(channel)


class Calls:
    """Counts the calls on a blocking channel, to close it after the last one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running = 0
        self._closed = False
        self._close: Callable[[], Any] | None = None

    def began(self) -> bool:
        """A call goes on the channel. False: the channel is closed, and takes none."""
        with self._lock:
            self._running += not self._closed
            return not self._closed

    def ended(self, _: object = None) -> None:
        """A call is over, whatever came of it."""
        with self._lock:
            self._running -= 1
        self._close_if_idle()

    def drain(self, channel: Channel) -> None:
        """Closes the channel now, or after the last call."""
        with self._lock:
            self._close = channel.close
        self._close_if_idle()

    def _close_if_idle(self) -> None:
        with self._lock:
            if self._running or self._close is None:
                return
            close, self._close, self._closed = self._close, None, True
        close()


def drain_aio(channel: Any, loop: asyncio.AbstractEventLoop) -> None:
    """Closes an asyncio channel, on its own loop, after the last call.

    gRPC keeps the connection for as long as somebody keeps the object of a call, also of one that has ended.
    """

    def begin() -> None:
        task = loop.create_task(channel.close(_CALLS_MAY_TAKE))
        _closing.add(task)
        task.add_done_callback(_closing.discard)

    try:
        loop.call_soon_threadsafe(begin)
    except RuntimeError:  # the loop is closed: nobody can use the channel
        return


# a loop holds its tasks weakly
_closing: set[asyncio.Task[None]] = set()

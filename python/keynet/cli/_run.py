"""A proxy, or a server, in the foreground: what it tells as lines, until a signal ends it in good order."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime
import os
import re
import signal
import stat
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from .. import _events
from .._info import ConnectionInfo, Role
from .._node import NodeId
from .._proxy import EventStream, Proxy
from .._reasons import Reason
from .._text import printable
from ..errors import KeynetError
from . import _words
from ._output import Output
from ._words import MAX_LINE

_STATS_EVERY = 60.0
"""Seconds between two lines of counters with -v."""
_REFUSAL_EVERY = 60.0
"""Seconds between two lines about one peer that is refused the same."""
_MAX_REFUSALS = 256
"""Peers that this is remembered of; the oldest are told of again."""


async def follow(proxy: Proxy, out: Output, ready: Callable[[], None], events: EventStream | None = None) -> None:
    """Says `ready`, prints events until SIGINT or SIGTERM, then closes the proxy; a second signal cuts it short."""
    told = asyncio.Event()
    _on_signals(told.set)
    events = events or proxy.events()
    # only now: whoever reads it may send a signal at once
    ready()
    printing = asyncio.create_task(_print(events, out))
    stop, unread = asyncio.create_task(told.wait()), asyncio.create_task(_unread())
    try:
        await asyncio.wait([printing, stop, unread], return_when=asyncio.FIRST_COMPLETED)
        for gone in (printing, unread):
            if gone.done():
                return gone.result()  # the output is gone
        if count := len(proxy.connections()):
            say_waiting(count, proxy.drain_timeout, out)
        _on_signals(second_signal)
        await proxy.close(drain=True)
        # the events of the end, too
        await asyncio.wait([printing], timeout=1.0)
    finally:
        for task in (printing, stop, unread):
            task.cancel()


async def until_signal(ready: Callable[[], None], telling: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Says `ready` and runs what tells of a server until SIGINT or SIGTERM; a second one ends the process at once."""
    told = asyncio.Event()
    _on_signals(told.set)
    tasks: list[asyncio.Task[Any]] = [asyncio.create_task(one) for one in (*telling, _unread())]
    # only now: whoever reads it may send a signal at once
    ready()
    tasks.append(asyncio.create_task(told.wait()))
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()  # the output may be gone
    finally:
        _on_signals(second_signal)
        for task in tasks:
            task.cancel()


def _on_signals(do: Callable[[], object]) -> None:
    """What Ctrl-C, SIGTERM and the end of the terminal do; who was started with nohup outlives its terminal."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, do)


async def _unread() -> None:
    """Ends with BrokenPipeError when whoever read the output has gone, also if there is nothing to be written."""
    loop, gone = asyncio.get_running_loop(), asyncio.Event()
    descriptor = None
    with contextlib.suppress(OSError, ValueError, NotImplementedError):
        number = sys.stdout.fileno()
        if stat.S_ISFIFO(os.fstat(number).st_mode):
            # nothing can be read from this end: what wakes it is the end of the other one
            loop.add_reader(number, gone.set)
            descriptor = number
    try:
        await gone.wait()
    finally:
        if descriptor is not None:
            loop.remove_reader(descriptor)
    raise BrokenPipeError


def say_waiting(count: int, seconds: float, out: Output) -> None:
    """What an end in good order waits for."""
    connections = f"{count} connection{'s' if count > 1 else ''} open"
    fields = {"event": "closing", "connections": count, "seconds": seconds}
    if out.json:
        out.result(fields)
    else:
        out.note(f"{connections}, closing in {seconds:g} s, Ctrl-C again to cut")


async def tell_stats(stats: Callable[[], Mapping[str, int]], out: Output) -> None:
    """Prints a server's counters every minute: as often as nodes refresh at a rendezvous."""
    while True:
        await asyncio.sleep(_STATS_EVERY)
        now, found = datetime.datetime.now(datetime.timezone.utc), stats()
        out.result({"event": "stats", "time": now, **found}, f"{now.astimezone():%H:%M:%S} {summary(found)}")


def summary(stats: Mapping[str, int]) -> str:
    """Counters that are not 0, in words."""
    return ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in stats.items() if count) or "nothing yet"


def second_signal() -> None:
    """Ends the process at once."""
    # the kernel closes the sockets, and the peers notice by themselves
    os._exit(130)


async def _print(events: EventStream, out: Output) -> None:
    refusals = Refusals()
    async for event in events:
        if out.json or refusals.is_new(event):
            show(event, out)


class Refusals:
    """A peer that asks again and again for what it is refused is told of once a minute."""

    def __init__(self) -> None:
        self._told: dict[tuple[str | None, int | None, str], float] = {}

    def is_new(self, event: _events.Event) -> bool:
        """Whether the event is worth a line."""
        if not isinstance(event, _events.ConnectionRefused) or event.role is not Role.REVERSE:
            return True
        key, now = (event.node_id, event.service_port, event.error.reason.value), time.monotonic()
        if now - self._told.get(key, -_REFUSAL_EVERY) < _REFUSAL_EVERY:
            return False
        # the newest last, so that what is forgotten is the oldest
        self._told.pop(key, None)
        self._told[key] = now
        if len(self._told) > _MAX_REFUSALS:
            del self._told[next(iter(self._told))]
        return True


def show(event: _events.Event, out: Output) -> None:
    """One event as one line."""
    now = datetime.datetime.now(datetime.timezone.utc)
    name = re.sub("(?<!^)(?=[A-Z])", "_", type(event).__name__).lower()
    fields: dict[str, Any] = {field.name: getattr(event, field.name) for field in dataclasses.fields(event)}
    line = printable(f"{now.astimezone():%H:%M:%S} {_line(event)}", MAX_LINE)
    out.result({"event": name, "time": now, **fields}, line)


def _line(event: _events.Event) -> str:
    match event:
        case _events.PeerConnected(node, address, relayed):
            return f"peer connected      {node.short} at {address}" + (" over a relay" if relayed else "")
        case _events.PeerLost(node, address, reason):
            return f"peer lost           {node.short} at {address}: {reason}"
        case _events.PathChanged(node, before, after, relayed) if before == after:
            return f"path changed        {node.short} at {after}, now {'relayed' if relayed else 'direct'}"
        case _events.PathChanged(node, before, after, relayed):
            return f"path changed        {node.short} from {before} to {after}" + (", relayed" if relayed else "")
        case _events.ConnectionOpened(info):
            return f"connection opened   {_ends(info)}"
        case _events.ConnectionClosed(info):
            return f"connection closed   {_ends(info)}: {info.reason}, {info.bytes_in} bytes in, {info.bytes_out} out"
        case _events.ConnectionRefused(node, address, port, error, Role.REVERSE):
            return f"refused             {_refused(node, address, port, error)}"
        case _events.ConnectionRefused(node, address, port, error):
            # who reads this is on the side of the client
            target = f"service {port or '?'} of {node.short if node else 'a node'}"
            return f"not connected       {address or 'a UNIX socket'} -> {target}: {_sentence(error)}"
        case _events.RendezvousConnected(node, address, observed):
            return f"rendezvous          {node.short} at {address} sees this node at {observed or 'no address'}"
        case _events.RendezvousLost(node, address, error):
            return f"no rendezvous       {node.short} at {address}: {_sentence(error)}"
        case _events.NetworkChanged(addresses):
            return f"network changed     now {', '.join(addresses) or 'none'}"
        case _events.MeetingFailed(node, error):
            return f"meeting failed      {node.short}: {_sentence(error)}"
        case _events.RelayConnected(relay, addresses):
            return f"relay               {relay} keeps {', '.join(addresses)}"
        case _events.RelayLost(relay, error):
            return f"relay lost          {relay}: {_sentence(error)}"
        case _events.EventsDropped(count):
            return f"{count} events dropped"
        case _:
            return "closed"


def _refused(node: NodeId | None, address: str | None, port: int | None, error: KeynetError) -> str:
    """Whom this node turned away, and what its owner can do about it; the error's own advice is for the peer."""
    who = f"{node or 'somebody'} at {address or '?'}" + (f", service {port}" if port is not None else "")
    why = error.detail or error.reason.value.replace("_", " ")
    match error.reason:
        case Reason.ACCESS_DENIED if node is not None:
            return f"{who}: {why}; to let it in: --allow {node}"
        case Reason.SERVICE_NOT_FOUND:
            return f"{who}: {why}; to offer it: --service {port or 'PORT'}=HOST:PORT"
        case Reason.SERVICE_REFUSED | Reason.SERVICE_TIMEOUT:
            return f"{who}: {why}; is the server behind --service {port or 'PORT'} running?"
        case Reason.PEER_BUSY:
            return f"{who}: {why}; raise the limits under [limits] in the configuration file"
        case _:
            return f"{who}: {why}"


def _sentence(error: KeynetError) -> str:
    """An error in a line, with advice for who sits at the command."""
    why = _words.detail(error)
    name = error.reason.value.replace("_", " ")
    return f"{name}{f': {why}' if why else ''}; {_words.advice(error)}"


def _ends(info: ConnectionInfo) -> str:
    if info.role.value == "forward":
        return f"{info.client_address} -> {info.node_id.short} service {info.service_port}"
    return f"{info.node_id.short} -> {info.server_address} service {info.service_port}"

"""A proxy, or a server, in the foreground: what it tells as lines, until a signal ends it in good order."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import os
import re
import signal
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from .. import _events
from .._info import ConnectionInfo
from .._node import NodeId
from .._proxy import EventStream, Proxy
from ._output import Output

_STATS_EVERY = 60.0
"""Seconds between two lines of counters with -v."""


async def follow(proxy: Proxy, out: Output, ready: Callable[[], None], events: EventStream | None = None) -> None:
    """Says `ready`, prints events until SIGINT or SIGTERM, then closes the proxy; a second signal cuts it short."""
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, told.set)
    events = events or proxy.events()
    # only now: whoever reads it may send a signal at once
    ready()
    printing = asyncio.create_task(_print(events, out))
    stop = asyncio.create_task(told.wait())
    try:
        await asyncio.wait([printing, stop], return_when=asyncio.FIRST_COMPLETED)
        if printing.done():
            return printing.result()  # the output is gone
        if proxy.connections():
            out.note("waiting for open connections to end; once more cuts them off")
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, second_signal)
        await proxy.close(drain=True)
        # the events of the end, too
        await asyncio.wait([printing], timeout=1.0)
    finally:
        printing.cancel()
        stop.cancel()


async def until_signal(ready: Callable[[], None], telling: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Says `ready` and runs what tells of a server until SIGINT or SIGTERM; a second one ends the process at once."""
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, told.set)
    tasks: list[asyncio.Task[Any]] = [asyncio.create_task(one) for one in telling]
    # only now: whoever reads it may send a signal at once
    ready()
    tasks.append(asyncio.create_task(told.wait()))
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()  # the output may be gone
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, second_signal)
        for task in tasks:
            task.cancel()


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
    async for event in events:
        show(event, out)


def show(event: _events.Event, out: Output) -> None:
    """One event as one line."""
    now = datetime.datetime.now(datetime.timezone.utc)
    name = re.sub("(?<!^)(?=[A-Z])", "_", type(event).__name__).lower()
    fields: dict[str, Any] = {field.name: getattr(event, field.name) for field in dataclasses.fields(event)}
    out.result({"event": name, "time": now, **fields}, f"{now.astimezone():%H:%M:%S} {_line(event)}")


def _line(event: _events.Event) -> str:
    match event:
        case _events.PeerConnected(node, address, relayed):
            return f"peer connected      {node.short} at {address}" + (" over a relay" if relayed else "")
        case _events.PeerLost(node, address, reason):
            return f"peer lost           {node.short} at {address}: {reason}"
        case _events.PathChanged(node, before, after, relayed):
            return f"path changed        {node.short} from {before} to {after}" + (", relayed" if relayed else "")
        case _events.ConnectionOpened(info):
            return f"connection opened   {_ends(info)}"
        case _events.ConnectionClosed(info):
            return f"connection closed   {_ends(info)}: {info.reason}, {info.bytes_in} bytes in, {info.bytes_out} out"
        case _events.ConnectionRefused(node, address, port, error):
            who = NodeId(node).short if node else "somebody"
            return f"connection refused  {who} at {address or 'a UNIX socket'}, service {port or '?'}: {error}"
        case _events.RendezvousConnected(node, address, observed):
            return f"rendezvous          {node.short} at {address} sees this node at {observed or 'no address'}"
        case _events.RendezvousLost(node, address, error):
            return f"rendezvous lost     {node.short} at {address}: {error}"
        case _events.NetworkChanged(addresses):
            return f"network changed     now {', '.join(addresses) or 'none'}"
        case _events.MeetingFailed(node, error):
            return f"meeting failed      {node.short}: {error}"
        case _events.RelayConnected(relay, addresses):
            return f"relay               {relay} keeps {', '.join(addresses)}"
        case _events.RelayLost(relay, error):
            return f"relay lost          {relay}: {error}"
        case _events.EventsDropped(count):
            return f"{count} events dropped"
        case _:
            return "closed"


def _ends(info: ConnectionInfo) -> str:
    if info.role.value == "forward":
        return f"{info.client_address} -> {info.node_id.short} service {info.service_port}"
    return f"{info.node_id.short} -> {info.server_address} service {info.service_port}"

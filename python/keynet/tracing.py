"""OpenTelemetry traces of connections (needs `pip install 'pykeynet[tracing]'`).

    async with keynet.Proxy(identity) as proxy, keynet.tracing.traced(proxy): ...

Each CONNECT of a local client is a span with one child for each stage, with the times that the core measured.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from ._events import ConnectionOpened, ConnectionRefused
from ._extras import needed_by
from ._info import ConnectionInfo, Role
from ._keynet import __version__
from ._proxy import EventStream, Proxy

with needed_by("keynet.tracing", "tracing"):
    from opentelemetry import trace

__all__ = ["traced"]

_NANOSECONDS = 1_000_000_000


@contextlib.asynccontextmanager
async def traced(proxy: Proxy, tracer_provider: trace.TracerProvider | None = None) -> AsyncIterator[None]:
    """Makes a trace of each connection that this node opens, or fails to open, as long as the context lasts.

    `tracer_provider`: the global one of OpenTelemetry unless given.
    """
    tracer = trace.get_tracer("keynet", __version__, tracer_provider)
    following = asyncio.create_task(_follow(proxy.events(), tracer))
    # it has to subscribe before anything happens
    await asyncio.sleep(0)
    try:
        yield
    finally:
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following


async def _follow(events: EventStream, tracer: trace.Tracer) -> None:
    async for event in events:
        match event:
            case ConnectionOpened(connection) if connection.role is Role.FORWARD:
                _opened(connection, tracer)
            case ConnectionRefused(node_id, _, port, error, Role.FORWARD):
                # the stages of a failure are not measured
                span = tracer.start_span("keynet CONNECT", kind=trace.SpanKind.CLIENT)
                if node_id is not None:
                    span.set_attribute("keynet.node_id", str(node_id))
                if port is not None:
                    span.set_attribute("keynet.service_port", port)
                span.set_attribute("error.type", error.reason.value)
                span.set_attribute("keynet.stage", error.stage.value)
                span.set_status(trace.StatusCode.ERROR, str(error))
                span.end()


def _opened(connection: ConnectionInfo, tracer: trace.Tracer) -> None:
    end = int(connection.opened.timestamp() * _NANOSECONDS)
    at = end - sum(int(took * _NANOSECONDS) for _, took in connection.stages)
    address, _, port = connection.remote_address.rpartition(":")
    attributes: dict[str, str | int | bool] = {
        "keynet.node_id": str(connection.node_id),
        "keynet.service_port": connection.service_port,
        "keynet.connection_id": connection.id,
        "keynet.relayed": connection.relayed,
        "network.peer.address": address.strip("[]"),
        "network.peer.port": int(port),
        "network.transport": "udp",
    }
    span = tracer.start_span("keynet CONNECT", kind=trace.SpanKind.CLIENT, attributes=attributes, start_time=at)
    context = trace.set_span_in_context(span)
    for stage, took in connection.stages:
        child = tracer.start_span(f"keynet {stage}", context=context, start_time=at)
        at += int(took * _NANOSECONDS)
        child.end(end_time=at)
    span.end(end_time=end)

"""OpenTelemetry traces of connections."""

from __future__ import annotations

import asyncio
import contextlib
import itertools

import grpc.aio
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

import keynet
import keynet.tracing
from support import SERVICE, aio_greeter, proxy, say_hello


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter: InMemorySpanExporter) -> TracerProvider:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider


async def spans(exporter: InMemorySpanExporter, count: int) -> list[ReadableSpan]:
    for _ in range(3000):
        found = list(exporter.get_finished_spans())
        if len(found) >= count:
            return found
        await asyncio.sleep(0.01)
    raise AssertionError(f"{count} spans did not come: {exporter.get_finished_spans()}")


async def test_a_connect_is_a_span_with_its_stages(
    alice: keynet.Identity, bob: keynet.Identity, exporter: InMemorySpanExporter, provider: TracerProvider
) -> None:
    async with aio_greeter("127.0.0.1:0") as backend:
        serving = proxy(bob, services={SERVICE: backend}, allow=[alice.node_id])
        async with serving as server, proxy(alice) as caller, keynet.tracing.traced(caller, provider):
            caller.add_peer(bob.node_id, [server.proxy_address])
            await say_hello(caller, bob.node_id)
            *stages, whole = await spans(exporter, 5)
    assert [span.name for span in stages] == ["keynet find", "keynet utp", "keynet tls", "keynet open"]
    assert whole.name == "keynet CONNECT"
    assert whole.attributes is not None
    assert whole.attributes["keynet.node_id"] == str(bob.node_id)
    assert whole.attributes["keynet.relayed"] is False
    for earlier, later in itertools.pairwise(stages):
        assert earlier.end_time == later.start_time
    assert all(span.parent is not None and span.parent.span_id == whole.context.span_id for span in stages)
    assert (stages[0].start_time, stages[-1].end_time) == (whole.start_time, pytest.approx(whole.end_time, abs=10))


async def test_a_refused_connect_is_a_failed_span(
    alice: keynet.Identity, bob: keynet.Identity, exporter: InMemorySpanExporter, provider: TracerProvider
) -> None:
    async with proxy(alice) as caller, keynet.tracing.traced(caller, provider):
        with pytest.raises(grpc.aio.AioRpcError, match="404"):
            await say_hello(caller, bob.node_id)
        # grpcio may try again
        span = (await spans(exporter, 1))[0]
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes is not None
    assert span.attributes["error.type"] == "unknown_node"


async def test_whom_a_serving_node_refuses_is_no_span_of_its_own(
    alice: keynet.Identity, bob: keynet.Identity, exporter: InMemorySpanExporter, provider: TracerProvider
) -> None:
    serving = proxy(bob, services={SERVICE: "127.0.0.1:9"}, allow=[])
    async with serving as server, keynet.tracing.traced(server, provider), proxy(alice) as caller:
        caller.add_peer(bob.node_id, [server.proxy_address])
        events = server.events()
        async with await caller.forward(bob.node_id, SERVICE) as forward:
            host, _, port = forward.address.rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read(1) == b""
            writer.close()
        async for event in events:
            if isinstance(event, keynet.ConnectionRefused):
                break
        assert event.role is keynet.Role.REVERSE
        # a span of the node's own comes behind it, and nothing before that
        with pytest.raises(grpc.aio.AioRpcError):
            await say_hello(server, keynet.NodeId("vb1" + "j6cp" * 12 + "j0"))
        found = await spans(exporter, 1)
    assert {span.attributes["error.type"] for span in found if span.attributes} == {"unknown_node"}

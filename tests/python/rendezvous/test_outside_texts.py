"""What a rendezvous, a node, NATS or an HTTP proxy says is shown on one line, escaped and cut, wherever it is shown."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator

import grpc
import pytest
from test_liars import Liar, liar

import keynet
import support
from keynet.cli._output import JsonLines, Lines, Output
from keynet.cli._run import show
from keynet.cli._status import table
from keynet.rendezvous import Server
from keynet.rendezvous.v1 import rendezvous_pb2 as pb
from nodes import Node, rendezvous, stub, until

MARK = "INJECTED"
HOSTILE = f"\r\n{MARK}\x1b[2J\x1b]0;title\x07\x9b31m\u202egpj\u2028\u200b\t\0" + "x" * 3_000
LONGEST = 9_000
"""Characters of a line: a log record has 8,192."""


def judge(text: str, where: str) -> None:
    for line in text.split("\n"):
        assert line.isprintable(), (where, ascii(line[:300]))
        assert not line.lstrip().startswith(MARK), (where, line[:300])
        assert len(line) < LONGEST, (where, len(line))


@pytest.fixture
def logged() -> Iterator[Callable[[], str]]:
    """All that is logged: as the command writes it, for people and as JSON, and as a program of the user's does."""
    stream = io.StringIO()
    handlers = [logging.StreamHandler(stream) for _ in range(3)]
    for handler, formatter in zip(handlers, (Lines(), JsonLines(), logging.Formatter()), strict=True):
        handler.setFormatter(formatter)
    # the lie itself, on its way out, is not what others say
    handlers[2].addFilter(lambda record: record.msg not in ("node %s at %s", "node %s has gone: %s %s"))
    logger = logging.getLogger("keynet")
    level = logger.level
    logger.setLevel(logging.DEBUG)
    for handler in handlers:
        logger.addHandler(handler)
    yield stream.getvalue
    logger.setLevel(level)
    for handler in handlers:
        logger.removeHandler(handler)


def shown(proxy: keynet.Proxy, other: keynet.NodeId) -> str:
    """What there is to see of a node, as texts."""
    status, explanation = proxy.status(), proxy.explain(other)
    return "\n".join([table(status, {}), repr(status), explanation.text, repr(explanation), repr(proxy)])


@contextlib.asynccontextmanager
async def told(proxy: keynet.Proxy) -> AsyncIterator[list[keynet.Event]]:
    """Events, printed by the command."""
    seen: list[keynet.Event] = []
    events = proxy.events()

    async def tell() -> None:
        async for event in events:
            seen.append(event)
            show(event, Output(json=False))

    task = asyncio.create_task(tell())
    yield seen
    task.cancel()


def lie(one: Liar) -> None:
    """A rendezvous every text of which is hostile."""
    one.welcome(HOSTILE, [HOSTILE, f"stun.invalid{HOSTILE}:3478", f":3478{HOSTILE}"])
    uris = [f"turn:{HOSTILE}", f"turn:relay.invalid:1?transport={HOSTILE}", f"turns:relay.invalid{HOSTILE}:443"]
    relay = pb.Relay(uris=uris, username=HOSTILE, password=HOSTILE, seconds=3600)
    relays = pb.RendezvousMessage(relays=pb.Relays(relays=[relay, pb.Relay(uris=["turn:127.0.0.1:9"])]))
    one.server._service._name_relays = lambda registration: registration.reply(relays)  # type: ignore[method-assign]


async def test_of_a_rendezvous(
    alice: keynet.Identity, bob: keynet.Identity, capsys: pytest.CaptureFixture[str], logged: Callable[[], str]
) -> None:
    async with liar() as one:
        lie(one)
        proxy = support.proxy(alice, rendezvous=[one.server.address])
        async with proxy, told(proxy) as seen:
            await until(lambda: proxy.status().rendezvous[0].connected)
            # an Undelivered in its own words
            one.server._router._send = lambda _to, _signal, settle: settle(pb.CAUSE_INVALID, HOSTILE)  # type: ignore[assignment,method-assign]
            with pytest.raises(keynet.KeynetError) as caught:
                await proxy.ping(bob.node_id, timeout=3)
            said = [shown(proxy, bob.node_id), str(caught.value), repr(caught.value)]
            # the status of the stream
            registration = one.server._registry.find(alice.node_id)
            assert registration is not None
            registration.end(grpc.StatusCode.RESOURCE_EXHAUSTED, HOSTILE)
            await until(lambda: any(isinstance(event, keynet.RendezvousLost) for event in seen))
            said += [shown(proxy, bob.node_id), *map(repr, seen)]
            await proxy.close(drain=False)
    assert any(MARK in text for text in said)
    for text in [*said, capsys.readouterr().out, logged()]:
        judge(text, text[:60])


async def test_of_nats(logged: Callable[[], str]) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name = json.dumps(HOSTILE)
        info = f'{{"server_id":{name},"server_name":{name},"version":"2.10.0","max_payload":9}}'
        writer.write(f"INFO {info}\r\n".encode())
        with contextlib.suppress(OSError):
            while await reader.readline():
                writer.write(f"-ERR '\x1b[31m{MARK}\u202e{'x' * 3000}'\r\n".encode())
        writer.close()

    fake = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = fake.sockets[0].getsockname()[1]
    async with Server(keynet.Identity.generate(), listen="127.0.0.1:0", nats=f"nats://127.0.0.1:{port}") as server:
        await until(lambda: server.group is not None and server.group.error is not None)
        group = server.group
        assert group is not None
        said = [group.error or "", repr(server)]
    fake.close()
    for text in [*said, logged()]:
        judge(text, text[:60])


async def test_of_an_http_proxy(
    alice: keynet.Identity, logged: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(f"HTTP/1.1 403 \x1b[31m{MARK}\u202e{'x' * 3000}\r\n{HOSTILE}\r\n\r\n".encode())
        writer.close()

    fake = await asyncio.start_server(serve, "127.0.0.1", 0)
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{fake.sockets[0].getsockname()[1]}")
    proxy = support.proxy(alice, relays=["turn:a:b@relay.example.org:9?transport=tcp"])
    async with proxy:
        await until(lambda: proxy.status().relays[0].error is not None)
        said = [shown(proxy, alice.node_id), str(proxy.status().relays[0].error)]
        await proxy.close(drain=False)
    fake.close()
    for text in [*said, logged()]:
        judge(text, text[:60])


async def test_of_a_node_at_its_rendezvous(logged: Callable[[], str]) -> None:
    """The agent of a node, and its messages."""
    async with rendezvous() as server, stub(server, keynet.Identity.generate()) as made:
        node = Node(keynet.Identity.generate(), made)
        await node.call.write(pb.NodeMessage(hello=pb.Hello(agent=HOSTILE[:200])))
        await node.read()
        await node.call.write(pb.NodeMessage(uses=pb.Uses(relays=[HOSTILE[:200]])))
        await node.send(b"x" * 32, HOSTILE.encode())
        await node.read()
        said = [repr(server), str(server.stats())]
        node.call.cancel()
    for text in [*said, logged()]:
        judge(text, text[:60])

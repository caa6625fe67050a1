"""Proxies that are registered at different instances of a group find each other."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pathlib
import signal
from collections.abc import AsyncIterator, Iterator

import pytest

import keynet
from keynet.demo.run import Process
from nodes import PATIENCE, NatsServer, nats_server
from support import SERVICE, aio_greeter, pb, rpc

INSTANCES = 3


@pytest.fixture
def nats(tmp_path: pathlib.Path) -> Iterator[NatsServer]:
    with nats_server(tmp_path) as server:
        yield server


class Instance:
    """One `keynet rendezvous` of the group."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.place = process.expect("ready")["rendezvous"]

    def kill(self) -> None:
        """Ends it at once, without a word to anybody."""
        os.kill(self._process.pid, signal.SIGKILL)


@pytest.fixture
def instances(nats: NatsServer, tmp_path: pathlib.Path) -> Iterator[list[Instance]]:
    with contextlib.ExitStack() as stack:
        flags = ["--listen", "127.0.0.1:0", "--nats", nats.url, "--max-nodes", "100", "--json"]
        yield [
            Instance(stack.enter_context(Process("keynet", "rendezvous", "--identity", str(tmp_path / f"{n}"), *flags)))
            for n in range(INSTANCES)
        ]


@contextlib.asynccontextmanager
async def registered(*at: Instance, services: dict[int, str] | None = None) -> AsyncIterator[keynet.Proxy]:
    """A node that knows nobody, registered at each of these."""
    proxy = keynet.Proxy(
        keynet.Identity.generate(),
        services=services,
        allow=keynet.ANYONE,
        listen="127.0.0.1:0",
        rendezvous=[instance.place for instance in at],
        port_mapping=False,
    )
    async with proxy:
        await connected(proxy, len(at))
        yield proxy


async def connected(proxy: keynet.Proxy, count: int) -> None:
    """Waits until it is registered at so many."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PATIENCE
    while sum(one.connected for one in proxy.status().rendezvous) != count:
        assert loop.time() < deadline, proxy.status().rendezvous
        await asyncio.sleep(0.02)


async def found(proxy: keynet.Proxy, node: str) -> None:
    """Dials until the node is found: that it has registered takes a moment to be known everywhere."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PATIENCE
    while not await answers(proxy, node):
        assert loop.time() < deadline, proxy.explain(node)
        await asyncio.sleep(0.05)


async def answers(proxy: keynet.Proxy, node: str) -> bool:
    """Whether the node is reached; False if no rendezvous knows it."""
    try:
        await proxy.ping(node)
    except keynet.PeerOffline:
        return False
    return True


@pytest.mark.slow
async def test_an_instance_is_killed(instances: list[Instance]) -> None:
    """Nodes of different instances meet; who is left with one instance is still found, and calls go on."""
    one, two, three = instances
    async with (
        aio_greeter("127.0.0.1:0") as greeter,
        registered(one) as a,
        registered(two, three, services={SERVICE: greeter}) as b,
        registered(two, services={SERVICE: greeter}) as c,
    ):
        await found(a, b.node_id)
        await found(c, a.node_id)
        async with keynet.grpc.aio_channel(a, b.node_id, SERVICE) as channel:
            chat = rpc.GreeterStub(channel).Chat()
            await said(chat, "before")
            two.kill()
            await connected(b, 1)
            await connected(c, 0)
            await said(chat, "after")
            # a node that knows neither, and is known to neither
            async with registered(one) as d:
                await found(d, b.node_id)
                with pytest.raises(keynet.PeerOffline):
                    await d.ping(c.node_id)
            await chat.done_writing()
            assert await chat.code() is keynet.grpc.grpc.StatusCode.OK


async def said(chat: object, name: str) -> None:
    """One message there and back."""
    await chat.write(pb.HelloRequest(name=name))
    assert (await asyncio.wait_for(chat.read(), PATIENCE)).message == f"Hello, {name}!"

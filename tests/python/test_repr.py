"""Every public object shows what it is in a log or a debugger, and no secret."""

from __future__ import annotations

import inspect
import types
from typing import Any

import pytest

import keynet
import keynet.grpc
import keynet.metrics
import keynet.relay
import keynet.rendezvous
import keynet.tracing
from support import SERVICE, aio_greeter, pair, proxy, say_hello

MODULES = [
    keynet,
    keynet.errors,
    keynet.sync,
    keynet.grpc,
    keynet.relay,
    keynet.rendezvous,
    keynet.metrics,
    keynet.tracing,
]
SECRET = "correct-horse-battery-staple"


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_public_class_has_a_repr_of_its_own(module: types.ModuleType) -> None:
    classes = [value for name in module.__all__ if inspect.isclass(value := getattr(module, name))]
    plain = [cls for cls in classes if cls.__repr__ is object.__repr__ and not inspect.isabstract(cls)]
    assert plain == []


def shows(thing: Any, *facts: str) -> None:
    """Its public name, these facts, no address in memory, no secret."""
    text = repr(thing)
    assert type(thing).__qualname__ in text
    assert "object at 0x" not in text
    assert "._" not in text, "a private module"
    assert SECRET not in text
    for fact in facts:
        assert str(fact) in text


async def test_nodes_and_what_they_give(alice: keynet.Identity, bob: keynet.Identity) -> None:
    shows(alice, alice.node_id)
    shows(alice.node_id, alice.node_id)
    credentials = ("me", SECRET)
    idle = keynet.sync.Proxy(alice, credentials=credentials, relays=[f"turn:me:{SECRET}@127.0.0.1:1"])
    shows(idle, "keynet.sync.Proxy", alice.node_id.short, "not started")
    async with aio_greeter("127.0.0.1:0") as backend, pair(alice, bob, backend, credentials=credentials) as (a, b):
        shows(a, "keynet.Proxy", a.node_id.short, a.forward_address, a.proxy_address)
        shows(b)
        events = a.events()
        shows(events, "keynet.EventStream", a.node_id.short)
        await say_hello(a, bob.node_id)
        shows(await anext(events))
        async with await a.forward(bob.node_id, SERVICE) as forward:
            shows(forward, forward.address)
        shows(forward)
        async with keynet.StatusServer(a) as status:
            shows(status, a.node_id.short, status.path)
        shows(status, "not listening")
        for thing in (await a.ping(bob.node_id), a.status(), a.explain(bob.node_id), *b.connections()):
            shows(thing)
        shows(keynet.metrics.ProxyCollector(a), a.node_id.short)
    shows(a, "closed")
    with keynet.sync.Proxy(alice, listen="127.0.0.1:0") as blocking:
        shows(blocking.events(), "keynet.sync.EventStream", alice.node_id.short)


async def test_servers(alice: keynet.Identity) -> None:
    relay = keynet.relay.RelayServer(listen="127.0.0.1:0", users={"me": SECRET}, secret=SECRET)
    shows(relay, "127.0.0.1:0", "not started")
    async with relay:
        shows(relay, *relay.addresses)
    shows(relay, "closed")
    meeting = keynet.rendezvous.Server(alice, listen="127.0.0.1:0")
    shows(meeting, alice.node_id, "not running")
    async with meeting:
        shows(meeting, meeting.address)
    shows(keynet.rendezvous.Relay(["turn:127.0.0.1:1"], SECRET), "turn:127.0.0.1:1")
    measured = keynet.metrics.serve("127.0.0.1:0", keynet.metrics.StatsCollector("relay", dict))
    shows(measured, measured.address)
    measured.close()
    shows(keynet.metrics.StatsCollector("relay", dict), "relay")


async def test_an_error_shows_its_reason_and_where(alice: keynet.Identity, bob: keynet.Identity) -> None:
    async with proxy(alice) as a:
        with pytest.raises(keynet.UnknownNode) as caught:
            await a.ping(bob.node_id)
    shows(caught.value, "reason='unknown_node'", "stage='", f"node_id='{bob.node_id}'")
    assert repr(keynet.ANYONE) == "keynet.ANYONE"
    shows(keynet.Reason.PEER_LOST, "peer_lost")

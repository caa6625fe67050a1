"""Many at once, and those who are not let in: who is put off, who is told where a node is, and what a liar may say."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest
from test_liars import AMPLE, ANSWER, DECLINED, GO, INVITE, TAMPERED, Liar, liar, node

import keynet
import support
from keynet.rendezvous._limits import Settings
from keynet.rendezvous._registry import Registration, Registry
from keynet.rendezvous._router import Router
from keynet.rendezvous._stats import Stats
from keynet.rendezvous.v1 import rendezvous_pb2 as pb
from nodes import registered, rendezvous, until

PEER_BUSY = 84


def later(millis: int) -> bytes:
    """The node puts an invitation off, and says for how long."""
    return bytes([DECLINED, 0, PEER_BUSY]) + millis.to_bytes(2, "big")


@contextlib.asynccontextmanager
async def serving(identity: keynet.Identity, one: Liar, allow: keynet.Allow) -> AsyncIterator[keynet.Proxy]:
    """A node with a service for those whom `allow` lets in."""
    options = {"services": {1: "127.0.0.1:1"}, "allow": allow, "rendezvous": [one.server.address]}
    async with support.proxy(identity, **options) as proxy:
        await until(lambda: one.server._registry.find(identity.node_id) is not None)
        yield proxy
        await proxy.close(drain=False)


async def test_who_is_put_off_comes_again(alice: keynet.Identity, bob: keynet.Identity) -> None:
    async with liar() as one, node(alice, one) as a, node(bob, one):
        asked: list[bytes] = []

        def busy(to: bytes, signal: pb.Signal) -> None:
            if signal.body[0] == INVITE and signal.exchange not in asked:
                asked.append(signal.exchange)
            if signal.body[0] == INVITE and len(asked) <= 2:
                one.say(signal.node, to, signal.exchange, later(600) if len(asked) == 1 else later(0)[:3])
            else:
                one.honestly(to, signal)

        one.lie = busy
        assert (await a.ping(bob.node_id, timeout=AMPLE)).node_id == bob.node_id
        assert len(asked) == 3, "each time a new exchange"


async def test_who_is_put_off_until_the_end_hears_why(alice: keynet.Identity, bob: keynet.Identity) -> None:
    async with liar() as one, node(alice, one) as a, node(bob, one):
        exchanges: list[bytes] = []

        def busy(to: bytes, signal: pb.Signal) -> None:
            exchanges.append(signal.exchange)
            one.say(signal.node, to, signal.exchange, later(500))

        one.lie = busy
        with pytest.raises(keynet.KeynetError) as failed:
            await a.ping(bob.node_id, timeout=6)
        assert failed.value.reason == "peer_busy"
        assert 2 < len(exchanges) < 10, "it went on trying, at growing intervals"


async def test_a_rendezvous_has_one_word_in_an_exchange(alice: keynet.Identity, bob: keynet.Identity) -> None:
    """What it says after an Answer that does not hold is not looked at, not even the right one."""
    async with liar() as one, node(alice, one) as a, node(bob, one):

        def forges(to: bytes, signal: pb.Signal) -> None:
            if signal.body[0] == ANSWER:
                one.say(to, signal.node, signal.exchange, signal.body[:-1] + bytes([signal.body[-1] ^ 1]))
            one.honestly(to, signal)

        one.lie = forges
        with pytest.raises(keynet.KeynetError) as failed:
            await a.ping(bob.node_id, timeout=8)
        assert failed.value.reason in TAMPERED
        assert GO not in one.kinds(alice.node_id.public_key)


async def test_a_function_is_asked_before_a_stranger_is_told_where_a_node_is(
    alice: keynet.Identity, bob: keynet.Identity
) -> None:
    asked: list[keynet.AccessRequest] = []
    verdict = [False]

    def allow(request: keynet.AccessRequest) -> bool:
        asked.append(request)
        return verdict[0]

    async with liar() as one, node(alice, one) as a, serving(bob, one, allow):
        for _ in range(2):
            with pytest.raises(keynet.KeynetError) as failed:
                await a.ping(bob.node_id, timeout=8)
            assert failed.value.reason == "access_denied"
        assert ANSWER not in one.kinds(bob.node_id.public_key), "nothing of where it is was said"
        assert [(request.node_id, request.service_port) for request in asked] == [(alice.node_id, 0)], "once"
        verdict[0] = True

        def asked_again() -> bool:
            return len(asked) > 1

        while not asked_again():
            with contextlib.suppress(keynet.KeynetError):
                await a.ping(bob.node_id, timeout=AMPLE)
        assert (await a.ping(bob.node_id, timeout=AMPLE)).node_id == bob.node_id


async def test_whoever_was_refused_and_the_rendezvous_are_strangers(
    alice: keynet.Identity, bob: keynet.Identity, mallory: keynet.Identity
) -> None:
    async with liar() as one, node(mallory, one) as m, serving(bob, one, [alice.node_id]) as b:
        # she knows the address, shakes hands and is refused: a path to her is proven then
        m.add_peer(bob.node_id, [b.proxy_address])
        with contextlib.suppress(keynet.KeynetError):
            await m.ping(bob.node_id, timeout=AMPLE)
        await until(lambda: any(peer.node_id == mallory.node_id for peer in b.status().peers))
        m.remove_peer(bob.node_id)
        await m.close(drain=False)
        async with node(mallory, one) as again:
            with pytest.raises(keynet.KeynetError) as failed:
                await again.ping(bob.node_id, timeout=8)
            assert failed.value.reason == "access_denied"
        assert ANSWER not in one.kinds(bob.node_id.public_key)


async def test_the_address_of_a_sender_is_told_to_whom_it_has_spoken_with(
    alice: keynet.Identity, bob: keynet.Identity
) -> None:
    async with rendezvous() as server, registered(server, alice) as a, registered(server, bob) as b:
        exchange = await a.send(b.key, b"invite")
        assert (await b.read()).observed == "", "who asks does not know yet whom it has before it"
        await b.send(a.key, b"answer", exchange)
        assert (await a.read()).observed == b.welcome.observed
        await a.send(b.key, b"go", exchange)
        assert (await b.read()).observed == a.welcome.observed
        # nobody makes it up
        signal = pb.Signal(node=b.key, exchange=bytes(16), body=b"invite", observed="192.0.2.1:1")
        await a.call.write(pb.NodeMessage(signal=signal))
        message = await b.read()
        assert (message.observed, message.signal.observed) == ("", "")


def test_a_node_that_many_invite_answers_them_all() -> None:
    """A thousand callers in one moment: no invitation, no answer and no third step is refused."""
    settings, clock = Settings(), lambda: 0.0
    registry = Registry(settings, appeared=lambda name: None, gone=lambda name: None)
    router = Router(settings, registry, Stats(), clock, None)

    def came(number: int) -> Registration:
        name = keynet.NodeId.from_public_key(number.to_bytes(32, "big"))
        made = Registration((name,), 0.0, registry.totals, f"192.0.2.1:{number}")
        registry.add(made)
        return made

    def says(sender: Registration, to: Registration, exchange: int) -> None:
        signal = pb.Signal(node=to.leaf.public_key, exchange=exchange.to_bytes(16, "big"), body=bytes(400))
        assert router.from_node(sender, signal)

    def reads(node: Registration) -> int:
        count = 0
        while node._count:
            node._pop().settle(None, "")
            count += 1
        return count

    called, callers = came(7), [came(1000 + n) for n in range(1000)]
    for n, caller in enumerate(callers):
        says(caller, called, n)
    assert reads(called) == 1000
    for n, caller in enumerate(callers):
        says(called, caller, n)
        assert reads(caller) == 1
    for n, caller in enumerate(callers):
        says(caller, called, n)
    assert reads(called) == 1000

"""A rendezvous that lies to the nodes that trust it to introduce them, and peers that lie about where they are."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

import keynet
import support
from keynet.rendezvous import Server, Settings
from keynet.rendezvous._limits import MAX_BODY, Rate
from keynet.rendezvous.v1 import rendezvous_pb2 as pb
from nodes import until

INVITE, ANSWER, GO, DECLINED = range(1, 5)
PLENTY = Rate(1e6, 1e6)
SCHEDULE = 16
"""Pings to one address in one meeting: 15 in 10 s, and one that opens the own NAT (docs/protocol.md section 7)."""
BUSY_A_SECOND = 100
"""How often a node says that it is busy (docs/protocol.md section 7)."""
AMPLE = 30.0
"""Seconds that a ping may take on a busy machine."""


class Liar:
    """A rendezvous between whose ears and mouth stands a lie."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.heard: list[tuple[bytes, pb.Signal]] = []
        """What nodes sent, with the receiver."""
        self.lie: Callable[[bytes, pb.Signal], None] = self.honestly
        server._router._send = self._send  # type: ignore[method-assign]

    def kinds(self, sender: bytes) -> list[int]:
        return [signal.body[0] for _, signal in self.heard if signal.node == sender]

    def say(self, to: bytes, sender: bytes, exchange: bytes, body: bytes) -> None:
        """Delivers a signal, whoever sent it."""
        signal = pb.Signal(node=sender, exchange=exchange, body=body)
        self.server._router._deliver(keynet.NodeId.from_public_key(to), signal, lambda _cause, _detail: None)

    def honestly(self, to: bytes, signal: pb.Signal) -> None:
        self.say(to, signal.node, signal.exchange, signal.body)

    def welcome(self, observed: str | None, stun: list[str]) -> None:
        """What newcomers are told."""
        service, original = self.server._service, self.server._service._welcome
        service._stun = stun
        if observed is not None:
            service._welcome = lambda registration, _: original(registration, observed)  # type: ignore[assignment]

    def _send(self, receiver: keynet.NodeId, signal: pb.Signal, settle: Callable[..., None]) -> None:
        settle(None, "")
        copy = pb.Signal()
        copy.CopyFrom(signal)
        self.heard.append((receiver.public_key, copy))
        self.lie(receiver.public_key, signal)


@contextlib.asynccontextmanager
async def liar() -> AsyncIterator[Liar]:
    settings = Settings(
        max_nodes=100,
        sender=PLENTY,
        pair=PLENTY,
        receiver=PLENTY,
        queue=100_000,
        queue_bytes=1 << 30,
        in_flight=100_000,
    )
    async with Server(keynet.Identity.generate(), listen="127.0.0.1:0", settings=settings) as server:
        yield Liar(server)


@contextlib.asynccontextmanager
async def node(identity: keynet.Identity, *liars: Liar) -> AsyncIterator[keynet.Proxy]:
    """A node that anybody may meet and ping, once it is registered everywhere."""
    addresses = [liar.server.address for liar in liars]
    proxy = support.proxy(identity, services={1: "127.0.0.1:1"}, allow=keynet.ANYONE, rendezvous=addresses)
    async with proxy:
        name = identity.node_id
        for one in liars:
            await until(lambda one=one: one.server._registry.find(name) is not None)  # type: ignore[misc]
        await until(lambda: all(one.connected for one in proxy.status().rendezvous))
        yield proxy
        await proxy.close(drain=False)


@contextlib.contextmanager
def victim() -> Iterator[socket.socket]:
    """Somebody who has nothing to do with it, to whom lies point."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.bind(("127.0.0.1", 0))
        made.setblocking(False)
        yield made


def packets(of: socket.socket) -> int:
    count = 0
    with contextlib.suppress(BlockingIOError):
        while of.recv(2048):
            count += 1
    return count


def address(of: socket.socket) -> str:
    host, port = of.getsockname()
    return f"{host}:{port}"


def met(proxy: keynet.Proxy) -> set[keynet.NodeId]:
    return {peer.node_id for peer in proxy.status().peers}


def changed(kind: int, change: Callable[[bytes], bytes]) -> Callable[[Liar], None]:
    def arrange(one: Liar) -> None:
        def lie(to: bytes, signal: pb.Signal) -> None:
            body = change(signal.body) if signal.body[0] == kind else signal.body
            one.say(to, signal.node, signal.exchange, body)

        one.lie = lie

    return arrange


def flip(body: bytes) -> bytes:
    at = random.randrange(1, len(body))
    return body[:at] + bytes([body[at] ^ 0x10]) + body[at + 1 :]


def swapped_exchanges(one: Liar) -> None:
    def lie(to: bytes, signal: pb.Signal) -> None:
        exchange = signal.exchange if signal.body[0] == INVITE else os.urandom(16)
        one.say(to, signal.node, exchange, signal.body)

    one.lie = lie


def nothing(one: Liar) -> None:
    one.lie = lambda _to, _signal: None


def echo(one: Liar) -> None:
    one.lie = lambda to, signal: one.say(signal.node, to, signal.exchange, signal.body)


def declined(one: Liar) -> None:
    one.lie = lambda to, signal: one.say(signal.node, to, signal.exchange, bytes([DECLINED, 0, 80]))


LIES = {
    "invite_changed": changed(INVITE, flip),
    "answer_changed": changed(ANSWER, flip),
    "go_changed": changed(GO, flip),
    "invite_cut": changed(INVITE, lambda body: body[:-1]),
    "answer_cut": changed(ANSWER, lambda body: body[:1]),
    "answer_grown": changed(ANSWER, lambda body: body + bytes(MAX_BODY - len(body))),
    "seal_changed": changed(ANSWER, lambda body: body[:-1] + bytes([body[-1] ^ 1])),
    "swapped_exchanges": swapped_exchanges,
    "echo": echo,
    "nothing": nothing,
    "declined": declined,
}

TAMPERED = {
    *("protocol_violation", "identity_mismatch", "certificate_missing", "certificate_invalid", "certificate_expired"),
    *("chain_broken", "chain_too_long", "name_mismatch"),
}
REASONS = {
    **dict.fromkeys(LIES, frozenset({"peer_offline"})),
    # what was seen of the other: a byte of its chain may have been changed
    "answer_changed": TAMPERED,
    "answer_cut": TAMPERED,
    "answer_grown": TAMPERED,
    "seal_changed": TAMPERED,
    # its answer was genuine, and no address of it answers
    "go_changed": {"punch_timeout"},
    "declined": {"access_denied", "peer_offline"},
    "echo": {"peer_offline", "protocol_violation"},
}


@pytest.mark.parametrize("name", LIES)
async def test_whoever_is_lied_to_reaches_nobody(name: str, alice: keynet.Identity, bob: keynet.Identity) -> None:
    async with liar() as one, node(alice, one) as a, node(bob, one) as b:
        LIES[name](one)
        with pytest.raises(keynet.KeynetError) as failed:
            await a.ping(bob.node_id, timeout=8)
        assert failed.value.reason in REASONS[name], failed.value
        assert met(a) <= {one.server.node_id}
        assert met(b) <= {one.server.node_id}
        # and once the truth is told they meet
        one.lie = one.honestly
        assert (await a.ping(bob.node_id, timeout=AMPLE)).node_id == bob.node_id


@pytest.mark.parametrize("kind", [INVITE, ANSWER, GO], ids=["invite", "answer", "go"])
async def test_a_step_that_is_lost_is_said_again(kind: int, alice: keynet.Identity, bob: keynet.Identity) -> None:
    """A session with a rendezvous may break with a signal under way."""
    async with liar() as one, node(alice, one) as a, node(bob, one):
        lost: list[bytes] = []

        def loses(to: bytes, signal: pb.Signal) -> None:
            if signal.body[0] == kind and not lost:
                lost.append(signal.body)
            else:
                one.honestly(to, signal)

        one.lie = loses
        assert (await a.ping(bob.node_id, timeout=AMPLE)).node_id == bob.node_id
        said = [signal.body for _, signal in one.heard if signal.body[0] == kind]
        assert len(lost) == 1
        assert said[1:2] == lost, "the same again"
        assert len({signal.exchange for _, signal in one.heard}) == 1


async def test_a_refusal_of_what_is_said_again_ends_nothing(alice: keynet.Identity, bob: keynet.Identity) -> None:
    """The first invitation was delivered; the answer is late."""
    async with liar() as one, node(alice, one) as a, node(bob, one):
        said = dict.fromkeys((INVITE, ANSWER, GO), 0)

        def refuses(to: bytes, signal: pb.Signal) -> None:
            kind = signal.body[0]
            said[kind] += 1
            if kind == INVITE and said[kind] > 1:
                refusal = pb.Undelivered(node=to, exchange=signal.exchange, cause=pb.CAUSE_OFFLINE, detail="gone")
                sender = one.server._registry.by_leaf(keynet.NodeId.from_public_key(signal.node))
                assert sender is not None
                sender.reply(pb.RendezvousMessage(undelivered=refusal))
            elif kind != ANSWER or said[kind] > 2:
                one.honestly(to, signal)

        one.lie = refuses
        assert (await a.ping(bob.node_id, timeout=AMPLE)).node_id == bob.node_id
        assert said[INVITE] > 1
        assert len({signal.exchange for _, signal in one.heard}) == 1


async def test_nobody_answers_for_somebody_else(
    alice: keynet.Identity, bob: keynet.Identity, mallory: keynet.Identity
) -> None:
    """Invitations of two go to the wrong one, and the answers of two are exchanged."""
    async with liar() as one, node(alice, one) as a, node(bob, one), node(mallory, one) as m:
        names = [identity.node_id.public_key for identity in (alice, bob, mallory)]
        other = {names[1]: names[2], names[2]: names[1], names[0]: names[0]}
        one.lie = lambda to, signal: one.say(other[to], signal.node, signal.exchange, signal.body)
        with pytest.raises(keynet.KeynetError):
            await a.ping(bob.node_id, timeout=7)
        assert one.kinds(names[2]) == [], "an invitation that is for somebody else is not answered"

        exchanges: dict[bytes, bytes] = {}

        def crossed(to: bytes, signal: pb.Signal) -> None:
            if signal.body[0] == INVITE:
                exchanges[to] = signal.exchange
                one.honestly(to, signal)
            elif signal.body[0] == ANSWER:
                # each answer as if it were the other's
                one.say(to, other[signal.node], exchanges[other[signal.node]], signal.body)

        one.lie = crossed
        pings = [a.ping(of.node_id, timeout=8) for of in (bob, mallory)]
        results = await asyncio.gather(*pings, return_exceptions=True)
        assert all(isinstance(result, keynet.KeynetError) for result in results), results
        assert met(a) <= {one.server.node_id}
        assert met(m) <= {one.server.node_id}


@pytest.mark.parametrize("lie", ["forges", "spoils", "swallows"])
async def test_one_honest_rendezvous_is_enough(lie: str, alice: keynet.Identity, bob: keynet.Identity) -> None:
    async with liar() as one, liar() as honest, node(alice, one, honest) as a, node(bob, one, honest):

        def forges(to: bytes, signal: pb.Signal) -> None:
            for body in (b"\2garbage", b"\2", bytes([DECLINED, 0, 80]), bytes([DECLINED]), b"\3", b"\2" * 500):
                one.say(signal.node, to, signal.exchange, body)

        def spoils(to: bytes, signal: pb.Signal) -> None:
            one.say(to, signal.node, signal.exchange, signal.body if signal.body[0] == INVITE else signal.body[:-1])

        def swallows(to: bytes, signal: pb.Signal) -> None:
            if signal.body[0] == INVITE:
                one.honestly(to, signal)

        def slowly(to: bytes, signal: pb.Signal) -> None:
            asyncio.get_running_loop().call_later(0.3, honest.honestly, to, signal)

        one.lie, honest.lie = {"forges": forges, "spoils": spoils, "swallows": swallows}[lie], slowly
        assert (await a.ping(bob.node_id, timeout=AMPLE)).node_id == bob.node_id


async def test_what_comes_again_or_in_another_order_does_nothing(alice: keynet.Identity, bob: keynet.Identity) -> None:
    async with liar() as one, node(alice, one) as a, node(bob, one) as b:
        loop = asyncio.get_running_loop()

        def thrice(to: bytes, signal: pb.Signal) -> None:
            for delay in (0.05, 0, 0.2):
                loop.call_later(delay * random.random(), one.honestly, to, signal)

        one.lie = thrice
        assert (await a.ping(bob.node_id, timeout=AMPLE)).node_id == bob.node_id
        assert one.kinds(bob.node_id.public_key) == [ANSWER]
        path = b.status().peers
        before = list(one.heard)
        for to, signal in (*before, *reversed(before)):
            one.honestly(to, signal)
        # a genuine exchange behind them shows that they have been looked at
        await asyncio.sleep(1)
        assert len(one.heard) == len(before), "nothing of it was answered"
        assert {peer.node_id for peer in path} == met(b)
        assert (await a.ping(bob.node_id, timeout=AMPLE)).node_id == bob.node_id


async def test_a_flood_leaves_a_node_as_it_was(alice: keynet.Identity, bob: keynet.Identity) -> None:
    async with liar() as one, node(alice, one) as a, node(bob, one) as b:
        await a.ping(bob.node_id, timeout=AMPLE)
        invite = next(signal for _, signal in one.heard if signal.body[0] == INVITE)
        to, sender = bob.node_id.public_key, alice.node_id.public_key
        heard = len(one.heard)
        for n in range(3_000):
            size = random.choice([0, 1, 2, 95, 96, 97, 98, 500, 2_000])
            kind = bytes([random.choice([INVITE, ANSWER, GO, DECLINED, 0, 255])])
            body = invite.body if n % 3 == 0 else kind + os.urandom(size)
            one.say(to, sender if n % 2 else os.urandom(32), os.urandom(16), body)
        for size in (MAX_BODY - 1, MAX_BODY):
            one.say(to, sender, os.urandom(16), bytes([INVITE]) * size)
        for exchange in (b"", b"short", os.urandom(17)):
            one.say(to, sender, exchange, invite.body)
        # while that is looked at
        assert (await a.ping(bob.node_id, timeout=AMPLE)).node_id == bob.node_id
        await until(lambda: not one.server._registry.find(bob.node_id)._parcels)  # type: ignore[union-attr]
        await asyncio.sleep(1.5)
        # an invitation that finds no place hears so, whoever made it up
        answers = [signal.body[0] for _, signal in one.heard[heard:]]
        assert set(answers) <= {DECLINED}, "no made-up invitation is answered"
        assert len(answers) <= BUSY_A_SECOND
        assert all(station.connected for station in b.status().rendezvous)
        assert met(b) <= {one.server.node_id, alice.node_id}
        # and whoever is genuine is still met
        async with node(keynet.Identity.generate(), one) as c:
            assert (await c.ping(bob.node_id, timeout=AMPLE)).node_id == bob.node_id


@pytest.mark.parametrize(
    "observed", ["224.0.0.1:5", "255.255.255.255:9", "[ff02::1]:5", "0.0.0.0:0", "not an address", "", "victim"]
)
async def test_lies_about_addresses(observed: str, alice: keynet.Identity, bob: keynet.Identity) -> None:
    """Of the own address, and of STUN servers: those who are named get what the schedules have, and no more."""
    with victim() as stun, victim() as reflexive:
        async with liar() as one:
            names = [address(stun), "224.0.0.1:5", "255.255.255.255:9", "host.invalid:1", ":70000", ":0", "", "::::"]
            one.welcome(address(reflexive) if observed == "victim" else observed, names * 40)
            async with node(alice, one) as a, node(bob, one) as b:
                assert (await a.ping(bob.node_id, timeout=AMPLE)).node_id == bob.node_id
                await asyncio.sleep(2)
                assert met(a) <= {one.server.node_id, bob.node_id}
                for proxy in (a, b):
                    told = [candidate.address for candidate in proxy.status().addresses]
                    assert not any(lie in told for lie in ("224.0.0.1:5", "255.255.255.255:9", "0.0.0.0:0")), told
            # each node: three questions whenever it looks around, which it does once for each piece of news
            assert packets(stun) <= 2 * 3 * 3
            # each of two nodes, by the schedule
            assert packets(reflexive) <= (2 * SCHEDULE if observed == "victim" else 0)


async def test_a_peer_that_names_a_victim(alice: keynet.Identity, mallory: keynet.Identity) -> None:
    """She tells whom she invites that she is somewhere else: there the schedule's pings arrive, and no others."""
    with victim() as named:
        async with liar() as one, node(alice, one):
            one.welcome(address(named), [])
            async with node(mallory, one) as m:
                assert address(named) in [candidate.address for candidate in m.status().addresses]
                await m.ping(alice.node_id, timeout=AMPLE)
                await asyncio.sleep(2.5)
                count = packets(named)
                assert 0 < count <= SCHEDULE, count
                await asyncio.sleep(2)
                assert packets(named) == 0, "and then it is over"

"""The bounds that need no network: token buckets, and who has which name."""

from __future__ import annotations

import functools
import random

import pytest

import keynet
from keynet.rendezvous._exchanges import Exchanges
from keynet.rendezvous._limits import Buckets, Pace, Rate, Settings, network_of
from keynet.rendezvous._registry import Parcel, Registration, Registry
from keynet.rendezvous.v1 import rendezvous_pb2 as pb


def test_a_bucket() -> None:
    buckets = Buckets(Rate(2, 3), 10)
    assert [buckets.take(b"a", 0.0) for _ in range(4)] == [True, True, True, False]
    assert buckets.take(b"b", 0.0)
    assert not buckets.take(b"a", 0.4)
    assert buckets.take(b"a", 0.5)
    assert [buckets.take(b"a", 100.0) for _ in range(4)] == [True, True, True, False]


def test_full_buckets_are_forgotten() -> None:
    buckets = Buckets(Rate(1, 2), 10_000)
    for n in range(100):
        buckets.take(b"%d" % n, n * 0.1)
    # each is full again after a second, which is ten others
    assert len(buckets) <= 20


def test_the_table_of_buckets_is_bounded() -> None:
    buckets = Buckets(Rate(1, 2), 50)
    for n in range(1000):
        assert buckets.take(b"%d" % n, 0.0)
        assert len(buckets) <= 51


@pytest.mark.parametrize("seed", range(5))
def test_no_bucket_gives_more_than_its_rate(seed: int) -> None:
    draw = random.Random(seed)
    rate = Rate(draw.uniform(0.5, 20), draw.randint(1, 50))
    buckets, now, taken = Buckets(rate, 10), 0.0, 0
    for _ in range(5000):
        now += draw.expovariate(100)
        taken += buckets.take(b"a", now)
    assert taken <= rate.burst + now * rate.per_second
    assert taken >= min(5000, now * rate.per_second * 0.99 - 1), f"seed {seed}"


@pytest.mark.parametrize("wrong", [{"max_nodes": 0}, {"queue": -1}, {"refresh": 0}], ids=str)
def test_wrong_settings(wrong: dict[str, int]) -> None:
    with pytest.raises(keynet.InvalidArgument, match=next(iter(wrong))):
        Settings(**wrong)


def test_a_rate_of_nothing() -> None:
    with pytest.raises(keynet.InvalidArgument, match="rate"):
        Rate(0, 5)


class Names:
    """A registry, and the names that others would be told of."""

    def __init__(self, **settings: float) -> None:
        self.known: set[keynet.NodeId] = set()
        self.registry = Registry(Settings(**settings), appeared=self.appeared, gone=self.known.remove)

    def appeared(self, name: keynet.NodeId) -> None:
        assert name not in self.known
        self.known.add(name)

    def node(self, *names: int, now: float = 0.0, at: str = "") -> Registration:
        return Registration(tuple(map(name, names)), now, self.registry.totals, at)

    def comes(self, number: int, at: str) -> str | None:
        """What the service does with a newcomer: the refusal, if there is one."""
        names = (name(number),)
        refusal = self.registry.refusal(names, at)
        if refusal is None:
            crowding = self.registry.giving_way(names, at)
            if crowding is not None:
                self.registry.remove(crowding)
            self.registry.add(self.node(number, at=at))
        return refusal


@functools.cache
def name(number: int) -> keynet.NodeId:
    return keynet.Identity.generate().node_id


def test_names_come_and_go() -> None:
    names = Names()
    first, second = names.node(1), names.node(2, 1)
    assert names.registry.add(first) == []
    assert names.known == {name(1)}
    assert names.registry.add(second) == [first]
    assert names.known == {name(1), name(2)}
    names.registry.remove(first)
    assert names.registry.find(name(1)) is second
    names.registry.remove(second)
    names.registry.remove(second)
    assert (names.known, len(names.registry)) == (set(), 0)


def test_an_old_name_that_is_taken_comes_back() -> None:
    names = Names()
    rotated, old = names.node(2, 1), names.node(1)
    names.registry.add(rotated)
    assert names.registry.add(old) == []
    assert names.registry.find(name(1)) is old
    assert names.registry.find(name(2)) is rotated
    names.registry.reclaim(rotated)
    assert names.registry.find(name(1)) is old
    names.registry.remove(old)
    assert names.known == {name(2)}
    names.registry.reclaim(rotated)
    assert names.registry.find(name(1)) is rotated
    # but not by one that has ended
    names.registry.remove(rotated)
    names.registry.reclaim(rotated)
    assert names.known == set()


def test_only_who_was_silent_expires() -> None:
    names = Names(refresh=10, expire_after=3)
    one, two = names.node(1), names.node(2, now=5.0)
    names.registry.add(one)
    names.registry.add(two)
    assert names.registry.expired(29.9) == []
    assert names.registry.expired(30.0) == [one]
    names.registry.heard(one, 30.0)
    assert names.registry.expired(35.0) == [two]


def test_what_waits_moves_to_the_new_stream_or_is_given_back() -> None:
    names = Names(queue=2)
    old, new = names.node(1), names.node(1)
    names.registry.add(old)
    told: list[tuple[int | None, str]] = []

    def parcel(body: bytes) -> Parcel:
        return Parcel(pb.Signal(body=body), lambda cause, detail: told.append((cause, detail)))

    assert [old.offer(parcel(b"123")) for _ in range(3)] == [True, True, False]
    names.registry.add(new)
    names.registry.remove(old)
    assert told == []
    assert names.registry.totals.queued_bytes == 6
    names.registry.remove(new)
    assert [cause for cause, _ in told] == [pb.CAUSE_OFFLINE] * 2
    assert names.registry.totals.queued_bytes == 0


def test_who_takes_the_places_of_several_inherits_what_one_may_have() -> None:
    """By the older names of its chain; what finds no room goes back to its sender."""
    names = Names(queue=4, queue_of_sender=2)
    old = [names.node(number) for number in (1, 2, 3)]
    told: list[int | None] = []
    for one in old:
        names.registry.add(one)
        for sender in (b"a", b"a", b"b"):
            assert one.offer(Parcel(pb.Signal(node=sender, body=b"1"), lambda cause, _: told.append(cause)))
    heir = names.node(1, 2, 3)
    names.registry.add(heir)
    assert {sender: len(waiting) for sender, waiting in heir._parcels.items()} == {b"a": 2, b"b": 2}
    assert told == [pb.CAUSE_RECEIVER_BUSY] * 5
    assert names.registry.totals.queued_bytes == 4
    for one in (*old, heir):
        names.registry.remove(one)
    assert len(told) == 9
    assert names.registry.totals.queued_bytes == 0


def test_bytes_that_wait_are_bounded() -> None:
    names = Names(queue_bytes=10, total_queue_bytes=12)
    one, two = names.node(1), names.node(2)

    def parcel(size: int) -> Parcel:
        return Parcel(pb.Signal(body=bytes(size)), lambda cause, detail: None)

    assert [one.offer(parcel(5)) for _ in range(3)] == [True, True, False]
    # in all: the first for a node finds room, more do not
    assert [two.offer(parcel(5)) for _ in range(2)] == [True, False]


def test_a_pace_spreads_what_comes_at_once() -> None:
    pace = Pace(Rate(10, 5))
    assert [pace.delay(0.0) for _ in range(5)] == [0.0] * 5
    assert [round(pace.delay(0.0), 3) for _ in range(3)] == [0.1, 0.2, 0.3]
    assert [pace.delay(100.0) for _ in range(5)] == [0.0] * 5
    assert pace.delay(100.0) > 0


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.77:5", "192.0.2.0/24"),
        ("[::ffff:192.0.2.77]:5", "192.0.2.0/24"),
        ("[2001:db8:1:2::3]:5", "2001:db8:1::/48"),
        ("[fe80::1%eth0]:5", "fe80::/48"),
        ("", ""),
        ("nonsense:1", "nonsense"),
    ],
)
def test_the_network_of_an_address(address: str, network: str) -> None:
    assert network_of(address) == network


def test_one_socket_has_few_nodes() -> None:
    names = Names(max_nodes_per_socket=4)
    assert [names.comes(number, "192.0.2.1:9") for number in range(60)] == [None] * 60
    assert names.known == {name(number) for number in range(56, 60)}, "the newest keys of one program"
    assert names.comes(100, "192.0.2.1:10") is None, "another socket behind the same NAT"


def test_one_network_has_its_share() -> None:
    names = Names(max_nodes=1000, network_share=0.1, network_least=10)
    for number in range(300):
        names.comes(number, f"192.0.2.{number % 250}:{1000 + number}")
    assert len(names.registry) == 100
    assert "this network" in str(names.comes(400, "192.0.2.1:1"))
    assert names.comes(400, "198.51.100.1:1") is None


def test_a_network_has_its_share_also_of_nodes_that_come_from_elsewhere() -> None:
    """Whoever registers first where there is room has none by that where there is none."""
    names = Names(max_nodes=100, network_least=3, network_share=0.01, max_nodes_per_socket=2)
    for number in range(3):
        assert names.comes(number, f"192.0.2.1:{number + 1}") is None
        assert names.comes(10 + number, f"198.51.100.1:{number + 1}") is None
    assert "this network" in str(names.comes(10, "192.0.2.1:9"))
    assert names.comes(0, "192.0.2.1:9") is None, "within its network a node moves as it likes"
    # and at one address and port there are as many as there may be
    assert names.comes(1, "192.0.2.1:9") is None
    assert names.comes(2, "192.0.2.1:9") is None
    assert len(names.registry) == 5


def test_in_a_full_rendezvous_the_most_crowded_network_gives_way() -> None:
    names = Names(max_nodes=60)
    for number in range(60):
        assert names.comes(number, f"192.0.2.1:{1000 + number}") is None
    newest = name(59)
    assert names.comes(100, "198.51.100.1:1") is None
    assert len(names.registry) == 60
    assert names.registry.by_leaf(newest) is None, "the newest of them, so those who were there first stay"
    for number in range(101, 200):
        names.comes(number, f"198.51.{number}.1:1")
    assert len(names.registry) == 60
    # now each network has one or two: nobody has to give way to somebody who is no better
    assert names.comes(300, "192.0.2.1:1") == "this rendezvous is full"
    # who is there may come again, wherever it is
    assert names.comes(0, "198.51.150.1:7") is None


@pytest.mark.parametrize("seed", range(5))
def test_the_largest_network_is_always_known(seed: int) -> None:
    draw, names = random.Random(seed), Names(max_nodes=30, max_nodes_per_socket=1000)
    for number in range(400):
        if draw.random() < 0.4 and len(names.registry):
            names.registry.remove(draw.choice(list(names.registry)))
        names.comes(number, f"192.0.{draw.randrange(4)}.1:1")
        crowd = names.registry._crowd
        assert sum(map(len, crowd.values())) == len(names.registry) <= 30
        assert crowd._largest == max(map(len, crowd.values())), f"seed {seed}"


def test_senders_take_turns_and_the_most_crowded_gives_way() -> None:
    names = Names(queue=40, queue_of_sender=10)
    node = names.node(1)
    away: list[int | None] = []

    def parcel(sender: int) -> Parcel:
        return Parcel(pb.Signal(node=bytes([sender]) * 32), lambda cause, detail: away.append(cause))

    for sender in range(4):
        assert [node.offer(parcel(sender)) for _ in range(12)] == [True] * 10 + [False] * 2
    assert node.offer(parcel(9)), "it is full, and the newcomer has the least"
    assert away == [pb.CAUSE_RECEIVER_BUSY]
    order = [node._pop().sender[0] for _ in range(40)]
    assert order.index(9) <= 4, "one of each of the others before it"
    assert sorted(order[:4]) == [0, 1, 2, 3]
    assert names.registry.totals.queued_bytes == 0


def test_answers_are_free_and_what_nobody_asked_for_is_not() -> None:
    exchanges = Exchanges(Settings(exchange_words=2, max_exchanges=3))
    alice, bob, mallory = ((name(n),) for n in (1, 2, 3))
    to = [names[0].public_key for names in (alice, bob, mallory)]
    exchange = b"x" * 16
    assert not exchanges.goes_on(exchange, alice, to[1])
    exchanges.begin(exchange, to[0], to[1])
    assert not exchanges.goes_on(exchange, alice, to[1]), "said again, and not answered yet"
    assert not exchanges.goes_on(exchange, mallory, to[0]), "nobody asked her"
    assert [exchanges.goes_on(exchange, bob, to[0]) for _ in range(3)] == [True, True, False]
    assert not exchanges.goes_on(exchange, bob, to[2]), "not to somebody else"
    assert [exchanges.goes_on(exchange, alice, to[1]) for _ in range(3)] == [True, True, False]
    # whoever takes a number that is taken gains nothing
    exchanges.begin(exchange, to[2], to[1])
    assert not exchanges.goes_on(exchange, mallory, to[1])
    for n in range(100):
        exchanges.begin(bytes([n]) * 16, to[0], to[1])
    assert len(exchanges) == 3

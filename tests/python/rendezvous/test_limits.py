"""The bounds that need no network: token buckets, and who has which name."""

from __future__ import annotations

import random

import pytest

import keynet
from keynet.rendezvous._limits import Buckets, Rate, Settings
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

    def __init__(self, **settings: int) -> None:
        self.known: set[keynet.NodeId] = set()
        self.registry = Registry(Settings(**settings), appeared=self.appeared, gone=self.known.remove)

    def appeared(self, name: keynet.NodeId) -> None:
        assert name not in self.known
        self.known.add(name)

    def node(self, *names: int, now: float = 0.0) -> Registration:
        return Registration(tuple(map(name, names)), now, self.registry.totals)


def name(number: int) -> keynet.NodeId:
    return keynet.NodeId.from_public_key(bytes([number]) * 32)


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


def test_bytes_that_wait_are_bounded() -> None:
    names = Names(queue_bytes=10, total_queue_bytes=12)
    one, two = names.node(1), names.node(2)

    def parcel(size: int) -> Parcel:
        return Parcel(pb.Signal(body=bytes(size)), lambda cause, detail: None)

    assert [one.offer(parcel(5)) for _ in range(3)] == [True, True, False]
    # in all: the first for a node finds room, more do not
    assert [two.offer(parcel(5)) for _ in range(2)] == [True, False]

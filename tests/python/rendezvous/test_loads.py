"""What a relay weighs, by how many nodes use it already."""

from __future__ import annotations

import random

import pytest

from keynet.rendezvous._loads import Loads


def with_nodes(weights: dict[str, int], nodes: dict[str, int]) -> Loads:
    loads = Loads(weights)
    for relay, count in nodes.items():
        for _ in range(count):
            loads.change((), [relay])
    return loads


def test_while_the_nodes_are_where_the_weights_put_them_the_weights_stay() -> None:
    for many in (0, 1, 5, 500):
        nodes = {"small": many, "large": 3 * many, "spare": 7}
        assert with_nodes({"small": 50, "large": 150, "spare": 0}, nodes).weights() == {
            "small": 50,
            "large": 150,
            "spare": 0,
        }


def test_with_too_many_nodes_a_relay_weighs_less_and_with_too_few_no_more() -> None:
    weights = with_nodes({"a": 100, "b": 100}, {"a": 2000, "b": 1000}).weights()
    assert weights["b"] == 100
    assert 50 <= weights["a"] < 65
    weights = with_nodes({"a": 100, "b": 100}, {"a": 1_000_000}).weights()
    assert weights["b"] == 100
    assert 1 <= weights["a"] < 20
    assert with_nodes({"a": 1, "b": 100}, {"a": 1_000_000}).weights() == {"a": 1, "b": 100}


def test_a_few_nodes_more_or_less_are_chance() -> None:
    weights = with_nodes({"a": 100, "b": 100}, {"a": 1}).weights()
    assert weights["a"] > 75


def test_what_is_unknown_or_said_twice_does_not_count() -> None:
    loads = Loads({"a": 100})
    before = loads.change((), ["a", "a", "b"])
    assert before == {"a"}
    assert loads.nodes() == {"a": 1}
    assert loads.change(before, ()) == frozenset()
    assert loads.nodes() == {"a": 0}


@pytest.mark.parametrize("seed", range(3))
def test_two_relays_of_a_region_share_it_though_the_other_region_has_few_nodes(seed: int) -> None:
    """Nodes come and go; each chooses among the two relays that are near to it. One of them begins empty."""
    draw = random.Random(seed)
    loads = with_nodes({"near": 100, "new": 200, "far": 100}, {"near": 3000, "far": 10})
    there = ["near"] * 3000
    for _ in range(6000):
        weights = loads.weights()
        (come,) = draw.choices(["near", "new"], [weights["near"], weights["new"]])
        gone = draw.randrange(len(there))
        loads.change([there[gone]], [come])
        there[gone] = come
    share = loads.nodes()["new"] / len(there)
    assert 0.6 < share < 0.73, f"seed {seed}"

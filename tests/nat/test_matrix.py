"""Two nodes that know each other's node id alone: which NATs they get through, and the reason where they do not."""

from __future__ import annotations

import os

import matrix
import pytest
from pairs import REPRESENTATIVE, Case, Result, every, expected, missed_searches, run_all


@pytest.fixture(scope="module")
def representative() -> dict[Case, Result]:
    return {result.case: result for result in run_all(REPRESENTATIVE, runs=2)}


@pytest.mark.slow
@pytest.mark.parametrize("case", REPRESENTATIVE, ids=str)
def test_a_pair(case: Case, representative: dict[Case, Result]):
    judge(representative[case])


@pytest.mark.slow
def test_searches_among_random_ports(representative: dict[Case, Result]):
    missed, allowed = missed_searches(representative.values())
    assert missed <= allowed


@pytest.fixture(scope="module")
def whole() -> dict[Case, Result]:
    results = {result.case: result for result in run_all(every(), runs=matrix.RUNS)}
    if os.environ.get("KEYNET_WRITE_MATRIX"):
        matrix.write(results.values())
    return results


@pytest.mark.matrix
@pytest.mark.parametrize("case", every(), ids=str)
def test_every_pair(case: Case, whole: dict[Case, Result]):
    judge(whole[case])


@pytest.mark.matrix
def test_searches_of_the_whole_matrix(whole: dict[Case, Result]):
    missed, allowed = missed_searches(whole.values())
    assert missed <= allowed


def judge(result: Result) -> None:
    """Searches are judged together, by how many found nothing."""
    if result.expected.how == "by search":
        assert {outcome.outcome for outcome in result.misses} <= {"punch_timeout"}
    else:
        assert result.misses == []


@pytest.mark.parametrize(
    ("a", "b", "outcome", "how"),
    [
        ("full-cone", "symmetric", "direct", "plainly"),
        ("symmetric", "address-restricted", "direct", "plainly"),
        ("cgnat", "firewall", "direct", "plainly"),
        ("port-restricted", "symmetric-seq", "direct", "by prediction"),
        ("cgnat", "symmetric", "direct", "by search"),
        ("cgnat-symmetric", "linux-masquerade", "direct", "by search"),
        ("symmetric-seq", "symmetric-seq", "direct", "by prediction"),
        ("symmetric-seq", "symmetric", "both_symmetric", ""),
        ("symmetric:ipv6=yes", "symmetric:ipv6=yes", "direct", "plainly"),
        ("udp-blocked", "udp-blocked", "udp_blocked", ""),
        ("symmetric", "udp-blocked", "peer_offline", ""),
        ("linux-open-input", "port-restricted", None, ""),
    ],
)
def test_what_is_expected(a: str, b: str, outcome: str | None, how: str):
    assert expected(Case(a, b)).outcome == outcome
    assert expected(Case(a, b)).how == how

"""What survives what: each event in each kind of network (survival.py), and the chapter that tells it."""

from __future__ import annotations

import os

import matrix
import pytest
import survival
from survival import EVENTS, KINDS, Outcome

CELLS = list(survival.cells(EVENTS, list(KINDS)))


@pytest.fixture(scope="module")
def outcomes() -> dict[tuple[str, str], Outcome]:
    found = {(one.event, one.kind): one for one in survival.run_all(CELLS, float("inf"), survival.AT_ONCE)}
    if os.environ.get("KEYNET_WRITE_MATRIX"):
        survival.write(found)
    return found


@pytest.mark.matrix
@pytest.mark.parametrize(("event", "kind"), CELLS)
def test_a_call_survives(event: str, kind: str, outcomes: dict[tuple[str, str], Outcome]):
    """How long nothing came is no matter of pass or fail; the document has it."""
    outcome = outcomes[event, kind]
    assert outcome.gap is not None, outcome.detail
    assert outcome.errors == (1 if EVENTS[event].ends_calls else 0), outcome.detail


def outcome(event: str, kind: str, errors: int, gap: float | None) -> Outcome:
    return Outcome(event, kind, errors, gap, "", "2026-11-30")


@pytest.mark.parametrize(
    ("found", "event", "said"),
    [
        ([], "rebinding", "—"),
        ([], "outage 9 s", "not run"),
        ([outcome("outage 9 s", "none", 0, 0.42)], "outage 9 s", "0 / 0.4 s"),
        ([outcome("outage 9 s", "none", 1, None)], "outage 9 s", "1 / never again"),
    ],
)
def test_a_cell_tells_what_was_found_and_what_was_not_run(found: list[Outcome], event: str, said: str):
    assert survival.cell({(one.event, one.kind): one for one in found}, event, "none") == said


def test_a_part_of_the_document_takes_the_place_of_the_one_before(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(matrix, "FILE", tmp_path / "nat-matrix.md")
    matrix.FILE.write_text("# Which NATs keynet gets through\n\nplain\n\n## More\n")
    for _ in range(2):
        matrix.replace("keynet", "# The same with a relay: keynet's own, beside the rendezvous\n\nrelayed\n")
        survival.write({})
    text = matrix.FILE.read_text()
    headings = [line for line in text.splitlines() if line.startswith("# ")]
    assert headings == [
        "# Which NATs keynet gets through",
        "# What survives what",
        "# The same with a relay: keynet's own, beside the rendezvous",
    ]
    assert "plain\n\n## More" in text

"""How many nodes use each relay, and what it weighs for the next one."""

from __future__ import annotations

import collections
import fractions
from collections.abc import Iterable, Mapping

__all__ = ["Loads"]

_SLACK = 8
"""Among so many nodes a difference is chance; and so that a relay which has none does not get every newcomer, each
counts as if it had an eighth of its share more."""


class Loads:
    """Nodes on each relay, by its first URI, as they tell it themselves: a relay of another make tells nobody.

    A relay is named with its weight times the least load of any by its own load, nodes for each unit of weight. So it
    keeps its weight while the nodes are where the weights put them, has half of it with twice its share, and a relay
    that was away fills up first. The sum over all relays does not enter: where most nodes are near to two relays, these
    two still share them.
    """

    def __init__(self, weights: Mapping[str, int]) -> None:
        self._weights = dict(weights)
        self._nodes: collections.Counter[str] = collections.Counter()

    def change(self, before: Iterable[str], after: Iterable[str]) -> frozenset[str]:
        """A node uses other relays than before. Returns those of them that are known."""
        known = frozenset(self._weights.keys() & frozenset(after))
        self._nodes.subtract(frozenset(before))
        self._nodes.update(known)
        return known

    def nodes(self) -> dict[str, int]:
        """Nodes on each relay."""
        return {relay: self._nodes[relay] for relay in self._weights}

    def weights(self) -> dict[str, int]:
        """What each relay weighs now. None that has a weight loses all of it, and none gains."""
        loads = {
            relay: fractions.Fraction(self._nodes[relay], weight)
            for relay, weight in self._weights.items()
            if weight > 0
        }
        if not loads:
            return dict(self._weights)
        nodes = sum(self._nodes[relay] for relay in loads)
        slack = fractions.Fraction(max(nodes // _SLACK, _SLACK), sum(self._weights[relay] for relay in loads))
        least = min(loads.values()) + slack
        lowered = {relay: max(1, round(self._weights[relay] * least / (load + slack))) for relay, load in loads.items()}
        return {relay: lowered.get(relay, 0) for relay in self._weights}

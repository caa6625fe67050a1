"""Which exchanges are under way, and what each side may still say in them. Nothing here waits."""

from __future__ import annotations

import collections
import dataclasses

from .._node import NodeId
from ._limits import Settings

__all__ = ["Exchanges"]


@dataclasses.dataclass(slots=True)
class _Exchange:
    """`beginner` said something to a node named `wanted`; the two may go on for so many words each."""

    beginner: bytes
    wanted: bytes
    beginner_words: int
    other_words: int
    answered: bool = False


class Exchanges:
    """The exchanges of a bounded table, by their number.

    Whoever begins one pays for it by its rate. What the other answers, and what the beginner says after that, is free
    for a few words: so a node that many invite can answer them all, and a flood of answers that nobody asked for is a
    flood of beginnings.
    """

    __slots__ = ("_cap", "_rows", "_words")

    def __init__(self, settings: Settings) -> None:
        self._cap, self._words = settings.max_exchanges, settings.exchange_words
        # the oldest first
        self._rows: collections.OrderedDict[bytes, _Exchange] = collections.OrderedDict()

    def __len__(self) -> int:
        return len(self._rows)

    def goes_on(self, exchange: bytes, names: tuple[NodeId, ...], to: bytes) -> bool:
        """Whether a node of these names goes on with an exchange that both take part in; it has one word less then."""
        row = self._rows.get(exchange)
        if row is None:
            return False
        keys = [name.public_key for name in names]
        if row.beginner == to and row.wanted in keys and row.other_words > 0:
            row.other_words -= 1
            row.answered = True
            return True
        if row.beginner == keys[0] and row.answered and row.beginner_words > 0:
            row.beginner_words -= 1
            return True
        return False

    def begin(self, exchange: bytes, beginner: bytes, wanted: bytes) -> None:
        """A signal that is no part of an exchange under way begins one. The first to use a number has it."""
        if exchange in self._rows:
            return
        self._rows[exchange] = _Exchange(beginner, wanted, self._words, self._words)
        if len(self._rows) > self._cap:
            self._rows.popitem(last=False)

    def arrived(self, exchange: bytes, sender: bytes, receiver: tuple[NodeId, ...]) -> None:
        """A signal came from another instance of the group, which has judged it."""
        row = self._rows.get(exchange)
        if row is None:
            self.begin(exchange, sender, receiver[0].public_key)
        elif row.beginner in [name.public_key for name in receiver]:
            row.answered = True

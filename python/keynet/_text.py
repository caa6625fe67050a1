"""Texts that others have a say in, as they may be shown in a terminal or a log."""

from __future__ import annotations

__all__ = ["printable", "whole"]

# several lines of a terminal; rust/src/error.rs has the same rule for what the core says
_MOST = 256


def printable(text: object, most: int = _MOST) -> str:
    """`str(text)` with all that does not print escaped, in `most` characters.

    So no new line and no sequence for a terminal begins in it, and nothing turns the direction of writing.
    """
    shown: list[str] = []
    length = 0
    for character in str(text):
        piece = character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        length += len(piece)
        if length > most:
            shown.append("…")
            break
        shown.append(piece)
    return "".join(shown)


def whole(text: str) -> int | None:
    """A whole number in ASCII digits; None: it is none, or has more digits than any that is meant."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS else None


_MAX_DIGITS = 16
"""2**53, the largest whole number in JSON, has so many. Python refuses to read some thousands of them."""

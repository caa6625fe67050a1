"""Texts that others have a say in, as they may be shown in a terminal or a log."""

from __future__ import annotations

__all__ = ["printable"]

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

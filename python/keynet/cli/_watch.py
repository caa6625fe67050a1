"""`--watch`: the same again and again on one screen, until Ctrl-C or q."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import sys
import termios
import time
import tty
from collections.abc import Iterator

from ._words import WIDTH


def can_redraw() -> bool:
    """Whether standard output is a terminal that can be drawn anew."""
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def drawn(text: str) -> str:
    """The text for the upper left corner of a terminal: what does not fit is cut off, so that no line wraps."""
    columns, rows = shutil.get_terminal_size((WIDTH, 24))
    lines = [line[: columns - 1] for line in text.split("\n")]
    if len(lines) >= rows:
        lines = [*lines[: max(1, rows - 2)], "..."]
    # each line is cleared behind its end, and the screen below the last: nothing flickers
    return "\033[H" + "".join(f"{line}\033[K\r\n" for line in lines) + "\033[J"


@contextlib.contextmanager
def keys() -> Iterator[None]:
    """Single keys can be read while this lasts; a screen of its own where it can be drawn."""
    before = None
    with contextlib.suppress(termios.error, OSError, ValueError):
        if _is_watched():
            before = termios.tcgetattr(sys.stdin)
            tty.setcbreak(sys.stdin)
    redraw = can_redraw()
    if redraw:
        print("\033[?1049h\033[?25l", end="", flush=True)
    try:
        yield
    finally:
        if redraw:
            print("\033[?25h\033[?1049l", end="", flush=True)
        if before is not None:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def pause(seconds: float) -> bool:
    """Waits; True if somebody pressed q."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if not _is_watched():
            time.sleep(left)
            return False
        ready, _, _ = select.select([sys.stdin], [], [], left)
        if ready:
            pressed = os.read(sys.stdin.fileno(), 64)
            if not pressed:
                time.sleep(max(0.0, until - time.monotonic()))
                return False
            if b"q" in pressed.lower():
                return True
    return False


def _is_watched() -> bool:
    """Whether somebody can press keys. A job in the background that reads its terminal, or sets it, is stopped."""
    with contextlib.suppress(ValueError, OSError):
        return sys.stdin.isatty() and os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    return False

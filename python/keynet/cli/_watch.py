"""`--watch`: the same again and again on one screen, until Ctrl-C or q."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import sys
import termios
import time
import tty
from types import FrameType
from typing import Any, TextIO

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


class Screen:
    """A screen of its own on the terminal, and single keys, while the command is in the foreground.

    In the background (`&`, or Ctrl-Z and `bg`) nothing is drawn, read or set: the terminal is somebody else's then, and
    who sets it from there is stopped (SIGTTOU). Brought to the foreground, it draws again.
    """

    def __init__(self) -> None:
        self._before: list[Any] | None = None
        self._is_on = False

    def __enter__(self) -> Screen:
        self._until_stopped()
        self._switch_on()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        self._switch_off()

    def draw(self, text: str) -> None:
        """One frame, if anybody is to see it."""
        self._switch_on()
        if self._is_on and _is_in_front(sys.stdout):
            sys.stdout.write(drawn(text))
            sys.stdout.flush()

    def _switch_on(self) -> None:
        if self._before is None and _is_in_front(sys.stdin):
            with contextlib.suppress(termios.error, OSError, ValueError):
                self._before = termios.tcgetattr(sys.stdin)
                tty.setcbreak(sys.stdin)
        if not self._is_on and can_redraw() and _is_in_front(sys.stdout):
            print("\033[?1049h\033[?25l", end="", flush=True)
            self._is_on = True

    def _switch_off(self) -> None:
        if self._is_on and _is_in_front(sys.stdout):
            # a signal may have come in the middle of a frame: the stream takes nothing else then
            with contextlib.suppress(OSError, ValueError):
                os.write(sys.stdout.fileno(), b"\033[?25h\033[?1049l")
        if self._before is not None and _is_in_front(sys.stdin):
            with contextlib.suppress(termios.error, OSError, ValueError):
                termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._before)
        self._before, self._is_on = None, False

    def _until_stopped(self) -> None:
        """Ctrl-Z leaves the terminal as it was, and stops."""

        def stop(number: int, _: FrameType | None) -> None:
            self._switch_off()
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            # here it goes on
            self._until_stopped()

        with contextlib.suppress(ValueError):  # not in the main thread: somebody else's program
            if signal.getsignal(signal.SIGTSTP) is signal.SIG_DFL:
                signal.signal(signal.SIGTSTP, stop)


def pause(seconds: float) -> bool:
    """Waits; True if somebody pressed q."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if not _is_in_front(sys.stdin):
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


def _is_in_front(stream: TextIO) -> bool:
    """Whether the stream is a terminal at which this job is in the foreground."""
    with contextlib.suppress(ValueError, OSError):
        return stream.isatty() and os.tcgetpgrp(stream.fileno()) == os.getpgrp()
    return False

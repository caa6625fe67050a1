"""The seam between asyncio and the core's own threads, and the end of both."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import contextvars
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from . import _keynet

T = TypeVar("T")

# how long the interpreter may be held up at its end, in seconds
_EXIT_TIMEOUT = 5.0


class Loop:
    """An event loop as the core sees it: results that come after it was closed are dropped, quietly."""

    __slots__ = ("_loop",)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def create_future(self) -> asyncio.Future[Any]:
        return self._loop.create_future()

    def call_soon_threadsafe(
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *args, context=context)
        except RuntimeError:
            if not self._loop.is_closed():
                raise


async def call(start: Callable[[Loop], Awaitable[T]]) -> T:
    """Runs one call of the core on the current loop. Cancelling it drops the work in the core.

    The core starts working when it is called, so that must happen inside of the coroutine, not before it.
    """
    return await start(Loop(asyncio.get_running_loop()))


@atexit.register
def _close_everything() -> None:
    # aborts what was left open; does nothing in a forked child, whose parent owns the threads
    with contextlib.suppress(Exception):
        _keynet.shutdown(_EXIT_TIMEOUT)

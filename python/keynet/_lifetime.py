"""What runs from `start` to `close` is a context."""

from __future__ import annotations

import abc
import types
from typing import TypeVar

__all__ = ["Runs"]

T = TypeVar("T", bound="Runs")


class Runs(abc.ABC):
    """Starts on entering its context and closes on leaving it."""

    @abc.abstractmethod
    async def start(self) -> None:
        """Begins."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Ends. May be called again."""

    async def __aenter__(self: T) -> T:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        await self.close()

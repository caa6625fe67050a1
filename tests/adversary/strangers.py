"""Those who attack: a program to be commanded, as `node.py` is. The attacks themselves are in the modules beside it."""

from __future__ import annotations

import asyncio
import resource
from typing import Any

import datagrams
import introductions
import opens
import servers
from attack import Attack, Nothing, Where
from node import obey

import keynet

ATTACKS: dict[str, type[Attack]] = {
    "nothing": Nothing,
    **datagrams.ATTACKS,
    **introductions.ATTACKS,
    **opens.ATTACKS,
    **servers.ATTACKS,
}


class Strangers:
    """Each public coroutine is a command."""

    def __init__(self) -> None:
        self._attack: Attack | None = None
        self._task: asyncio.Task[None] | None = None
        self._identities: list[keynet.Identity] = []

    async def identities(self, count: int) -> dict[str, Any]:
        """Makes keys that the node's list may have; gives their names."""
        self._identities = [keynet.Identity.generate() for _ in range(count)]
        return {"names": [str(one.node_id) for one in self._identities]}

    async def attack(self, name: str, where: dict[str, str], options: dict[str, Any]) -> dict[str, Any]:
        """Begins, and answers when the first blow has fallen."""
        self._attack = ATTACKS[name](Where(**where), self._identities, **options)
        self._task = asyncio.create_task(self._attack.run())
        begun = asyncio.create_task(self._attack.begun.wait())
        await asyncio.wait((self._task, begun), return_when=asyncio.FIRST_COMPLETED)
        if self._task.done():
            self._task.result()
        return {}

    async def counts(self) -> dict[str, Any]:
        """What the attack has counted so far."""
        return {"counts": dict(self._attack.counts) if self._attack else {}}

    async def halt(self) -> dict[str, Any]:
        """Ends the attack; what it raised is an error of the test."""
        if self._attack is None or self._task is None:
            return {"counts": {}}
        self._attack.stop.set()
        await self._task
        return {"counts": dict(self._attack.counts)}

    async def close(self) -> dict[str, Any]:
        """Nothing to end: the process ends."""
        return {}


if __name__ == "__main__":
    # thousands of sources
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    asyncio.run(obey(Strangers()))

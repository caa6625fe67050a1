"""Many keynet nodes in one program, commanded as node.py is: so that hundreds do not cost as many interpreters."""

from __future__ import annotations

import asyncio
from typing import Any

from node import Node, obey

# a program that starts its nodes one after the other would not be ready in time, and one that starts all at once finds
# the rendezvous busy
STARTS_AT_ONCE = 16


class Crowd:
    """The nodes, and what all of them do."""

    def __init__(self) -> None:
        self._nodes: list[Node] = []

    async def populate(self, count: int, **options: Any) -> dict[str, Any]:
        """Starts so many nodes with these options of `keynet.Proxy`, and waits until each is registered."""
        places = asyncio.Semaphore(STARTS_AT_ONCE)

        async def begin() -> Node:
            async with places:
                node = Node()
                await node.start(**options)
                if not (await node.registered())["registered"]:
                    raise RuntimeError(f"a node did not register: {await node.status()}")
                return node

        self._nodes += await asyncio.gather(*(begin() for _ in range(count)))
        return {"node_ids": [_id_of(node) for node in self._nodes]}

    async def dial(self, nodes: list[str], once: bool = False) -> dict[str, Any]:
        """Every node of the program dials all of these, but itself, at once.

        `once`: only those with a greater id, so that a pair dials once where all programs are told the same.
        """
        pairs = [
            (node, peer)
            for node in self._nodes
            for peer in nodes
            if peer != _id_of(node) and (not once or peer > _id_of(node))
        ]
        return {"dials": await asyncio.gather(*(_dial(node, peer) for node, peer in pairs))}

    async def close(self) -> dict[str, Any]:
        """Ends the nodes."""
        await asyncio.gather(*(node.close() for node in self._nodes))
        return {}


async def _dial(node: Node, peer: str) -> dict[str, Any]:
    try:
        return await node.connect(peer)
    except (OSError, asyncio.IncompleteReadError) as error:
        return {"status": 0, "answer": f"{type(error).__name__}: {error}"}


def _id_of(node: Node) -> str:
    if node.proxy is None:
        raise RuntimeError("start first")
    return node.proxy.node_id


if __name__ == "__main__":
    asyncio.run(obey(Crowd()))

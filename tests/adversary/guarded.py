"""The node that is attacked, and the one beside it that is not: a program to be commanded, as `node.py` is."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import time
from typing import Any

from node import echo, obey

import keynet
import keynet.metrics

ECHO = 7


class Guarded:
    """A node with an echo service; each public coroutine is a command."""

    def __init__(self) -> None:
        self.proxy: keynet.Proxy | None = None
        self._echo: asyncio.Server | None = None
        self._dialling: asyncio.Task[None] | None = None
        self._forward: keynet.Forward | None = None

    @property
    def _running(self) -> keynet.Proxy:
        if self.proxy is None:
            raise RuntimeError("start first")
        return self.proxy

    async def start(
        self,
        allow: list[str],
        asks: float | None = None,
        limits: dict[str, Any] | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Lets in who is on the list; `asks`: by a function that takes so many seconds for each answer."""
        listed = frozenset(allow)

        def judge(request: keynet.AccessRequest) -> bool:
            time.sleep(asks or 0)
            return not listed.isdisjoint(request.node_ids)

        self._echo = await asyncio.start_server(echo, "127.0.0.1", 0)
        backend = "{}:{}".format(*self._echo.sockets[0].getsockname())
        self.proxy = keynet.Proxy(
            keynet.Identity.generate(),
            services={ECHO: backend},
            allow=allow if asks is None else judge,
            listen="0.0.0.0:7400",
            port_mapping=False,
            limits=limits,  # type: ignore[arg-type]
            **options,
        )
        await self.proxy.start()
        return {"node_id": self.proxy.node_id, "pid": os.getpid()}

    async def registered(self) -> dict[str, Any]:
        """Whether every rendezvous has this node."""
        return {"registered": all(one.connected for one in self._running.status().rendezvous)}

    async def stats(self) -> dict[str, Any]:
        """The counters, and the seconds of CPU that the process has used."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        return {"stats": self._running.stats(), "cpu": used.ru_utime + used.ru_stime}

    async def admit(self, allow: list[str]) -> dict[str, Any]:
        """Replaces the access list."""
        self._running.set_allow(allow)
        return {}

    async def paths(self) -> dict[str, Any]:
        """The addresses by which it reaches its peers."""
        peers = self._running.status().peers
        return {"paths": [path.address for peer in peers for path in peer.paths]}

    async def connections(self) -> dict[str, Any]:
        """Whose connections stand."""
        return {"of": [str(one.node_id) for one in self._running.connections()]}

    async def dial_for_ever(self, node: str) -> dict[str, Any]:
        """Looks for a node again and again, by way of every rendezvous."""

        async def dial() -> None:
            while True:
                with contextlib.suppress(keynet.KeynetError):
                    await self._running.ping(node, timeout=2)
                await asyncio.sleep(0.05)

        self._dialling = asyncio.create_task(dial())
        return {}

    async def forward(self, node: str, addresses: list[str]) -> dict[str, Any]:
        """Local ports: for the echo service of another node, of the CONNECT proxy, and for the metrics."""
        self._running.add_peer(node, addresses)
        self._forward = await self._running.forward(node, ECHO)
        self._metrics = keynet.metrics.serve("127.0.0.1:0", keynet.metrics.ProxyCollector(self._running))
        ports = {"forward": self._forward.address, "metrics": self._metrics.address}
        return {"ports": ports | {"connect": self._running.forward_address}}

    async def close(self) -> dict[str, Any]:
        """Ends the node."""
        if self._dialling is not None:
            self._dialling.cancel()
        if self.proxy is not None:
            await self.proxy.close(drain=False)
        if self._echo is not None:
            self._echo.close()
        return {}


if __name__ == "__main__":
    asyncio.run(obey(Guarded()))

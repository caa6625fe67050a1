"""Attacks of who makes connections: strangers whom the list does not have, and peers whom it has."""

from __future__ import annotations

import asyncio
import base64
import contextlib

from attack import Attack, addresses, host_and_port
from guarded import ECHO

import keynet

ACROSS = 8
"""Connections that one stranger makes at a time."""


class Questions(Attack):
    """Strangers who ask for a service again and again: each is a question to the function of `allow=`."""

    async def run(self) -> None:
        await self.together([self._stranger(source) for source in addresses(self.sources, 1)])

    async def _stranger(self, source: str) -> None:
        async with keynet.Proxy(keynet.Identity.generate(), listen=f"{source}:0", port_mapping=False) as proxy:
            proxy.add_peer(self.where.node, [self.where.address])
            await asyncio.gather(*(self._ask(proxy) for _ in range(ACROSS)))
            await proxy.close(drain=False)

    async def _ask(self, proxy: keynet.Proxy) -> None:
        while not self.stop.is_set():
            status, _, writer = await connect(proxy, self.where.node)
            self.counts[status] += 1
            self.begun.set()
            if writer is not None:
                writer.close()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.stop.wait(), self.sources * ACROSS / self.rate)


class Chains(Attack):
    """Peers that are let in take streams and hold them, with a fresh key (of the same chain) for each few."""

    async def run(self) -> None:
        await self.together(
            [self._peer(one, source) for one, source in zip(self.liked, addresses(250, 1), strict=False)]
        )

    async def _peer(self, identity: keynet.Identity, source: str) -> None:
        held: list[asyncio.Task[None]] = []
        async with keynet.Proxy(identity, listen=f"{source}:0", port_mapping=False) as proxy:
            proxy.add_peer(self.where.node, [self.where.address])
            while not self.stop.is_set():
                status, reader, writer = await connect(proxy, self.where.node)
                self.counts[status] += 1
                if reader is not None and writer is not None:
                    self.counts["held"] += 1
                    self.counts["most_held"] = max(self.counts["most_held"], self.counts["held"])
                    held.append(asyncio.create_task(self._hold(reader, writer)))
                if status == "503" or self.options.get("begun_at", 0) <= self.counts["held"]:
                    self.begun.set()
                if self.options.get("rotates", True) and len(identity.node_ids) < 15:
                    identity = identity.rotate()
                    proxy.rotate(identity)
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self.stop.wait(), 0.01)
            for task in held:
                task.cancel()
            await proxy.close(drain=False)

    async def _hold(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.read(1 << 16):
                pass
        except OSError:
            pass
        finally:
            self.counts["held"] -= 1
            writer.close()


async def connect(
    proxy: keynet.Proxy, node: str
) -> tuple[str, asyncio.StreamReader | None, asyncio.StreamWriter | None]:
    """A CONNECT: its status, and the tunnel if there is one."""
    reader, writer = await asyncio.open_connection(*host_and_port(proxy.forward_address))
    basic = base64.b64encode(":".join(proxy.credentials).encode()).decode()
    writer.write(f"CONNECT {node}.keynet:{ECHO} HTTP/1.1\r\nProxy-Authorization: Basic {basic}\r\n\r\n".encode())
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
    except (OSError, asyncio.IncompleteReadError):
        writer.close()
        return "broken", None, None
    status = head.split()[1]
    if status == "200":
        return status, reader, writer
    writer.close()
    return status, None, None


ATTACKS: dict[str, type[Attack]] = {"questions": Questions, "chains": Chains}

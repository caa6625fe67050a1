"""The honest: they dial the node that is attacked again and again, and have a stream with it at a rate.

They do the same with a node that nobody attacks. What happens to both is the machine's doing, what happens to the first
alone the attackers'. A program to be commanded, as `node.py` is.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import time
from typing import Any

from guarded import ECHO
from node import obey

import keynet

# a stream sends so much so often: 400 kB a second each way, which a debug build on a busy core carries
CHUNK, EVERY = 16 << 10, 0.04
# for a dial: as a client of the CONNECT proxy has
PATIENCE = 15.0
# between two rounds of dials
PAUSE = 0.1
POLL = 0.01


@dataclasses.dataclass
class Phase:
    """What the honest had in one part of a test."""

    seconds: float = 0.0
    dials: dict[str, list[float]] = dataclasses.field(default_factory=lambda: collections.defaultdict(list))
    """By the way they went: how long each took."""
    failed: list[str] = dataclasses.field(default_factory=list)
    bytes: dict[str, int] = dataclasses.field(default_factory=lambda: collections.defaultdict(int))
    """By the stream: what came back."""


class Stream:
    """An echo at a rate, through a forward of a node that stays."""

    def __init__(self, name: str) -> None:
        self.name, self.ended = name, ""
        self.sent = self.received = 0
        self._tasks: list[asyncio.Task[None]] = []

    async def begin(self, address: str, came: Any) -> None:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"first")
        await asyncio.wait_for(reader.readexactly(5), PATIENCE)
        self._tasks = [asyncio.create_task(self._write(writer)), asyncio.create_task(self._read(reader, came))]

    async def _write(self, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while True:
                writer.write(bytes(CHUNK))
                await writer.drain()
                self.sent += CHUNK
                await asyncio.sleep(EVERY)

    async def _read(self, reader: asyncio.StreamReader, came: Any) -> None:
        try:
            while data := await reader.read(1 << 16):
                self.received += len(data)
                came(self.name, len(data))
            self.ended = "ended"
        except OSError as error:
            self.ended = str(error)

    def stop(self) -> None:
        for task in self._tasks:
            task.cancel()


class Honest:
    """Each public coroutine is a command."""

    def __init__(self) -> None:
        self._phases: dict[str, Phase] = {}
        self._name, self._since = "", 0.0
        self._identities: list[keynet.Identity] = []
        self._stays: keynet.Proxy | None = None
        self._streams: list[Stream] = []
        self._dialling: asyncio.Task[None] | None = None
        self._going = True
        self._targets: dict[str, dict[str, str]] = {}

    async def identities(self, count: int) -> dict[str, Any]:
        """Makes the keys of all; gives their names."""
        self._identities = [keynet.Identity.generate() for _ in range(count)]
        return {"names": [str(one.node_id) for one in self._identities]}

    async def begin(self, ways: list[str], targets: dict[str, dict[str, str]]) -> dict[str, Any]:
        """Opens the streams and begins to dial. A target has `node`, `address` and perhaps `rendezvous`."""
        self._targets = targets
        self._stays = keynet.Proxy(self._identities[0], listen="0.0.0.0:0", port_mapping=False)
        await self._stays.start()
        for name, target in targets.items():
            self._stays.add_peer(target["node"], [target["address"]])
            stream = Stream(name)
            await stream.begin((await self._stays.forward(target["node"], ECHO)).address, self._came)
            self._streams.append(stream)
        self._dialling = asyncio.create_task(self._dial(ways))
        return {}

    async def phase(self, name: str) -> dict[str, Any]:
        """From now on everything counts as part of this."""
        self._end_phase()
        self._name, self._since = name, time.monotonic()
        self._phases[name] = Phase()
        return {}

    async def rounds(self) -> dict[str, Any]:
        """How many dials of each way this phase has."""
        return {"rounds": {way: len(took) for way, took in self._phases[self._name].dials.items()}}

    async def received(self) -> dict[str, Any]:
        """Bytes that came back, by stream."""
        return {"received": {stream.name: stream.received for stream in self._streams}}

    async def trouble(self) -> dict[str, Any]:
        """Whether a dial of this phase has failed: then there is nothing to wait for."""
        return {"trouble": bool(self._phases[self._name].failed)}

    async def report(self) -> dict[str, Any]:
        """Ends the dialling, and waits for what is under way; tells everything."""
        self._going = False
        if self._dialling is not None:
            await self._dialling
        self._end_phase()
        ended = {stream.name: stream.ended for stream in self._streams}
        return {"phases": {name: vars(phase) for name, phase in self._phases.items()}, "ended": ended}

    async def close(self) -> dict[str, Any]:
        """Ends everything."""
        for stream in self._streams:
            stream.stop()
        if self._stays is not None:
            await self._stays.close(drain=False)
        return {}

    def _end_phase(self) -> None:
        if self._name:
            self._phases[self._name].seconds = time.monotonic() - self._since

    def _came(self, stream: str, size: int) -> None:
        if self._name:
            self._phases[self._name].bytes[stream] += size

    async def _dial(self, ways: list[str]) -> None:
        number = 0
        while self._going:
            # registrations of one node have a rate, so that each has its turn
            number += 1
            identity = self._identities[1 + number % (len(self._identities) - 1)]
            for way in ways:
                phase, began = self._phases.get(self._name) or Phase(), time.monotonic()
                try:
                    await getattr(self, f"_{way}")(identity)
                    phase.dials[way].append(time.monotonic() - began)
                except (keynet.KeynetError, OSError, asyncio.IncompleteReadError, asyncio.TimeoutError) as error:
                    phase.failed.append(f"{way} after {time.monotonic() - began:.1f} s: {error}")
            await asyncio.sleep(PAUSE)

    async def _fresh(self, identity: keynet.Identity) -> None:
        """From a port that the node has not heard of."""
        await self._direct(identity, self._targets["victim"])

    async def _beside(self, identity: keynet.Identity) -> None:
        """The same to the node that nobody attacks."""
        await self._direct(identity, self._targets["bystander"])

    async def _direct(self, identity: keynet.Identity, target: dict[str, str]) -> None:
        async with keynet.Proxy(identity, listen="0.0.0.0:0", port_mapping=False) as proxy:
            proxy.add_peer(target["node"], [target["address"]])
            await _use(proxy, target["node"])
            await proxy.close(drain=False)

    async def _keyed(self, _: keynet.Identity) -> None:
        """Over the path that the stream uses."""
        assert self._stays is not None
        await _use(self._stays, self._targets["victim"]["node"])

    async def _introduced(self, identity: keynet.Identity) -> None:
        """Knows the key alone: registers, and is introduced."""
        target = self._targets["victim"]
        options: dict[str, Any] = {"rendezvous": [target["rendezvous"]], "listen": "0.0.0.0:0", "port_mapping": False}
        async with keynet.Proxy(identity, **options) as proxy:
            deadline = time.monotonic() + PATIENCE
            while not proxy.status().rendezvous[0].connected and time.monotonic() < deadline:
                await asyncio.sleep(POLL)
            await _use(proxy, target["node"])
            await proxy.close(drain=False)

    async def _relayed(self, identity: keynet.Identity) -> None:
        """Gets an allocation of a relay."""
        relay = self._targets["victim"]["relay"]
        async with keynet.Proxy(identity, relays=[relay], listen="0.0.0.0:0", port_mapping=False) as proxy:
            deadline = time.monotonic() + PATIENCE
            while not any(one.addresses for one in proxy.status().relays):
                if time.monotonic() > deadline:
                    raise TimeoutError(str(proxy.status().relays))
                await asyncio.sleep(POLL)
            await proxy.close(drain=False)


async def _use(proxy: keynet.Proxy, node: str) -> None:
    """A connection to the service, and an answer of it."""
    async with await proxy.forward(node, ECHO) as forward:
        host, _, port = forward.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(b"hello")
            await asyncio.wait_for(reader.readexactly(5), PATIENCE)
        except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError) as error:
            raise proxy.last_error(node) or error from None
        finally:
            writer.close()


if __name__ == "__main__":
    asyncio.run(obey(Honest()))

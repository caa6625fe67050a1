"""Our uTP against libtorrent's, an independent one, on real sockets: data both ways, hashes checked.

First pure_python, then the core by way of `utp_bridge` (TCP <-> raw uTP), in both roles, and then over a network that
loses, doubles and reorders. libtorrent itself checks the hash of every piece that we sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import sys
from pathlib import Path

import pytest
from bittorrent import PIECE, Conversation, content
from programs import HANG, at, bridge, needs_bridge, program
from pure_python.utp import Endpoint
from relay import Faults, relay

pytest.importorskip("libtorrent", reason="an interop peer; a wheel on PyPI")

HERE = Path(__file__).resolve().parent
MIB = 1 << 20
LOOPBACK = [pytest.param("127.0.0.1", id="ipv4"), pytest.param("::1", id="ipv6")]


class Libtorrent:
    """A running libtorrent, and what it says."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.port = 0

    async def says(self) -> dict:
        return json.loads(await asyncio.wait_for(self._process.stdout.readline(), HANG))

    async def is_complete(self) -> None:
        """It has the whole file, all by uTP."""
        assert await self.says() == {"complete": True, "utp": [True]}

    async def has_ended(self) -> None:
        """It has read our end, not a break."""
        assert await self.says() == {"ended": "End of file"}


@contextlib.asynccontextmanager
async def libtorrent(directory: Path, host: str, size: int, have: int, dial: tuple[str, int] | None = None):
    """libtorrent with the first `have` pieces of a file of `size` bytes."""
    arguments = [str(directory), host, str(size), str(have), *map(str, dial or ())]
    async with program(sys.executable, "-W", "ignore", str(HERE / "libtorrent_peer.py"), *arguments) as process:
        peer = Libtorrent(process)
        up = await peer.says()
        assert up["have"] == have
        peer.port = up["port"]
        yield peer


async def check(conversation: Conversation, dialler: bool, peer: Libtorrent, size: int, have: int) -> None:
    got = await asyncio.wait_for(conversation.run(dialler), HANG)
    assert hashlib.sha256(got).digest() == hashlib.sha256(content(size)[: have * PIECE]).digest()
    await peer.is_complete()


BOTH_WAYS = (8 * MIB, 16)  # 4 MiB each


@pytest.mark.parametrize("host", LOOPBACK)
@pytest.mark.parametrize("capable", [True, False])
async def test_pure_python_dials_libtorrent(tmp_path: Path, host: str, capable: bool):
    endpoint = Endpoint((host, 0), capable)
    size, have = BOTH_WAYS
    try:
        async with libtorrent(tmp_path / "lt", host, size, have) as peer:
            stream = await endpoint.connect(host, peer.port)
            assert not stream._capable
            await check(Conversation(stream, stream, content(size), have), True, peer, size, have)
    finally:
        endpoint.close()


@pytest.mark.parametrize("host", LOOPBACK)
async def test_libtorrent_dials_pure_python(tmp_path: Path, host: str):
    endpoint = Endpoint((host, 0))
    size, have = BOTH_WAYS
    try:
        async with libtorrent(tmp_path / "lt", host, size, have, (host, endpoint.address[1])) as peer:
            stream = await asyncio.wait_for(endpoint.accept(), 20)
            await check(Conversation(stream, stream, content(size), have), False, peer, size, have)
    finally:
        endpoint.close()


@contextlib.asynccontextmanager
async def core_dials(directory: Path, host: str, size: int, have: int, faults: Faults):
    """(libtorrent, the bridge, the TCP connection to the bridge, what is between them, who dialled)."""
    async with (
        libtorrent(directory, host, size, have) as peer,
        relay(host, (host, peer.port), faults) as between,
        bridge("connect", "--tcp", "127.0.0.1:0", "--utp", at(host, between.port)) as core,
    ):
        yield peer, core, await asyncio.open_connection("127.0.0.1", core.tcp), between, True


@contextlib.asynccontextmanager
async def libtorrent_dials(directory: Path, host: str, size: int, have: int, faults: Faults):
    accepted: asyncio.Queue = asyncio.Queue()
    server = await asyncio.start_server(lambda r, w: accepted.put_nowait((r, w)), "127.0.0.1", 0)
    tcp = server.sockets[0].getsockname()[1]
    async with (
        bridge("listen", "--utp", at(host, 0), "--tcp", f"127.0.0.1:{tcp}") as core,
        relay(host, (host, core.utp), faults) as between,
        libtorrent(directory, host, size, have, (host, between.port)) as peer,
    ):
        yield peer, core, await asyncio.wait_for(accepted.get(), HANG), between, False
    server.close()


@needs_bridge
@pytest.mark.parametrize("host", LOOPBACK)
@pytest.mark.parametrize("connected", [core_dials, libtorrent_dials])
@pytest.mark.parametrize(
    ("size", "have", "faults"),
    [
        pytest.param(*BOTH_WAYS, Faults(), id="clean"),
        pytest.param(2 * MIB, 4, Faults(0.01, 0.01, 0.01), id="1 % lost"),
        pytest.param(2 * MIB, 4, Faults(0.05, 0.01, 0.01), id="5 % lost"),
        pytest.param(1, 1, Faults(0.05, 0.01, 0.01), id="one byte from libtorrent, 5 % lost"),
        pytest.param(1, 0, Faults(0.05, 0.01, 0.01), id="one byte to libtorrent, 5 % lost"),
        # the SYN is sent again before its answer can be there
        pytest.param(1, 1, Faults(delay=0.05), id="a round trip of 100 ms"),
    ],
)
async def test_the_core_and_libtorrent(tmp_path: Path, connected, host: str, size: int, have: int, faults: Faults):
    async with connected(tmp_path / "lt", host, size, have, faults) as (peer, core, streams, between, dialler):
        reader, writer = streams
        await check(Conversation(reader, writer, content(size), have), dialler, peer, size, have)
        writer.write_eof()
        await asyncio.wait_for(reader.read(), HANG)  # what it still has to say, to its end
        writer.close()
        await peer.has_ended()
        assert await core.ended() == "in order"
        assert (between.lost > 0) == (faults.loss > 0 and size > PIECE)

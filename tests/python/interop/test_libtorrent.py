"""Our uTP against libtorrent's, an independent one, on real sockets: megabytes both ways at once, hashes
checked.

First pure_python, then the core by way of `utp_bridge` (TCP <-> raw uTP), in both roles. libtorrent itself
checks the hash of every piece that we sent.
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
from programs import at, bridge, needs_bridge, program
from pure_python.utp import Endpoint

pytest.importorskip("libtorrent", reason="an interop peer; a wheel on PyPI")

HERE = Path(__file__).resolve().parent
PIECES = 32  # 4 MiB each way
LOOPBACK = [pytest.param("127.0.0.1", id="ipv4"), pytest.param("::1", id="ipv6")]


@contextlib.asynccontextmanager
async def libtorrent(directory: Path, host: str, dial: tuple[str, int] | None = None):
    """Yields (port, complete): `complete()` waits until libtorrent has the whole file, all by uTP."""
    arguments = [str(directory), host, str(PIECES), *map(str, dial or ())]
    async with program(sys.executable, "-W", "ignore", str(HERE / "libtorrent_peer.py"), *arguments) as process:

        async def line() -> dict:
            return json.loads(await asyncio.wait_for(process.stdout.readline(), 30))

        up = await line()
        assert up["have"] == PIECES // 2

        async def complete() -> None:
            assert await line() == {"complete": True, "utp": [True]}

        yield up["port"], complete


async def check(conversation: Conversation, dialler: bool, complete) -> None:
    got = await asyncio.wait_for(conversation.run(dialler), 60)
    assert hashlib.sha256(got).digest() == hashlib.sha256(content(PIECES)[: PIECES // 2 * PIECE]).digest()
    await complete()


@pytest.mark.parametrize("host", LOOPBACK)
@pytest.mark.parametrize("capable", [True, False])
async def test_pure_python_dials_libtorrent(tmp_path: Path, host: str, capable: bool):
    endpoint = Endpoint((host, 0), capable)
    try:
        async with libtorrent(tmp_path / "lt", host) as (port, complete):
            stream = await endpoint.connect(host, port)
            assert not stream._capable
            await check(Conversation(stream, stream, content(PIECES)), True, complete)
    finally:
        endpoint.close()


@pytest.mark.parametrize("host", LOOPBACK)
async def test_libtorrent_dials_pure_python(tmp_path: Path, host: str):
    endpoint = Endpoint((host, 0))
    try:
        async with libtorrent(tmp_path / "lt", host, dial=(host, endpoint.address[1])) as (_, complete):
            stream = await asyncio.wait_for(endpoint.accept(), 20)
            await check(Conversation(stream, stream, content(PIECES)), False, complete)
    finally:
        endpoint.close()


@needs_bridge
@pytest.mark.parametrize("host", LOOPBACK)
async def test_the_core_dials_libtorrent(tmp_path: Path, host: str):
    async with (
        libtorrent(tmp_path / "lt", host) as (port, complete),
        bridge("connect", "--tcp", "127.0.0.1:0", "--utp", at(host, port)) as (tcp, _),
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", tcp)
        await check(Conversation(reader, writer, content(PIECES)), True, complete)
        writer.close()


@needs_bridge
@pytest.mark.parametrize("host", LOOPBACK)
async def test_libtorrent_dials_the_core(tmp_path: Path, host: str):
    accepted: asyncio.Queue = asyncio.Queue()
    server = await asyncio.start_server(lambda r, w: accepted.put_nowait((r, w)), "127.0.0.1", 0)
    tcp = server.sockets[0].getsockname()[1]
    async with (
        bridge("listen", "--utp", at(host, 0), "--tcp", f"127.0.0.1:{tcp}") as (_, utp),
        libtorrent(tmp_path / "lt", host, dial=(host, utp)) as (_, complete),
    ):
        reader, writer = await asyncio.wait_for(accepted.get(), 20)
        await check(Conversation(reader, writer, content(PIECES)), False, complete)
        writer.close()
    server.close()

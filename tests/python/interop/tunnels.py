"""TCP services, and tunnels to them through the CONNECT proxy of a node of either kind."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import random


@contextlib.asynccontextmanager
async def service(handle):
    """A TCP server on loopback; yields its (host, port)."""
    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()
    finally:
        server.close()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
        writer.close()


async def tunnel(a, target: str, password: str | None = None):
    """CONNECT through a, a pure_python Node or a keynet.Proxy: the answer's head, and the open connection."""
    address = a.forward_address
    host, port = address.rsplit(":", 1) if isinstance(address, str) else address
    reader, writer = await asyncio.open_connection(host, int(port))
    shown = base64.b64encode(f"{a.credentials[0]}:{password or a.credentials[1]}".encode()).decode()
    writer.write(f"CONNECT {target} HTTP/1.1\r\nProxy-Authorization: Basic {shown}\r\n\r\n".encode())
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
    return head.decode(), reader, writer


async def status_of(a, target: str, password: str | None = None) -> tuple[int, str]:
    head, reader, writer = await tunnel(a, target, password)
    await asyncio.wait_for(reader.read(), 5)
    writer.close()
    details = head.partition('details="')[2].partition(":")[0]
    return int(head.split()[1]), details


async def through(a, target: str, size: int = 2_000_000) -> None:
    head, reader, writer = await tunnel(a, target)
    assert head.startswith("HTTP/1.1 200 Connection established\r\n")
    data = random.Random(size).randbytes(size)

    async def write() -> None:
        writer.write(data)
        await writer.drain()
        writer.write_eof()

    got, _ = await asyncio.wait_for(asyncio.gather(reader.read(-1), write()), 30)
    assert hashlib.sha256(got).digest() == hashlib.sha256(data).digest()
    writer.close()

"""A node: the forward proxy (HTTP CONNECT -> TLS over uTP) and the reverse proxy (TLS over uTP -> TCP)."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import struct
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

from . import connect, identity, opening
from .identity import Rejected
from .opening import Refused
from .stream import Stream
from .tls import TlsStream
from .utp import Endpoint

DIAL_TIMEOUT, HEAD_TIMEOUT, HANDSHAKE_TIMEOUT, OPEN_TIMEOUT, SERVICE_TIMEOUT = 15.0, 10.0, 10.0, 10.0, 5.0
MAX_TASKS = 8192
_CHUNK = 1 << 16
_T = TypeVar("_T")


class Node:
    """Start it with `await Node.start(...)`.

    `services` maps a service port to (host, port); with `allow` None everyone is let in.
    """

    endpoint: Endpoint
    _forward: asyncio.Server

    def __init__(self, identity_file: Path, services: Mapping[int, tuple[str, int]], allow: set[str] | None) -> None:
        self.identity_file, self.services, self.allow = identity_file, dict(services), allow
        self.node_id = identity.node_of(identity_file)
        self.credentials = "keynet", secrets.token_urlsafe(16)
        self._peers: dict[str, tuple[str, int]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    async def start(
        cls,
        identity_file: Path,
        services: Mapping[int, tuple[str, int]] | None = None,
        allow: set[str] | None = None,
        listen: tuple[str, int] = ("::", 0),
        forward: tuple[str, int] = ("127.0.0.1", 0),
        capable: bool = True,
    ) -> Node:
        self = cls(identity_file, services or {}, allow)
        self.endpoint = Endpoint(listen, capable)
        self._forward = await asyncio.start_server(
            lambda reader, writer: self._spawn(self._handle_client(reader, writer)),
            *forward,
            limit=connect.MAX_HEAD,
        )
        self._spawn(self._accept())
        return self

    @property
    def forward_address(self) -> tuple[str, int]:
        name: tuple[str, int] = self._forward.sockets[0].getsockname()
        return name[0], name[1]

    @property
    def proxy_address(self) -> tuple[str, int]:
        return self.endpoint.address

    def add_peer(self, node: str, address: tuple[str, int]) -> None:
        identity.node_key(node)
        self._peers[node.lower()] = address

    async def close(self) -> None:
        self._forward.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.endpoint.close()

    async def open(self, node: str, port: int, address: tuple[str, int] | None = None) -> TlsStream:
        """A stream to a service of a node, accepted by it. Raises Refused, Rejected or OSError."""
        address = address or self._peers.get(node)
        if address is None:
            raise Refused("unknown_node", f"no address of {node} is known")
        try:
            stream = await self.endpoint.connect(*address)
        except ConnectionRefusedError as e:
            raise Refused("connect_refused", str(e)) from e
        except TimeoutError as e:
            raise Refused("connect_timeout", str(e)) from e
        try:
            tls = await _within(HANDSHAKE_TIMEOUT, "tls_timeout", TlsStream.connect(stream, self.identity_file, node))
            self._remember(tls, dialler=True)
            await tls.write(opening.encode_open(port, node))
            opening.check_answer(await _within(OPEN_TIMEOUT, "open_timeout", opening.read_message(tls.read)))
            return tls
        except BaseException:
            stream.reset()
            raise

    # --- forward ------------------------------------------------------------------------------------------

    async def _handle_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await _within(HEAD_TIMEOUT, "head_timeout", _read_head(reader))
            target = connect.parse(head, self.credentials)
            tls = await asyncio.wait_for(self.open(*target), DIAL_TIMEOUT)
        except (Refused, Rejected) as e:
            await _farewell(writer, connect.refusal(e.reason, str(e)))
        except asyncio.TimeoutError:
            await _farewell(writer, connect.refusal("connect_timeout", "the dial took too long"))
        except OSError as e:
            await _farewell(writer, connect.refusal("peer_reset", str(e)))
        else:
            writer.write(connect.ESTABLISHED)
            await _splice(reader, writer, tls)

    # --- reverse ------------------------------------------------------------------------------------------

    async def _accept(self) -> None:
        while True:
            stream = await self.endpoint.accept()
            if len(self._tasks) < MAX_TASKS:
                self._spawn(self._handle_peer(stream))
            else:
                stream.reset()

    async def _handle_peer(self, stream: Stream) -> None:
        with contextlib.suppress(Refused, Rejected, OSError):
            try:
                tls = await _within(HANDSHAKE_TIMEOUT, "tls_timeout", TlsStream.accept(stream, self.identity_file))
                self._remember(tls, dialler=False)
                try:
                    message = await _within(OPEN_TIMEOUT, "open_timeout", opening.read_message(tls.read))
                    reader, writer = await self._dial_service(tls, message)
                except Refused as e:
                    await tls.write(opening.encode_refused(e.reason, str(e)))
                    tls.write_eof()
                    await asyncio.wait_for(_until_end(tls), HANDSHAKE_TIMEOUT)
                    return
                await tls.write(opening.encode_accepted())
                await _splice(reader, writer, tls)
            finally:
                stream.close()

    async def _dial_service(self, tls: TlsStream, message: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        port, _ = opening.decode_open(message)
        if self.allow is not None and not self.allow.intersection(tls.nodes):
            raise Refused("access_denied", f"{tls.nodes[0]} is not on the access list")
        if port == 0 and len(self.services) == 1:
            port = next(iter(self.services))
        if port not in self.services:
            raise Refused("service_not_found", f"no service {port}")
        try:
            return await _within(SERVICE_TIMEOUT, "service_timeout", asyncio.open_connection(*self.services[port]))
        except OSError as e:
            raise Refused("service_refused", str(e)) from e

    def _remember(self, tls: TlsStream, dialler: bool) -> None:
        """Keeps the session's name for the peer's pings, of the newest 1024 sessions."""
        keys, sessions = tls.ping_keys(dialler), self.endpoint.sessions
        sessions[keys.local_name] = keys
        if len(sessions) > 1024:
            del sessions[next(iter(sessions))]

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _splice(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tls: TlsStream) -> None:
    """Carries bytes both ways until both directions have ended; a break of either side breaks the other."""

    async def outwards() -> None:
        while data := await reader.read(_CHUNK):
            await tls.write(data)
        tls.write_eof()

    async def inwards() -> None:
        while data := await tls.read(_CHUNK):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()

    tasks = [asyncio.ensure_future(outwards()), asyncio.ensure_future(inwards())]
    try:
        await asyncio.gather(*tasks)
        tls.close()
        writer.close()
    except (OSError, asyncio.CancelledError) as e:
        for task in tasks:
            task.cancel()
        tls.reset()
        abort(writer)
        if isinstance(e, asyncio.CancelledError):
            raise


def abort(writer: asyncio.StreamWriter) -> None:
    """Closes with a TCP RST: without SO_LINGER 0 the other side would see an orderly end."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _read_head(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError as e:
        raise Refused("head_too_large", f"more than {connect.MAX_HEAD} bytes") from e
    except asyncio.IncompleteReadError as e:
        raise Refused("bad_request", "the request is incomplete") from e


async def _farewell(writer: asyncio.StreamWriter, answer: bytes) -> None:
    with contextlib.suppress(OSError):
        writer.write(answer)
        await writer.drain()
    writer.close()


async def _until_end(tls: TlsStream) -> None:
    while await tls.read(_CHUNK):
        pass


async def _within(seconds: float, reason: str, work: Coroutine[Any, Any, _T]) -> _T:
    try:
        return await asyncio.wait_for(work, seconds)
    except asyncio.TimeoutError as e:
        raise Refused(reason, f"not done in {seconds:.0f} s") from e

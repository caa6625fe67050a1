"""A bidirectional gRPC stream at full rate, echoed: whether all comes back, in order, and how long nothing did."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio

import keynet
import keynet.grpc

METHOD = "/keynet.test.Stream/Echo"
SIZE = 16384


async def _echo(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    async for message in requests:
        yield message


async def serve() -> tuple[grpc.aio.Server, str]:
    """The server, and its address."""
    _, service, method = METHOD.split("/")
    server = grpc.aio.server(options=keynet.grpc.server_options())
    handler: Any = grpc.stream_stream_rpc_method_handler(_echo)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {method: handler})])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, f"127.0.0.1:{port}"


class Stream:
    """One call. It writes as fast as gRPC takes it, or with a pause in seconds; and checks what comes back."""

    def __init__(self, proxy: keynet.Proxy, node: str, port: int, pause: float = 0.0) -> None:
        self._pause = pause
        self._channel = keynet.grpc.aio_channel(proxy, node, port)
        self._call: Any = self._channel.stream_stream(METHOD)()
        self._noise = os.urandom(2 * SIZE)
        self._sent = self._received = 0
        self._hashes = hashlib.sha256(), hashlib.sha256()
        self._error = ""
        self._ending = False
        self._last = time.perf_counter()
        self._longest = self._longest_of_all = 0.0
        self._work = [asyncio.create_task(work) for work in (self._write(), self._read())]

    async def _write(self) -> None:
        with self._errors():
            while not self._ending:
                start = self._sent % SIZE
                message = self._sent.to_bytes(8, "big") + self._noise[start : start + SIZE - 8]
                self._hashes[0].update(message)
                self._sent += 1
                await self._call.write(message)
                if self._pause:
                    await asyncio.sleep(self._pause)
            await self._call.done_writing()

    async def _read(self) -> None:
        with self._errors():
            async for message in self._call:
                self._mark()
                if (number := int.from_bytes(message[:8], "big")) != self._received:
                    raise ValueError(f"message {number} came in place of {self._received}")
                self._hashes[1].update(message)
                self._received += 1

    @contextlib.contextmanager
    def _errors(self) -> Any:
        try:
            yield
        except Exception as error:
            code = error.code().name if isinstance(error, grpc.aio.AioRpcError) else ""
            self._error = self._error or f"{type(error).__name__} {code} {error}"

    def _mark(self) -> None:
        now = time.perf_counter()
        self._longest = max(self._longest, now - self._last)
        self._longest_of_all = max(self._longest_of_all, self._longest)
        self._last = now

    def report(self) -> dict[str, Any]:
        """Where it is; `gap_ms` is the longest time without a message since the last report."""
        waiting = time.perf_counter() - self._last
        longest, self._longest = max(self._longest, waiting), 0.0
        counts = {"sent": self._sent, "received": self._received, "bytes": self._received * SIZE}
        return {**counts, "gap_ms": longest * 1000, "failed": self._error}

    async def finish(self) -> dict[str, Any]:
        """Sends no more, reads the rest, and says whether it was all."""
        self._ending = True
        await asyncio.gather(*self._work)
        with self._errors():
            if (code := await self._call.code()) is not grpc.StatusCode.OK:
                self._error = self._error or f"it ended with {code}"
        same = self._hashes[0].digest() == self._hashes[1].digest()
        await self._channel.close()
        return {**self.report(), "longest_gap_ms": self._longest_of_all * 1000, "same": same}

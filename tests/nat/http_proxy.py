"""An HTTP proxy that lets TCP out by CONNECT, as companies have them. It tells of each request, a line of JSON.

python tests/nat/http_proxy.py 192.168.1.1 3128 [USER:PASSWORD] [--forbid]
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
from typing import Any

_ANSWERS = {
    200: "Connection established",
    403: "Forbidden by the company",
    407: "Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=company",
    502: "Bad Gateway",
}


class Proxy:
    """Serves one client after its request; `credentials` may be empty."""

    def __init__(self, credentials: str, forbids: bool) -> None:
        self._wanted = f"Basic {base64.b64encode(credentials.encode()).decode()}" if credentials else ""
        self._forbids = forbids

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError), contextlib.closing(writer):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            target, status = head.split()[1], self._judge(head)
            if status == 200:
                host, _, port = target.rpartition(":")
                try:
                    beyond, back = await asyncio.open_connection(host.strip("[]"), int(port))
                except OSError:
                    status = 502
            tell(connect=target, status=status)
            writer.write(f"HTTP/1.1 {status} {_ANSWERS[status]}\r\n\r\n".encode())
            if status == 200:
                with contextlib.closing(back):
                    await asyncio.gather(_copy(reader, back), _copy(beyond, writer))

    def _judge(self, head: str) -> int:
        if self._wanted and f"proxy-authorization: {self._wanted}".lower() not in head.lower().split("\r\n"):
            return 407
        return 403 if self._forbids or not head.startswith("CONNECT ") else 200


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


def tell(**fields: Any) -> None:
    """A line for the test."""
    print(json.dumps(fields), flush=True)


async def main() -> None:
    """Serves until it is ended."""
    parser = argparse.ArgumentParser()
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("credentials", nargs="?", default="")
    parser.add_argument("--forbid", action="store_true")
    options = parser.parse_args()
    server = await asyncio.start_server(Proxy(options.credentials, options.forbid).serve, options.host, options.port)
    tell(event="ready")
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())

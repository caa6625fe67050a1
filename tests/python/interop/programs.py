"""Programs that the interop tests run beside themselves: the core's uTP behind a TCP port, and any other."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
BUILT = [ROOT / "target" / profile / "examples/utp_bridge" for profile in ("debug", "release")]
BRIDGE = Path(os.environ.get("KEYNET_UTP_BRIDGE") or max(BUILT, key=lambda p: p.stat().st_mtime if p.exists() else 0))
# a guard against hangs, not a measure: a peer whose timeout is a second may wait for several of them in a row
HANG = 90
needs_bridge = pytest.mark.skipif(not BRIDGE.exists(), reason="cargo build --example utp_bridge")


@contextlib.asynccontextmanager
async def program(*command: str):
    """A child process with pipes, ended by closing its standard input, at the latest killed."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        yield process
    finally:
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), 5)
        except asyncio.TimeoutError:
            process.kill()
            await process.wait()


class Bridge:
    """A running bridge: its ports, and how its connections end."""

    def __init__(self, process: asyncio.subprocess.Process, facts: dict[str, str]) -> None:
        self._process = process
        self.tcp, self.utp = (int(facts[name].rpartition(":")[2]) for name in ("tcp", "utp"))

    def __iter__(self):
        return iter((self.tcp, self.utp))

    async def ended(self) -> str:
        """How the next connection ended: "in order", or the reason."""
        line = (await asyncio.wait_for(self._process.stdout.readline(), HANG)).decode()
        assert line.startswith("ended "), line
        return line.removeprefix("ended ").strip()


@contextlib.asynccontextmanager
async def bridge(*arguments: str):
    """The core's uTP behind a TCP port."""
    async with program(str(BRIDGE), *arguments) as process:
        try:
            ready = (await asyncio.wait_for(process.stdout.readline(), 10)).decode().split()
            assert ready[0] == "ready"
            yield Bridge(process, dict(word.split("=", 1) for word in ready[1:]))
        finally:
            if process.returncode is None:
                process.terminate()


def at(host: str, port: int) -> str:
    """host:port, with brackets for IPv6."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

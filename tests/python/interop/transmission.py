"""Moves data between the core's uTP and transmission's (libutp); a program of its own, to be run as

    unshare --net --pid --fork --kill-child python transmission.py DIRECTORY

in a network of its own, because transmission never dials a loopback address. One daemon serves all `CASES` at once: it
unchokes its peers only every ten seconds. Prints a line of JSON for each case: how it ended.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import ipaddress
import json
import subprocess
import sys
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from bittorrent import PIECE, Conversation, content, metainfo
from programs import HANG, Bridge, at, bridge, program
from relay import Faults, relay

DAEMON = "transmission-daemon"
RPC, PEERS = 9091, 51413  # the network is ours: any will do
# documentation's addresses (RFC 5737, RFC 3849): transmission takes them for real ones. It takes two connections from
# one address for one, so each case has its own.
HOSTS = {"ipv4": ipaddress.ip_address("192.0.2.1"), "ipv6": ipaddress.ip_address("2001:db8::1")}


class Case(NamedTuple):
    """One connection: who dials, over what, who ends it."""

    dialler: str
    family: str
    faults: Faults
    ends_first: str

    @property
    def name(self) -> str:
        return f"{self.dialler} dials, {self.ends_first} ends, {self.family}, {self.faults.loss:.0%} lost"


PROGRAMS = ("core", "transmission")
CASES = [
    Case(dialler, family, faults, first)
    for dialler in PROGRAMS
    for family in HOSTS
    # each end with and without loss, each of them by each family
    for faults, first in zip(
        (Faults(), Faults(0.01, 0.01, 0.01)), PROGRAMS if family == "ipv4" else PROGRAMS[::-1], strict=True
    )
]
PIECES = 12  # 1.5 MiB each way


class Daemon:
    """transmission-daemon with a directory of its own, asked by RPC."""

    def __init__(self, directory: Path) -> None:
        self._session = ""
        self.downloads = directory / "downloads"
        self._config = directory / "config"

    @contextlib.asynccontextmanager
    async def run(self):
        self._config.mkdir(parents=True)
        self.downloads.mkdir()
        settings = {
            "bind-address-ipv4": str(HOSTS["ipv4"]),
            "bind-address-ipv6": str(HOSTS["ipv6"]),
            "dht-enabled": False,
            "lpd-enabled": False,
            "pex-enabled": False,
            "port-forwarding-enabled": False,
            "utp-enabled": True,
            "encryption": 0,
            "rpc-bind-address": "127.0.0.1",
            "rpc-port": RPC,
            "peer-port": PEERS,
            "upload-slots-per-torrent": 20,
            "rename-partial-files": False,
        }
        (self._config / "settings.json").write_text(json.dumps(settings))
        async with program(DAEMON, "--foreground", "--log-error", "-g", str(self._config)) as process:
            await asyncio.wait_for(self._up(), HANG)
            yield self
            process.terminate()

    async def _up(self) -> None:
        while True:
            with contextlib.suppress(ConnectionError):
                await self.ask("session-get")
                return
            await asyncio.sleep(0.05)

    async def ask(self, method: str, **arguments: object) -> dict:
        return await asyncio.to_thread(self._ask, json.dumps({"method": method, "arguments": arguments}).encode())

    def _ask(self, question: bytes) -> dict:
        for _ in range(2):
            request = urllib.request.Request(
                f"http://127.0.0.1:{RPC}/transmission/rpc", question, {"X-Transmission-Session-Id": self._session}
            )
            try:
                with urllib.request.urlopen(request, timeout=HANG) as answer:
                    done = json.load(answer)
                    assert done["result"] == "success", done
                    return done["arguments"]
            except urllib.error.HTTPError as error:
                if error.code != 409:  # the first one tells the session's name
                    raise
                self._session = error.headers["X-Transmission-Session-Id"]
            except urllib.error.URLError as error:
                raise ConnectionError(str(error)) from error
        raise ConnectionError("no session")

    async def add(self, data: bytes, have: int, announce: str) -> int:
        """A torrent of which it has the first pieces already."""
        torrent, _ = metainfo(data, announce)
        directory = self.downloads / hashlib.sha1(torrent).hexdigest()
        directory.mkdir()
        (directory / "blob").write_bytes(data[: have * PIECE].ljust(len(data), b"\0"))
        added = await self.ask(
            "torrent-add", metainfo=base64.b64encode(torrent).decode(), **{"download-dir": str(directory)}
        )
        torrent_id = added["torrent-added"]["id"]
        await self.until(torrent_id, lambda facts: facts["status"] == 4 and facts["haveValid"] == have * PIECE)
        return torrent_id

    async def until(self, torrent: int, is_met: Callable[[dict], object]) -> dict:
        return await asyncio.wait_for(self._until(torrent, is_met), HANG)

    async def _until(self, torrent: int, is_met: Callable[[dict], object]) -> dict:
        fields = ["status", "haveValid", "leftUntilDone", "peers", "errorString"]
        while True:
            facts = (await self.ask("torrent-get", ids=[torrent], fields=fields))["torrents"][0]
            if is_met(facts):
                return facts
            await asyncio.sleep(0.1)


@contextlib.asynccontextmanager
async def tracker(family: str, peers: list[tuple[str, int]]):
    """Tells transmission where its peers are (BEP 3, 7, 23); yields the URL."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        compact = b"".join(ipaddress.ip_address(host).packed + port.to_bytes(2, "big") for host, port in peers)
        key = b"5:peers" if family == "ipv4" else b"6:peers6"
        body = b"d8:intervali1800e%b%d:%be" % (key, len(compact), compact)
        writer.write(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/announce"
    finally:
        server.close()


async def core_dials(daemon: Daemon, case: Case, address: str, data: bytes, have: int) -> None:
    torrent = await daemon.add(data, have, "")
    async with (
        relay(address, (str(HOSTS[case.family]), PEERS), case.faults) as between,
        bridge("connect", "--tcp", "127.0.0.1:0", "--utp", at(address, between.port)) as core,
    ):
        streams = await asyncio.open_connection("127.0.0.1", core.tcp)
        await converse(daemon, torrent, Conversation(*streams, data, have), core, case, streams)
        assert (between.lost > 0) == (case.faults.loss > 0)


async def transmission_dials(daemon: Daemon, case: Case, address: str, data: bytes, have: int) -> None:
    accepted: asyncio.Queue = asyncio.Queue()
    server = await asyncio.start_server(lambda r, w: accepted.put_nowait((r, w)), "127.0.0.1", 0)
    tcp = server.sockets[0].getsockname()[1]
    async with (
        bridge("listen", "--utp", at(address, 0), "--tcp", f"127.0.0.1:{tcp}") as core,
        relay(address, (address, core.utp), case.faults) as between,
        tracker(case.family, [(address, between.port)]) as announce,
    ):
        torrent = await daemon.add(data, have, announce)
        streams = await asyncio.wait_for(accepted.get(), HANG)
        await converse(daemon, torrent, Conversation(*streams, data, have), core, case, streams)
        assert (between.lost > 0) == (case.faults.loss > 0)
    server.close()


async def converse(daemon: Daemon, torrent: int, conversation: Conversation, core: Bridge, case: Case, streams) -> None:
    reader, writer = streams
    running = asyncio.ensure_future(conversation.run(case.dialler == "core"))
    facts = await daemon.until(torrent, lambda facts: running.done() or facts["peers"])
    assert [peer["isUTP"] for peer in facts["peers"]] == [True], facts
    got = await asyncio.wait_for(running, HANG)
    assert got == conversation.expected, "what came from transmission is not what it had"
    # it has checked the hashes of what we sent
    await daemon.until(torrent, lambda facts: facts["leftUntilDone"] == 0)
    if case.ends_first == "core":
        writer.write_eof()
        # its libutp takes our end for both, forgets the connection and says nothing: our side would only learn that
        # when its next keep-alive is answered with RESET
        await daemon.until(torrent, lambda facts: not facts["peers"])
        writer.close()
    else:
        await daemon.ask("torrent-stop", ids=[torrent])
        await asyncio.wait_for(reader.read(), HANG)
        writer.close()
        assert await core.ended() == "in order"


async def run(daemon: Daemon, number: int, case: Case) -> None:
    # torrents that differ in size differ in name
    data = content(PIECES * PIECE - number)
    dial = core_dials if case.dialler == "core" else transmission_dials
    outcome = "ok"
    try:
        await dial(daemon, case, str(HOSTS[case.family] + 1 + number), data, PIECES // 2)
    except Exception:
        outcome = traceback.format_exc()
    print(json.dumps({"case": case.name, "outcome": outcome}), flush=True)


async def main() -> None:
    for command in (
        "ip link set lo up",
        f"ip address add {HOSTS['ipv4']}/24 dev lo",
        # transmission asks the routes whether there is IPv6
        "ip -6 route add default dev lo",
        *(f"ip -6 address add {HOSTS['ipv6'] + n}/128 dev lo nodad" for n in range(1 + len(CASES))),
    ):
        subprocess.run(command.split(), check=True)
    async with Daemon(Path(sys.argv[1])).run() as daemon:
        await asyncio.gather(*(run(daemon, number, case) for number, case in enumerate(CASES)))


if __name__ == "__main__":
    asyncio.run(main())

"""The core and pure_python on the same wire, in both roles: raw uTP by `utp_bridge`, then whole nodes."""

from __future__ import annotations

import asyncio
import contextlib
import random
from pathlib import Path

import pytest
from bad_network import Network, exchange
from programs import at, bridge, needs_bridge
from pure_python import identity, stream
from pure_python.node import Node, abort
from pure_python.utp import Endpoint
from tunnels import echo, service, status_of, through, tunnel

import keynet

LOOPBACK = [pytest.param("127.0.0.1", id="ipv4"), pytest.param("::1", id="ipv6")]


class TcpStream:
    """An asyncio TCP connection with the surface of a pure_python Stream."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.read, self.write, self.drain = reader.read, writer.write, writer.drain
        self.write_eof, self.reset, self.close = writer.write_eof, lambda: abort(writer), writer.close


@contextlib.asynccontextmanager
async def core_dials(host: str, endpoint: Endpoint):
    """(the core's end, pure Python's end) of one uTP connection."""
    async with bridge("connect", "--tcp", "127.0.0.1:0", "--utp", at(host, endpoint.address[1])) as (tcp, _):
        core = TcpStream(*await asyncio.open_connection("127.0.0.1", tcp))
        yield core, await asyncio.wait_for(endpoint.accept(), 10)
        core.close()


@contextlib.asynccontextmanager
async def core_accepts(host: str, endpoint: Endpoint):
    accepted: asyncio.Queue = asyncio.Queue()
    server = await asyncio.start_server(lambda r, w: accepted.put_nowait(TcpStream(r, w)), "127.0.0.1", 0)
    tcp = server.sockets[0].getsockname()[1]
    async with bridge("listen", "--utp", at(host, 0), "--tcp", at("127.0.0.1", tcp)) as (_, utp):
        pure = await endpoint.connect(host, utp)
        pure.write(b"!")  # an acceptor waits for a packet of the dialler, and only data is sent again when it is lost
        core = await asyncio.wait_for(accepted.get(), 10)
        assert await asyncio.wait_for(core.read(1), 10) == b"!"
        yield core, pure
        core.close()
    server.close()


BOTH_ROLES = pytest.mark.parametrize("connected", [core_dials, core_accepts])
CONDITIONS = [
    {},
    {"loss": 0.02},
    {"loss": 0.1},
    {"doubling": 0.2},
    {"holding": 0.1},
    {"loss": 0.03, "holding": 0.05},
]


@needs_bridge
@BOTH_ROLES
@pytest.mark.parametrize("host", LOOPBACK)
@pytest.mark.parametrize("capable", [True, False])
async def test_streams(connected, host: str, capable: bool):
    endpoint = Endpoint((host, 0), capable)
    async with connected(host, endpoint) as (core, pure):
        assert pure._capable == capable
        await exchange(core, pure, (8_000_000, 8_000_000))
        await asyncio.sleep(stream.LINGER + 0.5)
        assert not endpoint._streams, "both ends know that it has ended"
    endpoint.close()


@needs_bridge
@BOTH_ROLES
@pytest.mark.parametrize("capable", [True, False])
@pytest.mark.parametrize("conditions", CONDITIONS, ids=str)
async def test_streams_over_a_bad_network(connected, capable: bool, conditions: dict[str, float]):
    """What pure Python sends is lost, doubled, held back: data one way, acknowledgements the other."""
    endpoint = Network(("127.0.0.1", 0), capable)
    endpoint.rng = random.Random(2)
    for name, value in conditions.items():
        setattr(endpoint, name, value)
    async with connected("127.0.0.1", endpoint) as (core, pure):
        await exchange(core, pure, (1_000_000, 400_000))
    endpoint.close()


@needs_bridge
@BOTH_ROLES
@pytest.mark.parametrize("host", LOOPBACK)
async def test_sequence_numbers_wrap(connected, host: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stream.random, "randrange", lambda *_: 0xFFF0)
    endpoint = Endpoint((host, 0))
    async with connected(host, endpoint) as (core, pure):
        await exchange(core, pure, (500_000, 500_000))
    endpoint.close()


@needs_bridge
@BOTH_ROLES
@pytest.mark.parametrize("host", LOOPBACK)
@pytest.mark.parametrize("first", ["core", "pure"])
async def test_half_close(connected, host: str, first: str):
    endpoint = Endpoint((host, 0))
    async with connected(host, endpoint) as ends:
        one, other = ends if first == "core" else ends[::-1]
        one.write(b"question")
        one.write_eof()
        assert await asyncio.wait_for(_all(other), 5) == b"question"
        await asyncio.sleep(0.2)
        other.write(bytes(300_000))
        other.write_eof()
        assert await asyncio.wait_for(_all(one), 5) == bytes(300_000)
    endpoint.close()


@needs_bridge
@BOTH_ROLES
@pytest.mark.parametrize("host", LOOPBACK)
@pytest.mark.parametrize("breaker", ["core", "pure"])
async def test_a_reset(connected, host: str, breaker: str):
    endpoint = Endpoint((host, 0))
    async with connected(host, endpoint) as (core, pure):
        core.write(b"x")
        assert await asyncio.wait_for(pure.read(), 5) == b"x"
        pure.write(b"y")
        assert await asyncio.wait_for(core.read(1), 5) == b"y"
        one, other = (core, pure) if breaker == "core" else (pure, core)
        one.reset()
        if breaker == "core":
            with pytest.raises(ConnectionResetError):
                await asyncio.wait_for(other.read(1), 5)
        else:  # the bridge tells its TCP client of an end, not of what kind
            assert await asyncio.wait_for(other.read(1), 5) == b""
    endpoint.close()


@needs_bridge
@BOTH_ROLES
async def test_a_slow_reader_stops_the_core(connected):
    endpoint = Endpoint(("127.0.0.1", 0))
    async with connected("127.0.0.1", endpoint) as (core, pure):
        sending = asyncio.ensure_future(_send(core, 100_000_000))
        await asyncio.sleep(1)
        assert len(pure._received) + pure._early_size <= stream.RECEIVE_BUFFER + 50_000
        assert not sending.done()
        total = 0
        while data := await asyncio.wait_for(pure.read(), 30):
            total += len(data)
        assert total == 100_000_000
        await sending
    endpoint.close()


@needs_bridge
@pytest.mark.parametrize("host", LOOPBACK)
async def test_the_core_answers_pings(host: str):
    endpoint = Endpoint((host, 0))
    async with bridge("listen", "--utp", at(host, 0), "--tcp", "127.0.0.1:9") as (_, utp):
        assert await endpoint.ping(host, utp) == endpoint.address
    endpoint.close()


async def _all(end) -> bytes:
    data = b""
    while more := await end.read(1 << 16):
        data += more
    return data


async def _send(end, size: int) -> None:
    for _ in range(size // 100_000):
        end.write(bytes(100_000))
        await end.drain()
    end.write_eof()


# --- whole nodes --------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def two_nodes(dialler: str, host: str, directory: Path, address: tuple[str, int], rotations: int = 0):
    """(a, b, names of b): a, a core or a pure Python node as `dialler` says, can dial b, of the other kind.

    b offers `address` as service 7, to a alone; its names are those it got by rotations, newest first.
    """
    keynet = pytest.importorskip("keynet")
    core_identity = keynet.Identity.load_or_create(directory / "core.pem")
    identity.create(directory / "pure.pem")
    for _ in range(rotations):
        core_identity = core_identity.rotate()
        (directory / "pure.pem").rename(directory / "old.pem")
        identity.create(directory / "pure.pem", directory / "old.pem")
    core_identity.save(directory / "core.pem")
    core_names = [str(node) for node in core_identity.node_ids]
    pure_names = identity.names_of(directory / "pure.pem")
    offer = {"services": {7: at(*address)}, "allow": [pure_names[0]]} if dialler == "pure" else {}
    async with keynet.Proxy(core_identity, listen=at(host, 0), **offer) as core:
        pure = await Node.start(directory / "pure.pem", {7: address}, {core_names[-1]}, listen=(host, 0))
        try:
            if dialler == "core":
                for node in pure_names:
                    core.add_peer(node, [at(host, pure.proxy_address[1])])
                yield core, pure, pure_names
            else:
                for node in core_names:
                    pure.add_peer(node, (host, int(core.proxy_address.rpartition(":")[2])))
                yield pure, core, core_names
        finally:
            await pure.close()


EITHER_DIALS = pytest.mark.parametrize("dialler", ["core", "pure"])


@EITHER_DIALS
@pytest.mark.parametrize("host", LOOPBACK)
async def test_tunnels(dialler: str, host: str, tmp_path: Path):
    async with service(echo) as address, two_nodes(dialler, host, tmp_path, address) as (a, _, (name,)):
        await through(a, f"{name}.keynet:7", 8_000_000)
        await asyncio.gather(*(through(a, f"{name}.keynet:7", 50_000) for _ in range(20)))
        await through(a, f"{name}.keynet:0", 0)


@EITHER_DIALS
@pytest.mark.parametrize("host", LOOPBACK)
async def test_rotated_nodes(dialler: str, host: str, tmp_path: Path):
    async with (
        service(echo) as address,
        two_nodes(dialler, host, tmp_path, address, 2) as (a, _, names),
    ):
        assert len(names) == 3
        for name in names:
            await through(a, f"{name}.keynet:7", 1000)


@EITHER_DIALS
@pytest.mark.parametrize("host", LOOPBACK)
async def test_refusals_keep_their_reason(dialler: str, host: str, tmp_path: Path):
    async with (
        service(echo) as address,
        two_nodes(dialler, host, tmp_path, address) as (a, b, (name,)),
    ):
        assert await status_of(a, f"{name}.keynet:8") == (404, "service_not_found")
        stranger = str(keynet.Identity.generate().node_id)
        where = b.proxy_address if isinstance(b, Node) else b.proxy_address.rpartition(":")[::2]
        if isinstance(a, Node):
            a.add_peer(stranger, (host, int(where[1])))
            b.set_allow([stranger])
        else:
            a.add_peer(stranger, [at(host, int(where[1]))])
            b.allow = set()
        assert await status_of(a, f"{stranger}.keynet:7") == (502, "identity_mismatch")
        assert await status_of(a, f"{name}.keynet:7") == (403, "access_denied")


@pytest.mark.ipv6
@pytest.mark.slow
async def test_idle_tunnels_live_by_pings(tmp_path: Path):
    """The core pings with the session's keys and gives up after 7.5 s: pure Python has them too."""

    async def idle(dialler: str, host: str) -> None:
        directory = tmp_path / dialler
        directory.mkdir()
        async with service(echo) as address, two_nodes(dialler, host, directory, address) as (a, _, (name,)):
            _, reader, writer = await tunnel(a, f"{name}.keynet:7")
            for wait in (11, 0):
                writer.write(b"still there?")
                assert await asyncio.wait_for(reader.readexactly(12), 5) == b"still there?"
                await asyncio.sleep(wait)
            writer.close()

    await asyncio.gather(idle("core", "127.0.0.1"), idle("pure", "::1"))

"""pure_python against itself: streams over bad networks, and whole nodes."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from pathlib import Path

import pytest
from bad_network import Network, exchange, pair, receive
from pure_python import identity, stream, utp
from pure_python.node import Node, abort
from pure_python.packet import FIN, RESET, STATE, SYN, Packet, decode
from pure_python.utp import Endpoint
from tunnels import echo, service, status_of, through, tunnel

LOOPBACK = [pytest.param("127.0.0.1", id="ipv4"), pytest.param("::1", id="ipv6")]


@pytest.mark.parametrize("host", LOOPBACK)
@pytest.mark.parametrize("capable", [(True, True), (True, False), (False, True), (False, False)])
async def test_data_both_ways(host: str, capable: tuple[bool, bool]):
    async with pair(host, capable) as (x, y, a, b):
        assert x._capable == y._capable == all(capable)
        await exchange(x, y, (3_000_000, 2_000_000))
        await asyncio.sleep(stream.LINGER + 0.3)
        assert not a._streams
        assert not b._streams


@pytest.mark.parametrize("capable", [True, False])
@pytest.mark.parametrize(
    "conditions",
    [
        {"loss": 0.02},
        {"loss": 0.1},
        {"doubling": 0.2},
        {"holding": 0.05},
        {"loss": 0.03, "doubling": 0.05, "holding": 0.05},
    ],
    ids=str,
)
async def test_data_over_a_bad_network(capable: bool, conditions: dict[str, float]):
    async with pair(capable=(capable, capable), **conditions) as (x, y, _, _):
        await exchange(x, y, (400_000, 300_000))


async def test_sequence_numbers_wrap(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stream.random, "randrange", lambda *_: 0xFFF0)
    async with pair(loss=0.01) as (x, y, _, _):
        await exchange(x, y, (200_000, 200_000))


async def test_the_first_syn_and_syn_ack_may_be_lost():
    class Loser(Network):
        to_lose = 2

        def send(self, p: Packet, remote: utp.Address) -> None:
            if p.kind in (SYN, STATE) and self.to_lose:
                self.to_lose -= 1
                return
            super().send(p, remote)

    a, b = Loser(("127.0.0.1", 0)), Loser(("127.0.0.1", 0))
    start = asyncio.get_running_loop().time()
    x = await a.connect(*b.address)
    assert asyncio.get_running_loop().time() - start < 0.6
    await exchange(x, await b.accept(), (10_000, 10_000))
    a.close()
    b.close()


async def test_the_acceptor_may_speak_first():
    async with pair() as (x, y, _, _):
        y.write(b"220 ready")
        assert await asyncio.wait_for(x.read(), 2) == b"220 ready"


async def test_half_close():
    async with pair() as (x, y, _, _):
        x.write(b"question")
        x.write_eof()
        assert await asyncio.wait_for(receive(y), 2) == b"question"
        with pytest.raises(OSError, match="ended"):
            x.write(b"more")
        await asyncio.sleep(0.1)
        y.write(b"answer")
        y.write_eof()
        assert await asyncio.wait_for(receive(x), 2) == b"answer"


async def test_a_slow_reader_stops_the_writer():
    async with pair() as (x, y, _, _):
        written = 0

        async def write() -> None:
            nonlocal written
            for _ in range(200):
                x.write(bytes(50_000))
                written += 50_000
                await x.drain()
            x.write_eof()

        writing = asyncio.ensure_future(write())
        await asyncio.sleep(1)
        assert written < stream.RECEIVE_BUFFER + 2 * stream.SEND_BUFFER
        assert len(y._received) + y._early_size <= stream.RECEIVE_BUFFER + 50_000
        assert len(await asyncio.wait_for(receive(y), 20)) == 10_000_000
        await writing


async def test_a_reset_ends_both_directions():
    async with pair() as (x, y, a, b):
        y.write(b"x")
        x.reset()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(receive(y), 2)
        assert not a._streams
        assert not b._streams


async def test_nobody_there():
    a, b = Endpoint(("127.0.0.1", 0)), Endpoint(("127.0.0.1", 0))
    b.send = lambda *_: None  # type: ignore[method-assign]
    with pytest.raises(TimeoutError, match="no uTP answer"):
        await a.connect(*b.address, timeout=0.3)
    assert not a._streams
    a.close()
    b.close()


async def test_an_unknown_connection_is_reset():
    async with pair() as (x, y, _, b):
        b.forget(y)
        x.write(b"hello?")
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(x.read(), 2)


async def test_forged_packets_do_no_harm():
    async with pair() as (x, y, a, _):
        stranger = Endpoint(("127.0.0.1", 0))
        for ack in (y._ack, y._next, y._next + 30_000):
            for connection_id in (y.receive_id, y.send_id):
                stranger.send(Packet(RESET, connection_id, 1, 0, 0, 1, ack & 0xFFFF), a._socket.getsockname())
                stranger.send(Packet(FIN, connection_id, 1, 0, 0, 1, ack & 0xFFFF), a._socket.getsockname())
        # from the right address, but with an ack_nr that the true peer cannot have sent
        y._endpoint.send(Packet(RESET, y.send_id, 1, 0, 0, 1, y._ack + 500 & 0xFFFF), y.remote)
        y._endpoint.send(Packet(RESET, y.send_id, 1, 0, 0, 1, y._ack - 500 & 0xFFFF), y.remote)
        y._endpoint.send(Packet(FIN, y.send_id, 1, 0, 0, y._next & 0xFFFF, y._ack + 500 & 0xFFFF), y.remote)
        await exchange(x, y, (50_000, 50_000))
        stranger.close()


async def test_a_syn_flood_is_bounded():
    async with pair() as (x, y, _, b):
        flooder = Endpoint(("127.0.0.1", 0))
        for i in range(2000):
            flooder.send(Packet(SYN, 2 * i, 1, 0, 0, 1, 0), b._socket.getsockname())
            if i % 50 == 0:
                await asyncio.sleep(0)
        await asyncio.sleep(0.1)
        assert len(b._half_open) <= utp.MAX_HALF_OPEN
        await exchange(x, y, (50_000, 50_000))
        flooder.close()


async def test_pings():
    a, b = Endpoint(("127.0.0.1", 0)), Endpoint(("::", 0))
    assert await a.ping("127.0.0.1", b.address[1]) == a.address
    assert (await b.ping(*a.address))[1] == b.address[1]
    a.close()
    b.close()


def test_a_selective_ack_of_any_length_is_taken():
    raw = Packet(STATE, 1, 1, 0, 0, 5, 5, ((1, b"\x01"),)).encode()
    assert decode(raw).extensions == ((1, b"\x01"),)


# --- nodes --------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def nodes(identity_file, address, allow: set[str] | None = None, host: str = "127.0.0.1"):
    """(a, b): a can dial b, which offers `address` as service 7."""
    a = await Node.start(identity_file(), listen=(host, 0))
    b = await Node.start(identity_file(), {7: address}, allow, listen=(host, 0))
    a.add_peer(b.node_id, (host, b.proxy_address[1]))
    try:
        yield a, b
    finally:
        await a.close()
        await b.close()


@pytest.mark.parametrize("host", LOOPBACK)
async def test_a_tunnel(identity_file, host: str):
    async with service(echo) as address, nodes(identity_file, address, host=host) as (a, b):
        await through(a, f"{b.node_id}.keynet:7")
        await through(a, f"{b.node_id}.keynet:0", 0)
        await asyncio.gather(*(through(a, f"{b.node_id}.keynet:7", 100_000) for _ in range(20)))
        where = f"[{host}]" if ":" in host else host
        await through(a, f"{where}:{b.proxy_address[1]}/?nodeId={b.node_id}", 1000)
        await asyncio.sleep(stream.LINGER + 0.5)
        assert not a.endpoint._streams
        assert not b.endpoint._streams
        assert len(b._tasks) == 1, "only the acceptor is left"


async def test_a_server_that_speaks_first(identity_file):
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 ready")
        writer.close()

    async with service(greet) as address, nodes(identity_file, address) as (a, b):
        _, reader, writer = await tunnel(a, f"{b.node_id}.keynet:7")
        assert await asyncio.wait_for(reader.read(), 5) == b"220 ready"
        writer.close()


async def test_refusals(identity_file):
    async with service(echo) as address, nodes(identity_file, address) as (a, b):
        target = f"{b.node_id}.keynet:7"
        assert await status_of(a, target, "wrong") == (407, "credentials_required")
        assert await status_of(a, "nonsense") == (400, "bad_target")
        assert await status_of(a, f"{a.node_id}.keynet:7") == (404, "unknown_node")
        assert await status_of(a, f"{b.node_id}.keynet:8") == (404, "service_not_found")
        a.add_peer(a.node_id, ("127.0.0.1", b.proxy_address[1]))
        assert await status_of(a, f"{a.node_id}.keynet:7") == (502, "identity_mismatch")
        b.allow = {b.node_id}
        assert await status_of(a, target) == (403, "access_denied")
        b.allow = {a.node_id}
        await through(a, target, 1000)
    async with nodes(identity_file, address) as (a, b):
        assert await status_of(a, f"{b.node_id}.keynet:7") == (502, "service_refused")


async def test_a_head_that_is_too_large(identity_file):
    async with nodes(identity_file, ("127.0.0.1", 1)) as (a, _):
        reader, writer = await asyncio.open_connection(*a.forward_address)
        writer.write(b"CONNECT x HTTP/1.1\r\n" + b"X: y\r\n" * 5000)
        assert (await asyncio.wait_for(reader.read(40), 5)).startswith(b"HTTP/1.1 431 ")
        writer.close()


async def test_a_rotated_node_is_still_its_old_self(identity_file):
    first = identity_file()
    second = identity_file(first)
    third = identity_file(second)
    async with service(echo) as address:
        b = await Node.start(third, {7: address}, {identity.node_of(first)}, listen=("127.0.0.1", 0))
        a = await Node.start(identity_file(second), listen=("127.0.0.1", 0))
        for path in (first, second, third):
            node = identity.node_of(path)
            a.add_peer(node, b.proxy_address)
            await through(a, f"{node}.keynet:7", 1000)
        await a.close()
        await b.close()


async def test_certificates_that_break_a_rule(identity_file, tmp_path: Path):
    import datetime

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
    )

    now = datetime.datetime.now(datetime.timezone.utc)
    day = datetime.timedelta(days=1)

    def chain(*steps: tuple[int, int, str, str], dates=(now - day, now + day)) -> list[bytes]:
        """Certificates from (key, signing key, subject or "", issuer or ""), keys by number."""
        keys = {n: Ed25519PrivateKey.generate() for step in steps for n in step[:2]}
        text = {
            n: identity.node_text(k.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)) for n, k in keys.items()
        }
        built = [
            identity.issue(subject or text[key], issuer or text[by], keys[key].public_key(), *dates)
            .sign(keys[by], None)
            .public_bytes(Encoding.DER)
            for key, by, subject, issuer in steps
        ]
        pem = keys[steps[0][0]].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        for der in built:
            pem += b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"
        (tmp_path / "bad.pem").write_bytes(pem)
        return built

    assert len(identity.judge(chain((1, 2, "", ""), (2, 2, "", "")))) == 2
    bad = {
        "certificate_missing": [],
        "certificate_invalid": [b"\x30\x00"],
        "certificate_expired": chain((1, 1, "", ""), dates=(now - 2 * day, now - day)),
        "chain_broken": chain((1, 3, "", ""), (2, 2, "", "")),
        "chain_too_long": chain(*((n, n + 1, "", "") for n in range(16)), (16, 16, "", "")),
        "name_mismatch": chain((1, 1, identity.node_text(bytes(32)), "")),
    }
    for reason, certificates in bad.items():
        with pytest.raises(identity.Rejected) as rejected:
            identity.judge(certificates)
        assert rejected.value.reason == reason
    with pytest.raises(identity.Rejected, match="not signed by"):
        identity.judge(chain((1, 2, "", "")))
    # the whole way: bad.pem now holds a certificate of another than the last key, and the peer notices
    async with service(echo) as address:
        b = await Node.start(tmp_path / "bad.pem", {7: address}, listen=("127.0.0.1", 0))
        a = await Node.start(identity_file(), listen=("127.0.0.1", 0))
        a.add_peer(b.node_id, b.proxy_address)
        assert await status_of(a, f"{b.node_id}.keynet:7") == (502, "chain_broken")
        await a.close()
        await b.close()


async def test_a_dialler_without_a_valid_chain_gets_no_service(identity_file):
    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise AssertionError("the service was dialled")

    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    rotated = identity_file(identity_file())
    leaf = x509.load_pem_x509_certificates(rotated.read_bytes())[0].public_bytes(Encoding.PEM)
    rotated.write_bytes(rotated.read_bytes().split(b"-----BEGIN CERT")[0] + leaf)
    async with service(never) as address, nodes(identity_file, address) as (a, b):
        a.identity_file = rotated
        status, reason = await status_of(a, f"{b.node_id}.keynet:7")
        assert (status, reason) == (502, "peer_reset")


async def test_keyed_pings_between_nodes(identity_file):
    async with service(echo) as address, nodes(identity_file, address) as (a, b):
        await through(a, f"{b.node_id}.keynet:7", 1000)
        (keys_a,), (keys_b,) = a.endpoint.sessions.values(), b.endpoint.sessions.values()
        assert keys_a.key == keys_b.key
        assert (keys_a.local_name, keys_a.remote_name) == (keys_b.remote_name, keys_b.local_name)
        assert await a.endpoint.ping(*b.proxy_address, keys_a) == a.proxy_address
        assert await b.endpoint.ping(*a.proxy_address, keys_b) == b.proxy_address
        with pytest.raises(asyncio.TimeoutError):
            await a.endpoint.ping(*b.proxy_address, keys_a._replace(key=bytes(32)), timeout=0.2)


async def test_a_reset_goes_all_the_way(identity_file):
    seen: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    async def watch(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.read(1 << 16):
                pass
            seen.set_result(False)
        except ConnectionResetError:
            seen.set_result(True)
        writer.close()

    async with service(watch) as address, nodes(identity_file, address) as (a, b):
        _, _, writer = await tunnel(a, f"{b.node_id}.keynet:7")
        writer.write(b"x")
        await writer.drain()
        abort(writer)
        assert await asyncio.wait_for(seen, 5), "the service saw an orderly end"

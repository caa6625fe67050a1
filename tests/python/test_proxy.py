"""Life of a proxy: options, start, close, lookups, events; sync and async."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import pathlib
import socket
import threading
from collections.abc import Iterator

import pytest

import keynet
from support import SERVICE, pair, proxy, sync_pair, sync_proxy


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"services": {50051: "127.0.0.1:1"}}, "allow="),
        ({"services": {0: "127.0.0.1:1"}, "allow": keynet.ANYONE}, "port 0"),
        ({"services": {70000: "127.0.0.1:1"}, "allow": keynet.ANYONE}, "port 70000"),
        ({"services": {1: "nonsense"}, "allow": keynet.ANYONE}, "nonsense"),
        ({"allow": "v" * 53}, "several"),
        ({"allow": ["nobody"]}, "a node id"),
        ({"listen": "localhost"}, "listen"),
        ({"forward": "127.0.0.1"}, "forward"),
        ({"controller": "reno"}, "cubic"),
        ({"limits": {"persistence": 1}}, "persistence"),
        ({"patience": -1.0}, "patience"),
        ({"patience": float("nan")}, "patience"),
        ({"limits": {"dial_timeout": float("nan")}}, "dial_timeout"),
        ({"limits": {"max_clients": 1.5}}, "max_clients"),
        ({"allow_timeout": -1, "allow": lambda request: True}, "allow_timeout"),
        ({"allow": [], "services": {1: "unix:"}}, "unix"),
    ],
)
def test_options_that_make_no_sense_are_refused_at_once(
    alice: keynet.Identity, options: dict[str, object], complaint: str
) -> None:
    with pytest.raises(keynet.InvalidArgument, match=complaint):
        keynet.Proxy(alice, **options)


def test_a_path_is_no_identity() -> None:
    with pytest.raises(keynet.InvalidArgument, match=r"keynet\.Identity"):
        keynet.Proxy("node.pem")


def test_before_and_after(alice: keynet.Identity) -> None:
    node = sync_proxy(alice)
    assert node.node_id == alice.node_id
    for _ in range(2):
        assert not node.is_running
        with pytest.raises(keynet.ProxyClosedError):
            _ = node.forward_address
        with pytest.raises(keynet.ProxyClosedError):
            node.events()
        if node._ended:
            break
        node.start()
        assert node.is_running
        with pytest.raises(keynet.ProxyClosedError):
            node.start()
        node.close()
        node.close()
    with pytest.raises(keynet.ProxyClosedError):
        node.start()


def test_closing_what_never_started(alice: keynet.Identity) -> None:
    sync_proxy(alice).close()


async def test_closing_from_many_tasks(alice: keynet.Identity) -> None:
    async with proxy(alice) as node:
        events = node.events()
        await asyncio.gather(*(node.close() for _ in range(5)))
        assert [type(event) async for event in events] == [keynet.Closed]
        assert "closed" in repr(node)


def test_closing_from_many_threads(alice: keynet.Identity) -> None:
    with sync_proxy(alice) as node:
        threads = [threading.Thread(target=node.close) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert not any(thread.is_alive() for thread in threads)


async def test_an_address_in_use(alice: keynet.Identity) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(keynet.BindError) as caught:
            await keynet.Proxy(alice, forward=f"127.0.0.1:{port}").start()
    assert caught.value.stage is keynet.Stage.SETUP
    assert str(port) in str(caught.value)


async def test_addresses_and_credentials(alice: keynet.Identity, host: str) -> None:
    async with proxy(alice, host, credentials=("me", "p:ss@w/rd")) as node:
        assert node.credentials == ("me", "p:ss@w/rd")
        assert node.forward_address.startswith(host)
        assert node.proxy_address.startswith(host)
        assert node.forward_url == f"http://me:p%3Ass%40w%2Frd@{node.forward_address}"
    async with proxy(alice) as one, proxy(alice) as other:
        assert one.credentials != other.credentials


async def test_peers(alice: keynet.Identity, bob: keynet.Identity) -> None:
    async with proxy(alice) as node:
        node.add_peer(bob.node_id, ["127.0.0.1:5", "[::1]:6"])
        assert node.peers() == {bob.node_id: ("127.0.0.1:5", "[::1]:6")}
        for bad in ("127.0.0.1:5", ["nonsense"], ["host:70000"], ["host:"], [":5"]):
            with pytest.raises(keynet.InvalidArgument):
                node.add_peer(bob.node_id, bad)
        node.remove_peer(bob.node_id)
        assert node.peers() == {}


@contextlib.contextmanager
def speaks_first(greeting: bytes = b"welcome") -> Iterator[tuple[str, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    with server.accept()[0] as connection:
                        connection.sendall(greeting)
                        while data := connection.recv(65536):
                            connection.sendall(data)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}", server
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join(20)


def connect(
    node: keynet.BaseProxy, target: str, credentials: tuple[str, str] | None = None
) -> tuple[socket.socket, bytes]:
    """A CONNECT by hand; the connection and everything up to the empty line."""
    host, _, port = node.forward_address.rpartition(":")
    client = socket.create_connection((host.strip("[]"), int(port)), timeout=30)
    basic = base64.b64encode(":".join(credentials or node.credentials).encode()).decode()
    head = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nProxy-Authorization: Basic {basic}\r\n\r\n"
    client.sendall(head.encode())
    answer = b""
    while b"\r\n\r\n" not in answer and (byte := client.recv(1)):
        answer += byte
    return client, answer


def test_a_connection_from_end_to_end(alice: keynet.Identity, bob: keynet.Identity, host: str) -> None:
    with speaks_first() as (backend, _), sync_pair(alice, bob, backend, host) as (a, b):
        there, here = b.events(), a.events()
        client, head = connect(a, f"{bob.node_id}.keynet:{SERVICE}")
        with client:
            assert head.startswith(b"HTTP/1.1 200 ")
            assert client.recv(7, socket.MSG_WAITALL) == b"welcome"
            client.sendall(b"payload")
            assert client.recv(7, socket.MSG_WAITALL) == b"payload"

            (mine,) = a.connections(bob.node_id)
            (theirs,) = b.connections()
            name = client.getsockname()
            assert mine.client_address == (f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}")
            assert (mine.role, theirs.role) == (keynet.Role.FORWARD, keynet.Role.REVERSE)
            assert (mine.node_id, theirs.node_id) == (bob.node_id, alice.node_id)
            assert theirs.server_address == backend
            assert theirs.service_port == mine.service_port == SERVICE
            assert a.connection_by_client(mine.client_address).id == mine.id
            assert b.connection_by_reverse(theirs.reverse_address).id == theirs.id
            assert b.connection_by_reverse("127.0.0.1:1") is None
            assert mine.is_open
            assert (mine.priority, theirs.priority) == (keynet.Priority.INTERACTIVE, keynet.Priority.INTERACTIVE)
            assert a.set_priority(mine.id, "background")
            (mine,), (theirs,) = a.connections(), b.connections()
            assert (mine.priority, theirs.priority) == (keynet.Priority.BACKGROUND, keynet.Priority.INTERACTIVE)
            assert a.set_priority(mine.id, keynet.Priority.INTERACTIVE)
            assert not a.set_priority(mine.id + 1, "background")
            with pytest.raises(keynet.InvalidArgument, match="priority"):
                a.set_priority(mine.id, "urgent")
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""
        kinds = {}
        for events in (here, there):
            while not isinstance(event := events.next(20), keynet.ConnectionClosed):
                kinds[type(event)] = event
            assert event.connection.reason is keynet.Reason.FINISHED
            assert event.connection.closed is not None
        assert keynet.ConnectionOpened in kinds
        assert keynet.PeerConnected in kinds
        assert (event.connection.bytes_in, event.connection.bytes_out) == (7, 14)
        # still known for a while
        assert b.connection_by_reverse(theirs.reverse_address).reason is keynet.Reason.FINISHED
        assert a.connections() == []


async def test_ping(alice: keynet.Identity, bob: keynet.Identity, host: str) -> None:
    async with pair(alice, bob, "127.0.0.1:1", host) as (a, b):
        report = await a.ping(b.node_id)
        assert report.node_id == b.node_id
        assert report.address == b.proxy_address
        assert 0 < report.rtt < 5
        assert "1.3" in report.tls_version or "1_3" in report.tls_version
        assert "MLKEM" in report.tls_group.upper()
        assert (await a.ping(b.node_id)).resumed in (True, False)
        assert isinstance(a.stats(), dict)
        assert all(isinstance(value, int) for value in a.stats().values())


async def test_expect(alice: keynet.Identity, bob: keynet.Identity, host: str) -> None:
    async with proxy(alice, host) as a, proxy(bob, host) as b:
        a.add_peer(b.node_id, [b.proxy_address])
        b.add_peer(a.node_id, [a.proxy_address])
        path = await b.expect(a.node_id, timeout=20)
        assert path.address == a.proxy_address
        assert path.observed in (None, b.proxy_address)


async def test_rotation_while_it_runs(bob: keynet.Identity, host: str) -> None:
    old = keynet.Identity.generate()
    new = old.rotate()
    async with pair(bob, old, "127.0.0.1:1", host) as (a, b):
        assert (await a.ping(old.node_id)).node_id == old.node_id
        b.rotate(new)
        assert b.node_id == new.node_id
        assert (await a.ping(old.node_id)).node_id == new.node_id


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_a_static_forward(
    alice: keynet.Identity, bob: keynet.Identity, tmp_path: pathlib.Path, kind: str, host: str
) -> None:
    with speaks_first() as (backend, _):
        async with pair(alice, bob, backend, host) as (a, _b):
            local = f"{host}:0" if kind == "tcp" else f"unix:{tmp_path}/local"
            async with await a.forward(bob.node_id, SERVICE, local=local) as forward:
                at = forward.address.rpartition(":")[0].strip("[]"), forward.address.rpartition(":")[2]
                if kind == "tcp":
                    reader, writer = await asyncio.open_connection(*at)
                else:
                    assert forward.address == local
                    reader, writer = await asyncio.open_unix_connection(local.removeprefix("unix:"))
                assert await asyncio.wait_for(reader.readexactly(7), 20) == b"welcome"
                writer.close()
            again = (
                asyncio.open_connection(*at)
                if kind == "tcp"
                else asyncio.open_unix_connection(local.removeprefix("unix:"))
            )
            with pytest.raises(OSError):
                await again


def test_wrong_credentials(alice: keynet.Identity, bob: keynet.Identity, host: str) -> None:
    with sync_proxy(alice, host) as node:
        client, head = connect(node, f"{bob.node_id}.keynet:1", ("me", "wrong"))
        client.close()
        assert head.startswith(b"HTTP/1.1 407 ")


def test_services_change_while_it_runs(alice: keynet.Identity, bob: keynet.Identity) -> None:
    with speaks_first(b"one") as (one, _), speaks_first(b"two") as (two, _), sync_pair(alice, bob, one) as (a, b):
        for backend, expected in ((one, b"one"), (two, b"two")):
            b.set_service(SERVICE, backend)
            client, _head = connect(a, f"{bob.node_id}.keynet:{SERVICE}")
            with client:
                assert client.recv(3, socket.MSG_WAITALL) == expected
        b.set_service(SERVICE, None)
        client, head = connect(a, f"{bob.node_id}.keynet:{SERVICE}")
        client.close()
        assert head.startswith(b"HTTP/1.1 404 ")
        assert a.last_error(bob.node_id).reason is keynet.Reason.SERVICE_NOT_FOUND


def test_events_that_nobody_reads_are_dropped_and_counted(alice: keynet.Identity, bob: keynet.Identity) -> None:
    with sync_proxy(alice, limits={"event_queue": 4}) as node:
        events = node.events()
        for _ in range(20):
            client, _head = connect(node, f"{bob.node_id}.keynet:1")
            client.close()
        node.close()
        seen = list(events)
        assert any(isinstance(event, keynet.EventsDropped) and event.count > 0 for event in seen)
        assert isinstance(seen[-1], keynet.Closed)


def test_waiting_for_an_event_has_an_end(alice: keynet.Identity) -> None:
    with sync_proxy(alice) as node:
        events = node.events()
        with pytest.raises(TimeoutError):
            events.next(0.05)
        node.close()
        assert isinstance(events.next(5), keynet.Closed)
        assert events.next(5) is None


def test_a_service_with_a_patience_of_its_own_is_given_as_an_object_or_as_text() -> None:
    service = keynet.Service("unix:/run/web.sock", patience=300)
    assert str(service) == "unix:/run/web.sock,patience=300"
    assert str(keynet.Service("127.0.0.1:8000")) == "127.0.0.1:8000"
    keynet.Proxy(keynet.Identity.generate(), services={1: service, 2: str(service)}, allow=keynet.ANYONE)
    for wrong in (
        keynet.Service("127.0.0.1:8000", patience=1.5),
        keynet.Service("127.0.0.1:8000", patience=-1),
        "x,patience=3",
    ):
        with pytest.raises(keynet.InvalidArgument):
            keynet.Proxy(keynet.Identity.generate(), services={1: wrong}, allow=keynet.ANYONE)

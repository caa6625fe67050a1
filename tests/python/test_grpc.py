"""gRPC through two nodes: all four kinds of calls, sync and aio, IPv4 and IPv6; who calls; why it failed."""

from __future__ import annotations

import pathlib
from typing import Any

import grpc
import grpc.aio
import pytest

import keynet
import keynet.grpc
from keynet.demo import greeter_pb2 as pb
from keynet.demo import greeter_pb2_grpc as rpc
from support import SERVICE, AskingGreeter, aio_greeter, greeter, pair, say_hello, sync_pair, sync_proxy

pytestmark = pytest.mark.usefixtures("host")

NAMES = ["Ada", "Grace", "Barbara"]


def call_all(channel: grpc.Channel, caller: str) -> None:
    """All four kinds; the server must know who calls in each."""
    stub = rpc.GreeterStub(channel)
    reply = stub.SayHello(pb.HelloRequest(name="Ada"), timeout=30)
    assert (reply.message, reply.caller) == ("Hello, Ada!", caller)
    numbers = stub.Countdown(pb.CountdownRequest(count=3, payload_size=100_000), timeout=30)
    assert [number.value for number in numbers] == [3, 2, 1]
    total = stub.Sum((pb.Number(value=n, payload=b"x" * 100_000) for n in range(5)), timeout=30)
    assert (total.sum, total.bytes) == (10, 500_000)
    replies = list(stub.Chat((pb.HelloRequest(name=name) for name in NAMES), timeout=30))
    assert [reply.message for reply in replies] == [f"Hello, {name}!" for name in NAMES]
    assert {reply.caller for reply in replies} == {caller}


async def call_all_aio(channel: grpc.aio.Channel, caller: str) -> None:
    stub = rpc.GreeterStub(channel)
    reply = await stub.SayHello(pb.HelloRequest(name="Ada"), timeout=30)
    assert (reply.message, reply.caller) == ("Hello, Ada!", caller)
    numbers = stub.Countdown(pb.CountdownRequest(count=3, payload_size=100_000), timeout=30)
    assert [number.value async for number in numbers] == [3, 2, 1]
    total = await stub.Sum((pb.Number(value=n, payload=b"x" * 100_000) for n in range(5)), timeout=30)
    assert (total.sum, total.bytes) == (10, 500_000)
    replies = [reply async for reply in stub.Chat((pb.HelloRequest(name=name) for name in NAMES), timeout=30)]
    assert [reply.message for reply in replies] == [f"Hello, {name}!" for name in NAMES]
    assert {reply.caller for reply in replies} == {caller}


@pytest.mark.parametrize("intercepted", [False, True], ids=["bare", "interceptor"])
def test_all_kinds(alice: keynet.Identity, bob: keynet.Identity, host: str, intercepted: bool) -> None:
    interceptors = [keynet.grpc.server_interceptor()] if intercepted else []
    with (
        greeter(f"{host}:0", *interceptors) as backend,
        sync_pair(alice, bob, backend, host) as (a, _b),
        keynet.grpc.channel(a, bob.node_id, SERVICE) as channel,
    ):
        call_all(channel, alice.node_id)


@pytest.mark.parametrize("intercepted", [False, True], ids=["bare", "interceptor"])
async def test_all_kinds_aio(alice: keynet.Identity, bob: keynet.Identity, host: str, intercepted: bool) -> None:
    interceptors = [keynet.grpc.aio_server_interceptor()] if intercepted else []
    async with (
        aio_greeter(f"{host}:0", *interceptors) as backend,
        pair(alice, bob, backend, host) as (a, _b),
        keynet.grpc.aio_channel(a, bob.node_id, SERVICE) as channel,
    ):
        await call_all_aio(channel, alice.node_id)


def test_a_unix_backend(alice: keynet.Identity, bob: keynet.Identity, tmp_path: pathlib.Path) -> None:
    with (
        greeter(f"unix:{tmp_path}/greeter") as backend,
        sync_pair(alice, bob, backend) as (a, _b),
        keynet.grpc.channel(a, bob.node_id, SERVICE) as channel,
    ):
        call_all(channel, alice.node_id)


def test_the_public_option(alice: keynet.Identity, bob: keynet.Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stock client that was only told a proxy URL and a name."""
    for name in ("no_grpc_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with greeter("127.0.0.1:0") as backend, sync_pair(alice, bob, backend) as (a, _b):
        options = [("grpc.http_proxy", a.forward_url)]
        with grpc.insecure_channel(keynet.grpc.target(bob.node_id, SERVICE), options) as channel:
            call_all(channel, alice.node_id)


def test_the_environment_cannot_redirect(
    alice: keynet.Identity, bob: keynet.Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pins the inner channel arguments that `channel_options` relies on."""
    for name in ("no_grpc_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "*, 127.0.0.1, localhost, .keynet, keynet")
    for name in ("grpc_proxy", "http_proxy", "https_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with (
        greeter("127.0.0.1:0") as backend,
        sync_pair(alice, bob, backend) as (a, _b),
        keynet.grpc.channel(a, bob.node_id, SERVICE) as channel,
    ):
        call_all(channel, alice.node_id)


def test_call_credentials(alice: keynet.Identity, bob: keynet.Identity) -> None:
    class Greeter(AskingGreeter):
        def caller(self, context: Any) -> str:
            return dict(context.invocation_metadata())["authorization"]

    with sync_proxy(alice) as a, sync_proxy(bob, services={1: "127.0.0.1:1"}, allow=keynet.ANYONE) as b:
        server = grpc.server(__import__("concurrent.futures").futures.ThreadPoolExecutor(4))
        rpc.add_GreeterServicer_to_server(Greeter(), server)
        port = server.add_secure_port("127.0.0.1:0", grpc.local_server_credentials())
        server.start()
        b.set_service(SERVICE, f"127.0.0.1:{port}")
        a.add_peer(bob.node_id, [b.proxy_address])
        local = grpc.composite_channel_credentials(
            grpc.local_channel_credentials(), grpc.access_token_call_credentials("secret")
        )
        with keynet.grpc.channel(a, bob.node_id, SERVICE, credentials=local) as channel:
            assert rpc.GreeterStub(channel).SayHello(pb.HelloRequest(), timeout=30).caller == "Bearer secret"
        server.stop(None).wait()


def test_own_options_win(alice: keynet.Identity, bob: keynet.Identity) -> None:
    with sync_proxy(alice) as a:
        ours = keynet.grpc.channel_options(a, bob.node_id)
        merged = keynet.grpc._merged(ours, [("grpc.max_reconnect_backoff_ms", 1)])
        assert dict(merged)["grpc.max_reconnect_backoff_ms"] == 1
        assert len(merged) == len(ours)


# -- who calls


def test_a_stranger_is_nobody(alice: keynet.Identity, bob: keynet.Identity) -> None:
    """A local program that goes to the server directly, beside a node that runs."""

    class Greeter(AskingGreeter):
        def caller(self, context: Any) -> str:
            with pytest.raises(keynet.grpc.UnknownPeer):
                keynet.grpc.peer(context)
            with pytest.raises(keynet.grpc.UnknownPeer):
                keynet.grpc.current_peer()
            return "nobody"

    with (
        greeter("127.0.0.1:0", keynet.grpc.server_interceptor(required=False), servicer=Greeter()) as backend,
        sync_pair(alice, bob, backend),
        grpc.insecure_channel(backend, [("grpc.enable_http_proxy", 0)]) as channel,
    ):
        assert rpc.GreeterStub(channel).SayHello(pb.HelloRequest(), timeout=30).caller == "nobody"


def test_an_interceptor_turns_strangers_away(alice: keynet.Identity, bob: keynet.Identity) -> None:
    with (
        greeter("127.0.0.1:0", keynet.grpc.server_interceptor()) as backend,
        sync_pair(alice, bob, backend),
        grpc.insecure_channel(backend, [("grpc.enable_http_proxy", 0)]) as channel,
    ):
        stub = rpc.GreeterStub(channel)
        calls = [
            lambda: stub.SayHello(pb.HelloRequest(), timeout=30),
            lambda: list(stub.Countdown(pb.CountdownRequest(count=1), timeout=30)),
            lambda: stub.Sum(iter([pb.Number()]), timeout=30),
            lambda: list(stub.Chat(iter([pb.HelloRequest()]), timeout=30)),
        ]
        for call in calls:
            with pytest.raises(grpc.RpcError) as caught:
                call()
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_an_aio_interceptor_turns_strangers_away(alice: keynet.Identity, bob: keynet.Identity) -> None:
    async with (
        aio_greeter("127.0.0.1:0", keynet.grpc.aio_server_interceptor()) as backend,
        pair(alice, bob, backend),
        grpc.aio.insecure_channel(backend, [("grpc.enable_http_proxy", 0)]) as channel,
    ):
        stub = rpc.GreeterStub(channel)
        for call in (
            stub.SayHello(pb.HelloRequest(), timeout=30),
            stub.Sum(iter([pb.Number()]), timeout=30),
            stub.Countdown(pb.CountdownRequest(count=1), timeout=30).read(),
            stub.Chat(iter([pb.HelloRequest()]), timeout=30).read(),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                await call
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_the_caller_is_known_deep_inside(alice: keynet.Identity, bob: keynet.Identity) -> None:
    class Greeter(AskingGreeter):
        def caller(self, context: Any) -> str:
            info = keynet.grpc.current_peer()
            assert info == keynet.grpc.peer(context)
            assert info.service_port == SERVICE
            return info.node_id

        def Countdown(self, request: Any, context: Any) -> Any:  # noqa: N802
            for number in super().Countdown(request, context):
                assert keynet.grpc.current_peer().node_id == alice.node_id
                yield number

    with (
        greeter("127.0.0.1:0", keynet.grpc.server_interceptor(), servicer=Greeter()) as backend,
        sync_pair(alice, bob, backend) as (a, _b),
        keynet.grpc.channel(a, bob.node_id, SERVICE) as channel,
    ):
        call_all(channel, alice.node_id)
    with pytest.raises(keynet.grpc.UnknownPeer):
        keynet.grpc.current_peer()


def test_two_callers_at_once(alice: keynet.Identity, bob: keynet.Identity, mallory: keynet.Identity) -> None:
    with (
        greeter("127.0.0.1:0") as backend,
        sync_pair(alice, bob, backend, allow=[alice.node_id, mallory.node_id]) as (a, b),
        sync_proxy(mallory) as m,
    ):
        m.add_peer(bob.node_id, [b.proxy_address])
        with (
            keynet.grpc.channel(a, bob.node_id, SERVICE) as one,
            keynet.grpc.channel(m, bob.node_id, SERVICE) as other,
        ):
            for _ in range(20):
                call_all(one, alice.node_id)
                call_all(other, mallory.node_id)


def test_addresses_as_grpc_writes_them() -> None:
    assert keynet.grpc._address("ipv4:127.0.0.1:5") == "127.0.0.1:5"
    assert keynet.grpc._address("ipv6:%5B::1%5D:5") == "[::1]:5"
    assert keynet.grpc._address("unix-abstract:keynet/1/2") == "unix-abstract:keynet/1/2"


# -- why it failed


def failure(
    node: keynet.BaseProxy, server: str, port: int = SERVICE
) -> tuple[grpc.StatusCode, keynet.grpc.Explanation]:
    with keynet.grpc.channel(node, server, port) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            rpc.GreeterStub(channel).SayHello(pb.HelloRequest(), timeout=60)
        explanation = keynet.grpc.explain(caught.value, node, server)
    return caught.value.code(), explanation


def ping_error(node: keynet.sync.Proxy, server: str) -> keynet.KeynetError:
    with pytest.raises(keynet.KeynetError) as caught:
        node.ping(server)
    return caught.value


UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


def test_an_unknown_node(alice: keynet.Identity, bob: keynet.Identity) -> None:
    with sync_proxy(alice) as a:
        assert isinstance(ping_error(a, bob.node_id), keynet.UnknownNode)
        code, why = failure(a, bob.node_id)
        assert code is UNAVAILABLE
        assert why.http_status == 404
        assert isinstance(why.cause, keynet.UnknownNode)
        assert "add_peer" in str(why)


def test_without_saying_which_node(alice: keynet.Identity, bob: keynet.Identity, mallory: keynet.Identity) -> None:
    with sync_proxy(alice) as a:
        for n, server in enumerate((bob, mallory)):
            with keynet.grpc.channel(a, server.node_id) as channel, pytest.raises(grpc.RpcError) as caught:
                rpc.GreeterStub(channel).SayHello(pb.HelloRequest(), timeout=30)
            why = keynet.grpc.explain(caught.value, a)
            assert "unknown node" in why.text
            assert server.node_id in why.text
            # with two of them only the caller can know which
            assert (why.cause is None) == (n == 1)


def test_wrong_credentials_are_explained(alice: keynet.Identity, bob: keynet.Identity) -> None:
    with sync_proxy(alice) as a:
        options = [("grpc.http_connect_headers", "Proxy-Authorization:Basic bWU6d3Jvbmc=")]
        with keynet.grpc.channel(a, bob.node_id, options=options) as channel, pytest.raises(grpc.RpcError) as caught:
            rpc.GreeterStub(channel).SayHello(pb.HelloRequest(), timeout=30)
        cause = keynet.grpc.explain(caught.value, a, bob.node_id).cause
        assert isinstance(cause, keynet.RequestError)
        assert cause.reason is keynet.Reason.CREDENTIALS_REQUIRED


def test_another_node_at_the_address(alice: keynet.Identity, bob: keynet.Identity, mallory: keynet.Identity) -> None:
    with sync_pair(alice, bob, "127.0.0.1:1") as (a, b):
        a.add_peer(mallory.node_id, [b.proxy_address])
        error = ping_error(a, mallory.node_id)
        assert isinstance(error, keynet.IdentityMismatch)
        assert error.stage is keynet.Stage.TLS
        assert error.node_id == mallory.node_id
        code, why = failure(a, mallory.node_id)
        assert code is UNAVAILABLE
        assert why.http_status == 502
        assert isinstance(why.cause, keynet.IdentityMismatch)


def test_not_on_the_list(bob: keynet.Identity, alice: keynet.Identity, mallory: keynet.Identity) -> None:
    with greeter("127.0.0.1:0") as backend, sync_pair(mallory, bob, backend, allow=[alice.node_id]) as (m, b):
        events = b.events()
        code, why = failure(m, bob.node_id)
        assert code is UNAVAILABLE
        assert why.http_status == 403
        assert isinstance(why.cause, keynet.AccessDenied)
        assert why.cause.stage is keynet.Stage.OPEN
        while not isinstance(event := events.next(20), keynet.ConnectionRefused):
            pass
        assert (event.node_id, event.service_port) == (mallory.node_id, SERVICE)
        assert isinstance(event.error, keynet.AccessDenied)


def test_no_such_service(alice: keynet.Identity, bob: keynet.Identity) -> None:
    with sync_pair(alice, bob, "127.0.0.1:1") as (a, _b):
        code, why = failure(a, bob.node_id, 9)
        assert code is UNAVAILABLE
        assert why.http_status == 404
        assert isinstance(why.cause, keynet.ServiceNotFound)


def test_a_server_that_does_not_run(alice: keynet.Identity, bob: keynet.Identity) -> None:
    with greeter("127.0.0.1:0") as backend:
        pass
    with sync_pair(alice, bob, backend) as (a, _b):
        code, why = failure(a, bob.node_id)
        assert code is UNAVAILABLE
        assert why.http_status == 502
        assert isinstance(why.cause, keynet.ServiceRefused)


def test_an_expired_certificate(alice: keynet.Identity) -> None:
    import datetime

    expired = keynet.Identity.generate(now=datetime.datetime(1990, 1, 1, tzinfo=datetime.timezone.utc))
    with sync_pair(alice, expired, "127.0.0.1:1") as (a, _b):
        assert isinstance(ping_error(a, expired.node_id), keynet.CertificateExpired)
    with sync_pair(expired, alice, "127.0.0.1:1") as (e, _b):
        assert isinstance(ping_error(e, alice.node_id), keynet.TlsError)


def test_nobody_answers(alice: keynet.Identity, bob: keynet.Identity, host: str) -> None:
    import socket

    with (
        socket.socket(socket.AF_INET6 if "[" in host else socket.AF_INET, socket.SOCK_DGRAM) as silent,
        sync_proxy(alice, limits={"dial_timeout": 1.0}) as a,
    ):
        silent.bind((host.strip("[]"), 0))
        a.add_peer(bob.node_id, [f"{host}:{silent.getsockname()[1]}"])
        with pytest.raises(keynet.DialTimeout):
            a.ping(bob.node_id, timeout=1.0)
        code, why = failure(a, bob.node_id)
        assert code is UNAVAILABLE
        assert why.http_status == 504
        assert isinstance(why.cause, keynet.DialTimeout)


def test_what_the_server_says_is_the_servers(alice: keynet.Identity, bob: keynet.Identity) -> None:
    class Greeter(AskingGreeter):
        def caller(self, context: Any) -> str:
            return context.abort(grpc.StatusCode.NOT_FOUND, "no such person")

    with greeter("127.0.0.1:0", servicer=Greeter()) as backend, sync_pair(alice, bob, backend) as (a, _b):
        code, why = failure(a, bob.node_id)
        assert code is grpc.StatusCode.NOT_FOUND
        assert why.cause is None
        assert "no such person" in why.text


def test_explaining_with_a_closed_proxy(alice: keynet.Identity, bob: keynet.Identity) -> None:
    with sync_proxy(alice) as a:
        channel = keynet.grpc.channel(a, bob.node_id)
    with channel:
        with pytest.raises(grpc.RpcError) as caught:
            rpc.GreeterStub(channel).SayHello(pb.HelloRequest(), timeout=30)
        assert isinstance(keynet.grpc.explain(caught.value, a).cause, keynet.ProxyClosedError)


async def test_a_call_that_ends_well_ends_its_connection_well(alice: keynet.Identity, bob: keynet.Identity) -> None:
    """On both sides: a client of HTTP/2 closes without reading the last pings and window updates."""
    async with aio_greeter("127.0.0.1:0") as backend, pair(alice, bob, backend) as (caller, server):
        for _ in range(5):
            streams = caller.events(), server.events()
            await say_hello(caller, bob.node_id)
            for events in streams:
                async for event in events:
                    if isinstance(event, keynet.ConnectionClosed):
                        assert event.connection.reason == "finished", event.connection.role
                        break

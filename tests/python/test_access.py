"""allow=: lists, functions, coroutines; whatever goes wrong with a function denies."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import socket
import threading
import time
from typing import Any

import grpc
import pytest

import keynet
import keynet.grpc
from keynet.demo import greeter_pb2 as pb
from keynet.demo import greeter_pb2_grpc as rpc
from support import SERVICE, greeter, pair, sync_pair, sync_proxy

pytestmark = pytest.mark.usefixtures("host")


def allowed(node: keynet.BaseProxy, server: str) -> bool:
    """Whether a call gets through; it must not fail in any other way than by being denied."""
    # a pool of its own: it must not find the connection that was refused a moment ago, waiting for its next attempt
    options = [("grpc.use_local_subchannel_pool", 1)]
    with keynet.grpc.channel(node, server, SERVICE, options=options) as channel:
        try:
            rpc.GreeterStub(channel).SayHello(pb.HelloRequest(), timeout=30)
        except grpc.RpcError as error:
            why = keynet.grpc.explain(error, node, server)
            assert isinstance(why.cause, keynet.AccessDenied), why
            return False
        return True


def test_lists(alice: keynet.Identity, bob: keynet.Identity) -> None:
    with greeter("127.0.0.1:0") as backend, sync_pair(alice, bob, backend, allow=[]) as (a, b):
        assert not allowed(a, bob.node_id)
        b.set_allow([alice.node_id])
        assert allowed(a, bob.node_id)
        b.set_allow(keynet.ANYONE)
        assert allowed(a, bob.node_id)
        b.set_allow([bob.node_id])
        assert not allowed(a, bob.node_id)


def test_an_older_name_counts(bob: keynet.Identity) -> None:
    old = keynet.Identity.generate()
    with greeter("127.0.0.1:0") as backend, sync_pair(old.rotate(), bob, backend, allow=[old.node_id]) as (a, _b):
        assert allowed(a, bob.node_id)


def test_a_function_is_asked(alice: keynet.Identity, bob: keynet.Identity, mallory: keynet.Identity) -> None:
    asked = []

    def allow(request: keynet.AccessRequest) -> bool:
        asked.append(request)
        assert threading.current_thread().name.startswith("keynet-access")
        return request.node_id == alice.node_id

    with (
        greeter("127.0.0.1:0") as backend,
        sync_pair(alice, bob, backend, allow=allow) as (a, b),
        sync_proxy(mallory) as m,
    ):
        m.add_peer(bob.node_id, [b.proxy_address])
        assert allowed(a, bob.node_id)
        assert not allowed(m, bob.node_id)
        assert {request.node_id for request in asked} == {alice.node_id, mallory.node_id}
        assert asked[0].service_port == SERVICE
        assert asked[0].node_ids == (alice.node_id,)
        assert asked[0].remote_address == a.proxy_address
        b.set_allow(lambda request: True)
        assert allowed(m, bob.node_id)


async def test_a_coroutine_is_asked_on_the_loop(alice: keynet.Identity, bob: keynet.Identity) -> None:
    loop = asyncio.get_running_loop()
    verdicts = [True, False]

    async def allow(request: keynet.AccessRequest) -> bool:
        assert asyncio.get_running_loop() is loop
        await asyncio.sleep(0.01)
        return verdicts.pop(0)

    with greeter("127.0.0.1:0") as backend:
        async with pair(alice, bob, backend, allow=allow) as (a, _b):
            assert await asyncio.to_thread(allowed, a, bob.node_id)
            assert not await asyncio.to_thread(allowed, a, bob.node_id)


def raises(request: keynet.AccessRequest) -> bool:
    raise RuntimeError("the database is away")


def says_nothing(request: keynet.AccessRequest) -> Any:
    return None


def yields(request: keynet.AccessRequest) -> Any:
    yield True


async def yields_later(request: keynet.AccessRequest) -> Any:
    yield True


def quibbles(verdict: Any) -> Any:
    return lambda request: verdict


class Undecided:
    def __bool__(self) -> bool:
        raise SystemExit("a bug in a plug-in")


@pytest.mark.parametrize(
    "allow",
    [
        raises,
        says_nothing,
        yields,
        yields_later,
        *map(quibbles, ("no", "false", 1, [False], object(), bool, NotImplemented, Undecided())),
    ],
)
def test_anything_but_yes_denies(
    alice: keynet.Identity, bob: keynet.Identity, allow: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with greeter("127.0.0.1:0") as backend, sync_pair(alice, bob, backend, allow=allow) as (a, _b):
        assert not allowed(a, bob.node_id)
    if allow is raises:
        records = [record for record in caplog.records if record.name == "keynet.access"]
        assert records
        assert records[0].levelno == logging.ERROR
        assert records[0].exc_info


def test_silence_denies(alice: keynet.Identity, bob: keynet.Identity) -> None:
    hold = threading.Event()
    with (
        greeter("127.0.0.1:0") as backend,
        sync_pair(alice, bob, backend, allow=lambda request: hold.wait(20), allow_timeout=0.3) as (a, _b),
    ):
        assert not allowed(a, bob.node_id)
        hold.set()


async def test_an_async_function_that_fails_denies(alice: keynet.Identity, bob: keynet.Identity) -> None:
    async def allow(request: keynet.AccessRequest) -> bool:
        raise RuntimeError("the database is away")

    with greeter("127.0.0.1:0") as backend:
        async with pair(alice, bob, backend, allow=allow) as (a, _b):
            assert not await asyncio.to_thread(allowed, a, bob.node_id)


def test_the_blocking_twin_takes_no_coroutine(bob: keynet.Identity) -> None:
    async def allow(request: keynet.AccessRequest) -> bool:
        return True

    with pytest.raises(keynet.InvalidArgument, match="async"):
        sync_proxy(bob, services={1: "127.0.0.1:1"}, allow=allow).start()
    with sync_proxy(bob) as node, pytest.raises(keynet.InvalidArgument, match="async"):
        node.set_allow(allow)


def test_the_threads_end_with_the_proxy(bob: keynet.Identity) -> None:
    def workers() -> int:
        return sum(thread.name.startswith("keynet-access") for thread in threading.enumerate())

    before = workers()
    with sync_proxy(bob, services={1: "127.0.0.1:1"}, allow=lambda request: True):
        assert workers() > before
    deadline = time.monotonic() + 20
    while workers() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert workers() == before


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError, BaseException])
def test_no_exception_of_the_function_ends_its_thread(
    alice: keynet.Identity, bob: keynet.Identity, error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[keynet.AccessRequest] = []

    def allow(request: keynet.AccessRequest) -> bool:
        asked.append(request)
        if len(asked) <= 6:
            raise error("a bug in a plug-in")
        return True

    with greeter("127.0.0.1:0") as backend, sync_pair(alice, bob, backend, allow=allow) as (a, _b):
        for _ in range(6):
            before = len(asked)
            assert not allowed(a, bob.node_id)
            # gRPC may have tried more than once
            if len(asked) - before > 1 and len(asked) > 6:
                break
        assert allowed(a, bob.node_id)
    records = [record for record in caplog.records if record.name == "keynet.access"]
    assert 0 < len(records) <= 5, "a few tracebacks, not one for each question of a stranger"


@pytest.mark.parametrize("error", [SystemExit, GeneratorExit, asyncio.CancelledError])
async def test_no_exception_of_an_async_function_ends_the_loop(
    alice: keynet.Identity, bob: keynet.Identity, error: type[BaseException]
) -> None:
    async def allow(request: keynet.AccessRequest) -> bool:
        raise error("a bug in a plug-in")

    with greeter("127.0.0.1:0") as backend:
        async with pair(alice, bob, backend, allow=allow) as (a, b):
            assert not await asyncio.to_thread(allowed, a, bob.node_id)
            b.set_allow(keynet.ANYONE)
            assert await asyncio.to_thread(allowed, a, bob.node_id)


def test_a_strangers_questions_are_not_in_a_friends_way(
    alice: keynet.Identity, bob: keynet.Identity, mallory: keynet.Identity
) -> None:
    hold = threading.Event()
    held = threading.Semaphore(0)

    def allow(request: keynet.AccessRequest) -> bool:
        if request.node_id == alice.node_id:
            return True
        held.release()
        hold.wait(60)
        return False

    with (
        greeter("127.0.0.1:0") as backend,
        sync_pair(alice, bob, backend, allow=allow, allow_timeout=30) as (a, b),
        sync_proxy(mallory) as m,
        contextlib.ExitStack() as sockets,
    ):
        # known from now on: behind one address strangers and friends share the places for handshakes otherwise
        assert allowed(a, bob.node_id)
        m.add_peer(bob.node_id, [b.proxy_address])
        with m.forward(bob.node_id, SERVICE) as forward:
            host, _, port = forward.address.rpartition(":")
            for _ in range(60):
                sockets.enter_context(socket.create_connection((host, int(port)), timeout=60))
            for _ in range(3):
                assert held.acquire(timeout=60)
            # sixty questions of the stranger wait or are being answered; the friend is asked about at once
            assert allowed(a, bob.node_id)
            assert not held.acquire(blocking=False), "more than three questions of one node at a time"
            hold.set()


def test_a_denial_is_remembered_for_a_moment(bob: keynet.Identity, mallory: keynet.Identity) -> None:
    asked: list[keynet.AccessRequest] = []

    def allow(request: keynet.AccessRequest) -> bool:
        asked.append(request)
        return False

    with (
        greeter("127.0.0.1:0") as backend,
        sync_pair(mallory, bob, backend, allow=allow) as (m, b),
        m.forward(bob.node_id, SERVICE) as forward,
    ):
        host, _, port = forward.address.rpartition(":")
        started = time.monotonic()
        refused = b.stats()["refused"]
        for _ in range(30):
            # it may be reset before connect() returns
            with (
                contextlib.suppress(OSError),
                socket.create_connection((host, int(port)), timeout=60) as client,
            ):
                client.recv(1)
        took = time.monotonic() - started
        assert b.stats()["refused"] - refused >= 30
        # once a second at most, however long this machine took
        assert len(asked) <= 2 + took


def test_who_leaves_the_list_loses_its_calls_and_is_told_why(alice: keynet.Identity, bob: keynet.Identity) -> None:
    with (
        greeter("127.0.0.1:0") as backend,
        sync_pair(alice, bob, backend, allow=[alice.node_id]) as (a, b),
        keynet.grpc.channel(a, bob.node_id, SERVICE) as channel,
    ):
        events = b.events()
        stub = rpc.GreeterStub(channel)
        names: queue.SimpleQueue[pb.HelloRequest] = queue.SimpleQueue()
        chat = stub.Chat(iter(names.get, None), timeout=120)
        names.put(pb.HelloRequest(name="x"))
        assert next(chat).message == "Hello, x!"
        b.set_allow([], cut=False)
        names.put(pb.HelloRequest(name="y"))
        assert next(chat).message == "Hello, y!"
        b.set_allow([bob.node_id])
        with pytest.raises(grpc.RpcError) as failure:
            next(chat)
        why = keynet.grpc.explain(failure.value, a, bob.node_id)
        assert isinstance(why.cause, PermissionError), why
        ended = next(event for event in events if isinstance(event, keynet.ConnectionClosed))
        assert ended.connection.reason is keynet.Reason.ACCESS_REVOKED
        assert b.disconnect(alice.node_id) == 0


def test_a_key_that_anyone_can_sign_with_is_on_no_list(bob: keynet.Identity) -> None:
    nobody = "v" + "0" * 52
    with pytest.raises(ValueError, match="small order"):
        keynet.NodeId(nobody)
    with pytest.raises(ValueError, match="small order"):
        keynet.NodeId.from_public_key(bytes(32))
    with pytest.raises(ValueError, match="small order"):
        sync_proxy(bob, services={1: "127.0.0.1:1"}, allow=[nobody])

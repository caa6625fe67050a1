"""A channel that a program leaves open does not hold up its proxy, and no call is cut for that."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import weakref

import grpc
import grpc.aio
import pytest

import keynet
import keynet.grpc
from keynet.demo import greeter_pb2 as pb
from keynet.demo import greeter_pb2_grpc as rpc
from keynet.demo.server import Greeter
from support import SERVICE, greeter, proxy, sync_proxy

# longer than any test may take: a proxy that waited for an open channel would never be closed
LONG = {"drain_timeout": 3600.0}
# a guard against hangs, not a measure
HANG = 60


class Patient(Greeter):
    """Its answer comes when it is let go."""

    def __init__(self) -> None:
        self.asked, self.go = threading.Event(), threading.Event()

    def SayHello(self, request: pb.HelloRequest, context: grpc.ServicerContext) -> pb.HelloReply:  # noqa: N802
        if request.name == "slow":
            self.asked.set()
            assert self.go.wait(HANG)
        return pb.HelloReply(message=f"Hello, {request.name}!")


@pytest.fixture
def patient() -> Patient:
    return Patient()


def serving(bob: keynet.Identity, backend: str) -> keynet.sync.Proxy:
    return sync_proxy(bob, services={SERVICE: backend}, allow=keynet.ANYONE)


async def test_an_open_channel_does_not_hold_up_its_proxy(
    alice: keynet.Identity, bob: keynet.Identity, patient: Patient
) -> None:
    with greeter("127.0.0.1:0", servicer=patient) as backend, serving(bob, backend) as b:
        async with proxy(alice, limits=LONG) as a:
            a.add_peer(bob.node_id, [b.proxy_address])
            channel = keynet.grpc.aio_channel(a, bob.node_id, SERVICE)
            await rpc.GreeterStub(channel).SayHello(pb.HelloRequest(name="Ada"), timeout=HANG)
            await asyncio.wait_for(a.close(), HANG)
        b.close(drain=False)


async def test_a_call_on_an_open_channel_is_waited_for(
    alice: keynet.Identity, bob: keynet.Identity, patient: Patient
) -> None:
    with greeter("127.0.0.1:0", servicer=patient) as backend, serving(bob, backend) as b:
        async with proxy(alice, limits=LONG) as a:
            a.add_peer(bob.node_id, [b.proxy_address])
            channel = keynet.grpc.aio_channel(a, bob.node_id, SERVICE)

            async def call() -> str:
                stub = rpc.GreeterStub(channel)
                return (await stub.SayHello(pb.HelloRequest(name="slow"), timeout=HANG)).message

            calling = asyncio.create_task(call())
            assert await asyncio.to_thread(patient.asked.wait, HANG)
            closing = asyncio.create_task(a.close())
            await asyncio.sleep(0.1)
            assert not closing.done()
            patient.go.set()
            assert await calling == "Hello, slow!"
            await asyncio.wait_for(closing, HANG)
        b.close(drain=False)


def close(node: keynet.sync.Proxy) -> threading.Thread:
    thread = threading.Thread(target=node.close, daemon=True)
    thread.start()
    return thread


def test_an_open_blocking_channel_does_not_hold_up_its_proxy(
    alice: keynet.Identity, bob: keynet.Identity, patient: Patient
) -> None:
    with greeter("127.0.0.1:0", servicer=patient) as backend, serving(bob, backend) as b:
        with sync_proxy(alice, limits=LONG) as a:
            a.add_peer(bob.node_id, [b.proxy_address])
            channel = keynet.grpc.channel(a, bob.node_id, SERVICE)
            stub = rpc.GreeterStub(channel)
            # of every kind one, ended in every way
            stub.SayHello(pb.HelloRequest(name="Ada"), timeout=HANG)
            assert len(list(stub.Countdown(pb.CountdownRequest(count=3), timeout=HANG))) == 3
            assert stub.Sum(iter([pb.Number(value=2)]), timeout=HANG).sum == 2
            assert len(list(stub.Chat(iter([pb.HelloRequest(name="Ada")]), timeout=HANG))) == 1
            stub.Countdown(pb.CountdownRequest(count=1_000_000), timeout=HANG).cancel()
            with pytest.raises(grpc.RpcError):
                channel.unary_unary("/nobody/Knows")(b"", timeout=HANG)
            future = stub.SayHello.future(pb.HelloRequest(name="Ada"), timeout=HANG)
            assert future.result().message == "Hello, Ada!"
            thread = close(a)
            thread.join(HANG)
            assert not thread.is_alive()
            with pytest.raises(grpc.RpcError) as caught:
                stub.SayHello(pb.HelloRequest(name="Ada"), timeout=HANG)
            assert isinstance(keynet.grpc.explain(caught.value, a).cause, keynet.ProxyClosedError)
        b.close(drain=False)


def test_a_call_on_an_open_blocking_channel_is_waited_for(
    alice: keynet.Identity, bob: keynet.Identity, patient: Patient
) -> None:
    with greeter("127.0.0.1:0", servicer=patient) as backend, serving(bob, backend) as b:
        with sync_proxy(alice, limits=LONG) as a:
            a.add_peer(bob.node_id, [b.proxy_address])
            channel = keynet.grpc.channel(a, bob.node_id, SERVICE)
            call = rpc.GreeterStub(channel).SayHello.future(pb.HelloRequest(name="slow"), timeout=HANG)
            assert patient.asked.wait(HANG)
            thread = close(a)
            thread.join(0.1)
            assert thread.is_alive()
            patient.go.set()
            assert call.result().message == "Hello, slow!"
            thread.join(HANG)
            assert not thread.is_alive()
        b.close(drain=False)


async def test_what_a_proxy_waits_for_is_said(
    alice: keynet.Identity, bob: keynet.Identity, patient: Patient, caplog: pytest.LogCaptureFixture
) -> None:
    """gRPC keeps a connection for as long as somebody keeps the object of a call, also of one that has ended."""
    with greeter("127.0.0.1:0", servicer=patient) as backend, serving(bob, backend) as b:
        async with proxy(alice, limits=LONG) as a:
            a.add_peer(bob.node_id, [b.proxy_address])
            channel = keynet.grpc.aio_channel(a, bob.node_id, SERVICE)
            call = rpc.GreeterStub(channel).SayHello(pb.HelloRequest(name="Ada"), timeout=HANG)
            await call
            ending = asyncio.create_task(a.close())
            while not (said := [one.getMessage() for one in caplog.records if "closing waits" in one.getMessage()]):
                assert not ending.done()
                await asyncio.sleep(0.05)
            assert f"{bob.node_id.short} service {SERVICE}" in said[0]
            # it is the object that is waited for
            del call
            gc.collect()
            await asyncio.wait_for(ending, HANG)
        b.close(drain=False)


def test_a_channel_that_is_dropped_is_not_kept_by_its_proxy(alice: keynet.Identity, bob: keynet.Identity) -> None:
    with sync_proxy(alice) as a:
        gone = weakref.ref(keynet.grpc.channel(a, bob.node_id))
        gc.collect()
        assert gone() is None


def test_a_forked_child_leaves_the_channels_of_its_parent_alone() -> None:
    program = """if True:
        import os, keynet, keynet.grpc
        with keynet.sync.Proxy(keynet.Identity.generate(), listen="127.0.0.1:0") as proxy:
            channel = keynet.grpc.channel(proxy, keynet.Identity.generate().node_id)
            closed = []
            channel.close = lambda: closed.append(os.getpid())
            child = os.fork()
        if child == 0:
            os._exit(8 if closed else 7)
        assert closed == [os.getpid()]
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=HANG, check=False)
    assert (done.returncode, done.stdout) == (0, "7\n"), done.stderr

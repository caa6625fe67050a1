"""Nodes that know only each other's key, from the package and from the command line."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest

import keynet
import keynet.grpc
import keynet.rendezvous
from keynet.cli import ExitCode
from keynet.demo import greeter_pb2 as pb
from keynet.demo import greeter_pb2_grpc as rpc
from keynet.demo.run import Process
from support import SERVICE, aio_greeter, proxy

# the router of the machine that tests is left alone
QUIET: dict[str, Any] = {"port_mapping": False}


@pytest.fixture
async def rendezvous(mallory: keynet.Identity) -> AsyncIterator[keynet.rendezvous.Server]:
    async with keynet.rendezvous.Server(mallory, listen="127.0.0.1:0") as server:
        yield server


async def registered(node: keynet.Proxy) -> None:
    async with asyncio.timeout(60) if sys.version_info >= (3, 11) else contextlib.AsyncExitStack():
        while not all(one.connected for one in node.status().rendezvous):
            await asyncio.sleep(0.02)


async def test_a_call_by_the_key_alone(
    rendezvous: keynet.rendezvous.Server, alice: keynet.Identity, bob: keynet.Identity
) -> None:
    options = {**QUIET, "rendezvous": [rendezvous.address]}
    async with aio_greeter("127.0.0.1:0") as backend:
        serving = proxy(bob, services={SERVICE: backend}, allow=[alice.node_id], **options)
        async with serving as server, proxy(alice, **options) as caller:
            events = caller.events()
            await registered(server)
            async with keynet.grpc.aio_channel(caller, bob.node_id, SERVICE) as channel:
                call = rpc.GreeterStub(channel).SayHello(pb.HelloRequest(name="Ada"), timeout=60)
                assert (await call).message == "Hello, Ada!"
            # it may have been connected to the rendezvous before anybody listened
            kinds = [type(await anext(events))]
            while keynet.PeerConnected not in kinds:
                kinds.append(type(await anext(events)))
            assert set(kinds) <= {keynet.RendezvousConnected, keynet.ConnectionOpened, keynet.PeerConnected}
            explanation = caller.explain(bob.node_id)
            assert explanation.connected
            assert explanation.meeting is not None
            assert (explanation.meeting.role, explanation.meeting.outcome) == ("dialler", "met")
            assert "Why this path" in explanation.text
            (station,) = caller.status().rendezvous
            assert (station.node_id, station.observed) == (rendezvous.node_id, caller.proxy_address)
            await caller.close(drain=False)
            await server.close(drain=False)


async def test_a_node_that_is_not_there_is_explained(
    rendezvous: keynet.rendezvous.Server, alice: keynet.Identity, bob: keynet.Identity
) -> None:
    async with proxy(alice, **QUIET, rendezvous=[rendezvous.address]) as caller:
        await registered(caller)
        with pytest.raises(keynet.PeerOffline):
            await caller.ping(bob.node_id)
        async with keynet.grpc.aio_channel(caller, bob.node_id) as channel:
            with pytest.raises(grpc.RpcError) as caught:
                await rpc.GreeterStub(channel).SayHello(pb.HelloRequest(name="Ada"), timeout=60)
        why = keynet.grpc.explain(caught.value, caller, bob.node_id)
        assert isinstance(why.cause, keynet.PeerOffline)
        assert caller.explain(bob.node_id).text in why.text
        assert "What to do: " in why.text
        await caller.close(drain=False)


# -- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with tempfile.TemporaryDirectory(prefix="kn", dir="/tmp") as base:
        monkeypatch.setenv("XDG_RUNTIME_DIR", base)
        monkeypatch.setenv("XDG_CACHE_HOME", f"{base}/cache")
        yield


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "keynet", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )


@pytest.mark.usefixtures("runtime")
async def test_leaving_waits_for_no_session_with_a_rendezvous(
    rendezvous: keynet.rendezvous.Server, alice: keynet.Identity
) -> None:
    """Nothing is open, so there is nothing to wait for until the end of the time for that."""
    node = proxy(alice, rendezvous=[rendezvous.address], limits={"drain_timeout": 3600}, **QUIET)
    async with node:
        await registered(node)
        await asyncio.wait_for(node.close(), 60)


async def test_a_dial_that_is_shorter_than_the_registration_says_what_it_waited_for(
    alice: keynet.Identity, bob: keynet.Identity, mallory: keynet.Identity
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        place = f"{mallory.node_id}@127.0.0.1:{silent.getsockname()[1]}"
        async with proxy(alice, rendezvous=[place], limits={"dial_timeout": 1}, **QUIET) as node:
            channel = keynet.grpc.aio_channel(node, bob.node_id)
            with pytest.raises(grpc.aio.AioRpcError):
                await rpc.GreeterStub(channel).SayHello(pb.HelloRequest(name="you"), timeout=30)
            failed = node.last_error(bob.node_id)
            await channel.close()
            assert failed is not None
            assert failed.stage == "rendezvous", failed
            assert failed.reason in ("udp_blocked", "rendezvous_unreachable"), failed


def test_commands_by_the_key_alone(tmp_path: pathlib.Path, bob: keynet.Identity, mallory: keynet.Identity) -> None:
    bob.save(tmp_path / "b.pem")
    flags = ["--listen", "127.0.0.1:0", "--json", "--identity"]
    with Process("keynet", "rendezvous", *flags, str(tmp_path / "r.pem")) as station:
        address = station.expect("ready")["rendezvous"]
        config = tmp_path / "b.toml"
        config.write_text(f'rendezvous = ["{address}"]\nport_mapping = false\nsearch_ports = false\n')
        up = ["up", "--config", str(config), *flags, str(tmp_path / "b.pem")]
        with Process("keynet", *up, "--service", f"{SERVICE}=127.0.0.1:1", "--allow", "anyone") as node:
            ready = node.expect("ready")
            assert ready["rendezvous"] == [address]
            if not ready["registered"]:
                connected = node.expect("rendezvous_connected")
                assert f"{connected['node_id']}@{connected['address']}" == address
            pinged = command("ping", bob.node_id, "--no-port-mapping", "--json", KEYNET_RENDEZVOUS=address)
            assert (pinged.returncode, pinged.stderr) == (0, "")
            assert json.loads(pinged.stdout)["ping"]["node_id"] == bob.node_id
            offline = command("ping", mallory.node_id, "--no-port-mapping", "--rendezvous", address)
            assert offline.returncode == ExitCode.UNREACHED
            assert "What to do: " in offline.stderr
            assert "peer offline" in offline.stderr
            (said,) = json.loads(command("status", "--json").stdout)["status"]["rendezvous"]
            assert said["connected"] is True
            node.stop()
        station.stop()


def test_the_doctor_visits(tmp_path: pathlib.Path) -> None:
    flags = ["--identity", str(tmp_path / "r.pem"), "--listen", "127.0.0.1:0", "--json"]
    with Process("keynet", "rendezvous", *flags) as station:
        address = station.expect("ready")["rendezvous"]
        node, _, where = address.partition("@")
        done = command("doctor", "--no-port-mapping", "--timeout", "2", "--json", "--rendezvous", address)
        assert done.stderr == ""
        said = json.loads(done.stdout)["doctor"]
        (visit,) = said["rendezvous"]
        assert (visit["node_id"], visit["address"], visit["registered"]) == (node, where, True)
        assert visit["ping"]["tls_version"]
        assert done.returncode == said["exit_code"]
        station.stop()
    gone = command("doctor", "--no-port-mapping", "--timeout", "1", "--rendezvous", address)
    assert gone.returncode == ExitCode.UNREACHED
    assert "not reached, stage " in gone.stdout

"""`keynet rendezvous`, run as people and programs run it."""

from __future__ import annotations

import contextlib
import pathlib
import signal
import socket
import subprocess
import sys

import pytest

import keynet
from keynet import _keynet
from keynet._runtime import call
from keynet.cli import ExitCode
from keynet.demo.run import Process
from nodes import nats_server, registered


async def test_it_runs_and_ends(tmp_path: pathlib.Path, alice: keynet.Identity, bob: keynet.Identity) -> None:
    file = tmp_path / "r.pem"
    flags = ["--identity", str(file), "--listen", "127.0.0.1:0", "--public-stun", "stun.example.org:3478", "--json"]
    with Process("keynet", "rendezvous", *flags) as running:
        ready = running.expect("ready")
        assert ready["node_id"] == keynet.Identity.load(file).node_id
        assert ready["rendezvous"] == f"{ready['node_id']}@{ready['proxy_address']}"
        async with registered(ready["rendezvous"], alice) as a, registered(ready["rendezvous"], bob) as b:
            assert list(a.welcome.stun) == ["stun.example.org:3478"]
            await a.send(b.key)
            assert (await b.signal()).node == a.key
            running._process.send_signal(signal.SIGINT)
            assert (await a.ended())[0].name == "UNAVAILABLE"
            closed = running.expect("closed")
            assert (closed["registrations"], closed["signals_delivered"]) == (2, 1)
            running.finish()


def test_control_c_is_clean(tmp_path: pathlib.Path) -> None:
    with nats_server(tmp_path) as nats:
        flags = ["--identity", str(tmp_path / "r.pem"), "--listen", "127.0.0.1:0", "--nats", nats.url]
        running = subprocess.Popen(
            [sys.executable, "-m", "keynet", "rendezvous", *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert running.stdout is not None
        with running:
            head = []
            while not head or head[-1] != "ready":
                line = running.stdout.readline()
                assert line, head
                head.append(line.rstrip())
            node = keynet.Identity.load(tmp_path / "r.pem").node_id
            assert any(f"{node}@127.0.0.1:" in line for line in head)
            running.send_signal(signal.SIGINT)
            out, complaints = running.communicate(timeout=60)
            assert running.returncode == 0
            assert out == "closed\n"
            # how many files it may open is this machine's matter
            assert [line for line in complaints.splitlines() if "open files are enough" not in line] == []


async def test_talkative(tmp_path: pathlib.Path, alice: keynet.Identity) -> None:
    flags = ["--identity", str(tmp_path / "r.pem"), "--listen", "127.0.0.1:0", "--allow", alice.node_id, "-v", "--json"]
    with Process("keynet", "rendezvous", *flags) as running:
        async with registered(running.expect("ready")["rendezvous"], alice):
            assert running.expect("connection_opened")["connection"]["node_id"] == alice.node_id
        running.stop()


def test_few_open_files(tmp_path: pathlib.Path) -> None:
    """There are no more nodes than files for them, so that the last is told and not left waiting."""
    program = """if True:
        import resource, sys
        resource.setrlimit(resource.RLIMIT_NOFILE, (1200, 1200))
        import keynet, keynet.rendezvous
        server = keynet.rendezvous.Server(keynet.Identity.generate())
        print(server._settings.max_nodes)
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert 1 < int(done.stdout) < 600
    assert f"enough for {done.stdout.strip()} nodes" in done.stderr


async def test_it_answers_stun(tmp_path: pathlib.Path, alice: keynet.Identity) -> None:
    ports = free_ports(2)
    addresses = [f"127.0.0.1:{port}" for port in ports]
    flags = ["--identity", str(tmp_path / "r.pem"), "--listen", "127.0.0.1:0", "--json"]
    with Process("keynet", "rendezvous", *flags, "--stun", addresses[0], "--stun", addresses[1]) as running:
        async with registered(running.expect("ready")["rendezvous"], alice) as node:
            assert list(node.welcome.stun) == [f":{port}" for port in ports]
        found = await call(lambda loop: _keynet.discover(addresses, 20.0, loop))
        assert (found["mapping"], found["external"]) == ("endpoint-independent", "127.0.0.1")
        running._process.send_signal(signal.SIGINT)
        assert running.expect("closed")["stun_answers"] > 0
        running.finish()


def test_a_stun_address_in_use(tmp_path: pathlib.Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        flags = ["--listen", "127.0.0.1:0", "--stun", f"127.0.0.1:{taken.getsockname()[1]}"]
        done = subprocess.run(
            [sys.executable, "-m", "keynet", "rendezvous", "--identity", str(tmp_path / "r.pem"), *flags],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert (done.returncode, done.stdout) == (ExitCode.BIND, "")
    assert "Traceback" not in done.stderr


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        (["--stun", "localhost:3478"], "localhost:3478"),
        (["--stun", "nowhere"], "host:port"),
        (["--public-stun", "stun.example.org"], "host:port"),
        (["--nats", "localhost"], "nats://host:4222"),
        (["--allow", "nobody"], "node id"),
        (["--max-nodes", "0"], "--max-nodes"),
        (["--listen", "nowhere"], "nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage(flags: list[str], wanted: str, tmp_path: pathlib.Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "keynet", "rendezvous", "--identity", str(tmp_path / "r.pem"), *flags],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (ExitCode.USAGE, "")
    assert wanted in done.stderr
    assert "Traceback" not in done.stderr

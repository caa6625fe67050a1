"""Looking at a running node: the status socket, and the command that reads it."""

from __future__ import annotations

import asyncio
import json
import os
import pathlib
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import keynet
from keynet import _status_server
from keynet._status import _explanation, _status
from keynet._status_server import StatusClient, running_sockets, sweep
from keynet.cli import ExitCode, main
from keynet.cli._status import Rate, compare, table
from keynet.demo.run import Process
from keynet.errors import _from_core
from support import SERVICE, proxy

PEER = keynet.Identity.generate().node_id


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[pathlib.Path]:
    """Where the sockets are; short, because their names may not be long."""
    with tempfile.TemporaryDirectory(prefix="kn", dir="/tmp") as base:
        monkeypatch.setenv("XDG_RUNTIME_DIR", base)
        monkeypatch.setenv("XDG_CACHE_HOME", f"{base}/cache")
        yield pathlib.Path(base, "keynet")


class Still:
    """A proxy that is always in the same state."""

    def __init__(self, node_id: keynet.NodeId, **changes: Any) -> None:
        self.node_id = node_id
        self.raw = {
            "node_id": node_id,
            "proxy_address": "[::]:4433",
            "forward_address": "127.0.0.1:8080",
            "addresses": [{"kind": "host", "address": "192.0.2.2:4433"}],
            "nat": None,
            "rendezvous": [],
            "relays": [],
            "peers": [],
            **changes,
        }

    def status(self) -> keynet.Status:
        return _status(self.raw)

    def explain(self, node_id: str) -> keynet.PathExplanation:
        nothing: dict[str, Any] = {"known_addresses": [], "paths": [], "meeting": None, "last_error": None}
        return _explanation({"node_id": node_id, "connected": False, **nothing})


def peer(**changes: Any) -> dict[str, Any]:
    path = {"address": "192.0.2.9:1", "in_use": True, "proven": True, "rtt": 0.01, "heard": 0.5, "local": False}
    path |= {"socket": 0, "relayed": False}
    base = {"node_id": PEER, "paths": [path], "connections": 2, "bytes_in": 1000, "bytes_out": 50}
    traffic = {"direct_in": 1200, "direct_out": 90, "relayed_in": 0, "relayed_out": 0}
    return {**base, **traffic, **changes}


async def read(path: pathlib.Path | None, *lines: bytes) -> list[dict[str, Any]]:
    assert path is not None
    reader, writer = await asyncio.open_unix_connection(str(path), limit=1 << 20)
    try:
        answers = []
        for line in lines:
            writer.write(line)
            answers.append(json.loads(await asyncio.wait_for(reader.readline(), 30)))
        return answers
    finally:
        writer.close()


async def test_it_answers_and_is_private(alice: keynet.Identity, folder: pathlib.Path) -> None:
    still: Any = Still(alice.node_id, peers=[peer()])
    async with keynet.StatusServer(still) as server:
        assert server.path == folder / f"{alice.node_id}.sock"
        assert stat.S_IMODE(server.path.stat().st_mode) == 0o600
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        explain = json.dumps({"do": "explain", "node_id": PEER}).encode() + b"\n"
        # several requests on one connection, several connections
        for _ in range(3):
            first, second = await read(server.path, b'{"do": "status"}\n', explain)
            assert _status(first["status"]) == still.status()
            assert _explanation(second["explanation"]) == still.explain(PEER)
            assert second["text"] == still.explain(PEER).text
        assert running_sockets() == running_sockets(alice.node_id) == [server.path]
    assert list(folder.iterdir()) == []
    assert running_sockets() == []


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"status\n",
        b"[]\n",
        b"7\n",
        b'{"do": "fly"}\n',
        b'{"do": {}}\n',
        b'{"do": "explain"}\n',
        b'{"do": "explain", "node_id": "nobody"}\n',
        b"\xff\xfe\n",
        b"[" * 900 + b"\n",
        b"x" * 5000 + b"\n",
    ],
    ids=lambda line: repr(line[:30]),
)
async def test_wrong_requests_are_answered(line: bytes, alice: keynet.Identity) -> None:
    still: Any = Still(alice.node_id)
    async with keynet.StatusServer(still) as server:
        (answer,) = await read(server.path, line)
        assert answer["error"]["reason"] == "invalid_argument"
        # and it goes on
        (answer,) = await read(server.path, b'{"do": "status"}\n')
        assert "status" in answer


async def test_readers_are_bounded(alice: keynet.Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_status_server, "_MAX_READERS", 2)
    still: Any = Still(alice.node_id)
    async with keynet.StatusServer(still) as server:
        assert server.path is not None
        waiting = [await asyncio.open_unix_connection(str(server.path)) for _ in range(2)]
        for reader, writer in waiting:
            writer.write(b'{"do": "status"}\n')
            assert await asyncio.wait_for(reader.readline(), 30)
        (answer,) = await read(server.path, b"")
        assert "others look" in answer["error"]["detail"]
        for _, writer in waiting:
            writer.close()


async def test_a_reader_that_says_nothing_is_let_go(alice: keynet.Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_status_server, "_PATIENCE", 0.05)
    still: Any = Still(alice.node_id)
    async with keynet.StatusServer(still) as server:
        assert server.path is not None
        reader, writer = await asyncio.open_unix_connection(str(server.path))
        assert await asyncio.wait_for(reader.read(), 30) == b""
        writer.close()


async def test_sockets_of_killed_nodes_are_swept(alice: keynet.Identity, folder: pathlib.Path) -> None:
    folder.mkdir()
    left = folder / f"{PEER}.sock"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(left))
    half_made = folder / ".0.new"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(half_made))
    (folder / "notes.sock").write_text("no socket, so not ours to take")
    still: Any = Still(alice.node_id)
    async with keynet.StatusServer(still) as server:
        assert sorted(folder.iterdir()) == sorted([server.path, half_made, folder / "notes.sock"])
        os.utime(half_made, (0, 0))
        sweep(folder)
        assert not half_made.exists()
        assert running_sockets() == [server.path]


async def test_one_identity_may_run_twice(alice: keynet.Identity) -> None:
    still: Any = Still(alice.node_id)
    async with keynet.StatusServer(still) as first, keynet.StatusServer(still) as second:
        assert first.path != second.path
        assert running_sockets(alice.node_id) == sorted([first.path, second.path])
        await first.close()
        await first.close()
        assert running_sockets() == [second.path]


async def test_a_place_that_will_not_do(alice: keynet.Identity, tmp_path: pathlib.Path) -> None:
    still: Any = Still(alice.node_id)
    (tmp_path / "file").write_text("mine")
    for wanted in (tmp_path / "file", tmp_path / "none" / "s", tmp_path / ("x" * 108)):
        with pytest.raises(keynet.BindError):
            await keynet.StatusServer(still, wanted).start()
    assert (tmp_path / "file").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


async def test_the_client(alice: keynet.Identity, folder: pathlib.Path) -> None:
    still: Any = Still(alice.node_id)
    async with keynet.StatusServer(still) as server:
        assert server.path is not None
        client = await asyncio.to_thread(StatusClient, server.path)
        assert await asyncio.to_thread(client.status) == still.status()
        assert await asyncio.to_thread(client.explain, PEER) == still.explain(PEER)
    with pytest.raises(keynet.ProxyClosedError):
        await asyncio.to_thread(client.status)
    client.close()
    with pytest.raises(keynet.ProxyClosedError, match="no node answers"):
        StatusClient(folder / "nobody.sock")


# -- the table -------------------------------------------------------------------------------------------------------


def test_rates_are_of_two_looks(alice: keynet.Identity) -> None:
    def look(count_in: int, count_out: int) -> keynet.Status:
        return Still(alice.node_id, peers=[peer(bytes_in=count_in, bytes_out=count_out)]).status()

    assert compare(look(0, 100), look(2048, 100), 2.0) == {PEER: Rate(1024.0, 0.0)}
    # a connection has ended, and its bytes are not counted any more
    assert compare(look(5000, 100), look(100, 200), 2.0) == {PEER: Rate(None, 50.0)}
    assert compare(Still(alice.node_id).status(), look(1, 1), 1.0) == {}


def test_the_table(alice: keynet.Identity) -> None:
    spare = {"address": "198.51.100.3:7", "in_use": False, "proven": False, "rtt": None, "heard": 9.0, "local": False}
    used = {"address": "192.168.1.9:7", "in_use": True, "proven": True, "rtt": 0.0005, "heard": 0.2, "local": True}
    nat = {
        "summary": "NAT, mapping endpoint-independent, filtering address-dependent, ports preserved",
        "mapping": "endpoint-independent",
        "filtering": "address-dependent",
        "ports": "preserved",
        "udp_blocked": False,
        "translated": True,
        "external": "203.0.113.1",
    }
    stations = [
        {
            "node_id": PEER,
            "address": "r1:7348",
            "connected": True,
            "observed": "203.0.113.1:9",
            "rtt": 0.02,
            "error": None,
        },
        {
            "node_id": PEER,
            "address": "r2:7348",
            "connected": False,
            "observed": None,
            "rtt": None,
            "error": _from_core("punch_timeout", "punch", PEER, "r2:7348", "nothing came back"),
        },
    ]
    both = [{**spare, "socket": 0, "relayed": True}, {**used, "socket": 0, "relayed": False}]
    relay = {
        "relay": "relay.example.org",
        "socket": 32768,
        "transport": "tls",
        "proxy": "proxy.example.org:3128",
        "addresses": ["203.0.113.99:49152"],
        "rtt": 0.03,
        "introduction": False,
        "bytes_in": 5,
        "bytes_out": 7,
        "dropped": 0,
        "peers": 1,
        "error": None,
    }
    lost = {**relay, "socket": None, "error": _from_core("relay_lost", "relay", None, None, "gone")}
    changes: dict[str, Any] = {"nat": nat, "rendezvous": stations, "relays": [relay, lost]}
    status = Still(alice.node_id, peers=[peer(paths=both)], **changes).status()
    lines = table(status, {PEER: Rate(2048.0, None)}).splitlines()
    assert lines[0].endswith(alice.node_id)
    text = "\n".join(lines)
    for part in (
        "keeps 203.0.113.99:49152, by tls through the HTTP proxy proxy.example.org:3128",
        "not in use: relay lost",
        "192.0.2.2:4433 (host)",
        "seen as 203.0.113.1",
        "r1:7348: registered",
        "r2:7348: not registered",
    ):
        assert part in text
    head, first, second = lines[-3:]
    # the path in use comes first, and the peer is named once
    assert head.split() == ["PEER", "PATH", "RTT", "HEARD", "CONNECTIONS", "IN", "OUT"]
    assert first.startswith(PEER[:8])
    assert "192.168.1.9:7" in first
    assert "in use, local" in first
    assert "2.0 KiB/s" in first
    assert first.endswith("?")
    assert "not proven, relayed" in second
    assert PEER[:8] not in second
    assert table(Still(alice.node_id).status(), {}).endswith("no peers")


# -- the command -----------------------------------------------------------------------------------------------------


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "keynet", "status", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def test_a_runtime_folder_of_ones_own_is_the_only_one(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    """Nodes that run under another one, of the same user, are not seen: who names a folder means that one."""
    usual = pathlib.Path(f"/run/user/{os.getuid()}/keynet")
    assert folder in _status_server.socket_folders()
    assert usual not in _status_server.socket_folders()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "gone"))
    monkeypatch.setattr(pathlib.Path, "is_dir", lambda path: path == usual.parent)
    assert usual in _status_server.socket_folders()


def test_nothing_runs(tmp_path: pathlib.Path, alice: keynet.Identity) -> None:
    file = tmp_path / "a.pem"
    alice.save(file)
    for arguments in ([], ["--identity", str(file)], ["--socket", str(tmp_path / "none")]):
        done = command(*arguments)
        assert (done.returncode, done.stdout) == (ExitCode.FAILED, "")
        assert "no node" in done.stderr
        assert "Traceback" not in done.stderr
    # looking makes no identity
    done = command("--identity", str(tmp_path / "b.pem"))
    assert done.returncode == ExitCode.IDENTITY
    assert not (tmp_path / "b.pem").exists()


def test_a_running_node(tmp_path: pathlib.Path, alice: keynet.Identity, bob: keynet.Identity) -> None:
    files = [tmp_path / "a.pem", tmp_path / "b.pem"]
    for identity, file in zip((alice, bob), files, strict=True):
        identity.save(file)
    common = ["--listen", "127.0.0.1:0", "--json", "--identity"]
    serving = ["--service", f"{SERVICE}=127.0.0.1:1", "--allow", "anyone"]
    with Process("keynet", "up", *common, str(files[0]), *serving) as first:
        ready = first.expect("ready")
        assert stat.S_IMODE(os.stat(ready["status_socket"]).st_mode) == 0o600
        (said,) = [json.loads(line) for line in command("--json").stdout.splitlines()]
        assert said["status"]["node_id"] == alice.node_id
        assert said["status"]["proxy_address"] == ready["proxy_address"]
        assert "no peers" in command().stdout
        with Process("keynet", "up", *common, str(files[1])) as second:
            second.expect("ready")
            done = command()
            assert done.returncode == ExitCode.USAGE
            assert done.stderr.count("--socket") == 2
            done = command("--identity", str(files[1]))
            assert bob.node_id in done.stdout
            done = command(alice.node_id, "--identity", str(files[1]))
            assert (done.returncode, done.stderr) == (0, "")
            assert "What to do: " in done.stdout
            said = json.loads(command(alice.node_id, "--identity", str(files[1]), "--json").stdout)
            assert said["explanation"]["node_id"] == alice.node_id
            assert said["explanation"]["connected"] is False
            second.stop()
        pinged = subprocess.run(
            [sys.executable, "-m", "keynet", "ping", alice.node_id, ready["proxy_address"]], timeout=120, check=False
        )
        assert pinged.returncode == 0
        first.stop()
    assert running_sockets() == []


def test_watching(tmp_path: pathlib.Path, alice: keynet.Identity) -> None:
    alice.save(tmp_path / "a.pem")
    flags = ["--listen", "127.0.0.1:0", "--json", "--identity", str(tmp_path / "a.pem")]
    with Process("keynet", "up", *flags) as node:
        node.expect("ready")
        watch = subprocess.Popen(
            [sys.executable, "-m", "keynet", "status", "--watch", "--interval", "0.05", "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert watch.stdout is not None
        with watch:
            for _ in range(3):
                assert json.loads(watch.stdout.readline())["status"]["node_id"] == alice.node_id
            watch.send_signal(signal.SIGINT)
            _, complaints = watch.communicate(timeout=30)
        assert (watch.returncode, complaints) == (0, "")
        node.stop()


async def test_status_and_explain_of_two_nodes(alice: keynet.Identity, bob: keynet.Identity) -> None:
    async with (
        proxy(bob, services={SERVICE: "127.0.0.1:1"}, allow=keynet.ANYONE) as server,
        proxy(alice) as caller,
    ):
        assert caller.explain(bob.node_id).cause is None
        caller.add_peer(bob.node_id, [server.proxy_address])
        await caller.ping(bob.node_id)
        status = caller.status()
        assert (status.node_id, status.proxy_address) == (alice.node_id, caller.proxy_address)
        assert (status.nat, status.rendezvous) == (None, ())
        (seen,) = status.peers
        assert seen.node_id == bob.node_id
        assert seen.path is not None
        assert (seen.path.address, seen.path.proven) == (server.proxy_address, True)
        explanation = caller.explain(bob.node_id)
        assert explanation.connected
        assert explanation.known_addresses == (server.proxy_address,)
        assert f"is reached at {server.proxy_address}" in explanation.text
        assert "the only one that answered" in explanation.text


HOSTILE = "\r\nINJECTED\x1b[2J\x9b31m\u202egpj" + "x" * 5000
FAILURE = {"reason": "internal", "stage": "setup", "node_id": None, "address": HOSTILE, "detail": HOSTILE}


@pytest.mark.parametrize(
    "answer",
    [
        b"[]",
        b"null",
        b'"text"',
        b"[" * 100_000,
        json.dumps({"error": {**FAILURE, "message": HOSTILE}}).encode(),
        json.dumps({"error": {**FAILURE, "reason": HOSTILE, "message": ""}}).encode(),
        json.dumps({"error": HOSTILE}).encode(),
        json.dumps({"status": {HOSTILE: HOSTILE}}).encode(),
        json.dumps({"status": HOSTILE, "explanation": HOSTILE}).encode(),
    ],
    ids=lambda answer: answer[:12].decode(),
)
@pytest.mark.parametrize("more", [[], [PEER]], ids=["status", "explain"])
def test_whatever_a_socket_answers_is_a_failure_in_words(
    answer: bytes, more: list[str], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(path))
        listener.listen()

        def serve() -> None:
            reader, _ = listener.accept()
            with reader, reader.makefile("rwb") as file:
                file.readline()
                file.write(answer + b"\n")

        thread = threading.Thread(target=serve)
        thread.start()
        assert main(["status", "--socket", os.path.relpath(path), *more]) == ExitCode.INTERNAL
        thread.join()
    said = capsys.readouterr().err
    assert all(line.isprintable() and not line.startswith("INJECTED") for line in said.split("\n")), ascii(said[:500])
    assert "the log says where" not in said
